"""Files that appear whole under their names, written by whichever attempt at a task ends.

A task may be tried twice, on two machines, with the first attempt still at work on a node that the others have lost sight of. So no task writes under a name that another may read:
it fills a file of its own beside it, which then takes the name, and every attempt writes the same bytes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt


def beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that no other process on any machine uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """What the block writes to the file it is given takes the name `path` if the block ends well; nothing is left of it if not."""
    temporary = beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, array: npt.NDArray[np.generic]) -> Path:
    """An array as `.npy`."""
    with whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    return path


def save_all(path: Path, **arrays: npt.ArrayLike) -> Path:
    """Several arrays as `.npz`."""
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path
