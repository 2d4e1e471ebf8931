"""From decided documents to a manifest: components, tokens, plan, hold-out, pool.

Everything per document is made shard by shard into the scratch room, sorted by row, and then merged file by file in windows of rows, by tasks: the process that hands them out holds
nothing of a document. The one task that holds something of all is the plan: row, content, component and token count, 34 bytes, and the draws over them (`curation.engine.memory`
counts them).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.corpus.shards import Corpus, Positions, Shard
from curation.corpus.token_ids import TokenIds, tokenize
from curation.decisions.apply_steps import ALIVE, State, frame, numbers, start
from curation.decisions.components import assign, predicates
from curation.decisions.resolved_steps import Step, Top
from curation.engine.atomic_files import beside, save, save_all
from curation.engine.local import Engine
from curation.pool_rows import Reasons, pool_file, pool_files, pool_part
from mixing.draws import Documents
from mixing.files import Piece, first_of_files, write_plan, write_tokens
from mixing.findings import Stored
from mixing.manifest import NO_COMPONENT, Holdout
from mixing.plan import Mixture, plan
from mixing.write import ManifestWriter

MAPPED = 32 << 20  # bytes of mapped files that are used before they are let go
TOKEN_WINDOW = 4 << 20  # ids held at a time


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


# --- the plan


class Planned(NamedTuple):
    """A plan that lies in the scratch room: its part of the manifest's header, what a person should know of it, its files, and (first row, last row, first document, end) of each token file."""

    header: dict[str, Any]
    warnings: tuple[str, ...]
    pieces: list[Piece]
    files: list[tuple[int, int, int, int]]


def make_plan(shards: list[Shard], mixture: Mixture, seed: int, first_made: int | None, state: State) -> Planned:
    """Plans the mixture over the candidates of all shards. Rows from `first_made` on were made from others. Saves `planned` and `lengths`, the rows and tokens of the planned documents."""
    documents = documents_of(shards, mixture, state)
    made = plan(mixture, documents, seed, None if first_made is None else documents.row >= np.uint64(first_made))
    chosen = made.documents()
    rows, lengths = documents.row[chosen], documents.tokens[chosen]
    first = first_of_files(lengths)
    stored = Stored(rows.view(np.int64), lengths, first)
    folder = beside(state.scratch / "manifest")
    pieces = [piece for stage in made.stages for piece in write_plan(folder, stage, documents.row.view(np.int64), stored)]
    save(_planned(state), rows)
    save(_lengths(state), lengths)
    bounds = [*first.tolist(), len(rows)]
    files = [(int(rows[a]), int(rows[b - 1]), a, b) if b > a else (0, -1, a, b) for a, b in pairwise(bounds)]
    return Planned(made.header(), made.warnings, pieces, files)


def _planned(state: State) -> Path:
    return state.scratch / "planned.npy"


def _lengths(state: State) -> Path:
    return state.scratch / "lengths.npy"


def documents_of(shards: list[Shard], mixture: Mixture, state: State) -> Documents:
    """The candidates of all shards, by row; one column at a time besides the result, so 24 bytes a document more at the highest."""
    row = _column("row", shards, state)
    order = None if (row[1:] > row[:-1]).all() else np.argsort(row)
    columns = {}
    for name in ("content", "component", "tokens", *(f"values.{by}" for by in mixture.ordered_by())):
        column = _column(name, shards, state)
        columns[name] = column if order is None else column[order]
    values = {by: columns[f"values.{by}"] for by in mixture.ordered_by()}
    return Documents(row if order is None else row[order], columns["content"], columns["component"], columns["tokens"], values)


def _column(name: str, shards: list[Shard], state: State) -> npt.NDArray[Any]:
    parts = []
    for shard in shards:
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


def place_planned(shard: Shard, state: State) -> Placed:
    """Finds a shard's planned documents."""
    rows, planned = shard.rows(), np.load(_planned(state), mmap_mode="r")
    if len(rows):
        planned = planned[np.searchsorted(planned, rows.min()) : np.searchsorted(planned, rows.max(), side="right")]
    positions = np.flatnonzero(np.isin(rows, planned))
    positions = positions[np.argsort(rows[positions])]
    for name, values in (("rows", rows[positions]), ("positions", positions)):
        save(state.scratch / f"{shard.name}.planned.{name}.npy", values)
    return Placed(shard, len(positions), *((int(rows[positions[0]]), int(rows[positions[-1]])) if len(positions) else (0, -1)))


def token_file(number: int, bounds: tuple[int, int], parts: list[Placed], state: State) -> Piece:
    """The file of the planned documents `[first, end)`, from the shards that have some."""
    planned, lengths = (np.load(path, mmap_mode="r")[slice(*bounds)] for path in (_planned(state), _lengths(state)))
    folder = beside(state.scratch / "manifest")
    return write_tokens(folder, number, state.tokenizer.dtype, merged_tokens(parts, planned, lengths, state))


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


# --- the manifest


def assemble(writer: ManifestWriter, corpus: Corpus, state: State, steps: list[Step], planned: Planned, engine: Engine) -> dict[str, int]:
    """Has the files of tokens, hold-out and pool written, and takes them and those of the plan; returns the documents used, per source."""
    shards = corpus.shards
    writer.take(*planned.pieces)
    placed = engine.map(place_planned, [(shard, state) for shard in shards], "collect tokens")
    tasks = []
    for number, (low, high, *bounds) in enumerate(planned.files):
        parts = [part for part in placed if part.documents and part.first <= high and part.last >= low]
        tasks.append((number, tuple(bounds), parts, state))
    writer.take(*engine.map(token_file, tasks, "write tokens"))
    held = engine.map(held_out, [(shard, state) for shard in shards], "collect hold-out")
    for source in corpus.sources:
        mine = [part for shard, part in zip(shards, held, strict=True) if part is not None and shard.source == source.name]
        if mine:
            writer.holdout(source.name, merged_holdout(mine))
    reasons = Reasons({step.index: step for step in steps})
    spans = engine.map(pool_part, [(shard, reasons, state) for shard in shards], "make the pool")
    writer.take(*engine.map(pool_file, pool_files(shards, spans, sum(corpus.read.values()), state), "write the pool"))
    used = dict.fromkeys((source.name for source in corpus.sources), 0)
    for part in placed:
        used[part.shard.source] += part.documents
    return used
