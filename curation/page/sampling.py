"""Which documents are shown: a fixed, seeded choice that no window, worker or listing order changes.

Of each group the documents with the lowest lots are shown; of near-duplicates also those that are least alike, since a threshold is judged at its edge; of each threshold
the documents next to it on either side.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from curation.page.survey import numbers_of
from curation.page.thresholds import Threshold
from curation.page.windows import APART, KEPT, Floats, Integers, Lots, Mask, Window

DROPPED = 3
"""Documents shown of each rule."""
NEAR = 2
"""Documents shown on either side of a threshold."""
KEPT_SHOWN = 3
QUARANTINED = 2
PAIRS = 6
SIMILARITY_BARS = 50

Rows = npt.NDArray[np.uint64]


class Drawn(NamedTuple):
    """Some rows, by (key, lot): the lowest first."""

    keys: Floats
    lots: Lots
    rows: Rows

    def lowest(self, count: int) -> Drawn:
        order = np.lexsort((self.lots, self.keys))[:count]
        return Drawn(self.keys[order], self.lots[order], self.rows[order])


@dataclass
class Samples:
    """The rows to show by what they are shown for, and what was counted of duplicates on the way."""

    groups: dict[Hashable, Drawn] = field(default_factory=dict)
    similarities: dict[int, Integers] = field(default_factory=dict)
    """Per step the duplicates by similarity, in SIMILARITY_BARS equal parts of [0, 1]; 1 itself counts to the last."""
    identical: dict[int, int] = field(default_factory=dict)
    """Per step the duplicates whose similarity is 1."""
    survivors: dict[int, list[Rows]] = field(default_factory=dict)
    """Per step the surviving rows, one for each duplicate."""

    def add(self, group: Hashable, count: int, window: Window, chosen: Mask, keys: Floats | None = None) -> None:
        """Keeps the `count` lowest of a group by (key, lot)."""
        places = np.flatnonzero(chosen)
        if not len(places):
            return
        mine = keys[places] if keys is not None else np.zeros(len(places))
        fresh = Drawn(mine, window.lot[places], window.frame["row"].to_numpy()[places]).lowest(count)
        old = self.groups.get(group)
        joined = fresh if old is None else Drawn(*(np.concatenate(pair) for pair in zip(old, fresh, strict=True)))
        self.groups[group] = joined.lowest(count)

    def rows(self, group: Hashable) -> list[int]:
        found = self.groups.get(group)
        return [] if found is None else [int(row) for row in found.rows]


def take(window: Window, thresholds: list[Threshold], samples: Samples) -> None:
    """Adds what a window has to show."""
    for step in np.unique(window.step).tolist():
        if step not in (KEPT, APART):
            samples.add(("dropped", step), DROPPED, window, window.step == step)
    for source in np.unique(window.source).tolist():
        samples.add(("kept", source), KEPT_SHOWN, window, (window.step == KEPT) & (window.source == source))
    quarantined = (window.frame["decision"] == "quarantined").to_numpy()
    if quarantined.any():
        for reason in window.frame.filter(quarantined)["reason"].unique().to_list():
            samples.add(("quarantined", reason), QUARANTINED, window, quarantined & window.frame["reason"].eq_missing(reason).to_numpy())
    for one in thresholds:
        _beside(window, one, samples)
    _duplicates(window, samples)


def _beside(window: Window, threshold: Threshold, samples: Samples) -> None:
    """The documents next to a threshold: kept ones, and ones that its rule dropped for being beyond it."""
    assert threshold.at is not None
    column, _, part = threshold.value.partition(".")
    series = window.frame[column].struct.field(part) if part else window.frame[column]
    there = series.is_not_null().to_numpy()
    values = numbers_of(series)
    beyond = ~_holds(values, threshold.operator, threshold.at)
    distance = np.abs(values - threshold.at)
    name = (threshold.step, threshold.nth)
    samples.add(("inside", *name), NEAR, window, there & ~beyond & (window.step == KEPT), distance)
    samples.add(("outside", *name), NEAR, window, there & beyond & (window.step == threshold.step), distance)


def _holds(values: Floats, operator: str, at: float) -> Mask:
    compared: dict[str, Mask] = {">=": values >= at, ">": values > at, "<=": values <= at, "<": values < at}
    return compared[operator]


def _duplicates(window: Window, samples: Samples) -> None:
    """Documents whose evidence is a survivor, by the step that dropped them."""
    evidence = window.frame["evidence"]
    found = evidence.str.contains('"survivor":', literal=True).fill_null(False).to_numpy() & (window.step >= 0) & (window.step != KEPT)
    if not found.any():
        return
    places = np.flatnonzero(found)
    told = evidence.filter(found)
    similarity = np.ones(len(found))
    similarity[places] = told.str.extract(r'"similarity":([-+.0-9eE]+)').cast(pl.Float64).fill_null(1.0).to_numpy()
    survivor = told.str.extract(r'"row":(\d+)').cast(pl.UInt64)
    for step in np.unique(window.step[places]).tolist():
        mine = found & (window.step == step)
        bars = np.minimum((similarity[mine] * SIMILARITY_BARS).astype(np.int64), SIMILARITY_BARS - 1)
        counts = np.bincount(bars, minlength=SIMILARITY_BARS)
        samples.similarities[step] = samples.similarities.get(step, np.zeros(SIMILARITY_BARS, np.int64)) + counts
        rows = survivor.filter(window.step[places] == step).drop_nulls().to_numpy()
        samples.survivors.setdefault(step, []).append(rows)
        unlike = mine & (similarity < 1)
        samples.add(("pair", step), PAIRS, window, unlike)
        samples.add(("edge", step), PAIRS, window, unlike, similarity)
        samples.identical[step] = samples.identical.get(step, 0) + int(np.count_nonzero(mine & (similarity >= 1)))
