"""E8: short sweeps tell the useful data sets among five, two of them related to the target by construction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.rig.claim import Claim
from experiments.rig.corpora import REFERENCE
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig, of_sources, stage
from experiments.rig.results import Result, Results, exam_losses
from experiments.rig.running import digest

UNRELATED = ("techdocs_en", "code_methods", "handbook_en")
RATES = (5e-4, 1.5e-3)
SHORT, LONG = 8, 2  # the durations are the arms' tokens over these
ARMS = {f"related-{number}": f"related: corpus {number + 2} of the domain" for number in range(2)} | {
    kind: f"unrelated: {kind}" for kind in UNRELATED
}


def run(rig: Rig) -> list[Result]:
    """`train sweep` of five manifests, the target being the domain's first corpus, then `train characterise`."""
    related = {f"related-{number}": kind for number, kind in enumerate(rig.kinds[1:])}
    candidates = related | {kind: kind for kind in UNRELATED}
    manifests = {name: planned(rig, kind) for name, kind in candidates.items()}
    target = f"loss/exam-v1/{rig.kinds[0]}"
    settings = {
        "manifests": {name: str(folder) for name, folder in manifests.items()},
        "learning_rates": list(RATES),
        "durations": [rig.scale.tokens // SHORT, rig.scale.tokens // LONG],
        "target": target,
        "seeds": [rig.seed],
    }
    folder = rig.workshop.sweep(f"five-{rig.domain}-{rig.seed}", settings, rig.config({"path": str(rig.base())}, RATES[0]))
    told = json.loads(rig.workshop.run("python", "-m", "train", "characterise", folder, "--json"))["data_sets"]
    swept = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["data_sets"]
    return [result(rig, one, swept[one["data_set"]], target, manifests[one["data_set"]], folder.name) for one in told]


def planned(rig: Rig, kind: str) -> Path:
    recipe = rig.recipe(
        {kind: {"files": f"corpora:{kind}.parquet", "where": f"part >= {REFERENCE}"}},
        of_sources([kind]),
        [stage(rig.scale.tokens // LONG, {kind: 1})],
    )
    return rig.workshop.manifest(f"alone-{kind}-{rig.seed}", recipe)


def result(rig: Rig, one: dict[str, Any], swept: dict[str, Any], target: str, manifest: Path, run: str) -> Result:
    """The chosen cell, and beside it the target's gain at the best rate of each duration and the verdict: 1 helped, 0 neither, -1 hurt."""
    verdict = {"helped": 1.0, "unaffected": 0.0}.get(one["changes"][target]["verdict"], -1.0)
    before = swept["before"][target]
    gains = {
        name: max(before - cell["values"][target] for cell in swept["cells"] if cell["duration"] == rig.scale.tokens // divided)
        for name, divided in (("short", SHORT), ("long", LONG))
    }
    cell = next(cell for cell in swept["cells"] if (cell["learning_rate"], cell["duration"]) == (one["learning_rate"], one["duration"]))
    curve = [(0, exam_losses(swept["before"])), (cell["duration"], exam_losses(cell["values"]))]
    return Result(one["data_set"], rig.domain, rig.seed, digest(manifest), run, curve, {"verdict": verdict, **gains})


def ranks(values: list[float]) -> list[int]:
    return [sorted(values).index(value) for value in values]


def disagreement(*results: Result) -> float:
    """1 - Spearman's correlation of the gains after the short and the long duration."""
    short, long = (ranks([one.extra[name] for one in results]) for name in ("short", "long"))
    n = len(results)
    return 6 * sum((a - b) ** 2 for a, b in zip(short, long, strict=True)) / (n * (n * n - 1))


def worst_related(*results: Result) -> float:
    """The best unrelated set's gain minus the worst related one's."""
    gains = [one.extra["long"] for one in results]
    return max(gains[2:]) - min(gains[:2])


def wrongly_judged(*results: Result) -> float:
    """How many of the five are called helpful though unrelated, or not helpful though related."""
    return sum((one.extra["verdict"] > 0) != (number < 2) for number, one in enumerate(results))


def checks(results: Results) -> list[Check]:
    arms = list(ARMS)
    return [
        Check("best unrelated gain - worst related gain", results.effect(arms, worst_related)),
        Check("1 - rank correlation of short and long runs", results.effect(arms, disagreement), 0.2, unit=""),
        Check("data sets judged wrongly, of five", results.effect(arms, wrongly_judged), 0.5, unit="data sets"),
    ]


CLAIM = Claim(
    "characterise",
    "Short sweeps find the useful data sets",
    "Training on each candidate alone at a few learning rates tells those that help the target from those that do not, and short runs rank them as long ones do.",
    "Databricks, Characterizing Datasets and Building Better Models with Continued Pre-Training",
    run,
    checks,
    ARMS,
    numbers=3,
    columns={"target's gain": lambda row: row.extra["long"]},
)
