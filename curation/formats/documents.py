"""Records from files that are one document each: text and Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from curation.formats.records import EXCERPT, Chunk, Fields, Record, chunk_of, refused
from curation.formats.streams import decoded_bytes
from mixing.remote import Place


def read_document(path: Place, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """The file as one record."""
    assert (begin, end) == (0, None)
    raw, reason = decoded_bytes(path)
    if reason is None and b"\0" in raw:
        reason = "raw NUL byte"
    if reason is None:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            reason = "invalid UTF-8"
    if reason is not None:
        record = refused(0, len(raw), reason, raw[:EXCERPT])
    else:
        record = Record(0, len(raw), text, None, (None,) * len(fields.columns), None, "")
    yield chunk_of([record], len(fields.columns))
