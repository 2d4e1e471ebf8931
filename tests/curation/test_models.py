"""Models in a build: trained in the recipe, or given as files; what is refused before anything is read, and what people are shown of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from recipes import built, pool_of, recipe, write_corpus

from curation import report
from curation.signals.fasttext_scoring import MODEL
from mixing import UserError
from mixing.manifest import Manifest

SMALL = {"dimensions": 8, "buckets": 1000, "epochs": 2}


def classifier(positive: str, negative: str) -> dict[str, Any]:
    return {"kind": "fasttext", "train": {"positive": {"sample": positive}, "negative": {"sample": negative}}, **SMALL}


def with_signals(**signals: dict[str, Any]) -> dict[str, Any]:
    return recipe(steps=[{"add": {name: config}} for name, config in signals.items()])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    values = with_signals(code=classifier("code", "prose"), web=classifier("web", "prose"))
    built(folder, values, folder / "out")
    for number, model in enumerate(sorted((folder / ".tilth" / "models").glob(f"*/{MODEL}"))):
        shutil.copy(model, folder / f"foreign-{number}.bin")
    return folder


def test_two_classifiers_build_to_one_digest_in_another_work_directory_with_other_workers(corpus: Path, tmp_path: Path) -> None:
    values = with_signals(code=classifier("code", "prose"), web=classifier("web", "prose"))

    again = built(corpus, values, tmp_path / "out", tmp_path / "work", workers=2)

    assert again.digest == Manifest.open(corpus / "out").digest


def test_held_out_figures_of_a_classifier_are_shown_but_are_no_part_of_the_digest(corpus: Path) -> None:
    manifest = Manifest.open(corpus / "out")
    shown = report.classifiers(manifest)

    figures = json.loads((corpus / "out" / "provenance.json").read_text())["models"]
    assert set(figures) == {"code", "web"}
    assert f"{figures['code']['auc']:.4f}" in shown
    assert report.facts(manifest)["trained"] == figures
    assert "auc" not in (corpus / "out" / "manifest.json").read_text()


def test_model_from_a_file_gives_what_it_gave_where_it_was_trained(corpus: Path, tmp_path: Path) -> None:
    given = {"kind": "fasttext", "model": "foreign-0.bin", "label": "positive"}
    built(corpus, with_signals(given=given), tmp_path / "out")

    header = Manifest.open(tmp_path / "out").header
    step = header["recipe"]["steps"][0]["add"]
    assert set(step["model"]) == {"root", "pattern", "digest"}
    assert header["models"]["given"]["kind"] == "fasttext"
    found = [row["given"] for row in pool_of(tmp_path / "out")]
    trained = [[row[name] for row in pool_of(corpus / "out")] for name in ("code", "web")]
    assert found in trained


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "good"}, r"steps\[0\]\.add\.q\.model: no label 'good'; the model has: "),
        ({"model": "prose/part-2.jsonl"}, r"steps\[0\]\.add\.q\.model: part-2\.jsonl: cannot be read as a fastText model"),
        ({"model": "foreign-*.bin"}, r"steps\[0\]\.add\.q\.model: 'foreign-\*\.bin' matches 2 files, .* name one"),
        ({"model": "none.bin"}, r"steps\[0\]\.add\.q\.model: no file matches 'none\.bin'"),
    ],
)
def test_model_that_does_not_fit_is_refused_before_anything_is_read(
    corpus: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    given = {"kind": "fasttext", "model": "foreign-0.bin", "label": "positive"} | change

    with pytest.raises(UserError, match=message):
        built(corpus, with_signals(q=given), tmp_path / "out", tmp_path / "work")

    assert not list((tmp_path / "work" / "shards").glob("*"))
