"""Effects over seeds, and what may be said of them.

An effect is one number for each domain and seed: a paired difference of two arms that share base, draw and exam, negative where the claim says so (or a
quantity that has to stay below a limit). The rule was fixed before anything was run: a check **holds** if every seed keeps its limit, **does not hold** if none
does, and else nobody can tell. Fewer than three seeds never decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SEEDS = 3
HOLDS, PARTLY, FAILS, UNCLEAR, MISSING = "holds", "holds in part", "does not hold", "cannot tell", "not run yet"

Place = tuple[str, int]
"""Domain and seed."""


class Check(NamedTuple):
    """`effects` have to stay below `limit`; below `gate`, about half the effect of a pilot with other seeds, or `make claims` fails. What does not
    `decide` is reported beside the claim."""

    name: str
    effects: Mapping[Place, float]
    limit: float = 0.0
    gate: float | None = None
    decides: bool = True
    unit: str = "nats"

    def of(self, domain: str) -> list[float]:
        return [value for (where, _), value in sorted(self.effects.items()) if where == domain]

    @property
    def domains(self) -> list[str]:
        return list(dict.fromkeys(where for where, _ in sorted(self.effects, key=lambda place: (place[0] != "medical", place))))

    def verdict(self, domain: str | None = None) -> str:
        """Of one domain, or of all that have their seeds: what they say alike, or that they differ."""
        if domain is None:
            found = {self.verdict(one) for one in self.domains if len(self.of(one)) >= SEEDS}
            return found.pop() if len(found) == 1 else UNCLEAR if self.effects else MISSING
        values = self.of(domain)
        kept = [value < self.limit for value in values]
        if not values:
            return MISSING
        if len(values) < SEEDS:
            return UNCLEAR
        return HOLDS if all(kept) else UNCLEAR if any(kept) else FAILS

    def broken(self) -> list[Place]:
        return [place for place, value in self.effects.items() if self.gate is not None and not value < self.gate]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def sd(values: Sequence[float]) -> float:
    """Over n - 1; NaN of fewer than two."""
    if len(values) < 2:
        return math.nan
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def spread(values: Sequence[float], signed: bool = False, places: int = 3) -> str:
    """`-0.147 ± 0.018 (n = 3)`, without what cannot be computed."""
    if not values:
        return "-"
    text = f"{mean(values):{'+' if signed else ''}.{places}f}"
    return f"{text} ± {sd(values):.{places}f}" if len(values) > 1 else f"{text} (n = 1)"


def overall(checks: Sequence[Check]) -> str:
    """Of a claim: what the checks that decide it say together."""
    found = {check.verdict() for check in checks if check.decides}
    if MISSING in found or not found:
        return MISSING
    return found.pop() if len(found) == 1 else UNCLEAR if found == {UNCLEAR, FAILS} else PARTLY
