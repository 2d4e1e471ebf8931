"""Ways to choose a stage's weights: one pure function each, and the dict of them. Weights are shares of the stage's *tokens*.

Every function returns shares that are normalised and rounded to 1e-9, so that the same choice reads the same in every manifest.
`largest_remainder` turns shares into whole tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

from mixing import UserError

PARTS = 10**9
"""Shares are whole numbers of billionths: exact in a double's 15 digits, and finer than one token of any stage below a billion tokens."""


def plain(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights as written, normalised."""
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    total = sum(exact.values())
    shares = {name: round(weight * PARTS / total) for name, weight in exact.items()}
    if lost := [name for name, parts in shares.items() if parts == 0]:
        raise UserError(
            f"weights: {lost[0]} has a share below 1e-9 ({weights[lost[0]]!r} of {float(total)!r}); leave it out or give it more"
        )
    return {name: parts / PARTS for name, parts in shares.items()}


def largest_remainder(shares: Mapping[str, float], tokens: int) -> dict[str, int]:
    """`tokens` split by `shares` (in whole billionths) into integers that sum to it; the spare ones go to the largest remainders, first named first."""
    parts = {name: round(share * PARTS) for name, share in shares.items()}
    total = sum(parts.values())
    quotas = {name: tokens * part // total for name, part in parts.items()}
    by_remainder = sorted(parts, key=lambda name: -(tokens * parts[name] % total))
    for name in by_remainder[: tokens - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


STRATEGIES: dict[str, Callable[[Mapping[str, float]], dict[str, float]]] = {"weights": plain}
