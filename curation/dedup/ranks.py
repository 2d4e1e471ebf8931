"""Declared priority as ranks: 0 for the document that is preferred to all others, so that deduplication, which prefers lower rows, can take ranks for rows.

In: shards of live documents, the rank of each shard's source, and a sort key per document, lowest first, NaN for none. Order: source, key, row; no key comes last. Every source is
sorted by itself on disk, in ranges whose bounds are pairs (key, row), so that a million documents of equal key are parted like any others; a task holds one range, the driver
samples. A document's *place* is the number of its shard above 32 bits of its position in it.

Out: `Ranks`, files of (row, place) in order of rank. Decisions about ranks go back the same way: range by range to places and survivors' rows, then shard by shard. Nothing depends
on the order of shards within a source, on the number of processes or on ranges. Disk: 64 bytes a document while it lasts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.dedup.minhash import Signatures
from curation.dedup.runs import DUPLICATES, FOREIGN, RANGE_BYTES, Run, Shard, gather, open_run, write_decisions, write_run
from curation.engine.atomic_files import save
from curation.text.words import Hashes, Offsets

_SAMPLES = 256
_NONE = np.uint64(0xFFFFFFFFFFFFFFFF)
_SIGN = np.uint64(1 << 63)
Keys = npt.NDArray[np.float64]
Bound = tuple[int, int]


class Ranks(NamedTuple):
    """`parts`: u64[2, n] each, row and place of the documents of rank `starts[i]` and on; `shards`: u64[n] each, the ranks of a shard's documents by position."""

    parts: list[Path]
    starts: list[int]
    shards: list[Path]

    def rows_of(self, ranks: Hashes) -> Hashes:
        """The rows of documents of these ranks."""
        rows = np.empty(len(ranks), np.uint64)
        owner = np.searchsorted(np.array(self.starts, np.uint64), ranks, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            rows[mine] = open_run(self.parts[number])[0, ranks[mine] - np.uint64(self.starts[number])]
        return rows


@dataclass(frozen=True)
class _Renumbered:
    """A shard whose rows are ranks, or rows, behind those of an index."""

    shard: Shard
    ranks: Path | None
    first: int = 0

    @property
    def name(self) -> str:
        return self.shard.name

    def rows(self) -> Hashes:
        rows = self.shard.rows() if self.ranks is None else open_run(self.ranks)
        return rows + np.uint64(self.first) if self.first else rows

    def signatures(self) -> Signatures:
        return self.shard.signatures()

    def contents(self) -> Hashes:
        return self.shard.contents()

    def normalized(self) -> tuple[Hashes, npt.NDArray[np.bool_]]:
        return self.shard.normalized()

    def shingles(self, positions: npt.NDArray[np.int64]) -> tuple[Hashes, Offsets]:
        return self.shard.shingles(positions)


def behind(shards: Sequence[Shard], ranks: Ranks | None, known: int) -> list[Shard]:
    """The shards with ranks for rows, if there are any, behind the `known` members of an index."""
    if ranks is None:
        return [_Renumbered(shard, None, known) for shard in shards] if known else list(shards)
    return [_Renumbered(shard, path, known) for shard, path in zip(shards, ranks.shards, strict=True)]


def told_apart(removed: Hashes, survivors: Hashes, known: int) -> tuple[Hashes, Hashes]:
    """(removed, survivors) as the corpus counts them, of numbers behind `known` members of an index: a survivor among these is marked `FOREIGN`."""
    number = np.uint64(known)
    return removed - number, np.where(survivors < number, survivors | FOREIGN, survivors - number)


def _span(shard: int) -> tuple[int, int]:
    """The places of one shard."""
    return shard << 32, (shard + 1) << 32


def rank(
    shards: Sequence[Shard], sources: Sequence[int], keys: Callable[[Any], Keys], folder: Path, run: Run, range_bytes: int = RANGE_BYTES
) -> Ranks:
    """The ranks of all documents, in `folder`. `sources` holds the rank of each shard's source; `keys`, picklable, gives a shard's sort keys by position."""
    folder.mkdir(parents=True)
    written = run(_write_keys, [(shard, number, keys, folder / f"keys-{number}.npy") for number, shard in enumerate(shards)])
    tasks = []
    for source in sorted(set(sources)):
        mine = [path for path, owner in zip(written, sources, strict=True) if owner == source]
        bounds: list[Bound | None] = [None, *_cuts(mine, range_bytes), None]
        tasks += [(mine, low, high) for low, high in itertools.pairwise(bounds)]
    parts = run(_write_part, [(*task, folder / f"part-{i}.npy") for i, task in enumerate(tasks)])
    starts = np.cumsum([0, *(open_run(part).shape[1] for part in parts)])[:-1].tolist()
    places = run(
        _write_places, [(part, start, folder / f"places-{i}.npy") for i, (part, start) in enumerate(zip(parts, starts, strict=True))]
    )
    by_shard = run(_write_ranks, [(places, number, folder / f"shard-{number}.npy") for number in range(len(shards))])
    for path in [*written, *places]:
        path.unlink()
    return Ranks(parts, starts, by_shard)


def _ordered(keys: Keys) -> Hashes:
    """Doubles as whole numbers in the same order, NaN behind all."""
    bits = (keys + 0.0).view(np.uint64)
    return np.where(np.isnan(keys), _NONE, np.where(bits & _SIGN, ~bits, bits | _SIGN))


def _write_keys(shard: Shard, number: int, keys: Callable[[Any], Keys], path: Path) -> Path:
    """Task: the run (key, row, place) of one shard."""
    rows = shard.rows()
    places = np.arange(len(rows), dtype=np.uint64) + np.uint64(_span(number)[0])
    return write_run(path, [_ordered(np.asarray(keys(shard), np.float64)), rows, places], by=(0, 1))


def _cuts(paths: Sequence[Path], range_bytes: int) -> list[Bound]:
    """Pairs (key, row) between ranges of about `range_bytes` of all runs together: quantiles of evenly spaced samples."""
    shapes = [open_run(path).shape for path in paths]
    parts = -(-sum(8 * columns * length for columns, length in shapes) // range_bytes)
    if parts <= 1:
        return []
    total = sum(length for _, length in shapes)
    samples, weights = [], []
    for path, (_, length) in zip(paths, shapes, strict=True):
        if length:
            count = min(length, max(_SAMPLES, parts * 8 * length // total))
            samples.append(open_run(path)[:2, np.linspace(0, length - 1, count).astype(np.int64)])
            weights.append(np.full(count, length / count))
    keys, rows = np.concatenate(samples, axis=1)
    order = np.lexsort((rows, keys))
    weight = np.cumsum(np.concatenate(weights)[order])
    at = order[np.unique(np.searchsorted(weight, weight[-1] * np.arange(1, parts) / parts))]
    return list(zip(keys[at].tolist(), rows[at].tolist(), strict=True))


def _before(found: Hashes, bound: Bound) -> int:
    """How many documents of a run come before (key, row)."""
    first, last = (int(np.searchsorted(found[0], np.uint64(bound[0]), side)) for side in ("left", "right"))
    return first + int(np.searchsorted(found[1, first:last], np.uint64(bound[1])))


def _write_part(paths: Sequence[Path], low: Bound | None, high: Bound | None, path: Path) -> Path:
    """Task: (row, place) of the documents of one range, in order."""
    spans = []
    for one in paths:
        found = open_run(one)
        spans.append((0 if low is None else _before(found, low), found.shape[1] if high is None else _before(found, high)))
    gathered = np.empty((3, sum(end - first for first, end in spans)), np.uint64)
    at = 0
    for one, (first, end) in zip(paths, spans, strict=True):  # a mapped run keeps a file open, see `runs.gather`
        gathered[:, at : at + end - first] = open_run(one)[:, first:end]
        at += end - first
    keys, rows, places = gathered
    order = np.lexsort((rows, keys))
    return save(path, np.stack([rows[order], places[order]]))


def _write_places(part: Path, start: int, path: Path) -> Path:
    """Task: the run (place, rank) of one part."""
    places = open_run(part)[1]
    return write_run(path, [places, np.arange(start, start + len(places), dtype=np.uint64)])


def _write_ranks(places: Sequence[Path], number: int, path: Path) -> Path:
    """Task: the ranks of one shard's documents, by position."""
    found = gather(places, *_span(number), 2)
    return save(path, found[1, np.argsort(found[0])])


def write_all(shards: Sequence[Shard], removed: Sequence[Path], ranks: Ranks | None, scratch: Path, work: Path, run: Run) -> list[Path]:
    """Runs of (removed, survivor, bits of the similarity), rows or ranks, as a file of `DUPLICATES` in `scratch` for each shard, with survivors' rows."""
    paths = [scratch / f"{number:06d}.npy" for number in range(len(shards))]
    if ranks is None:
        return run(write_decisions, [(shard, removed, path) for shard, path in zip(shards, paths, strict=True)])
    placed = run(_place, [(ranks, number, removed, work / f"placed-{number}.npy") for number in range(len(ranks.parts))])
    return run(_write_placed, [(number, placed, path) for number, path in enumerate(paths)])


def _place(ranks: Ranks, number: int, removed: Sequence[Path], path: Path) -> Path:
    """Task: the run (place, survivor's row, bits of the similarity) of the removed documents of one part."""
    part, start = open_run(ranks.parts[number]), ranks.starts[number]
    found = gather(removed, start, start + part.shape[1], 3)
    survivors, here = found[1], found[1] < FOREIGN
    survivors[here] = ranks.rows_of(survivors[here])
    return write_run(path, [part[1, found[0] - np.uint64(start)], survivors, found[2]])


def _write_placed(number: int, placed: Sequence[Path], path: Path) -> Path:
    """Task: one shard's part."""
    found = gather(placed, *_span(number), 3)
    found = found[:, np.argsort(found[0])]
    decisions = np.empty(found.shape[1], DUPLICATES)
    decisions["position"] = found[0] - np.uint64(_span(number)[0])
    decisions["survivor"] = found[1]
    decisions["similarity"] = np.ascontiguousarray(found[2]).view(np.float64)
    return save(path, decisions)
