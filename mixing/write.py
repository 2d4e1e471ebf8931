"""Writes a manifest folder, whole or not at all.

In: token ids of the planned documents in pool-row order, the stages of a plan, hold-out, pool tables, tokenizer files, the header of the build.
Out: the folder `mixing.manifest.Manifest` opens. It is written as `.<name>.partial` beside its target, every file and folder fsynced, and
renamed at the end; a killed build leaves the partial folder, which the next build of the same target empties. The bytes do not depend on how
the documents arrive (chunking) and memory does not grow with the tokens: ids are spooled to disk and mapped while their file is written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mixing import UserError
from mixing.canonical import canonical_json, content_digest
from mixing.findings import Stored
from mixing.history import VISITS_PATH, History, stored, visits_table
from mixing.manifest import HEADER_KEYS, SCHEMA_VERSION, SEQUENCES, SPANS, Holdout, Manifest, holdout_schema, inner_path, tokens_schema

if TYPE_CHECKING:
    from mixing.plan import StagePlan

TOKEN_FILE_IDS = 1 << 28
"""A file of `tokens/` holds at most this many ids (512 MiB or 1 GiB), or one longer document."""

_OWN_KEYS = ("schema_version", "recipe_sha256", "holdout", "files")


class _TokenFiles(NamedTuple):
    """Where each stored document lies: `pool_row` ascends, `first` is the index of each file's first document."""

    pool_row: npt.NDArray[np.uint64]
    first: npt.NDArray[np.int64]


class ManifestWriter:
    """One manifest being written; use it as a context manager. Call `tokens` before `plan`, and `finish` last: it alone makes the target appear."""

    def __init__(self, folder: Path, dtype: str, *, replace: bool = False, token_file_ids: int = TOKEN_FILE_IDS) -> None:
        """`dtype` is the header's: "uint16" or "uint32". `replace` lets `finish` swap an existing manifest of another digest by rename."""
        self.target = Path(folder).absolute()
        self.replace = replace
        self._dtype = np.dtype(dtype)
        self._ids = {"uint16": pa.uint16(), "uint32": pa.uint32()}[dtype]
        self._token_file_ids = token_file_ids
        self._files: list[dict[str, Any]] = []
        self._holdout: dict[str, dict[str, int]] = {}
        self._stored: _TokenFiles | None = None
        self._sums: dict[str, str] = {}
        self.folder, self._lock = partial_folder(self.target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        os.close(self._lock)

    def tokens(self, documents: Iterable[tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[np.int64]]]) -> None:
        """Write `tokens/`. Each element holds pool rows, their ids joined, and n+1 offsets into these; rows ascend over all elements."""
        rows: list[npt.NDArray[np.uint64]] = []
        first = [0]
        with closing(_Spool(self.folder, self._dtype)) as spool:
            for chunk_rows, ids, offsets in documents:
                assert ids.dtype == self._dtype, f"ids of {ids.dtype}, the manifest stores {self._dtype}"
                assert len(offsets) == len(chunk_rows) + 1
                rows.append(np.asarray(chunk_rows, np.uint64))
                begin = 0
                while begin < len(chunk_rows):
                    room = max(0, self._token_file_ids - spool.ids_written)
                    end = int(np.searchsorted(offsets, offsets[begin] + room, side="right")) - 1
                    if end <= begin and spool.documents == 0:
                        end = begin + 1  # a document longer than a file has one to itself
                    spool.add(chunk_rows[begin:end], ids[offsets[begin] : offsets[end]], np.diff(offsets[begin : end + 1]))
                    if end < len(chunk_rows):
                        first.append(first[-1] + self._write_tokens(spool, len(first) - 1))
                    begin = end
            self._write_tokens(spool, len(first) - 1)
        pool_row = np.concatenate(rows) if rows else np.zeros(0, np.uint64)
        assert (pool_row[1:] > pool_row[:-1]).all(), "documents are stored once each, in pool-row order"
        self._stored = _TokenFiles(pool_row, np.array(first, np.int64))

    def _write_tokens(self, spool: _Spool, file: int) -> int:
        """Close the spooled documents into a file of `tokens/`; how many there were."""
        rows, ids, offsets = spool.arrays()
        lists = pa.LargeListArray.from_arrays(
            pa.array(offsets, pa.int64()), pa.Array.from_buffers(self._ids, len(ids), [None, pa.py_buffer(ids)])
        )
        self._arrow(f"tokens/{file:05d}.arrow", pa.record_batch([pa.array(rows, pa.uint64()), lists], schema=tokens_schema(self._ids)))
        spool.clear()
        return len(rows)

    def plan(self, stage: StagePlan, pool_row: npt.NDArray[np.uint64]) -> None:
        """Write `plan/<stage>`; `pool_row` holds the pool row of each document the plan's `document` column means."""
        assert self._stored is not None, "tokens are written before the plan"
        document = np.searchsorted(self._stored.pool_row, pool_row[stage.document])
        assert (self._stored.pool_row[document] == pool_row[stage.document]).all(), "every planned document is stored"
        file = np.searchsorted(self._stored.first, document, side="right") - 1
        columns = [file, document - self._stored.first[file], stage.start, stage.length, stage.epoch]
        spans = pa.record_batch(
            [pa.array(column.astype(field.type.to_pandas_dtype())) for column, field in zip(columns, SPANS, strict=True)], schema=SPANS
        )
        sequences = pa.record_batch([pa.array(stage.component, pa.uint16()), pa.array(stage.first_span, pa.uint64())], schema=SEQUENCES)
        self._arrow(f"plan/{stage.name}.arrow", sequences)
        self._arrow(f"plan/{stage.name}.spans.arrow", spans)

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
        if any("tokens/".startswith(beginning) for beginning in beginnings):
            found = stored(manifest)
            self._stored = _TokenFiles(found.row.astype(np.uint64), found.first)

    def visits(self, history: History, documents: Stored) -> None:
        """Write what was read of each stored document before the plan begins."""
        self._arrow(VISITS_PATH, visits_table(history, documents))

    def holdout(self, source: str, held: Holdout) -> None:
        """Write `holdout/<source>.arrow` and count it for the header."""
        ids = pa.LargeListArray.from_arrays(pa.array(held.offsets, pa.int64()), pa.array(held.ids, self._ids))
        columns = [pa.array(held.pool_row, pa.uint64()), pa.array(held.component, pa.uint16()), pa.array(held.bytes, pa.uint32()), ids]
        self._arrow(f"holdout/{source}.arrow", pa.record_batch(columns, schema=holdout_schema(self._ids)))
        self._holdout[source] = {"documents": len(held.pool_row), "tokens": int(held.offsets[-1] - held.offsets[0])}

    def pool(self, number: int, table: pa.Table) -> None:
        """Write `pool/<number>.parquet`: the rows that follow those of `number - 1`, in the schema of `mixing.pool`."""
        path = f"pool/{number:05d}.parquet"
        pq.write_table(table, self._new(path), compression="zstd")
        self._files.append({"path": path, "rows": table.num_rows, "digest": content_digest(table)})

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

    def _arrow(self, path: str, batch: pa.RecordBatch) -> None:
        """One uncompressed record batch; the content digest is taken from the values just written."""
        with pa.OSFile(str(self._new(path)), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self._files.append({"path": path, "rows": batch.num_rows, "digest": content_digest(pa.Table.from_batches([batch]))})


class _Spool:
    """The ids of one tokens file on their way: appended to a scratch file, then mapped, because a record batch is written in one piece."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._path = folder / "spool"
        self._file = self._path.open("w+b")
        self.clear()

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._rows: list[npt.NDArray[np.uint64]] = []
        self._lengths: list[npt.NDArray[np.int64]] = []
        self.ids_written = 0
        self.documents = 0

    def add(self, rows: npt.NDArray[np.uint64], ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        self._file.write(np.ascontiguousarray(ids).data)
        self._rows.append(rows)
        self._lengths.append(lengths)
        self.ids_written += len(ids)
        self.documents += len(rows)

    def arrays(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[np.int64]]:
        self._file.flush()
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        rows = np.concatenate([np.zeros(0, np.uint64), *self._rows])
        if not self.ids_written:
            return rows, np.zeros(0, self._dtype), np.cumsum(lengths)
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return rows, np.frombuffer(mapped, self._dtype, self.ids_written), np.cumsum(lengths)

    def close(self) -> None:
        self._file.close()
        self._path.unlink()


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


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
