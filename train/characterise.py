"""What each data set does to each metric: helped, hurt or unaffected, against a band of noise.

In: a sweep's folder. Out: per data set and metric the change from before training to the end of the best cell, and a verdict: outside the band or not.
With several seeds the band is twice the standard error of the change over seeds; with one, twice the standard deviation of the change under a
paired bootstrap over documents and questions (the same draw before and after). A data set is to be dropped only if it hurts the target at every
learning rate: one rate says more about the rate than about the data. Compute is 6 N D (arXiv 2001.08361), pre-training and continuation together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from mixing import UserError
from mixing.curves import gain, lower_is_better
from mixing.measurements import measured
from train import goal, sweep
from train.sweep import Cell, Lane, Sweep

DRAWS = 1000


class Change(NamedTuple):
    """Of one metric, by how much it got better, and the band within which that may be noise."""

    gain: float
    band: float

    @property
    def verdict(self) -> str:
        if not math.isfinite(self.gain):
            return "diverged"
        return "helped" if self.gain > self.band else "hurt" if self.gain < -self.band else "unaffected"


class Character(NamedTuple):
    """One data set: its changes at the chosen cell, the target's at each learning rate, and whether that says to drop it."""

    name: str
    target: str
    learning_rate: float
    duration: int
    changes: dict[str, Change]
    by_rate: dict[float, Change]

    @property
    def drop(self) -> bool:
        return all(change.verdict in ("hurt", "diverged") for change in self.by_rate.values())


Items = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def flops(parameters: float, tokens: float) -> float:
    """6 N D."""
    return 6.0 * parameters * tokens


def over_seeds(gains: Sequence[float]) -> Change:
    """The mean, and twice its standard error."""
    mean = math.fsum(gains) / len(gains)
    return Change(mean, 2 * math.sqrt(math.fsum((one - mean) ** 2 for one in gains) / (len(gains) - 1) / len(gains)))


def over_items(metric: str, before: Items, after: Items, seed: int = 17) -> Change:
    """The change of a ratio of sums, and twice its standard deviation when the same items are drawn again, with replacement, on both sides."""
    assert len(before[0]) == len(after[0])

    def ratio(items: Items) -> float:
        return math.fsum(items[0].tolist()) / math.fsum(items[1].tolist())

    random = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(random.integers(0, len(before[0]), len(before[0])), minlength=len(before[0])) for _ in range(DRAWS)])
    drawn = drawn[(drawn @ before[1] > 0) & (drawn @ after[1] > 0)]
    changes = drawn @ after[0] / (drawn @ after[1]) - drawn @ before[0] / (drawn @ before[1])
    return Change(gain(metric, ratio(before), ratio(after)), 2 * float(changes.std()))


def items(run: Path, tokens: int) -> dict[str, Items]:
    """What each document or question gave, by metric of the whole run."""
    table = pq.read_table(run / "items" / f"{tokens}.parquet").to_pylist()
    found: dict[str, list[tuple[float, float]]] = {}
    for row in table:
        if row["component"] is None:
            found.setdefault(row["metric"], []).append((row["numerator"], row["denominator"]))
    return {metric: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for metric, pairs in found.items()}


def change(metric: str, places: Sequence[tuple[Path, int]]) -> Change:
    """Of one cell in all its seeds: (run, tokens at its end)."""
    values = [(goal.at(rows, 0)[metric], goal.at(rows, end)[metric]) for rows, end in ((_rows(run), end) for run, end in places)]
    gains = [gain(metric, before, after) for before, after in values]
    if len(gains) > 1 or not all(map(math.isfinite, gains)):
        return over_seeds(gains) if len(gains) > 1 else Change(gains[0], 0.0)
    run, end = places[0]
    return over_items(metric, items(run, 0)[metric], items(run, end)[metric])


def _rows(run: Path) -> list[Any]:
    return measured(run / "measurements.jsonl")


def characterise(folder: Path) -> list[Character]:
    """Every data set of a finished sweep. At a rate where no duration keeps the guards, or none was chosen, the best duration counts."""
    if not (folder / "sweep.yaml").is_file() or not (folder / "sweep.json").is_file():
        raise UserError(f"{folder}: no finished sweep here; give the folder that `train sweep` wrote to, when it is through")
    import yaml

    described = Sweep(**yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))["sweep"])
    by_place: dict[str, dict[tuple[float, int], list[Cell]]] = {}
    for lane in sweep.lanes(described):
        for cell in sweep.cells(described, Lane(*lane)):
            by_place.setdefault(lane.name, {}).setdefault((lane.rate, cell.duration), []).append(cell)
    return [_character(described, name, places, folder) for name, places in by_place.items()]


def _character(described: Sweep, name: str, places: Mapping[tuple[float, int], list[Cell]], folder: Path) -> Character:
    target = described.target_of(name)
    runs = {place: [(folder / "cells" / cell.name, cell.tokens) for cell in found] for place, found in places.items()}
    metrics = list(goal.at(_rows(next(iter(runs.values()))[0][0]), 0))
    at_place = {place: change(target, found) for place, found in runs.items()}

    def best(rate: float) -> tuple[float, int]:
        return max((place for place in runs if place[0] == rate), key=lambda place: (_comparable(at_place[place].gain), -place[1]))

    rates = sorted({rate for rate, _ in runs})
    allowed = sweep.outcome(described, folder)["data_sets"][name]["best"]
    rate, duration = (
        (allowed["learning_rate"], allowed["duration"])
        if allowed
        else max((best(rate) for rate in rates), key=lambda place: (_comparable(at_place[place].gain), -place[0]))
    )
    changes = {metric: change(metric, runs[rate, duration]) for metric in metrics}
    return Character(name, target, rate, duration, changes, {one: at_place[best(one)] for one in rates})


def _comparable(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def compute(folder: Path, parameters: float, base_tokens: float) -> list[dict[str, Any]]:
    """Per data set and duration the best target over the rates, with the training FLOPs of base and continuation: what more compute buys."""
    result = []
    for one in characterise(folder):
        cells = sweep_cells(folder, one.name)
        for duration in sorted({cell["duration"] for cell in cells}):
            values = [
                cell["values"][one.target] for cell in cells if cell["duration"] == duration and cell["values"][one.target] is not None
            ]
            if values:
                best = min(values) if lower_is_better(one.target) else max(values)
                spent = flops(parameters, base_tokens + duration)
                result.append({"data_set": one.name, "duration": duration, "flops": spent, "metric": one.target, "best": best})
    return result


def sweep_cells(folder: Path, name: str) -> list[dict[str, Any]]:
    import json

    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["data_sets"][name]["cells"]
    return found


def described(characters: Sequence[Character]) -> list[dict[str, Any]]:
    """What `shown` tells, for a program; a number that is not finite is None."""

    def told(found: Change) -> dict[str, Any]:
        numbers = {name: value if math.isfinite(value) else None for name, value in found._asdict().items()}
        return numbers | {"verdict": found.verdict}

    return [
        {
            "data_set": one.name,
            "target": one.target,
            "learning_rate": one.learning_rate,
            "duration": one.duration,
            "drop": one.drop,
            "changes": {metric: told(found) for metric, found in one.changes.items()},
            "by_rate": {f"{rate:g}": told(found) for rate, found in one.by_rate.items()},
        }
        for one in characters
    ]


def shown(characters: Sequence[Character]) -> str:
    """A row per data set and metric; then what is to be dropped."""
    rows = [["data set", "metric", "gain", "band", "verdict"]]
    for one in characters:
        for metric, found in one.changes.items():
            marked = f"{metric} (target)" if metric == one.target else metric
            rows.append([one.name, marked, f"{found.gain:+.4f}", f"{found.band:.4f}", found.verdict])
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for one in characters:
        lines.append(
            f"{one.name}: drop, it hurts {one.target} at every learning rate"
            if one.drop
            else f"{one.name}: keep, at learning rate {one.learning_rate:g} for {one.duration:,} tokens"
        )
    return "\n".join(lines)
