"""E3: the same tokens as one epoch of many documents or many epochs of few."""

from __future__ import annotations

from experiments.rig.arms import replayed, trained
from experiments.rig.claim import Claim
from experiments.rig.figures import scatter
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig, stage
from experiments.rig.results import Result, Results

EPOCHS = (4, 16, 64)
ARMS = {"replay-00": "1 epoch"} | {f"epochs-{count}": f"{count} epochs" for count in EPOCHS}


def run(rig: Rig) -> list[Result]:
    """`simulate` takes of each corpus so many documents that this run repeats them as one of `count` times its length would repeat all."""
    found = [replayed(rig, 0.0)]
    for count in EPOCHS:
        mixture = {"simulate": count * rig.scale.tokens, "max_epochs": count}
        manifest = rig.planned(f"epochs-{count}", [stage(rig.scale.tokens, rig.mixed(0.0))], **mixture)
        found.append(trained(rig, f"epochs-{count}", manifest))
    return found


def share_above(once: Result, often: Result) -> float:
    """By how much of its value the domain's loss lies above that of one epoch."""
    return often.domain_loss() / once.domain_loss() - 1


def checks(results: Results) -> list[Check]:
    once, four, sixteen, sixty_four = ARMS
    return [
        Check("domain, 4 epochs over 1", results.effect([once, four], share_above), 0.02, unit="of the loss"),
        Check("domain, 4 epochs - 16", results.difference(four, sixteen, Result.domain_loss)),
        Check("domain, 16 epochs - 64", results.difference(sixteen, sixty_four, Result.domain_loss)),
        Check("domain, base - 64 epochs", results.effect([sixty_four], lambda row: row.domain_loss(0) - row.domain_loss()), decides=False),
    ]


CLAIM = Claim(
    "epochs",
    "Four epochs are almost worth one of fresh text, many are not",
    "Up to about four epochs repeated tokens are worth almost as much as new ones; after that ever less, and small subsets overfit.",
    "the data-constrained law, arXiv 2305.16264; strategy I of arXiv 2406.14833",
    run,
    checks,
    ARMS,
    figures=lambda results: {
        "epochs": scatter(results, {"replay-00": 1.0} | {f"epochs-{count}": count for count in EPOCHS}, "epochs (logarithm to base 10)")
    },
)
