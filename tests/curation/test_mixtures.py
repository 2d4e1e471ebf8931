"""From a recipe to a manifest with each way to choose weights: what is asked is what is planned, and every check holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipes import built, recipe, write_corpus, write_recipe

from curation.build import build
from curation.engine.local import Run
from curation.recipe import load
from curation.terminal import facts, inspect
from mixing import UserError
from mixing.audit import verify
from mixing.manifest import Manifest
from mixing.measurements import Measurement, append

COMPONENTS = {"prose": "source = 'prose'", "web": "source = 'web'", "code": "source = 'code'"}
RATES = {
    "rates": {"crawl": 6, "github": 3, "books": 1},
    "replace": ["crawl"],
    "domain": "web",
    "components": {"code": "github", "prose": "books"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus, and a work directory that all builds here share."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 30)
    return folder


def mixed(corpus: Path, out: Path, stages: list[dict[str, Any]], **keys: Any) -> Manifest:
    """Built and verified."""
    mixture = {"sequence_length": 128, "components": COMPONENTS, "max_epochs": 2, "stages": stages, **keys}
    values = recipe(steps=[{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}], mixture=mixture)
    manifest = Manifest.open(built(corpus, values, out).folder)
    assert [finding for finding in verify(out) if not finding.ok] == []
    return manifest


def shares(manifest: Manifest, stage: int = 0) -> dict[str, float]:
    return {name: one["weight"] for name, one in manifest.stages[stage]["components"].items()}


BY_SIZE: dict[str, dict[str, Any]] = {
    "groups": {"web": 1, "own": {"weight": 3, "components": {"code": 2, "prose": 1}}},
    "proportional": {"strategy": "proportional"},
    "equal": {"strategy": "equal", "components": ["web", "code"]},
    "temperature": {"strategy": "temperature", "temperature": 3},
    "unimax": {"strategy": "unimax", "max_epochs": 1.5},
    "replay": {"strategy": "replay", "share": 0.25, "replay": {"web": 1}, "rest": {"strategy": "proportional"}},
    "reference_rates": {"strategy": "reference_rates", **RATES},
}


@pytest.mark.parametrize("name", BY_SIZE)
def test_build_with_each_strategy_over_sizes_passes_every_check(corpus: Path, tmp_path: Path, name: str) -> None:
    manifest = mixed(corpus, tmp_path / "out", [{"name": "adapt", "tokens": 6000, "weights": BY_SIZE[name]}])

    sizes = {name: one["tokens"] for name, one in manifest.header["components"].items()}
    expected = {
        "groups": {"prose": 0.25, "web": 0.25, "code": 0.5},
        "proportional": {name: size / sum(sizes.values()) for name, size in sizes.items()},
        "equal": {"web": 0.5, "code": 0.5},
        "temperature": {name: size ** (1 / 3) / sum(one ** (1 / 3) for one in sizes.values()) for name, size in sizes.items()},
        "unimax": dict.fromkeys(sizes, 1 / 3),
        "replay": {"prose": 0.75 * sizes["prose"] / (sizes["prose"] + sizes["code"]), "web": 0.25}
        | {"code": 0.75 * sizes["code"] / (sizes["prose"] + sizes["code"])},
        "reference_rates": {"prose": 0.1, "web": 0.6, "code": 0.3},
    }[name]
    assert shares(manifest) == pytest.approx(expected, abs=1e-9)
    assert sum(one["tokens"] for one in manifest.stages[0]["components"].values()) == 6000


def test_build_of_a_concatenation_plans_every_token_once(corpus: Path, tmp_path: Path) -> None:
    manifest = mixed(corpus, tmp_path / "out", [{"name": "all", "tokens": "all", "weights": {"strategy": "concatenate"}}])

    for name, size in manifest.header["components"].items():
        one = manifest.stages[0]["components"][name]
        assert (one["tokens"], one["unique_tokens"], one["documents"]) == (size["tokens"], size["tokens"], size["documents"])
    assert manifest.header["recipe"]["mixture"]["stages"][0]["tokens"] == "all"


def write_measurements(folder: Path) -> None:
    """A duration sweep of all three components, two rounds of one run, and six proxy runs with their ratios."""

    def row(run: str, component: str, tokens: int, value: float, metric: str = "loss") -> Measurement:
        return Measurement(run, "d", component, metric, "target", tokens, None, 1e-4, 1, value, None)

    sweep = [
        row(f"only-{name}", name, tokens, abs(tokens - best))
        for name, best in [("prose", 20), ("web", 40), ("code", 10)]
        for tokens in (10, 20, 30, 40)
    ]
    rounds = [
        row("main", name, tokens, value, "ppl")
        for name, before, after in [("prose", 10, 9), ("web", 10, 10), ("code", 10, 11)]
        for tokens, value in ((1, before), (2, after))
    ]
    ratios = [(1, 1, 2), (1, 2, 1), (2, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 3)]
    proxies = [row(f"p{index}", "code", 5, 3 - 0.2 * code / (prose + web + code), "bpb") for index, (prose, web, code) in enumerate(ratios)]
    for name, rows in (("sweep", sweep), ("rounds", rounds), ("proxies", proxies)):
        append(folder / f"{name}.jsonl", rows)
    lines = [f"p{index},{prose},{web},{code}" for index, (prose, web, code) in enumerate(ratios)]
    (folder / "ratios.csv").write_text("\n".join(["run,prose,web,code", *lines]) + "\n")


def test_build_with_each_strategy_over_measurements_records_what_it_used_and_no_machine(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    write_measurements(folder)
    weights: dict[str, dict[str, Any]] = {
        "durations": {"strategy": "optimal_durations", "measurements": "runs:sweep.jsonl"},
        "topics": {
            "strategy": "topic_controller",
            "measurements": "runs:rounds.jsonl",
            "metric": "ppl",
            "values": "perplexity",
            "step": 0.4,
        }
        | {"shares": {"prose": 1, "web": 1, "code": 1}},
        "fitted": {"strategy": "regression", "measurements": "runs:proxies.jsonl", "ratios": "runs:ratios.csv", "metrics": ["bpb"]},
    }
    stages = [{"name": name, "tokens": 2000, "weights": one} for name, one in weights.items()]
    mixture = {"sequence_length": 128, "components": COMPONENTS, "max_epochs": 2, "stages": stages}
    values = recipe(steps=[{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}], mixture=mixture)
    path = write_recipe(corpus, values)

    def made(out: str, root: Path) -> Manifest:
        return Manifest.open(build(load(path), corpus, tmp_path / out, Run(corpus / ".tilth", 1, roots={"runs": str(root)})).folder)

    manifest = made("out", folder)
    assert [finding for finding in verify(manifest.folder) if not finding.ok] == []
    assert shares(manifest, 0) == {"prose": 0.285714286, "web": 0.571428571, "code": 0.142857143}
    assert shares(manifest, 1) == {"prose": 0.266666667, "web": 0.333333333, "code": 0.4}
    fitted = shares(manifest, 2)
    sizes = {name: one["tokens"] for name, one in manifest.header["components"].items()}
    assert fitted["code"] > sizes["code"] / sum(sizes.values())  # more code lowered the metric, so it gets more than the prior
    assert fitted["prose"] / fitted["web"] == pytest.approx(sizes["prose"] / sizes["web"], rel=1e-3)  # between these it says nothing
    durations, topics, regression = (stage["weights"] for stage in manifest.header["recipe"]["mixture"]["stages"])
    assert (durations["durations"], durations["censored"]) == ({"prose": 20, "web": 40, "code": 10}, ["web"])
    assert topics["perplexities"] == {"prose": [10, 9], "web": [10, 10], "code": [10, 11]}
    assert (regression["runs"], list(regression["coefficients"])) == (6, ["bpb of code"])
    assert (regression["ratios"]["root"], regression["ratios"]["pattern"]) == ("runs", "ratios.csv")
    shown = inspect(manifest)
    assert "durations: optimal_durations of loss in runs:sweep.jsonl: code 10, prose 20, web 40 (still improving)" in shown
    assert "topics: topic_controller of ppl in runs:rounds.jsonl, 1 to 2 tokens: code 10 to 11, prose 10 to 9, web 10 to 10" in shown
    assert "fitted: regression of bpb in runs:proxies.jsonl, 6 runs: bpb of code (error" in shown

    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert made("again", moved).digest == manifest.digest


def test_build_with_a_component_that_was_never_measured_is_refused_before_any_text_is_read(corpus: Path, tmp_path: Path) -> None:
    write_measurements(corpus)
    weights = {
        "strategy": "topic_controller",
        "measurements": "sweep.jsonl",
        "step": 0.1,
        "metric": "ppl",
        "shares": {"prose": 1, "web": 1},
    }
    with pytest.raises(UserError) as refused:
        mixed(corpus, tmp_path / "out", [{"name": "adapt", "tokens": 500, "weights": weights}])
    assert str(refused.value) == (
        "mixture.stages[0].weights: no measurement of 'ppl' for prose, web; components that have one: none; its metrics: loss"
    )
    with pytest.raises(UserError, match=r"mixture.stages\[0\].weights.measurements: no file matches 'sweeep.jsonl'"):
        mixed(corpus, tmp_path / "out", [{"name": "adapt", "tokens": 500, "weights": {**weights, "measurements": "sweeep.jsonl"}}])


def test_build_that_redistributes_a_shortage_passes_every_check_and_inspect_shows_what_moved(corpus: Path, tmp_path: Path) -> None:
    stage = {"name": "adapt", "tokens": 25_000, "weights": {"web": 30, "code": 10, "prose": 9}}
    with pytest.raises(UserError, match="the stages ask 15,306 tokens of component 'web'"):
        mixed(corpus, tmp_path / "none", [stage], max_epochs=1)

    stage["weights"]["law"] = 1  # of which there is nothing: its tokens go to the others too
    manifest = mixed(
        corpus, tmp_path / "out", [stage], max_epochs=1, on_shortage="redistribute", components={**COMPONENTS, "law": "source = 'law'"}
    )

    found = manifest.stages[0]["components"]
    size = manifest.header["components"]["web"]["tokens"]
    assert {name: one["asked_tokens"] for name, one in found.items()} == {"web": 15_000, "code": 5000, "prose": 4500, "law": 500}
    assert (found["web"]["tokens"], found["law"]["tokens"]) == (size, 0)
    assert found["code"]["tokens"] == pytest.approx((25_000 - size) * 10 / 19, abs=1)
    assert sum(one["tokens"] for one in found.values()) == 25_000
    assert f"adapt: redistributed, law lacks 500 of 500, web lacks {15_000 - size:,} of 15,000; instead code +" in inspect(manifest)


def test_build_with_bounds_and_a_simulation_passes_every_check(corpus: Path, tmp_path: Path) -> None:
    stage = {
        "name": "adapt",
        "tokens": 2000,
        "weights": {"strategy": "proportional"},
        "min_tokens": {"web": 900},
        "max_share": {"prose": 0.3},
    }

    manifest = mixed(corpus, tmp_path / "out", [stage], simulate="4K", max_epochs=3)

    asked = {name: one["asked_tokens"] for name, one in manifest.stages[0]["components"].items()}
    assert asked["web"] == 900
    assert asked["prose"] <= 600
    whole = mixed(corpus, tmp_path / "whole", [stage], max_epochs=3)
    for name, one in whole.header["components"].items():
        assert manifest.header["components"][name]["tokens"] == pytest.approx(one["tokens"] / 2, abs=450)


def test_inspect_shows_what_repeated_tokens_are_worth_by_component_and_stage(corpus: Path, tmp_path: Path) -> None:
    # Four epochs are worth 3.73 (arXiv 2305.16264 with R* = 15.39): 1 + 15.39 (1 - exp(-3 / 15.39)).
    stages = [{"name": "adapt", "tokens": "all", "weights": {"strategy": "concatenate"}}]
    sizes = {name: one["tokens"] for name, one in mixed(corpus, tmp_path / "once", stages).header["components"].items()}
    stage = {"name": "adapt", "tokens": 4 * (sizes["code"] + sizes["web"]), "weights": {"code": sizes["code"], "web": sizes["web"]}}

    (shown,) = facts(mixed(corpus, tmp_path / "out", [stage], max_epochs=5))["stages"]

    assert shown["components"]["code"]["effective_tokens"] == pytest.approx(3.726 * sizes["code"], rel=0.002)
    assert shown["effective_tokens"] == sum(one["effective_tokens"] for one in shown["components"].values())
