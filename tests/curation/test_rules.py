"""Rules against plain Python over rows, and the one property that makes them rules: a row's verdict does not change with the rows around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.rules import Rule, parse
from mixing import UserError

SCHEMA = pa.schema(
    [
        ("source", pa.large_string()),
        ("key", pa.large_string()),
        ("bytes", pa.uint64()),
        ("quality", pa.float64()),
        ("year", pa.int64()),
        ("good", pa.bool_()),
        ("words", pa.struct([("count", pa.int64()), ("mean_length", pa.float64())])),
    ]
)
ROWS: list[dict[str, Any]] = [
    {"source": "a", "key": "12", "bytes": 50, "quality": 0.9, "year": 2001, "good": True, "words": {"count": 9, "mean_length": 4.5}},
    {"source": "b", "key": "nan", "bytes": 500, "quality": -1.5, "year": -3, "good": False, "words": {"count": 0, "mean_length": None}},
    {"source": "b", "key": None, "bytes": 0, "quality": None, "year": 0, "good": None, "words": None},
    {"source": "a", "key": "2020-02-30", "bytes": 7, "quality": 0.0, "year": None, "good": True, "words": {"count": 5, "mean_length": 0.0}},
    {
        "source": "c",
        "key": "2020-02-03",
        "bytes": 10**9,
        "quality": 0.6,
        "year": 2020,
        "good": False,
        "words": {"count": 1, "mean_length": 11.0},
    },
    {"source": "a", "key": "é b", "bytes": 51, "quality": 3.25, "year": 7, "good": True, "words": {"count": 2, "mean_length": 3.0}},
]


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(pa.Table.from_pylist(rows, schema=SCHEMA)))


def verdicts(rule: Rule, rows: list[dict[str, Any]]) -> list[bool | None]:
    passed, no_value = rule.decide(frame(rows))
    assert not (passed & no_value).any()
    return [None if missing else bool(yes) for yes, missing in zip(passed, no_value, strict=True)]


def rule(text: str) -> Rule:
    return parse(text, "steps[0].keep", SCHEMA)


# --- verdicts against Python


def compared(name: str, holds: Callable[[Any], bool]) -> Callable[[dict[str, Any]], bool | None]:
    return lambda row: None if row[name] is None else holds(row[name])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quality >= 0.6", compared("quality", lambda value: value >= 0.6)),
        ("NOT quality >= 0.6", compared("quality", lambda value: value < 0.6)),
        ("quality IS NULL OR quality < 0.5", lambda row: row["quality"] is None or row["quality"] < 0.5),
        ("quality BETWEEN 0 AND 0.6", compared("quality", lambda value: 0 <= value <= 0.6)),
        ("quality NOT BETWEEN 0 AND 0.6", compared("quality", lambda value: not 0 <= value <= 0.6)),
        ("source IN ('a', 'c')", compared("source", lambda value: value in "ac")),
        ("source NOT IN ('a')", compared("source", lambda value: value != "a")),
        ("year NOT IN (7, 2020)", compared("year", lambda value: value not in (7, 2020))),
        ("key LIKE '2020-%'", compared("key", lambda value: value.startswith("2020-"))),
        ("good", compared("good", lambda value: value)),
        ("NOT good", compared("good", lambda value: not value)),
        ("words.count >= 2", lambda row: None if row["words"] is None else row["words"]["count"] >= 2),
        ("words.mean_length BETWEEN 3 AND 10", lambda row: None if not row["words"] or row["words"]["mean_length"] is None else 3 <= row["words"]["mean_length"] <= 10),
        ("bytes - 51 >= 0", compared("bytes", lambda value: value - 51 >= 0)),
        ("LENGTH(key) - 3 > 0", compared("key", lambda value: len(value) - 3 > 0)),
        ("-bytes < 0", compared("bytes", lambda value: value > 0)),
        ("source || key = 'a12'", lambda row: None if row["key"] is None else row["source"] + row["key"] == "a12"),
        ("COALESCE(quality, 1) > 0.7", lambda row: (1 if row["quality"] is None else row["quality"]) > 0.7),
        ("CASE WHEN good THEN quality > 1 ELSE year > 0 END", lambda row: (row["quality"] is not None and row["quality"] > 1 if row["good"] else None if row["year"] is None else row["year"] > 0)),
        ("1 = 1", lambda row: True),
        ("1 = 2", lambda row: False),
        ("NULL = 1", lambda row: None),
    ],
)  # fmt: skip
def test_rule_on_rows_agrees_with_python(text: str, expected: Callable[[dict[str, Any]], bool | None]) -> None:
    assert verdicts(rule(text), ROWS) == [expected(row) for row in ROWS]


@pytest.mark.parametrize(
    "text",
    [
        "(quality - quality) / (quality - quality) >= 0.6",
        "SQRT(quality - 100) >= 0",
        "LN(quality - 100) > -1000",
        "ACOS(quality + 100) > -10",
        "POW(quality - 100, 0.5) > -1000",
        "quality % 0 >= 0",
        "NOT SQRT(quality - 100) < 0",
        "CAST('nan' AS DOUBLE) > 0",
        "SQRT(-1) IS NOT NULL AND NULL",
    ],
)
def test_arithmetic_that_gives_nan_has_no_value(text: str) -> None:
    assert set(verdicts(rule(text), ROWS)) <= {None, False}
    assert verdicts(rule(text), ROWS)[0] is (False if "AND" in text else None)


def test_text_that_reads_nan_has_no_value_as_a_number() -> None:
    assert verdicts(rule("CAST(key AS DOUBLE) > 0.5"), ROWS) == [True, None, None, None, None, None]


def test_a_cast_or_a_date_that_fails_has_no_value() -> None:
    assert verdicts(rule("CAST(key AS INT) = 12"), ROWS) == [True, None, None, None, None, None]
    assert verdicts(rule("DATE(key, '%Y-%m-%d') > DATE '2020-01-01'"), ROWS) == [None, None, None, None, True, None]
    assert verdicts(rule("EXTRACT(month FROM DATE(key, '%Y-%m-%d')) = 2"), ROWS) == [None, None, None, None, True, None]


def test_division_by_zero_is_infinite_not_missing() -> None:
    assert verdicts(rule("1 / quality > 1000"), ROWS) == [False, False, None, True, False, False]


numbers = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([0.5, -0.5, 1e308, 1e-308]))


@settings(max_examples=60)
@given(x=numbers, y=numbers)
def test_comparisons_of_arithmetic_follow_ieee_with_null_for_nan(x: float | None, y: float | None) -> None:
    schema = pa.schema([("x", pa.float64()), ("y", pa.float64())])
    made = pl.DataFrame({"x": [x], "y": [y]}, schema={"x": pl.Float64, "y": pl.Float64})
    for sign, compute in {"+": lambda: x + y, "*": lambda: x * y, "/": lambda: _divided(x, y)}.items():  # type: ignore[operator]
        passed, no_value = parse(f"x {sign} y > 0.25", "", schema).decide(made)
        value = None if x is None or y is None else float(compute())
        missing = value is None or math.isnan(value)
        assert (bool(passed[0]), bool(no_value[0])) == (not missing and value is not None and value > 0.25, missing)


def _divided(x: float | None, y: float | None) -> float:
    assert x is not None
    assert y is not None
    if y == 0:
        return math.nan if x == 0 else math.copysign(math.inf, x)
    return x / y


# --- one row at a time

ONE_ROW = """
quality > 0.5 | year = 2020 | ABS(quality) > 1 | ROUND(quality, 1) = 0.9 | CEIL(quality) = 1 | FLOOR(quality) = 0 | SIGN(year) = 1 | EXP(quality) > 2 | LN(quality) < 0
LOG10(quality) < 0 | POW(quality, 2) > 0.5 | SQRT(quality) > 0.5 | CBRT(quality) > 0.5 | MOD(year, 2) = 1 | SIN(quality) > 0 | DEGREES(quality) > 0 | year & 1 = 1
GREATEST(quality, year) > 1 | LEAST(quality, year) > 0 | COALESCE(quality, year) > 0 | IFNULL(quality, 1) > 0 | NULLIF(year, 7) > 1 | IF(good, quality, year) > 0.5
LENGTH(key) > 3 | OCTET_LENGTH(key) > 3 | LOWER(key) = 'é b' | UPPER(key) LIKE '%B' | REVERSE(key) = 'b é' | CONCAT(source, key) = 'a12' | LEFT(key, 4) = '2020'
RIGHT(key, 1) = 'b' | TRIM(key) = '12' | REPLACE(key, '2', 'x') = '1x' | STARTS_WITH(key, '20') | ENDS_WITH(key, 'b') | REGEXP_LIKE(key, '^[0-9]+$') | STRPOS(key, '0') > 0
SUBSTR(key, 2, 2) = '02' | key ~ 'b$' | key ILIKE '%B' | source = key | quality IS DISTINCT FROM year | words.count / words.count = 1 | CAST(quality AS INT) = 0
CAST(year AS VARCHAR) = '7' | DATE(key, '%Y-%m-%d') IS NOT NULL | words IS NOT NULL | quality IN (0.9, 0.6) | year IN (7, NULL) | good = (quality > 0.5)
bytes * 2 > 100 | bytes % 7 = 0 | bytes - year > 0 | CASE source WHEN 'a' THEN 1 ELSE 0 END = 1 | good IS NOT TRUE | (quality > 0) = good
"""


@pytest.mark.parametrize("text", [part.strip() for line in ONE_ROW.strip().splitlines() for part in line.split(" | ")])
def test_verdict_of_a_row_is_the_same_alone_and_among_others(text: str) -> None:
    checked = rule(text)
    together = verdicts(checked, ROWS)

    assert together == [verdicts(checked, [row])[0] for row in ROWS]
    assert together == verdicts(checked, ROWS[::-1])[::-1]
    assert verdicts(checked, []) == []
    assert verdicts(checked, ROWS * 3) == together * 3


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("quality > AVG(quality)", "an aggregate"),
        ("COUNT(*) > 3", "an aggregate"),
        ("COALESCE(SUM(quality), 0) > 1", "an aggregate"),
        ("CASE WHEN MAX(year) > 1 THEN good END", "an aggregate"),
        ("quality > MEDIAN(quality)", "an aggregate"),
        ("FIRST(quality) > 1", "an aggregate"),
        ("QUANTILE_CONT(quality, 0.5) > 1", "may look beyond one row"),
        ("CORR(quality, year) > 1", "may look beyond one row"),
        ("SUM(quality) OVER (PARTITION BY source) > 1", "a window"),
        ("ROW_NUMBER() OVER (ORDER BY quality) < 10", "a window"),
        ("LAG(quality) OVER (ORDER BY year) < 1", "a window"),
        ("quality IN (SELECT 1)", "may look beyond one row"),
        ("EXISTS (SELECT 1)", "a subquery"),
        ("quality > (SELECT MAX(quality) FROM pool)", "not an SQL expression"),
        ("STRING_AGG(key) = 'a'", "may look beyond one row"),
        ("COLUMNS('q.*') > 1", "may look beyond one row"),
        ("DATE(key) > DATE '2020-01-01'", "a date without a format"),
        ("CURRENT_TIMESTAMP > DATE '2020-01-01'", "the clock"),
        ("current_date IS NOT NULL", "the clock"),
        ("LOCALTIMESTAMP IS NOT NULL", "the clock"),
        ("NOW() IS NOT NULL", "the clock"),
        ("RANDOM() > 0.5", "not an SQL expression"),
        ("qualty > 0.5", "did you mean 'quality'?"),
        ('source = "a"', "names 'a', which is no column"),
        ("words.cuont > 1", "cuont"),
        ("quality", "a rule is Boolean"),
        ("year + 1", "a rule is Boolean"),
        ("words", "a rule is Boolean"),
        ("quality = 'a'", "cannot compare string with numeric"),
        ("source > 3", "cannot compare string with numeric"),
        ("CAST(source AS BOOLEAN)", "not supported"),
        ("quality > ", "not an SQL expression"),
        ("", "not an SQL expression"),
        ("quality > 1; good", "not an SQL expression"),
        ("key ~ '['", "regex"),
    ],
)  # fmt: skip
def test_what_is_no_rule_of_one_row_is_refused_by_name_in_one_line(text: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        rule(text)

    message = str(caught.value)
    assert message.startswith("steps[0].keep: ")
    assert repr(text) in message
    assert what in message
    assert "\n" not in message


def test_rule_names_the_values_it_reads() -> None:
    checked = rule("quality >= 0.6 AND words.count > 2 AND quality < 9 OR words.mean_length IS NULL OR source = 'a'")

    assert checked.reads == ["quality", "words.count", "words.mean_length", "source"]
    assert checked.columns == ["quality", "words", "source"]


def test_rule_of_a_quoted_name_reads_that_column() -> None:
    schema = pa.schema([("order", pa.int64()), ("Über", pa.int64())])

    checked = parse('"order" > 1 AND "Über" > 1', "", schema)

    assert checked.columns == ["order", "Über"]
    passed, _ = checked.decide(pl.DataFrame({"order": [2, 1], "Über": [2, 2]}))
    assert passed.tolist() == [True, False]
