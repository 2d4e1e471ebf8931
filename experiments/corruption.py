"""E12: how many wrong answers synthetic data may hold."""

from __future__ import annotations

from experiments.qa_share import accuracy, world
from experiments.rig.claim import Claim
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig
from experiments.rig.results import Result, Results

SHARE = 0.4
CORRUPTED = (0.0, 0.3, 0.5, 0.7)
ARMS = {f"corrupt-{share * 100:02.0f}": f"{share * 100:.0f} % wrong" for share in CORRUPTED}


def run(rig: Rig) -> list[Result]:
    return [world(rig, arm, SHARE, 0.0, share) for arm, share in zip(ARMS, CORRUPTED, strict=True)]


def lost(clean: Result, corrupted: Result) -> float:
    """The share of the clean arm's accuracy that is lost."""
    return 1 - accuracy(corrupted) / accuracy(clean)


def checks(results: Results) -> list[Check]:
    clean, third, half, most = ARMS
    return [
        Check("accuracy lost at 30 % wrong", results.effect([clean, third], lost), 0.15, unit="of the clean arm's"),
        Check("accuracy kept at 70 % wrong", results.effect([clean, most], lambda a, b: 1 - lost(a, b)), 0.5, unit="of the clean arm's"),
        Check("accuracy lost at 50 % wrong", results.effect([clean, half], lost), 0.15, decides=False, unit="of the clean arm's"),
    ]


CLAIM = Claim(
    "corruption",
    "A third of wrong answers does little harm, more than half does much",
    "Up to 30 % corrupted synthetic samples have little effect; above 50 % there is a clear drop.",
    "Llama-3-SynE, arXiv 2407.18743",
    run,
    checks,
    ARMS,
    domains=("medical",),
    columns={"accuracy": accuracy, "margin": lambda row: row.end["margin/facts"]},
)
