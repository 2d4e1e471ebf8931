"""The POOL: one row per record read, every signal and the decision, no text.

Fixed columns first, then the carried `columns` of the sources, then the recipe's signals under their names. The names are a contract for other
programs and change only with the schema version. `DOCUMENTATION` says what each column holds; the reference page is generated from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from mixing import UserError

DECISIONS = ("kept", "dropped", "held_out", "quarantined")

POOL = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("content", pa.string()),
        pa.field("bytes", pa.uint64()),
        pa.field("parents", pa.list_(pa.uint64())),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("evidence", pa.string()),
        pa.field("n_tokens", pa.uint32()),
    ]
)

DOCUMENTATION = {
    "row": "running number in identity order (source rank, natural path, position), whatever the sharding",
    "source": "the source's name in the recipe",
    "origin": "`file#position`: where a person finds the record",
    "key": "the user's own key, where the recipe names one",
    "content": "xxh3-128 of the text as written, 32 hex characters; null for a quarantined record",
    "bytes": "UTF-8 length of the text",
    "parents": "pool rows of the documents a synthetic document was made from; null for a read one",
    "decision": f"one of {', '.join(DECISIONS)}",
    "reason": "the rule as written (` (no value)` appended for null), `top: <config>`, `holdout`, or why the record is in quarantine",
    "evidence": "canonical JSON: `{value}`, `{survivor, row, similarity}`, for a member of an index with `index`, `source`, `key` and no row, or `{benchmark, item, start, length, share}`",
    "n_tokens": "tokens of the document, BOS and EOS included; null if never counted",
}

FORBIDDEN = ("text", "document", "raw")
"""Names no pool column may have: the pool holds no text."""

ROWS_PER_FILE = 1_000_000


def pool_schema(columns: Sequence[pa.Field], signals: Sequence[pa.Field]) -> pa.Schema:
    """The schema of a pool with these carried columns and signals, or a UserError if two columns would share a name or one would hold text."""
    schema = POOL
    for field in [*columns, *signals]:
        if field.name in FORBIDDEN:
            raise UserError(f"pool: a column cannot be called '{field.name}': the pool holds no text; rename it")
        if field.name in schema.names:
            taken = "a fixed column of the pool" if field.name in POOL.names else "another column or signal"
            raise UserError(f"pool: the name '{field.name}' is {taken}; rename the signal or column")
        schema = schema.append(field)
    return schema
