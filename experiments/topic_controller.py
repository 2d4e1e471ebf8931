"""E15: a controller that moves shares towards lagging topics, against equal shares at an equal budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.rig.arms import trained
from experiments.rig.claim import Claim
from experiments.rig.corpora import REFERENCE
from experiments.rig.judging import Check, mean
from experiments.rig.recipes import Rig, of_sources, stage
from experiments.rig.results import Result, Results, of_run
from experiments.rig.running import Settings

ARMS = {
    "topics-static": "equal shares",
    "topics-controlled": "controller, four rounds",
    "topics-by-loss": "controller over losses, four rounds",
}
ROUNDS, STEP, FLOOR = 4, 2.0, 0.1


def run(rig: Rig) -> list[Result]:
    """Four topics with a hold-out of their own: the domain's corpora and one from the pool's noise."""
    topics = [*rig.kinds, rig.parts.noise[0]]
    sources = {kind: {"files": f"corpora:{kind}.parquet", "where": f"part >= {REFERENCE}"} for kind in topics}
    supply = rig.recipe(sources, of_sources(topics), [stage(2 * rig.scale.tokens, dict.fromkeys(topics, 1))])
    stock = rig.workshop.manifest(f"topics-{rig.domain}-{rig.seed}", supply | {"holdout": {"documents": rig.scale.exam_documents}})
    equal = dict.fromkeys(topics, 1.0)
    manifest = rig.workshop.remix(stock, f"topics-static-{rig.domain}-{rig.seed}", mixture(rig, equal))
    static = trained(rig, "topics-static", manifest, schedule="constant", marks={"first": None, "every": 1 / ROUNDS})
    folder = rig.workshop.folder / "runs" / static.run
    return [
        with_topics(static, [folder]),
        controlled(rig, "topics-controlled", manifest, equal),
        controlled(rig, "topics-by-loss", manifest, equal, change="loss"),
    ]


def mixture(rig: Rig, weights: Settings) -> dict[str, Any]:
    topics = list(weights.get("shares", weights))
    one = stage(rig.scale.tokens, weights)
    return {"mixture": {"sequence_length": rig.scale.sequence_length, "components": of_sources(topics), "stages": [one]}}


def controlled(rig: Rig, arm: str, manifest: Path, shares: dict[str, float], **how: str) -> Result:
    """A quarter of the budget a round; after each, what is left is planned by the perplexities of its beginning and its end."""
    prefix = arm if how else "topics"
    config = rig.config({"path": str(rig.base())}, rig.scale.rate, first=None, every=0.5)
    config |= {"schedule": {"kind": "constant", "warmup": round(0.05 * rig.scale.tokens)}}
    runs: list[Path] = []
    for number in range(ROUNDS):
        if runs:
            weights = {
                "strategy": "topic_controller",
                "shares": shares,
                "step": STEP,
                "floor": FLOOR,
                "measurements": f"runs:runs/{runs[-1].name}/measurements.jsonl",
                **how,
            }
            state = json.loads(next((runs[-1] / "checkpoints").glob("*/state.json")).read_text(encoding="utf-8"))
            manifest = rig.workshop.remix(manifest, f"{prefix}-{number}-{rig.domain}-{rig.seed}", mixture(rig, weights), state["sequence"])
            stages = json.loads((manifest / "manifest.json").read_text(encoding="utf-8"))["stages"]
            shares = {name: float(one["weight"]) for name, one in stages[0]["components"].items()}
        begin = ["--start", "continue", "--from", str(runs[-1])] if runs else []
        part = {"tokens": rig.scale.tokens // ROUNDS} if number + 1 < ROUNDS else {}  # to whole steps; the last round has what is left
        runs.append(rig.workshop.trained(f"{prefix}-{number}-{rig.domain}-{rig.seed}", manifest, config | part, *begin))
    result = of_run(arm, rig.domain, rig.seed, manifest, runs[-1], **{f"share {name}": share for name, share in shares.items()})
    first = of_run("", rig.domain, rig.seed, manifest, runs[0])
    return with_topics(result._replace(curve=[first.curve[0], *result.curve[1:]]), runs)


def with_topics(result: Result, runs: Sequence[Path]) -> Result:
    """The result with each topic's loss on the run's own hold-out, before and after."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for line in (run / "measurements.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["metric"] == "loss" and row["component"] is not None:
                found.setdefault(row["component"], []).append(row["value"])
    before = {f"before {topic}": values[0] for topic, values in found.items()}
    return result._replace(extra=result.extra | before | {f"after {topic}": values[-1] for topic, values in found.items()})


def after(result: Result) -> list[float]:
    return [value for name, value in result.extra.items() if name.startswith("after ")]


def lagging(result: Result) -> float:
    """The loss of the topic whose loss fell least, as a share of the base's."""
    return max(value / result.extra[name.replace("after", "before")] for name, value in result.extra.items() if name.startswith("after "))


def checks(results: Results) -> list[Check]:
    static, moved, by_loss = ARMS
    return [
        Check("worst topic, controlled - static", results.difference(moved, static, lambda row: max(after(row)))),
        Check("topic that fell least, controlled - static", results.difference(moved, static, lagging), unit="of the base's loss"),
        Check(
            "mean of the topics, controlled over static",
            results.effect([static, moved], lambda a, b: mean(after(b)) / mean(after(a)) - 1),
            0.01,
            unit="of the loss",
        ),
        Check(
            "worst topic, controlled over losses - static", results.difference(by_loss, static, lambda row: max(after(row))), decides=False
        ),
        Check(
            "mean of the topics, controlled over losses over static",
            results.effect([static, by_loss], lambda a, b: mean(after(b)) / mean(after(a)) - 1),
            0.01,
            unit="of the loss",
            decides=False,
        ),
    ]


CLAIM = Claim(
    "topic_controller",
    "A controller lifts the topics that lag behind",
    "Moving shares towards topics whose perplexity rose, or fell least, improves the worst topic at no cost to the mean.",
    "Llama-3-SynE, arXiv 2407.18743",
    run,
    checks,
    ARMS,
    columns={"worst topic": lambda row: max(after(row))},
)
