"""Topics: trained in a fresh process, as a build does it, on made-up languages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from curation.signals import SIGNALS
from curation.signals.topic import TopicConfig

SIGNAL = SIGNALS["topic"]
SETTINGS = {"kind": "topic", "train": {name: {"sample": name} for name in ("sea", "law", "food")}, "buckets": 1000, "dimensions": 8}
CONFIG = TopicConfig.model_validate(SETTINGS)
TRAIN = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
from curation.signals import SIGNALS
settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
signal = SIGNALS["topic"]
config = signal.config.model_validate(settings)
texts = {role: pq.read_table(folder.parent / f"{role}.parquet")["text"].combine_chunks() for role in signal.references(config)}
folder.mkdir()
signal.train(config, texts, folder, 17)
"""


def documents(topic: str, count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"{topic if rng.random() < 0.5 else 'x'}{rng.integers(100)}" for _ in range(30)) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("topic") / "model"
    for seed, topic in enumerate(SETTINGS["train"]):  # type: ignore[arg-type]
        pq.write_table(pa.table({"text": pa.array(documents(topic, 100, seed), pa.large_string())}), folder.parent / f"{topic}.parquet")
    subprocess.run([sys.executable, "-c", TRAIN, json.dumps(SETTINGS), str(folder)], check=True, capture_output=True)
    return folder


def test_unseen_texts_get_their_topic_and_its_probability(model: Path) -> None:
    texts = [text for topic in ("food", "sea", "law") for text in documents(topic, 20, 9)]

    values = SIGNAL.compute(CONFIG, pa.array(texts, pa.large_string()), model)

    assert values.type == SIGNAL.fields(CONFIG)
    assert values.field("topic").to_pylist() == ["food"] * 20 + ["sea"] * 20 + ["law"] * 20
    assert all(1 / 3 < value <= 1 for value in values.field("probability").to_pylist())


def test_text_of_no_topic_is_less_sure_than_one_of_a_topic(model: Path) -> None:
    values = SIGNAL.compute(CONFIG, pa.array([*documents("sea", 1, 9), "x1 x2 x3 x4 x5 x6"], pa.large_string()), model)

    sure, unsure = values.field("probability").to_pylist()
    assert unsure < sure


def test_held_out_figures_cover_every_topic(model: Path) -> None:
    metrics = json.loads((model / "metrics.json").read_text())

    assert metrics["labels"] == {topic: {"trained": 90, "held_out": 10} for topic in SETTINGS["train"]}  # type: ignore[union-attr]
    assert metrics["auc"] > 0.95
    assert metrics["accuracy"] > 0.9
    assert sum(one["texts"] for one in metrics["bins"]) == 30


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"sea": "a"}, "at least 2"),
        ({"sea": "a", "buckets": "b"}, "cannot be called 'buckets'"),
        ({"sea": "a", "deep sea": "b"}, "pattern"),
        ({"sea": "a", "../up": "b"}, "pattern"),
    ],
)
def test_topics_that_cannot_be_are_refused(train: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TopicConfig.model_validate({"kind": "topic", "train": train})
