"""A manifest in an object store, as a folder on this machine that fills itself.

In: the URL of a manifest. Out: a folder with all of its files, of their sizes. The header, `files.json` and the tokenizer are fetched at once; plan, hold-out and pool
whole when they are first opened, and compared with the sha256 in `files.json`; token ids by blocks of `BLOCK` bytes, those that somebody is about to read. The trainer asks for the
blocks of coming steps, so they arrive in the order of the plan. Blocks are fetched by several threads, and every process of this machine uses what another has fetched: which blocks
there are stands in a map beside the file, set after a block is written. The map belongs to one boot of the machine, because a crash may lose a block and keep its mark.

The folder is `TILTH_CACHE` (default: `tilth` in the user's cache folder), below it the manifest's digest; it may be removed at any time between runs. Blocks cannot be compared with a
digest of the whole file: that they are whole is the store's and the connection's word, and an object of another size than `files.json` says is refused.
Credentials are the environment's, as everywhere (`mixing.remote`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mixing import UserError
from mixing.remote import Remote, filesystem, parse_url, retried

BLOCK = 256 << 10  # bytes; some 50 documents
RUN = 16  # blocks that one request asks for at most
THREADS = 16
URL = re.compile(r"(s3|gs|az|hf):/+(.+)")
MARK = "mirror.json"


def refuse_url(path: Path | str) -> None:
    """Refuses a URL where a folder is needed."""
    if URL.fullmatch(str(path)):
        raise UserError(f"{_spelled(path)}: a manifest in an object store is read by the trainer alone; copy it to a folder for this")


def mirrored(path: Path | str) -> Path:
    """The folder that mirrors the manifest at a URL; any other path as it is."""
    if not URL.fullmatch(str(path)):
        return Path(path)
    url = _spelled(path).removesuffix("/manifest.json").rstrip("/")
    remote = Remote(*parse_url("manifest", url))
    header = _content(remote / "manifest.json")
    folder = _cache() / hashlib.sha256(header).hexdigest()
    if not (folder / MARK).exists():
        sizes = _content(remote / "files.json")
        for entry in _parsed(sizes, f"{url}/files.json"):
            _prepare(folder / _inside(entry["path"], url), entry["bytes"])
        _write(folder / "files.json", sizes)
        _write(folder / "manifest.json", header)
    _write(folder / MARK, json.dumps({"url": url}).encode())
    of.cache_clear()
    mirror = of(folder)
    assert mirror is not None
    for inner in mirror.listed:
        if inner.startswith("tokenizer/"):
            mirror.whole(inner)
    return folder


@lru_cache(maxsize=64)
def of(folder: Path) -> Mirror | None:
    """What fills this folder; None if it is one like any other."""
    mark = folder / MARK
    return Mirror(folder, json.loads(mark.read_text())["url"]) if mark.exists() else None


def present(folder: Path, inner: str) -> Path:
    """A file of a manifest, with everything in it but token ids."""
    mirror = of(folder)
    if mirror is not None:
        if inner.startswith("tokens/"):
            mirror.start_of_ids(inner)
        else:
            mirror.whole(inner)
    return folder / inner


class Mirror:
    """Fills one folder; safe for threads, and for other processes that do the same."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.listed = {entry["path"]: entry for entry in json.loads((folder / "files.json").read_bytes())}
        self._remote = Remote(*parse_url("manifest", url))
        self._threads = ThreadPoolExecutor(THREADS, "mirror")
        self._lock = Lock()
        self._coming: dict[tuple[str, int], Future[None]] = {}
        self._maps: dict[str, npt.NDArray[np.uint8]] = {}
        self._ids: dict[str, int] = {}

    def whole(self, inner: str) -> None:
        """Has a file whole, as `files.json` says it is."""
        if inner not in self.listed or (marks := self._marks(inner)).all():
            return
        content = _content(self._remote / inner)
        entry = self.listed[inner]
        if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise UserError(f"{self._remote / inner}: not the file that files.json names; copy the manifest there again")
        with (self.folder / inner).open("r+b") as file:
            file.write(content)
        marks[:] = 1

    def start_of_ids(self, inner: str) -> int:
        """Where the ids begin in a file of tokens, of which everything else is then there."""
        if inner not in self._ids:
            size = self.listed[inner]["bytes"]
            self.fetch(inner, np.array([0, max(0, size - BLOCK)]), np.array([min(size, BLOCK), size]))
            with pa.memory_map(str(self.folder / inner)) as mapped:
                base = mapped.read_buffer(1).address
                batch = pa.ipc.open_file(mapped).get_batch(0)
                parts = [batch["pool_row"].buffers()[1], batch["ids"].buffers()[1]]
                begins = np.array([part.address - base for part in parts])
                self.fetch(inner, begins, begins + np.array([part.size for part in parts]))
                self._ids[inner] = batch["ids"].values.buffers()[1].address - base
        return self._ids[inner]

    def ids(self, inner: str, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], width: int) -> None:
        """Has the ids `[begins, ends)`, `width` bytes each."""
        first = self.start_of_ids(inner)
        self.fetch(inner, first + width * begins, first + width * ends)

    def fetch(self, inner: str, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
        """Has the bytes `[begins, ends)` of a file."""
        marks = self._marks(inner)
        counts = (ends - 1) // BLOCK - begins // BLOCK + 1
        blocks = np.repeat(begins // BLOCK - np.append(0, np.cumsum(counts)[:-1]), counts) + np.arange(counts.sum())
        missing = np.unique(blocks[marks[blocks] == 0])
        with self._lock:
            mine = [block for block in missing.tolist() if (inner, block) not in self._coming]
            for run in _runs(mine):
                future = self._threads.submit(self._fetched, inner, run)
                self._coming |= {(inner, block): future for block in run}
            waited = {self._coming[inner, block] for block in missing.tolist()}
        for future in waited:
            future.result()

    def _fetched(self, inner: str, run: list[int]) -> None:
        size = self.listed[inner]["bytes"]
        first, end = run[0] * BLOCK, min(size, (run[-1] + 1) * BLOCK)
        try:
            content = retried(self._remote / inner, lambda: _range(self._remote / inner, first, end, size))
            with (self.folder / inner).open("r+b") as file:
                os.pwrite(file.fileno(), content, first)
            self._marks(inner)[run] = 1
        finally:
            with self._lock:
                for block in run:
                    del self._coming[inner, block]

    def _marks(self, inner: str) -> npt.NDArray[np.uint8]:
        """u8 a block: 1 where it is there."""
        if inner not in self._maps:
            path = self.folder / "blocks" / _boot() / inner
            blocks = -(-self.listed[inner]["bytes"] // BLOCK)
            _prepare(path, blocks)
            self._maps[inner] = np.memmap(path, np.uint8, "r+", shape=(blocks,)) if blocks else np.ones(0, np.uint8)
        return self._maps[inner]


def _runs(blocks: Iterable[int]) -> list[list[int]]:
    """Neighbouring blocks together, up to `RUN` of them."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1 and len(runs[-1]) < RUN:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


def _range(remote: Remote, first: int, end: int, size: int) -> bytes:
    with filesystem(remote.scheme).open_input_file(remote.path) as file:
        if file.size() != size:
            raise UserError(f"{remote}: {file.size()} bytes, files.json says {size}; copy the manifest there again")
        content: bytes = file.read_at(end - first, first)
    if len(content) != end - first:
        raise OSError(f"{len(content)} bytes instead of {end - first} at {first}")
    return content


def _content(remote: Remote) -> bytes:
    with remote.open() as file:
        return file.read()


def _parsed(content: bytes, name: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(content)
    except ValueError as error:
        raise UserError(f"{name}: {len(content)} bytes that are no JSON ({error}); copy the manifest there again") from None
    return found


def _prepare(path: Path, size: int) -> None:
    """A file of this size, of zeros where nothing has been written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell() != size:
            file.truncate(size)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _inside(path: str, url: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or "\\" in path or ":" in path:
        raise UserError(f"{url}: the path {path!r} leaves the manifest; paths of a manifest stay below its folder")
    return path


def _spelled(path: Path | str) -> str:
    """A URL, of which a path has lost a slash."""
    found = URL.fullmatch(str(path))
    assert found is not None
    return f"{found[1]}://{found[2]}"


def _cache() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tilth"
    return Path(os.environ.get("TILTH_CACHE") or default)


def _boot() -> str:
    """A name of this boot of the machine; of this process where the kernel has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{os.getpid()}-{secrets.token_hex(4)}"
