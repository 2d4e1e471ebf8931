"""How a value is laid out: the axis of its histogram, and the thresholds that its slider stops at.

A heavy tail is drawn over logarithms, small whole numbers one by one. Half a percent at either end is gathered in the outermost bars, so that one broken document does not
flatten the picture. A slider stops at numbers that a person would write, three digits long, where the documents are and all along the axis.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from curation.page.survey import Spread
from curation.page.windows import Floats, Integers
from mixing.chart import ticks

BARS = 44
BARS_OF_COUNTS = 30
"""Over logarithms whole numbers lie far apart."""
STOPS = 96
OUTER = 0.005
CLOSE = 0.05
"""A threshold nearer to the left end than this, of the range, calls for logarithms too."""
MARGIN = 0.06
"""What is shown beyond a threshold, of the range."""
DIGITS = 3
HEAVY = 12.0
"""How far the range of a count reaches beyond its median before it is drawn over logarithms; a share never is."""


class Axis(NamedTuple):
    """From values to bars: `[low, high]` in `bars` equal parts; of log(value + shift) if there is a shift. Values beyond the ends count to the outermost bars."""

    low: float
    high: float
    bars: int
    shift: float | None

    def place(self, value: float) -> float:
        """0 at the left end, 1 at the right."""
        a, b, x = (one if self.shift is None else math.log(max(one + self.shift, 1e-300)) for one in (self.low, self.high, value))
        return min(1.0, max(0.0, (x - a) / (b - a)))

    def value(self, place: float) -> float:
        """What lies at a place between 0 and 1."""
        if self.shift is None:
            return self.low + place * (self.high - self.low)
        a, b = math.log(self.low + self.shift), math.log(self.high + self.shift)
        return math.exp(a + place * (b - a)) - self.shift

    def bar(self, values: Floats) -> Integers:
        """The bar of each value."""
        a, b = self.low, self.high
        if self.shift is not None:
            values, a, b = np.log(np.maximum(values + self.shift, 1e-300)), math.log(a + self.shift), math.log(b + self.shift)
        bars = np.floor((values - a) / (b - a) * self.bars)
        return np.clip(bars, 0, self.bars - 1).astype(np.int64)


def axis_of(spread: Spread, marks: list[float]) -> Axis:
    """The axis of a value; `marks`, the recipe's thresholds, lie on it."""
    low, high = spread.quantile(OUTER), spread.quantile(1 - OUTER)
    inside = [mark for mark in marks if spread.low <= mark <= spread.high]
    margin = (high - low) * MARGIN
    low, high = (
        max(spread.low, min([low, *(mark - margin for mark in inside)])),
        min(spread.high, max([high, *(mark + margin for mark in inside)])),
    )
    if spread.whole and high - low < BARS:
        low, high = math.floor(low), math.ceil(high)
        return Axis(low - 0.5, high + 0.5, int(high - low) + 1, None)
    heavy = high > max(1.0, HEAVY * spread.quantile(0.5)) or (high > 1 and any(mark - low < CLOSE * (high - low) for mark in inside))
    if low >= 0 and heavy and (low > 0 or spread.whole):
        return Axis(low, high, BARS if not spread.whole else BARS_OF_COUNTS, 0.0 if low > 0 else 1.0)
    if high <= low:
        low, high = (spread.low, spread.high) if spread.high > spread.low else (low - 0.5, high + 0.5)
    return Axis(low, high, BARS, None)


def stops_of(spread: Spread, axis: Axis, at: float) -> list[float]:
    """The thresholds of a slider, ascending: the recipe's own, the lowest and the highest value, and numbers of three digits, some at equal shares of the documents and
    some at equal distances on the axis, where a threshold may lie among few."""
    shares = np.linspace(0, 1, STOPS // 2)
    among = spread.sample[np.rint(shares * (len(spread.sample) - 1)).astype(np.int64)].tolist()
    along = ticks(axis.low, axis.high, STOPS // 2) if axis.shift is None else [axis.value(place / STOPS * 2) for place in range(STOPS // 2)]
    if spread.whole:
        along = [float(round(value)) for value in along]
    found = {_written(value) for value in [*among, *along] if spread.low <= value <= spread.high}
    return sorted(found | {math.floor(spread.low * 1e6) / 1e6, math.ceil(spread.high * 1e6) / 1e6, at})


def _written(value: float) -> float:
    """A number of three digits; a whole number below a thousand is one already."""
    if value == 0 or (value == int(value) and abs(value) < 1000):
        return value
    return float(f"{value:.{DIGITS}g}")
