"""`curate clean`: what lies in the work directory, and what no recent build refers to.

A build leaves `builds/<key>.json` with the shards it was made of and the keys of its sidecars and models. Everything in the rooms that no build of the last days
names can go: the next build that wants it makes it anew. Answers of models are the exception: they cost more than room, so `generations/` is shown and never swept. Nothing is touched while a build holds the lock, and the builds that are kept lose nothing, so their manifests stay
what `show` and `why` can explain.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from curation.engine.work_directory import Work
from mixing import UserError

ROOMS = ("shards", "sidecars", "models", "generations", "builds", "log", "scratch")


class Entry(NamedTuple):
    """A file or folder of the work directory, and whether a kept build refers to it."""

    path: Path
    bytes: int
    used: bool


def survey(root: Path, days: float) -> dict[str, list[Entry]]:
    """The entries of every room, by room. A build is kept for `days` after it was last made or found unchanged."""
    if not root.is_dir():
        raise UserError(f"--work {root}: no such directory; name the work directory of a build")
    rooms = {room: sorted((root / room).iterdir()) if (root / room).is_dir() else [] for room in ROOMS}
    if not any(rooms.values()):
        raise UserError(f"--work {root}: holds none of {', '.join(ROOMS)}; name the work directory of a build")
    oldest = time.time() - days * 86400
    kept = {path for path in rooms["builds"] if path.stat().st_mtime >= oldest}
    named: dict[str, set[str]] = {"shards": set(), "sidecars": set(), "models": set()}
    for path in kept:
        build = json.loads(path.read_text())
        named["shards"] |= {Path(shard["path"]).parent.name for shard in build["shards"]}
        for room in ("sidecars", "models"):
            named[room] |= set(build.get(room, []))
    builds = {path.stem for path in kept}
    return {
        room: [Entry(path, _size(path), _is_used(path, room, named, kept, builds)) for path in entries] for room, entries in rooms.items()
    }


def _is_used(path: Path, room: str, named: dict[str, set[str]], kept: set[Path], builds: set[str]) -> bool:
    if room == "generations":
        return True
    if room == "builds":
        return path in kept
    if room == "log":
        return path.stem.rpartition("-")[2] in builds
    return path.name in named.get(room, ())


def sweep(root: Path, days: float) -> int:
    """Removes what `survey` calls unused, under the lock; the bytes made free."""
    freed = 0
    with Work(root).locked():
        for entries in survey(root, days).values():
            for entry in entries:
                if not entry.used:
                    shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)
                    freed += entry.bytes
    return freed


def _size(path: Path) -> int:
    """Bytes on the disk."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)
