"""E5: replay at the rates of pre-training against replay of one source alone."""

from __future__ import annotations

from experiments.rig.arms import REPLAY, replayed, trained
from experiments.rig.claim import Claim
from experiments.rig.corpora import GENERAL
from experiments.rig.judging import Check, mean
from experiments.rig.recipes import Rig, stage
from experiments.rig.results import Result, Results

ONE_SOURCE = {"books-only": 1.0, "wiki-only": 0.0}
ARMS = {
    "replay-18": "18 % replay at the base's rates (books 92, wiki 8)",
    "books-only": "18 % replay, books alone",
    "wiki-only": "18 % replay, wiki alone",
}


def run(rig: Rig) -> list[Result]:
    found = [replayed(rig, REPLAY)]
    for name, books in ONE_SOURCE.items():
        found.append(trained(rig, name, rig.planned(name, [stage(rig.scale.tokens, rig.mixed(REPLAY, books))])))
    return found


def worst_rise(result: Result) -> float:
    """Of the general sources the one that rose most."""
    return max(result.end[kind] - result.curve[0][1][kind] for kind in GENERAL)


def checks(results: Results) -> list[Check]:
    matched, books, wiki = ARMS
    found = [Check("guard, matched - a source drawn at random", results.effect([matched, books, wiki], against_random))]
    for arm in (books, wiki):
        found += [
            Check(f"worst source's rise, matched - {ARMS[arm]}", results.difference(matched, arm, worst_rise)),
            Check(f"guard, matched - {ARMS[arm]}", results.difference(matched, arm, Result.guard_loss), decides=False),
        ]
    return found


def against_random(matched: Result, books: Result, wiki: Result) -> float:
    return matched.guard_loss() - mean([books.guard_loss(), wiki.guard_loss()])


CLAIM = Claim(
    "matched_replay",
    "Replay at the rates of pre-training beats replay of any one source",
    "At an equal share, replay in the proportions of pre-training keeps more of general ability than replay from one source, above all in the source that suffers most.",
    "strategy III of arXiv 2406.14833",
    run,
    checks,
    ARMS,
)
