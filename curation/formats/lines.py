"""Records from JSON Lines.

Position is the byte offset of the record's first byte in the stream decoded to UTF-8. Blank lines are not records. Nothing here raises for bad data: a record that cannot be used says
why, a damaged stream ends with one record that says so, and what was read before it stays. What is no JSON by the letter but can be read is read: several objects on a
line are several records, NaN and Infinity are null, a lone surrogate outside the text is shown as its escape. Of a name written twice in an object the last counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from curation.formats.records import (
    SNIFFED,
    Chunk,
    Fields,
    Record,
    as_columns,
    as_key,
    as_row,
    chunk_of,
    in_chunks,
    narrowest,
    refused,
)
from curation.formats.streams import BYTE_ORDER_MARK, line_blocks, lines_of
from mixing.remote import Place

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json_lines(path: Place, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """The lines whose first byte lies in `[begin, end)` of the decoded stream; a range is only asked of plain files. A block in which every line is a JSON object with a text is
    read at once, any other line by line."""
    for position, block in line_blocks(path, begin, end):
        if isinstance(block, str):
            yield chunk_of([refused(position, 0, block, "")], len(fields.columns))
            continue
        lines = block.split(b"\n")
        if block.endswith(b"\n"):
            lines.pop()
        chunk = _read_at_once(position, lines, fields)
        if chunk is None:
            yield from in_chunks(_read_one_by_one(position, lines, fields), len(fields.columns))
        else:
            yield chunk


def _read_at_once(position: int, lines: list[bytes], fields: Fields) -> Chunk | None:
    lengths = np.fromiter(map(len, lines), np.int64, len(lines)) + 1
    positions = position + np.cumsum(lengths) - lengths
    if position == 0 and lines[0].startswith(BYTE_ORDER_MARK):
        lines = [lines[0].removeprefix(BYTE_ORDER_MARK), *lines[1:]]
        lengths[0] -= len(BYTE_ORDER_MARK)
    try:
        values = list(map(orjson.loads, lines))
        texts = [""] * len(lines) if fields.text is None else [value[fields.text] for value in values]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    if set(map(type, values)) != {dict} or set(map(type, texts)) != {str}:
        return None
    keys: list[str | None] = [None] * len(lines)
    if fields.key is not None:
        found = [value.get(fields.key) for value in values]
        as_they_are = set(map(type, found)) <= {str, type(None)}
        keys = found if as_they_are else [as_key(_exact(key, line, fields.key)) for key, line in zip(found, lines, strict=True)]
    columns, misfits = as_columns(lambda name: [value.get(name) for value in values], fields.columns)
    return Chunk(positions, lengths, np.arange(len(lines)), texts, keys, columns, [], changed=misfits)


def _read_one_by_one(position: int, lines: list[bytes], fields: Fields) -> Iterator[Record]:
    for line in lines:
        size = len(line) + 1
        if position == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.strip(b" \t\r"):
            try:
                values = orjson.loads(line)
            except orjson.JSONDecodeError:
                yield from _salvaged(position, line, fields)
            else:
                yield _from_values(position, len(line) + 1, values, line, fields)
        position += size


def _from_values(position: int, size: int, values: object, line: bytes, fields: Fields) -> Record:
    if not isinstance(values, dict):
        return refused(position, size, "not a JSON object", line)
    text = "" if fields.text is None else values.get(fields.text)
    if not isinstance(text, str):
        reason = f"no '{fields.text}'" if text is None else f"'{fields.text}' is not a string"
        return refused(position, size, reason, line)
    key = as_key(_exact(values.get(fields.key), line, fields.key)) if fields.key else None
    columns, misfits = as_row(values, fields.columns)
    return Record(position, size, text, key, columns, None, "", misfits)


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
