"""The second pass over the pool: distributions, what other thresholds would keep, duplicates, and the documents that are shown.

Every count is exact and over all documents. What a threshold keeps is counted at each stop of its slider: the documents kept today that would still pass, and those its own
rule dropped that would come back, which the later steps would have to judge and which therefore are told apart. The tokens of documents that were never counted (most dropped
ones) are estimated from their bytes at the rate of their source, and said to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.page.axes import Axis, axis_of, stops_of
from curation.page.sampling import Samples, take
from curation.page.survey import Survey, decided, numbers_of
from curation.page.thresholds import Threshold
from curation.page.windows import KEPT, Floats, Integers, Value, Window, windows
from mixing.manifest import Manifest

LABELS = 5_000
"""A column of text with more different values than this is no label."""
FATES = ("kept", "own", "other")
"""Kept; dropped by a rule that reads the value; dropped by another."""


class Kept(NamedTuple):
    """Per source and stop (`[sources, stops]`): what is kept at it. Tokens are rounded, and partly estimated where `estimated` says so."""

    documents: Integers
    tokens: Integers
    estimated: bool


class Moved(NamedTuple):
    """What other thresholds would do. `stays` are the documents kept today that would still be, `returns` those that the rule dropped and would not drop."""

    threshold: Threshold
    stops: list[float]
    stays: Kept
    returns: Kept

    @property
    def here(self) -> int:
        """The stop that is the recipe's."""
        assert self.threshold.at is not None
        return self.stops.index(self.threshold.at)


@dataclass
class Tally:
    """A threshold while it is counted: `[truth of the comparison needed, stays or returns, amount, source, bin]`; untouched ones pass whatever the number is."""

    threshold: Threshold
    stops: Floats
    bins: npt.NDArray[np.int64]
    untouched: npt.NDArray[np.int64]


@dataclass
class Counts:
    """What the second pass found."""

    axes: dict[str, Axis] = field(default_factory=dict)
    bars: dict[str, Integers] = field(default_factory=dict)
    """Per value the documents of each fate in each bar: `[3, bars]`."""
    labels: dict[str, Counter[tuple[str, bool]]] = field(default_factory=dict)
    """Per label, and whether they are kept, its documents."""
    moved: list[Moved] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)


def count(manifest: Manifest, values: list[Value], found: list[Threshold], known: Survey, advance: Callable[[int], None]) -> Counts:
    """The second pass. Thresholds of a `top` whose cut nothing shows are left out."""
    placed = [one if one.at is not None else one._replace(at=known.cuts.get(one.step)) for one in found]
    made = Counts()
    own = {value.name: [one.step for one in found if one.value == value.name] for value in values}
    for value in values:
        if value.kind == "label":
            made.labels[value.name] = Counter()
        elif known.spreads[value.name].drawable:
            marks = [one.at for one in placed if one.value == value.name and one.at is not None]
            axis = made.axes[value.name] = axis_of(known.spreads[value.name], marks)
            made.bars[value.name] = np.zeros((len(FATES), axis.bars), np.int64)
    tallies = [_tally(one, known, made.axes[one.value]) for one in placed if one.at is not None and one.value in made.axes]
    read = [value.name for value in values] + [name for one in found for outcome in one.outcomes for name in outcome.meta.root_names()]
    for window in windows(manifest, read):
        for value in values:
            _distribute(window, value, own[value.name], made)
        for tally in tallies:
            _add(window, tally)
        advance(window.frame.height)
        take(window, [tally.threshold for tally in tallies], made.samples)
    rates = known.tokens_per_byte()
    made.moved = [_moved(tally, rates) for tally in tallies]
    return made


def _distribute(window: Window, value: Value, own: list[int], made: Counts) -> None:
    series = value.of(window.frame)
    chosen = window.alive(value.step) & series.is_not_null().to_numpy()
    fate = np.where(window.step == KEPT, 0, np.where(np.isin(window.step, own), 1, 2))[chosen]
    if value.name in made.bars:
        bars = made.bars[value.name]
        place = fate * bars.shape[1] + made.axes[value.name].bar(numbers_of(series)[chosen])
        bars += np.bincount(place, minlength=bars.size).reshape(bars.shape)
    elif value.name in made.labels:
        labels = series.filter(chosen).cast(str).to_frame("label").with_columns(kept=fate == 0)
        made.labels[value.name].update({(label, kept): n for label, kept, n in labels.group_by("label", "kept").len().iter_rows()})
        if len(made.labels[value.name]) > LABELS:
            del made.labels[value.name]


def _tally(threshold: Threshold, known: Survey, axis: Axis) -> Tally:
    assert threshold.at is not None
    stops = np.array(stops_of(known.spreads[threshold.value], axis, threshold.at))
    size = len(known.sources)
    return Tally(threshold, stops, np.zeros((2, 2, 3, size, len(stops) + 1), np.int64), np.zeros((3, size), np.int64))


def _bin(values: Floats, stops: Floats, operator: str) -> Integers:
    """How many stops lie before a value, so that `value >= stop` (`>`) holds for the stops before its bin, and `<` (`<=`) for the others."""
    return np.searchsorted(stops, values, side="right" if operator in (">=", "<") else "left").astype(np.int64)


def _add(window: Window, tally: Tally) -> None:
    threshold = tally.threshold
    kept, back = window.step == KEPT, window.step == threshold.step
    reached = kept | back
    if not reached.any():
        return
    column, _, part = threshold.value.partition(".")
    series = window.frame[column].struct.field(part) if part else window.frame[column]
    there = series.is_not_null().to_numpy() & reached
    holds, fails = decided(window.frame, threshold.outcomes.holds), decided(window.frame, threshold.outcomes.fails)
    always = kept & ~(there & (holds != fails))
    for place, amount in enumerate(_amounts(window)):
        tally.untouched[place] += np.bincount(window.source[always], amount[always], tally.untouched.shape[1]).astype(np.int64)
    size, width = tally.bins.shape[3:]
    bins = window.source * width + _bin(numbers_of(series), tally.stops, threshold.operator)
    for truth, decides in enumerate((there & fails & ~holds, there & holds & ~fails)):
        for group, mine in enumerate((decides & kept, decides & back)):
            for place, amount in enumerate(_amounts(window)):
                added = np.bincount(bins[mine], amount[mine], size * width)
                tally.bins[truth, group, place] += added.astype(np.int64).reshape(size, width)


def _amounts(window: Window) -> tuple[Integers, Integers, Integers]:
    """Documents, tokens that were counted, and the bytes of documents whose tokens were not."""
    counted = window.tokens >= 0
    return np.ones(len(counted), np.int64), np.where(counted, window.tokens, 0), np.where(counted, 0, window.bytes)


def _moved(tally: Tally, rates: Floats) -> Moved:
    stays, returns = (_passing(tally.bins[:, group], tally.threshold.operator) for group in (0, 1))
    stays = stays + tally.untouched[:, :, None]
    return Moved(tally.threshold, tally.stops.tolist(), _kept(stays, rates), _kept(returns, rates))


def _passing(bins: npt.NDArray[np.int64], operator: str) -> npt.NDArray[np.int64]:
    """`[amount, source, stop]`: what passes with the threshold at each stop. A document that passes where the comparison fails passes at the other stops."""
    below = np.cumsum(bins, axis=-1)[..., :-1]
    total = bins.sum(axis=-1, keepdims=True)
    holding = below if operator in ("<", "<=") else total - below
    passing: npt.NDArray[np.int64] = holding[1] + (total - holding)[0]
    return passing


def _kept(amounts: npt.NDArray[np.int64], rates: Floats) -> Kept:
    documents, tokens, uncounted = amounts
    return Kept(documents, np.rint(tokens + uncounted * rates[:, None]).astype(np.int64), bool(uncounted.any()))
