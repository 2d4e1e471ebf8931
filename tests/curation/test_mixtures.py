"""From a recipe to a manifest with each way to choose weights: what is asked is what is planned, and every check holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipes import built, recipe, write_corpus

from mixing.audit import verify
from mixing.manifest import Manifest

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
