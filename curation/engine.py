"""Runs pure functions over shards on local processes.

A task is a module-level function and a tuple of picklable arguments; what it returns is small, because what it makes is a file under a name that follows from its
arguments. So tasks may run anywhere, in any order, twice, or on fewer processes, and the result is the same. A worker that dies is tried once more; the second time
the build stops and names the task. With one worker everything runs in this process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mixing import UserError

Result = TypeVar("Result")

_ONE_THREAD = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS", "ARROW_IO_THREADS")


@dataclass(frozen=True)
class Run:
    """How and where a build runs. Nothing in it may change what is built, so nothing of it enters a key."""

    work: Path
    workers: int = 1
    roots: dict[str, str] = field(default_factory=dict)


class Engine:
    """`engine.map` runs one function over many argument tuples; the worker processes start with the first call and end with the block."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._stop(kill=kind is not None)

    def map(self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], label: str) -> list[Result]:
        """The results in the order of `tasks`. `label` names the phase to the person who waits."""
        if self._workers == 1 or len(tasks) <= 1:
            return [function(*task) for task in _progress(tasks, len(tasks), label)]
        results: dict[int, Result] = {}
        self._attempt(function, tasks, results, label)
        if len(results) < len(tasks):
            self._attempt(function, tasks, results, label)
        if len(results) < len(tasks):
            lost = next(index for index in range(len(tasks)) if index not in results)
            raise UserError(
                f"{label}: a worker process died twice (killed, or out of memory) with {len(tasks) - len(results)} of {len(tasks)} tasks left, "
                f"the first of them {_task_name(tasks[lost])}; the build resumes where it stopped: run it again, with fewer --workers if memory was short"
            )
        return [results[index] for index in range(len(tasks))]

    def _attempt(self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], results: dict[int, Result], label: str) -> None:
        """Runs what has no result yet; a dying worker ends the attempt, an exception of a task ends the build."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
            )
        futures: dict[Future[Result], int] = {}
        try:
            futures = {self._pool.submit(function, *task): index for index, task in enumerate(tasks) if index not in results}
            for future in _progress(as_completed(futures), len(futures), label):
                results[futures[future]] = future.result()
        except BrokenProcessPool:
            self._stop(kill=True)
            print(f"{label}: a worker process died; trying its tasks once more", file=sys.stderr)

    def _stop(self, *, kill: bool) -> None:
        assert self._pool is not None
        if kill:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def _start_worker(parent: int) -> None:
    """A worker computes on one thread, leaves Ctrl-C to the build, and does not outlive it (Linux; elsewhere an orphan ends with its task)."""
    for name in _ONE_THREAD:
        os.environ[name] = "1"
    warnings.simplefilter("ignore")  # what is worth saying, the build says once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _task_name(task: tuple[Any, ...]) -> str:
    return str(getattr(task[0], "name", task[0])) if task else "?"


def _progress(items: Iterable[Result], total: int, label: str) -> Iterable[Result]:
    """A bar with rate and remaining time on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty() or total == 0:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(label, total=total)
        for item in items:
            yield item
            bars.advance(bar)


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
