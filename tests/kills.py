"""Builds that are killed at a chosen place, run in processes of their own. The hooks are here, around the engine; the package knows nothing of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from curation.engine.local import Engine, Run
from curation.recipe import load


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Noting(Engine):
    """Writes down the label of every phase."""

    notes: Path

    @contextmanager
    def phase(self, label: str, tasks: int = 1) -> Iterator[None]:
        with self.notes.open("a") as file:
            file.write(json.dumps(label) + "\n")
        with super().phase(label, tasks):
            yield


class Killing(Engine):
    """Kills its process in the phase `label`: as it begins, with half of its tasks done, or as it ends."""

    label: str
    instant: str

    @contextmanager
    def phase(self, label: str, tasks: int = 1) -> Iterator[None]:
        if label == self.label and self.instant == "begin":
            kill()
        with super().phase(label, tasks):
            yield
        if label == self.label:
            kill()

    def map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], label: str, at_most: int | None = None) -> list[Any]:
        if label == self.label and self.instant == "middle":
            for task in tasks[: (len(tasks) + 1) // 2]:
                function(*task)
            kill()
        return super().map(function, tasks, label, at_most)


def _build(recipe: Path, out: Path, work: Path, engine: type[Engine], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        setattr(engine, name, value)
    build_module = import_module("curation.build")
    build_module.Engine = engine  # type: ignore[attr-defined]
    build_module.build(load(recipe), recipe.parent, out, Run(work))


def apart(recipe: Path, out: Path, work: Path, engine: type[Engine], **settings: Any) -> int:
    """Builds in a process forked from a server that has imported everything; its exit code, negative if a signal ended it."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["kills", "curation.text.tokenizer"])
    process = context.Process(target=_build, args=(recipe, out, work, engine, settings))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
