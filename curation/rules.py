"""Rules: Boolean Polars SQL expressions of one row.

A rule may only look at the row it decides: every node of the parsed expression must be on a list of element-wise ones, so aggregates, windows, subqueries and functions of
a whole column are refused by name. Columns and types are checked against the schema before any data is read. Arithmetic that yields NaN yields null instead (Polars orders
NaN above every number, so `0/0 >= 0.6` would be true), a cast that fails yields null, and a rule without a value fails.
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
_FUNCTIONS = {"Abs", "Coalesce", "MaxHorizontal", "MinHorizontal", "Log", "Log1p", "Exp", "Sign", "Ceil", "Floor", "Round"}
_FAMILIES = {"StructExpr", "StringExpr", "TemporalExpr", "Sql", "Pow", "Trigonometry"}
_COLUMN_WIDE = {"ConcatVertical"}
_MAY_BE_NAN = {"Log", "Log1p", "Pow", "Trigonometry"}
_ARITHMETIC = {"Plus", "Minus", "Multiply", "Divide", "TrueDivide", "FloorDivide", "Modulus"}


class Rule(NamedTuple):
    """A checked rule: its text as written, the expression, and the values it looks at (`quality`, `words.mean_length`)."""

    text: str
    expression: pl.Expr
    reads: list[str]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(value.split(".")[0] for value in self.reads))

    def decide(self, frame: pl.DataFrame) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Per row of `frame`: whether it passes, and whether the rule had no value (it then does not pass)."""
        values = frame.lazy().select(self.expression.alias("rule")).collect(engine="in-memory")["rule"]
        if len(values) != frame.height:  # a rule without a column is one constant
            values = pl.Series("rule", [values[0]] * frame.height, dtype=pl.Boolean)
        missing = values.is_null().to_numpy()
        return values.fill_null(False).to_numpy(), missing


def parse(text: str, where: str, schema: pa.Schema) -> Rule:
    """`text` as a rule over the columns of `schema`, or a UserError that says what a rule may be."""
    if re.search(r"\bCURRENT_(DATE|TIME|TIMESTAMP)\b|\bNOW\s*\(", text, re.IGNORECASE):
        raise UserError(f"{where}: {text!r} depends on the clock; accepted: an expression of the row's own columns")
    try:
        expression = pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: {text!r} is not an SQL expression: {_first_line(error)}") from None
    tree = json.loads(expression.meta.serialize(format="json"))
    reads: list[str] = []
    checked = _checked(tree, text, where, reads)
    columns = [value.split(".")[0] for value in reads]
    _known(columns, text, where, schema)
    expression = pl.Expr.deserialize(io.BytesIO(json.dumps(checked).encode()), format="json")
    empty = pl.DataFrame(pl.from_arrow(schema.empty_table()))
    try:
        dtype = empty.lazy().select(expression).collect_schema().dtypes()[0]
        _one_row(empty).select(expression)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: {text!r}: {_first_line(error)}; {_types(columns, schema)}") from None
    if dtype != pl.Boolean:
        raise UserError(f"{where}: {text!r} is {dtype}, a rule is Boolean; compare it with something, as in `{text} IS NOT NULL`")
    return Rule(text, expression, list(dict.fromkeys(reads)))


def _checked(node: Any, text: str, where: str, reads: list[str]) -> Any:
    """The expression tree with casts made lenient and NaN made null; refuses what looks beyond the row and collects the values it reads."""
    kind: str
    payload: Any
    kind, payload = next(iter(node.items())) if isinstance(node, dict) and len(node) == 1 else (str(node), None)

    def inner(child: Any) -> Any:
        return _checked(child, text, where, reads)

    if kind == "Column" and isinstance(payload, str):
        reads.append(payload)
        return node
    if kind == "Literal":
        return node
    if kind == "Alias":
        return inner(payload[0])
    if kind == "Cast":
        return {kind: {**payload, "expr": inner(payload["expr"]), "options": "NonStrict"}}
    if kind == "Ternary":
        return {kind: {name: inner(payload[name]) for name in ("predicate", "truthy", "falsy")}}
    if kind == "BinaryExpr":
        made = {kind: {**payload, "left": inner(payload["left"]), "right": inner(payload["right"])}}
        return _null_for_nan(made) if payload["op"] in _ARITHMETIC else made
    if kind == "Function":
        function = payload["function"]
        family, detail = next(iter(function.items())) if isinstance(function, dict) else (function, None)
        name = detail if isinstance(detail, str) else next(iter(detail)) if isinstance(detail, dict) and detail else ""
        allowed = family in _FUNCTIONS or (family in _FAMILIES and name not in _COLUMN_WIDE) or (family == "Boolean" and name in _BOOLEAN)
        if allowed:
            made = {kind: {**payload, "input": [inner(child) for child in payload["input"]]}}
            if family == "StructExpr" and isinstance(detail, dict) and "FieldByName" in detail:
                reads[-1] += f".{detail['FieldByName']}"
            arithmetic = family in _MAY_BE_NAN or (family == "Sql" and detail in ({"Binary": "Div"}, {"Binary": "Rem"}))
            return _null_for_nan(made) if arithmetic else made
        kind = name or family
    what = {"Agg": "an aggregate", "Len": "an aggregate", "Over": "a window", "SubPlan": "a subquery"}.get(
        kind, f"{kind}, which looks beyond one row"
    )
    raise UserError(
        f"{where}: {text!r} has {what}; accepted: comparisons, arithmetic, BETWEEN, IN, LIKE, IS NULL, CASE, COALESCE and text functions of one row"
    )


def _null_for_nan(node: Any) -> Any:
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


def _one_row(empty: pl.DataFrame) -> pl.DataFrame:
    """A row of nulls finds the type errors that Polars only reports when a column has rows."""
    return pl.DataFrame({name: pl.Series(name, [None], dtype=dtype) for name, dtype in empty.schema.items()})


def _types(columns: list[str], schema: pa.Schema) -> str:
    return "the columns are: " + ", ".join(f"{name} {schema.field(name).type}" for name in dict.fromkeys(columns))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
