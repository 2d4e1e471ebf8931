"""Exact duplicates: documents of equal content hash; the lowest row of each group survives.

In: shards of live documents. Out: one file of `DUPLICATES` per shard, similarity 1. Contents are sorted in ranges on disk, so memory follows
the size of a range; the result depends on rows and contents alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curation.dedup.runs import RANGE_BYTES, Run, Shard, gather, ranges, write_decisions, write_run


def exact_duplicates(shards: Sequence[Shard], scratch: Path, run: Run, range_bytes: int = RANGE_BYTES) -> list[Path]:
    """The documents to remove, one file per shard in the order of `shards`: everything whose content a lower row has too."""
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)  # what a killed build left
    work.mkdir(parents=True)
    contents = run(_write_contents, [(shard, work / f"contents-{i}.npy") for i, shard in enumerate(shards)])
    cuts = ranges(contents, range_bytes)
    removed = run(_find_copies, [(contents, low, high, work / f"removed-{i}.npy") for i, (low, high) in enumerate(cuts)])
    decisions = run(write_decisions, [(shard, removed, scratch / f"{i:06d}.npy") for i, shard in enumerate(shards)])
    shutil.rmtree(work)
    return decisions


def _write_contents(shard: Shard, path: Path) -> Path:
    contents = shard.contents()
    return write_run(path, [contents[:, 0], contents[:, 1], shard.rows()])


def _find_copies(contents: Sequence[Path], low: int, high: int, path: Path) -> Path:
    first, second, rows = gather(contents, low, high, 3)
    order = np.lexsort((rows, second, first))
    first, second, rows = first[order], second[order], rows[order]
    opens = np.ones(len(rows), bool)
    opens[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    survivors = rows[opens][np.cumsum(opens) - 1]
    copies = ~opens
    return write_run(path, [rows[copies], survivors[copies], np.ones(int(copies.sum())).view(np.uint64)])
