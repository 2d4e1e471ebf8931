"""Records from a stream of bytes: what every record is, how a stream is decoded, and JSON Lines.

Compression (gzip with several members, zstd with several frames, bzip2) and encoding (UTF-8, UTF-16, UTF-32) are told by the first bytes, never by a name. Position is the byte
offset of the record's first byte in the stream decoded to UTF-8 (lines end at `\\n` only, a byte order mark at the start belongs to the first line). Blank lines are not
records. Nothing here raises for bad data: a record that cannot be used says why, a damaged stream ends with one record that says so, and what was read before it stays.
What is no JSON by the letter but can be read is read: several objects on a line are several records, NaN and Infinity are null, a lone surrogate outside the text is
shown as its escape. Of a name written twice in an object the last counts.
"""

from __future__ import annotations

import bz2
import codecs
import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import orjson
import zstandard

from curation.remote import Place

BLOCK = 4 << 20
DECODED_AT_ONCE = 4 << 10  # compressed bytes: what stands in front of damage is lost only within such a piece
EXCERPT = 200
SNIFFED = 4 << 20  # decoded bytes that are looked at for the types of columns
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")

Value = str | int | float | bool | None


class Fields(NamedTuple):
    """Where a record's parts stand: the names of its text (none if an expression will make it), of its key (or none), and of the columns it carries with their types."""

    text: str | None
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


def refused(position: int, size: int, reason: str, raw: bytes | str) -> Record:
    head = raw[:EXCERPT].decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw[:EXCERPT]
    safe = "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in head)
    return Record(position, size, None, None, (), reason, safe)


# --- JSON Lines


def read_json_lines(path: Place, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Record]:
    """Records of the lines whose first byte lies in `[begin, end)` of the decoded stream; a range is only asked of plain files."""
    for position, line in lines_of(path, begin, end):
        if isinstance(line, str):
            yield refused(position, 0, line, "")
        elif line.strip(b" \t\r"):
            try:
                values = orjson.loads(line)
            except orjson.JSONDecodeError:
                yield from _salvaged(position, line, fields)
            else:
                yield _from_values(position, len(line) + 1, values, line, fields)


def lines_of(path: Place, begin: int, end: int | None) -> Iterator[tuple[int, bytes | str]]:
    """(offset, line without its end and a byte order mark); a str instead of bytes is the reason why the stream broke off there."""
    for position, line in _stored_lines(path, begin, end):
        yield position, line.removeprefix(BYTE_ORDER_MARK) if position == 0 and isinstance(line, bytes) else line


def _stored_lines(path: Place, begin: int, end: int | None) -> Iterator[tuple[int, bytes | str]]:
    with path.open("rb") as handle:
        position = _seek_line(handle, begin) if begin else 0
        parts: list[bytes] = []  # of the line that has begun
        for block in _decoded(handle) if begin else _in_utf8(_decoded(handle)):
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


def _decoded(handle: BinaryIO) -> Iterator[bytes | str]:
    """Unpacked bytes in order, everything that can be unpacked; then, if the stream is damaged, the reason."""
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
                except (zlib.error, zstandard.ZstdError, OSError) as error:
                    yield b"".join(decoded)
                    yield f"damaged {kind} stream: {one_line(error)}"
                    return
                ended = decoder.eof
                piece = decoder.unused_data if ended else b""
        yield b"".join(decoded)
    if not ended:
        yield f"damaged {kind} stream: it ends too early"


def _in_utf8(blocks: Iterator[bytes | str]) -> Iterator[bytes | str]:
    """The stream in UTF-8 if it begins as UTF-16 or UTF-32 do, and as it is otherwise. A lone surrogate becomes three bytes that no UTF-8 has, and so is found in its record."""
    head = b""
    for block in blocks:
        if isinstance(block, str):
            yield from (head, block)
            return
        head += block
        if len(head) >= 4:
            break
    name = _encoding(head[:4])
    if name is None:
        yield from chain((head,), blocks)
        return
    decoder = codecs.getincrementaldecoder(name)("surrogatepass")
    for block in chain((head,), blocks):
        if isinstance(block, str):
            yield block
            return
        try:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            yield f"damaged {name} stream: {error.reason}"
            return
    if decoder.getstate()[0]:
        yield f"damaged {name} stream: it ends too early"


def _encoding(head: bytes) -> str | None:
    """The encoding that the first four bytes tell, by a byte order mark or by the zeros between letters; None for UTF-8."""
    marks = (
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    )
    for mark, name in marks:
        if head.startswith(mark):
            return name
    zeros = tuple(byte == 0 for byte in head)
    return "utf-16-le" if zeros == (False, True, False, True) else "utf-16-be" if zeros == (True, False, True, False) else None


def decoded_bytes(path: Place) -> tuple[bytes, str | None]:
    """All of a file in UTF-8, without a byte order mark, and why it broke off, if it did."""
    parts: list[bytes] = []
    reason = None
    with path.open("rb") as handle:
        for block in _in_utf8(_decoded(handle)):
            if isinstance(block, str):
                reason = block
            else:
                parts.append(block)
    return b"".join(parts).removeprefix(BYTE_ORDER_MARK), reason


def decoded_head(path: Place, size: int = 1 << 16) -> bytes:
    """The first bytes of a file in UTF-8, without a byte order mark."""
    head = b""
    with path.open("rb") as handle:
        for block in _in_utf8(_decoded(handle)):
            if isinstance(block, str):
                break
            head += block
            if len(head) >= size:
                break
    return head[:size].removeprefix(BYTE_ORDER_MARK)


def decoded_size(path: Place, sample: int) -> int:
    """About how many bytes a file decodes to, from how far its first `sample` decoded bytes reach into it."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        decoded = 0
        for block in _in_utf8(_decoded(handle)):
            decoded += len(block) if isinstance(block, bytes) else 0
            if decoded >= sample:
                break
        return round(decoded * size / max(handle.tell(), 1))


def _decoder(kind: str) -> Any:
    """A decoder of one member or frame, of any window that zstd can write (`--long=31`)."""
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    return zlib.decompressobj(wbits=31) if kind == "gzip" else zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def one_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _compression(handle: BinaryIO) -> str:
    here = handle.tell()
    handle.seek(0)
    magic = handle.read(10)
    handle.seek(here)
    if magic[:2] == b"\x1f\x8b":
        return "gzip"
    if magic[:3] == b"BZh" and magic[4:] in (b"1AY&SY", b"\x17rE8P\x90"):  # a block, or the end of an empty stream
        return "bzip2"
    skippable = magic[1:4] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50  # pzstd begins with such a frame
    return "zstd" if skippable or magic[:4] == b"\x28\xb5\x2f\xfd" else "plain"


def is_stream(path: Place) -> bool:
    """Whether a file can only be read from its start, because it is compressed or not in UTF-8."""
    with path.open("rb") as handle:
        return _compression(handle) != "plain" or _encoding(handle.read(4)) is not None


def _seek_line(handle: BinaryIO, begin: int) -> int:
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


def _from_values(position: int, size: int, values: object, line: bytes, fields: Fields) -> Record:
    if not isinstance(values, dict):
        return refused(position, size, "not a JSON object", line)
    text = "" if fields.text is None else values.get(fields.text)
    if not isinstance(text, str):
        reason = f"no '{fields.text}'" if text is None else f"'{fields.text}' is not a string"
        return refused(position, size, reason, line)
    key = as_key(_exact(values.get(fields.key), line, fields.key)) if fields.key else None
    return Record(position, size, text, key, tuple(as_type(values.get(name), kind) for name, kind in fields.columns.items()), None, "")


def _integer(digits: str) -> int | float:
    """As orjson reads it: beyond 64 bits a float."""
    value = int(digits) if len(digits) <= 20 else 2**64
    return value if -(2**63) <= value < 2**64 else float(digits)


_LENIENT = json.JSONDecoder(parse_constant=lambda _: None, parse_int=_integer)


def _salvaged(position: int, line: bytes, fields: Fields) -> Iterator[Record]:
    """The records of a line that is not one JSON value; what of it cannot be read is one record more."""
    if b"\0" in line:
        yield refused(position, len(line) + 1, "raw NUL byte", line)
        return
    try:
        text = line.decode()
    except UnicodeDecodeError:
        yield refused(position, len(line) + 1, "invalid UTF-8", line)
        return
    begin, reason = _skip_blanks(text, 0), None
    while begin < len(text):
        here = position + len(text[:begin].encode())
        try:
            values, stop = _LENIENT.raw_decode(text, begin)
        except RecursionError:
            reason = "nested too deeply"
        except ValueError:
            reason = "broken JSON"
        part = text[begin:] if reason else text[begin:stop]
        begin = _skip_blanks(text, len(text) if reason else stop)
        size = len(part.encode()) + 1
        if reason:
            yield refused(here, size, reason, part)
        elif isinstance(values, dict) and fields.text is not None and not _storable(values.get(fields.text)):
            yield refused(here, size, "lone surrogate", part)
        else:
            try:
                yield _from_values(here, size, _without_surrogates(values), part.encode(), fields)
            except RecursionError:
                yield refused(here, size, "nested too deeply", part)


def _skip_blanks(text: str, begin: int) -> int:
    while begin < len(text) and text[begin] in " \t\r":
        begin += 1
    return begin


def _storable(value: object) -> bool:
    return not isinstance(value, str) or _SURROGATE.search(value) is None


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value if _storable(value) else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(inner) for name, inner in value.items()}
    return [_without_surrogates(inner) for inner in value] if isinstance(value, list) else value


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
    return None if value is None else as_text(value)


def as_text(value: object) -> str:
    """Text and bytes as they are, bytes that are no UTF-8 as escapes, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | int | float | list | tuple | dict):
        try:
            return orjson.dumps(value, default=as_text).decode()
        except orjson.JSONEncodeError:  # more than 254 levels
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=as_text)
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


def sniff_columns(path: Place, names: list[str], records: int = 1000) -> dict[str, str]:
    """Types of the columns that a JSON Lines file carries, from its first records; a name without a value among them has none."""
    seen: dict[str, set[type]] = {name: set() for name in names}
    for count, (position, line) in enumerate(lines_of(path, 0, None)):
        if count == records or position > SNIFFED or isinstance(line, str):
            break
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(values, dict):
            for name in names:
                seen[name].add(type(values.get(name)))
    return {name: narrowest(types - {type(None)}) for name, types in seen.items() if types - {type(None)}}


def narrowest(types: set[type]) -> str:
    """The narrowest of bool, int64, float64 and string that holds values of all these types."""
    for allowed, name in (({bool}, "bool"), ({int}, "int64"), ({int, float}, "float64")):
        if types <= allowed:
            return name
    return "string"
