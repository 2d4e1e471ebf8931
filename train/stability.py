"""The stability gap: how far a metric falls when training moves to new data, and whether it comes back (arXiv 2406.14833; the name is of 2205.13452).

In: a curve, its first point before training. Out: depth, position of the minimum, the mark at which it is back, area; and how much of it is left at the
end. Losses are looked at upside down, so that a fall is always a loss of ability. Between its points a curve is straight. Beside it, a diagnostic of
weights: the relative update of each layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mixing import UserError
from mixing.measurements import Measurement
from train.goal import gain

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


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


class Updates(NamedTuple):
    """Relative updates |w_t - w_0| / |w_0| by layer, and that of the lowest `k` layers over that of the highest `k`."""

    layers: list[float]
    ratio: float | None


def relative_updates(base: Path, trained: Path, k: int = 5) -> Updates:
    """From two folders of safetensors with the same tensors. Norms are of whole layers, so that weights near 0 do not divide."""
    from train.soup import ingredients

    first, second = ingredients([base, trained])
    squares: dict[int, tuple[float, float]] = {}
    for name in first.files:
        if match := _LAYER.search(name):
            before, after = first.tensor(name).double(), second.tensor(name).double()
            moved, size = squares.get(int(match[1]), (0.0, 0.0))
            squares[int(match[1])] = moved + (after - before).square().sum().item(), size + before.square().sum().item()
    layers = [math.sqrt(moved / size) for _, (moved, size) in sorted(squares.items())]
    k = min(k, len(layers) // 2)
    highest = sum(layers[-k:]) if k else 0.0
    return Updates(layers, sum(layers[:k]) / highest if highest else None)
