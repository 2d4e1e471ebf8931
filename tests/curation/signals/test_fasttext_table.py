"""Scores from the table against fastText's own, for every kind of model that a file may hold, on texts made to differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from curation.signals import fasttext_scoring, fasttext_table
from curation.signals.classifier import ClassifierConfig, compute
from curation.signals.fasttext_file import read_labels, read_model_file
from mixing import UserError

KINDS = {
    "bigrams": {"wordNgrams": 2, "bucket": 20_000},
    "fivegrams in few buckets": {"wordNgrams": 5, "bucket": 7},
    "one bucket": {"wordNgrams": 2, "bucket": 1},
    "words": {"wordNgrams": 1},
    "characters": {"wordNgrams": 2, "bucket": 3000, "minn": 1, "maxn": 4},
    "quantized": {"wordNgrams": 2, "bucket": 3000, "quantize": {"qnorm": True}},
    "pruned": {"wordNgrams": 3, "bucket": 3000, "minn": 2, "maxn": 3, "quantize": {"cutoff": 400}},
    "output quantized": {"wordNgrams": 2, "bucket": 3000, "labels": 260, "quantize": {"qout": True}},
    "more labels than dimensions": {"wordNgrams": 2, "bucket": 3000, "labels": 12},
    "one-vs-all": {"wordNgrams": 2, "bucket": 3000, "loss": "ova"},
    "hierarchical": {"wordNgrams": 2, "bucket": 3000, "loss": "hs", "labels": 5},
}
BY_LIBRARY = {"one-vs-all", "hierarchical"}
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "naïve",
    "中文",
    "x",
    "internationalization",
    "internationalisation",
    "🙂",
    "</s",
    "_label__",
    "a-b",
    "don't",
]
TRAIN = """
import sys, json, random
from pathlib import Path
import fasttext
from curation.signals.fasttext_training import _zeroed_memory
folder, kinds, words = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
for name, kind in kinds.items():
    labels, quantize = kind.pop("labels", 3), kind.pop("quantize", None)
    rng, lines = random.Random(1), folder / "lines.txt"
    lines.write_text("".join(f"__label__{n} " + " ".join(rng.choice(words) + (str(n) if rng.random() < .3 else "") for _ in range(12)) + "\\n"
                             for _ in range(60 if labels < 20 else 3) for n in range(labels)))
    with _zeroed_memory():
        model = fasttext.train_supervised(str(lines), dim=8, epoch=5, lr=0.5, minCount=1, thread=1, seed=1, verbose=0, **kind)
        if quantize is not None:
            model.quantize(str(lines), retrain=False, thread=1, verbose=0, **quantize)
    model.save_model(str(folder / f"{name}.bin"))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-c", TRAIN, str(folder), json.dumps(KINDS), json.dumps(WORDS)]
    subprocess.run(command, capture_output=True, check=True)
    for name in KINDS:
        (folder / name).mkdir()
        fasttext_scoring.prepare(folder / f"{name}.bin", folder / name)
    return folder


def of_library(path: Path, names: list[str], texts: list[str]) -> np.ndarray:
    import fasttext

    model = fasttext.load_model(str(path))
    found = np.full((len(texts), len(names)), np.nan)
    for row, (labels, values) in enumerate(zip(*model.predict([fasttext_scoring.clean(text) for text in texts], k=-1), strict=True)):
        found[row, [names.index(label) for label in labels]] = values
    return found


def assert_equal_to_library(models: Path, kind: str, texts: list[str]) -> None:
    names = fasttext_scoring.labels(models / kind)
    ours = fasttext_scoring.probabilities(models / kind, pa.array(texts, pa.large_string()))

    np.testing.assert_allclose(ours, of_library(models / f"{kind}.bin", names, texts), atol=2e-5, rtol=0)


PIECES = st.one_of(
    st.sampled_from([*WORDS, "alpha1", "naïve0", "</s>", "__label__0", "__label__9", "__label__", "__label_", "</s>x", "a" * 300]),
    st.text(max_size=6),
    st.sampled_from([" ", "\n", "\r\n", "\t", "\v", "\f", "\0", "\u00a0", "\u2028", "  "]),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(PIECES, max_size=12).map(lambda parts: "".join(parts[:4]) + " ".join(parts[4:])), min_size=1, max_size=8))
@example(texts=["", "alpha", "alpha\x00beta", "alpha\r\nbeta", "</s> alpha", "alpha </s> beta", "__label__1 beta", "\U0010ffff", "zzz"])
def test_probabilities_of_any_text_equal_the_librarys(models: Path, kind: str, texts: list[str]) -> None:
    assert_equal_to_library(models, kind, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_models_with_a_softmax_are_tables_and_no_others(models: Path, kind: str) -> None:
    assert (models / kind / fasttext_table.HEADER).exists() == (kind not in BY_LIBRARY)
    assert (models / kind / fasttext_scoring.MODEL).exists() == (kind in BY_LIBRARY)


@pytest.mark.parametrize("kind", ["characters", "pruned", "more labels than dimensions"])
def test_score_of_a_text_does_not_depend_on_its_neighbours_or_the_slice(models: Path, kind: str) -> None:
    texts = pa.array(["beta " * 50, "alpha x", "", "gamma 中文 naïve1"] * 3, pa.large_string())

    together = fasttext_scoring.probabilities(models / kind, texts)

    for row in range(len(texts)):
        assert together[row].tolist() == fasttext_scoring.probabilities(models / kind, texts.slice(row, 1))[0].tolist()


def test_tables_are_mapped_and_made_again_with_the_same_bytes(models: Path, tmp_path: Path) -> None:
    fasttext_scoring.prepare(models / "characters.bin", tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in (models / "characters").iterdir()
    }
    table = fasttext_table.load(tmp_path).table
    assert isinstance(table.base if table.base is not None else table, np.memmap)


def test_table_has_a_number_less_than_labels_for_each_feature_but_no_more_than_dimensions(models: Path) -> None:
    widths = {kind: fasttext_table.load(models / kind).table.shape[1] for kind in ("bigrams", "more labels than dimensions")}

    assert widths == {"bigrams": 2, "more labels than dimensions": 8}
    assert sorted(read_labels(models / "pruned.bin")) == ["__label__0", "__label__1", "__label__2"]


def test_hash_is_the_librarys_over_signed_bytes() -> None:
    assert fasttext_table.fnv(b"</s>") == int(fasttext_table._EOS_HASH)
    assert fasttext_table.fnv("é".encode()) == _fnv_by_definition("é".encode())


def _fnv_by_definition(word: bytes) -> int:
    value = 2166136261
    for byte in np.frombuffer(word, np.int8).tolist():
        value = ((value ^ (byte % 2**32)) * 16777619) % 2**32
    return value


def test_foreign_model_scores_the_label_that_the_recipe_names(models: Path) -> None:
    texts = pa.array(["alpha1 beta1", "gamma2 x2"], pa.large_string())
    everything = of_library(models / "bigrams.bin", ["__label__0", "__label__1", "__label__2"], texts.to_pylist())

    for label, column in (("1", 1), ("__label__2", 2)):
        config = ClassifierConfig.model_validate({"kind": "fasttext", "model": "foreign.bin", "label": label})
        np.testing.assert_allclose(compute(config, texts, models / "bigrams").to_numpy(), everything[:, column], atol=2e-5)


@pytest.mark.parametrize("damage", ["empty", "other", "cut", "vectors"])
def test_file_that_is_no_classifier_is_refused_by_name(damage: str, models: Path, tmp_path: Path) -> None:
    whole = (models / "bigrams.bin").read_bytes()
    path = tmp_path / "broken.bin"
    vectors = whole[:36] + (2).to_bytes(4, "little") + whole[40:]
    path.write_bytes({"empty": b"", "other": b"PK\3\4" * 50, "cut": whole[: len(whole) // 2], "vectors": vectors}[damage])

    with pytest.raises(UserError, match=r"broken\.bin: cannot be read as a fastText model"):
        read_model_file(path)
