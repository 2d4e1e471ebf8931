"""Ways to choose a stage's weights: one pure function beside its configuration for each, and the dict of them. Weights are shares of the stage's *tokens*.

In: what a recipe writes as `weights`: a mapping of components to positive numbers, in which a group `{weight, components}` may stand for a component
and holds weights in turn, or `{strategy: NAME, …}`; and the `Supply`. Out: exact shares that sum to 1. Nothing here reads a file: what a strategy
learns from measurements is put into its configuration before (`mixing.learned`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter

from mixing import UserError
from mixing.strategies.measured import OptimalDurations, TopicController, optimal_durations, topic_controller
from mixing.strategies.reference import ReferenceRates, reference_rates
from mixing.strategies.regression import Regression, regression
from mixing.strategies.shares import Name, Positive, Supply, normalised, written
from mixing.strategies.sizes import (
    Concatenate,
    Equal,
    Proportional,
    Temperature,
    Unimax,
    concatenate,
    equal,
    proportional,
    temperature,
    unimax,
)


def parse(value: object) -> Any:
    """`weights` as written, checked: a mapping of names to numbers and groups, or the configuration of a strategy. Raises as pydantic does."""
    if not isinstance(value, Mapping) or not isinstance(value.get("strategy"), str):
        return _PLAIN.validate_python(value)
    name = value["strategy"]
    if name not in STRATEGIES:
        raise ValueError(f"found strategy {name!r}; accepted: {', '.join(STRATEGIES)}, or weights by component")
    config = STRATEGIES[name].config
    if unknown := [key for key in value if key not in config.model_fields]:
        raise ValueError(f"unknown key '{unknown[0]}' of strategy {name}; accepted: {', '.join(config.model_fields)}")
    return config.model_validate(value)


def _member(value: object) -> Any:
    return Group.model_validate(value) if isinstance(value, Mapping) else _POSITIVE.validate_python(value)


Weights = Annotated[Any, PlainValidator(parse)]
_POSITIVE: TypeAdapter[float] = TypeAdapter(Positive)
_PLAIN: TypeAdapter[dict[str, Any]] = TypeAdapter(Annotated[dict[Name, Annotated[Any, PlainValidator(_member)]], Field(min_length=1)])


class Group(BaseModel):
    """Some components together: a weight among its neighbours, which the weights inside share out. Groups nest to any depth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Positive
    components: Weights = Field(description="weights by component, groups, or a strategy")


class Replay(BaseModel):
    """A fixed share of replay, text that resembles the model's pre-training data, and the rest as it likes (arXiv 2403.08763: 5 % under a weak shift, 25 % under a strong one)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["replay"] = "replay"
    share: float = Field(gt=0, lt=1, description="of the tokens, for replay")
    replay: Weights = Field(description="weights, groups or a strategy over the components of replay, which it names")
    rest: Weights = Field(description="weights, groups or a strategy over the others")


def replay(config: Replay, supply: Supply) -> dict[str, Fraction]:
    """share × the weights of replay, (1 - share) × those of the rest."""
    share = written(config.share)
    replayed = named(config.replay, list(supply.sizes))
    rest = [name for name in supply.sizes if name not in replayed]
    parts = [(share, weigh(config.replay, supply.of(replayed, share))), (1 - share, weigh(config.rest, supply.of(rest, 1 - share)))]
    return {name: factor * weight for factor, weights in parts for name, weight in weights.items()}


class Strategy(NamedTuple):
    """What a recipe may say, and the function from that and a `Supply` to weights of any scale."""

    config: type[BaseModel]
    weights: Callable[[Any, Supply], dict[str, Fraction]]


STRATEGIES: dict[str, Strategy] = {
    "proportional": Strategy(Proportional, proportional),
    "equal": Strategy(Equal, equal),
    "temperature": Strategy(Temperature, temperature),
    "unimax": Strategy(Unimax, unimax),
    "concatenate": Strategy(Concatenate, concatenate),
    "replay": Strategy(Replay, replay),
    "reference_rates": Strategy(ReferenceRates, reference_rates),
    "optimal_durations": Strategy(OptimalDurations, optimal_durations),
    "topic_controller": Strategy(TopicController, topic_controller),
    "regression": Strategy(Regression, regression),
}


def weigh(weights: Any, supply: Supply) -> dict[str, Fraction]:
    """Exact shares, summing to 1, of the components that `weights` (as `parse` returns them) names."""
    if not isinstance(weights, dict):
        mixed = supply.of(named(weights, list(supply.sizes)))
        return normalised(STRATEGIES[weights.strategy].weights(weights, mixed))
    outer = normalised({name: written(one.weight if isinstance(one, Group) else one) for name, one in weights.items()})
    shares: dict[str, Fraction] = {}
    for name, share in outer.items():
        one = weights[name]
        if not isinstance(one, Group):
            shares[name] = share
            continue
        mixed = supply.of(inside(weights, name, list(supply.sizes)), share)
        shares |= {inner: share * weight for inner, weight in weigh(one.components, mixed).items()}
    return shares


def named(weights: Any, known: list[str]) -> list[str]:
    """The components that `weights` shares tokens out to, of those there are; once for each time they are named."""
    if isinstance(weights, dict):
        return [
            name
            for key, one in weights.items()
            for name in (named(one.components, inside(weights, key, known)) if isinstance(one, Group) else [key])
        ]
    if isinstance(weights, Replay):
        replayed = named(weights.replay, known)
        return replayed + named(weights.rest, [name for name in known if name not in replayed])
    if not (found := _spelled("", weights) or list(known)):
        raise UserError(f"no component is left for strategy {weights.strategy}; name some under its `components`, or leave it out")
    return found


def inside(weights: Mapping[str, Any], group: str, known: list[str]) -> list[str]:
    """The components that a group may mix: those that no neighbour of it writes out."""
    beside = [name for key, one in weights.items() if key != group for name in _spelled(key, one)]
    return [name for name in known if name not in beside]


def _spelled(key: str, weights: Any) -> list[str]:
    """The components that are written out somewhere below."""
    if isinstance(weights, Group):
        return _spelled(key, weights.components)
    if isinstance(weights, dict):
        return [name for inner, one in weights.items() for name in _spelled(inner, one)]
    if isinstance(weights, Replay):
        return _spelled("", weights.replay) + _spelled("", weights.rest)
    if isinstance(weights, ReferenceRates):
        return list(weights.sources())
    if isinstance(weights, TopicController):
        return list(weights.shares)
    if isinstance(weights, OptimalDurations | Regression):
        learned = weights.durations if isinstance(weights, OptimalDurations) else next(iter((weights.coefficients or {}).values()), None)
        return list(weights.components or learned or [])
    return list(getattr(weights, "components", None) or []) if isinstance(weights, BaseModel) else [key]


def needs_sizes(weights: Any) -> bool:
    """Whether the shares depend on how many tokens there are."""
    return isinstance(weights, BaseModel) or any(needs_sizes(one.components) for one in weights.values() if isinstance(one, Group))


def check_names(where: str, weights: Any, known: list[str]) -> None:
    """Every component that is named exists, and is named once."""
    try:
        found = named(weights, known)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if strange := [name for name in found if name not in known]:
        raise UserError(f"{where}: no component '{strange[0]}'; the mixture has: {', '.join(known)}")
    if twice := [name for name in found if found.count(name) > 1]:
        raise UserError(f"{where}: component '{twice[0]}' is named twice; each has one place in the weights of a stage")
