"""Rules: Boolean Polars SQL expressions of one row.

A rule may only look at the row it decides: every node of the parsed expression must be on a list of element-wise ones, so aggregates, windows, subqueries and functions of
a whole column are refused by name. Columns and types are checked against the schema before any data is read. What yields NaN yields null instead (Polars orders NaN above
every number, so `0/0 >= 0.6` would be true), a cast or a date that fails yields null, unsigned numbers are subtracted as signed ones (`bytes - 100 > 0` would hold for a text
of 99), and a rule without a value fails.
"""

from __future__ import annotations

import io
import json
import re
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from mixing import UserError

_BOOLEAN = {
    "IsNull",
    "IsNotNull",
    "IsNan",
    "IsNotNan",
    "IsFinite",
    "IsInfinite",
    "IsIn",
    "IsBetween",
    "Not",
    "AllHorizontal",
    "AnyHorizontal",
}
_FUNCTIONS = {"Abs", "Coalesce", "MaxHorizontal", "MinHorizontal", "Log", "Log1p", "Exp", "Sign", "Ceil", "Floor", "Round", "FillNull"}
_FAMILIES = {"StructExpr", "StringExpr", "TemporalExpr", "Sql", "Pow", "Trigonometry"}
_COLUMN_WIDE = {"ConcatVertical"}
RULE, TEXT = pl.Boolean(), pl.String()
_CLOCK = r"\b(CURRENT_(DATE|TIME|TIMESTAMP)|LOCALTIME|LOCALTIMESTAMP)\b|\b(NOW|TODAY)\s*\("
_LOOKS = {"Agg": "an aggregate", "Len": "an aggregate", "Over": "a window", "SubPlan": "a subquery"}


class Rule(NamedTuple):
    """A checked rule: its text as written, the expression, and the values it looks at (`quality`, `words.mean_length`)."""

    text: str
    expression: pl.Expr
    reads: list[str]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(value.split(".")[0] for value in self.reads))

    def values(self, frame: pl.DataFrame) -> list[str | None]:
        """What an expression of text gives, row by row of `frame`."""
        values = frame.lazy().select(self.expression.alias("text")).collect(engine="in-memory")["text"].to_list()
        return values if len(values) == frame.height else values * frame.height

    def decide(self, frame: pl.DataFrame) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Per row of `frame`: whether it passes, and whether the rule had no value (it then does not pass)."""
        try:
            values = frame.lazy().select(self.expression.alias("rule")).collect(engine="in-memory")["rule"]
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{self.text!r} cannot be computed: {_first_line(error)}") from None
        if len(values) != frame.height:  # a rule without a column is one constant
            values = pl.Series("rule", [values[0]] * frame.height, dtype=pl.Boolean)
        missing = values.is_null().to_numpy()
        return values.fill_null(False).to_numpy(), missing


def rule_schema(columns: dict[str, pa.DataType], signals: dict[str, pa.DataType]) -> pa.Schema:
    """Everything a rule may look at: what reading gave, the carried columns, and the signals added before it."""
    base = {
        "source": pa.large_string(),
        "origin": pa.large_string(),
        "key": pa.large_string(),
        "content": pa.large_string(),
        "bytes": pa.uint64(),
    }
    return pa.schema(list((base | columns | signals).items()))


def parse(text: str, where: str, schema: pa.Schema, wanted: pl.DataType = RULE) -> Rule:
    """`text` as a rule over the columns of `schema`, or as another expression of the type `wanted`; a UserError says what it may be."""
    if re.search(_CLOCK, text, re.IGNORECASE):
        raise UserError(f"{where}: {text!r} depends on the clock; accepted: an expression of the row's own columns")
    try:
        expression = pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: {text!r} is not an SQL expression: {_first_line(error)}") from None
    reads: list[str] = []
    empty = pl.DataFrame(pl.from_arrow(schema.empty_table()))
    checked = _checked(json.loads(expression.meta.serialize(format="json")), _Rule(text, where, empty, reads))
    columns = [value.split(".")[0] for value in reads]
    _known(columns, text, where, schema)
    expression = expression_of(checked)
    try:
        dtype = empty.lazy().select(expression).collect_schema().dtypes()[0]
        _two_rows(empty).select(expression)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: {text!r}: {_first_line(error)}; {_types(columns, schema)}") from None
    if dtype != wanted and wanted == TEXT:
        raise UserError(
            f"{where}: {text!r} is {dtype}; accepted: an expression of text, as in title || ' ' || body; {_types(columns, schema)}"
        )
    if dtype != wanted:
        raise UserError(f"{where}: {text!r} is {dtype}, a rule is Boolean; compare it with something, as in `{text} IS NOT NULL`")
    return Rule(text, expression, list(dict.fromkeys(reads)))


class _Rule(NamedTuple):
    """The rule being checked: its text, its place in the recipe, a frame without rows, and the values found in it so far."""

    text: str
    where: str
    empty: pl.DataFrame
    reads: list[str]

    def refuse(self, what: str) -> UserError:
        return UserError(
            f"{self.where}: {self.text!r} has {what}; accepted: comparisons, arithmetic, BETWEEN, IN, LIKE, IS NULL, CASE, COALESCE and text functions of one row"
        )


def _checked(node: Any, rule: _Rule) -> Any:
    """The expression tree with casts made lenient and NaN made null; refuses what looks beyond the row and collects the values it reads."""
    kind: str
    payload: Any
    kind, payload = next(iter(node.items())) if isinstance(node, dict) and len(node) == 1 else (str(node), None)
    if kind == "Column" and isinstance(payload, str):
        rule.reads.append(payload)
        return node
    if kind == "Literal":
        return node
    if kind == "Alias":
        return _checked(payload[0], rule)
    if kind == "Cast":
        return _null_for_nan({kind: {**payload, "expr": _checked(payload["expr"], rule), "options": "NonStrict"}}, rule)
    if kind == "Ternary":
        return {kind: {name: _checked(payload[name], rule) for name in ("predicate", "truthy", "falsy")}}
    if kind == "BinaryExpr":
        left, right = (_checked(payload[side], rule) for side in ("left", "right"))
        if payload["op"] == "Minus":
            left, right = _signed(left, rule), _signed(right, rule)
        return _null_for_nan({kind: {**payload, "left": left, "right": right}}, rule)
    if kind == "Function":
        return _checked_function(payload, rule)
    raise rule.refuse(_LOOKS.get(kind, f"{kind}, which may look beyond one row"))


def _checked_function(payload: Any, rule: _Rule) -> Any:
    function = payload["function"]
    detail: Any
    family, detail = next(iter(function.items())) if isinstance(function, dict) else (function, None)
    name = detail if isinstance(detail, str) else next(iter(detail)) if isinstance(detail, dict) and detail else ""
    grouped = family in _FAMILIES or family == "Boolean"
    if not (family in _FUNCTIONS or (family in _FAMILIES and name not in _COLUMN_WIDE) or (family == "Boolean" and name in _BOOLEAN)):
        raise rule.refuse(f"{name if grouped else family}, which may look beyond one row")
    if family == "StringExpr" and name == "Strptime":
        kind, options = detail["Strptime"]
        if options["format"] is None:
            raise rule.refuse("a date without a format, which is guessed from other rows (write DATE(x, '%Y-%m-%d'))")
        function = {family: {name: [kind, {**options, "strict": False}]}}
    made = {"Function": {**payload, "function": function, "input": [_checked(child, rule) for child in payload["input"]]}}
    if family == "StructExpr" and name == "FieldByName":
        rule.reads[-1] += f".{detail['FieldByName']}"
        return made
    return _null_for_nan(made, rule)


def expression_of(node: Any) -> pl.Expr:
    """The expression that a tree of `meta.serialize(format="json")` says."""
    return pl.Expr.deserialize(io.BytesIO(json.dumps(node).encode()), format="json")


def _type_of(node: Any, rule: _Rule) -> pl.DataType:
    """The type of a part of the rule; Null where it has none, which the check of the whole will report."""
    try:
        return rule.empty.lazy().select(expression_of(node)).collect_schema().dtypes()[0]
    except pl.exceptions.PolarsError:
        return pl.Null()


def _signed(node: Any, rule: _Rule) -> Any:
    return (
        {"Cast": {"expr": node, "dtype": {"Literal": "Int64"}, "options": "NonStrict"}}
        if _type_of(node, rule).is_unsigned_integer()
        else node
    )


def _null_for_nan(node: Any, rule: _Rule) -> Any:
    if not _type_of(node, rule).is_float():
        return node
    template = json.loads(pl.col("x").fill_nan(None).meta.serialize(format="json"))

    def filled(part: Any) -> Any:
        if part == {"Column": "x"}:
            return node
        if isinstance(part, dict):
            return {key: filled(value) for key, value in part.items()}
        return [filled(value) for value in part] if isinstance(part, list) else part

    return filled(template)


def _known(columns: list[str], text: str, where: str, schema: pa.Schema) -> None:
    for column in columns:
        if column not in schema.names:
            near = get_close_matches(column, schema.names, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise UserError(f"{where}: {text!r} names '{column}', which is no column here{hint}; there are: {', '.join(schema.names)}")


def _two_rows(empty: pl.DataFrame) -> pl.DataFrame:
    """A row of values and a row of nulls find the errors that Polars only reports when a column has rows."""

    def value(dtype: pl.DataType) -> Any:
        if isinstance(dtype, pl.Struct):
            return {field.name: value(pl.Series([], dtype=field.dtype).dtype) for field in dtype.fields}
        return "a" if dtype == pl.String else dtype == pl.Boolean or 1

    return pl.DataFrame({name: pl.Series(name, [value(dtype), None], dtype=dtype) for name, dtype in empty.schema.items()})


def _types(columns: list[str], schema: pa.Schema) -> str:
    return "the columns are: " + ", ".join(f"{name} {schema.field(name).type}" for name in dict.fromkeys(columns))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
