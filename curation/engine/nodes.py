"""What runs on a node of a cluster before anything else does: it must have the files and the program of the process that hands out the work.

A node that sees another work directory, or has another version of this program, is refused by name before it computes anything.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from curation.engine.local import settle_in
from mixing import UserError


class Ground(NamedTuple):
    """What a node must have in common with the process that hands out the tasks: a file in the work directory, and this program."""

    file: str
    program: str


def call(ground: Ground, function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    """One task on a node that has what it needs."""
    stand_on(ground)
    return function(*task)


@lru_cache(maxsize=1)
def stand_on(ground: Ground) -> None:
    """Refuses a node that has other files or another program; once a worker."""
    settle_in()
    node = socket.gethostname()
    if ground.program != program():
        raise UserError(f"--engine ray: the node {node} has another version of this program; install the same one on all nodes")
    if not Path(ground.file).exists():
        raise UserError(
            f"--work {Path(ground.file).parent}: the node {node} sees no such folder, or another one; accepted: a folder on a file system that all nodes share, under one name"
        )


@lru_cache(maxsize=1)
def program() -> str:
    """A digest of this program's modules."""
    root = Path(__file__).parents[2]
    found = hashlib.sha256()
    for path in sorted(path for package in ("curation", "mixing") for path in (root / package).rglob("*.py")):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def cause(error: Any, errors: Any) -> BaseException:
    """What a task raised; that a node could not even begin it is the user's to mend."""
    if isinstance(error.cause, errors.RayError):
        reason = (str(error.cause).strip() or type(error.cause).__name__).splitlines()[0]
        return UserError(f"--engine ray: a node cannot run a task: {reason}; install the same version of this program on all nodes")
    raised: BaseException = error.cause
    return raised
