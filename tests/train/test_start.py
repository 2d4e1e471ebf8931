"""Every way to begin: what it takes over from where, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from mixing import UserError, validated
from mixing.manifest import Manifest, canonical_json
from train.checkpoint import checkpoints, read_state
from train.config import Config, load
from train.loop import train


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    (file,) = checkpoint.glob("*.safetensors")
    return load_file(file)


@pytest.fixture
def values(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"checkpoint": {"every": 2000, "keep": 100}, "schedule": {"kind": "constant", "warmup": 0}}


@pytest.fixture
def first(values: dict[str, Any], manifest_folder: Path, tmp_path: Path) -> Path:
    return train(manifest_folder, validated(Config, values), None, tmp_path / "first")


def remixed(manifest: Path, folder: Path, consumed: int, digest: str | None = None) -> Path:
    """The same plan once more, as what is left of `manifest` after `consumed` sequences."""
    shutil.copytree(manifest, folder)
    header = json.loads((folder / "manifest.json").read_text())
    header["parent"] = {"digest": digest or Manifest.open(manifest).digest, "consumed_sequences": consumed}
    (folder / "manifest.json").write_text(canonical_json(header))
    files = json.loads((folder / "files.json").read_text())
    for file in files:
        file["bytes"] = (folder / file["path"]).stat().st_size
    (folder / "files.json").write_text(json.dumps(files))
    return folder


def test_continue_goes_on_with_model_optimizer_and_token_count(
    first: Path, values: dict[str, Any], manifest_folder: Path, tmp_path: Path
) -> None:
    stands = read_state(checkpoints(first)[2])
    child = remixed(manifest_folder, tmp_path / "child", stands.sequence)
    config = validated(Config, values | {"optimizer": {"learning_rate": 0.002}})

    run = train(child, config, "continue", tmp_path / "second", first)

    told, total = lines(run), sum(stage["tokens"] for stage in Manifest.open(child).stages)
    assert (told[0]["step"], told[0]["sequence"]) == (stands.step + 1, stands.sequence + 8)
    assert told[-1]["tokens"] == stands.tokens + total
    assert told[-1]["consumed"] == told[-1]["promised"]
    assert {line["learning_rate"] for line in told} == {0.002}, "the checkpoint's rate was 0.01"
    assert {line["manifest"] for line in told} == {Manifest.open(child).digest}
    assert json.loads((run / "measurements.jsonl").read_text().splitlines()[0])["tokens"] == stands.tokens
    last = tensors(checkpoints(run)[-1])
    assert last["step/lm_head.weight"] == told[-1]["step"], "AdamW counts on"
    resolved = load(run / "config.yaml")
    assert resolved.origin is not None
    assert (resolved.origin.sequences, resolved.origin.tokens) == (stands.sequence, stands.tokens)

    shutil.rmtree(run / "checkpoints")  # killed before its first checkpoint, it goes on from the other run's
    before = (run / "export/model.safetensors").read_bytes()
    train(child, config, "resume", run)
    assert (run / "export/model.safetensors").read_bytes() == before
    assert len(lines(run)) == len(told)


def test_continued_run_continues_again_with_sequences_of_both(
    first: Path, values: dict[str, Any], manifest_folder: Path, tmp_path: Path
) -> None:
    state = read_state(checkpoints(first)[0])
    child = remixed(manifest_folder, tmp_path / "child", state.sequence)
    second = train(child, validated(Config, values), "continue", tmp_path / "second", first)
    stands = read_state(checkpoints(second)[0])
    grandchild = remixed(child, tmp_path / "grandchild", stands.sequence, Manifest.open(child).digest)

    third = train(grandchild, validated(Config, values), "continue", tmp_path / "third", second)

    assert lines(third)[0]["sequence"] == state.sequence + stands.sequence + 8
    assert lines(third)[0]["step"] == stands.step + 1


def test_continue_with_a_manifest_that_is_not_the_rest_of_the_run_is_refused(
    first: Path, values: dict[str, Any], manifest_folder: Path, tmp_path: Path
) -> None:
    config = validated(Config, values)
    with pytest.raises(UserError, match=r"is no remix; make one with `curate remix`"):
        train(manifest_folder, config, "continue", tmp_path / "run", first)
    other = remixed(manifest_folder, tmp_path / "other", 8, "f" * 64)
    with pytest.raises(UserError, match=r"other is a remix of ffff.*first trained on [0-9a-f]{64}; remix that one"):
        train(other, config, "continue", tmp_path / "run", first)
    between = remixed(manifest_folder, tmp_path / "between", 9)
    with pytest.raises(
        UserError, match=r"was remixed at sequence 9, the checkpoints in .*first stand at 32, .*; remix with --consumed at one"
    ):
        train(between, config, "continue", tmp_path / "run", first)
    with pytest.raises(UserError, match=r"--start continue: needs --from, the folder of a run"):
        train(between, config, "continue", tmp_path / "run")
    with pytest.raises(UserError, match=r"--from .*: no checkpoint here"):
        train(between, config, "continue", tmp_path / "run", tmp_path)
    with pytest.raises(UserError, match=r"--from .*first: only --start weights-optimizer and --start continue take a checkpoint"):
        train(between, config, "fresh", tmp_path / "run", first)
    assert not (tmp_path / "run").exists()


def test_weights_and_optimizer_start_at_token_0_with_the_rates_of_the_configuration(
    first: Path, values: dict[str, Any], manifest_folder: Path, tmp_path: Path
) -> None:
    """The first update of the new run, against AdamW by hand from the moments of the old one."""
    source = checkpoints(first)[1]
    before = tensors(source)
    rates = {"optimizer": {"learning_rate": 0.003, "weight_decay": 0.0}, "checkpoint": {"every": 1, "keep": 100}, "ema": 1000}

    run = train(manifest_folder, validated(Config, values | rates), "weights-optimizer", tmp_path / "second", source)

    told, after = lines(run), tensors(checkpoints(run)[0])
    assert (told[0]["step"], told[0]["sequence"], told[0]["learning_rate"]) == (1, 8, 0.003)
    steps = int(before["step/lm_head.weight"]) + 1
    assert after["step/lm_head.weight"] == steps
    mean, square = after["exp_avg/lm_head.weight"].double(), after["exp_avg_sq/lm_head.weight"].double()
    change = mean / (1 - 0.9**steps) / ((square / (1 - 0.95**steps)).sqrt() + 1e-8)
    expected = before["model/lm_head.weight"].double() - 0.003 * change
    torch.testing.assert_close(after["model/lm_head.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    keep = 0.5 ** (told[0]["tokens"] / 1000)
    average = keep * before["model/lm_head.weight"] + (1 - keep) * after["model/lm_head.weight"]
    torch.testing.assert_close(after["ema/lm_head.weight"], average, rtol=1e-5, atol=1e-6)


def test_checkpoint_of_another_optimizer_is_refused_by_what_it_lacks(
    first: Path, values: dict[str, Any], manifest_folder: Path, tmp_path: Path
) -> None:
    muon = validated(Config, values | {"optimizer": {"kind": "muon"}})

    with pytest.raises(UserError, match=r"step-\d+: holds no momentum/model\.layers\.0.*it was saved with another optimizer"):
        train(manifest_folder, muon, "weights-optimizer", tmp_path / "run", first)


@pytest.mark.parametrize("path", ["models/absent", "absent"])
def test_model_folder_that_does_not_exist_is_refused_without_asking_the_hub(
    path: str, values: dict[str, Any], manifest_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(UserError, match=rf"model\.path: {path}: no such folder"):
        train(manifest_folder, validated(Config, values | {"model": {"path": path}}), None, tmp_path / "run")


def test_a_run_that_torchrun_may_restart_is_resumed_without_being_asked(
    first: Path, values: dict[str, Any], manifest_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = len(lines(first))
    with pytest.raises(UserError, match=r"holds a run with step-.*; go on with --start resume"):
        train(manifest_folder, validated(Config, values), None, first)
    shutil.rmtree(checkpoints(first)[-1])
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")

    train(manifest_folder, validated(Config, values), None, first)

    assert len(lines(first)) == steps
