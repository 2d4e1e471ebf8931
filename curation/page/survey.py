"""The first pass over the pool: how many there are of what, and over which range each value runs.

Counts are exact. Quantiles are those of the 65,536 documents with the lowest lots among those that have the value, or of all where there are fewer; they choose where axes
end and which thresholds are looked at, and no count depends on them. Infinite values count, and stand at the ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from curation.page.thresholds import Threshold
from curation.page.windows import APART, KEPT, Floats, Integers, Lots, Value, Window, source_names, windows
from mixing.manifest import Manifest

SAMPLE = 1 << 16
DECISIONS = ("kept", "dropped", "held_out", "quarantined")


@dataclass
class Spread:
    """One value over the documents that were alive when it was computed."""

    known: int = 0
    missing: int = 0
    low: float = np.inf
    high: float = -np.inf
    whole: bool = True
    sample: Floats = field(default_factory=lambda: np.zeros(0))
    """Drawn finite values; in order once all are drawn."""
    lots: Lots = field(default_factory=lambda: np.zeros(0, np.uint64))

    def draw(self, values: Floats, lots: Lots) -> None:
        """Adds values, and lets go of those with high lots when there are many."""
        if len(self.lots) >= SAMPLE:
            lower = lots < self.lots.max()
            values, lots = values[lower], lots[lower]
        self.sample, self.lots = np.concatenate([self.sample, values]), np.concatenate([self.lots, lots])
        if len(self.lots) > 2 * SAMPLE:
            self._lowest()

    def _lowest(self) -> None:
        lowest = np.argpartition(self.lots, SAMPLE)[:SAMPLE]
        self.sample, self.lots = self.sample[lowest], self.lots[lowest]

    def finish(self) -> None:
        """Nothing more is drawn."""
        if len(self.lots) > SAMPLE:
            self._lowest()
        self.sample, self.lots = np.sort(self.sample), np.zeros(0, np.uint64)

    @property
    def drawable(self) -> bool:
        """Whether there is a finite value."""
        return len(self.sample) > 0

    def quantile(self, share: float) -> float:
        return float(self.sample[round(share * (len(self.sample) - 1))])


@dataclass
class Survey:
    """What the pool holds, counted anew: nothing here is taken from the manifest's header."""

    sources: list[str]
    decisions: dict[str, Integers]
    """Per decision the records of each source."""
    dropped: dict[int, Integers]
    """Per step the documents of each source that it dropped."""
    counted: Integers
    """The tokens of each source's documents that were counted, and their bytes: `[2, sources]`."""
    spreads: dict[str, Spread]
    cuts: dict[int, float]
    """The worst value that each `top` took."""
    kept_tokens: Integers
    rows: Integers
    """Per source its first row and the one after its last: `[sources, 2]`."""

    def tokens_per_byte(self) -> Floats:
        """By source, of the documents whose tokens are known; over all sources where a source has none."""
        tokens, size = self.counted.astype(np.float64)
        overall = tokens.sum() / size.sum() if size.sum() else 0.0
        return np.where(size > 0, tokens / np.maximum(size, 1), overall)


def survey(manifest: Manifest, values: list[Value], found: list[Threshold], advance: Callable[[int], None]) -> Survey:
    """The first pass; `advance` is told the rows that were read."""
    names = source_names(manifest)
    numbers = [value for value in values if value.kind == "number"]
    tops = [one for one in found if one.at is None]
    made = Survey(
        names,
        {decision: np.zeros(len(names), np.int64) for decision in DECISIONS},
        {},
        np.zeros((2, len(names)), np.int64),
        {value.name: Spread() for value in numbers},
        {},
        np.zeros(len(names), np.int64),
        np.tile(np.array([np.iinfo(np.int64).max, 0]), (len(names), 1)),
    )
    for window in windows(manifest, [value.name for value in numbers] + [column for top in tops for column in _columns(top)]):
        _count(window, made)
        advance(window.frame.height)
        for value in numbers:
            series = value.of(window.frame)
            _spread(window, series, value.step, made.spreads[value.name])
        for top in tops:
            _cut(window, top, made.cuts)
    for spread in made.spreads.values():
        spread.finish()
    return made


def _columns(threshold: Threshold) -> list[str]:
    read = [name for outcome in threshold.outcomes for name in outcome.meta.root_names()]
    return [*read, threshold.value]


def _count(window: Window, made: Survey) -> None:
    size = len(made.sources)
    decision = window.frame["decision"]
    for name, counts in made.decisions.items():
        counts += np.bincount(window.source[(decision == name).to_numpy()], minlength=size)
    for step in np.unique(window.step).tolist():
        if step not in (KEPT, APART):
            mine = np.bincount(window.source[window.step == step], minlength=size)
            made.dropped[step] = made.dropped.get(step, np.zeros(size, np.int64)) + mine
    rows = window.frame["row"].to_numpy().astype(np.int64)
    for source in np.unique(window.source).tolist():
        mine = rows[window.source == source]
        made.rows[source] = min(made.rows[source, 0], mine.min()), max(made.rows[source, 1], mine.max() + 1)
    known = window.tokens >= 0
    for place, amounts in enumerate((window.tokens, window.bytes)):
        made.counted[place] += np.bincount(window.source[known], amounts[known], size).astype(np.int64)
    kept = known & (window.step == KEPT)
    made.kept_tokens += np.bincount(window.source[kept], window.tokens[kept], size).astype(np.int64)


def _spread(window: Window, series: pl.Series, step: int, spread: Spread) -> None:
    alive = window.alive(step)
    there = series.is_not_null().to_numpy()
    spread.missing += int(np.count_nonzero(alive & ~there))
    chosen = alive & there
    if not chosen.any():
        return
    spread.known += int(np.count_nonzero(chosen))
    values = numbers_of(series)
    chosen &= np.isfinite(values)
    mine = values[chosen]
    if not len(mine):
        return
    spread.low, spread.high = min(spread.low, float(mine.min())), max(spread.high, float(mine.max()))
    spread.whole = spread.whole and (series.dtype.is_integer() or bool((mine == np.floor(mine)).all()))
    spread.draw(mine, window.lot[chosen])


def numbers_of(series: pl.Series) -> Floats:
    """As doubles, null as 0, NaN (which a carried column may have) as what is greater than every number."""
    values: Floats = series.cast(pl.Float64).fill_null(0.0).fill_nan(np.inf).to_numpy()
    return values


def _cut(window: Window, top: Threshold, cuts: dict[int, float]) -> None:
    column, _, part = top.value.partition(".")
    series = window.frame[column].struct.field(part) if part else window.frame[column]
    inside = ~decided(window.frame, top.outcomes.fails)
    taken = inside & series.is_not_null().to_numpy() & (window.step > top.step)
    if taken.any():
        worst, mine = (max if top.operator == "<=" else min), numbers_of(series)[taken]
        found = float(worst(mine.min(), mine.max()))
        cuts[top.step] = worst(cuts.get(top.step, found), found)


def decided(frame: pl.DataFrame, expression: pl.Expr) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The rows for which an expression holds; null does not."""
    values = frame.lazy().select(expression.alias("rule")).collect(engine="in-memory")["rule"]
    if len(values) != frame.height:
        values = pl.Series("rule", [values[0]] * frame.height, dtype=pl.Boolean)
    return values.fill_null(False).to_numpy()
