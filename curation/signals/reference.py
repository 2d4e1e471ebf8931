"""Where the texts come from that a signal's model is trained on: files, or a sample of one of the recipe's sources.

A reference is drawn from documents as they were read, never from those still alive, so that a changed rule does not change a model.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Sample(BaseModel):
    """The `documents` documents of the source `sample` with the lowest content hash under the recipe's seed; all of them where there are fewer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: str
    documents: int = Field(default=5000, gt=0)


Reference = str | Sample  # a text is a file pattern, read as the files of a source are
