"""What a source takes of the records it reads: its text as an expression over a record's columns, the clean steps, and a rule that leaves records out.

A record that `where` does not hold for, or has no value for, is not read: it has no row, no place in any count and no part in the numbering of records. A record that cannot be used is
quarantined whatever `where` says, because its columns are not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curation import rules
from curation.formats.records import Chunk
from curation.text.clean import clean_all
from mixing import UserError

TYPES = {"string": pa.large_string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
BUILT_IN = {"key": "string", "bytes": "int64"}


class Choice(NamedTuple):
    """The first `carried` columns of a record reach the pool; the others are there for `text` and `where` alone, which are SQL over all of them, `key` and `bytes`."""

    columns: dict[str, str]
    carried: int
    text: str | None
    where: str | None


def select(chunks: Iterator[Chunk], choice: Choice | None, clean: tuple[str, ...]) -> Iterator[Chunk]:
    """The records that a source takes, in their order, with their texts as they will be written."""
    text = where = None
    if choice is not None:
        text = None if choice.text is None else rules.parse(choice.text, "text", schema_of(choice), rules.TEXT)
        where = None if choice.where is None else rules.parse(choice.where, "where", schema_of(choice))
    for chunk in chunks:
        if choice is not None and text is not None:
            chunk = _with_text(chunk, choice, text)
        texts, utf8, changed = clean_all(chunk.text, clean)
        chunk = chunk._replace(text=texts, utf8=utf8, changed={**chunk.changed, **changed})
        if choice is not None and where is not None:
            sizes = list(map(len, utf8))
            chunk = chunk.without(np.asarray(where.decide(_frame(chunk, sizes, choice))[0], np.bool_))
        yield chunk if choice is None else chunk._replace(columns=chunk.columns[: choice.carried])


def _with_text(chunk: Chunk, choice: Choice, expression: rules.Rule) -> Chunk:
    values = expression.values(_frame(chunk, [0] * len(chunk.usable), choice))
    there = np.array([value is not None for value in values], np.bool_)
    made = chunk.refuse(there, "no value for the text", [""] * int((~there).sum()))
    return made._replace(text=[value for value in values if value is not None])


def _frame(chunk: Chunk, sizes: list[int], choice: Choice) -> Any:
    import polars as pl

    columns: dict[str, pa.Array] = {"key": pa.array(chunk.key, pa.large_string()), "bytes": pa.array(sizes, pa.int64())}
    for (name, kind), values in zip(choice.columns.items(), chunk.columns, strict=True):
        columns[name] = pa.array(values, TYPES[kind])
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
