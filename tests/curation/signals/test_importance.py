"""Importance ratios against a plain computation over the words, and the noise that makes a ranking a sample."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.signals import SIGNALS, bags
from curation.signals.importance import ImportanceConfig
from curation.text.words import word_hash, words
from mixing import UserError

SIGNAL = SIGNALS["importance"]
CONFIG = ImportanceConfig.model_validate({"kind": "importance", "target": {"sample": "a"}, "pool": {"sample": "b"}, "buckets": 97})
TARGET = ["The heart beats; the heart rests.", "A beating heart", "Herz und Niere 心臓"]
POOL = ["The market rests on trade", "markets, markets everywhere", "the end", "nothing beats the market"]
TEXTS = ["the heart of the market", "Heart heart HEART", "", "trade winds", "...", "心臓 the"]


def array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def buckets_of(text: str) -> list[int]:
    hashes = [word_hash(word) for word in words(text)]
    pairs = []
    for first, second in pairwise(hashes):
        value = ((first * 0x9E3779B97F4A7C15 + second) * 0xBF58476D1CE4E5B9) % 2**64
        pairs.append(value ^ (value >> 32))
    return [value % 97 for value in [*hashes, *pairs]]


def log_ratios(text: str) -> list[float]:
    target, pool = (Counter(bucket for one in texts for bucket in buckets_of(one)) for texts in (TARGET, POOL))
    return [
        math.log((target[bucket] + 1) / (target.total() + 97)) - math.log((pool[bucket] + 1) / (pool.total() + 97))
        for bucket in buckets_of(text)
    ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    SIGNAL.train(CONFIG, {"target": array(TARGET), "pool": array(POOL)}, tmp_path, 17)
    return tmp_path


def test_values_are_the_sum_and_the_mean_of_smoothed_log_ratios(model: Path) -> None:
    values = SIGNAL.compute(CONFIG, array(TEXTS), model).to_pylist()

    for text, value in zip(TEXTS, values, strict=True):
        expected = log_ratios(text)
        if not expected:
            assert value == {"log_ratio": None, "mean": None, "sampled": None}
            continue
        assert value["log_ratio"] == pytest.approx(sum(expected))
        assert value["mean"] == pytest.approx(sum(expected) / len(expected))
    assert values[1]["log_ratio"] > 0 > values[3]["log_ratio"]


def test_noise_depends_on_text_and_seed_alone_and_is_standard_gumbel(model: Path) -> None:
    texts = array([f"text number {number}" for number in range(20_000)])

    noise = bags.gumbel(texts, 17)

    assert noise[5:9].tolist() == bags.gumbel(texts.slice(5, 4), 17).tolist()
    assert abs(np.corrcoef(noise, bags.gumbel(texts, 18))[0, 1]) < 0.03
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.04)
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.05)
    values = SIGNAL.compute(CONFIG, array(TEXTS), model)
    assert values.field("sampled")[0].as_py() == pytest.approx(values.field("log_ratio")[0].as_py() + bags.gumbel(array(TEXTS[:1]), 17)[0])


def test_best_by_sampled_value_is_each_text_in_proportion_to_its_weight() -> None:
    weights = np.array([1.0, 2.0, 5.0])
    draws = 6000
    noise = bags.gumbel(array([f"{draw} {item}" for draw in range(draws) for item in range(3)]), 3).reshape(draws, 3)

    chosen = np.bincount((np.log(weights) + noise).argmax(axis=1), minlength=3) / draws

    np.testing.assert_allclose(chosen, weights / weights.sum(), atol=0.02)


def test_order_of_the_references_changes_no_byte(model: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    SIGNAL.train(CONFIG, {"target": array(TARGET[::-1]), "pool": array(POOL[::-1])}, again, 17)

    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in model.iterdir() if path.is_file()
    }


def test_reference_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pool: no word in its 2 texts"):
        SIGNAL.train(CONFIG, {"target": array(TARGET), "pool": array(["...", "!"])}, tmp_path, 17)
