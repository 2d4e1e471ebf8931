"""What a source takes of the records it reads: its text as an expression over a record's columns, the clean steps, and a rule that leaves records out.

A record that `where` does not hold for, or has no value for, is not read: it has no row, no place in any count and no part in the numbering of records. A record that cannot be used is
quarantined whatever `where` says, because its columns are not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from curation import rules
from curation.clean import cleaned
from curation.formats.records import Record
from mixing import UserError

TYPES = {"string": pa.large_string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
RECORDS_AT_ONCE = 1024
BUILT_IN = {"key": "string", "bytes": "int64"}


class Choice(NamedTuple):
    """The first `carried` columns of a record reach the pool; the others are there for `text` and `where` alone, which are SQL over all of them, `key` and `bytes`."""

    columns: dict[str, str]
    carried: int
    text: str | None
    where: str | None


class Read(NamedTuple):
    """A record, its text as it will be written (none if it cannot be used), and the clean steps that changed it."""

    record: Record
    text: str | None
    changed: Sequence[str]


def select(records: Iterator[Record], choice: Choice | None, clean: tuple[str, ...]) -> Iterator[Read]:
    """The records that a source takes, in their order."""
    if choice is None:
        for record in records:
            yield Read(record, None, ()) if record.text is None else Read(record, *cleaned(record.text, clean))
        return
    expression = None if choice.text is None else rules.parse(choice.text, "text", schema_of(choice), rules.TEXT)
    where = None if choice.where is None else rules.parse(choice.where, "where", schema_of(choice))
    while chunk := list(islice(records, RECORDS_AT_ONCE)):
        yield from _chosen(chunk, choice, expression, where, clean)


def _chosen(
    records: list[Record], choice: Choice, text: rules.Rule | None, where: rules.Rule | None, clean: tuple[str, ...]
) -> Iterator[Read]:
    if text is not None:
        records = _with_text(records, choice, text)
    read = [Read(one, None, ()) if one.text is None else Read(one, *cleaned(one.text, clean)) for one in records]
    usable = [one for one in read if one.text is not None]
    taken = iter([True] * len(usable))
    if where is not None:
        sizes = [len(one.text.encode()) for one in usable if one.text is not None]
        taken = iter(where.decide(_frame([one.record for one in usable], sizes, choice))[0].tolist())
    for one in read:
        if one.text is None or next(taken):
            yield one._replace(record=one.record._replace(columns=one.record.columns[: choice.carried]))


def _with_text(records: list[Record], choice: Choice, expression: rules.Rule) -> list[Record]:
    usable = [record for record in records if record.reason is None]
    values = iter(expression.values(_frame(usable, [0] * len(usable), choice)))
    made = []
    for record in records:
        if record.reason is None:
            text = next(values)
            record = record._replace(text=text, reason=None if text is not None else "no value for the text")
        made.append(record)
    return made


def _frame(records: list[Record], sizes: list[int], choice: Choice) -> Any:
    import polars as pl

    columns: dict[str, pa.Array] = {
        "key": pa.array([record.key for record in records], pa.large_string()),
        "bytes": pa.array(sizes, pa.int64()),
    }
    for index, (name, kind) in enumerate(choice.columns.items()):
        columns[name] = pa.array([record.columns[index] for record in records], TYPES[kind])
    return pl.DataFrame(pl.from_arrow(pa.table(columns)))


def schema_of(choice: Choice) -> pa.Schema:
    """What `text` and `where` may look at."""
    return pa.schema([(name, TYPES[kind]) for name, kind in (BUILT_IN | choice.columns).items()])


def names_in(expression: str, where: str) -> list[str]:
    """The columns that an expression names, before their types are known."""
    import polars as pl

    try:
        return pl.sql_expr(expression).meta.root_names()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: {expression!r} is not an SQL expression: {str(error).splitlines()[0]}") from None


def is_expression(text: str) -> bool:
    """Whether `text` is an SQL expression and not the name of a column."""
    return any(sign in text for sign in ("||", "(", "'", '"'))
