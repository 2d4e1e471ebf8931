"""Runs: sorted columns of u64 on disk, how every global step of deduplication stays inside its partition.

A run is one `.npy` file, u64[columns, n], ordered by its first column. Steps write runs of whatever they hold, then read *ranges* of the first
column from all runs together; how many ranges there are follows from the bytes, and no result depends on it. Similarities travel in a run as
the bits of their f8.

Decisions about duplicates end as one `.npy` per shard of `DUPLICATES`: position in the shard, survivor's row, similarity; sorted by position. A survivor
that lies in an index (`index`) and not in the corpus is its member's number with the bit `FOREIGN`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from curation.dedup.minhash import Signatures
from curation.engine.atomic_files import save
from curation.text.words import Hashes, Offsets

DUPLICATES = np.dtype([("position", "<u4"), ("survivor", "<u8"), ("similarity", "<f8")])
FOREIGN = np.uint64(1 << 63)
RANGE_BYTES = 64 << 20
END = 1 << 64
_SAMPLES = 256

Range = tuple[int, int]
Run = Callable[[Callable[..., Any], list[tuple[Any, ...]]], list[Any]]
"""Maps a module-level function over argument tuples, in local processes or one after the other; results in the order of the arguments."""


class Shard(Protocol):
    """The live documents of one shard, at positions 0 to n - 1; picklable. Rows are unique over all shards, and lower rows have priority."""

    @property
    def name(self) -> str: ...

    def rows(self) -> npt.NDArray[np.uint64]: ...

    def signatures(self) -> Signatures: ...

    def contents(self) -> npt.NDArray[np.uint64]: ...

    def normalized(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
        """Normalised keys u64[n, 2], and which documents have one (see `exact`)."""
        ...

    def shingles(self, positions: npt.NDArray[np.int64]) -> tuple[Hashes, Offsets]:
        """The sorted shingle hashes of the documents at `positions`, flat, and the offsets into them (see `minhash.shingles`)."""
        ...


def write_run(path: Path, columns: Sequence[Hashes], *, by: Sequence[int] = (0,)) -> Path:
    """Write columns as a run, ordered by the columns `by`, of which the first is column 0."""
    order = np.argsort(columns[0]) if len(by) == 1 else np.lexsort([columns[i] for i in reversed(by)])
    return save(path, np.stack([column[order] for column in columns]).astype(np.uint64, copy=False))


def open_run(path: Path) -> Hashes:
    """u64[columns, n], mapped."""
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


def ranges(paths: Sequence[Path], range_bytes: int = RANGE_BYTES) -> list[Range]:
    """Half-open ranges of the first column that cover everything and hold about `range_bytes` of all runs together.

    Boundaries are quantiles of evenly spaced samples; equal values are never parted, so one value may make a range larger.
    """
    shapes = [open_run(path).shape for path in paths]
    lengths = [length for _, length in shapes]
    parts = -(-sum(8 * columns * length for columns, length in shapes) // range_bytes)
    if parts <= 1:
        return [(0, END)]
    total = sum(lengths)
    samples, weights = [], []
    for path, length in zip(paths, lengths, strict=True):
        if length:
            count = min(length, max(_SAMPLES, parts * 8 * length // total))
            samples.append(open_run(path)[0, np.linspace(0, length - 1, count).astype(np.int64)])
            weights.append(np.full(count, length / count))
    values = np.concatenate(samples)
    order = np.argsort(values)
    weight = np.cumsum(np.concatenate(weights)[order])
    cuts = np.unique(values[order][np.searchsorted(weight, weight[-1] * np.arange(1, parts) / parts)])
    bounds = [0, *(int(cut) for cut in cuts if cut > 0), END]
    return list(itertools.pairwise(bounds))


def gather(paths: Sequence[Path], low: int, high: int, columns: int) -> Hashes:
    """u64[columns, n]: what lies in low <= first column < high in all runs together, in no order."""
    spans = []
    for path in paths:
        run = open_run(path)
        first = int(np.searchsorted(run[0], np.uint64(low)))
        last = run.shape[1] if high >= END else int(np.searchsorted(run[0], np.uint64(high)))
        if last > first:
            spans.append((path, first, last))
    found = np.empty((columns, sum(last - first for _, first, last in spans)), np.uint64)
    at = 0
    for path, first, last in spans:  # a mapped run keeps a file open, and there may be more of them than a process may have
        found[:, at : at + last - first] = open_run(path)[:, first:last]
        at += last - first
    return found


def write_decisions(shard: Shard, runs: Sequence[Path], path: Path) -> Path:
    """One shard's part of runs of (removed row, survivor's row, bits of the similarity)."""
    rows = shard.rows()
    found = gather(runs, int(rows.min()), int(rows.max()) + 1, 3) if len(rows) else np.empty((3, 0), np.uint64)
    found = found[:, np.argsort(found[0])]
    if found.shape[1]:
        at = np.minimum(np.searchsorted(found[0], rows), found.shape[1] - 1)
        positions = np.flatnonzero(found[0, at] == rows)
        found = found[:, at[positions]]
    else:
        positions = np.empty(0, np.int64)
    decisions = np.empty(len(positions), DUPLICATES)
    decisions["position"] = positions
    decisions["survivor"] = found[1]
    decisions["similarity"] = np.ascontiguousarray(found[2]).view(np.float64)
    return save(path, decisions)
