"""Runs pure functions over shards on local processes.

A task is a module-level function and a tuple of picklable arguments; what it returns is small, because what it makes is a file under a name that follows from its
arguments. So tasks may run anywhere, in any order, twice, or on fewer processes, and the result is the same. When a worker dies, the tasks under way are tried once more,
each alone; one that kills its worker again ends the build and is named. With one worker everything runs in this process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
        for index, result in _progress(self._finished(function, tasks, label), len(tasks), label):
            results[index] = result
        return [results[index] for index in range(len(tasks))]

    def _finished(self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], label: str) -> Iterator[tuple[int, Result]]:
        """(index, result) as the tasks end. Only a few are under way at a time, so that a death leaves few to suspect: each is then tried alone."""
        begun = 0
        running: dict[Future[Result], int] = {}
        while True:
            pool = self._started(self._workers)
            try:
                while begun < len(tasks) and len(running) < 2 * self._workers:
                    running[pool.submit(function, *tasks[begun])] = begun
                    begun += 1
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    yield running.pop(future), result
            except BrokenProcessPool:
                self._stop(kill=True)
                print(f"{label}: a worker process died; trying its tasks once more", file=sys.stderr)
                for index in sorted(running.values()):
                    yield index, self._alone(function, tasks[index], label)
                running = {}

    def _alone(self, function: Callable[..., Result], task: tuple[Any, ...], label: str) -> Result:
        """One task in a process of its own; if that dies too, the task is at fault and is named."""
        try:
            return self._started(1).submit(function, *task).result()
        except BrokenProcessPool:
            raise UserError(
                f"{label}: a worker process died twice (killed, or out of memory) over {_task_name(task)}; "
                "what was finished is kept: run it again, with fewer --workers if memory was short"
            ) from None
        finally:
            self._stop(kill=True)

    def _started(self, workers: int) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),))
        return self._pool

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
