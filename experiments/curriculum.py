"""E13: new text from easy to hard by the base model's own perplexity, against the reverse and a random order, at a constant rate."""

from __future__ import annotations

from typing import Any

from experiments.rig.arms import REPLAY, trained
from experiments.rig.claim import Claim
from experiments.rig.corpora import GENERAL, REFERENCE
from experiments.rig.judging import Check
from experiments.rig.recipes import BOOKS, Rig, of_sources, stage
from experiments.rig.results import Result, Results

ARMS = {"order-random": "random order", "order-ascending": "easy to hard", "order-descending": "hard to easy"}
BUCKETS = 10


def run(rig: Rig) -> list[Result]:
    """The base scores only what is drawn for the run; replay runs beside the ordered text at its constant rate."""
    tokens = rig.scale.tokens
    drawn = [{"top": {"order": "random", "where": f"source = '{kind}'", "tokens": round(tokens * 0.36)}} for kind in rig.kinds]
    drawn += [{"top": {"order": "random", "where": f"source = '{kind}'", "tokens": round(tokens * 0.25)}} for kind in GENERAL]
    hardness = {"kind": "causal_lm", "model": str(rig.base()), "bos": False, "context": rig.scale.sequence_length}
    sources = {kind: {"files": f"corpora:{kind}.parquet", "where": f"part >= {REFERENCE}"} for kind in rig.kinds} | rig.general()
    new = ", ".join(f"'{kind}'" for kind in rig.kinds)
    components = {"new": f"source IN ({new})"} | of_sources(GENERAL)
    weights = {"strategy": "replay", "share": REPLAY, "replay": dict(zip(GENERAL, (BOOKS, 1 - BOOKS), strict=True)), "rest": {"new": 1}}
    found = []
    for arm in ARMS:
        direction = arm.removeprefix("order-")
        order: dict[str, Any] = (
            {}
            if direction == "random"
            else {"order": {"by": "hardness.perplexity", "direction": direction, "buckets": BUCKETS, "components": ["new"]}}
        )
        recipe = rig.recipe(sources, components, [stage(tokens, weights, **order)], [*drawn, {"add": {"hardness": hardness}}])
        manifest = rig.workshop.manifest(f"{arm}-{rig.domain}-{rig.seed}", recipe)
        found.append(trained(rig, arm, manifest, schedule="constant"))
    return found


def checks(results: Results) -> list[Check]:
    random, easy, hard = ARMS
    return [
        Check("domain, easy to hard - hard to easy", results.difference(easy, hard, Result.domain_loss)),
        Check("domain, easy to hard - random", results.difference(easy, random, Result.domain_loss)),
        Check("guard, easy to hard - hard to easy", results.difference(easy, hard, Result.guard_loss), decides=False),
        Check("guard, easy to hard - random", results.difference(easy, random, Result.guard_loss), decides=False),
    ]


CLAIM = Claim(
    "curriculum",
    "Easy to hard is at least as good as any order",
    "New text in the order of the base model's perplexity, low to high, is at least as good as a random order and as high to low.",
    "Llama-3-SynE, arXiv 2407.18743",
    run,
    checks,
    ARMS,
)
