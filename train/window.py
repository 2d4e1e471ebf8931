"""A part of a plan as a manifest of its own: its beginning, or a beginning read again and again.

In: a manifest, how many tokens of it, and how long a run it stands for. Out: a manifest whose sequences end there, at a whole step. With `simulate`
the run repeats its documents as often as a run of so many tokens over the whole plan would (simulated epoching): of the plan's U unique tokens
it reads the first U · tokens / simulate, over and over. The plan's order is kept, so shares of components hold in the beginning too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mixing import UserError
from mixing.manifest import Manifest, Spans, StageArrays


class Window(Manifest):
    """The first `period` sequences of `whole`, repeated until there are `count`."""

    def __init__(self, whole: Manifest, count: int, period: int) -> None:
        self.whole = whole
        self.period = min(period, whole.sequences)
        super().__init__(
            whole.folder, whole.header | {"sequences": count, "stages": list(_stages(whole, count, self.period))}, whole.digest
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Window, (self.whole, self.sequences, self.period)

    def _slices(self, first: int, last: int) -> Iterator[tuple[StageArrays, int, int]]:
        if not 0 <= first <= last <= self.sequences:
            raise IndexError(f"sequences {first} to {last} of {self.sequences}")
        for low, high in _rounds(first, last, self.period):
            yield from self.whole._slices(low, high)

    def spans(self, first: int, last: int) -> Spans:
        """As planned, `epoch` counting the rounds too."""
        spans = super().spans(first, last)
        rounds = np.repeat(np.arange(first, last) // self.period, np.diff(spans.sequence))
        return spans._replace(epoch=(spans.epoch + rounds).astype(np.uint16))


def _rounds(first: int, last: int, period: int) -> Iterator[tuple[int, int]]:
    """`[first, last)` as ranges of sequences that were planned."""
    while first < last:
        low = first % period
        high = min(period, low + last - first)
        yield low, high
        first += high - low


def _stages(whole: Manifest, count: int, period: int) -> Iterator[dict[str, Any]]:
    """A header's entry for each part of a stage, with its own counts of what the trainer reads."""
    begin = 0
    for low, high in _rounds(0, count, period):
        for stage in whole.stages:
            first, last = max(low, stage["first_sequence"]), min(high, stage["first_sequence"] + stage["sequences"])
            if first >= last:
                continue
            tokens = whole.tokens(first, last)
            of_component = np.bincount(whole.components(first, last), tokens, len(whole.component_names)).astype(np.int64).tolist()
            components = {
                name: {"tokens": count}
                for name, count in zip(whole.component_names, of_component, strict=True)
                if name in stage["components"]
            }
            yield stage | {
                "first_sequence": begin,
                "sequences": last - first,
                "tokens": int(tokens.sum()),
                "predictions": whole.predictions(first, last),
                "components": components,
            }
            begin += last - first


def windowed(manifest: Manifest, batch: int, tokens: int | float | None, simulate: int | None) -> Manifest:
    """The beginning of `manifest` of `tokens` (a share if below 1), to whole steps of `batch` sequences; all of it without."""
    if tokens is None:
        if simulate is not None:
            raise UserError(
                f"simulate: {simulate:,} tokens, but no tokens; say with tokens how long the run is that stands for so long a one"
            )
        return manifest
    ends = np.cumsum(manifest.tokens(0, manifest.sequences))
    total = int(ends[-1])
    asked = tokens if isinstance(tokens, int) else max(1, round(tokens * total))
    period = manifest.sequences
    if simulate is not None:
        if simulate < asked:
            raise UserError(
                f"simulate: {simulate:,} tokens, fewer than the {asked:,} of the run; a run stands for one that is at least as long"
            )
        spans = manifest.spans(0, manifest.sequences)
        unique = int(spans.length[spans.epoch == 0].sum(dtype=np.int64))
        period = min(period, int(np.searchsorted(ends, round(unique * asked / simulate))) + 1)
    rounds, left = divmod(asked, int(ends[period - 1]))
    count = rounds * period + (int(np.searchsorted(ends, left)) + 1 if left else 0)
    count += -count % batch
    if period == manifest.sequences:
        if asked > total:
            raise UserError(f"tokens: {asked:,} asked, {manifest.folder} plans {total:,}; ask for fewer, or build a manifest with more")
        count = min(count, manifest.sequences)
    return Window(manifest, count, period)


def step_ends(manifest: Manifest, batch: int) -> list[int]:
    """Tokens seen at the end of each step."""
    ends = np.cumsum(manifest.tokens(0, manifest.sequences))
    return [int(ends[min(last, len(ends)) - 1]) for last in range(batch, len(ends) + batch, batch)]
