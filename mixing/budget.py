"""A stage's budget in whole tokens: from weights and what there is of each component to what is asked of it and what it gives.

In: `weights` as `mixing.strategies.parse` returns them, the stage's tokens and bounds, and per component its tokens and how many of them may still
be planned. Out: shares in whole billionths, as the header holds them, and integers that sum to the budget. Pure and exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from mixing import UserError
from mixing.strategies import named, weigh
from mixing.strategies.shares import Supply, in_billionths, largest_remainder, plain, settled, water_fill, whole, written


class Asked(NamedTuple):
    """What a stage says about its budget: weights, tokens, and per component the fewest tokens and the largest share."""

    weights: Any
    tokens: int | Literal["all"]
    min_tokens: Mapping[str, int]
    max_share: Mapping[str, float]


class Quota(NamedTuple):
    """The components' shares of a stage, the tokens that are, and the tokens planned: the same, unless a shortage was redistributed."""

    shares: dict[str, float]
    asked: dict[str, int]
    tokens: dict[str, int]


def check_bounds(where: str, asked: Asked, known: list[str]) -> None:
    """Bounds that no supply could satisfy are a UserError with all the numbers, before any data is read."""
    mixed = named(asked.weights, known)
    for key, bound in (("min_tokens", asked.min_tokens), ("max_share", asked.max_share)):
        if strange := [name for name in bound if name not in mixed]:
            raise UserError(f"{where}.{key}: component '{strange[0]}' is not in the stage; it mixes: {', '.join(mixed)}")
    if asked.tokens == "all":
        if asked.min_tokens or asked.max_share:
            raise UserError(f"{where}: tokens: all takes every component whole; min_tokens and max_share leave nothing to choose")
        return
    fewest, most = sum(asked.min_tokens.values()), _ceilings(asked)
    if fewest > asked.tokens:
        parts = ", ".join(f"{name} {count:,}" for name, count in asked.min_tokens.items())
        raise UserError(f"{where}.min_tokens: {parts} are {fewest:,} together, more than the stage's {asked.tokens:,} tokens")
    for name, count in asked.min_tokens.items():
        if name in most and count > most[name]:
            share = f"max_share {asked.max_share[name]:g} of {asked.tokens:,} tokens is {float(most[name]):,.12g}"
            raise UserError(f"{where}.min_tokens: '{name}' has at least {count:,}, and its {share}; lower the one or raise the other")
    if len(most) == len(mixed) and sum(most.values()) < asked.tokens:
        parts = ", ".join(f"{name} {share:g}" for name, share in asked.max_share.items())
        raise UserError(f"{where}.max_share: {parts} are less than 1 together, and the stage has no other component; raise one")


def quota(where: str, asked: Asked, sizes: Mapping[str, int], available: Mapping[str, int]) -> Quota:
    """The quota of one stage, before any shortage. Weights that are numbers, without bounds, are rounded and shared out as they are; all else keeps to its bounds."""
    try:
        if isinstance(asked.weights, dict) and all(isinstance(weight, float) for weight in asked.weights.values()) and not _bounded(asked):
            assert asked.tokens != "all"
            # Equal remainders go by the mixture's order, which the header keeps, not by that of the weights.
            shares = plain({name: asked.weights[name] for name in sizes if name in asked.weights})
            counts = largest_remainder(shares, asked.tokens)
            return Quota(shares, counts, counts)
        mixed = named(asked.weights, list(sizes))
        budget = sum(sizes[name] for name in mixed) if asked.tokens == "all" else asked.tokens
        exact = weigh(asked.weights, Supply(Fraction(budget), sizes, available))
        exact = {name: exact[name] for name in sizes if name in exact}
        if asked.tokens == "all":
            counts = {name: sizes[name] for name in exact}
            return Quota(in_billionths(exact), counts, counts)
        if short := [name for name, count in asked.min_tokens.items() if count > available[name]]:
            has = f"it has {sizes[short[0]]:,}, of which its max_epochs still allows {available[short[0]]:,}"
            raise UserError(f"min_tokens: component '{short[0]}' is to have at least {asked.min_tokens[short[0]]:,} tokens; {has}")
        amounts = water_fill(exact, Fraction(budget), {name: Fraction(n) for name, n in asked.min_tokens.items()}, _ceilings(asked))
        high = {name: available[name] for name, amount in amounts.items() if amount <= available[name]}
        high |= {name: min(math.ceil(most), high.get(name, budget)) for name, most in _ceilings(asked).items()}
        shares = settled(in_billionths(amounts), budget, asked.min_tokens, high)
        counts = largest_remainder(shares, budget)
        return Quota(shares, counts, counts)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def _bounded(asked: Asked) -> bool:
    return bool(asked.min_tokens or asked.max_share)


def _ceilings(asked: Asked) -> dict[str, Fraction]:
    """The most tokens that `max_share` allows, exactly."""
    assert asked.tokens != "all"
    return {name: written(share) * asked.tokens for name, share in asked.max_share.items()}


def redistributed(where: str, asked: Mapping[str, int], available: Mapping[str, int], most: Mapping[str, float]) -> dict[str, int]:
    """`asked`, but no component more than is available: what one cannot give the others do, in proportion to what is asked of them, until nothing is short.

    `most` holds the components' `max_share`, which no redistribution passes. A UserError if all together cannot give the budget.
    """
    budget = sum(asked.values())
    if all(count <= available[name] for name, count in asked.items()):
        return dict(asked)
    high = {name: available[name] for name in asked}
    high |= {name: min(available[name], max(asked[name], math.floor(written(share) * budget))) for name, share in most.items()}
    weights = {name: Fraction(count) for name, count in asked.items() if count}
    if sum(high[name] for name in weights) < budget:
        parts = ", ".join(f"'{name}' {high[name]:,} of {count:,} asked" for name, count in asked.items())
        limits = "max_epochs and max_share" if most else "max_epochs"
        raise UserError(
            f"{where}: asks {budget:,} tokens, and its components can give {sum(high.values()):,} under {limits}, wherever they are moved: {parts}; "
            "lower the tokens, raise max_epochs, or add documents"
        )
    filled = water_fill(weights, Fraction(budget), {}, {name: Fraction(high[name]) for name in weights})
    return dict.fromkeys(asked, 0) | whole(filled)
