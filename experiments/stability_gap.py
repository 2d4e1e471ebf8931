"""E1: the guard dips and partly recovers while the domain improves all along; without replay, or without decay, it does not."""

from __future__ import annotations

from experiments.rig.arms import REPLAY, replayed
from experiments.rig.claim import Claim
from experiments.rig.figures import curves
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig
from experiments.rig.results import Result, Results

HOT = 5e-3
ARMS = {
    "replay-00": "no replay, cosine",
    "replay-00-constant": "no replay, constant rate",
    "replay-18": "18 % replay, cosine",
    "replay-18-constant": "18 % replay, constant rate",
    "replay-50-0.005": "50 % replay, cosine, peak 5e-3",
}


def run(rig: Rig) -> list[Result]:
    shares = (0.0, REPLAY)
    return [replayed(rig, share, schedule) for share in shares for schedule in ("cosine", "constant")] + [replayed(rig, 0.5, rate=HOT)]


def recovered(result: Result) -> float:
    """The share of the guard's highest rise that is gone at the end."""
    return -falls_back(result) / (highest(result) - result.guard_loss(0))


def rises_again(result: Result) -> float:
    """The largest rise of the domain's loss from one mark to the next."""
    return max(result.domain_loss(mark + 1) - result.domain_loss(mark) for mark in range(len(result.curve) - 1))


def share_at_peak(result: Result) -> float:
    """Where the guard is highest, as a share of the tokens."""
    peak = max(range(len(result.curve)), key=result.guard_loss)
    return result.curve[peak][0] / result.curve[-1][0]


def checks(results: Results) -> list[Check]:
    none, none_constant, main, main_constant, hot = ARMS
    return [
        Check("largest rise of the domain's loss between marks, 18 % replay", results.effect([main], rises_again)),
        Check("guard, end - highest, 18 % replay", results.effect([main], falls_back)),
        Check("guard, end - highest, 50 % replay, peak 5e-3", results.effect([hot], falls_back)),
        Check("guard's fall from its highest, no replay", results.effect([none], lambda row: -falls_back(row)), 0.01),
        Check("guard, base - end, 18 % replay (never back)", results.effect([main], lambda row: row.guard_loss(0) - row.guard_loss())),
        Check("guard, 18 % replay, cosine - constant", results.difference(main, main_constant, Result.guard_loss), decides=False),
        Check("guard, no replay, cosine - constant", results.difference(none, none_constant, Result.guard_loss), decides=False),
        Check("domain, 18 % replay, cosine - constant", results.difference(main, main_constant, Result.domain_loss), decides=False),
    ]


def falls_back(result: Result) -> float:
    """How far below its highest mark the guard ends."""
    return result.guard_loss() - highest(result)


def highest(result: Result) -> float:
    return max(result.guard_loss(mark) for mark in range(len(result.curve)))


def figures(results: Results) -> dict[str, str]:
    return {
        "stability-gap": curves(results, ARMS, Result.guard_loss, "General text: loss while the model learns medicine"),
        "stability-gap-domain": curves(results, ARMS, Result.domain_loss, "Medicine: loss in the same runs"),
    }


CLAIM = Claim(
    "stability_gap",
    "The stability gap: a dip, and a partial recovery",
    "When training moves to a new domain, general ability falls first and recovers later, while the domain's perplexity falls all along. Without replay or decay it does not recover.",
    "arXiv 2406.14833 (the name: 2205.13452); 2403.08763 for re-warming and decay",
    run,
    checks,
    ARMS,
    figures=figures,
    columns={"recovered": recovered, "peak at": share_at_peak},
)
