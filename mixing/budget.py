"""A stage's budget in whole tokens: from weights and what there is of each component to what is asked of it.

In: `weights` as `mixing.strategies.parse` returns them, the stage's tokens, and per component its tokens and how many of them may still be
planned. Out: shares in whole billionths, as the header holds them, and integers that sum to the budget. Pure and exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from mixing import UserError
from mixing.strategies import named, weigh
from mixing.strategies.shares import Supply, in_billionths, largest_remainder, plain, settled


class Quota(NamedTuple):
    """What a stage asks: the components' shares of its tokens, and the tokens that are."""

    shares: dict[str, float]
    asked: dict[str, int]


def quota(where: str, weights: Any, tokens: int | Literal["all"], sizes: Mapping[str, int], available: Mapping[str, int]) -> Quota:
    """The quota of one stage. Weights written as numbers are rounded and shared out as they are; what a strategy computes keeps to the caps through the rounding."""
    try:
        if isinstance(weights, dict) and all(isinstance(weight, float) for weight in weights.values()):
            assert tokens != "all"
            shares = plain({name: weights[name] for name in sizes if name in weights})  # equal remainders go by the mixture's order
            return Quota(shares, largest_remainder(shares, tokens))
        mixed = named(weights, list(sizes))
        budget = sum(sizes[name] for name in mixed) if tokens == "all" else tokens
        exact = weigh(weights, Supply(Fraction(budget), sizes, available))
        shares = in_billionths({name: exact[name] for name in sizes if name in exact})
        if tokens == "all":
            return Quota(shares, {name: sizes[name] for name in mixed})
        within = {name: available[name] for name, share in exact.items() if share * budget <= available[name]}
        shares = settled(shares, budget, {}, within)
        return Quota(shares, largest_remainder(shares, budget))
    except UserError as error:
        raise UserError(f"{where}.{error}") from None
