"""Strategies that look at how many tokens each component has: proportional, equal, temperature, UniMax, concatenate.

Each is a frozen configuration beside a pure function from it and a `Supply` to weights of any scale. Powers are the one place where floating
point enters; shares are rounded to 1e-9 afterwards.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixing import UserError
from mixing.strategies.shares import Cap, Name, Supply, TokenCount, written


class Proportional(BaseModel):
    """Each component in proportion to its tokens: every document is as likely as any other. The natural distribution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["proportional"] = "proportional"
    components: list[Name] | None = Field(None, min_length=1, description="which components; all that are not named beside it")


def proportional(config: Proportional, supply: Supply) -> dict[str, Fraction]:
    """w_k = n_k."""
    return _sizes(supply)


class Equal(BaseModel):
    """Each component the same share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["equal"] = "equal"
    components: list[Name] | None = Field(None, min_length=1, description="which components; all that are not named beside it")


def equal(config: Equal, supply: Supply) -> dict[str, Fraction]:
    """w_k = 1."""
    return dict.fromkeys(supply.sizes, Fraction(1))


class Temperature(BaseModel):
    """Sizes flattened by a temperature T: 1 is proportional, larger ones come nearer to equal (arXiv 1907.05019). The exponent is 1/T (arXiv 1911.02116: 0.3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["temperature"] = "temperature"
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False, description="T, or else:")
    exponent: float | None = Field(None, ge=0, le=10, description="1/T")
    components: list[Name] | None = Field(None, min_length=1, description="which components; all that are not named beside it")

    @model_validator(mode="after")
    def _one_of_both(self) -> Temperature:
        if (self.temperature is None) == (self.exponent is None):
            raise ValueError("give exactly one of temperature and exponent (exponent = 1 / temperature)")
        return self


def temperature(config: Temperature, supply: Supply) -> dict[str, Fraction]:
    """w_k = n_k^(1/T), computed relative to the largest component."""
    sizes = _sizes(supply)
    exponent = config.exponent if config.exponent is not None else 1 / (config.temperature or 1)
    largest = max(sizes.values())
    return {name: Fraction(float(size / largest) ** exponent) for name, size in sizes.items()}


class Unimax(BaseModel):
    """As equal as possible while no component is repeated beyond a cap (UniMax, arXiv 2304.09151, algorithm 1; in tokens, not characters)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["unimax"] = "unimax"
    max_epochs: Cap | None = Field(None, description="the paper's N; without it, what the mixture's `max_epochs` still allows")
    budget: TokenCount | None = Field(None, description="the paper's budget C in tokens; without it, the tokens to share out")
    components: list[Name] | None = Field(None, min_length=1, description="which components; all that are not named beside it")


def unimax(config: Unimax, supply: Supply) -> dict[str, Fraction]:
    """From the smallest component to the largest, each takes min(budget left / components left, cap × its size)."""
    sizes = _sizes(supply)
    capped = config.max_epochs is not None
    caps = {name: size * written(config.max_epochs or 1) if capped else Fraction(supply.available[name]) for name, size in sizes.items()}
    left = supply.tokens if config.budget is None else Fraction(config.budget)
    weights: dict[str, Fraction] = {}
    for position, name in enumerate(sorted(caps, key=lambda name: caps[name])):
        weights[name] = min(left / (len(caps) - position), caps[name])
        left -= weights[name]
    return {name: weights[name] for name in sizes}


class Concatenate(BaseModel):
    """Every token of each component once; the budget follows from the sizes, so the stage says `tokens: all`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["concatenate"] = "concatenate"
    components: list[Name] | None = Field(None, min_length=1, description="which components; all of them without it")


def concatenate(config: Concatenate, supply: Supply) -> dict[str, Fraction]:
    """w_k = n_k; the plan takes n_k tokens exactly, without rounding through shares."""
    return _sizes(supply)


def _sizes(supply: Supply) -> dict[str, Fraction]:
    if empty := [name for name, size in supply.sizes.items() if size == 0]:
        raise UserError(f"weights: component '{empty[0]}' has no tokens to be weighed by; leave it out of `components`, or add documents")
    return {name: Fraction(size) for name, size in supply.sizes.items()}
