"""Whether a document stands in a list: opt-outs, take-downs, licences withdrawn.

The lists are text files with one entry a line (white space around an entry and blank lines do not count), or any other format that a source may have, whose texts are
read the same way. An entry is a document's key, its content hash (32 hex characters), or its origin (`file#position`). A list that cannot be read whole is refused:
an entry that was lost would be a document kept against someone's will.

One Boolean per document: true if it is listed, false otherwise, also for a document without a key. `keep: NOT opted_out` removes them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.reference import Reference

if TYPE_CHECKING:
    import pyarrow as pa

ENTRIES = "entries.txt"


class ListedConfig(BaseModel):
    """The lists, and what their entries are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["listed"]
    files: str = Field(description="paths or URLs with wildcards; one entry a line")
    by: Literal["key", "content", "origin"] = "key"


def version(config: ListedConfig) -> str:
    return "listed 1"


def fields(config: ListedConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.bool_()


def references(config: ListedConfig) -> dict[str, Reference]:
    return {"files": config.files}


def reads(config: ListedConfig) -> str:
    return config.by


def train(config: ListedConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """The distinct entries in order, so that the model's digest is that of the set."""
    lines = {line.strip() for text in texts["files"].to_pylist() for line in text.split("\n")}
    entries = {line.lower() if config.by == "content" else line for line in lines if line}
    (folder / ENTRIES).write_text("".join(f"{entry}\n" for entry in sorted(entries)), encoding="utf-8")


def compute(config: ListedConfig, values: pa.LargeStringArray, model: Path | None) -> pa.BooleanArray:
    """Whether each of `values`, which are what `by` names, is an entry."""
    import pyarrow.compute as pc

    assert model is not None
    return pc.fill_null(pc.is_in(values, value_set=_entries(model), skip_nulls=True), False)


@lru_cache(4)
def _entries(model: Path) -> pa.LargeStringArray:
    import pyarrow as pa

    text = (model / ENTRIES).read_text(encoding="utf-8")
    return pa.array(text.split("\n")[:-1], pa.large_string())
