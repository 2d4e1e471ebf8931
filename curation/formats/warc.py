"""Records from WARC files (ISO 28500, https://iipc.github.io/warc-specifications): the pages of a crawl, or the texts of a WET file.

Documents are the `response` records of HTTP with a status of 200 to 299 and the `resource` and `conversion` records, as far as their content type is HTML, XHTML or plain text. HTML
becomes its main text as in `curation.formats.web`, plain text stays as it is. All other records (requests, metadata, revisits, redirects, errors, images) are no documents, as blank
lines are none in JSON Lines: they are passed over and not counted, but they have a number. Position is the number of a record among all WARC records of its file.

Damage is one record in quarantine, and reading goes on where the next record certainly begins: after a damaged gzip member at the next member that holds a record, after a wrong
Content-Length or a broken header at the next line that opens a record. A record counts as read only when what follows it shows that it ended where it said. Packed as gzip, by
record or whole, as zstd (without a dictionary of its own) or bzip2. One record is held in memory at a time, never more than `RECORD_BYTES` of it.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from curation.formats import web
from curation.formats.records import Chunk, Fields, Record, in_chunks
from curation.formats.streams import DECODED_AT_ONCE, compression_of, decoded_blocks
from mixing.remote import Place

PACKAGES = (*web.PACKAGES, "warcio", "brotli")
COLUMNS = (*web.COLUMNS, "id", "content_type")
RECORD_BYTES = 32 << 20
HEADER_BYTES = 64 << 10
GZIP_AT_ONCE = 1 << 16
PAGES = ("text/html", "application/xhtml+xml")
TEXTS = ("text/plain",)
VERSION = b"WARC/"
_START = re.compile(rb"(?:\A|(?<=\n))WARC/\d\.\d+\r?\n")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_GZIP_START = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")


class _Stored(NamedTuple):
    """A WARC record as it lies in the file: its header, its block up to `RECORD_BYTES`, whether that is all of it, and the decoded bytes it takes; or the reason why it cannot be read."""

    head: bytes
    block: bytes
    whole: bool
    size: int
    reason: str | None


def read_warc(path: Place, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """The documents of a file; the size of each counts what was passed over before it, so that sizes add up to the decoded file."""
    assert (begin, end) == (0, None)
    return in_chunks(_records(path, fields), len(fields.columns))


def _records(path: Place, fields: Fields) -> Iterator[Record]:
    names, passed = web.wanted(fields), 0
    with path.open("rb") as handle:
        for position, stored in enumerate(_stored_records(handle)):
            passed += stored.size
            page = web.Page({}, stored.reason) if stored.reason else _page_of(stored, names)
            if page is not None:
                yield web.record_of(position, passed, fields, page, stored.head or stored.block)
                passed = 0


# --- one record


def _page_of(stored: _Stored, names: set[str]) -> web.Page | None:
    """What a record holds for its reader; None for one that is no document."""
    from warcio.statusandheaders import StatusAndHeadersParser

    header = StatusAndHeadersParser([], verify=False).parse(io.BytesIO(stored.head))
    kind, url = (header.get_header("WARC-Type") or "").lower(), (header.get_header("WARC-Target-URI") or "").strip("<>")
    content_type, block, http = header.get_header("Content-Type") or "", io.BytesIO(stored.block), None
    if kind == "response" and (url.lower().startswith(("http:", "https:")) or content_type.lower().startswith("application/http")):
        try:
            http = StatusAndHeadersParser([], verify=False).parse(block)
        except EOFError:
            return web.Page({}, "broken HTTP header")
        if not http.protocol.upper().startswith("HTTP/"):
            return web.Page({}, "broken HTTP header")
        if not http.get_statuscode().startswith("2"):
            return None
        content_type = http.get_header("Content-Type") or header.get_header("WARC-Identified-Payload-Type") or ""
    elif kind not in ("resource", "conversion"):
        return None
    media, _, parameters = content_type.partition(";")
    media = media.strip().lower()
    if media not in (*PAGES, *TEXTS):
        return None
    if not stored.whole:
        return web.Page({}, f"a record of more than {RECORD_BYTES >> 20} MiB")
    raw, reason = _payload(block, http)
    if reason is not None:
        return web.Page({}, reason)
    declared = re.search(r"charset\s*=\s*([^;\s]+)", parameters, re.IGNORECASE)
    charset = declared[1] if declared else None
    if media in PAGES:
        page = web.extracted(raw, charset, names - {"url", "date"})
    else:
        text, reason = web.decoded(raw, charset)
        page = web.Page({"text": text}, reason)
    crawled = {"url": url or None, "date": header.get_header("WARC-Date"), "id": header.get_header("WARC-Record-ID"), "content_type": media}
    return page._replace(values=page.values | crawled)


def _payload(block: io.BytesIO, http: Any) -> tuple[bytes, str | None]:
    """The bytes of a page without the encodings of its transfer and content, and why there are none. Crawlers often undo these and leave the header: bytes that are not so encoded stay."""
    raw = block.read()
    if http is None:
        return raw, None
    if "chunked" in (http.get_header("Transfer-Encoding") or "").lower() and re.match(rb"[0-9A-Fa-f]+[ \t]*(;[^\r\n]*)?\r\n", raw):
        from warcio.bufferedreaders import ChunkedDataException, ChunkedDataReader

        try:
            raw = ChunkedDataReader(io.BytesIO(raw), raise_exceptions=True).read()
        except ChunkedDataException:
            return b"", "damaged chunked content"
    encodings = [one.strip().lower() for one in (http.get_header("Content-Encoding") or "").split(",")]
    for encoding in reversed([one for one in encodings if one not in ("", "identity")]):
        unpacked = _unpacked(raw, encoding.removeprefix("x-"))
        if unpacked is None:
            return b"", f"damaged {encoding} content"
        raw = unpacked
    return raw, None


def _unpacked(raw: bytes, encoding: str) -> bytes | None:
    """Content as `gzip`, `deflate` (with or without a zlib header) or `br` packed it, of no more than a page may have and one byte; None if it is damaged or packed otherwise."""
    enough = web.PAGE_BYTES + 1
    if encoding == "br":
        return _unpacked_brotli(raw, enough)
    if encoding not in ("gzip", "deflate"):
        return None
    if encoding == "gzip" and not raw.startswith(b"\x1f\x8b"):
        return raw
    for window in (31,) if encoding == "gzip" else (15, -15):
        decoder = zlib.decompressobj(wbits=window)
        try:
            found = decoder.decompress(raw, enough)
        except zlib.error:
            continue
        return found if decoder.eof or len(found) == enough else None
    return raw if encoding == "deflate" and raw.lstrip()[:1] == b"<" else None


def _unpacked_brotli(raw: bytes, enough: int) -> bytes | None:
    import brotli

    decoder = brotli.Decompressor()
    try:
        found: bytes = decoder.process(raw, output_buffer_limit=enough)
    except brotli.error:
        return raw if raw.lstrip()[:1] == b"<" else None
    return found[:enough] if decoder.is_finished() or len(found) >= enough else None


# --- the file


class _Segment:
    """The decoded bytes from one place where a record begins to the next such place that the packing shows; `reason` says why they broke off, once they have, if they did."""

    def __init__(self, events: Iterator[bytes | str | None]) -> None:
        self._events = events
        self.buffer = bytearray()
        self.ended = False
        self.over = False
        self.reason: str | None = None

    def start(self) -> bool:
        """Moves to the next segment; False after the last."""
        self.ended, self.reason = self.over, None
        return not self.over

    def fill(self, size: int) -> bool:
        """Whether `size` bytes lie in the buffer, read as far as that takes."""
        while len(self.buffer) < size and not self.ended:
            event = next(self._events, "")
            if isinstance(event, bytes):
                self.buffer += event
            else:
                self.ended, self.over, self.reason = True, event == "", event or None
        return len(self.buffer) >= size

    def take(self, size: int) -> bytes:
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken

    def at_start(self) -> bool:
        """Whether a record begins here, or nothing is left, behind line ends."""
        while self.fill(1) and self.buffer[0] in b"\r\n":
            del self.buffer[: len(self.buffer) - len(self.buffer.lstrip(b"\r\n"))]
        return not self.buffer or (self.fill(len(VERSION)) and self.buffer.startswith(VERSION))

    def skip_to_start(self) -> int:
        """Drops bytes up to the next line that opens a record; how many."""
        dropped = 0
        while True:
            found = _START.search(self.buffer)
            size = found.start() if found else max(len(self.buffer) - 16, 0) if not self.ended else len(self.buffer)
            dropped += len(self.take(size))
            if found or not self.fill(len(self.buffer) + 1):
                dropped += 0 if found else len(self.take(len(self.buffer)))
                return dropped


def _stored_records(handle: BinaryIO) -> Iterator[_Stored]:
    """All WARC records of a file, in their order, and one for each damage."""
    segment = _Segment(_marked(_gzip_members(handle) if compression_of(handle) == "gzip" else decoded_blocks(handle)))
    while segment.start():
        while True:
            if not segment.at_start():
                excerpt = bytes(segment.buffer[:200])
                size = segment.skip_to_start()
                yield _Stored(b"", excerpt, False, size, _why(segment, "no WARC record begins here"))
            elif segment.buffer:
                yield _next_record(segment)
            elif segment.reason:
                yield _Stored(b"", b"", False, 0, _why(segment, ""))
            else:
                break


def _next_record(segment: _Segment) -> _Stored:
    """The record that begins here, or the damage in its place, behind which the segment then stands."""
    segment.fill(HEADER_BYTES)
    blank = _BLANK_LINE.search(segment.buffer, 0, HEADER_BYTES)
    head = segment.take(blank.end() if blank else len(VERSION))
    length = re.search(rb"(?mi)^Content-Length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?$", head)
    if length is None:
        size = len(head) + segment.skip_to_start()
        return _Stored(head, b"", False, size, _why(segment, "broken WARC header"))
    size = int(length[1])
    segment.fill(min(size, RECORD_BYTES))
    block = segment.take(min(size, RECORD_BYTES))
    missing = size - len(block)
    while missing and segment.fill(1):
        missing -= len(segment.take(missing))
    if not missing and segment.at_start() and (segment.buffer or not segment.reason):
        return _Stored(head, block, len(block) == size, len(head) + size, None)
    segment.buffer[:0] = block  # a length too great has swallowed the records that begin in it
    dropped = segment.skip_to_start()
    reason = "the file ends within a record" if missing and not segment.buffer and segment.over else "wrong Content-Length"
    return _Stored(head, block, False, len(head) + dropped, _why(segment, reason))


def _why(segment: _Segment, reason: str) -> str:
    """The damage of the stream, if that ended what was dropped, and is not yet told; else `reason`."""
    told, segment.reason = (segment.reason, None) if segment.reason and not segment.buffer else (reason, segment.reason)
    return told


def _marked(events: Iterator[bytes | str | None]) -> Iterator[bytes | str | None]:
    """The events, with only those ends of members (None) at which a record begins: bytes, None, or a str where the stream is damaged."""
    pending: bytearray | None = None  # what has been seen behind an end
    for event in events:
        if isinstance(event, bytes):
            if pending is None:
                yield event
                continue
            pending += event
            if len(pending) < len(VERSION):
                continue
            if pending.startswith(VERSION):
                yield None
            yield bytes(pending)
            pending = None
        else:
            if pending is not None:
                yield bytes(pending) or None
            pending = bytearray() if event is None else None
            if event is not None:
                yield event
    if pending is not None:
        yield bytes(pending) or None


def _gzip_members(handle: BinaryIO) -> Iterator[bytes | str | None]:
    """Unpacked bytes, None at the end of each member, and a str for each damage, behind which the next member that holds a record follows."""
    chunk, place = b"", 0
    while chunk := chunk or handle.read(GZIP_AT_ONCE):
        chunk = chunk.lstrip(b"\0")  # which some writers pad with
        if not chunk:
            continue
        begin, decoder, reason = handle.tell() - len(chunk), zlib.decompressobj(wbits=31), None
        while not decoder.eof and reason is None:
            if place == len(chunk):
                chunk, place = handle.read(GZIP_AT_ONCE), 0
            try:
                block = decoder.decompress(chunk[place : place + DECODED_AT_ONCE])
            except zlib.error:
                reason = "damaged gzip stream"
                break
            if block:
                yield block
            reason = None if chunk else "damaged gzip stream: it ends too early"
            place = min(place + DECODED_AT_ONCE, len(chunk))
        if reason is None:
            chunk, place = chunk[place - len(decoder.unused_data) :], 0
            yield None
            continue
        yield reason
        found = _next_member(handle, begin + 1)
        if found is None:
            return
        handle.seek(found)
        chunk, place = b"", 0


def _next_member(handle: BinaryIO, begin: int) -> int | None:
    """Where the next gzip member begins that holds a record."""
    handle.seek(begin)
    window = b""
    while chunk := handle.read(GZIP_AT_ONCE):
        window += chunk
        here = handle.tell() - len(window)
        for found in _GZIP_START.finditer(window):
            handle.seek(here + found.start())
            try:
                opening = zlib.decompressobj(wbits=31).decompress(handle.read(HEADER_BYTES), len(VERSION))
            except zlib.error:
                continue
            if opening.startswith(VERSION):
                return here + found.start()
        handle.seek(here + len(window))
        window = window[-3:]
    return None
