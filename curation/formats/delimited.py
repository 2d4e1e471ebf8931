"""Records from CSV and TSV: rows of fields, the first of which names the columns.

Position is the row index after the header; blank lines are no rows. A field may hold line ends inside quotes. A quote that is never closed would swallow what stands after it: when
such a row does not come out with as many fields as the header has, only its first line is quarantined and reading goes on with the next. All values are text; an empty
field of a carried column is null.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from curation.formats.records import SNIFFED, Chunk, Fields, Record, Value, in_chunks, misfit, refused
from curation.formats.streams import decoded_head, lines_of
from mixing.remote import Place

DELIMITERS = ",\t;|"
MISSING = ("", "nan", "NaN")  # no value, which fits any type
ROW_LIMIT = 256 << 20  # characters: a quote that is not closed by then is damage
csv.field_size_limit(1 << 31)


class _Row(NamedTuple):
    """Its fields, or the reason why it has none; the first line of it, for the excerpt, and its length in characters."""

    fields: list[str]
    reason: str | None
    line: str
    size: int


def read_delimited(path: Place, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """All rows of a file; quoted line ends make it a stream that cannot be entered in the middle."""
    assert (begin, end) == (0, None)
    return in_chunks(_records(path, fields), len(fields.columns))


def _records(path: Place, fields: Fields) -> Iterator[Record]:
    rows = _rows(path)
    header = next(rows, None)
    if header is None:
        return
    names = header.fields
    width = len(names)
    place = {name: index for index, name in enumerate(names)}
    for position, row in enumerate(rows):
        reason = row.reason or (f"{len(row.fields)} fields, the header has {width}" if len(row.fields) != width else None)
        if reason is None and any("\0" in value for value in row.fields):
            reason = "raw NUL byte"
        if reason is None and not _is_text(row.fields):
            reason = "invalid UTF-8"
        if reason is None and fields.text is not None and fields.text not in place:
            reason = f"no '{fields.text}'"
        if reason is not None:
            yield refused(position, row.size, reason, row.line)
            continue
        text = "" if fields.text is None else row.fields[place[fields.text]]
        key = row.fields[place[fields.key]] if fields.key in place else None
        values = {name: row.fields[place[name]] for name in fields.columns if name in place}
        columns = tuple(_typed(values.get(name, ""), kind) for name, kind in fields.columns.items())
        misfits = [
            misfit(name)
            for name, found in zip(fields.columns, columns, strict=True)
            if found is None and values.get(name, "") not in MISSING
        ]
        yield Record(position, row.size, text, key, columns, None, "", tuple(misfits))


def _is_text(values: list[str]) -> bool:
    """Bytes that are no UTF-8 have become lone surrogates."""
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(path: Place) -> Iterator[_Row]:
    """The header and the rows, in the order of the file; a damaged stream ends with a row that says so."""
    lines = (line if isinstance(line, str) else line.decode("utf-8", "surrogateescape") + "\n" for _, line in lines_of(path, 0, None))
    damage: list[str] = []
    waiting: deque[str] = deque()
    taken: list[str] = []

    def feed() -> Iterator[str]:
        size = 0
        while size < ROW_LIMIT:
            line = waiting.popleft() if waiting else None if damage else next(lines, None)
            if line is None:
                return
            if not line.endswith("\n"):  # not a line but the reason why there are no more
                damage.append(line)
                return
            taken.append(line)
            size += len(line)
            yield line

    delimiter, width = _delimiter(path), -1
    while True:
        taken.clear()
        try:
            found = next(csv.reader(feed(), delimiter=delimiter, strict=True), None)
            reason = None
        except csv.Error:
            found, reason = [], "broken CSV"
        if found is None:
            break
        if len(taken) > 1 and (reason or width not in (-1, len(found))):
            waiting.extendleft(reversed(taken[1:]))
            found, reason = [], "broken CSV: a quote that is not closed in its row"
        if found or reason:
            width = len(found) if width < 0 else width
            yield _Row(found, reason, taken[0].rstrip("\r\n"), sum(map(len, taken)))
    if damage:
        yield _Row([], damage[0], "", 0)


def _delimiter(path: Place) -> str:
    """What separates the names of the header: the most frequent of comma, tab, semicolon and bar outside quotes."""
    line = decoded_head(path).split(b"\n")[0].decode("utf-8", "replace")
    outside = "".join(line.split('"')[::2])
    return max(DELIMITERS, key=lambda one: (outside.count(one), -DELIMITERS.index(one)))


def _typed(value: str, kind: str) -> Value:
    if value == "":
        return None
    if kind == "string":
        return value
    if kind == "bool":
        return {"true": True, "false": False}.get(value.lower())
    try:
        number = float(value) if kind == "float64" else int(value)
    except ValueError:
        return None
    return number if number == number and (kind == "float64" or -(2**63) <= number < 2**63) else None


def delimited_columns(path: Place) -> list[tuple[str, str | None]] | None:
    """(name, type) of the columns, from the first rows: the narrowest of bool, int64, float64 and string that holds all values; None for one without values."""
    rows = _rows(path)
    header = next(rows, None)
    if header is None or header.reason:
        return None
    seen: list[list[str]] = [[] for _ in header.fields]
    size = 0
    for row in rows:
        size += row.size
        if len(row.fields) == len(seen):
            for values, value in zip(seen, row.fields, strict=True):
                if value != "":
                    values.append(value)
        if size > SNIFFED or max(map(len, seen)) >= 1000:
            break
    return [(name, _narrowest(values)) for name, values in zip(header.fields, seen, strict=True)]


def _narrowest(values: list[str]) -> str | None:
    if not values:
        return None
    for kind in ("bool", "int64", "float64"):
        if all(_typed(value, kind) is not None for value in values):
            return kind
    return "string"
