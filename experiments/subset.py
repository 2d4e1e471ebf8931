"""E2: the best fifth of a noisy pool beats a random fifth; importance against n-gram perplexity."""

from __future__ import annotations

from experiments.rig.arms import replayed, subset
from experiments.rig.claim import Claim
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig
from experiments.rig.results import Result, Results

SCORERS = ("random", "perplexity", "importance")
ARMS = {
    "subset-random": "random fifth",
    "subset-perplexity": "lowest n-gram perplexity",
    "subset-importance": "highest importance",
    "replay-18": "all clean text, one visit",
}


def run(rig: Rig) -> list[Result]:
    return [subset(rig, scorer) for scorer in SCORERS] + [replayed(rig, 0.18)]


def checks(results: Results) -> list[Check]:
    random, perplexity, importance, _ = ARMS
    return [
        Check("domain, importance - random", results.difference(importance, random, Result.domain_loss), gate=-0.3),
        Check("domain, perplexity - random", results.difference(perplexity, random, Result.domain_loss)),
        Check("domain, importance at 50 % of the tokens - random at the end", half_way(results)),
        Check("domain, importance - perplexity", results.difference(importance, perplexity, Result.domain_loss), decides=False),
        Check("guard, importance - random", results.difference(importance, random, Result.guard_loss), decides=False),
        Check("chosen outside the domain, importance", results.effect([importance], outside), 0.05, decides=False, unit="of the tokens"),
        Check("chosen outside the domain, perplexity", results.effect([perplexity], outside), 0.05, decides=False, unit="of the tokens"),
    ]


def outside(result: Result) -> float:
    return 1 - result.extra["precision"]


def half_way(results: Results) -> dict[tuple[str, int], float]:
    def measure(best: Result, random: Result) -> float:
        half = max(number for number, (tokens, _) in enumerate(best.curve) if tokens <= 0.61 * best.curve[-1][0])
        return best.domain_loss(half) - random.domain_loss()

    return results.effect(["subset-importance", "subset-random"], measure)


CLAIM = Claim(
    "subset",
    "The best fifth of a noisy pool beats a random fifth",
    "A subset chosen by likeness to a small reference teaches the domain far better than a random subset of the same size, at equal budget and replay.",
    "strategy II of arXiv 2406.14833; DSIR, arXiv 2302.03169",
    run,
    checks,
    ARMS,
    gated=True,
    columns={"precision": lambda result: result.extra.get("precision", 1.0)},
)
