"""Files that several claims and seeds may want at once: each is made by one of them, the others wait for it, and a reader never sees half of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Waits until no other process or thread holds the lock: a work directory takes one build at a time, a file of results one writer."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def missing(made: Path, folder: Path) -> Iterator[bool]:
    """Whether something below `folder` is still to be made; who asks while another makes it waits, and finds it there."""
    with alone(folder / "locks" / "-".join(made.relative_to(folder).parts)):
        yield not made.exists()


def write_text(file: Path, text: str) -> Path:
    """A file with this text; it is left alone where it has it already."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as partial:
            partial.write(text)
        os.replace(partial.name, file)
    return file
