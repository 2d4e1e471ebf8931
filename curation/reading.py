"""One input file, record by record: every record comes out either usable or with the reason why not.

Formats: JSON Lines (plain, gzip with several members, zstd with several frames; told apart by their first bytes, not by their names) and Parquet. Position is the byte
offset of the record's first byte in the decoded stream for JSON Lines (lines end at `\\n` only, a byte order mark at the start belongs to the first line) and the row
index for Parquet. Blank lines are not records. Nothing here raises for bad data: a damaged stream ends with one record that says so, and what was read before it stays.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

BLOCK = 4 << 20
DECODED_AT_ONCE = 4 << 10  # compressed bytes: what stands in front of damage is lost only within such a piece
EXCERPT = 200
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Value = str | int | float | bool | None


class Fields(NamedTuple):
    """Where a record's parts stand: the names of its text, of its key (or none), and of the columns it carries with their types."""

    text: str
    key: str | None
    columns: dict[str, str]


class Record(NamedTuple):
    """`reason` is None for a usable record, whose `text` is then str and not yet cleaned; otherwise `excerpt` shows what was found."""

    position: int
    size: int
    text: str | None
    key: str | None
    columns: tuple[Value, ...]
    reason: str | None
    excerpt: str


def _refused(position: int, size: int, reason: str, raw: bytes | str) -> Record:
    head = raw[:EXCERPT].decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw[:EXCERPT]
    safe = "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in head)
    return Record(position, size, None, None, (), reason, safe)


# --- JSON Lines


def read_json_lines(path: Path, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Record]:
    """Records whose first byte lies in `[begin, end)` of the decoded stream; a range is only asked of plain files."""
    for position, line in _lines(path, begin, end):
        if isinstance(line, str):
            yield _refused(position, 0, line, "")
        elif line.strip(b" \t\r"):
            yield _from_line(position, line, fields)


def _lines(path: Path, begin: int, end: int | None) -> Iterator[tuple[int, bytes | str]]:
    """(offset, line without its end and a byte order mark); a str instead of bytes is the reason why the stream broke off there."""
    for position, line in _stored_lines(path, begin, end):
        yield position, line.removeprefix(BYTE_ORDER_MARK) if position == 0 and isinstance(line, bytes) else line


def _stored_lines(path: Path, begin: int, end: int | None) -> Iterator[tuple[int, bytes | str]]:
    with path.open("rb") as handle:
        position = _seek_line(handle, begin) if begin else 0
        parts: list[bytes] = []  # of the line that has begun
        for block in _blocks(handle):
            if isinstance(block, str):
                last = b"".join(parts)
                if last:
                    yield position, last
                yield position + len(last), block
                return
            first, *others = block.split(b"\n")
            parts.append(first)
            for other in others:
                if end is not None and position >= end:
                    return
                line = b"".join(parts)
                yield position, line
                position += len(line) + 1
                parts = [other]
        last = b"".join(parts)
        if last and (end is None or position < end):
            yield position, last


def _blocks(handle: io.BufferedReader) -> Iterator[bytes | str]:
    """Decoded bytes in order, everything that can be decoded; then, if the stream is damaged, the reason."""
    kind = _compression(handle)
    if kind == "plain":
        while block := handle.read(BLOCK):
            yield block
        return
    decoder, ended = _decoder(kind), False
    while chunk := handle.read(BLOCK // 16):
        decoded = []
        for begin in range(0, len(chunk), DECODED_AT_ONCE):
            piece = chunk[begin : begin + DECODED_AT_ONCE]
            while piece:
                if ended:
                    decoder, ended = _decoder(kind), False
                try:
                    decoded.append(decoder.decompress(piece))
                except (zlib.error, zstandard.ZstdError) as error:
                    yield b"".join(decoded)
                    yield f"damaged {kind} stream: {_one_line(error)}"
                    return
                ended = decoder.eof
                piece = decoder.unused_data if ended else b""
        yield b"".join(decoded)
    if not ended:
        yield f"damaged {kind} stream: it ends too early"


def decoded_size(path: Path, sample: int) -> int:
    """About how many bytes a file decodes to, from how far its first `sample` decoded bytes reach into it."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        if _compression(handle) == "plain":
            return size
        decoded = 0
        for block in _blocks(handle):
            decoded += len(block) if isinstance(block, bytes) else 0
            if decoded >= sample:
                break
        return round(decoded * size / max(handle.tell(), 1))


def _decoder(kind: str) -> Any:
    """A decoder of one member or frame, of any window that zstd can write (`--long=31`)."""
    return zlib.decompressobj(wbits=31) if kind == "gzip" else zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def _one_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _compression(handle: io.BufferedReader) -> str:
    here = handle.tell()
    handle.seek(0)
    magic = handle.read(4)
    handle.seek(here)
    if magic[:2] == b"\x1f\x8b":
        return "gzip"
    skippable = magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50  # pzstd begins with such a frame
    return "zstd" if skippable or magic == b"\x28\xb5\x2f\xfd" else "plain"


def is_compressed(path: Path) -> bool:
    with path.open("rb") as handle:
        return _compression(handle) != "plain"


def _seek_line(handle: io.BufferedReader, begin: int) -> int:
    """Moves to the first line that starts at or after `begin`; a line that starts exactly there belongs to this range."""
    handle.seek(begin - 1)
    position = begin - 1
    while block := handle.read(BLOCK):
        found = block.find(b"\n")
        if found >= 0:
            position += found + 1
            handle.seek(position)
            return position
        position += len(block)
    return position


def _from_line(position: int, line: bytes, fields: Fields) -> Record:
    size = len(line) + 1
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _refused(position, size, _why_broken(line), line)
    if not isinstance(values, dict):
        return _refused(position, size, "not a JSON object", line)
    text = values.get(fields.text)
    if not isinstance(text, str):
        reason = f"no '{fields.text}'" if text is None else f"'{fields.text}' is not a string"
        return _refused(position, size, reason, line)
    key = as_key(_exact(values.get(fields.key), line, fields.key)) if fields.key else None
    return Record(position, size, text, key, tuple(as_type(values.get(name), kind) for name, kind in fields.columns.items()), None, "")


def _why_broken(line: bytes) -> str:
    if b"\0" in line:
        return "raw NUL byte"
    try:
        line.decode()
    except UnicodeDecodeError:
        return "invalid UTF-8"
    return "broken JSON"


def _exact(value: object, line: bytes, name: str) -> object:
    """A key as it is written: orjson reads an integer beyond 64 bits as a float, which would give many documents one key."""
    if not isinstance(value, float):
        return value
    try:
        return json.loads(line, parse_int=str, parse_float=str)[name]
    except RecursionError:
        return value


def as_key(value: object) -> str | None:
    """A user's key as text: null stays null, numbers as they are written, what is no text as JSON."""
    return None if value is None else _as_text(value)


def _as_text(value: object) -> str:
    """Text and bytes as they are, bytes that are no UTF-8 as escapes, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | int | float | list | tuple | dict):
        return orjson.dumps(value, default=_as_text).decode()
    return str(value)


def as_type(value: object, kind: str) -> Value:
    """`value` as a column of type `kind`; what does not fit is null."""
    if kind == "string":
        return as_key(value)
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "float64":
        return float(value) if value == value else None
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def sniff_columns(path: Path, names: list[str], records: int = 1000) -> dict[str, str]:
    """Types for columns that a JSON Lines file carries, from its first records: the narrowest of bool, int64, float64, string that holds all of them."""
    seen: dict[str, set[type]] = {name: set() for name in names}
    for count, (_, line) in enumerate(_lines(path, 0, None)):
        if count == records or isinstance(line, str):
            break
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(values, dict):
            for name in names:
                seen[name].add(type(values.get(name)))
    return {name: _narrowest(types - {type(None)}) for name, types in seen.items()}


def _narrowest(types: set[type]) -> str:
    for allowed, name in (({bool}, "bool"), ({int}, "int64"), ({int, float}, "float64")):
        if types and types <= allowed:
            return name
    return "string"


# --- Parquet


def read_parquet(path: Path, fields: Fields, first_group: int = 0, last_group: int | None = None) -> Iterator[Record]:
    """The rows of row groups `[first_group, last_group)`; to the end without a last one."""
    file = pq.ParquetFile(path)
    position = sum(file.metadata.row_group(group).num_rows for group in range(first_group))
    names = [fields.text, *([fields.key] if fields.key else []), *fields.columns]
    for group in range(first_group, file.num_row_groups if last_group is None else last_group):
        rows = file.metadata.row_group(group).num_rows
        try:
            table = file.read_row_group(group, columns=list(dict.fromkeys(names)), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            for row in range(rows):
                yield _refused(position + row, 0, f"damaged row group: {_one_line(error)}", "")
        else:
            yield from _from_table(position, table, fields)
        position += rows


def _from_table(position: int, table: pa.Table, fields: Fields) -> Iterator[Record]:
    texts = _decoded_column(table[fields.text])
    keys = _decoded_column(table[fields.key]).to_pylist() if fields.key else [None] * table.num_rows
    carried = [_decoded_column(table[name]).to_pylist() for name in fields.columns]
    kinds = list(fields.columns.values())
    for row, (raw, key) in enumerate(zip(texts.to_pylist(), keys, strict=True)):
        here = position + row
        if raw is None:
            yield _refused(here, 0, f"no '{fields.text}'", "")
        elif not isinstance(raw, bytes):
            yield _refused(here, 8, f"'{fields.text}' is not a string", _as_text(raw))
        else:
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                yield _refused(here, len(raw), "invalid UTF-8", raw)
                continue
            columns = tuple(as_type(values[row], kind) for values, kind in zip(carried, kinds, strict=True))
            yield Record(here, len(raw), text, as_key(key), columns, None, "")


def _decoded_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose values Python can hold: text as bytes, since a file may call UTF-8 what is not, and times, of which Python knows too few, as Arrow writes them."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _decoded_column(column.cast(kind.value_type))
    if pa.types.is_duration(kind):
        return column.cast(pa.int64())
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.large_string())
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind in (pa.string_view(), pa.binary_view())
    return column.cast(pa.large_binary()) if text else column


def parquet_columns(schema: pa.Schema) -> dict[str, str]:
    """The column types of a Parquet schema as this module spells them; a type with no such name is carried as text."""

    def spelled(kind: pa.DataType) -> str:
        if pa.types.is_dictionary(kind):
            return spelled(kind.value_type)
        if pa.types.is_boolean(kind):
            return "bool"
        if pa.types.is_integer(kind):
            return "int64"
        return "float64" if pa.types.is_floating(kind) else "string"

    return {field.name: spelled(field.type) for field in schema}


# --- clean: the only edits of text, before it is written

_C0 = bytes(code for code in (*range(32), 127) if code not in (9, 10, 13))
_C1 = re.compile("[\x80-\x9f]")
_VISIBLE = re.compile(
    r"[^\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff\x00-\x1f\x7f-\x9f]"
)


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _control_characters(text: str) -> str:
    """Without C0 (tab, line feed and carriage return stay), DEL and C1. On bytes: deleting from UTF-8 runs at memory speed, a regular expression does not."""
    raw = text.encode()
    kept = raw.translate(None, _C0)
    text = text if len(kept) == len(raw) else kept.decode()
    return text if text.isascii() else _C1.sub("", text)


def _line_endings(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


CLEAN: dict[str, Callable[[str], str]] = {"nfc": _nfc, "control_characters": _control_characters, "line_endings": _line_endings}


def cleaned(text: str, names: Sequence[str]) -> str:
    """`text` after the named clean steps, in their order."""
    for name in names:
        text = CLEAN[name](text)
    return text


def has_visible(text: str) -> bool:
    """Whether any character would show on paper: not white space, not zero width, not a control character."""
    return _VISIBLE.search(text) is not None
