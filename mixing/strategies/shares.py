"""Shares of a budget: from weights of any scale to billionths to whole tokens, and water filling between bounds.

Everything here is exact arithmetic over fractions and integers, so that the same weights give the same tokens on every machine. A share is stored
as a double that holds a whole number of billionths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from mixing import UserError

PARTS = 10**9
"""Shares are whole numbers of billionths: exact in a double's 15 digits, and finer than one token of any stage below a billion tokens."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def token_count(value: object) -> object:
    """`5B`, `300M`, `1e9` or `20000` as an integer; anything that is no whole positive number of tokens is refused."""
    found = (
        re.fullmatch(r"([0-9][0-9_.]*(?:[eE][+]?[0-9]+)?)\s*([KMBT]?)", str(value).strip())
        if isinstance(value, str | int | float)
        else None
    )
    try:
        count = Decimal(found[1]) * _UNITS[found[2]] if found and not isinstance(value, bool) else Decimal(0)
    except InvalidOperation:
        count = Decimal(0)
    if count < 1 or count != count.to_integral_value():
        raise ValueError(f"{value!r} is not a number of tokens; write 20000, 1e9, 300M or 5B")
    return int(count)


TokenCount = Annotated[int, BeforeValidator(token_count)]
Budget = Annotated[int | Literal["all"], BeforeValidator(lambda value: value if value == "all" else token_count(value))]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Cap = Annotated[float, Field(gt=0, le=65535, allow_inf_nan=False)]


class Supply(NamedTuple):
    """What a strategy may look at: the tokens to share out, the tokens of each component, and how many of them the caps still allow."""

    tokens: Fraction
    sizes: Mapping[str, int]
    available: Mapping[str, int]

    def of(self, names: list[str], share: Fraction = Fraction(1)) -> Supply:
        """The part of it that belongs to `names`, with `share` of the tokens."""
        return Supply(self.tokens * share, {name: self.sizes[name] for name in names}, {name: self.available[name] for name in names})


def written(number: float) -> Fraction:
    """A number as the decimal that was written: 0.3 is three tenths."""
    return Fraction(str(number))


def normalised(weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """The weights divided by their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def in_billionths(weights: Mapping[str, Fraction]) -> dict[str, float]:
    """The weights as shares, rounded to 1e-9; one that would be nothing is a UserError."""
    total = sum(weights.values())
    shares = {name: round(weight * PARTS / total) for name, weight in weights.items()}
    if lost := [name for name, parts in shares.items() if parts == 0]:
        weight = float(weights[lost[0]])
        raise UserError(f"weights: {lost[0]} has a share below 1e-9 ({weight!r} of {float(total)!r}); leave it out or give it more")
    return {name: parts / PARTS for name, parts in shares.items()}


def plain(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights as written, normalised."""
    return in_billionths({name: written(weight) for name, weight in weights.items()})


def largest_remainder(shares: Mapping[str, float], tokens: int) -> dict[str, int]:
    """`tokens` split by `shares` (in whole billionths) into integers that sum to it; the spare ones go to the largest remainders, first named first."""
    parts = {name: round(share * PARTS) for name, share in shares.items()}
    total = sum(parts.values())
    quotas = {name: tokens * part // total for name, part in parts.items()}
    by_remainder = sorted(parts, key=lambda name: -(tokens * parts[name] % total))
    for name in by_remainder[: tokens - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def water_fill(
    weights: Mapping[str, Fraction], total: Fraction, low: Mapping[str, Fraction], high: Mapping[str, Fraction]
) -> dict[str, Fraction]:
    """`total` split in proportion to `weights`, between bounds: the one level θ with Σ min(high, max(low, θ·weight)) = total.

    Without a bound of its own an element may have anything from 0 on. What one may not have goes to the others in proportion to their weights, and
    so does what one must have come from them. One of weight 0 has its lower bound. Needs Σ low <= total <= Σ high.
    """

    def filled(level: Fraction) -> dict[str, Fraction]:
        amounts = {name: max(low.get(name, Fraction(0)), level * weight) for name, weight in weights.items()}
        return {name: min(high[name], amount) if name in high else amount for name, amount in amounts.items()}

    levels = sorted({bound[name] / weights[name] for bound in (low, high) for name in bound if weights.get(name)})
    first, last = 0, len(levels)  # the first level at which the total is reached
    while first < last:
        middle = (first + last) // 2
        if sum(filled(levels[middle]).values()) < total:
            first = middle + 1
        else:
            last = middle
    if first < len(levels) and sum((at := filled(levels[first])).values()) == total:
        return at
    below = levels[first - 1] if first else Fraction(0)
    above = levels[first] if first < len(levels) else below + 1
    middle_level = (below + above) / 2
    fixed = filled(middle_level)
    moving = {name for name, weight in weights.items() if weight and fixed[name] == middle_level * weight}
    rest = total - sum(amount for name, amount in fixed.items() if name not in moving)
    assert moving, "the bounds do not leave room for the total"
    level = rest / sum(weights[name] for name in moving)
    return {name: level * weights[name] if name in moving else amount for name, amount in fixed.items()}


def whole(amounts: Mapping[str, Fraction]) -> dict[str, int]:
    """Amounts that sum to a whole number, as whole numbers: the spare ones go to the largest fractions, first named first."""
    floors = {name: amount.numerator // amount.denominator for name, amount in amounts.items()}
    by_fraction = sorted(amounts, key=lambda name: floors[name] - amounts[name])
    for name in by_fraction[: int(sum(amounts.values())) - sum(floors.values())]:
        floors[name] += 1
    return floors


def settled(shares: Mapping[str, float], tokens: int, low: Mapping[str, int], high: Mapping[str, int]) -> dict[str, float]:
    """`shares` moved by the few billionths that keep `largest_remainder` between whole bounds which the exact shares keep.

    A billionth of a stage beyond 1e9 tokens is more than a token, so rounding alone may pass a bound. If no billionths do it, that is a UserError.
    """
    parts = {name: round(share * PARTS) for name, share in shares.items()}
    for _ in range(4 * len(parts)):
        asked = largest_remainder({name: part / PARTS for name, part in parts.items()}, tokens)
        over = {name: count - high[name] for name, count in asked.items() if name in high and count > high[name]}
        under = {name: low[name] - count for name, count in asked.items() if name in low and count < low[name]}
        if not over and not under:
            return {name: part / PARTS for name, part in parts.items()}
        wrong, tokens_off = next(iter((over or under).items()))
        step = -(-tokens_off * PARTS // tokens)
        sign = -1 if over else 1
        room = {name: (high.get(name, tokens) - asked[name] if over else asked[name] - low.get(name, 0)) for name in parts if name != wrong}
        if not room:
            break
        parts[wrong] += sign * step
        parts[max(room, key=lambda name: room[name])] -= sign * step
    bounds = ", ".join(f"{name} {low.get(name, 0):,} to {high.get(name, tokens):,}" for name in parts)
    raise UserError(
        f"weights: no shares in whole billionths of {tokens:,} tokens keep these bounds: {bounds}; leave a little more room between them"
    )
