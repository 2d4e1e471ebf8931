"""Exact mode: the same parameters on 1, 2 and 4 processes, and after every change between them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from manifests import small_manifest

from mixing import UserError, validated
from train import exact
from train.config import Config
from train.loop import train
from train.model import World

# Sizes that no number of processes divides: rows, columns and vectors are cut unevenly.
MODEL = {
    "model_type": "llama",
    "hidden_size": 36,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 261,
}
PLAIN: dict[str, Any] = {
    "model": {"config": MODEL},
    "batch": 8,
    "exact": {"bins": 4},
    "optimizer": {"learning_rate": 0.01, "clip": 0.5},
    "evaluate": {"every": "1M"},
    "checkpoint": {"every": 1, "keep": 100},
}
REST: dict[str, Any] = PLAIN | {
    "model": {"config": MODEL | {"tie_word_embeddings": True}},
    "precision": "bf16",
    "optimizer": {"kind": "muon", "moments": "bf16", "learning_rate": 0.01},
    "ema": 1000,
    "freeze": ["0"],
}
JOBS = """
import json, shutil, sys
from pathlib import Path
import torch
from mixing import validated
from train.config import Config
from train.loop import train
from train.model import joined_world
torch.set_num_threads(1)
manifest, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
with joined_world() as world:
    for values, start, folder in jobs:
        train(manifest, validated(Config, values), start, Path(folder))
"""


def launch(processes: int, manifest: Path, jobs: list[tuple[dict[str, Any], str, Path]]) -> None:
    """Trainings one after the other, in one world of `processes`."""
    script = jobs[0][2].parent / "jobs.py"
    script.write_text(JOBS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    command = [*torchrun, "--rdzv-endpoint=127.0.0.1:0", str(script), str(manifest), json.dumps(jobs, default=str)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr.split("\nE1")[0][-3000:]


def half_done(run: Path, folder: Path) -> Path:
    """A copy of `run` as if it had been killed after half of its steps."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("export"))
    done = sorted((folder / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    for later in done[len(done) // 2 :]:
        shutil.rmtree(later)
    return folder


def told(run: Path) -> tuple[str, list[tuple[float, float]]]:
    """The digest of the parameters at the end; loss and gradient norm of every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    digest = hashlib.sha256((run / "export/model.safetensors").read_bytes()).hexdigest()
    return digest, [(line["loss"], line["gradient_norm"]) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parameters_are_equal_on_1_2_and_4_processes_and_after_every_change_between_them(tmp_path: Path) -> None:
    manifest = small_manifest(tmp_path / "small", tokens=3000)
    one = train(manifest, validated(Config, PLAIN), "fresh", tmp_path / "one")
    expected = told(one)
    assert len(expected[1]) >= 5
    assert {norm > 0.5 for _, norm in expected[1]} >= {True}, "no gradient was clipped"

    two, four = tmp_path / "two", tmp_path / "four"
    launch(2, manifest, [(PLAIN, "fresh", two), (PLAIN, "resume", half_done(one, tmp_path / "1-2")), (REST, "fresh", tmp_path / "rest2")])
    launch(
        4,
        manifest,
        [
            (PLAIN, "fresh", four),
            (PLAIN, "resume", half_done(one, tmp_path / "1-4")),
            (PLAIN, "resume", half_done(two, tmp_path / "2-4")),
            (REST, "fresh", tmp_path / "rest4"),
            (REST, "resume", half_done(tmp_path / "rest2", tmp_path / "rest2-4")),
        ],
    )
    launch(2, manifest, [(PLAIN, "resume", half_done(four, tmp_path / "4-2"))])
    for name in ("two", "four"):
        train(manifest, validated(Config, PLAIN), "resume", half_done(tmp_path / name, tmp_path / f"{name}-1"))

    runs = ["two", "four", "1-2", "1-4", "2-4", "4-2", "two-1", "four-1"]
    assert {name: told(tmp_path / name) for name in runs} == dict.fromkeys(runs, expected)
    assert told(tmp_path / "rest4") == told(tmp_path / "rest2") == told(tmp_path / "rest2-4")
    assert told(tmp_path / "rest2")[0] != expected[0]


@pytest.mark.parametrize(
    ("bins", "size", "message"),
    [
        (4, 8, "4 bins on 8 processes; .*: 1, 2, 4$"),
        (6, 4, "6 bins on 4 processes; .*: 1, 2$"),
        (6, 3, "a power of two and divides the bins: 1, 2$"),
    ],
)
def test_world_that_would_add_in_another_order_is_refused(bins: int, size: int, message: str) -> None:
    config = validated(Config, PLAIN | {"batch": 24, "exact": {"bins": bins}})

    with pytest.raises(UserError, match=message):
        exact.refuse(config, World(0, size, torch.device("cpu"), sharded=True))


def test_bins_that_the_batch_cannot_fill_are_refused() -> None:
    with pytest.raises(UserError, match=r"exact\.bins: a batch of 8 in micro-batches of any size is not 3 equal bins"):
        validated(Config, PLAIN | {"exact": {"bins": 3}})
    with pytest.raises(UserError, match=r"a batch of 8 in micro-batches of 1 is not 4 equal bins"):
        validated(Config, PLAIN | {"micro_batch": 1})


def test_bf16_in_one_process_without_torchrun_is_refused() -> None:
    with pytest.raises(UserError, match="start it with torchrun --nproc-per-node 1"):
        exact.refuse(validated(Config, REST), World(0, 1, torch.device("cpu"), sharded=False))


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 6, 8, 12, 13])
def test_tree_adds_the_same_for_every_world(bins: int) -> None:
    """Against sums of parts that each world adds first, as the reduce-scatter does."""
    torch.manual_seed(bins)
    parts = torch.randn(bins, 50) * 10 ** torch.randint(-6, 6, (bins, 50))

    def pairs(values: list[torch.Tensor]) -> torch.Tensor:
        while len(values) > 1:
            values = [left + right for left, right in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    sums = []
    for size in (1, 2, 4, 8):
        if bins % size == 0:
            tree = exact.Tree()
            for begin in range(0, bins, size):
                tree.push({"w": pairs([part.clone() for part in parts[begin : begin + size]])})
            sums.append(tree.total()["w"])

    assert all(torch.equal(total, sums[0]) for total in sums)
    torch.testing.assert_close(sums[0], parts.sum(0), rtol=1e-4, atol=1e-1)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_norm_is_the_same_in_any_order_and_cut(values: list[float], random: Any) -> None:
    world = World(0, 1, torch.device("cpu"), sharded=False)
    whole = torch.tensor(values)

    norm = exact.norm([whole], world)

    random.shuffle(values)
    cut = random.randrange(len(values) + 1)
    other = exact.norm([torch.tensor(values[:cut]), torch.tensor(values[cut:])], world)
    assert torch.equal(norm, other)
    assert norm.item() == pytest.approx(whole.double().norm().item(), rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_norm_of_what_is_not_finite_is_not_finite(value: float) -> None:
    world = World(0, 1, torch.device("cpu"), sharded=False)

    assert not exact.norm([torch.tensor([1.0, value]), torch.zeros(0)], world).isfinite()
    assert exact.norm([torch.zeros(3)], world) == 0
