"""A stream of bytes in UTF-8, and its lines.

Compression (gzip with several members, zstd with several frames, bzip2) and encoding (UTF-8, UTF-16, UTF-32) are told by the first bytes, never by a name. Lines end at `\n` only,
a byte order mark at the start belongs to the first line. Nothing here raises for bad data: what stands before damage is given, then the reason.
"""

from __future__ import annotations

import bz2
import codecs
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

import zstandard

from mixing.remote import Place

BLOCK = 1 << 20  # what is parsed at a time: as much as the caches of a core hold
DECODED_AT_ONCE = 4 << 10  # compressed bytes: what stands in front of damage is lost only within such a piece
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def lines_of(path: Place, begin: int, end: int | None) -> Iterator[tuple[int, bytes | str]]:
    """(offset, line without its end and a byte order mark) of the lines whose first byte lies in `[begin, end)`; a str instead of bytes is the reason why the stream broke off there."""
    for position, block in line_blocks(path, begin, end):
        if isinstance(block, str):
            yield position, block
            continue
        lines = block.split(b"\n")
        if block.endswith(b"\n"):
            lines.pop()
        for line in lines:
            yield position, line.removeprefix(BYTE_ORDER_MARK) if position == 0 else line
            position += len(line) + 1


def line_blocks(path: Place, begin: int, end: int | None) -> Iterator[tuple[int, bytes | str]]:
    """As `lines_of`, many whole lines at a time, with their ends; a line longer than a block stands alone or ends one."""
    with path.open("rb") as handle:
        position = _seek_line(handle, begin) if begin else 0
        parts: list[bytes] = []  # of the line that has begun
        for block in decoded_blocks(handle) if begin else _in_utf8(decoded_blocks(handle)):
            if end is not None and position >= end:
                return
            if isinstance(block, str):
                last = b"".join(parts)
                if last:
                    yield position, last
                yield position + len(last), block
                return
            cut = block.rfind(b"\n") + 1
            if not cut:
                parts.append(block)
                continue
            lines = b"".join([*parts, block[:cut]])
            if end is not None and position + len(lines) >= end:
                yield position, lines[: lines.index(b"\n", end - position - 1) + 1]  # the line that holds the last byte of the range
                return
            yield position, lines
            position += len(lines)
            parts = [block[cut:]]
        last = b"".join(parts)
        if last and (end is None or position < end):
            yield position, last


def decoded_blocks(handle: BinaryIO) -> Iterator[bytes | str]:
    """Unpacked bytes in order, everything that can be unpacked; then, if the stream is damaged, the reason."""
    kind = compression_of(handle)
    if kind == "plain":
        while block := handle.read(BLOCK):
            yield block
        return
    decoder, ended = _decoder(kind), False
    while chunk := handle.read(BLOCK // 4):
        decoded = []
        for begin in range(0, len(chunk), DECODED_AT_ONCE):
            piece = chunk[begin : begin + DECODED_AT_ONCE]
            while piece:
                if ended:
                    decoder, ended = _decoder(kind), False
                try:
                    decoded.append(decoder.decompress(piece))
                except (zlib.error, zstandard.ZstdError, OSError):
                    yield b"".join(decoded)
                    yield f"damaged {kind} stream"
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
    name = encoding_of(head[:4])
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


def encoding_of(head: bytes) -> str | None:
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
        for block in _in_utf8(decoded_blocks(handle)):
            if isinstance(block, str):
                reason = block
            else:
                parts.append(block)
    return b"".join(parts).removeprefix(BYTE_ORDER_MARK), reason


def decoded_head(path: Place, size: int = 1 << 16) -> bytes:
    """The first bytes of a file in UTF-8, without a byte order mark."""
    head = b""
    with path.open("rb") as handle:
        for block in _in_utf8(decoded_blocks(handle)):
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
        for block in _in_utf8(decoded_blocks(handle)):
            decoded += len(block) if isinstance(block, bytes) else 0
            if decoded >= sample:
                break
        return round(decoded * size / max(handle.tell(), 1))


def _decoder(kind: str) -> Any:
    """A decoder of one member or frame, of any window that zstd can write (`--long=31`)."""
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    return zlib.decompressobj(wbits=31) if kind == "gzip" else zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def compression_of(handle: BinaryIO) -> str:
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
        return compression_of(handle) != "plain" or encoding_of(handle.read(4)) is not None


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
