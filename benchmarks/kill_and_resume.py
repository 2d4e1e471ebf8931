"""Kill a build at random instants in each of its phases, resume it until it ends, and compare its digest with that of a build left alone.

    python benchmarks/kill_and_resume.py RECIPE --each 8

Each round starts from nothing. The build is killed with SIGKILL in its first phase, at a random instant of the time that phase took undisturbed; the next build resumes what
was left and is killed in the second phase, and so on to the last; then one is left alone and its digest compared. What was finished is remembered, so a phase may be
over before its instant comes: the build is then tried again from nothing and killed as the phase begins. After that, as many builds from nothing in which a worker is killed in
every other phase, which a build survives: a task may lose its worker once. Prints a line a round, then the kills in every phase; exits 1 if any digest differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from threading import Timer

import click

from curation.engine.local import Engine, Run
from curation.recipe import load

SHORT = 0.1  # seconds: a phase that takes no longer is killed as it begins
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["curation.build", "curation.text.tokenizer", "curation.signals.heuristics", "curation.dedup.near"])


class Watched(Engine):
    """Writes down every phase with its seconds, and kills so many seconds into those phases that `waits` names: this process, or one of its workers."""

    waits: dict[str, float] = {}  # noqa: RUF012
    worker, notes = False, Path()

    @contextmanager
    def phase(self, label: str, tasks: int = 1) -> Iterator[None]:
        wait = self.waits.pop(label, None)
        timer = Timer(wait or 0.0, self._kill, [label])
        began = time.monotonic()
        with super().phase(label, tasks):
            if wait == 0.0:
                self._kill(label)
            elif wait:
                timer.start()
            yield
        timer.cancel()
        self._note("phase", label, time.monotonic() - began)

    def _kill(self, label: str) -> None:
        victim = next(iter(self.journal.processes[1:]), None) if self.worker else os.getpid()
        if victim is not None:
            self._note("killed", label, 0.0)
            os.kill(victim, signal.SIGKILL)

    def _note(self, event: str, label: str, seconds: float) -> None:
        with self.notes.open("a") as file:
            file.write(json.dumps([event, label, seconds]) + "\n")


def _run(recipe: Path, folder: Path, waits: dict[str, float], worker: bool, notes: Path) -> None:
    Watched.waits, Watched.worker, Watched.notes = waits, worker, notes
    build_module = import_module("curation.build")
    build_module.Engine = Watched  # type: ignore[attr-defined]
    sys.stderr = (folder / "errors").open("w", buffering=1)
    build_module.build(load(recipe), recipe.parent, folder / "manifest", Run(folder / "work", workers=2))


def build(recipe: Path, folder: Path, waits: dict[str, float] | None = None, worker: bool = False) -> list[tuple[str, str, float]]:
    """Builds in a process of its own, after an earlier manifest is removed; (event, phase, seconds) of what happened."""
    shutil.rmtree(folder / "manifest", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    notes = folder / "notes"
    notes.write_text("")
    process = FORKS.Process(target=_run, args=(recipe, folder, waits or {}, worker, notes))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        sys.exit(f"the build failed: {process.exitcode}\n{notes.read_text()}{(folder / 'errors').read_text()}")
    return [(event, label, seconds) for event, label, seconds in map(json.loads, notes.read_text().splitlines())]


def killed_in(phase: str, length: float, recipe: Path, folder: Path, chance: random.Random) -> bool:
    """Whether a build was killed in `phase`."""
    for wait in (chance.uniform(0.01, 0.9 * length) if length > SHORT else 0.0, 0.0):
        if any(event == "killed" for event, *_ in build(recipe, folder, {phase: wait})):
            return True
        shutil.rmtree(folder)  # it ended, and what is remembered is not done again
    return False


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "manifest" / "manifest.json").read_bytes()).hexdigest()


@click.command()
@click.argument("recipe", type=click.Path(exists=True, path_type=Path))
@click.option("--each", default=8, show_default=True, help="Kills in every phase.")
@click.option("--victim", type=click.Choice(["build", "worker", "both"]), default="both", show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(recipe: Path, each: int, victim: str, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        alone, broken = Path(scratch, "alone"), Path(scratch, "broken")
        build(recipe, Path(scratch, "warm"))  # kernels compile on their first use
        lengths: dict[str, float] = {}
        for _, label, seconds in build(recipe, alone):
            lengths[label] = max(lengths.get(label, 0.0), seconds)
        print(f"left alone: {sum(lengths.values()):.1f} s in {len(lengths)} phases, digest {digest(alone)}")
        builds, workers, differing = Counter[str](), Counter[str](), 0
        for number in range(each if victim == "worker" else 0, each if victim == "build" else 2 * each):
            shutil.rmtree(broken, ignore_errors=True)
            if number < each:
                found = [phase for phase, length in lengths.items() if killed_in(phase, length, recipe, broken, chance)]
                builds.update(found)
                build(recipe, broken)
            else:
                waits = {phase: chance.uniform(0, lengths[phase]) for phase in list(lengths)[number % 2 :: 2]}
                found = [phase for event, phase, _ in build(recipe, broken, waits, worker=True) if event == "killed"]
                workers.update(found)
            same = digest(broken) == digest(alone)
            differing += not same
            who = "the build" if number < each else "a worker"
            print(f"round {number + 1}: {who} killed {len(found)} times, then {'the same' if same else 'ANOTHER'} digest", flush=True)
        for phase in lengths:
            print(f"  {phase:<32} {builds[phase]:>3} builds killed, {workers[phase]:>3} workers")
        print(f"{builds.total()} builds and {workers.total()} workers killed, {differing} rounds with another digest")
        sys.exit(differing > 0)


if __name__ == "__main__":
    main()
