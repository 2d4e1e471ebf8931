"""Runs pure functions over shards on local processes; `curation.engine.cluster` runs the same ones on Ray.

A task is a module-level function and a tuple of picklable arguments; what it returns is small, because what it makes is a file under a name that follows from its
arguments. So tasks may run anywhere, in any order, twice, or on fewer processes, and the result is the same. When a worker dies, the tasks under way are tried once more,
each alone; one that kills its worker again ends the build and is named. With one worker everything runs in this process. A phase is what one call of `map`, or one
block of `phase`, does; its label is what people see in bars, errors and the log. A task whose first argument has `documents` counts as so many there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

from curation.engine.journal import Journal
from curation.engine.memory import Memory
from mixing import UserError
from mixing.progress import Progress

Result = TypeVar("Result")

ONE_THREAD = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS", "ARROW_IO_THREADS")


@dataclass(frozen=True)
class Run:
    """How and where a build runs. Nothing in it may change what is built, so nothing of it enters a key."""

    work: Path
    workers: int = 1  # 0, on Ray alone: as many as the cluster has processors
    roots: dict[str, str] = field(default_factory=dict)
    memory: float | None = None  # GB, of all processes together
    ray: str | None = None  # the address of a Ray cluster, `local` for one of this machine alone; None: processes of this machine


class News(NamedTuple):
    """What one of several processes has done: ended a call with a result (None: it is there and waits for the first), or died."""

    number: int
    result: Any = None
    is_lost: bool = False


class Lost(UserError):
    """Raised by a function that can answer nothing more: its process counts as dead."""


class Residents(Protocol):
    """Processes elsewhere, each with a function that it has made once and keeps, with a model for example. Everyone has a number that no other has had; `wait` tells of new ones."""

    def send(self, number: int, *arguments: Any) -> None:
        """Begins a call of the function of a process, which has none under way."""

    def wait(self) -> News:
        """The next thing that happens."""

    def close(self) -> None:
        """Ends them all."""


class Engine:
    """`engine.map` runs one function over many argument tuples; the worker processes start with the first call and end with the block."""

    def __init__(self, workers: int, memory: float | None = None) -> None:
        self.memory = Memory.of(memory, workers)
        self.journal = Journal()
        self.progress = Progress(lambda: self.journal.memory)
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Engine:
        self.journal.processes = [os.getpid()]
        self.journal.__enter__()
        self.progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.progress.__exit__(kind, error, trace)
        finally:  # nobody may read stderr any more
            self._stop(kill=kind is not None)
            self.journal.__exit__(kind, error, trace)

    @contextmanager
    def phase(self, label: str, tasks: int = 1) -> Iterator[None]:
        """What this process does itself, under a label like that of a `map`."""
        hear_interrupts()
        self.journal.begin(label, tasks)
        self.progress.begin(label, tasks)
        yield
        self.progress.end()
        self.journal.done()

    def places(self, processes: Callable[[], int | None]) -> int | None:
        """How many processes may each have a model of which one fills a GPU; None for all, without GPUs. `processes` says it of this machine."""
        return processes()

    def residents(self, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...], gpus: int) -> Residents | None:
        """Processes that each keep the function `make(*arguments)`, one for every `gpus` GPUs; None: this process shall keep it. `make` is a module-level function."""
        return None

    def map(
        self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], label: str, at_most: int | None = None
    ) -> list[Result]:
        """The results in the order of `tasks`. `label` names the phase to the person who waits. `at_most`: of so many processes, which end with it (see `places`)."""
        with self.phase(label, len(tasks)):
            if self._workers == 1 or len(tasks) <= 1:
                return self._collected(((index, function(*task)) for index, task in enumerate(tasks)), tasks)
            with self._limited(at_most):
                return self._collected(self._finished(function, tasks, label), tasks)

    def apart(self, function: Callable[..., Result], task: tuple[Any, ...], label: str) -> Result:
        """One task in a new process, which ends with it: nothing of what ran before can show in what it makes."""
        with self.phase(label):
            try:
                return self._in_new_process(function, task)
            except BrokenProcessPool:
                raise UserError(f"{label}: its process was killed (out of memory?); what was finished is kept: run it again") from None

    def _collected(self, finished: Iterator[tuple[int, Result]], tasks: Sequence[tuple[Any, ...]]) -> list[Result]:
        results, documents = dict[int, Result](), [int(getattr(task[0], "documents", 0)) if task else 0 for task in tasks]
        if any(documents):
            self.progress.count(sum(documents), "documents")
        else:
            documents = [1] * len(tasks)
        for index, result in finished:
            results[index] = result
            self.progress.advance(documents[index])
        return [results[index] for index in range(len(tasks))]

    @contextmanager
    def _limited(self, workers: int | None) -> Iterator[None]:
        """Runs what is in the block on fewer processes, new ones."""
        if workers is None or workers >= self._workers:
            yield
            return
        before, self._workers = self._workers, workers
        self._stop(kill=False)
        yield
        self._stop(kill=False)
        self._workers = before

    def _finished(self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], label: str) -> Iterator[tuple[int, Result]]:
        """(index, result) as the tasks end. Only a few are under way at a time, so that a death leaves few to suspect: each is then tried alone."""
        begun = 0
        running: dict[Future[Result], int] = {}
        while True:
            try:
                while begun < len(tasks) and len(running) < 2 * self._workers:
                    running[self._submit(function, tasks[begun], self._workers)] = begun
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
            return self._in_new_process(function, task)
        except BrokenProcessPool:
            raise UserError(
                f"{label}: a worker process died twice (killed, or out of memory) over {task_name(task)}; "
                "what was finished is kept: run it again, with fewer --workers if memory was short"
            ) from None

    def _in_new_process(self, function: Callable[..., Result], task: tuple[Any, ...]) -> Result:
        """One task in a process that ends with it; the workers that there are wait, and their memory counts meanwhile."""
        workers, self._pool, processes = self._pool, None, self.journal.processes
        try:
            made = self._submit(function, task, 1)
            self.journal.processes += processes[1:]
            return made.result()
        finally:
            self._stop(kill=True)
            self._pool, self.journal.processes = workers, processes

    def _started(self, workers: int) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),))
        return self._pool

    def _submit(self, function: Callable[..., Result], task: tuple[Any, ...], workers: int) -> Future[Result]:
        """Gives a task to the pool, which may start a worker for it; that one is born deaf to Ctrl-C, which a terminal sends to all processes."""
        pool = self._started(workers)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return pool.submit(function, *task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.journal.processes = [os.getpid(), *list(pool._processes or {})]

    def _stop(self, *, kill: bool) -> None:
        if self._pool is None:
            return
        if kill:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self.journal.processes = [os.getpid()]


def _start_worker(parent: int) -> None:
    """A worker computes on one thread, leaves Ctrl-C to the build, and does not outlive it."""
    for name in ONE_THREAD:
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settle_in()
    if sys.platform == "linux" and os.getppid() != parent:
        os._exit(1)


def settle_in() -> None:
    """A process that runs tasks says no warning, for what is worth saying the build says once, and ends when its parent does (Linux; elsewhere an orphan ends with its task)."""
    warnings.simplefilter("ignore")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def hear_interrupts() -> None:
    """Lets Ctrl-C end a wait at once. Polars, when it is imported, takes SIGINT for itself and has the system go on with what was interrupted; a thread that waits without a limit of
    time would hear of it when the wait is over."""
    if hasattr(signal, "siginterrupt"):
        signal.siginterrupt(signal.SIGINT, True)


def task_name(task: tuple[Any, ...]) -> str:
    return str(getattr(task[0], "name", task[0])) if task else "?"


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room; `ndarray.tofile` says so without a number."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or (
        error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)) is not None
    )


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
