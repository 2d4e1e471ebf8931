"""What `--memory` allows: how large a range of a global step may be, and which steps do not fit at all.

Figures are of memory without the pages of files, which the kernel drops when it wants to: a process with its libraries, one row group of texts and what a
signal makes of it; a range of deduplication with its sorting; what planning holds per document. They were measured by `benchmarks/memory.py`. Nothing here changes what is built.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from mixing import UserError

DRIVER = 350_000_000
WORKER = 300_000_000
RANGE_TIMES = 6  # bytes held for a byte of a range while it is sorted and grouped
RANGE_BYTES = 64 << 20
LEAST_RANGE = 2 << 20
DOCUMENT = 130  # of the driver, for each document that is planned: row, content, component, tokens, and the draws and spans over them


class Memory(NamedTuple):
    """A budget in bytes for a build of so many processes; None is no budget."""

    budget: int | None
    workers: int

    @staticmethod
    def of(gigabytes: float | None, workers: int) -> Memory:
        memory = Memory(None if gigabytes is None else int(gigabytes * 1e9), workers)
        memory.require("find duplicates", worker=LEAST_RANGE * RANGE_TIMES)
        return memory

    def range_bytes(self) -> int:
        """How large a range of a global step may be."""
        if self.budget is None:
            return RANGE_BYTES
        left = (self.budget - DRIVER) // self.workers - WORKER
        return max(LEAST_RANGE, min(RANGE_BYTES, left // RANGE_TIMES))

    def needed(self, *, driver: int = 0, worker: int = 0) -> int:
        """Bytes of all processes together, if the first holds `driver` bytes besides and every other one `worker`."""
        return DRIVER + driver + self.workers * (WORKER + worker)

    def require(self, step: str, *, driver: int = 0, worker: int = 0) -> None:
        """Refuses a step that has to hold more than there is: `driver` bytes once, `worker` bytes in every process."""
        needed = self.needed(driver=driver, worker=worker)
        if self.budget is not None and needed > self.budget:
            fewer = "" if self.workers == 1 else ", or fewer --workers"
            raise UserError(
                f"--memory {self.budget / 1e9:g}: '{step}' needs {needed / 1e9:.2f} GB with {self.workers} worker{'s'[: self.workers > 1]}; "
                f"give --memory {-(-needed // 10_000_000) / 100:g}{fewer}"
            )


def held(processes: list[int]) -> int:
    """Bytes of memory of these processes together without pages of files, which the kernel drops when it wants to; 0 where it does not say (not Linux). None of them is
    another's fork, so that no page of theirs is counted twice; a file in memory (tmpfs) that several of them have mapped counts once."""
    return sum(_held(Path(f"/proc/{process}")) for process in processes if sys.platform == "linux")


def _held(process: Path) -> int:
    try:
        sizes = _sizes(process / "status")
        shared = sizes.get("RssShmem", 0) and _sizes(process / "smaps_rollup").get("Pss_Shmem", 0)  # 8 ms, where all else takes 0.05
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return 1024 * (sizes.get("RssAnon", 0) + shared)


def _sizes(table: Path) -> dict[str, int]:
    """The lines of such a file that give kilobytes."""
    rows = [line.split() for line in table.read_text().splitlines()]
    return {row[0].rstrip(":"): int(row[1]) for row in rows if row[-1:] == ["kB"]}
