"""MEASUREMENTS: what training learned, a file that a later recipe can read. Schema version 1.

JSON Lines, one measurement a line, appended as training goes; Parquet and CSV of the same columns are read too. A value that is not finite (a
run that diverged) is null. Standard library, numpy and pyarrow only: the trainer imports this module.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mixing import UserError

MEASUREMENTS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("manifest", pa.string(), nullable=False),
        pa.field("component", pa.string()),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("epochs", pa.float64()),
        pa.field("learning_rate", pa.float64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("commit", pa.string()),
    ]
)

DOCUMENTATION = {
    "run": "the run's name",
    "manifest": "the manifest's digest",
    "component": "a component of the mixture; null for the whole run",
    "metric": "what was measured, for instance `loss` or `accuracy/<task>`",
    "group": "`target` (to improve) or `guard` (not to lose)",
    "tokens": "tokens trained on when it was measured",
    "epochs": "tokens / unique tokens of the component by then; null where it has none",
    "learning_rate": "the learning rate of that step; null before the first",
    "seed": "the run's seed",
    "value": "the result; null if it was not finite",
    "commit": "the commit of the code, null if unknown",
}

GROUPS = ("target", "guard")


class Measurement(NamedTuple):
    """One line. The fields are those of MEASUREMENTS."""

    run: str
    manifest: str
    component: str | None
    metric: str
    group: Literal["target", "guard"]
    tokens: int
    epochs: float | None
    learning_rate: float | None
    seed: int
    value: float | None
    commit: str | None


def append(path: Path, measurements: Iterable[Measurement]) -> None:
    """Add lines to the JSON Lines file at `path`, making it if need be. All of them reach the file in one write."""
    lines = []
    for measurement in measurements:
        assert measurement.group in GROUPS
        columns = measurement._asdict()
        for name in ("epochs", "learning_rate", "value"):
            if columns[name] is not None and not math.isfinite(columns[name]):
                columns[name] = None
        lines.append(json.dumps(columns, ensure_ascii=False, allow_nan=False) + "\n")
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(lines))


def read(path: Path) -> pa.Table:
    """The measurements at `path` (.jsonl, .parquet or .csv) in the schema MEASUREMENTS, or a UserError naming the line or column that is wrong."""
    readers = {".jsonl": _read_jsonl, ".parquet": pq.read_table, ".csv": _read_csv}
    if path.suffix not in readers:
        raise UserError(f"{path}: measurements are read from {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file of measurements")
    if not path.stat().st_size:
        raise UserError(f"{path}: empty; nothing was measured yet")
    table = readers[path.suffix](path)
    if missing := [name for name in MEASUREMENTS.names if name not in table.column_names]:
        raise UserError(f"{path}: no column {', '.join(missing)}; measurements have: {', '.join(MEASUREMENTS.names)}")
    try:
        table = table.select(MEASUREMENTS.names).cast(MEASUREMENTS)
        table.validate(full=True)
    except (pa.ArrowInvalid, ValueError) as error:
        raise UserError(f"{path}: not measurements: {error}") from None
    if strange := sorted(set(table["group"].to_pylist()) - set(GROUPS)):
        raise UserError(f"{path}: group {strange[0]!r}; accepted: {', '.join(GROUPS)}")
    return table


def measured(path: Path) -> list[Measurement]:
    """The measurements at `path`, as `read` checks them."""
    return [Measurement(**row) for row in read(path).to_pylist()]


def _read_jsonl(path: Path) -> pa.Table:
    found: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict) or set(row) != set(MEASUREMENTS.names):
            kind = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{path}, line {number}: found {kind}; a measurement has {', '.join(MEASUREMENTS.names)}")
        found.append(row)
    try:
        return pa.Table.from_pylist(found, schema=MEASUREMENTS)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"{path}: not measurements: {error}") from None


def _read_csv(path: Path) -> pa.Table:
    types = pa.csv.ConvertOptions(column_types=MEASUREMENTS, strings_can_be_null=True)
    try:
        return pa.csv.read_csv(path, convert_options=types)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not measurements: {error}") from None
