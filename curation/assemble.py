"""From decided documents to a manifest: components, tokens, plan, pool.

Everything per document is made shard by shard into the scratch room, sorted by row, and then merged in windows of rows, so that memory follows the window and not the
corpus. The one thing held whole is what the plan needs of a document: row, content, component and token count, 34 bytes (`curation.engine.memory` counts them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from curation import rules
from curation.corpus.shards import Corpus, Positions, Shard, chunkless, contents, read_sidecar, sidecar_path
from curation.corpus.token_ids import TokenIds, tokenize
from curation.decisions.apply_steps import ALIVE, Fates, State, frame, numbers, signal_values, start
from curation.decisions.components import assign, predicates
from curation.decisions.duplicates import MEMBER
from curation.decisions.ranking import lots
from curation.decisions.resolved_steps import Add, Keep, Step, Top, fate_of
from curation.engine.atomic_files import save, save_all, whole
from curation.engine.local import Engine
from mixing.canonical import canonical_json
from mixing.draws import Documents
from mixing.manifest import NO_COMPONENT, Holdout
from mixing.plan import Mixture, Plan
from mixing.pool import ROWS_PER_FILE, pool_schema
from mixing.write import ManifestWriter

POOL_WINDOW = 50_000  # held at a time
MAPPED = 32 << 20  # bytes of mapped files that are used before they are let go
TOKEN_WINDOW = 4 << 20  # ids held at a time
SURVIVOR_KEYS = ("survivor", "row", "similarity")


# --- components and counts


class Measured(NamedTuple):
    """What a shard holds at the end: documents kept, in no component, and held out."""

    kept: int
    unassigned: int
    held_out: int


def measure(shard: Shard, mixture: Mixture, steps: list[Step], state: State) -> Measured:
    """Puts every kept and every passing held-out document in its component and counts its tokens; saves `component` and `counted`."""
    fates, held = start(shard, state)
    positions = np.flatnonzero(fates == ALIVE)
    checked = predicates(mixture, state.schema())

    def inside(name: str) -> Positions:
        there: Positions = positions[checked[name].decide(frame(shard, checked[name].columns, positions, state))[0]]
        return there

    def described(row: int) -> str:
        return f"{shard.origins(np.array([row]))[0]} of source '{shard.source}'"

    component = assign(mixture, shard.documents, inside, described)
    alive = (fates == ALIVE) & ~held
    counted = (alive & (component != NO_COMPONENT)) | ((fates == ALIVE) & held)
    tokens = tokenize(shard, counted, state.tokenizer, state.work)
    for step in steps:
        if isinstance(step, Top) and step.config.tokens is not None:
            counted |= np.load(state.counted(shard, step.index))
    planned = np.flatnonzero(alive & (component != NO_COMPONENT))
    candidates = Documents(shard.rows()[planned], shard.contents()[planned], component[planned], tokens[planned])._asdict()
    candidates |= {f"values.{by}": numbers(shard, by, planned, state) for by in mixture.ordered_by()}
    del candidates["values"]
    save_all(state.scratch / f"{shard.name}.candidates.npz", **candidates)
    save(state.scratch / f"{shard.name}.component.npy", component)
    save(state.scratch / f"{shard.name}.tokens.npy", np.where(counted, tokens, -1))
    return Measured(int(alive.sum()), int((alive & (component == NO_COMPONENT)).sum()), int(held.sum()))


def documents_of(corpus: Corpus, mixture: Mixture, state: State) -> Documents:
    """The candidates of all shards, by row; one column at a time besides the result, so 24 bytes a document more at the highest."""
    row = _column("row", corpus, state)
    order = None if (row[1:] > row[:-1]).all() else np.argsort(row)
    columns = {}
    for name in ("content", "component", "tokens", *(f"values.{by}" for by in mixture.ordered_by())):
        column = _column(name, corpus, state)
        columns[name] = column if order is None else column[order]
    values = {by: columns[f"values.{by}"] for by in mixture.ordered_by()}
    return Documents(row if order is None else row[order], columns["content"], columns["component"], columns["tokens"], values)


def _column(name: str, corpus: Corpus, state: State) -> npt.NDArray[Any]:
    parts = []
    for shard in corpus.shards:
        with np.load(state.scratch / f"{shard.name}.candidates.npz") as stored:
            parts.append(stored[name])
    return np.concatenate(parts)


# --- tokens


class Placed(NamedTuple):
    """A shard's planned documents by row, in the scratch room: their rows, and their positions in the shard."""

    shard: Shard
    documents: int
    first: int
    last: int

    def load(self, name: str, state: State) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.load(state.scratch / f"{self.shard.name}.planned.{name}.npy", mmap_mode="r")
        return found


def place_planned(shard: Shard, planned: Path, state: State) -> Placed:
    """Finds a shard's planned documents."""
    rows = shard.rows()
    positions = np.flatnonzero(np.isin(rows, np.load(planned, mmap_mode="r")))
    positions = positions[np.argsort(rows[positions])]
    for name, values in (("rows", rows[positions]), ("positions", positions)):
        save(state.scratch / f"{shard.name}.planned.{name}.npy", values)
    return Placed(shard, len(positions), *((int(rows[positions[0]]), int(rows[positions[-1]])) if len(positions) else (0, -1)))


def merged_tokens(
    parts: list[Placed], planned: npt.NDArray[np.uint64], tokens: npt.NDArray[np.int64], state: State
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[np.int64]]]:
    """The planned documents of all shards in row order, some millions of ids at a time, from the sidecars where they lie."""
    stored: dict[str, TokenIds] = {}
    ends = np.cumsum(tokens)
    begin = touched = 0
    while begin < len(planned):
        room = TOKEN_WINDOW + (int(ends[begin - 1]) if begin else 0)
        end = max(begin + 1, int(np.searchsorted(ends, room, side="right")))
        low, high = planned[begin], planned[end - 1]
        begin = end
        rows, counts, ids = [], [], []
        if touched > MAPPED:  # what is mapped and was touched counts as memory of this process
            stored.clear()
            touched = 0
        for part in parts:
            if part.first > high or part.last < low:
                continue
            there = part.load("rows", state)
            a, b = int(np.searchsorted(there, low)), int(np.searchsorted(there, high, side="right"))
            positions = part.load("positions", state)[a:b]
            order = np.argsort(positions)
            rows.append(there[a:b][order])
            if part.shard.name not in stored:
                stored[part.shard.name] = TokenIds.open(part.shard, state.tokenizer, state.work)
            mine, values = stored[part.shard.name].take(positions[order])
            touched += values.nbytes
            counts.append(mine)
            ids.append(values)
        yield in_row_order(np.concatenate(rows), np.concatenate(counts), np.concatenate(ids))


def in_row_order(
    rows: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64], ids: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[np.int64]]:
    """(rows, ids, offsets) with the documents sorted by row."""
    if (rows[1:] < rows[:-1]).any():
        order = np.argsort(rows)
        lists = pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)])), pa.array(ids)).take(pa.array(order))
        rows, counts, ids = rows[order], counts[order], lists.flatten().to_numpy()
    return rows, ids, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


# --- hold-out


def held_out(shard: Shard, state: State) -> Holdout | None:
    """The held-out documents of a shard that fail no rule, by row."""
    fates, held = start(shard, state)
    positions = np.flatnonzero(held & (fates == ALIVE))
    if not len(positions):
        return None
    rows = shard.rows()
    positions = positions[np.argsort(rows[positions])]
    order = np.argsort(positions)
    counts, ids = TokenIds.open(shard, state.tokenizer, state.work).take(positions[order])
    _, ids, offsets = in_row_order(rows[positions[order]], counts, ids)
    size = shard.read(["bytes"])["bytes"].to_numpy()[positions].astype(np.uint32)
    component = np.load(state.scratch / f"{shard.name}.component.npy")[positions]
    return Holdout(rows[positions], component, size, offsets, ids)


def merged_holdout(parts: list[Holdout]) -> Holdout:
    """The held-out documents of a source's shards as one, by row."""
    rows = np.concatenate([part.pool_row for part in parts])
    order = np.argsort(rows)
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    rows_in_order, ids, offsets = in_row_order(rows, counts, np.concatenate([part.ids for part in parts]))
    component, size = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("component", "bytes"))
    return Holdout(rows_in_order, component, size, offsets, ids)


# --- pool


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
        whole(state.scratch / f"{shard.name}.pool.arrow") as path,
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


def merged_pool(corpus: Corpus, spans: list[tuple[int, int]], state: State, rows: int) -> Iterator[pa.Table]:
    """The pool, a million rows at a time: put in order in windows, and handed on as a file that is mapped."""
    file = state.scratch / "pool.arrow"
    schema = _mapped(state.scratch / f"{corpus.shards[0].name}.pool.arrow").schema
    for begin in range(0, rows, ROWS_PER_FILE):
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for low in range(begin, min(begin + ROWS_PER_FILE, rows), POOL_WINDOW):
                high = min(low + POOL_WINDOW, begin + ROWS_PER_FILE, rows) - 1
                parts = []
                for shard, (first, last) in zip(corpus.shards, spans, strict=True):
                    if first <= high and last >= low:
                        part = _mapped(state.scratch / f"{shard.name}.pool.arrow")
                        there = part["row"].chunk(0).to_numpy()
                        a, b = np.searchsorted(there, np.uint64(low)), np.searchsorted(there, np.uint64(high), side="right")
                        parts.append(part.slice(a, b - a))
                writer.write_table(pa.concat_tables(parts).sort_by("row"))
        yield _mapped(file)
        file.unlink()


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


# --- the manifest


def assemble(
    writer: ManifestWriter, corpus: Corpus, state: State, steps: list[Step], plan: Plan, documents: Documents, engine: Engine
) -> dict[str, int]:
    """Writes tokens, plan, hold-out and pool; returns the documents used, per source."""
    shards = corpus.shards
    chosen = plan.documents()
    planned = documents.row[chosen]
    path = state.scratch / "planned.npy"
    np.save(path, planned)
    placed = engine.map(place_planned, [(shard, path, state) for shard in shards], "collect tokens")
    with engine.phase("write tokens"):
        writer.tokens(merged_tokens([part for part in placed if part.documents], planned, documents.tokens[chosen], state))
    with engine.phase("write the plan", len(plan.stages)):
        for stage in plan.stages:
            writer.plan(stage, documents.row)
    held = engine.map(held_out, [(shard, state) for shard in shards], "collect hold-out")
    for source in corpus.sources:
        mine = [part for shard, part in zip(shards, held, strict=True) if part is not None and shard.source == source.name]
        if mine:
            writer.holdout(source.name, merged_holdout(mine))
    reasons = Reasons({step.index: step for step in steps})
    spans = engine.map(pool_part, [(shard, reasons, state) for shard in shards], "make the pool")
    with engine.phase("write the pool"):
        for number, table in enumerate(merged_pool(corpus, spans, state, sum(corpus.read.values()))):
            writer.pool(number, table)
            del table  # or it would be mapped while the next is made
    used = dict.fromkeys((source.name for source in corpus.sources), 0)
    for part in placed:
        used[part.shard.source] += part.documents
    return used
