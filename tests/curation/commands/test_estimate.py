"""The dry run against the build: estimates near what is counted, exact where it reads everything, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipes import built, pool_of, recipe, text_of, write_corpus, write_recipe, write_records

from curation.commands.estimate import Estimate, estimate
from curation.engine.local import Run
from curation.recipe import load
from curation.terminal import dry_run
from mixing import UserError


def estimated(folder: Path, values: dict[str, Any], work: str = "work") -> Estimate:
    return estimate(load(write_recipe(folder, values)), folder, Run(folder / work, 1))


def test_dry_run_of_small_sources_is_near_what_the_build_counts_and_writes_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path, 60)
    values = {**recipe(), "steps": [], "holdout": None}
    before = set(tmp_path.rglob("*")) | {tmp_path / "recipe.yaml", tmp_path / "tokenizer"}

    found = estimated(tmp_path, values)

    after = set(tmp_path.rglob("*"))
    assert {path for path in after - before if path.parent != tmp_path / "tokenizer"} == set()
    built(tmp_path, values, tmp_path / "out", tmp_path / "real work")
    rows = pool_of(tmp_path / "out")
    for source in found.sources:
        counted = [row for row in rows if row["source"] == source.name and row["decision"] == "kept"]
        assert source.documents == pytest.approx(len(counted), rel=0.15)
        assert source.tokens == pytest.approx(sum(row["n_tokens"] for row in counted), rel=0.15)
        assert source.text_bytes == pytest.approx(sum(row["bytes"] for row in counted), rel=0.15)
    web = next(source for source in found.sources if source.name == "web")
    assert (web.unusable, web.files) == (7, 1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_dry_run_of_a_larger_file_of_any_format_extrapolates(tmp_path: Path, name: str) -> None:
    records = [{"text": text_of(number, 20 + number % 80)} for number in range(6000)]
    write_records(tmp_path / name, records, group=700)
    mixture = {
        "sequence_length": 64,
        "components": {"all": "source = 'a'"},
        "stages": [{"name": "s", "tokens": 500, "weights": {"all": 1}}],
    }

    (source,) = estimated(tmp_path, recipe(sources={"a": {"files": name}}, steps=[], holdout=None, mixture=mixture)).sources

    assert source.documents == pytest.approx(6000, rel=0.2)
    assert source.text_bytes == pytest.approx(sum(len(record["text"]) for record in records), rel=0.2)


def test_dry_run_judges_each_component_by_what_there_is_at_most(tmp_path: Path) -> None:
    write_corpus(tmp_path, 30)
    stages = [{"name": "s", "tokens": "10M", "weights": {"low": 1, "good": 1, "web": 1, "code": 0.001}}]
    mixture = {
        "sequence_length": 64,
        "components": {
            "low": "source = 'prose' AND score < 20",
            "good": "words.words > 3",
            "web": "source = 'web'",
            "code": "source = 'code'",
        },
        "max_epochs": {"code": 2},
        "stages": stages,
    }

    found = estimated(tmp_path, recipe(mixture=mixture))

    wanted = {one.name: one for one in found.components}
    assert sum(one.asked for one in wanted.values()) == 10_000_000
    assert (wanted["low"].verdict, wanted["web"].verdict) == ("short", "short")
    assert wanted["good"].tokens is None
    assert wanted["code"].tokens is not None
    assert wanted["code"].asked <= 2 * wanted["code"].tokens
    assert wanted["code"].verdict.startswith("at least ")
    prose = next(source for source in found.sources if source.name == "prose")
    assert 0.3 * prose.tokens < (wanted["low"].tokens or 0) < 0.7 * prose.tokens
    assert "short" in dry_run(found)


def test_dry_run_shares_out_by_estimated_sizes_where_it_can_tell_them(tmp_path: Path) -> None:
    write_corpus(tmp_path, 30)
    stage = {"name": "s", "tokens": 5000, "weights": {"strategy": "proportional"}}
    components = {"prose": "source = 'prose'", "code": "source = 'code'"}
    mixture = {"sequence_length": 64, "components": components, "stages": [stage]}

    prose, code = estimated(tmp_path, recipe(mixture=mixture)).components
    unknown = estimated(tmp_path, recipe(mixture={**mixture, "components": {**components, "prose": "words.words > 3"}}))

    assert (prose.asked or 0) + (code.asked or 0) == 5000
    assert (prose.asked or 0) * (code.tokens or 0) == pytest.approx((code.asked or 0) * (prose.tokens or 0), rel=0.01)
    assert [one.asked for one in unknown.components] == [None, None]
    assert "by the sizes" in dry_run(unknown)


def test_dry_run_warns_of_a_source_that_would_lose_too_much(tmp_path: Path) -> None:
    write_corpus(tmp_path, 20)
    values = recipe()
    values["sources"]["web"].pop("max_quarantine")

    found = estimated(tmp_path, values)

    assert any("'web' cannot be used; the build stops above 1.0%" in warning for warning in found.warnings)


def test_dry_run_refuses_what_the_build_refuses(tmp_path: Path) -> None:
    write_corpus(tmp_path, 20)

    with pytest.raises(UserError, match="no column here"):
        estimated(tmp_path, recipe(steps=[{"keep": "scroe > 3"}]))


def test_dry_run_with_memory_is_refused_as_the_build_is_and_says_what_is_needed(tmp_path: Path) -> None:
    write_corpus(tmp_path, size=20)
    values = recipe()
    values["sources"]["web"]["max_quarantine"] = 0.5
    loaded = load(write_recipe(tmp_path, values))

    with pytest.raises(UserError, match=r"--memory 0.1: 'find duplicates' needs 0.66 GB with 1 worker; give --memory 0.67"):
        estimate(loaded, tmp_path, Run(tmp_path / "work", 1, memory=0.1))

    assert 0.66e9 < estimate(loaded, tmp_path, Run(tmp_path / "work", 1, memory=0.7)).memory_bytes < 0.7e9
