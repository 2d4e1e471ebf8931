"""The pool in windows: what every count of the page is made from, some hundred thousand rows at a time.

In: the pool's files. Out: per row its source, how far it came, its tokens, and a number drawn for it, by which samples are taken: the same rows whatever the windows are.
Documents that were held out or quarantined have no step: no model is trained on them whatever a threshold says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.page.thresholds import decisions, steps_of
from mixing.manifest import Manifest
from mixing.pool import POOL

WINDOW = 200_000
FIXED = ("row", "source", "decision", "reason", "evidence", "bytes", "n_tokens")
APART = -1
"""The step of a document that takes no part: held out or quarantined."""
KEPT = 1 << 30
"""The step of a document that passed all of them."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Lots = npt.NDArray[np.uint64]


class Value(NamedTuple):
    """A column of the pool, or a part of one: `words.mean_length`. `step` added it (0: it came with the document)."""

    name: str
    kind: Literal["number", "label"]
    step: int

    def of(self, frame: pl.DataFrame) -> pl.Series:
        column, _, part = self.name.partition(".")
        return frame[column].struct.field(part) if part else frame[column]


class Window(NamedTuple):
    """Rows of the pool, in order. `step` is the one that dropped a document, KEPT or APART; `tokens` is -1 where they were never counted."""

    frame: pl.DataFrame
    source: Integers
    step: Integers
    tokens: Integers
    bytes: Integers
    lot: Lots

    def alive(self, step: int) -> Mask:
        """The documents that the step looked at, or that had the value it added."""
        there: Mask = self.step >= max(step, 0)
        return there


def schema_of(manifest: Manifest) -> pa.Schema:
    return pq.read_schema(manifest.pool_files()[0])


def source_names(manifest: Manifest) -> list[str]:
    """The sources in the order of the recipe."""
    named = [source["name"] for source in manifest.header["recipe"].get("sources", [])]
    return named or list(manifest.sources)


def values_of(manifest: Manifest) -> list[Value]:
    """The values whose distribution means something: no row numbers, and no places in a text."""
    added = {step["add"]["name"]: (number, step["add"]) for number, step in enumerate(steps_of(manifest), 1) if "add" in step}
    found = [Value("bytes", "number", 0)]
    for field in schema_of(manifest):
        if field.name in POOL.names:
            continue
        step, config = added.get(field.name, (0, {}))
        parts = (
            [(f"{field.name}.{part.name}", part.type) for part in field.type]
            if pa.types.is_struct(field.type)
            else [(field.name, field.type)]
        )
        for name, kind in parts:
            if _means_something(name, config.get("kind")) and (told := _kind(kind)) is not None:
                found.append(Value(name, told, step))
    return found


def _means_something(name: str, kind: str | None) -> bool:
    last = name.rpartition(".")[2]
    if kind in ("exact", "minhash"):
        return last == "similarity"
    return not (kind == "contamination" and last in ("start", "length", "item"))


def _kind(kind: pa.DataType) -> Literal["number", "label"] | None:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "label" if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def windows(manifest: Manifest, values: Sequence[str], rows: int = WINDOW) -> Iterator[Window]:
    """The pool with the columns that `values` are in."""
    columns = list(dict.fromkeys([*FIXED, *(name.partition(".")[0] for name in values)]))
    names = source_names(manifest)
    steps = step_of_reasons(manifest)
    for path in manifest.pool_files():
        total = pq.read_metadata(path).num_rows
        for first in range(0, total, rows):
            frame = pl.scan_parquet(path).slice(first, rows).select(columns).collect()
            yield _window(frame, names, steps, manifest.header["seed"])


def step_of_reasons(manifest: Manifest) -> dict[str, int]:
    """The step that each reason for dropping names; the first of two with the same rule."""
    found = {"holdout": 0}
    for step, rule in decisions(manifest):
        for reason in (rule, f"{rule} (no value)"):
            found.setdefault(reason, step)
    return found


def _window(frame: pl.DataFrame, names: list[str], steps: dict[str, int], seed: int) -> Window:
    source = frame["source"].replace_strict(names, range(len(names)), return_dtype=pl.Int64).to_numpy()
    dropped_by = frame["reason"].replace_strict(list(steps), list(steps.values()), default=APART, return_dtype=pl.Int64).to_numpy()
    decision = frame["decision"]
    step = np.where((decision == "kept").to_numpy(), KEPT, np.where((decision == "dropped").to_numpy(), dropped_by, APART))
    tokens = frame["n_tokens"].cast(pl.Int64).fill_null(-1).to_numpy()
    size = frame["bytes"].cast(pl.Int64).fill_null(0).to_numpy()
    return Window(frame, source, step, tokens, size, lots(frame["row"].to_numpy(), seed))


def lots(rows: npt.NDArray[np.uint64], seed: int) -> Lots:
    """A number for each row, evenly over 64 bits (SplitMix64), the same for the same seed."""
    salt = (seed * 0x9E3779B97F4A7C15 + 0x5851F42D4C957F2D) % 2**64
    mixed = rows.astype(np.uint64) + np.uint64(salt)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    drawn: Lots = mixed ^ (mixed >> np.uint64(31))
    return drawn
