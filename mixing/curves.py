"""What training recorded, as curves: the folders of runs, which way is better, and the stability gap.

The stability gap is how far a metric falls when training moves to new data, and whether it comes back (arXiv 2406.14833; the name is of 2205.13452). In: a
curve, its first point before training. Out: depth, position of the minimum, the mark at which it is back, area; and how much of it is left at the end.
Losses are looked at upside down, so that a fall is always a loss of ability. Between its points a curve is straight. Needs no torch: the trainer's report and
the manifest's show the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mixing import UserError
from mixing.measurements import Measurement, measured

LOWER_IS_BETTER = ("loss", "bits_per_byte", "perplexity")


def lower_is_better(metric: str) -> bool:
    return metric.partition("/")[0] in LOWER_IS_BETTER


def gain(metric: str, before: float, after: float) -> float:
    """How much better `after` is, positive for better whatever the metric's direction."""
    return before - after if lower_is_better(metric) else after - before


def chord(values: Mapping[tuple[float, ...], float], weights: tuple[float, ...]) -> float:
    """What a straight line between models would give a soup of them: the mean of their own values, by its weights. `values` are by weights, those of one model alone among them."""
    corners = [tuple(float(i == j) for j in range(len(weights))) for i in range(len(weights))]
    return math.fsum(weight * values[corner] for weight, corner in zip(weights, corners, strict=True) if weight)


class Gap(NamedTuple):
    """What a curve did below its start A_0. In the metric's unit and in tokens."""

    depth: float
    """max(0, A_0 - min A_t)"""
    at: int
    """the tokens at which A_t is lowest; 0 if it never fell"""
    recovered: int | None
    """the first mark after the minimum with A_t >= A_0; None if there was none"""
    area: float
    """the integral of (A_0 - A_t)+ over tokens"""
    end: float
    """A_end - A_0: what is kept (0), gained or lost (below 0)"""


def gap(metric: str, curve: Sequence[tuple[int, float]]) -> Gap:
    """Of a curve of (tokens, value) from token 0 on; values that are not finite are left out."""
    points = sorted((tokens, value) for tokens, value in curve if math.isfinite(value))
    if len(points) < 2 or points[0][0] != 0:
        raise UserError(
            f"'{metric}' has {len(points)} finite value(s), beginning at token {points[0][0] if points else '-'}; a curve begins at token 0"
        )
    start = points[0][1]
    change = [(tokens, gain(metric, start, value)) for tokens, value in points]
    lowest = min(change, key=lambda point: (point[1], point[0]))
    depth = max(0.0, -lowest[1])
    at = lowest[0] if depth else 0
    recovered = next((tokens for tokens, value in change if tokens > at and value >= 0), None) if depth else 0
    return Gap(depth, at, recovered, math.fsum(_below(left, right) for left, right in pairwise(change)), change[-1][1])


def _below(left: tuple[int, float], right: tuple[int, float]) -> float:
    """The area between 0 and the part of a straight piece that lies below."""
    width, a, b = right[0] - left[0], max(0.0, -left[1]), max(0.0, -right[1])
    if (a and b) or a == b:
        return width * (a + b) / 2
    crossing = max(a, b) / abs(left[1] - right[1])  # the share of the piece that is below
    return width * crossing * max(a, b) / 2


def gaps(rows: Iterable[Measurement]) -> dict[tuple[str, str | None], Gap]:
    """Of every guard metric of one run."""
    curves: dict[tuple[str, str | None], list[tuple[int, float]]] = {}
    for row in rows:
        if row.group == "guard" and row.value is not None:
            curves.setdefault((row.metric, row.component), []).append((row.tokens, row.value))
    return {key: gap(key[0], curve) for key, curve in curves.items()}


def retention(found: Mapping[tuple[str, str | None], Gap], metric: str = "loss") -> float | None:
    """The mean over the guards of what is kept of `metric` at the end, in its unit: 0 nothing lost, below 0 forgotten. None without guards."""
    ends = [one.end for (name, _), one in found.items() if name.partition("/")[0] == metric]
    return math.fsum(ends) / len(ends) if ends else None


class RunRecord(NamedTuple):
    """A run as it goes by in a report: its lines of metrics, and what was measured."""

    name: str
    metrics: list[dict[str, Any]]
    measured: list[Measurement]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of what is above them as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{folders[0]}: given twice; name each folder once")


def read_run(folder: Path, name: str) -> RunRecord:
    """The record in a run's folder; the last line of metrics may be half written."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows = measured(folder / "measurements.jsonl") if (folder / "measurements.jsonl").is_file() else []
    return RunRecord(name, [json.loads(line) for line in lines if line.endswith("\n")], rows)


def label(metric: str, component: str | None) -> str:
    return metric if component is None else f"{metric} of {component}"


def measured_series(runs: Iterable[RunRecord]) -> list[tuple[str, str, dict[str, list[tuple[float, float]]]]]:
    """(label, group, (tokens, value) by run) of every metric, targets first, whole runs before components; bits a byte are the loss of the same documents."""
    kinds: dict[str, tuple[str, dict[str, list[tuple[float, float]]]]] = {}
    for run in runs:
        for row in run.measured:
            if row.value is not None and not row.metric.startswith("bits_per_byte"):
                _, series = kinds.setdefault(label(row.metric, row.component), (row.group, {}))
                series.setdefault(run.name, []).append((row.tokens, row.value))
    ordered = sorted(kinds.items(), key=lambda entry: (entry[1][0] != "target", " of " in entry[0]))
    return [(name, group, series) for name, (group, series) in ordered]


def thinned(curve: Sequence[tuple[float, float]], most: int = 120) -> list[tuple[float, float]]:
    """At most `most` points, the first and the last among them."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(number * (len(curve) - 1) / (most - 1))] for number in range(most)]


def smoothed(curve: Sequence[tuple[float, float]], most: int = 120) -> list[tuple[float, float]]:
    """Means of at most `most` equal groups of neighbours."""
    size = -(-len(curve) // most) or 1
    groups = [curve[begin : begin + size] for begin in range(0, len(curve), size)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]
