"""Runs in this process, on one core: what is fed, what is recorded, and that nothing but the plan decides the result."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mixing import UserError, validated
from mixing.manifest import Manifest
from mixing.measurements import read
from train.config import Config
from train.loop import Learner, due, take_step, train
from train.record import promised
from train.start import Run
from train.stream import Step, fill, read_step

MEASURED = {"tokens_per_second", "memory", "stall"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(run: Path) -> bytes:
    return (run / "export/model.safetensors").read_bytes()


def parameters(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, manifest_folder: Path) -> Path:
    """A whole run, every checkpoint kept."""
    values = {
        "model": {
            "config": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        },
        "batch": 8,
        "optimizer": {"learning_rate": 0.01},
        "evaluate": {"every": 5000, "guards": ["prose"]},
        "checkpoint": {"every": 2000, "keep": 100},
    }
    return train(manifest_folder, validated(Config, values), None, tmp_path_factory.mktemp("finished") / "run")


def stored(run: Path) -> Config:
    from train.config import load

    return load(run / "config.yaml")


def test_consumed_tokens_agree_with_plan_and_header_exactly(finished: Path, manifest: Manifest) -> None:
    names = manifest.component_names
    metrics = lines(finished / "metrics.jsonl")

    tokens, components = manifest.tokens(0, manifest.sequences), manifest.components(0, manifest.sequences)
    for line in metrics:
        planned = np.bincount(components[: line["sequence"]], tokens[: line["sequence"]], len(names))
        assert line["consumed"] == dict(zip(names, planned.tolist(), strict=True))
        assert line["tokens"] == int(tokens[: line["sequence"]].sum())
    header = {name: sum(stage["components"].get(name, {"tokens": 0})["tokens"] for stage in manifest.stages) for name in names}
    assert manifest.sequences % 8, "the last step has to be a short one"
    assert [line["step"] for line in metrics] == list(range(1, -(-manifest.sequences // 8) + 1))
    assert metrics[-1]["consumed"] == metrics[-1]["promised"] == header
    assert metrics[-1]["tokens"] == sum(stage["tokens"] for stage in manifest.stages)
    assert {line["stage"] for line in metrics} == {"adapt", "enhance"}


def test_promised_tokens_stay_within_two_sequences_of_the_consumed(finished: Path, manifest: Manifest) -> None:
    for line in lines(finished / "metrics.jsonl"):
        for name, promise in line["promised"].items():
            assert abs(line["consumed"][name] - promise) <= 2 * manifest.sequence_length
    assert promised(manifest, 0) == dict.fromkeys(manifest.component_names, 0.0)


def test_losses_fall_and_add_up(finished: Path) -> None:
    metrics = lines(finished / "metrics.jsonl")

    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.3
    assert metrics[0]["loss"] == pytest.approx(np.log(256), abs=0.1)
    for line in metrics:
        parts = list(line["loss_per_component"].values())
        assert min(parts) - 1e-9 <= line["loss"] <= max(parts) + 1e-9


def test_measurements_start_at_token_0_and_end_at_the_last(finished: Path, manifest: Manifest) -> None:
    table = read(finished / "measurements.jsonl").to_pylist()
    total = lines(finished / "metrics.jsonl")[-1]["tokens"]

    assert sorted({row["tokens"] for row in table})[0] == 0
    assert {row["tokens"] // 5000 for row in table} == set(range(total // 5000 + 1))
    assert len({row["tokens"] for row in table if row["tokens"] < 5000}) > 4
    assert max(row["tokens"] for row in table) == total
    assert {row["metric"] for row in table} == {
        f"{metric}{source}" for metric in ("loss", "bits_per_byte") for source in ("", "/code", "/prose")
    }
    assert {row["component"] for row in table if row["metric"] == "loss"} <= set(manifest.component_names)
    assert {row["group"] for row in table if row["metric"].endswith("prose")} == {"guard"}
    assert {row["manifest"] for row in table} == {manifest.digest}
    assert all((row["learning_rate"] is None) == (row["tokens"] == 0) == (row["epochs"] is None) for row in table)
    last = [row["value"] for row in table if row["metric"] == "loss/code"]
    assert last[-1] < last[0]


@pytest.mark.parametrize("step", [1, 5])
def test_run_resumed_from_any_checkpoint_ends_with_the_same_bits(step: int, finished: Path, tmp_path: Path, manifest_folder: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "export")
    kept = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    for later in kept[step:]:
        shutil.rmtree(later)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "tok')  # a line that a kill cut short

    train(manifest_folder, stored(finished), "resume", run)

    assert weights(run) == weights(finished)
    again, before = (
        [{key: value for key, value in line.items() if key not in MEASURED} for line in lines(r / "metrics.jsonl")] for r in (run, finished)
    )
    assert again == before
    measured, first = ([{**line, "run": ""} for line in lines(r / "measurements.jsonl")] for r in (run, finished))
    assert measured == first


def test_run_killed_before_its_first_checkpoint_resumes_from_the_start(finished: Path, tmp_path: Path, manifest_folder: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")

    train(manifest_folder, stored(finished), "resume", run)

    assert weights(run) == weights(finished)
    assert len(lines(run / "metrics.jsonl")) == len(lines(finished / "metrics.jsonl"))


def test_evaluating_and_saving_more_often_changes_no_bit(finished: Path, tmp_path: Path, manifest_folder: Path) -> None:
    config = stored(finished)
    often = config.model_copy(
        update={
            "evaluate": config.evaluate.model_copy(update={"every": 600}),
            "checkpoint": config.checkpoint.model_copy(update={"every": 600, "keep": 1}),
        }
    )

    train(manifest_folder, often, None, tmp_path / "run")

    assert weights(tmp_path / "run") == weights(finished)
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1


def test_exported_weights_start_a_new_run_where_the_old_one_ended(finished: Path, tmp_path: Path, manifest_folder: Path) -> None:
    config = stored(finished)
    values = config.model_dump() | {"model": {"path": str(finished / "export")}, "checkpoint": {"every": "1M"}, "start": None}

    train(manifest_folder, validated(Config, values), None, tmp_path / "run")

    ended = [row["value"] for row in lines(finished / "measurements.jsonl") if row["metric"] == "loss/code"][-1]
    began = next(row["value"] for row in lines(tmp_path / "run/measurements.jsonl") if row["metric"] == "loss/code")
    assert began == pytest.approx(ended, rel=1e-6)
    assert stored(tmp_path / "run").start == "weights"


def test_resume_with_another_configuration_is_refused(finished: Path, tmp_path: Path, manifest_folder: Path) -> None:
    config = stored(finished)
    changed = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 0.5}), "batch": 4})

    with pytest.raises(UserError, match=r"batch: 4, but the run to resume has 8 \(also changed: optimizer\.learning_rate\)"):
        train(manifest_folder, changed, "resume", finished)


def test_start_on_a_folder_that_holds_something_is_refused(finished: Path, tmp_path: Path, manifest_folder: Path) -> None:
    config = stored(finished)
    with pytest.raises(UserError, match=r"holds a run with step-\d+; go on with --start resume"):
        train(manifest_folder, config, None, finished)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and not a run"):
        train(manifest_folder, config, None, tmp_path)
    with pytest.raises(UserError, match="no run to resume"):
        train(manifest_folder, config, "resume", tmp_path / "absent")
    with pytest.raises(UserError, match=r"--start weights: model\.config has no weights"):
        train(manifest_folder, config, "weights", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_second_run_in_the_same_folder_is_refused(finished: Path, manifest_folder: Path) -> None:
    import fcntl

    handle = os.open(finished, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another training run is writing here"):
            train(manifest_folder, stored(finished), "resume", finished)
    finally:
        os.close(handle)


def test_manifest_changed_since_is_refused(finished: Path, tmp_path: Path, manifest_folder: Path) -> None:
    other = tmp_path / "edited"
    shutil.copytree(manifest_folder, other)
    header = (other / "manifest.json").read_text()
    assert header.count('"name":"small"') > 1
    (other / "manifest.json").write_text(header.replace('"name":"small"', '"name":"SMALL"'))

    with pytest.raises(UserError, match=r"manifest\.digest: the configuration belongs to"):
        train(other, stored(finished), "resume", finished)


def gradients_of(model: Any, run: Run, step: Step) -> torch.Tensor:
    """The gradient of a step, as AdamW without memory and clipping has kept it; at rate 0 the parameters stay."""
    optimizer = run.config.optimizer.model_copy(update={"betas": (0.0, 0.0), "clip": None})
    loose = run._replace(config=run.config.model_copy(update={"optimizer": optimizer}))
    learner = Learner(model, loose.config, run.world.device)
    take_step(loose, learner, step, 0.0)
    return torch.cat([learner.optimizer.state[name]["exp_avg"].flatten() for name, _ in model.named_parameters()])


def test_gradient_accumulated_over_micro_batches_equals_one_big_batch(model: Any, run: Run, manifest: Manifest) -> None:
    """And equals the mean over all predictions of transformers' own loss, document by document."""
    before = parameters(model)
    whole = gradients_of(model, run, read_step(manifest, 16, 8, 8, 0, 1))
    for micro_batch in (1, 2, 4):
        parts = gradients_of(model, run, read_step(manifest, 16, 8, micro_batch, 0, 1))
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    assert torch.equal(parameters(model), before)

    model.set_attn_implementation("eager")
    spans, total, predictions = manifest.spans(16, 24), torch.zeros(()), 0
    for span in zip(*spans[1:5], strict=True):
        ids = torch.from_numpy(manifest.ids(*(int(value) for value in span)).astype("int64"))
        total = total + F.cross_entropy(model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="sum")
        predictions += len(ids) - 1
    (total / predictions).backward()
    direct = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(whole, direct, rtol=1e-3, atol=1e-6)


def test_step_without_predictions_changes_nothing(model: Any, run: Run) -> None:
    learner = Learner(model, run.config, run.world.device)
    rows = fill([[np.array([7]), np.array([9])], [np.array([3])]], [0, 1], 64)
    before = {name: tensor.clone() for name, tensor in learner.tensors().items()}

    sums, (_stop, norm, *_) = take_step(run, learner, Step(0, 2, 3, 0, [rows]), 0.1).read()

    assert np.isnan(norm)
    assert sums == [[0, 0, 0], [0, 0, 0], [2, 1, 0]]
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.tensors().items())


def test_empty_rows_add_nothing_to_a_step(model: Any, run: Run, manifest: Manifest) -> None:
    first = manifest.sequences - 3
    short = read_step(manifest, first, 8, 8, 0, 1)
    full = read_step(manifest, first, 3, 3, 0, 1)

    torch.testing.assert_close(gradients_of(model, run, short), gradients_of(model, run, full), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("every", "marks"), [(10, [10, 20, 35]), (7, [7, 15, 23, 35]), (100, []), (1, [5, 7, 10, 15, 20, 23, 35])])
def test_due_fires_at_the_first_step_that_reaches_a_multiple(every: int, marks: list[int]) -> None:
    seen = [0, 5, 7, 10, 15, 20, 23, 35]

    assert [after for before, after in pairwise(seen) if due(every, before, after)] == marks
