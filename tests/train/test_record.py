from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixing import validated
from mixing.manifest import Manifest
from train import loop
from train.config import Config
from train.model import architecture, new_model
from train.record import operations
from train.start import Run


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, manifest_folder: Path) -> list[dict[str, Any]]:
    """The lines of a run on a device said to do 1 GFLOP/s."""
    model = {
        "config": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    }
    config = validated(Config, {"model": model, "batch": 8, "peak_flops": 1e9, "evaluate": {"every": "1M"}, "checkpoint": {"every": "1M"}})
    run = loop.train(manifest_folder, config, None, tmp_path_factory.mktemp("told") / "run")
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_operations_of_a_token_are_counted_by_hand(run: Run) -> None:
    assert run.config.model.config is not None
    hidden, inner, layers, groups = 32, 64, 2, 16  # 4 heads of 8, 2 of them for keys and values
    block = 2 * hidden * hidden + 2 * hidden * groups + 3 * hidden * inner + 2 * hidden
    weights = layers * block + hidden + 256 * hidden  # the last norm and the head, not the input embedding

    assert operations(new_model(architecture(run.config), 0)) == (6 * weights, 12 * layers * hidden)
    tied = run.config.model.model_copy(update={"config": run.config.model.config | {"tie_word_embeddings": True}})
    model = new_model(architecture(run.config.model_copy(update={"model": tied})), 0)
    assert operations(model) == (6 * weights, 12 * layers * hidden), "the head is there, and is the embedding"


def test_utilisation_in_both_conventions_is_operations_over_peak(told: list[dict[str, Any]], manifest: Manifest) -> None:
    per_token, per_position = 6 * (2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32 + 256 * 32), 12 * 2 * 32
    for line in told:
        first, last = line["sequence"] - 8, line["sequence"]
        if last == manifest.sequences:
            continue  # a short step
        lengths = manifest.spans(first, last).length.astype(np.int64)
        tokens = int(lengths.sum())
        seconds = tokens / line["tokens_per_second"]
        rows, documents = tokens * manifest.sequence_length, int((lengths**2).sum())
        assert line["mfu"] == pytest.approx((tokens * per_token + rows * per_position) / 1e9 / seconds, abs=2e-4)
        assert line["mfu_documents"] == pytest.approx((tokens * per_token + documents * per_position) / 1e9 / seconds, abs=2e-4)
        assert 0 < line["mfu_documents"] < line["mfu"]


def test_line_of_a_step_names_the_manifest_its_memory_and_what_it_waited_for(told: list[dict[str, Any]], manifest: Manifest) -> None:
    for line in told:
        assert line["manifest"] == manifest.digest
        assert line["memory"] > 50 * 2**20
        assert 0 <= line["stall"] < line["tokens"] / line["tokens_per_second"] + 60
        assert line["skipped_steps"] == 0
    assert [line["memory"] for line in told] == sorted(line["memory"] for line in told)


def test_numbers_are_mirrored_to_tensorboard(settings: dict[str, Any], manifest_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = loop.train(manifest_folder, validated(Config, settings | {"tensorboard": True}), None, tmp_path / "run")

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == [line["tokens"] for line in told]
    assert [event.value for event in scalars] == pytest.approx([line["loss"] for line in told], rel=1e-6)
    assert "loss_per_component/replay" in events.Tags()["scalars"]
