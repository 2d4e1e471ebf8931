"""Strategy `regression`: the mixture that a regression over small proxy runs predicts to be best.

In: per proxy run its ratios and its final metrics. For each target (a metric of a component, or of the whole run) the log-linear law
log v = Σ_k t_k p_k is fitted by least squares; then the mixture p minimises the mean of the predicted values plus `kl` times KL(p ‖ prior), with
no component beyond its cap: the form of Olmix (arXiv 2602.12237; after RegMix, arXiv 2407.01492, and the data mixing laws, arXiv 2403.16952). It warns of
proxies below 15M parameters. The objective is strictly convex, so the optimum is one and does not depend on the solver.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixing import UserError
from mixing.strategies.measured import DIGITS, Found, Row
from mixing.strategies.shares import PARTS, Cap, Name, Positive, Supply, normalised, written

_GRID = 10**9
_SETTLED = 1e-14
_LAST_BITS = 1e-15  # smaller changes only go to and fro
_MOST_STEPS = 200_000
_TOLD_APART = 1e-6


class Regression(BaseModel):
    """The best predicted mixture of proxy runs, held near a prior and below the caps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["regression"] = "regression"
    ratios: str | Found | None = Field(None, description="the file of ratios: a column `run` and one for each component")
    measurements: str | Found | None = Field(None, description="the file of measurements of these runs; of each run the last counts")
    metrics: list[str] = Field(["loss"], min_length=1, description="which metrics of the file; each of each component is a target")
    goal: Literal["lower", "higher"] = Field("lower", description="`higher` for shares of 1, as accuracies: 1 - value is then fitted")
    kl: float = Field(0.1, ge=1e-4, allow_inf_nan=False, description="how strongly the prior holds, in units of the metric")
    prior: dict[Name, Positive] | None = Field(None, description="the prior; without it, in proportion to tokens")
    max_epochs: Cap | None = Field(None, description="the cap on repetition; without it, what the mixture's `max_epochs` still allows")
    components: list[Name] | None = Field(None, min_length=1, description="which components; all that are not named beside it")
    coefficients: dict[str, dict[Name, float]] | None = Field(
        None, description="t by target and component, instead of files; with them, the fit"
    )
    errors: dict[str, float] | None = Field(None, description="filled in: root mean square error of log v, by target")
    runs: int | None = Field(None, description="filled in: proxy runs that were fitted")

    @model_validator(mode="after")
    def _files_or_coefficients(self) -> Regression:
        files, fitted = (self.ratios, self.measurements), self.coefficients is not None
        resolved = fitted and all(isinstance(one, Found) for one in files)
        if not resolved and not (files == (None, None) if fitted else None not in files):
            raise ValueError("give ratios and measurements, or coefficients instead of both")
        return self


def fit(config: Regression, components: Sequence[str], ratios: Mapping[str, Mapping[str, Fraction]], rows: Iterable[Row]) -> Regression:
    """With the coefficients of every target. `ratios` holds each run's, of any scale."""
    values = _final_values(config, ratios, rows)
    design = []
    for run in ratios.values():
        shares = normalised({name: run[name] for name in components})
        design.append([round(share * _GRID) for share in shares.values()])
    logs = {target: [Fraction(str(round(math.log(value), 12))) for value in by_run] for target, by_run in values.items()}
    coefficients, errors = {}, {}
    for target, solved in zip(logs, _least_squares(design, list(logs.values()), components), strict=True):
        coefficients[target] = {name: round(float(one), DIGITS) for name, one in zip(components, solved, strict=True)}
        fitted = [math.fsum(float(t) * part / _GRID for t, part in zip(solved, run, strict=True)) for run in design]
        squares = [(float(log) - one) ** 2 for log, one in zip(logs[target], fitted, strict=True)]
        errors[target] = round(math.sqrt(math.fsum(squares) / len(squares)), 4)
    return config.model_copy(update={"coefficients": coefficients, "errors": errors, "runs": len(ratios)})


def _final_values(config: Regression, ratios: Mapping[str, object], rows: Iterable[Row]) -> dict[str, list[float]]:
    """Per target its value in each run, in the order of `ratios`; every target was measured in every run."""
    last: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.metric in config.metrics and row.run in ratios and row.value is not None:
            target = row.metric if row.component is None else f"{row.metric} of {row.component}"
            runs = last.setdefault(target, {})
            if row.run not in runs or row.tokens >= runs[row.run].tokens:
                runs[row.run] = row
    if not last:
        raise UserError(f"no measurement of {', '.join(config.metrics)} in any run of the ratios: {', '.join(list(ratios)[:5])}")
    for target, runs in last.items():
        if missing := [run for run in ratios if run not in runs]:
            raise UserError(f"no measurement of '{target}' for {len(missing)} of {len(ratios)} runs: {', '.join(missing[:5])}")
    values = {}
    for target in sorted(last):
        found = [last[target][run].value or 0.0 for run in ratios]
        values[target] = found if config.goal == "lower" else [1 - value for value in found]
        if bad := [(run, one) for run, one in zip(ratios, values[target], strict=True) if one <= 0]:
            raise UserError(f"'{target}' of run '{bad[0][0]}' is {bad[0][1]:g} after `goal: {config.goal}`; a logarithm needs more than 0")
    return values


def _least_squares(design: list[list[int]], logs: list[list[Fraction]], components: Sequence[str]) -> list[list[Fraction]]:
    """The exact solutions of the normal equations, one for each list of `logs`; refused where the runs cannot tell a component from the others.

    Gauss elimination over fractions, one for all targets: 40 components, 200 runs and 20 targets take 3 s, a tenth of that with ten components.
    """
    size = len(components)
    rows = [
        [Fraction(sum(run[i] * run[j] for run in design)) for j in range(size)]
        + [sum((log * run[i] * _GRID for log, run in zip(one, design, strict=True)), Fraction(0)) for one in logs]
        for i in range(size)
    ]
    diagonal = [rows[i][i] for i in range(size)]
    for i in range(size):
        if rows[i][i] <= diagonal[i] * Fraction(_TOLD_APART):
            raise UserError(
                f"the {len(design)} runs do not tell component '{components[i]}' from those before it; "
                f"give at least {size} runs whose ratios vary independently"
            )
        for j in range(i + 1, size):
            if factor := rows[j][i] / rows[i][i]:
                rows[j] = rows[j][: i + 1] + [a - factor * b for a, b in zip(rows[j][i + 1 :], rows[i][i + 1 :], strict=True)]
    solved = [[Fraction(0)] * size for _ in logs]
    for target, one in enumerate(solved):
        for i in reversed(range(size)):
            one[i] = (rows[i][size + target] - sum(rows[i][j] * one[j] for j in range(i + 1, size))) / rows[i][i]
    return solved


def regression(config: Regression, supply: Supply) -> dict[str, Fraction]:
    """The p that minimises mean_m exp(t_m·p) + kl · KL(p ‖ prior) with Σ p = 1 and p_k <= cap_k, as decimals of 1e-12."""
    assert config.coefficients is not None, "the fit is put into a configuration before anything is planned"
    names = list(supply.sizes)
    for key, given in [("prior", config.prior), *((f"coefficients of '{target}'", one) for target, one in config.coefficients.items())]:
        if given is not None and (missing := [name for name in names if name not in given]):
            raise UserError(f"weights: {key} has nothing for component '{missing[0]}'; it has: {', '.join(given)}")
    weights = {name: written(config.prior[name]) if config.prior else Fraction(supply.sizes[name]) for name in names}
    if empty := [name for name in names if not weights[name]]:
        raise UserError(f"weights: component '{empty[0]}' has no tokens, and without them no prior; leave it out of `components`")
    allowed = {
        name: written(config.max_epochs) * supply.sizes[name] if config.max_epochs else Fraction(supply.available[name]) for name in names
    }
    if sum(allowed.values()) < supply.tokens:
        have = ", ".join(f"{name} {int(count):,}" for name, count in allowed.items())
        raise UserError(
            f"weights: the caps allow fewer tokens than the {int(supply.tokens):,} asked: {have}; raise max_epochs or lower the tokens"
        )
    caps = [min(1.0, float(allowed[name] / supply.tokens)) for name in names]
    prior = [float(share) for share in normalised(weights).values()]
    laws = [[one[name] for name in names] for one in config.coefficients.values()]
    best = minimise(laws, prior, caps, config.kl)
    if lost := [name for name, share in zip(names, best, strict=True) if share < 1 / PARTS]:
        raise UserError(
            f"weights: the regression leaves component '{lost[0]}' less than 1e-9; leave it out of `components`, or take a larger kl"
        )
    return {name: Fraction(str(round(share, 12))) for name, share in zip(names, best, strict=True)}


def minimise(laws: Sequence[Sequence[float]], prior: Sequence[float], caps: Sequence[float], kl: float) -> list[float]:
    """argmin over the capped simplex of mean_m exp(t_m·p) + kl · KL(p ‖ prior), by mirror descent with the KL term taken exactly.

    The mean is smooth relative to the entropy with the constant L below, the whole strongly convex with `kl`: the error falls by L / (L + kl) a step
    (arXiv 1610.05708). Sums are in fixed order.
    """
    smooth = math.fsum(math.exp(max(law)) * ((max(law) - min(law)) / 2) ** 2 for law in laws) / len(laws)
    logs = _capped([math.log(q) for q in prior], caps)
    if smooth == 0:  # no law tells the components apart
        return [math.exp(one) for one in logs]
    for _ in range(_MOST_STEPS):
        shares = [math.exp(one) for one in logs]
        values = [math.exp(math.fsum(t * p for t, p in zip(law, shares, strict=True))) for law in laws]
        gradient = [math.fsum(v * law[k] for v, law in zip(values, laws, strict=True)) / len(laws) for k in range(len(prior))]
        moved = [(kl * math.log(q) + smooth * one - g) / (kl + smooth) for q, one, g in zip(prior, logs, gradient, strict=True)]
        logs = _capped(moved, caps)
        change = max(abs(math.exp(one) - share) for one, share in zip(logs, shares, strict=True))
        if change < max(_SETTLED * kl / (kl + smooth), _LAST_BITS):
            return [math.exp(one) for one in logs]
    raise UserError(f"weights: the mixture does not settle in {_MOST_STEPS:,} steps with kl {kl:g}; take a larger kl")


def _capped(logs: Sequence[float], caps: Sequence[float]) -> list[float]:
    """The logarithms of shares in proportion to exp(logs), none above its cap, summing to 1."""
    full: set[int] = set()
    while True:
        free = [i for i in range(len(logs)) if i not in full]
        left = 1 - math.fsum(caps[i] for i in sorted(full))
        if not free or left <= 0:
            return [math.log(caps[i]) if i in full else -math.inf for i in range(len(logs))]
        top = max(logs[i] for i in free)
        scale = math.log(left) - top - math.log(math.fsum(math.exp(logs[i] - top) for i in free))
        over = {i for i in free if logs[i] + scale > math.log(caps[i])}
        if not over:
            return [math.log(caps[i]) if i in full else logs[i] + scale for i in range(len(logs))]
        full |= over
