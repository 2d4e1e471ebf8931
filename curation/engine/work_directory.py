"""The work directory: content-addressed files that many recipes share, safe to delete.

Every name in it is a key: a hash of what the content was computed from, never of where, when or how fast. Files are written under a temporary name, fsynced and renamed,
so that a build killed at any instant leaves only whole files. One build at a time holds the lock, which the kernel drops when the process ends, however it ends. Tasks on several machines
need a file system that all of them share, and that shows a file closed on one to whoever opens it afterwards on another (NFS, Lustre, CephFS and the like).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from curation.engine.atomic_files import beside, whole
from mixing import UserError
from mixing.canonical import canonical_json
from mixing.remote import Place

ROOMS = ("shards", "sidecars", "models", "generations", "builds", "scratch")


def key_of(*parts: object) -> str:
    """32 hex characters naming `parts`; a part that has no canonical JSON is refused with its type's name."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Work:
    """A work directory. `read_only` users (`show`, `why`) open it without the lock. `scratch` is the folder of one build in the scratch room: a task of a killed build that has not
    heard of its end on another machine cannot write where the next one reads."""

    root: Path
    scratch: str = ""

    def room(self, name: str) -> Path:
        assert name in ROOMS, name
        folder = self.root / name / (self.scratch if name == "scratch" else "")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for one build and empties its scratch room, where nothing outlives a build."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise UserError(
                    f"--work {self.root}: another build holds it (process {handle.read().strip() or 'unknown'}); wait for it or name another --work"
                ) from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            shutil.rmtree(self.root / "scratch", ignore_errors=True)
            yield
            shutil.rmtree(self.root / "scratch", ignore_errors=True)


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its name; readers see nothing or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value))


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: _write_bytes(temporary, text.encode()))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@contextmanager
def folder_atomic(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error; what a killed run left half done is removed first. The first of two attempts to end is
    the one that stays."""
    for left in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(left, ignore_errors=True)
    temporary, there = folder.with_name(f"{beside(folder).name}.part"), folder.exists()
    temporary.mkdir(parents=True)
    yield temporary
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    if folder.exists() and not there:
        shutil.rmtree(temporary)
        return
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


class Input(NamedTuple):
    """A file that is read: its path below its root, its size and its sha256."""

    path: str
    bytes: int
    digest: str


class Digests:
    """sha256 of input files, remembered by (size, time of change, inode), so that an unchanged build reads no input again.

    A file changed within two seconds of being hashed is not remembered: a second change in the same tick of the clock would be missed. What is remembered is the state before
    the hashing, so a file that changes meanwhile is unknown.
    """

    def __init__(self, work: Work) -> None:
        self._path = work.root / "digests.json"
        self._known: dict[str, list[object]] = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._facts_path = work.root / "facts.json"
        self._facts: dict[str, Any] = json.loads(self._facts_path.read_text()) if self._facts_path.exists() else {}
        self._new = False

    def known(self, path: Place) -> str | None:
        entry = self._known.get(str(path))
        return str(entry[1]) if entry and entry[0] == state_of(path) else None

    def remember(self, path: Place, state: list[int], digest: str) -> None:
        if time.time_ns() - state[1] > 2_000_000_000:
            self._known[str(path)] = [state, digest]
            self._new = True

    def fact(self, key: str) -> Any:
        """What was found out about a file of this content, or None: a `key` holds its digest."""
        return self._facts.get(key)

    def note(self, key: str, value: object) -> None:
        self._facts[key] = value
        self._new = True

    def save(self) -> None:
        if self._new:
            write_json(self._path, self._known)
            write_json(self._facts_path, self._facts)
            self._new = False


def state_of(path: Place) -> list[int]:
    """Size, time of change in nanoseconds, inode."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def sha256_file(path: Place) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(cast(io.BufferedReader, handle), "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """One digest over the names and bytes of a folder's files."""
    listing = [[path.relative_to(folder).as_posix(), sha256_file(path)] for path in sorted(folder.rglob("*")) if path.is_file()]
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()
