"""Models in a build: trained in the recipe, or given as files; what is refused before anything is read, and what people are shown of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from recipes import built, pool_of, recipe, write_corpus

from curation import terminal
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
    shown = terminal.classifiers(manifest)

    figures = json.loads((corpus / "out" / "provenance.json").read_text())["models"]
    assert set(figures) == {"code", "web"}
    assert f"{figures['code']['auc']:.4f}" in shown
    assert terminal.facts(manifest)["trained"] == figures
    assert "auc" not in (corpus / "out" / "manifest.json").read_text()


def test_every_kind_of_trained_score_stands_in_the_pool_and_its_values_can_decide(corpus: Path, tmp_path: Path) -> None:
    topics = {name: {"sample": name} for name in ("prose", "web", "code")}
    steps = [
        {"add": {"importance": {"kind": "importance", "target": {"sample": "code"}, "pool": {"sample": "prose"}}}},
        {"add": {"topic": {"kind": "topic", "train": topics, **SMALL}}},
        {"keep": "importance.mean IS NOT NULL AND topic.probability > 0"},
        {"top": {"by": "importance.sampled", "order": "descending", "share": 0.9}},
    ]
    components = {"likely": "topic.topic = 'code'", "others": "topic.topic <> 'code'"}
    stages = [{"name": "one", "tokens": 3000, "weights": {"strategy": "proportional"}}]
    values = recipe(steps=steps, mixture={"sequence_length": 128, "components": components, "max_epochs": 20, "stages": stages})

    made = built(corpus, values, tmp_path / "out", tmp_path / "work")

    kept = [row for row in pool_of(tmp_path / "out") if row["decision"] == "kept"]
    assert {row["topic"]["topic"] for row in kept} <= set(topics)
    assert len(kept) > 100
    assert set(Manifest.open(tmp_path / "out").header["models"]) == {"importance", "topic"}
    assert "topic" in terminal.built(made)


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


# --- samples that an earlier signal chooses


def chosen_by(rule: str, *between: dict[str, Any], like: str = "prose") -> dict[str, Any]:
    """A recipe whose perplexity is trained on the documents of `prose` that its rule lets pass, with steps `between`."""
    reference = {"sample": like, "documents": 30, "where": rule}
    return recipe(
        steps=[
            {"add": {"words": {"kind": "heuristics", "set": "gopher"}}},
            *between,
            {"add": {"perplexity": {"kind": "ngram", "reference": reference, "vocabulary": 1000}}},
        ]
    )


def models_of(folder: Path) -> Any:
    return Manifest.open(folder).header["models"]["perplexity"]["sha256"]


def test_sample_chosen_by_an_earlier_signal_holds_what_passes_whatever_was_dropped_in_between(corpus: Path, tmp_path: Path) -> None:
    rule = "words.mean_length < 7.2 AND words.words >= 10"
    built(corpus, chosen_by(rule), tmp_path / "all", tmp_path / "work")
    built(corpus, chosen_by(rule, {"keep": "words.mean_length > 7.1"}), tmp_path / "few", tmp_path / "work")
    built(corpus, chosen_by(rule, {"keep": "words.mean_length > 7.1"}), tmp_path / "fresh", tmp_path / "other", workers=2)
    built(corpus, chosen_by("words.words >= 10"), tmp_path / "longer", tmp_path / "work")

    assert models_of(tmp_path / "all") == models_of(tmp_path / "few") != models_of(tmp_path / "longer")
    assert Manifest.open(tmp_path / "few").digest == Manifest.open(tmp_path / "fresh").digest
    shown = [(row["decision"], row["words"], row["perplexity"]) for row in pool_of(tmp_path / "few")]
    assert all(perplexity is None for decision, _, perplexity in shown if decision == "dropped")


def test_reference_of_a_sample_is_what_its_rule_lets_pass(corpus: Path, tmp_path: Path) -> None:
    built(corpus, chosen_by("source = 'prose' AND words.words < 10"), tmp_path / "out", tmp_path / "work")

    (model,) = (tmp_path / "work" / "models").iterdir()
    rows = [row for row in pool_of(tmp_path / "out") if row["source"] == "prose" and row["decision"] != "held_out"]
    short = {row["content"] for row in rows if row["words"] and row["words"]["words"] < 10}
    assert short
    assert json.loads((model / "model.json").read_text())["words"] <= 3 * len(short) + 1  # `short`, two numbers and the end


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("copy_of IS NULL", r"steps\[2\]\.add\.perplexity\.reference\.where: .*copy_of"),
        ("words.words", r"steps\[2\]\.add\.perplexity\.reference\.where: .*Boolean"),
        ("perplexity < 5", r"steps\[2\]\.add\.perplexity\.reference\.where: .*perplexity"),
        ("words.words < 0", r"ngram: the reference 'reference' holds no text"),
    ],
)
def test_rule_of_a_sample_that_cannot_be_decided_is_refused(corpus: Path, tmp_path: Path, rule: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(corpus, chosen_by(rule, {"add": {"copy_of": {"kind": "exact"}}}), tmp_path / "out", tmp_path / "work")


# --- models from files


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
