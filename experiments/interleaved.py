"""E14: the domain's corpora interleaved against one after the other."""

from __future__ import annotations

from experiments.rig.arms import replayed, trained
from experiments.rig.claim import Claim
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig, stage
from experiments.rig.results import Result, Results

ARMS = {"replay-00": "interleaved", "blocked": "one after the other"}


def run(rig: Rig) -> list[Result]:
    tokens = rig.scale.tokens
    ends = [tokens * number // len(rig.kinds) for number in range(len(rig.kinds) + 1)]
    blocks = [stage(ends[number + 1] - ends[number], {kind: 1}, name=kind) for number, kind in enumerate(rig.kinds)]
    return [replayed(rig, 0.0), trained(rig, "blocked", rig.planned("blocked", blocks))]


def worst(result: Result) -> float:
    """Of the corpora's losses the one that fell least from the base, as a share of it."""
    before, after = result.curve[0][1], result.end
    kinds = [kind for kind in after if kind not in ("books_en", "wiki_en")]
    return max(after[kind] / before[kind] for kind in kinds)


def checks(results: Results) -> list[Check]:
    together, apart = ARMS
    return [
        Check("domain, interleaved - blocked", results.difference(together, apart, Result.domain_loss), gate=-0.1),
        Check(
            "worst corpus, share of the base's loss, interleaved - blocked",
            results.difference(together, apart, worst),
            unit="of the base's loss",
        ),
        Check("guard, interleaved - blocked", results.difference(together, apart, Result.guard_loss), decides=False),
    ]


CLAIM = Claim(
    "interleaved",
    "Disciplines interleaved beat disciplines in blocks",
    "Separating disciplines in time hurts; mixing them is better, for the mean and for the worst of them.",
    "Llama-3-SynE, arXiv 2407.18743",
    run,
    checks,
    ARMS,
    gated=True,
)
