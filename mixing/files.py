"""The large files of a manifest, each written by itself: on any machine, in any order, at the same time.

In: token ids of planned documents, the stages of a plan, pool tables. Out: a `Piece` for each file, which says what the manifest's header has to know of it; `mixing.write.ManifestWriter` takes
the pieces together. Which documents share a file follows from their lengths alone, so the bytes depend neither on who writes which file nor on how the documents arrive (chunking). Memory does
not grow with the tokens: ids are spooled to disk and mapped while their file is written.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mixing.canonical import content_digest
from mixing.findings import Stored
from mixing.manifest import SEQUENCES, SPANS, tokens_schema

if TYPE_CHECKING:
    from mixing.plan import StagePlan

    Documents = Iterable[tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[np.int64]]]

TOKEN_FILE_IDS = 1 << 28
"""A file of `tokens/` holds at most this many ids (512 MiB or 1 GiB), or one longer document."""

ID_TYPES = {"uint16": pa.uint16(), "uint32": pa.uint32()}


class Piece(NamedTuple):
    """A file of a manifest: the folder it lies in, its path there and in the manifest, its rows, the digest of its values (`content_digest`), and its bytes' sha256."""

    folder: Path
    path: str
    rows: int
    digest: str
    sha256: str


def first_of_files(lengths: npt.NDArray[np.int64], ids: int = TOKEN_FILE_IDS) -> npt.NDArray[np.int64]:
    """The index of each token file's first document, for documents of so many ids in their order: a file takes what fits in `ids`, and at least one document."""
    ends = np.cumsum(lengths)
    first = [0]
    while True:
        room = ids + (int(ends[first[-1] - 1]) if first[-1] else 0)
        end = max(first[-1] + 1, int(np.searchsorted(ends, room, side="right")))
        if end >= len(lengths):
            return np.array(first, np.int64)
        first.append(end)


def write_tokens(folder: Path, number: int, dtype: str, documents: Documents) -> Piece:
    """Write `tokens/<number>.arrow` below `folder`. Each element of `documents` holds pool rows, their ids joined, and n + 1 offsets into these; rows ascend over all elements."""
    ids_type = ID_TYPES[dtype]
    with _Spool(_new(folder, f"tokens/{number:05d}.spool"), np.dtype(dtype)) as spool:
        for rows, ids, offsets in documents:
            assert ids.dtype == dtype, f"ids of {ids.dtype}, the manifest stores {dtype}"
            assert len(offsets) == len(rows) + 1
            spool.add(np.asarray(rows, np.uint64), ids, np.diff(offsets))
        pool_row, joined, ends = spool.arrays()
        assert (pool_row[1:] > pool_row[:-1]).all(), "documents are stored once each, in pool-row order"
        values = pa.Array.from_buffers(ids_type, len(joined), [None, pa.py_buffer(joined)])
        lists = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values)
        batch = pa.record_batch([pa.array(pool_row, pa.uint64()), lists], schema=tokens_schema(ids_type))
        return write_arrow(folder, f"tokens/{number:05d}.arrow", batch)


def write_plan(folder: Path, stage: StagePlan, pool_row: npt.NDArray[np.int64], stored: Stored) -> list[Piece]:
    """Write `plan/<stage>` below `folder`; `pool_row` (i64) holds the pool row of each document the plan's `document` column means."""
    document = np.searchsorted(stored.row, pool_row[stage.document])
    assert (stored.row[document] == pool_row[stage.document]).all(), "every planned document is stored"
    file = np.searchsorted(stored.first, document, side="right") - 1
    columns = [file, document - stored.first[file], stage.start, stage.length, stage.epoch]
    spans = pa.record_batch(
        [pa.array(column.astype(field.type.to_pandas_dtype())) for column, field in zip(columns, SPANS, strict=True)], schema=SPANS
    )
    sequences = pa.record_batch([pa.array(stage.component, pa.uint16()), pa.array(stage.first_span, pa.uint64())], schema=SEQUENCES)
    return [write_arrow(folder, f"plan/{stage.name}.arrow", sequences), write_arrow(folder, f"plan/{stage.name}.spans.arrow", spans)]


def write_pool(folder: Path, number: int, table: pa.Table) -> Piece:
    """Write `pool/<number>.parquet` below `folder`: the rows that follow those of `number - 1`, in the schema of `mixing.pool`."""
    path = f"pool/{number:05d}.parquet"
    pq.write_table(table, _new(folder, path), compression="zstd")
    return Piece(folder, path, table.num_rows, content_digest(table), file_sha256(folder / path))


def write_arrow(folder: Path, path: str, batch: pa.RecordBatch) -> Piece:
    """One uncompressed record batch; the content digest is taken from the values just written."""
    with pa.OSFile(str(_new(folder, path)), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Piece(folder, path, batch.num_rows, content_digest(pa.Table.from_batches([batch])), file_sha256(folder / path))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new(folder: Path, path: str) -> Path:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


class _Spool:
    """The ids of one tokens file on their way: appended to a scratch file, then mapped, because a record batch is written in one piece."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path, self._dtype = path, dtype
        self._rows: list[npt.NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        self._lengths: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]

    def __enter__(self) -> _Spool:
        self._file = self._path.open("w+b")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, rows: npt.NDArray[np.uint64], ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        self._file.write(np.ascontiguousarray(ids).data)
        self._rows.append(rows)
        self._lengths.append(lengths)

    def arrays(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[np.int64]]:
        """(rows, ids, offsets)."""
        self._file.flush()
        ends = np.cumsum(np.concatenate(self._lengths))
        rows = np.concatenate(self._rows)
        if not ends[-1]:
            return rows, np.zeros(0, self._dtype), ends
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return rows, np.frombuffer(mapped, self._dtype, int(ends[-1])), ends
