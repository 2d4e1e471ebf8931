"""What strategies learn from files: measurements and proxy ratios are read, and what they say is put into the weights' configuration.

In: weights as `mixing.strategies.parse` returns them, and a function that finds a file of the recipe. Out: the same weights, in which every file has
become its place and digest (`Found`) beside the numbers that were taken from it. Done before any text is read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from decimal import InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mixing import UserError
from mixing.measurements import read
from mixing.strategies import Group, Replay, inside, named
from mixing.strategies.measured import Found, OptimalDurations, Row, TopicController, learn_durations, learn_perplexities
from mixing.strategies.regression import Regression, fit

Find = Callable[[str, str], tuple[Found, list[Path]]]
"""(where in the recipe, the pattern written there) -> what the resolved recipe holds, and the files to read."""


def learn(where: str, weights: Any, known: list[str], find: Find) -> Any:
    """`weights` with everything that its files say; `known` are the components it may mix."""
    if isinstance(weights, dict):
        return {
            name: one.model_copy(
                update={"components": learn(f"{where}.{name}.components", one.components, inside(weights, name, known), find)}
            )
            if isinstance(one, Group)
            else one
            for name, one in weights.items()
        }
    if isinstance(weights, Replay):
        of_replay = named(weights.replay, known)
        rest = [name for name in known if name not in of_replay]
        parts = {"replay": learn(f"{where}.replay", weights.replay, known, find), "rest": learn(f"{where}.rest", weights.rest, rest, find)}
        return weights.model_copy(update=parts)
    try:
        return _learned(where, weights, named(weights, known), find)
    except UserError as error:
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from None


def _learned(where: str, config: Any, components: list[str], find: Find) -> Any:
    if isinstance(getattr(config, "measurements", None), str):
        found, rows = _rows(f"{where}.measurements", config.measurements, find)
        if isinstance(config, OptimalDurations):
            return learn_durations(config, components, rows).model_copy(update={"measurements": found})
        if isinstance(config, TopicController):
            return learn_perplexities(config, rows).model_copy(update={"measurements": found})
        assert isinstance(config, Regression)
        place, paths = find(f"{where}.ratios", config.ratios if isinstance(config.ratios, str) else "")
        ratios = {run: values for path in paths for run, values in read_ratios(path, components).items()}
        return fit(config, components, ratios, rows).model_copy(update={"measurements": found, "ratios": place})
    return config


def _rows(where: str, pattern: str, find: Find) -> tuple[Found, list[Row]]:
    found, paths = find(where, pattern)
    return found, [Row(**row) for path in paths for row in read(path).select(Row._fields).to_pylist()]


def read_ratios(path: Path, components: list[str]) -> dict[str, dict[str, Fraction]]:
    """The ratios of each run in a .csv, .jsonl or .parquet file: a column `run`, and for each component one of non-negative numbers, of any scale."""
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file, strict=True))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
        else:
            raise UserError(f"{path}: ratios are read from .csv, .jsonl, .parquet")
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    ratios: dict[str, dict[str, Fraction]] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or set(row) != {"run", *components}:
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{path}, row {number}: found {columns}; ratios have: run, {', '.join(components)}")
        try:
            values = {name: Fraction(str(row[name])) for name in components}
        except (ValueError, ZeroDivisionError, InvalidOperation):
            raise UserError(f"{path}, row {number}: found {[row[name] for name in components]}; ratios are numbers") from None
        if min(values.values()) < 0 or not any(values.values()):
            raise UserError(f"{path}, row {number}: ratios are not negative, and not all 0")
        if str(row["run"]) in ratios:
            raise UserError(f"{path}, row {number}: run '{row['run']}' is there twice")
        ratios[str(row["run"])] = values
    return ratios
