"""The fastText classifier: trained in fresh processes, as a build does it, on two made-up languages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from curation.signals import SIGNALS, Sample
from curation.signals.classifier import ClassifierConfig
from curation.signals.classifier_quality import area_under_curve, calibration
from curation.signals.fasttext_scoring import clean
from mixing import UserError

SIGNAL = SIGNALS["fasttext"]
SETTINGS = {"kind": "fasttext", "train": {"positive": "good/*.jsonl", "negative": {"sample": "web"}}, "buckets": 1000, "dimensions": 8}
CONFIG = ClassifierConfig.model_validate(SETTINGS)

TRAIN = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
from curation.signals import SIGNALS
settings, folder, seed = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
texts = {role: pq.read_table(folder.parent / f"{role}.parquet")["text"].combine_chunks() for role in ("positive", "negative")}
signal = SIGNALS["fasttext"]
folder.mkdir()
signal.train(signal.config.model_validate(settings), texts, folder, seed)
"""


def array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def documents(language: str, count: int, seed: int) -> list[str]:
    """Half of a document's words are common to both languages, some stand on lines of their own."""
    rng = np.random.default_rng(seed)
    return [
        "".join(
            f"{language if rng.random() < 0.5 else 'x'}{rng.zipf(1.5) % 200}{' ' if rng.random() < 0.9 else chr(10)}"
            for _ in range(rng.integers(20, 60))
        )
        for _ in range(count)
    ]


def train_in_fresh_process(folder: Path, positive: list[str], negative: list[str], **environment: str) -> Path:
    folder.parent.mkdir(exist_ok=True)
    for role, texts in (("positive", positive), ("negative", negative)):
        pq.write_table(pa.table({"text": array(texts)}), folder.parent / f"{role}.parquet")
    command = [sys.executable, "-c", TRAIN, json.dumps(SETTINGS), str(folder), "17"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert ran.returncode == 0, ran.stderr
    assert (ran.stdout, ran.stderr) == ("", "")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_in_fresh_process(tmp_path_factory.mktemp("classifier") / "model", documents("g", 200, 1), documents("b", 300, 2))


def test_training_again_in_another_order_and_dirty_memory_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    good, bad = documents("g", 200, 1), documents("b", 300, 2)

    # Under MALLOC_PERTURB_ glibc hands out memory full of 0xB2, which fastText would take for a part of its matrix.
    again = train_in_fresh_process(tmp_path / "run" / "model", good[::-1], [*bad[::-1], bad[0]], MALLOC_PERTURB_="77")

    assert {"metrics.json", "model.bin", "table.npy"} <= {path.name for path in again.iterdir()}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {path.name: path.read_bytes() for path in model.iterdir()}


def test_scores_of_unseen_texts_tell_the_samples_apart(model: Path) -> None:
    positive = SIGNAL.compute(CONFIG, array(documents("g", 100, 3)), model).to_numpy()
    negative = SIGNAL.compute(CONFIG, array(documents("b", 100, 4)), model).to_numpy()

    assert area_under_curve(positive, negative) > 0.99
    assert positive.mean() > 0.8 > 0.2 > negative.mean()


def test_held_out_figures_count_a_tenth_of_each_sample(model: Path) -> None:
    metrics = json.loads((model / "metrics.json").read_text())

    assert metrics["labels"] == {"positive": {"held_out": 20, "trained": 180}, "negative": {"held_out": 30, "trained": 270}}
    assert 0.95 < metrics["auc"] <= 1
    assert sum(one["texts"] for one in metrics["bins"]) == 50
    assert 0 <= metrics["calibration_error"] < 0.5


def test_calibration_of_known_probabilities_is_the_mean_distance_of_its_bins() -> None:
    predicted, is_right = np.array([0.02, 0.04, 0.95, 1.0]), np.array([False, True, True, True])

    found = calibration(predicted, is_right)

    assert found["calibration_error"] == pytest.approx((2 * abs(0.03 - 0.5) + 2 * abs(0.975 - 1)) / 4)
    assert found["bins"] == [
        {"from": 0.0, "texts": 2, "predicted": 0.03, "right": 0.5},
        {"from": 0.9, "texts": 2, "predicted": 0.975, "right": 1.0},
    ]


def test_score_does_not_depend_on_the_batch(model: Path) -> None:
    texts = [*documents("g", 40, 5), *documents("b", 40, 6), "", "\n\n", "x1", "</s> g1 g2", "__label__negative g1 g2 g3"] * 15
    together = SIGNAL.compute(CONFIG, array(texts), model).to_pylist()

    assert len(texts) > 1024
    assert together == [SIGNAL.compute(CONFIG, array([text]), model)[0].as_py() for text in texts]


def test_scores_are_probabilities_and_never_nan(model: Path) -> None:
    surest = ["g1 g2 g3 g4 " * 500, "b1 b2 b3 b4 " * 500]
    values = SIGNAL.compute(CONFIG, array([*surest, "", "🙂", "\x00", "a\x00b"]), model)

    assert values.type == SIGNAL.fields(CONFIG)
    assert all(value is None or 0 <= value <= 1 for value in values.to_pylist())
    assert values[0].as_py() > 0.999
    assert values[1].as_py() < 0.001


def test_text_after_a_line_break_or_an_end_token_is_read(model: Path) -> None:
    good = " ".join(documents("g", 3, 7)).replace("\n", " ")

    plain, broken, ended, labelled = SIGNAL.compute(
        CONFIG, array([f"b1 {good}", f"b1\n{good}", f"b1 </s> {good}", f"b1 __label__negative {good}"]), model
    ).to_pylist()

    assert broken == plain
    assert min(ended, labelled) > 0.9


@pytest.mark.parametrize(
    "text", ["a\nb", "a </s> b", "__label__positive a", "a\n__label__negative", "</s>\n</s>", "____label__label__x </</s>s>"]
)
def test_cleaned_text_is_one_line_without_control_words(text: str) -> None:
    pieces = clean(text).split()

    assert "\n" not in clean(text)
    assert "</s>" not in pieces
    assert not any(piece.startswith("__label__") for piece in pieces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "a.bin", "label": "x"}, "exactly one of train, model"),
        ({"train": None}, "exactly one of train, model"),
        ({"label": "x"}, "label: goes with model"),
        ({"train": None, "model": "a.bin"}, "label: goes with model"),
        ({"train": None, "model": "a.bin", "label": "x"}, "buckets, dimensions: goes with train"),
    ],
)
def test_config_that_is_neither_trained_nor_given_is_refused(change: dict[str, object], message: str) -> None:
    values = {key: value for key, value in (SETTINGS | change).items() if value is not None}

    with pytest.raises(ValidationError, match=message):
        ClassifierConfig.model_validate(values)


def test_text_of_both_samples_is_left_out_of_both(tmp_path: Path) -> None:
    shared = documents("x", 30, 8)
    folder = train_in_fresh_process(tmp_path / "run" / "model", documents("g", 20, 1) + shared, documents("b", 20, 2) + shared)

    metrics = json.loads((folder / "metrics.json").read_text())

    assert metrics["labels"]["positive"] == metrics["labels"]["negative"] == {"held_out": 2, "trained": 18}


def test_sample_with_too_few_texts_of_its_own_is_refused(tmp_path: Path) -> None:
    shared = documents("x", 12, 8)

    with pytest.raises(UserError, match=r"train\.positive: 0 distinct texts, 12 more stand under several labels; .* at least 10"):
        SIGNAL.train(CONFIG, {"positive": array(shared), "negative": array(shared + documents("b", 20, 2))}, tmp_path, 17)


def test_area_under_curve_of_known_scores_counts_pairs() -> None:
    positive, negative = np.array([0.9, 0.5, 0.5]), np.array([0.5, 0.1])

    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    assert area_under_curve(positive, negative) == sum(pairs) / len(pairs)


def test_references_of_a_config_are_its_samples() -> None:
    assert SIGNAL.references(CONFIG) == {"positive": "good/*.jsonl", "negative": Sample(sample="web")}
