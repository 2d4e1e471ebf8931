"""Every format that is read, and how it is told: by the end of a file's name, or by what the file is where its first bytes say otherwise.

A format is three functions: its columns, its records, and where a large file may be cut; and the packages of the extra `web` that read it, whose versions are then part of the key of
what was read. `FORMATS` lists them. Adding one: its functions and a line there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import NamedTuple

from curation.formats import delimited, documents, lines, streams, tables, warc, web
from curation.formats.records import Chunk, Fields
from mixing import UserError
from mixing.remote import Place

Columns = list[tuple[str, str | None]] | None
Spans = list[tuple[int, int | None]]
WHOLE: Spans = [(0, None)]


class Format(NamedTuple):
    """`columns(path, names)`: (name, type) of what a file has, in its order, the type None where no value tells it; None instead where it cannot be known before reading. `read(path,
    fields, begin, end)`: the records of one span, in chunks. `spans(path, size, cut)`: how a file is cut into spans of about `cut` bytes."""

    columns: Callable[[Place, list[str]], Columns]
    read: Callable[[Place, Fields, int, int | None], Iterator[Chunk]]
    spans: Callable[[Place, int, int], Spans]
    packages: tuple[str, ...] = ()


def format_of(path: str) -> str | None:
    """The format that a name tells; None for a name that tells none."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes[-2:]]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    suffixes = suffixes[:-1] if packed else suffixes
    name = ENDINGS.get(suffixes[-1]) if suffixes else None
    return None if packed and name in ("parquet", "arrow") else name


def true_format(path: Place, name: str) -> str:
    """`name`, unless the file is plainly something else: Parquet and Arrow files under any name, and JSON Lines under the name of either."""
    with path.open("rb") as handle:
        head = handle.read(8)
        if head[:4] == b"PAR1" and name != "parquet":
            size = handle.seek(0, 2)
            handle.seek(max(0, size - 4))
            return "parquet" if handle.read(4) == b"PAR1" else name
    if head[:6] == tables.ARROW_MAGIC:
        return "arrow"
    if name in ("parquet", "arrow") and head[:4] != b"PAR1" and streams.decoded_head(path, 4096).lstrip(b" \t\r\n")[:1] == b"{":
        return "lines"
    return name


def readers_of(where: str, formats: dict[str, str]) -> dict[str, str]:
    """The packages, with their versions, that read files of these formats (`formats`: path -> format); a UserError if one is not installed."""
    versions: dict[str, str] = {}
    for path, form in formats.items():
        for package in FORMATS[form].packages:
            try:
                versions[package] = versions.get(package) or version(package)
            except PackageNotFoundError:
                raise UserError(
                    f"{where}: {path} is {form.upper()}, which is read by {package}, and that is not installed; "
                    "accepted without it: any other format; install it with: pip install 'tilth[web]'"
                ) from None
    return dict(sorted(versions.items()))


# --- cutting


def _line_spans(path: Place, size: int, cut: int) -> Spans:
    if streams.is_stream(path):
        return WHOLE
    return [(begin, min(begin + cut, size)) for begin in range(0, size, cut)]


def spans_of(sizes: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive groups together up to `limit` bytes; a larger group stands alone."""
    first, total = 0, 0
    for index, size in enumerate(sizes):
        if index > first and total + size > limit:
            yield first, index
            first, total = index, 0
        total += size
    if sizes:
        yield first, len(sizes)


def _whole(path: Place, size: int, cut: int) -> Spans:
    return WHOLE


FORMATS = {
    "lines": Format(lambda path, names: list(lines.sniff_columns(path, names).items()), lines.read_json_lines, _line_spans),
    "parquet": Format(
        lambda path, names: tables.parquet_columns(path),
        tables.read_parquet,
        lambda path, size, cut: list(spans_of(tables.parquet_groups(path), cut)),
    ),
    "arrow": Format(
        lambda path, names: tables.arrow_columns(path),
        tables.read_arrow,
        lambda path, size, cut: list(spans_of(tables.arrow_batches(path, size), cut)),
    ),
    "delimited": Format(lambda path, names: delimited.delimited_columns(path), delimited.read_delimited, _whole),
    "text": Format(lambda path, names: [("text", "string")], documents.read_document, _whole),
    "html": Format(lambda path, names: [(name, "string") for name in web.COLUMNS], web.read_html, _whole, web.PACKAGES),
    "warc": Format(lambda path, names: [(name, "string") for name in warc.COLUMNS], warc.read_warc, _whole, warc.PACKAGES),
}
OPEN_ENDED = {"lines"}  # formats in which every record has columns of its own
ENDINGS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "lines"),
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather", ".ipc", ".arrows"), "arrow"),
    **dict.fromkeys((".csv", ".tsv"), "delimited"),
    **dict.fromkeys((".txt", ".md", ".markdown", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".warc": "warc",
}
PACKED = (".gz", ".zst", ".bz2")
ACCEPTED = f"{', '.join(ENDINGS)}; all but Parquet and Arrow also with {', '.join(PACKED)}"


_PAGES = {".pdf", ".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx", ".epub", ".mobi", ".djvu", ".ps", ".tex"}
_ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".7z", ".rar", ".xz", ".lz4", ".br"}


def why_unread(path: str) -> str:
    """What to do about a file that no format here reads."""
    endings = {suffix.lower() for suffix in PurePosixPath(path).suffixes[-2:]}
    if endings & _PAGES:
        return "its text has to be extracted first, a .txt or .md for each (pdftotext or pandoc, say)"
    if endings & _ARCHIVES:
        return "an archive, or a packing that is not read: unpack it first"
    return "its ending is of no format that is read; if it is text, give it the ending .txt"
