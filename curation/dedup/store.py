"""Variable-length u64 values by row on disk: the signatures and shingle sets of the documents that occur in any candidate pair.

Values are appended shard by shard; `start` (+ 1, so that 0 means absent) and `length` are sparse arrays over rows, mapped, so what stays in memory
is what the page cache likes to keep. Disk: 12 bytes per row touched, and the values.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.engine.atomic_files import save, whole
from curation.text.words import Hashes, Offsets


def sparse(path: Path, dtype: type[np.generic], size: int) -> npt.NDArray[np.generic]:
    """A mapped array of zeros over rows. Its room on the disk is taken now: a mapped page that finds the disk full kills the process without a word."""
    found = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return found


class Store(NamedTuple):
    folder: Path

    @staticmethod
    def create(folder: Path, size: int) -> Store:
        folder.mkdir(parents=True)
        sparse(folder / "start.npy", np.uint64, size)
        sparse(folder / "length.npy", np.uint32, size)
        (folder / "values").touch()
        return Store(folder)

    def has(self, rows: Hashes) -> npt.NDArray[np.bool_]:
        start: Hashes = np.load(self.folder / "start.npy", mmap_mode="r")[rows]
        present: npt.NDArray[np.bool_] = start != 0
        return present

    def append(self, part: Part) -> None:
        """Take over what one shard's task has written; by one process only."""
        start = np.load(self.folder / "start.npy", mmap_mode="r+")
        length = np.load(self.folder / "length.npy", mmap_mode="r+")
        rows, lengths = np.load(part.places)
        with open(self.folder / "values", "ab") as values, open(part.values, "rb") as more:
            first = values.tell() // 8
            shutil.copyfileobj(more, values, 1 << 22)
        start[rows] = first + 1 + np.cumsum(lengths) - lengths
        length[rows] = lengths
        start.flush()
        length.flush()
        part.values.unlink()
        part.places.unlink()

    def values(self) -> Hashes:
        """Everything, mapped."""
        path = self.folder / "values"
        if path.stat().st_size == 0:
            return np.empty(0, np.uint64)
        return np.asarray(np.memmap(path, np.uint64, mode="c"))

    def spans(self, rows: Hashes) -> Offsets:
        """i64[n, 2]: start and end of each row's values; every row must be present."""
        start = np.load(self.folder / "start.npy", mmap_mode="r")[rows].astype(np.int64) - 1
        assert len(start) == 0 or start.min() >= 0, "a row that was never stored"
        return np.stack([start, start + np.load(self.folder / "length.npy", mmap_mode="r")[rows]], axis=1)


class Part(NamedTuple):
    values: Path
    places: Path


def write_part(path: Path, rows: Hashes, pieces: Iterable[tuple[npt.NDArray[np.int64], Hashes]]) -> Part:
    """What one task found, (lengths, values) piece by piece, to be appended by the driver."""
    part = Part(path.with_suffix(".values"), path.with_suffix(".npy"))
    found = []
    with whole(part.values) as temporary, temporary.open("wb") as file:
        for lengths, values in pieces:
            values.tofile(file)
            found.append(lengths)
    save(part.places, np.stack([rows, np.concatenate(found).astype(np.uint64)]))
    return part
