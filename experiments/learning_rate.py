"""E7: the learning rate has an interior optimum for the domain, and forgetting grows with it."""

from __future__ import annotations

import json

from experiments.rig.arms import REPLAY
from experiments.rig.claim import Claim
from experiments.rig.figures import scatter
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig, stage
from experiments.rig.results import Result, Results, exam_losses
from experiments.rig.running import digest

RATES = (5e-4, 1.5e-3, 5e-3, 1.5e-2)
ARMS = {f"rate-{rate:g}": f"peak {rate:g}" for rate in RATES}


def run(rig: Rig) -> list[Result]:
    """`python -m train sweep`, each rate a run of its own with the cosine of the other arms."""
    manifest = rig.planned(f"replay-{REPLAY * 100:02.0f}", [stage(rig.scale.tokens, rig.mixed(REPLAY))])
    settings = {
        "manifests": {"domain": str(manifest)},
        "learning_rates": list(RATES),
        "durations": [rig.scale.tokens],
        "target": f"loss/exam-v1/{rig.kinds[0]}",
        "runs": "separate",
        "seeds": [rig.seed],
    }
    config = rig.config({"path": str(rig.base())}, RATES[0]) | {
        "guard": {"sigma": None}
    }  # else the highest rates lose steps that are merely large
    folder = rig.workshop.sweep(f"rates-{rig.domain}-{rig.seed}", settings, config)
    found = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["data_sets"]["domain"]
    before = exam_losses(found["before"])
    return [
        Result(
            f"rate-{cell['learning_rate']:g}",
            rig.domain,
            rig.seed,
            digest(manifest),
            folder.name,
            [(0, before), (cell["duration"], exam_losses(cell["values"]))],
        )
        for cell in found["cells"]
    ]


def checks(results: Results) -> list[Check]:
    lowest, *inner, highest = ARMS
    best = {
        place: min(value for arm in inner for value in [results.effect([arm], Result.domain_loss).get(place)] if value)
        for place in results.places
    }

    def edge(arm: str) -> dict[tuple[str, int], float]:
        return {place: best[place] - value for place, value in results.effect([arm], Result.domain_loss).items()}

    rising = zip(list(ARMS)[1:], list(ARMS), strict=False)
    return [
        Check("domain, best inner rate - the lowest", edge(lowest), gate=0.0),
        Check("domain, best inner rate - the highest", edge(highest), gate=0.0),
        *(Check(f"guard, {ARMS[low]} - {ARMS[high]}", results.difference(low, high, Result.guard_loss)) for high, low in rising),
    ]


def figures(results: Results) -> dict[str, str]:
    return {
        "learning-rate": scatter(
            results, {arm: float(arm.removeprefix("rate-")) for arm in ARMS}, "peak learning rate (logarithm to base 10)"
        )
    }


CLAIM = Claim(
    "learning_rate",
    "The learning rate has an optimum inside the grid",
    "The target's loss over the learning rate is U-shaped, the best rate has to be looked for, and forgetting grows with the rate.",
    "Databricks, as above; arXiv 2403.08763; ablations of arXiv 2406.14833",
    run,
    checks,
    ARMS,
    gated=True,
    figures=figures,
)
