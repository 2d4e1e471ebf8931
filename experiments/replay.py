"""E4: replay of general text holds forgetting down, at a small cost to the domain."""

from __future__ import annotations

from experiments.rig.arms import REPLAY, replayed
from experiments.rig.claim import Claim
from experiments.rig.figures import trade
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig
from experiments.rig.results import Result, Results

SHARES = (0.0, 0.05, REPLAY, 0.5)
ARMS = {f"replay-{share * 100:02.0f}": f"{share * 100:.0f} % replay" for share in SHARES}


def run(rig: Rig) -> list[Result]:
    return [replayed(rig, share) for share in SHARES]


def rise(result: Result) -> float:
    return result.guard_loss() - result.guard_loss(0)


def checks(results: Results) -> list[Check]:
    none, little, main, half = ARMS
    steps = zip((little, main, half), (none, little, main), strict=True)
    falls = [Check(f"guard, {ARMS[more]} - {ARMS[less]}", results.difference(more, less, Result.guard_loss)) for more, less in steps]
    return [
        Check("share of the rise left at 18 % replay", results.effect([none, main], left), 1.0, gate=0.6, unit="of the rise"),
        Check("share of the rise left at 5 % replay", results.effect([none, little], left), 1.0, decides=False, unit="of the rise"),
        Check("domain, 18 % replay - none", results.difference(main, none, Result.domain_loss), 0.2, gate=0.2),
        *falls,
        Check("share of the domain's gain lost at 5 % replay", results.effect([none, little], lost), 0.1, unit="of the gain"),
    ]


def left(none: Result, some: Result) -> float:
    return rise(some) / rise(none)


def lost(none: Result, some: Result) -> float:
    return (some.domain_loss() - none.domain_loss()) / (none.domain_loss(0) - none.domain_loss())


CLAIM = Claim(
    "replay",
    "A little replay removes much of the forgetting",
    "Replaying a small share of general text holds the loss of general ability down and costs the domain little; more replay, more of both.",
    "Ibrahim et al., arXiv 2403.08763; strategy III of arXiv 2406.14833",
    run,
    checks,
    ARMS,
    gated=True,
    figures=lambda results: {"replay": trade(results, {"replay": list(ARMS)}, ARMS)},
)
