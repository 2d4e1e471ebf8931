"""Shards and sidecars: the documents that were read, and what has been computed about them.

A document is known by its row: its running number over all records of the corpus, unusable ones counted, in the order source rank, natural path, position. A shard's rows
follow from the number of records in the files before it, so neither cutting nor workers show in them. Text stays in the shards. What is computed about a document lies in
a sidecar, a file aligned row by row with its shard, in one of three states: a value, a null result, or not computed; it may only ever gain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.corpus.input_files import natural
from curation.corpus.sources import ShardFacts, Source, Unit, cut, read_unit
from curation.engine.local import Engine
from curation.engine.work_directory import Work, write_atomic
from curation.formats.records import misfit
from mixing import UserError

Rows = np.ndarray[tuple[int], np.dtype[np.uint64]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
Positions = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Shard:
    """One Parquet file of documents. `first_row` holds, per file of its unit, the row of that file's record 0; `name` names its sidecars."""

    name: str
    source: str
    path: Path
    documents: int
    quarantined: int
    first_row: list[int]
    paths: list[str]
    columns: dict[str, str]

    def read(self, columns: list[str]) -> pa.Table:
        return pq.read_table(self.path, columns=columns, use_threads=False, memory_map=True).combine_chunks()

    def rows(self) -> Rows:
        """u64[documents]: ascending within a file of the unit, unique over the corpus."""
        table = self.read(["run", "ordinal"])
        first = np.array(self.first_row, np.uint64)
        rows: Rows = first[table["run"].to_numpy()] + table["ordinal"].to_numpy()
        return rows

    def contents(self) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        """u64[documents, 2]: high and low half of each content hash."""
        column = self.read(["content"])["content"].combine_chunks()
        raw = (
            np.frombuffer(column.buffers()[1], ">u8", count=2 * len(column), offset=column.offset * 16)
            if len(column)
            else np.zeros(0, ">u8")
        )
        return raw.astype(np.uint64).reshape(-1, 2)

    def texts(self, positions: Positions | None = None) -> pa.LargeStringArray:
        """The texts at `positions`, in their order; holds one row group at a time besides what it returns."""
        if positions is None:
            return chunkless(self.read(["text"])["text"]).cast(pa.large_string())
        order = np.argsort(positions, kind="stable")
        wanted = positions[order]
        parts = [pa.array([], pa.large_string())]
        with pq.ParquetFile(self.path, memory_map=True) as file:
            for group, (first, end) in enumerate(_groups(file)):
                mine = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, end)]
                if len(mine):
                    text = chunkless(file.read_row_group(group, columns=["text"], use_threads=False)["text"]).cast(pa.large_string())
                    parts.append(text if len(mine) == len(text) == len(positions) else text.take(pa.array(mine - first)))
        text = parts[1] if len(parts) == 2 else pa.concat_arrays(parts)
        if (order[1:] > order[:-1]).all():
            return text
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return text.take(pa.array(place))

    def spans(self) -> list[tuple[int, int]]:
        """The row groups as ranges of positions: what a pass over the texts holds at a time."""
        with pq.ParquetFile(self.path, memory_map=True) as file:
            return _groups(file)

    def origins(self, positions: Positions | None = None) -> list[str]:
        """`file#position` of each document."""
        table = self.read(["run", "position"])
        table = table if positions is None else table.take(pa.array(positions))
        return [
            f"{self.paths[run]}#{position}" for run, position in zip(table["run"].to_pylist(), table["position"].to_pylist(), strict=True)
        ]

    def quarantine(self) -> pa.Table:
        return pq.read_table(self.path.with_suffix(".quarantine.parquet"), use_threads=False).combine_chunks()


def identities(shard: Shard, name: str, positions: Positions) -> list[str | None]:
    """The key, content hash or origin of documents, as text."""
    if name == "origin":
        return list(shard.origins(positions))
    if name == "content":
        return [content.hex() for content in contents(shard, positions)]
    keys: list[str | None] = shard.read([name])[name].take(pa.array(positions)).to_pylist()
    return keys


def contents(shard: Shard, positions: Positions) -> list[bytes]:
    """The content hashes of documents, 16 bytes each."""
    found: list[bytes] = shard.read(["content"])["content"].take(pa.array(positions)).to_pylist()
    return found


def _groups(file: pq.ParquetFile) -> list[tuple[int, int]]:
    ends = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))]).tolist()
    return list(pairwise(ends))


def chunkless(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() if column.num_chunks else pa.array([], column.type)


@dataclass(frozen=True)
class Corpus:
    """What was read: the shards of all sources in rank order, per source the records read and those quarantined by reason, the documents that each clean step changed, and the values of each
    column that are not of its type and null."""

    sources: list[Source]
    shards: list[Shard]
    read: dict[str, int]
    quarantined: dict[str, dict[str, int]]
    cleaned: dict[str, dict[str, int]]
    misfits: dict[str, dict[str, int]]

    def of(self, source: str) -> list[Shard]:
        return [shard for shard in self.shards if shard.source == source]

    def joined(self, later: Corpus) -> Corpus:
        """This corpus with one that was read after it, whose rows follow."""
        return Corpus(
            self.sources + later.sources,
            self.shards + later.shards,
            self.read | later.read,
            self.quarantined | later.quarantined,
            self.cleaned | later.cleaned,
            self.misfits | later.misfits,
        )


def read_corpus(sources: list[Source], clean: tuple[str, ...], work: Work, engine: Engine, first_row: int = 0) -> Corpus:
    """Reads what has not been read before, numbering records from `first_row`; refuses a source that would lose more records than its `max_quarantine`."""
    units = [(source, unit) for source in sources for unit in cut(source, clean)]
    distinct = {unit.name: unit for _, unit in units}  # two sources may hold the same file
    facts = dict(zip(distinct, engine.map(read_unit, [(unit, work) for unit in distinct.values()], "read"), strict=True))
    seen: dict[str, int] = {}
    shards, read = [], dict.fromkeys((source.name for source in sources), 0)
    quarantined: dict[str, dict[str, int]] = {source.name: {} for source in sources}
    cleaned = {source.name: dict.fromkeys(clean, 0) for source in sources}
    misfits = {source.name: dict.fromkeys(source.fields.columns, 0) for source in sources}
    for source in sources:
        mine = [(unit, facts[unit.name]) for owner, unit in units if owner is source]
        first_rows, records = _number(mine, first_row)
        first_row += records
        read[source.name] = records
        for unit, made in mine:
            again = seen[unit.name] = seen.get(unit.name, -1) + 1
            for number, shard in enumerate(made):
                shards.append(_shard(source, unit, again, number, shard, first_rows[unit.name], work))
                for step in clean:
                    cleaned[source.name][step] += shard.cleaned.get(step, 0)
                for name in source.fields.columns:
                    misfits[source.name][name] += shard.cleaned.get(misfit(name), 0)
                for reason, count in shard.quarantined.items():
                    quarantined[source.name][reason] = quarantined[source.name].get(reason, 0) + count
        _check_losses(source, records, quarantined[source.name], [shard for shard in shards if shard.source == source.name])
    return Corpus(sources, shards, read, quarantined, cleaned, misfits)


def _number(units: list[tuple[Unit, list[ShardFacts]]], first_row: int) -> tuple[dict[str, list[int]], int]:
    """Per unit, the row of record 0 of each of its pieces: files in natural order, the pieces of a file by where they begin."""
    pieces = []
    for unit, shards in units:
        records = [0] * len(unit.pieces)
        for shard in shards:
            for run, _, count in shard.runs:
                records[run] += count
        pieces += [(natural(piece.path), piece.begin, unit.name, run, records[run]) for run, piece in enumerate(unit.pieces)]
    first_rows = {unit.name: [0] * len(unit.pieces) for unit, _ in units}
    row = first_row
    for _, _, name, run, count in sorted(pieces):
        first_rows[name][run] = row
        row += count
    return first_rows, row - first_row


def _shard(source: Source, unit: Unit, again: int, number: int, facts: ShardFacts, first_row: list[int], work: Work) -> Shard:
    path = work.room("shards") / unit.name / f"{number:05}.parquet"
    paths = [piece.path for piece in unit.pieces]
    name = f"{unit.name}-{number:05}" if again == 0 else f"{unit.name}-{number:05}-{again}"  # its rows are others
    return Shard(name, source.name, path, facts.rows, sum(facts.quarantined.values()), first_row, paths, source.columns)


def _check_losses(source: Source, records: int, reasons: dict[str, int], shards: list[Shard]) -> None:
    lost, limit = sum(reasons.values()), source.config.max_quarantine
    if lost > limit * records:
        worst = max(reasons, key=lambda reason: reasons[reason])
        example = next(
            f"{shard.paths[row['run']]}#{row['position']}"
            for shard in shards
            for row in shard.quarantine().to_pylist()
            if row["reason"] == worst
        )
        counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
        raise UserError(
            f"{source.where}: {lost:,} of {records:,} records cannot be used ({lost / records:.1%}, the limit is {limit:.1%}): {counts}; the first for "
            f"'{worst}' is {example}; mend the input, or accept the loss with {source.where}.max_quarantine"
        )


# --- sidecars


class Sidecar(NamedTuple):
    """`parts` joined have one value a document, which means something only where `known`. `computed` counts what this call had to compute."""

    known: Mask
    parts: list[pa.Array]
    computed: int

    @property
    def values(self) -> pa.Array:
        """All values in one piece; a copy if they were written in several, so not for signatures and token ids."""
        return self.parts[0] if len(self.parts) == 1 else pa.concat_arrays(self.parts)

    def between(self, first: int, end: int) -> pa.Array:
        """The values at positions `[first, end)`, without a copy where they lie in one part."""
        found, at = [], 0
        for part in self.parts:
            low, high = max(first - at, 0), min(end - at, len(part))
            if high > low:
                found.append(part.slice(low, high - low))
            at += len(part)
        return found[0] if len(found) == 1 else pa.concat_arrays(found or [self.parts[0].slice(0, 0)])

    def places(self) -> list[tuple[int, pa.Array]]:
        """(position of its first value, part) of each part."""
        firsts = np.cumsum([0, *(len(part) for part in self.parts)]).tolist()
        return list(zip(firsts, self.parts, strict=False))


def sidecar_path(work: Work, key: str, shard: Shard) -> Path:
    return work.room("sidecars") / key / f"{shard.name}.arrow"


def read_sidecar(path: Path) -> Sidecar | None:
    if not path.exists():
        return None
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    value = table["value"]
    return Sidecar(chunkless(table["known"]).to_numpy(zero_copy_only=False), value.chunks or [pa.array([], value.type)], 0)


def write_sidecar(path: Path, known: Mask, values: pa.Array) -> None:
    write_atomic(path, partial(_write_parts, known, iter([values])))


def _write_parts(known: Mask, parts: Iterator[pa.Array], temporary: Path) -> None:
    """One record batch a part, so that only one is held."""
    first = next(parts)
    schema = pa.schema({"known": pa.bool_(), "value": first.type})
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        at = 0
        for part in chain([first], parts):
            writer.write_batch(pa.record_batch([pa.array(known[at : at + len(part)]), part], schema=schema))
            at += len(part)
    assert at == len(known)


def fill_sidecar(
    path: Path, wanted: Mask, compute: Callable[[Positions], pa.Array], spans: Sequence[tuple[int, int]] | None = None
) -> Sidecar:
    """The sidecar with every `wanted` value in it; `compute` is asked only for positions whose value is not known yet, one of the `spans` at a time."""
    old = read_sidecar(path)
    missing = wanted if old is None else wanted & ~old.known
    if old is not None and not missing.any():
        return old

    def parts() -> Iterator[pa.Array]:
        for first, end in spans or [(0, len(wanted))]:
            yield _merged(old, missing, first, end, compute)

    known = missing if old is None else missing | old.known
    write_atomic(path, partial(_write_parts, known, parts()))
    written = read_sidecar(path)
    assert written is not None
    return written._replace(computed=int(missing.sum()))


def _merged(old: Sidecar | None, missing: Mask, first: int, end: int, compute: Callable[[Positions], pa.Array]) -> pa.Array:
    """The values at positions `[first, end)`: those known, those computed now, and null for the others."""
    asked = missing[first:end]
    if old is not None and not asked.any():
        return old.between(first, end)
    positions = np.flatnonzero(asked)
    fresh = compute(first + positions)
    assert len(fresh) == len(positions)
    if len(fresh) == end - first:
        return fresh
    source = np.full(end - first, -1, np.int64)
    if old is not None:
        kept = np.flatnonzero(old.known[first:end])
        source[kept] = kept
    base = 0 if old is None else end - first
    source[positions] = base + np.arange(len(positions))
    both = fresh if old is None else pa.concat_arrays([old.between(first, end), fresh])
    return both.take(pa.array(source, mask=source < 0))
