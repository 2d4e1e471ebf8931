"""E10: the average of base and continued model lies below the chord: it gives back more of what was forgotten than of what was learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from experiments.rig.arms import REPLAY, replayed, soups
from experiments.rig.claim import Claim
from experiments.rig.figures import trade
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig
from experiments.rig.results import Result, Results

SOUPED = {"replay-00": "no replay", "replay-18": "18 % replay"}
SHOWN = (0.0, 0.2, 0.5, 0.8, 1.0)
ARMS = {f"{arm}+soup-{share:.1f}": f"{label}, {share:g} of it" for arm, label in SOUPED.items() for share in SHOWN}


def run(rig: Rig) -> list[Result]:
    return [soup for share in (0.0, REPLAY) for soup in soups(rig, replayed(rig, share))]


def checks(results: Results) -> list[Check]:
    found = []
    for arm, label in SOUPED.items():
        base, middle, end = (f"{arm}+soup-{share:.1f}" for share in (0.0, 0.5, 1.0))
        three = [base, middle, end]
        found += [
            Check(f"guard over the chord, {label}", results.effect(three, partial(over_chord, Result.guard_loss)), gate=-0.05),
            Check(f"domain over the chord, {label}", results.effect(three, partial(over_chord, Result.domain_loss)), gate=-0.1),
            Check(f"forgetting left, {label}", results.effect(three, partial(kept, Result.guard_loss)), 0.5, unit="of the rise"),
            Check(f"domain gain lost, {label}", results.effect(three, partial(lost, Result.domain_loss)), 0.5, unit="of the gain"),
        ]
    most, whole = "replay-18+soup-0.9", "replay-18+soup-1.0"
    return [
        *found,
        Check(
            "the target improves too: domain, 0.9 of the arm - all of it",
            results.difference(most, whole, Result.domain_loss),
            decides=False,
        ),
    ]


Loss = Callable[[Result], float]


def over_chord(loss: Loss, base: Result, middle: Result, end: Result) -> float:
    return loss(middle) - (loss(base) + loss(end)) / 2


def kept(loss: Loss, base: Result, middle: Result, end: Result) -> float:
    """The share of the arm's change that the middle still has."""
    return (loss(middle) - loss(base)) / (loss(end) - loss(base))


def lost(loss: Loss, base: Result, middle: Result, end: Result) -> float:
    return 1 - kept(loss, base, middle, end)


def figures(results: Results) -> dict[str, str]:
    series = {label: [f"{arm}+soup-{step / 10:.1f}" for step in range(11)] for arm, label in SOUPED.items()}
    return {"soup": trade(results, series, {}, "Averages of base and arm, a tenth apart (left: the arm, right: the base)")}


CLAIM = Claim(
    "soup",
    "A soup with the base lies below the chord",
    "Averaging the continued model with its base reduces forgetting at little cost; the target may even improve.",
    "Databricks, Characterizing Datasets and Building Better Models with Continued Pre-Training",
    run,
    checks,
    ARMS,
    gated=True,
    figures=figures,
)
