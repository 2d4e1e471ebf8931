"""Writes a manifest folder, whole or not at all.

In: the files that `mixing.files` writes, hold-out, tokenizer files, the header of the build. Out: the folder `mixing.manifest.Manifest` opens. It is written as `.<name>.partial` beside its
target, every file and folder fsynced, and renamed at the end; a killed build leaves the partial folder, which the next build of the same target empties.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from mixing import UserError
from mixing.canonical import canonical_json
from mixing.files import ID_TYPES, Piece, file_sha256, write_arrow
from mixing.findings import Stored
from mixing.history import VISITS_PATH, History, visits_table
from mixing.manifest import HEADER_KEYS, SCHEMA_VERSION, Holdout, Manifest, holdout_schema, inner_path

_OWN_KEYS = ("schema_version", "recipe_sha256", "holdout", "files")


class ManifestWriter:
    """One manifest being written; use it as a context manager. Call `finish` last: it alone makes the target appear."""

    def __init__(self, folder: Path, dtype: str, *, replace: bool = False) -> None:
        """`dtype` is the header's: "uint16" or "uint32". `replace` lets `finish` swap an existing manifest of another digest by rename."""
        self.target = Path(folder).absolute()
        self.replace = replace
        self._ids = ID_TYPES[dtype]
        self._files: list[dict[str, Any]] = []
        self._holdout: dict[str, dict[str, int]] = {}
        self._sums: dict[str, str] = {}
        self.folder, self._lock = partial_folder(self.target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        os.close(self._lock)

    def take(self, *pieces: Piece) -> None:
        """Take files that have been written: those of another folder leave it (renamed, or copied from another file system)."""
        for piece in pieces:
            place = self._new(piece.path)
            if piece.folder != self.folder:
                shutil.move(piece.folder / piece.path, place)
            self._sums[piece.path] = piece.sha256
            self._files.append({"path": piece.path, "rows": piece.rows, "digest": piece.digest})

    def adopt(self, manifest: Manifest, *beginnings: str) -> None:
        """Take the files of another manifest whose paths begin so, as they are: hard links, or copies on another file system.

        A linked file is not read: its checksum is the one that its manifest has.
        """
        sums = {entry["path"]: entry["sha256"] for entry in json.loads((manifest.folder / "files.json").read_bytes())}
        for entry in manifest.header["files"]:
            path = entry["path"]
            if not path.startswith(beginnings):
                continue
            if link(manifest.folder / inner_path(path, manifest.folder), self._new(path)):
                self._sums[path] = sums[path]
            self._files.append(dict(entry))
            if path.startswith("holdout/"):
                source = path.removeprefix("holdout/").removesuffix(".arrow")
                self._holdout[source] = manifest.header["holdout"][source]

    def visits(self, history: History, documents: Stored) -> None:
        """Write what was read of each stored document before the plan begins."""
        self.take(write_arrow(self.folder, VISITS_PATH, visits_table(history, documents)))

    def holdout(self, source: str, held: Holdout) -> None:
        """Write `holdout/<source>.arrow` and count it for the header."""
        ids = pa.LargeListArray.from_arrays(pa.array(held.offsets, pa.int64()), pa.array(held.ids, self._ids))
        columns = [pa.array(held.pool_row, pa.uint64()), pa.array(held.component, pa.uint16()), pa.array(held.bytes, pa.uint32()), ids]
        self.take(write_arrow(self.folder, f"holdout/{source}.arrow", pa.record_batch(columns, schema=holdout_schema(self._ids))))
        self._holdout[source] = {"documents": len(held.pool_row), "tokens": int(held.offsets[-1] - held.offsets[0])}

    def tokenizer(self, files: Mapping[str, bytes]) -> None:
        """Write `tokenizer/`: file names and their bytes, as used."""
        for name, content in files.items():
            path = f"tokenizer/{name}"
            self._new(path).write_bytes(content)
            self._files.append({"path": path, "digest": hashlib.sha256(content).hexdigest()})

    def finish(self, header: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
        """Complete `header` with schema version, recipe digest, hold-out counts and files; rename the folder to its target; the digest.

        A whole target of the same digest is left untouched. One of another digest, or a folder that is no manifest, is a UserError; with `replace` a
        manifest is swapped. `provenance` is whatever the build wants to say about itself, outside the digest.
        """
        recipe_sha256 = hashlib.sha256(canonical_json(header["recipe"]).encode()).hexdigest()
        files = sorted(self._files, key=lambda entry: str(entry["path"]))
        own = dict(zip(_OWN_KEYS, (SCHEMA_VERSION, recipe_sha256, self._holdout, files), strict=True))
        whole = {**header, **own}
        assert set(whole) == set(HEADER_KEYS), f"header keys: {set(whole) ^ set(HEADER_KEYS)}"
        content = canonical_json(whole).encode()
        digest = hashlib.sha256(content).hexdigest()
        if not self._target_is_free(digest):
            return digest
        self._new("manifest.json").write_bytes(content)
        self._new("provenance.json").write_text(canonical_json(dict(provenance)))
        self._new("files.json").write_text(canonical_json(_written_files(self.folder, self._sums)))
        fsync_tree(self.folder)
        self._appear()
        return digest

    def _target_is_free(self, digest: str) -> bool:
        """Whether the target is to be written: False if it already holds this manifest, a UserError if it holds something else."""
        if not self.target.exists() or (self.target.is_dir() and not any(self.target.iterdir())):
            return True
        if not (self.target / "manifest.json").is_file():
            raise UserError(f"{self.target}: exists and is not a manifest; choose another folder or remove it")
        try:
            present = Manifest.open(self.target).digest
        except UserError:  # damaged, or newer than this code
            if self.replace:
                return True
            raise
        if present == digest:
            return False
        if not self.replace:
            remedy = f"compare them with `curate diff`, choose another folder, or pass --replace; the new one has the digest {digest}"
            raise UserError(f"{self.target}: holds another manifest, digest {present}; {remedy}")
        return True

    def _appear(self) -> None:
        """Rename the finished folder to its target; an old manifest steps aside by rename first, so that no mixture of both is ever seen."""
        old = self.target.with_name(f".{self.target.name}.replaced")
        if old.exists():
            shutil.rmtree(old)
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        _fsync(self.target.parent)
        if old.exists():
            shutil.rmtree(old)

    def _new(self, path: str) -> Path:
        file = self.folder / inner_path(path, self.target)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


def link(file: Path, to: Path) -> bool:
    """The same bytes under another name: a hard link, or a copy where there are none (another file system). Whether it is a link."""
    try:
        os.link(file, to)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(file, to)
        return False
    return True


def partial_folder(target: Path) -> tuple[Path, int]:
    """An empty folder beside `target`, and the lock that this process holds on it. What a killed process left there is removed."""
    folder = target.with_name(f".{target.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"{target}: another process is writing it; wait for it or choose another folder") from None
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return folder, lock


def _written_files(folder: Path, known: Mapping[str, str]) -> list[dict[str, Any]]:
    """Path, size and sha256 of every file; those of `known` are not read again."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return [{"path": name, "bytes": path.stat().st_size, "sha256": known.get(name) or file_sha256(path)} for name, path in files.items()]


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below `folder` last."""
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
