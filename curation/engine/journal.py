"""The log of a build: `log/<time>-<build>.jsonl` in the work directory, one JSON object a phase.

`{"event": "begin", "build": …, "workers": …, "memory": …}`, then `{"event": "phase", "phase": …, "tasks": …, "seconds": …, "computed": …, "remembered": …,
"peak_memory": …}` for every phase that ended (`computed` and `remembered` are null where nothing is remembered, `peak_memory` is in bytes, sampled once a second over all
processes), then `{"event": "end", "outcome": …, "seconds": …}`. No path, no text and no environment is written.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from curation.engine.memory import held


class Journal:
    """Collects entries, and writes them once it knows the build's name; a context manager that watches memory meanwhile."""

    def __init__(self) -> None:
        self.phase = ""
        self.memory = 0
        self.processes: list[int] = []
        self._path: Path | None = None
        self._waiting: list[dict[str, Any]] = []
        self._entry: dict[str, Any] | None = None
        self._began = self._phase_began = time.monotonic()
        self._stop = Event()
        self._watcher = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Journal:
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._watcher.join()
        if kind is None:
            self.end("built")

    def open(self, folder: Path, build: str, **facts: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{build}.jsonl"
        self._waiting.insert(0, {"event": "begin", "build": build, **facts})
        self._write()

    def begin(self, phase: str, tasks: int) -> None:
        """A phase begins, and the one before it is written."""
        self._write()
        self.phase, self._phase_began = phase, time.monotonic()
        self._entry = {
            "event": "phase",
            "phase": phase,
            "tasks": tasks,
            "seconds": 0.0,
            "computed": None,
            "remembered": None,
            "peak_memory": 0,
        }

    def done(self) -> None:
        """The phase's work is done; counts may still be added to it."""
        assert self._entry is not None
        self._sample()
        self._entry["seconds"] = round(time.monotonic() - self._phase_began, 3)
        self._waiting.append(self._entry)

    def count(self, computed: int, remembered: int) -> None:
        """What the phase that has just ended had to compute, and what it remembered."""
        assert self._entry is not None
        self._entry["computed"], self._entry["remembered"] = computed, remembered

    def end(self, outcome: str) -> None:
        self._waiting.append({"event": "end", "outcome": outcome, "seconds": round(time.monotonic() - self._began, 3)})
        self._write()

    def _write(self) -> None:
        if self._path is not None and self._waiting:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in self._waiting)
            self._waiting = []

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self._sample()

    def _sample(self) -> None:
        self.memory = held(self.processes)
        if self._entry is not None:
            self._entry["peak_memory"] = max(self._entry["peak_memory"], self.memory)
