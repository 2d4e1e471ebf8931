"""What every format's reader yields: records in columns, a chunk at a time, with values in the few types that the pool has.

A reader that looks at one record after the other yields `Record` and is turned into chunks by `in_chunks`; one that can do better makes its chunks itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

EXCERPT = 200
SNIFFED = 4 << 20  # decoded bytes that are looked at for the types of columns

RECORDS_AT_ONCE = 1024
BYTES_AT_ONCE = 1 << 20

Value = str | int | float | bool | None
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Fields(NamedTuple):
    """Where a record's parts stand: the names of its text (none if an expression will make it), of its key (or none), and of the columns it carries with their types."""

    text: str | None
    key: str | None
    columns: dict[str, str]


class Record(NamedTuple):
    """`reason` is None for a usable record, whose `text` is then str and not yet cleaned; otherwise `excerpt` shows what was found.
    Reasons are the project's own words: they stand in the manifest, which no library's version may change; what a library says of damage is an excerpt."""

    position: int
    size: int
    text: str | None
    key: str | None
    columns: tuple[Value, ...]
    reason: str | None
    excerpt: str
    misfits: tuple[str, ...] = ()  # `misfit` of each column whose value is not of its type, and so null


class Chunk(NamedTuple):
    """Consecutive records of one file in columns. `position` and `size` have an entry for every record. `text`, `key` and each of the `columns` have one for every usable record,
    whose index `usable` holds, ascending; `refused` has (index, reason, excerpt) of every other record. Once the texts are cleaned, `utf8` has them as bytes too. `changed` says which of them
    lost something: for each clean step those it changed, and under `misfit(column)` those whose value is not of the column's type."""

    position: Integers
    size: Integers
    usable: Integers
    text: list[str]
    key: list[str | None]
    columns: list[list[Value]]
    refused: list[tuple[int, str, str]]
    utf8: Sequence[bytes] = ()
    changed: Mapping[str, Mask] = {}

    def cut(self, first: int, end: int) -> Chunk:
        """The records `[first, end)`."""
        if first == 0 and end >= len(self.position):
            return self
        low, high = np.searchsorted(self.usable, [first, end]).tolist()
        return Chunk(
            self.position[first:end],
            self.size[first:end],
            self.usable[low:high] - first,
            self.text[low:high],
            self.key[low:high],
            [values[low:high] for values in self.columns],
            [(index - first, reason, excerpt) for index, reason, excerpt in self.refused if first <= index < end],
            self.utf8[low:high],
            {name: mask[low:high] for name, mask in self.changed.items()},
        )

    def refuse(self, usable: Mask, reason: str, excerpts: Sequence[str]) -> Chunk:
        """With those usable records refused for one reason that are not `usable`; an excerpt for each of them."""
        indices = self.usable[~usable].tolist()
        refused = self.refused + [(index, reason, excerpt) for index, excerpt in zip(indices, excerpts, strict=True)]
        return self._only(usable)._replace(refused=sorted(refused))

    def without(self, taken: Mask) -> Chunk:
        """Without those usable records that are not `taken`, as if they had never been there."""
        there = np.ones(len(self.position), np.bool_)
        there[self.usable[~taken]] = False
        index = np.cumsum(there) - 1
        return self._only(taken)._replace(
            position=self.position[there],
            size=self.size[there],
            usable=index[self.usable[taken]],
            refused=[(int(index[at]), reason, excerpt) for at, reason, excerpt in self.refused],
        )

    def _only(self, kept: Mask) -> Chunk:
        def of(values: Sequence[Any]) -> list[Any]:
            return [value for value, keep in zip(values, kept.tolist(), strict=True) if keep]

        return self._replace(
            usable=self.usable[kept],
            text=of(self.text),
            key=of(self.key),
            columns=[of(values) for values in self.columns],
            utf8=of(self.utf8) if self.utf8 else (),
            changed={name: mask[kept] for name, mask in self.changed.items()},
        )

    def records(self) -> Iterator[Record]:
        """One by one, in their order."""
        positions, sizes = self.position.tolist(), self.size.tolist()
        found = {index: Record(positions[index], sizes[index], None, None, (), reason, excerpt) for index, reason, excerpt in self.refused}
        for place, index in enumerate(self.usable.tolist()):
            columns = tuple(values[place] for values in self.columns)
            found[index] = Record(positions[index], sizes[index], self.text[place], self.key[place], columns, None, "")
        return (found[index] for index in range(len(positions)))


def in_chunks(records: Iterable[Record], columns: int) -> Iterator[Chunk]:
    """The records in chunks of at most RECORDS_AT_ONCE, or of one that takes more than BYTES_AT_ONCE; `columns` is how many each carries."""
    some: list[Record] = []
    size = 0
    for record in records:
        some.append(record)
        size += record.size
        if len(some) == RECORDS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield chunk_of(some, columns)
            some, size = [], 0
    if some:
        yield chunk_of(some, columns)


def misfit(column: str) -> str:
    """The key in `Chunk.changed` of values that are null because they are not of their column's type."""
    return f"column {column}"


def chunk_of(records: Sequence[Record], columns: int) -> Chunk:
    usable = [index for index, record in enumerate(records) if record.reason is None]
    good = [records[index] for index in usable]
    return Chunk(
        np.array([record.position for record in records], np.int64),
        np.array([record.size for record in records], np.int64),
        np.array(usable, np.int64),
        [record.text or "" for record in good],
        [record.key for record in good],
        [[record.columns[place] for record in good] for place in range(columns)],
        [(index, record.reason, record.excerpt) for index, record in enumerate(records) if record.reason is not None],
        changed={
            one: np.array([one in record.misfits for record in good], np.bool_)
            for one in sorted({one for record in good for one in record.misfits})
        },
    )


def records_of(chunks: Iterable[Chunk]) -> Iterator[Record]:
    return (record for chunk in chunks for record in chunk.records())


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


def as_column(values: list[Any], kind: str) -> tuple[list[Value], Mask | None]:
    """`values` as a column of type `kind`, and which of them do not fit; None if all do. NaN is null, and fits."""
    if kind == "string" and set(map(type, values)) <= {str, type(None)}:
        return values, None
    found = [as_type(value, kind) for value in values]
    if None not in found:
        return found, None
    misfits = np.array([one is None and value is not None and value == value for one, value in zip(found, values, strict=True)], np.bool_)
    return found, misfits if misfits.any() else None


def as_columns(values: Callable[[str], list[Any]], kinds: Mapping[str, str]) -> tuple[list[list[Value]], dict[str, Mask]]:
    """The columns of a chunk, of which `values` gives one by its name, and under its `misfit` which values of it do not fit."""
    found = {name: as_column(values(name), kind) for name, kind in kinds.items()}
    return [column for column, _ in found.values()], {misfit(name): mask for name, (_, mask) in found.items() if mask is not None}


def as_row(values: Mapping[str, object], kinds: Mapping[str, str]) -> tuple[tuple[Value, ...], tuple[str, ...]]:
    """The columns of one record, and its misfits."""
    columns, misfits = as_columns(lambda name: [values.get(name)], kinds)
    return tuple(one for (one,) in columns), tuple(misfits)


def narrowest(types: set[type]) -> str:
    """The narrowest of bool, int64, float64 and string that holds values of all these types."""
    for allowed, name in (({bool}, "bool"), ({int}, "int64"), ({int, float}, "float64")):
        if types <= allowed:
            return name
    return "string"
