"""The thresholds of a recipe: every comparison of a document's value with a number, taken out of its rule.

A rule is any Boolean expression, and moving one number in it changes the truth of one comparison and nothing else. So the rule is evaluated three times, with the comparison
put to true, to false and to null: what a document's fate is for every other number follows from its value alone, whatever the rule looks like. `top` is a comparison with
the worst value it took.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from curation import rules
from curation.rules import expression_of, rule_schema
from mixing.manifest import Manifest, canonical_json
from mixing.pool import POOL

_OPERATORS = {"GtEq": ">=", "Gt": ">", "LtEq": "<=", "Lt": "<"}
_MIRRORED = {">=": "<=", ">": "<", "<=": ">=", "<": ">"}

Path = tuple[str | int, ...]


class Outcomes(NamedTuple):
    """Boolean expressions: whether a document passes the rule where the comparison holds, where it does not, and where its value is null."""

    holds: pl.Expr
    fails: pl.Expr
    missing: pl.Expr


class Threshold(NamedTuple):
    """A comparison in step `step` (counted from 1): `value operator at`. `at` is None of a `top` until its cut is known, `nth` numbers the comparisons of a rule."""

    step: int
    nth: int
    rule: str
    value: str
    operator: str
    at: float | None
    outcomes: Outcomes


class Decision(NamedTuple):
    """A step that decides: its number from 1, and its rule as reasons give it."""

    step: int
    rule: str


def steps_of(manifest: Manifest) -> list[dict[str, Any]]:
    """The steps of the recipe; a manifest that other programs wrote may have none."""
    found: list[dict[str, Any]] = manifest.header["recipe"].get("steps", [])
    return found


def decisions(manifest: Manifest) -> list[Decision]:
    """The steps that drop documents: those of the recipe, and what else the header counts documents under."""
    found = {}
    for number, step in enumerate(steps_of(manifest), 1):
        if "keep" in step:
            found[number] = step["keep"]
        elif "top" in step:
            found[number] = f"top: {canonical_json(step['top'])}"
    told = {one["step"]: one["rule"] for source in manifest.sources.values() for one in source["dropped"] if one["step"]}
    return [Decision(*one) for one in sorted((told | found).items())]


def thresholds(manifest: Manifest, schema: pa.Schema) -> list[Threshold]:
    """Every threshold of a manifest's recipe; `schema` is that of its pool."""
    carried = {field.name: field.type for field in schema if field.name not in POOL.names}
    known = rule_schema({}, carried)
    found: list[Threshold] = []
    for number, step in enumerate(steps_of(manifest), 1):
        if "keep" in step:
            found += _in_rule(number, step["keep"], known)
        elif "top" in step and step["top"].get("by") is not None:
            found.append(_in_top(number, step["top"], known))
    return found


def _in_top(number: int, top: Mapping[str, Any], schema: pa.Schema) -> Threshold:
    outside = pl.lit(False)
    if top.get("where") is not None:
        outside = ~rules.parse(top["where"], f"step {number}", schema).expression.fill_null(False)
    operator = "<=" if top["order"] == "ascending" else ">="
    return Threshold(number, 0, f"top: {canonical_json(top)}", top["by"], operator, None, Outcomes(pl.lit(True), outside, outside))


def _in_rule(number: int, text: str, schema: pa.Schema) -> Iterator[Threshold]:
    tree = json.loads(rules.parse(text, f"step {number}", schema).expression.meta.serialize(format="json"))
    for nth, (path, value, operator, at) in enumerate(_comparisons(tree, ())):
        outcomes = Outcomes(*(expression_of(_with(tree, path, _boolean(truth))) for truth in (True, False, None)))
        yield Threshold(number, nth, text, value, operator, at, outcomes)


def _boolean(truth: bool | None) -> Any:
    return json.loads(pl.lit(truth, dtype=pl.Boolean).meta.serialize(format="json"))


def _comparisons(node: Any, path: Path) -> Iterator[tuple[Path, str, str, float]]:
    """(where in the tree, value, operator, number) of every comparison of a column or one of its parts with a constant."""
    if isinstance(node, list):
        for place, child in enumerate(node):
            yield from _comparisons(child, (*path, place))
    if not isinstance(node, dict):
        return
    operator, left, right = _compared(node)
    if operator is not None:
        for value, constant, told in ((_value(left), right, operator), (_value(right), left, _MIRRORED[operator])):
            number = None if value is None else _number(constant)
            if value is not None and number is not None:
                yield path, value, told, number
                return
    for name, child in node.items():
        yield from _comparisons(child, (*path, name))


def _compared(node: Mapping[str, Any]) -> tuple[str | None, Any, Any]:
    """The operator and the two sides of a comparison, in either of the two ways in which Polars writes one."""
    if (plain := node.get("BinaryExpr")) is not None:
        return _OPERATORS.get(plain["op"]), plain["left"], plain["right"]
    called = node.get("Function")
    if called is not None and isinstance(called["function"], dict) and "Sql" in called["function"]:
        sql = called["function"]["Sql"]
        if isinstance(sql, dict) and "Binary" in sql and len(called["input"]) == 2:
            return _OPERATORS.get(sql["Binary"]), called["input"][0], called["input"][1]
    return None, None, None


def _value(node: Any) -> str | None:
    """`quality`, or `words.mean_length` of a struct; None for anything that is computed."""
    if isinstance(node, dict) and isinstance(node.get("Column"), str):
        return str(node["Column"])
    called = node.get("Function") if isinstance(node, dict) else None
    if called is not None and isinstance(called["function"], dict) and "StructExpr" in called["function"]:
        detail, inner = called["function"]["StructExpr"], _value(called["input"][0])
        if isinstance(detail, dict) and "FieldByName" in detail and inner is not None:
            return f"{inner}.{detail['FieldByName']}"
    return None


def _number(node: Any) -> float | None:
    """The number that a part without a column comes to."""
    if '"Column"' in json.dumps(node):
        return None
    found = pl.select(expression_of(node)).item()
    try:
        return None if found is None or isinstance(found, bool | str) else float(found)
    except (TypeError, ValueError):
        return None


def _with(node: Any, path: Path, leaf: Any) -> Any:
    """The tree with another part at `path`."""
    if not path:
        return leaf
    if isinstance(node, list):
        return [_with(child, path[1:], leaf) if place == path[0] else child for place, child in enumerate(node)]
    return {name: _with(child, path[1:], leaf) if name == path[0] else child for name, child in node.items()}
