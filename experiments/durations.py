"""E9: two data sets mixed in proportion to how long each was worth training on, against 1:1 and one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.rig.arms import trained
from experiments.rig.claim import Claim
from experiments.rig.corpora import DOMAINS, REFERENCE
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig, of_sources, stage
from experiments.rig.results import Result, Results

LARGE = {"medical": 1, "math": 2}  # which corpus of the domain; TeX makes word problems worse at every length, and has no duration
ARMS = {"mix-durations": "by optimal durations", "mix-equal": "1:1", "mix-concatenated": "one after the other"}
SMALL, EPOCHS = 16, 32  # the small data set is the arms' tokens over 16; no arm repeats it more often than this


def run(rig: Rig) -> list[Result]:
    """A small set of the domain's first corpus, which is the target, and a large one of another of its corpora."""
    tokens = rig.scale.tokens
    alone = {name: planned(rig, f"{name}-alone", [stage(tokens, {name: 1})]) for name in ("small", "large")}
    settings = {
        "manifests": {name: str(folder) for name, folder in alone.items()},
        "learning_rates": [rig.scale.rate],
        "durations": [tokens // 8, tokens // 4, tokens // 2, tokens],
        "target": f"loss/exam-v1/{rig.kinds[0]}",
        "seeds": [rig.seed],
    }
    sweep = rig.workshop.sweep(f"durations-{rig.domain}-{rig.seed}", settings, rig.config({"path": str(rig.base())}, rig.scale.rate))
    measured = {"strategy": "optimal_durations", "measurements": f"runs:sweeps/{sweep.name}/measurements.jsonl", "metric": "target"}
    first = tokens // SMALL
    stages = {
        "mix-durations": [stage(tokens, measured)],
        "mix-equal": [stage(tokens, {"small": 1, "large": 1})],
        "mix-concatenated": [stage(first, {"small": 1}, "first"), stage(tokens - first, {"large": 1}, "then")],
    }
    found = []
    for arm, plan in stages.items():
        manifest = planned(rig, arm, plan)
        components: list[dict[str, Any]] = [
            one["components"].get("small", {}) for one in json.loads((manifest / "manifest.json").read_text(encoding="utf-8"))["stages"]
        ]
        small = sum(one.get("tokens", 0) for one in components)
        found.append(trained(rig, arm, manifest, share=small / tokens, epochs=small / first))
    return found


def planned(rig: Rig, name: str, stages: list[dict[str, Any]]) -> Path:
    sources = {
        name: {"files": f"corpora:{kind}.parquet", "where": f"part >= {REFERENCE}"}
        for name, kind in (("small", rig.kinds[0]), ("large", rig.kinds[LARGE[rig.domain]]))
    }
    few = [{"top": {"order": "random", "where": "source = 'small'", "tokens": round(1.02 * rig.scale.tokens / SMALL)}}]
    used = {part for one in stages for part in one["weights"]} & set(sources) or set(sources)
    components = {part: rule for part, rule in of_sources(list(sources)).items() if part in used}
    recipe = rig.recipe(sources, components, stages, few, max_epochs=dict.fromkeys(used & {"small"}, EPOCHS))
    return rig.workshop.manifest(f"{name}-{rig.domain}-{rig.seed}", recipe)


def target(result: Result) -> float:
    """The loss that the sweep looked at: of the domain's first corpus."""
    return result.end[DOMAINS[result.domain].kinds[0]]


def checks(results: Results) -> list[Check]:
    durations, equal, concatenated = ARMS
    return [
        Check("target, by durations - 1:1", results.difference(durations, equal, target)),
        Check("target, by durations - one after the other", results.difference(durations, concatenated, target)),
        Check("guard, by durations - 1:1", results.difference(durations, equal, Result.guard_loss), decides=False),
    ]


CLAIM = Claim(
    "durations",
    "Mixing by optimal durations beats 1:1 and concatenation",
    "Each data set in proportion to the tokens after which it was best alone makes a better mixture than equal parts or one after the other.",
    "Databricks, Characterizing Datasets and Building Better Models with Continued Pre-Training",
    run,
    checks,
    ARMS,
    columns={"target": target, "share of the small set": lambda row: row.extra["share"], "epochs of it": lambda row: row.extra["epochs"]},
)
