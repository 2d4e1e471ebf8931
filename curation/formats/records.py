"""What every format's reader yields: records, and values in the few types that the pool has."""

from __future__ import annotations

import json
from typing import NamedTuple

import orjson

EXCERPT = 200
SNIFFED = 4 << 20  # decoded bytes that are looked at for the types of columns

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


def one_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


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


def narrowest(types: set[type]) -> str:
    """The narrowest of bool, int64, float64 and string that holds values of all these types."""
    for allowed, name in (({bool}, "bool"), ({int}, "int64"), ({int, float}, "float64")):
        if types <= allowed:
            return name
    return "string"
