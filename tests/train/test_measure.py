from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mixing import validated
from mixing.measurements import read
from train.__main__ import main
from train.config import Config
from train.loop import train

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, manifest_folder: Path) -> Path:
    model = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    values = {
        "model": {"config": model | {"vocab_size": 300}},
        "batch": 8,
        "optimizer": {"learning_rate": 0.01},
        "tokens": 5000,
        "evaluate": {"every": 0.5, "guards": ["prose"]},
        "checkpoint": {"every": 0.5, "keep": 9},
    }
    return train(manifest_folder, validated(Config, values), None, tmp_path_factory.mktemp("measured") / "run")


def asked(*arguments: object) -> list[dict[str, Any]]:
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, str | None], tuple[float, str]]:
    return {(row["metric"], row["component"]): (row["value"], row["group"]) for row in rows}


def test_every_checkpoint_measured_afterwards_gives_what_training_measured(finished: Path, manifest_folder: Path) -> None:
    during = [json.loads(line) for line in (finished / "measurements.jsonl").read_text().splitlines()]

    for folder in (finished / "checkpoints").iterdir():
        rows = asked(finished, manifest_folder, "--step", folder.name.removeprefix("step-"))
        (tokens,) = {row["tokens"] for row in rows}
        assert values(rows) == values([row for row in during if row["tokens"] == tokens])
    assert values(asked(finished / "export", manifest_folder)).keys() == values(rows).keys()


def test_measurements_are_appended_and_read_back(finished: Path, manifest_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "evaluate.yaml"
    config.write_text(yaml.safe_dump({"evaluate": {"guards": ["code"]}}))

    first = CliRunner().invoke(main, ["evaluate", str(finished), str(manifest_folder), "-c", str(config), "-o", str(tmp_path / "m.jsonl")])
    CliRunner().invoke(main, ["evaluate", str(finished), str(manifest_folder), "-o", str(tmp_path / "m.jsonl")])

    assert first.exit_code == 0, first.output
    assert any(line.split()[0] == "loss/code" and line.split()[-1] == "guard" for line in first.stdout.splitlines())
    table = read(tmp_path / "m.jsonl").to_pylist()
    assert [row["group"] for row in table if row["metric"] == "loss/code"] == ["guard", "target"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{manifest}", "--step", "99"], "--step 99: no such checkpoint in"),
        (["{run}/export", "{manifest}", "--step", "1"], "is no run, so it has no steps"),
        (["{run}/export", "{manifest}", "{manifest}", "{manifest}"], "is a second manifest called small-v1"),
        (["{run}/absent", "{manifest}"], "no such folder; name a run"),
        (["{run}", "{manifest}", "-c", "absent.yaml"], "absent.yaml: cannot be read"),
        (["{run}", "{manifest}", "--harness", "arc_easy"], "is a run; name a Hugging Face folder"),
    ],
)
def test_model_that_cannot_be_measured_is_one_message(arguments: list[str], message: str, finished: Path, manifest_folder: Path) -> None:
    result = CliRunner().invoke(main, ["evaluate", *(part.format(run=finished, manifest=manifest_folder) for part in arguments)])

    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.slow
def test_two_processes_measure_what_one_does(finished: Path, manifest_folder: Path, tmp_path: Path) -> None:
    questions = [{"question": f"What is {n}?", "choices": ["soil", "ready to grow", "seen"], "answer_idx": n % 3} for n in range(40)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    config = tmp_path / "evaluate.yaml"
    config.write_text(yaml.safe_dump({"tasks": {"test": {"file": str(tmp_path / "questions.jsonl")}}}))
    command = ["-m", "train", "evaluate", str(finished), str(manifest_folder), "-c", str(config), "--json"]

    two = subprocess.run([*TORCHRUN, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)

    assert two.returncode == 0, two.stderr[-3000:]
    assert [json.loads(line) for line in two.stdout.splitlines()] == asked(finished, manifest_folder, "-c", config)


def test_harness_measures_the_users_own_task_on_an_exported_folder(finished: Path, manifest_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra eval)")
    rows = [{"question": f"What is {n}?", "choices": ["soil", "ready to grow", "seen"], "answer": n % 3} for n in range(12)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))

    rows = asked(finished / "export", manifest_folder, "--harness", "mine", "--include", tmp_path)

    (accuracy,) = [row["value"] for row in rows if row["metric"] == "acc/mine"]
    assert round(accuracy * 12, 6) in range(13)
