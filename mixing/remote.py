"""Files on this machine or in an object store, under one face: a place to open, to ask for its size, and to go below.

A `Remote` names an object by its URL (`s3://`, `gs://`, `az://`, `hf://`). Credentials, endpoints and regions come from the environment of the process, as the stores' own tools
read them, and never from a recipe; a URL that holds any is refused without being repeated. What fails is tried again with growing pauses and then named: a store that
cannot be reached must never look like a damaged file.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from mixing import UserError

SCHEMES = ("s3", "gs", "az", "hf")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0)  # seconds between the attempts: an outage of half a minute is waited out
_HOPELESS = ("ACCESS_DENIED", "AccessDenied", "NO_SUCH_BUCKET", "NoSuchBucket", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Remote:
    """`scheme://path`. `listed` holds (size, time of change in ns) of the objects below it that a listing has shown, so that each need not be asked for."""

    scheme: str
    path: str
    listed: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, below: str) -> Remote:
        path = f"{self.path}/{below}" if self.path else below
        return Remote(self.scheme, path, {"": self.listed[below]} if below in self.listed else {})

    def __getstate__(self) -> dict[str, object]:
        return {"scheme": self.scheme, "path": self.path, "listed": {}}

    def open(self, mode: str = "rb") -> BinaryIO:
        assert mode == "rb", mode
        return cast(BinaryIO, io.BufferedReader(_Object(self), 1 << 20))

    def stat(self) -> SimpleNamespace:
        """The three fields of `os.stat` that tell one state of a file from another."""
        size, changed = self.listed[""] if "" in self.listed else self._asked()
        return SimpleNamespace(st_size=size, st_mtime_ns=changed, st_ino=0)

    def _asked(self) -> tuple[int, int]:
        info = retried(self, lambda: filesystem(self.scheme).get_file_info(self.path))
        if not info.is_file:
            raise UserError(f"{self}: no such object")
        return _state(info)


Place = Path | Remote


class _Object(io.RawIOBase):
    """An object's bytes, read by ranges; a range that fails is asked for again, on a new connection."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._size = int(remote.stat().st_size)
        self._position = 0
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._size - self._position)
        if size <= 0:
            return 0
        found = retried(self._remote, lambda: self._range(size))
        view[: len(found)] = found
        self._position += len(found)
        return len(found)

    def _range(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = filesystem(self._remote.scheme).open_input_file(self._remote.path)
            found: bytes = self._file.read_at(size, self._position)
        except OSError:
            self._file = None
            raise
        if len(found) != size:
            self._file = None
            raise OSError(f"{len(found)} bytes instead of {size} at {self._position}")
        return found


def retried(remote: Remote, ask: Callable[[], Result]) -> Result:
    """What `ask` answers, after a few attempts; a UserError that names the object if there is no answer."""
    for pause in (*PAUSES, None):
        try:
            return ask()
        except OSError as error:
            what = " ".join(str(error).split())[:300]
            if isinstance(error, FileNotFoundError | PermissionError) or any(word in what for word in _HOPELESS):
                raise UserError(f"{remote}: cannot be read: {what}") from None
            if pause is None:
                raise UserError(f"{remote}: cannot be read after {len(PAUSES) + 1} attempts: {what}") from None
            time.sleep(pause)
    raise AssertionError


@lru_cache
def filesystem(scheme: str) -> Any:
    """The store's file system, with what the environment says of endpoint, region and credentials."""
    from pyarrow import fs

    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        anonymous = os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes")
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=3)
        return fs.S3FileSystem(
            endpoint_override=endpoint, region=region, anonymous=anonymous, connect_timeout=10, request_timeout=60, retry_strategy=retries
        )
    if scheme == "gs":
        return fs.GcsFileSystem(anonymous=os.environ.get("GOOGLE_ANONYMOUS", "") == "1")
    if scheme == "az":
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME") or os.environ.get("AZURE_STORAGE_ACCOUNT")
        if not account:
            raise UserError("az://: no storage account; name it in AZURE_STORAGE_ACCOUNT_NAME")
        return fs.AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_ACCOUNT_KEY") or os.environ.get("AZURE_STORAGE_KEY"))
    from huggingface_hub import HfFileSystem

    return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))


def native(place: Place) -> Any:
    """The file as Arrow reads it: on this machine without a detour through Python."""
    import pyarrow as pa

    return pa.OSFile(str(place)) if isinstance(place, Path) else pa.PythonFile(place.open(), "r")


def on_disk(place: Place, room: Path) -> Path:
    """The file itself, or a copy of the object in `room` under a name of the same ending."""
    if isinstance(place, Path):
        return place
    copy = room / f"{sum(1 for _ in room.iterdir())}-{place.path.rpartition('/')[2]}"
    with place.open() as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def is_url(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def parse_url(where: str, url: str) -> tuple[str, str]:
    """(scheme, path) of a URL. One with credentials in it is refused, and they are not repeated."""
    scheme, _, path = url.partition("://")
    if scheme not in SCHEMES:
        raise UserError(f"{where}: found a URL that begins {scheme}://; accepted: {', '.join(f'{one}://' for one in SCHEMES)}, and paths")
    authority = urlsplit(url.split("?")[0]).netloc
    if "@" in authority or re.search(r"\?.*=", path):
        raise UserError(
            f"{where}: a {scheme}:// URL with credentials or options in it; accepted: {scheme}://bucket/path, with those in the environment"
        )
    return scheme, path.strip("/")


def list_files(root: Remote, patterns: list[str]) -> Remote:
    """`root` with the objects below it that match any of the patterns, as `glob` matches files; hidden ones only where a pattern names them."""
    from pyarrow import fs

    matchers = [re.compile(_as_expression(pattern)) for pattern in patterns]
    plain = [pattern for pattern in patterns if not re.search(r"[*?\[]", pattern)]
    if len(plain) == len(patterns):
        asked = retried(root, lambda: filesystem(root.scheme).get_file_info([(root / pattern).path for pattern in plain]))
    else:
        selector = fs.FileSelector(root.path, recursive=True, allow_not_found=True)
        asked = retried(root, lambda: filesystem(root.scheme).get_file_info(selector))
    found = {}
    for info in asked:
        below = info.path.removeprefix(f"{root.path}/")
        if info.is_file and any(matcher.fullmatch(below) for matcher in matchers):
            found[below] = _state(info)
    return Remote(root.scheme, root.path, found)


def _state(info: Any) -> tuple[int, int]:
    """Size and time of change; an object whose store tells no time (a hub) has always just changed, so that its digest is never remembered wrongly."""
    return int(info.size), int(time.time_ns() if info.mtime_ns is None else info.mtime_ns)


def _as_expression(pattern: str) -> str:
    """A glob pattern as a regular expression over whole paths."""
    parts = pattern.split("/")
    expression = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            expression += r"(?:[^./][^/]*/)*" + (r"[^./][^/]*" if last else "")
            continue
        hidden = "" if part.startswith(".") else r"(?!\.)"
        for piece in re.findall(r"\[!?\]?[^\]]*\]|.", part):
            if piece == "*":
                hidden += "[^/]*"
            elif piece == "?":
                hidden += "[^/]"
            elif len(piece) > 2 and piece.startswith("["):
                hidden += (
                    "[" + ("^" if piece[1] == "!" else "") + re.escape(piece[2 if piece[1] == "!" else 1 : -1]).replace(r"\-", "-") + "]"
                )
            else:
                hidden += re.escape(piece)
        expression += hidden + ("" if last else "/")
    return expression
