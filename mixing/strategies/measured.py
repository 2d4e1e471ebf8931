"""Strategies that follow from one look at measurements: mix by optimal durations, and the topic controller.

A configuration names a file of measurements, or holds the numbers themselves; what a file says is put into the configuration (`learn_durations`,
`learn_perplexities`), so that the resolved recipe shows what the shares were computed from and can be planned again without the file. Rows are
joined on `component`; a component without rows is a UserError that names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixing import UserError
from mixing.strategies.shares import Name, Positive, Supply, TokenCount, written

DIGITS = 9
"""Computed values are recorded with so many decimals, and weights follow from what is recorded: the last bits of a machine's exp and log never count."""


class Found(BaseModel):
    """A file as the build found it: below which root, and the digest of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    pattern: str
    digest: str


class Row(NamedTuple):
    """What a strategy reads of a measurement."""

    run: str
    component: str | None
    metric: str
    group: str
    tokens: int
    learning_rate: float | None
    value: float | None


class OptimalDurations(BaseModel):
    """Each component in proportion to the tokens after which training on it alone was best (the procedure of Databricks' "Characterizing Datasets")."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["optimal_durations"] = "optimal_durations"
    measurements: str | Found | None = Field(None, description="the file: runs on one component each, measured at several token counts")
    metric: str = Field("loss", description="which metric of the file")
    goal: Literal["lower", "higher"] = Field("lower", description="which values are better")
    components: list[Name] | None = Field(None, min_length=1, description="which components; all that are not named beside it")
    durations: dict[Name, TokenCount] | None = Field(None, description="the best token counts, instead of a file; with one, what it says")
    censored: list[Name] | None = Field(None, description="filled in: still improving at the last measurement, so at least so long")
    points: dict[Name, int] | None = Field(None, description="filled in: how many measurements each duration was chosen from")

    @model_validator(mode="after")
    def _one_of_both(self) -> OptimalDurations:
        _refuse_both("durations", self.measurements, self.durations)
        return self


def optimal_durations(config: OptimalDurations, supply: Supply) -> dict[str, Fraction]:
    """w_k = d*_k."""
    durations = _all_of("durations", config.durations, supply)
    return {name: Fraction(durations[name]) for name in supply.sizes}


def learn_durations(config: OptimalDurations, components: Sequence[str], rows: Iterable[Row]) -> OptimalDurations:
    """With the durations that `rows` show; values that were not finite do not count. A component that was never better than before its first token is refused.

    Of a component's runs those with the same peak learning rate repeat each other: their values are averaged at each token count. The rate that reaches
    the best value counts, and of equally good token counts the smallest. A best value at a curve's last count is censored.
    """
    durations, censored, points = {}, [], {}
    sign = 1 if config.goal == "lower" else -1
    rows = _measured(components, config.metric, rows)
    curves = _curves(components, config.metric, rows)
    for name in components:
        best, tokens, rate = min((sign * value, tokens, rate) for rate, curve in curves[name].items() for tokens, value in curve.items())
        curve = curves[name][rate]
        if len(curve) < 2:
            raise UserError(f"component '{name}' has one measurement of '{config.metric}'; a duration needs at least two token counts")
        untrained = [row.value for row in rows if row.component == name and row.tokens == 0 and row.value is not None]
        if untrained and sign * math.fsum(untrained) / len(untrained) <= best:
            raise UserError(
                f"component '{name}' was never better in '{config.metric}' than before its first token; leave it out of `components`"
            )
        durations[name], points[name] = tokens, sum(len(one) for one in curves[name].values())
        if tokens == max(curve):
            censored.append(name)
    return config.model_copy(update={"durations": durations, "censored": censored, "points": points})


def _curves(components: Sequence[str], metric: str, rows: Sequence[Row]) -> dict[str, dict[float, dict[int, float]]]:
    """Per component and peak learning rate the mean value at each token count."""
    found: dict[str, dict[str, list[Row]]] = {name: {} for name in components}
    for row in rows:
        assert row.component is not None
        found[row.component].setdefault(row.run, []).append(row)
    curves: dict[str, dict[float, dict[int, float]]] = {}
    for name, runs in found.items():
        values: dict[float, dict[int, list[float]]] = {}
        for run in runs.values():
            peak = max(row.learning_rate or 0.0 for row in run)
            for row in run:
                if row.tokens > 0 and row.value is not None:
                    values.setdefault(peak, {}).setdefault(row.tokens, []).append(row.value)
        if not values:
            raise UserError(f"component '{name}' has no finite measurement of '{metric}' after the first token")
        curves[name] = {peak: {tokens: math.fsum(some) / len(some) for tokens, some in curve.items()} for peak, curve in values.items()}
    return curves


class TopicController(BaseModel):
    """The last shares, moved towards the components whose perplexity rose between two measurements (Llama-3-SynE, arXiv 2407.18743)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["topic_controller"] = "topic_controller"
    shares: dict[Name, Positive] = Field(min_length=1, description="the shares of the last round, of any scale")
    step: float = Field(gt=0, allow_inf_nan=False, description="how far a share may move: α of the paper")
    sensitivity: dict[Name, Positive] = Field({}, description="per component a factor on its change, w of the paper; 1 without it")
    change: Literal["perplexity", "loss"] = Field(
        "perplexity", description="what has to rise: the paper's perplexity, of which a topic that has much moves most, or its logarithm"
    )
    floor: float | None = Field(
        None, gt=0, lt=1, description="a share keeps so much of itself at least; without it a step that would leave nothing is refused"
    )
    measurements: str | Found | None = Field(None, description="the file: one run, measured by component at two token counts at least")
    metric: str = Field("loss", description="which metric of the file")
    values: Literal["loss", "perplexity"] = Field("loss", description="what its values are: nats a token, or already perplexities")
    run: str | None = Field(None, description="which run of the file, if it has several")
    at: tuple[int, int] | None = Field(None, description="the two token counts; without it the last two that all components have")
    perplexities: dict[Name, tuple[Positive, Positive]] | None = Field(
        None, description="before and after, instead of a file; with one, what it says"
    )

    @model_validator(mode="after")
    def _agrees(self) -> TopicController:
        for key, given in (("sensitivity", self.sensitivity), ("perplexities", self.perplexities or {})):
            if strange := [name for name in given if name not in self.shares]:
                raise ValueError(f"{key} has '{strange[0]}', which has no share; shares has: {', '.join(self.shares)}")
        _refuse_both("perplexities", self.measurements, self.perplexities)
        return self


def topic_controller(config: TopicController, supply: Supply) -> dict[str, Fraction]:
    """r_k (1 + α w_k δ_k), δ_k = Δp_k / Σ_j |Δp_j|, Δp_k the change of perplexity: worse gets more. The paper does not print its norm; this one is read into it.
    Not of the paper are a `change` of the loss, and a `floor` that a factor keeps to."""
    perplexities = _all_of("perplexities", config.perplexities, supply)
    unit = float if config.change == "perplexity" else lambda perplexity: round(math.log(perplexity), DIGITS)
    change = {name: written(unit(perplexities[name][1])) - written(unit(perplexities[name][0])) for name in supply.sizes}
    norm = sum((abs(one) for one in change.values()), Fraction(0)) or Fraction(1)
    factors = {name: 1 + written(config.step) * written(config.sensitivity.get(name, 1.0)) * one / norm for name, one in change.items()}
    if config.floor is not None:
        factors = {name: max(factor, written(config.floor)) for name, factor in factors.items()}
    if lost := [name for name, factor in factors.items() if factor <= 0]:
        raise UserError(
            f"weights: step {config.step:g} leaves component '{lost[0]}' nothing (a factor of {float(factors[lost[0]]):g}); "
            "give a floor, or take a smaller step or sensitivity: their product with each share of the change has to stay below 1"
        )
    return {name: written(config.shares[name]) * factor for name, factor in factors.items()}


def learn_perplexities(config: TopicController, rows: Iterable[Row]) -> TopicController:
    """With the two measurements that `rows` hold of every component; of two rows for one place the later counts."""
    names = list(config.shares)
    found = [row for row in _measured(names, config.metric, rows) if config.run in (None, row.run)]
    if len(runs := sorted({row.run for row in found})) != 1:
        asked = "none is the one asked for" if config.run else "name one under `run`"
        raise UserError(f"the file has {len(runs)} runs with '{config.metric}' ({', '.join(runs[:5])}); {asked}")
    values = {(str(row.component), row.tokens): row.value for row in found if row.value is not None}
    common = [tokens for tokens in sorted({tokens for _, tokens in values}) if all((name, tokens) in values for name in names)]
    at = sorted(config.at) if config.at else common[-2:]
    if len(at) < 2 or any(tokens not in common for tokens in at):
        have = ", ".join(f"{tokens:,}" for tokens in common) or "none"
        raise UserError(f"two token counts are needed at which every component has '{config.metric}'; such counts are: {have}")
    convert = math.exp if config.values == "loss" else float
    perplexities = {name: tuple(round(convert(values[name, tokens]), DIGITS) for tokens in at) for name in names}
    return config.model_copy(update={"run": runs[0], "at": tuple(at), "perplexities": perplexities})


def _measured(components: Sequence[str], metric: str, rows: Iterable[Row]) -> list[Row]:
    """The rows of these components with this metric; each has to have some."""
    rows = list(rows)
    found = [row for row in rows if row.metric == metric and row.component in components]
    if missing := [name for name in components if name not in {row.component for row in found}]:
        there = ", ".join(sorted({str(row.component) for row in rows if row.metric == metric and row.component is not None})) or "none"
        metrics = "" if there != "none" else f"; its metrics: {', '.join(sorted({row.metric for row in rows})[:10]) or 'none'}"
        raise UserError(f"no measurement of '{metric}' for {', '.join(missing)}; components that have one: {there}{metrics}")
    return found


def _refuse_both(key: str, file: str | Found | None, numbers: object) -> None:
    """A user gives a file or numbers; the resolved form holds both."""
    resolved = isinstance(file, Found) and numbers is not None
    if not resolved and (file is None) == (numbers is None):
        raise ValueError(f"give exactly one of measurements and {key}")


def _all_of(key: str, values: Mapping[str, Any] | None, supply: Supply) -> Mapping[str, Any]:
    assert values is not None, "what measurements say is put into a configuration before anything is planned"
    if missing := [name for name in supply.sizes if name not in values]:
        raise UserError(f"weights: {key} has nothing for component '{missing[0]}'; it has: {', '.join(values)}")
    return values
