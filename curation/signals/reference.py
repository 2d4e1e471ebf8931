"""Where the texts come from that a signal's model is trained on: files, or a sample of one of the recipe's sources; and models that others trained.

A reference is drawn from documents as they were read, never from those still alive, so that a changed rule does not change a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Sample(BaseModel):
    """The `documents` documents of the source `sample` with the lowest content hash under the recipe's seed; all of them where there are fewer.

    With `where`, only those for which it holds. It sees what reading gave and the row signals added before, which are computed for that on documents as they were read, dropped ones too:
    what a rule did to them in between changes no model. Of equal texts it looks at the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: str
    documents: int = Field(default=5000, gt=0)
    where: str | None = Field(default=None, description="a rule over what reading gave and row signals added before")


class Columns(NamedTuple):
    """What a reference of records is read for instead of texts: a file has one of the columns `needed`, and all of `names` that it has are read."""

    needed: list[str]
    names: list[str]


Reference = str | Sample  # a text is a file pattern, read as the files of a source are


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model, or the name of one on the Hugging Face hub; `files` are the patterns of those that decide its values. It is used where it lies. `check` raises a
    UserError where the recipe does not fit it."""

    path: str
    files: tuple[str, ...]
    check: Callable[[Path], None]


@dataclass(frozen=True)
class ModelFile:
    """One file with a trained model. What `look` finds in it (JSON) is remembered by the file's digest; `check` raises a UserError where the recipe does not fit it."""

    path: str
    look: Callable[[Path], Any]
    check: Callable[[Any], None]
