"""The pool's schema."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mixing import UserError
from mixing.pool import DOCUMENTATION, POOL, pool_schema


def test_pool_schema_has_the_fixed_columns_then_columns_then_signals() -> None:
    words = pa.struct([("count", pa.uint32()), ("mean_length", pa.float64())])
    schema = pool_schema([pa.field("year", pa.int64())], [pa.field("words", words)])
    assert schema.names == [*POOL.names, "year", "words"]
    assert schema.field("words").type == words


@pytest.mark.parametrize(
    ("columns", "signals", "message"),
    [
        ([], ["text"], "a column cannot be called 'text': the pool holds no text"),
        (["decision"], [], "the name 'decision' is a fixed column of the pool"),
        (["quality"], ["quality"], "the name 'quality' is another column or signal"),
    ],
)
def test_pool_schema_name_that_is_taken_is_refused(columns: list[str], signals: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pool_schema([pa.field(name, pa.int64()) for name in columns], [pa.field(name, pa.float64()) for name in signals])


def test_documentation_covers_every_fixed_column() -> None:
    assert list(DOCUMENTATION) == POOL.names
