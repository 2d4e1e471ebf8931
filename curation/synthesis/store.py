"""Every answer a model gave, written as it arrives.

One folder in the room `generations/` for each model, revision, template and parameters; in it `answers.jsonl`, a line an answer:
`{"key": …, "attempt": 0, "answer": …, "finish": "stop", "tokens_in": …, "tokens_out": …}`, or `{"key": …, "attempt": 0, "fault": …}` for a request that the back end could not answer
while it answered others. `key` is the hash of the prompt and of which of several answers to it this is. A line is written whole by one call and a torn last line is cut off when the
file is opened, so a build that is killed loses at most what was under way, and no prompt that was answered is sent again. `about.json` says for people what was asked of which model.

What is held is a number for each answer, about 150 bytes; answers are read back from the disk.
"""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any, NamedTuple

import orjson

from curation.engine.work_directory import Work, key_of, write_json

_FSYNC_SECONDS = 1.0


class Answer(NamedTuple):
    """What came back for a prompt: a text, or the fault that stood in its place."""

    text: str
    finish: str = "stop"
    tokens_in: int = 0
    tokens_out: int = 0
    fault: str | None = None

    @property
    def cut(self) -> bool:
        """Whether the token limit ended it."""
        return self.finish == "length"


class Store:
    """The answers of one model, template and set of parameters; a context manager."""

    def __init__(self, work: Work, about: dict[str, Any]) -> None:
        self.folder = work.room("generations") / key_of("generations", about)
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / "about.json").exists():
            write_json(self.folder / "about.json", about)
        self._path = self.folder / "answers.jsonl"
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._places: dict[bytes, int] = {}
        self._synced = time.monotonic()
        self._size = self._index()

    def _index(self) -> int:
        """Notes where each line begins, and cuts off what a killed process left half written."""
        at = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._handle, at)
                    break
                record = orjson.loads(line)
                self._places[_place(record["key"], record["attempt"])] = at
                at += len(line)
        return at

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.fsync(self._handle)
        os.close(self._handle)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: str, attempt: int) -> Answer | None:
        """The answer to the attempt, if there is one."""
        at = self._places.get(_place(key, attempt))
        if at is None:
            return None
        line = os.pread(self._handle, 1 << 14, at)
        while b"\n" not in line:
            line += os.pread(self._handle, 1 << 18, at + len(line))
        record = orjson.loads(line[: line.index(b"\n")])
        if "fault" in record:
            return Answer("", fault=record["fault"])
        return Answer(record["answer"], record["finish"], record["tokens_in"], record["tokens_out"])

    def add(self, key: str, attempt: int, answer: Answer) -> None:
        """Writes an answer; it is safe from a kill when this returns, and from a power cut a second later."""
        told = (
            {"fault": answer.fault}
            if answer.fault is not None
            else {"answer": answer.text, "finish": answer.finish, "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out}
        )
        line = orjson.dumps({"key": key, "attempt": attempt, **told}) + b"\n"
        written = 0
        while written < len(line):
            written += os.write(self._handle, line[written:])
        self._places[_place(key, attempt)] = self._size
        self._size += len(line)
        if time.monotonic() - self._synced > _FSYNC_SECONDS:
            os.fsync(self._handle)
            self._synced = time.monotonic()


def _place(key: str, attempt: int) -> bytes:
    return bytes.fromhex(key) + bytes([attempt])
