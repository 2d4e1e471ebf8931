"""Records from tables: Parquet and Arrow IPC (the file format, also called Feather, and the stream format).

Position is the row index over all row groups or record batches. A damaged row group or batch is quarantined row by row from where it breaks, and what stands after it is read;
of a record batch that does not say how many rows it had, one record stands for all of them. A Parquet file without its footer holds nothing that can be read; an Arrow file
without its footer is read as the stream it begins with. A column that a file does not have is null in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.formats.records import (
    BYTES_AT_ONCE,
    EXCERPT,
    RECORDS_AT_ONCE,
    Chunk,
    Fields,
    Record,
    Value,
    as_columns,
    as_key,
    as_text,
    chunk_of,
    one_line,
    refused,
)
from mixing.remote import Place, native

ARROW_MAGIC = b"ARROW1"
UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError)  # the last from damaged names of columns


def open_parquet(path: Place) -> pq.ParquetFile:
    return pq.ParquetFile(native(path), page_checksum_verification=True)


def read_parquet(path: Place, fields: Fields, first_group: int = 0, last_group: int | None = None) -> Iterator[Chunk]:
    """The rows of row groups `[first_group, last_group)`; to the end without a last one."""
    try:
        file = open_parquet(path)
    except UNREADABLE as error:
        yield chunk_of([Record(0, 0, None, None, (), "not a Parquet file", str(error)[:EXCERPT])], len(fields.columns))
        return
    with file:
        names = [name for name in _names(fields) if name in file.schema_arrow.names]
        position = sum(file.metadata.row_group(group).num_rows for group in range(first_group))
        for group in range(first_group, file.num_row_groups if last_group is None else last_group):
            facts = file.metadata.row_group(group)
            end = position + facts.num_rows
            rows = min(RECORDS_AT_ONCE, max(1, facts.num_rows * BYTES_AT_ONCE // max(1, facts.total_byte_size)))
            try:
                for batch in file.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
                    yield _from_table(position, pa.Table.from_batches([batch]), fields)
                    position += batch.num_rows
            except UNREADABLE as error:
                lost = "damaged row group"
                yield chunk_of([refused(row, 0, lost, one_line(error)) for row in range(position, end)], len(fields.columns))
            position = end


def parquet_groups(path: Place) -> list[int]:
    """Uncompressed bytes of each row group; a file whose footer cannot be read counts as one group, which reading then quarantines."""
    try:
        with open_parquet(path) as file:
            return [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    except UNREADABLE:
        return [0]


def _names(fields: Fields) -> list[str]:
    named = [fields.text, fields.key, *fields.columns]
    return list(dict.fromkeys(name for name in named if name is not None))


# --- Arrow IPC


def read_arrow(path: Place, fields: Fields, first_batch: int = 0, last_batch: int | None = None) -> Iterator[Chunk]:
    """The rows of record batches `[first_batch, last_batch)`; a stream is only read whole."""
    with native(path) as source:
        try:
            file = pa.ipc.open_file(source)
        except UNREADABLE:
            yield from _read_stream(source, fields)
            return
        position = sum(_rows(file, batch) for batch in range(first_batch))
        for number in range(first_batch, file.num_record_batches if last_batch is None else last_batch):
            try:
                chunk = _from_batch(position, file.get_batch(number), fields)
            except UNREADABLE as error:
                lost = "damaged record batch"
                chunk = chunk_of(
                    [refused(position + row, 0, lost, one_line(error)) for row in range(_rows(file, number))], len(fields.columns)
                )
            yield chunk
            position += len(chunk.position)


def _read_stream(source: Any, fields: Fields) -> Iterator[Chunk]:
    """The batches of a stream up to its end or its damage."""
    cut = _to_stream(source)
    position, opened = 0, False
    try:
        with pa.ipc.open_stream(source) as reader:
            opened = True
            for batch in reader:
                chunk = _from_batch(position, batch, fields)
                yield chunk
                position += len(chunk.position)
    except UNREADABLE as error:
        reason = "damaged record batch" if opened else "not an Arrow file"
        yield chunk_of([refused(position, 0, reason, one_line(error))], len(fields.columns))
    else:
        if cut:
            yield chunk_of([refused(position, 0, "damaged record batch: the file ends too early", "")], len(fields.columns))


def _to_stream(source: Any) -> bool:
    """Moves to where the stream begins; whether it is that of a file, which has lost its footer."""
    source.seek(0)
    cut = bool(source.read(len(ARROW_MAGIC)) == ARROW_MAGIC)
    source.seek(8 if cut else 0)
    return cut


def _rows(file: Any, number: int) -> int:
    """How many rows a batch has: one, if it does not say."""
    try:
        return int(file.get_batch(number).num_rows)
    except UNREADABLE:
        return 1


def _from_batch(position: int, batch: pa.RecordBatch, fields: Fields) -> Chunk:
    """Arrow trusts its buffers: offsets out of bounds would be read. So they are checked, and text as bytes, because one bad letter is one record's damage."""
    columns = {name: _as_bytes(batch.column(name)) for name in _names(fields) if name in batch.schema.names}
    for column in columns.values():
        column.validate(full=True)
    table = pa.table({"": pa.nulls(batch.num_rows), **columns})  # a table without columns has no rows
    return _from_table(position, table, fields)


def _as_bytes(column: pa.Array) -> pa.Array:
    same = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(column.type)
    return column if same is None else column.view(same)


def arrow_batches(path: Place, size: int) -> list[int]:
    """About the bytes of each record batch of a file; a stream, which can only be read from its start, is one."""
    try:
        with native(path) as source, pa.ipc.open_file(source) as file:
            return [size // max(1, file.num_record_batches)] * file.num_record_batches
    except UNREADABLE:
        return [size]


# --- rows


def _from_table(position: int, table: pa.Table, fields: Fields) -> Chunk:
    """All rows at once if every text can be used, and one by one otherwise."""

    def values(name: str | None) -> list[Any]:
        return [None] * table.num_rows if name not in table.column_names else decoded_column(table[name]).to_pylist()

    keys: list[str | None] = [as_key(key) for key in values(fields.key)]
    carried, misfits = as_columns(values, fields.columns)
    texts = _texts(table, fields)
    if texts is not None:
        sizes = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
        rows = np.arange(table.num_rows)
        return Chunk(position + rows, sizes, rows, texts, keys, carried, [], changed=misfits)
    columns = list(zip(*carried, strict=True)) if carried else [()] * table.num_rows
    chunk = chunk_of(
        [_record(position + row, raw, keys[row], columns[row], fields) for row, raw in enumerate(values(fields.text))], len(carried)
    )
    return chunk._replace(changed={name: mask[chunk.usable] for name, mask in misfits.items()})


def _texts(table: pa.Table, fields: Fields) -> list[str] | None:
    """The texts, if all of them are text."""
    if fields.text is None:
        return [""] * table.num_rows
    if fields.text not in table.column_names:
        return None
    column = decoded_column(table[fields.text])
    if column.null_count or column.type != pa.large_binary():
        return None
    try:
        texts: list[str] = column.cast(pa.large_string()).to_pylist()
    except pa.ArrowInvalid:  # not UTF-8
        return None
    return texts


def _record(position: int, raw: Any, key: str | None, columns: tuple[Value, ...], fields: Fields) -> Record:
    if raw is None:
        return refused(position, 0, f"no '{fields.text}'", "")
    if not isinstance(raw, bytes):
        return refused(position, 8, f"'{fields.text}' is not a string", as_text(raw))
    try:
        return Record(position, len(raw), raw.decode(), key, columns, None, "")
    except UnicodeDecodeError:
        return refused(position, len(raw), "invalid UTF-8", raw)


def decoded_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose values Python can hold: text as bytes, since a file may call UTF-8 what is not, and times, of which Python knows too few, as Arrow writes them."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return decoded_column(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_dictionary(kind):
        return decoded_column(column.cast(kind.value_type))
    if pa.types.is_duration(kind):
        return column.cast(pa.int64())
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.large_string())
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind in (pa.string_view(), pa.binary_view())
    return column.cast(pa.large_binary()) if text else column


def spelled_types(schema: pa.Schema) -> list[tuple[str, str | None]]:
    """The column types of a schema as the pool has them: string, bool, int64, float64; any other type is carried as text."""

    def spelled(kind: pa.DataType) -> str:
        if isinstance(kind, pa.BaseExtensionType):
            return spelled(kind.storage_type)
        if pa.types.is_dictionary(kind):
            return spelled(kind.value_type)
        if pa.types.is_boolean(kind):
            return "bool"
        if pa.types.is_integer(kind):
            return "int64"
        return "float64" if pa.types.is_floating(kind) else "string"

    return [(field.name, spelled(field.type)) for field in schema]


def parquet_columns(path: Place) -> list[tuple[str, str | None]] | None:
    """(name, type) of a Parquet file's columns; None for a file that cannot be opened."""
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
    except UNREADABLE:
        return None
    return spelled_types(schema)


def arrow_columns(path: Place) -> list[tuple[str, str | None]] | None:
    """(name, type) of an Arrow file's columns; None for a file that cannot be opened."""
    with native(path) as source:
        try:
            with pa.ipc.open_file(source) as file:
                return spelled_types(file.schema)
        except UNREADABLE:
            _to_stream(source)
        try:
            with pa.ipc.open_stream(source) as reader:
                return spelled_types(reader.schema)
        except UNREADABLE:
            return None
