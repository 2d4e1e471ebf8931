"""What better means: the direction of a metric, and the best of several candidates that lose too little elsewhere.

Loss, bits a byte and perplexity are better when lower; everything else (accuracies, margins, averages) when higher. A guard holds if its metric is
worse than before by no more than its tolerance, in the metric's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mixing import UserError
from mixing.curves import gain
from mixing.measurements import Measurement


class Candidate(NamedTuple):
    """Something to choose: its metrics, and its rank among equals (the lowest is taken; for a learning rate the rate itself)."""

    name: str
    rank: tuple[float, ...]
    values: Mapping[str, float]


def holds(candidate: Candidate, before: Mapping[str, float], guards: Mapping[str, float]) -> bool:
    return all(gain(metric, before[metric], candidate.values[metric]) >= -tolerance for metric, tolerance in guards.items())


def best(candidates: Iterable[Candidate], before: Mapping[str, float], target: str, guards: Mapping[str, float]) -> Candidate | None:
    """The candidate with the best `target` among those that keep every guard; the lowest rank among equals; None if none keeps them.

    A candidate whose target is not finite is none. A metric that was not measured is a UserError.
    """
    candidates = list(candidates)
    for metric in [target, *guards]:
        for values in [before, *(candidate.values for candidate in candidates)]:
            if metric not in values:
                raise UserError(f"no measurement of '{metric}'; measured are: {', '.join(sorted(values)) or 'none'}")
    allowed = [one for one in candidates if math.isfinite(one.values[target]) and holds(one, before, guards)]
    return min(allowed, key=lambda one: (-gain(target, 0.0, one.values[target]), one.rank), default=None)


def at(rows: Iterable[Measurement], tokens: int) -> dict[str, float]:
    """The metrics of the whole run at `tokens`; not finite as NaN."""
    return {row.metric: math.nan if row.value is None else row.value for row in rows if row.tokens == tokens and row.component is None}
