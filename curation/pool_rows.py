"""The pool: one row for every record that was read, with what became of it and why.

In: the shards and what was decided of them. Out: `pool/*.parquet` of the manifest. Each shard's rows are made into the scratch room, sorted by row; each file of the pool then
takes its range of rows from the shards that have some, in windows, so that memory follows the window and not the corpus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from curation import rules
from curation.corpus.shards import Positions, Shard, chunkless, contents, read_sidecar, sidecar_path
from curation.decisions.apply_steps import ALIVE, Fates, State, frame, signal_values, start
from curation.decisions.duplicates import MEMBER
from curation.decisions.ranking import lots
from curation.decisions.resolved_steps import Add, Keep, Step, Top, fate_of
from curation.engine.atomic_files import beside, whole
from mixing.canonical import canonical_json
from mixing.files import Piece, write_pool
from mixing.pool import ROWS_PER_FILE, pool_schema

POOL_WINDOW = 50_000  # held at a time
SURVIVOR_KEYS = ("survivor", "row", "similarity")


@dataclass(frozen=True)
class Reasons:
    """What each step writes as the reason, and how its evidence is found."""

    steps: dict[int, Step]

    def reason(self, fate: int) -> str:
        if fate == fate_of(0):
            return "holdout"
        step = self.steps[fate // 2]
        assert not isinstance(step, Add)
        return step.rule + (" (no value)" if fate % 2 else "")

    def evidence(self, fate: int, shard: Shard, positions: Positions, state: State) -> list[str]:
        """Canonical JSON per document: the survivor it equals or the parts of a signal that are its evidence, if the rule looked at one, else the values that it looked at."""
        if fate == fate_of(0):
            assert state.holdout is not None
            return [found or "" for found in _survivors(shard, state.holdout, positions, state)]
        step = self.steps[fate // 2]
        if isinstance(step, Top):
            if step.config.by is None:
                return [canonical_json({"value": lot}) for lot in lots(contents(shard, positions), step.seed).tolist()]
            reads = [step.config.by]
        else:
            assert isinstance(step, Keep)
            reads = rules.parse(step.rule, "", state.schema()).reads
        names = list(dict.fromkeys(name.split(".")[0] for name in reads))
        values = frame(shard, names, positions, state)
        columns = [_read(values, name) for name in reads]
        single = len(reads) == 1
        rows = [{"value": row[0] if single else dict(zip(reads, row, strict=True))} for row in zip(*columns, strict=True)]
        evidence = [canonical_json(row) for row in rows] if reads else [canonical_json({"value": None})] * len(positions)
        for name in names:
            if name in state.signals and (state.signals[name].survivors or state.signals[name].evidence):
                placed = state.signals[name]
                told = _survivors(shard, placed.of(shard), positions, state) if placed.survivors else _parts(values[name], placed.evidence)
                evidence = [one or value for one, value in zip(told, evidence, strict=True)]
        return evidence


def _read(values: pl.DataFrame, name: str) -> list[Any]:
    """A rule's values for JSON, which has no infinity and no whole number beyond 2^53: those become text."""
    column, _, part = name.partition(".")
    found = (values[column].struct.field(part) if part else values[column]).to_list()
    return [
        str(one) if (abs(one) > 2**53 if isinstance(one, int) else isinstance(one, float) and math.isinf(one)) else one for one in found
    ]


def _parts(values: pl.Series, parts: tuple[str, ...]) -> list[str | None]:
    """Per document the parts of a signal's value that say why, as canonical JSON; None where it has none."""
    return [
        None if one is None or one[parts[0]] is None else canonical_json({part: one[part] for part in parts}) for one in values.to_list()
    ]


def _survivors(shard: Shard, key: str, positions: Positions, state: State) -> list[str | None]:
    """Per document the survivor, as canonical JSON; None for a document that has none."""
    sidecar = read_sidecar(sidecar_path(state.work, key, shard))
    assert sidecar is not None
    found = sidecar.values.take(pa.array(positions))
    columns = [found.field(name).to_pylist() for name in ("origin", "row", "similarity")]
    members = [found.field(name).to_pylist() for name, _ in MEMBER] if found.type.get_field_index("index") >= 0 else []
    named: list[str | None] = []
    for place, one in enumerate(zip(*columns, strict=True)):
        evidence = dict(zip(SURVIVOR_KEYS, one, strict=True))
        if members and one[1] is None:
            evidence |= {name: values[place] for (name, _), values in zip(MEMBER, members, strict=True) if values[place] is not None}
        named.append(None if one[0] is None else canonical_json(evidence))
    return named


def _why(shard: Shard, fates: Fates, reasons: Reasons, state: State) -> tuple[list[str | None], list[str | None]]:
    """(reason, evidence) of every document of a shard that was dropped."""
    reason: list[str | None] = [None] * shard.documents
    evidence: list[str | None] = [None] * shard.documents
    for fate in np.unique(fates[fates != ALIVE]).tolist():
        positions = np.flatnonzero(fates == fate)
        why = reasons.reason(fate)
        for position, found in zip(positions.tolist(), reasons.evidence(fate, shard, positions, state), strict=True):
            reason[position], evidence[position] = why, found
    return reason, evidence


def pool_part(shard: Shard, reasons: Reasons, state: State) -> tuple[int, int]:
    """A shard's records, usable or not, as pool rows into the scratch room, sorted by row: (first row, last row)."""
    fates, held = start(shard, state)
    schema = pool_schema(
        [pa.field(name, kind) for name, kind in state.columns.items()],
        [pa.field(name, placed.type) for name, placed in state.signals.items()],
    )
    reason, evidence = _why(shard, fates, reasons, state)
    tokens = np.load(state.scratch / f"{shard.name}.tokens.npy")
    table = shard.read(["key", "content", "bytes", *(f"column.{name}" for name in shard.columns)])
    columns: dict[str, Any] = {
        "row": shard.rows(),
        "source": [shard.source] * shard.documents,
        "origin": shard.origins(),
        "key": chunkless(table["key"]),
        "content": [content.hex() for content in table["content"].to_pylist()],
        "bytes": chunkless(table["bytes"]),
        "parents": _parents(shard, state),
        "decision": np.select([held, fates == ALIVE], ["held_out", "kept"], "dropped"),
        "reason": reason,
        "evidence": evidence,
        "n_tokens": pa.array(tokens, mask=tokens < 0),
    }
    for name in shard.columns:
        columns[name] = chunkless(table[f"column.{name}"])
    for name, placed in state.signals.items():
        seen = np.flatnonzero(fates // 2 >= placed.step)
        place = np.full(shard.documents, -1, np.int64)
        place[seen] = seen
        columns[name] = signal_values(shard, name, state).take(pa.array(place, mask=place < 0))
    usable = _as_table(columns, shard.documents, schema)
    unusable = _quarantined(shard, schema)
    merged = pa.concat_tables([usable, unusable]).sort_by("row").combine_chunks()
    with (
        whole(_part(state.scratch, shard.name)) as path,
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_table(merged)
    rows = merged["row"].to_numpy()
    return (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)


def _parents(shard: Shard, state: State) -> pa.Array | None:
    """The row of each synthetic document's parent; None for documents that were read."""
    path = state.parents.get(shard.source)
    if path is None:
        return None
    rows: npt.NDArray[np.uint64] = np.load(path)[shard.rows() - np.uint64(state.rows[shard.source][0])]
    return pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1, dtype=np.int32)), pa.array(rows))


def _quarantined(shard: Shard, schema: pa.Schema) -> pa.Table:
    table = shard.quarantine()
    runs, ordinals, positions = (table[name].to_pylist() for name in ("run", "ordinal", "position"))
    columns: dict[str, Any] = {
        "row": np.array([shard.first_row[run] + ordinal for run, ordinal in zip(runs, ordinals, strict=True)], np.uint64),
        "source": [shard.source] * table.num_rows,
        "origin": [f"{shard.paths[run]}#{position}" for run, position in zip(runs, positions, strict=True)],
        "decision": ["quarantined"] * table.num_rows,
        "reason": table["reason"].to_pylist(),
    }
    return _as_table(columns, table.num_rows, schema)


def _as_table(columns: dict[str, Any], rows: int, schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(rows, field.type))
        elif isinstance(values, pa.Array):
            arrays.append(values if values.type == field.type else values.cast(field.type))
        else:
            arrays.append(pa.array(values).cast(field.type) if isinstance(values, np.ndarray) else pa.array(values, field.type))
    return pa.table(arrays, schema=schema)


def pool_files(shards: list[Shard], spans: list[tuple[int, int]], rows: int, state: State) -> list[tuple[Any, ...]]:
    """What each file of a pool of so many rows is made from: the arguments of `pool_file`."""
    tasks: list[tuple[Any, ...]] = []
    for number, low in enumerate(range(0, rows, ROWS_PER_FILE)):
        high = min(low + ROWS_PER_FILE, rows)
        parts = [(shard.name, *span) for shard, span in zip(shards, spans, strict=True) if span[0] < high and span[1] >= low]
        tasks.append((number, (low, high), parts, state.scratch))
    return tasks


def pool_file(number: int, rows: tuple[int, int], parts: list[tuple[str, int, int]], scratch: Path) -> Piece:
    """The pool's rows `[low, high)`, from the parts that have some: put in order in windows, and mapped while the file is written."""
    low, high = rows
    folder = beside(scratch / "manifest")
    folder.mkdir()
    file = folder / "pool.arrow"
    schema = _mapped(_part(scratch, parts[0][0])).schema
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for begin in range(low, high, POOL_WINDOW):
            end = min(begin + POOL_WINDOW, high)
            found = []
            for name, first, last in parts:
                if first < end and last >= begin:
                    part = _mapped(_part(scratch, name))
                    there = part["row"].chunk(0).to_numpy()
                    a, b = np.searchsorted(there, np.array([begin, end], np.uint64)).tolist()
                    found.append(part.slice(a, b - a))
            writer.write_table(pa.concat_tables(found).sort_by("row"))
    piece = write_pool(folder, number, _mapped(file))
    file.unlink()
    return piece


def _part(scratch: Path, shard: str) -> Path:
    return scratch / f"{shard}.pool.arrow"


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
