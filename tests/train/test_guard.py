from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mixing import UserError, validated
from mixing.manifest import Manifest
from train import config as settings
from train import loop
from train.config import Config
from train.guard import Guard

CPU = torch.device("cpu")


def judged(guard: Guard, loss: float, norm: float = 1.0) -> tuple[bool, list[float]]:
    skip, above = guard.judge(torch.tensor(loss), torch.tensor(norm, dtype=torch.float64))
    return bool(skip), above.tolist()


def test_spike_after_half_a_window_is_skipped_and_measured_in_deviations() -> None:
    guard = Guard(settings.Guard(sigma=6, window=8), CPU)
    losses = [1.0, 1.2, 1.0, 1.2]
    assert not any(judged(guard, loss, 2 - loss)[0] for loss in losses)

    mean, deviation = 1.1, math.sqrt(0.04 / 3)
    assert judged(Guard(settings.Guard(sigma=6, window=8), CPU), 100.0) == (False, [0, 0])
    skip, above = judged(guard, mean + 7 * deviation, 0.9)
    assert skip
    assert above == pytest.approx([7, 0])
    assert not judged(guard, 1.1, 50.0)[0], "clipping takes care of a norm"


def test_norm_is_judged_where_it_is_asked_for() -> None:
    guard = Guard(settings.Guard(sigma=None, norm_sigma=6, window=8), CPU)
    assert not any(judged(guard, loss, 2 - loss)[0] for loss in [1.0, 1.2] * 2)

    assert not judged(guard, 50.0, 0.9)[0]
    assert judged(guard, 1.1, 50.0)[0]


def test_finite_spike_enters_the_window_so_that_a_new_level_is_accepted() -> None:
    guard = Guard(settings.Guard(sigma=6, window=8), CPU)
    for loss in [1.0, 1.01] * 4:
        judged(guard, loss)

    skipped = [judged(guard, loss)[0] for loss in [3.0, 3.01] * 4]

    assert skipped[0]
    assert not any(skipped[2:])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_skipped_at_once_and_forgotten(bad: float) -> None:
    guard = Guard(settings.Guard(sigma=None, window=4), CPU)

    assert judged(guard, bad)[0]
    assert judged(guard, 1.0, bad)[0]
    assert int(guard.seen) == 0
    assert [judged(guard, loss)[0] for loss in (1.0, 1.1, 1.0, 1.1, 1000.0)] == [False] * 5
    assert guard.values[0].tolist() == pytest.approx([1000.0, 1.1, 1.0, 1.1])


def test_guard_restored_from_its_tensors_decides_the_same() -> None:
    first, second = (Guard(settings.Guard(window=8), CPU) for _ in range(2))
    for step in range(11):
        judged(first, math.sin(step))
    for name, tensor in first.tensors().items():
        second.tensors()[name].copy_(tensor)

    assert [judged(first, value) for value in (0.1, 9.0, 0.2)] == [judged(second, value) for value in (0.1, 9.0, 0.2)]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def spiking(settings: dict[str, Any]) -> Config:
    """A guard so strict that ordinary steps are spikes."""
    return validated(Config, settings | {"guard": {"sigma": 0.7, "window": 8, "patience": 20}, "checkpoint": {"every": 500, "keep": 100}})


def test_skipped_steps_are_counted_with_their_documents_and_survive_a_resume(
    settings: dict[str, Any], manifest_folder: Path, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run = loop.train(manifest_folder, spiking(settings), None, tmp_path / "run")
    told = lines(run)

    skipped = [line for line in told if "skipped" in line]
    assert 0 < len(skipped) < len(told)
    assert told[-1]["skipped_steps"] == len(skipped)
    for line in skipped:
        first, last = line["skipped"]["sequences"]
        spans = manifest.spans(first, last)
        rows = {int(manifest.token_file(int(f)).pool_row[r]) for f, r in zip(spans.file, spans.token_row, strict=True)}
        assert (last, set(line["skipped"]["pool_rows"])) == (line["sequence"], rows)
        assert f"sequences {first} to {last} skipped: loss" in capsys.readouterr().err or line is not skipped[0]

    again = tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("export"))
    for later in sorted((again / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))[skipped[0]["step"] :]:
        shutil.rmtree(later)
    loop.train(manifest_folder, spiking(settings), "resume", again)
    assert (again / "export/model.safetensors").read_bytes() == (run / "export/model.safetensors").read_bytes()
    assert [line.get("skipped") for line in lines(again)] == [line.get("skipped") for line in told]


def test_steps_that_stay_not_finite_stop_the_run_with_one_message(settings: dict[str, Any], manifest_folder: Path, tmp_path: Path) -> None:
    config = validated(Config, settings | {"optimizer": {"learning_rate": 1e30, "clip": None}, "guard": {"patience": 3}})

    with pytest.raises(
        UserError, match=r"step \d+: 3 steps in a row were skipped \(loss .*norm nan.*metrics\.jsonl names their documents; resume with"
    ):
        loop.train(manifest_folder, config, None, tmp_path / "run")

    told = lines(tmp_path / "run")
    assert [line["gradient_norm"] for line in told[-3:]] == [None] * 3
    assert told[-1]["skipped_steps"] == 3
