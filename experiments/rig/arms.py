"""The arms that several claims share, each defined once, so that it is trained once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from experiments.rig.recipes import CURVE, ENDS, Rig, stage
from experiments.rig.results import Result, of_run
from experiments.rig.running import Settings, digest

REPLAY = 0.18
"""Of the main arms: what is left of Llama's rates when web pages make room for the domain (arXiv 2406.14833)."""
SUBSET, VISITS = 0.2, 4
GENERAL_REPLAY, GENERAL_SUBSET = 0.30, 0.25  # of the recipe for a pool that itself holds general text
GENERAL_SHARE = 0.25
FULL_CURVE = (0.0, REPLAY)


def trained(
    rig: Rig, arm: str, manifest: Path, *, rate: float | None = None, schedule: str = "cosine", marks: Settings = ENDS, **extra: float
) -> Result:
    """The seed's base, continued on a manifest."""
    config = rig.config({"path": str(rig.base())}, rate or rig.scale.rate, **marks)
    config["schedule"] = {"kind": schedule, "warmup": 0.05}
    run = rig.workshop.trained(f"{arm}-{rig.domain}-{rig.seed}", manifest, config)
    return of_run(arm, rig.domain, rig.seed, manifest, run, **extra)


def replayed(rig: Rig, share: float, schedule: str = "cosine", rate: float | None = None) -> Result:
    """Clean domain text with `share` of replay."""
    manifest = rig.planned(f"replay-{share * 100:02.0f}", [stage(rig.scale.tokens, rig.mixed(share))])
    name = f"replay-{share * 100:02.0f}" + (f"-{schedule}" if schedule != "cosine" else "") + (f"-{rate:g}" if rate else "")
    curve = share in FULL_CURVE or rate is not None
    return trained(rig, name, manifest, rate=rate, schedule=schedule, marks=CURVE if curve else ENDS)


def subset(rig: Rig, scorer: str, share: float = SUBSET) -> Result:
    """The pool's best by a scorer, with replay; how much of what was chosen is of the domain."""
    weights = {"strategy": "replay", "share": REPLAY, "replay": {"books_en": 92, "wiki_en": 8}, "rest": {"pool": 1}}
    manifest = rig.pooled(f"subset-{scorer}", rig.selected(scorer, share), weights, rig.scale.tokens, visits=VISITS)
    marks = CURVE if scorer == "importance" else ENDS
    return trained(rig, f"subset-{scorer}", manifest, marks=marks, precision=precision(manifest, rig.kinds))


def full(rig: Rig, general: float = 0.0) -> Result:
    """The whole noisy pool for one epoch."""
    name = "full-general" if general else "full"
    manifest = rig.pooled(name, [], {"pool": 1}, rig.scale.pool_tokens, general)
    return trained(rig, name, manifest, marks=ENDS if general else CURVE)


def recipe_on_general(rig: Rig, replay: float = GENERAL_REPLAY) -> Result:
    """The recipe for a pool of which a quarter is general text."""
    name = "recipe-general" + (f"-{replay * 100:.0f}" if replay != GENERAL_REPLAY else "")
    weights = {"strategy": "replay", "share": replay, "replay": {"books_en": 92, "wiki_en": 8}, "rest": {"pool": 1}}
    steps = rig.selected("importance", GENERAL_SUBSET)
    manifest = rig.pooled(name, steps, weights, rig.scale.tokens, GENERAL_SHARE, visits=VISITS)
    return trained(rig, name, manifest)


def soups(rig: Rig, result: Result, steps: int = 10) -> list[Result]:
    """The averages of the base and an arm; the arm's share is in the name."""
    run = rig.workshop.folder / "runs" / result.run
    folder = rig.workshop.soup(f"soup-{result.run}", {"base": rig.base(), "arm": run / "export"}, steps, rig.exam, f"loss/{rig.kinds[0]}")
    found = json.loads((folder / "soup.json").read_text(encoding="utf-8"))
    return [
        Result(
            f"{result.arm}+soup-{one['weights'][1]:.1f}",
            rig.domain,
            rig.seed,
            result.manifest,
            folder.name,
            [(0, {name.removeprefix("loss/"): value for name, value in one["values"].items() if name.startswith("loss/")})],
            {"weight": one["weights"][1]},
        )
        for one in found["soups"]
    ]


def precision(manifest: Path, kinds: Sequence[str]) -> float:
    """The share of the kept pool's tokens that are of the domain, by the labels that the selection did not see."""
    rows: list[dict[str, Any]] = pq.read_table(manifest / "pool", columns=["source", "kind", "decision", "n_tokens"]).to_pylist()
    kept = [row for row in rows if row["source"] == "pool" and row["decision"] == "kept"]
    chosen = sum(int(row["n_tokens"]) for row in kept if row["kind"] in kinds)
    return chosen / sum(int(row["n_tokens"]) for row in kept)


def provenance(result: Result, rig: Rig) -> dict[str, str]:
    return {"manifest": result.manifest[:12], "run": result.run, "exam": digest(rig.exam)[:12]}
