from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError
from terminals import on_terminal

from mixing import UserError
from mixing.measurements import Measurement, append, read
from mixing.strategies.measured import OptimalDurations, Row, learn_durations
from train import loop
from train.__main__ import main
from train.start import locked
from train.sweep import Sweep, cells, choice, lanes, lines_of, run_sweep, take_device, visible_devices

MODEL = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DURATIONS = [2000, 4000, 8000]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def written(place: Path, manifest_folder: Path) -> dict[str, Any]:
    """A sweep as a user writes it."""
    config = {
        "model": {"config": MODEL},
        "batch": 2,
        "optimizer": {"learning_rate": 0.01},
        "schedule": {"kind": "wsd", "warmup": 500, "decay": 0.1},
        "evaluate": {"guards": ["prose"]},
        "checkpoint": {"every": 1000},
    }
    (place / "train.yaml").write_text(yaml.safe_dump(config))
    return {
        "train": str(place / "train.yaml"),
        "manifests": {"small": str(manifest_folder)},
        "learning_rates": [1e-2, 1e-3],
        "durations": DURATIONS,
        "target": "loss/code",
        "guards": {"loss/prose": 0.5},
    }


def file_of(folder: Path, written: dict[str, Any], **changed: Any) -> Path:
    path = folder / f"sweep-{'-'.join(changed) or 'plain'}.yaml"
    path.write_text(yaml.safe_dump(written | changed))
    return path


@pytest.fixture(scope="module")
def swept(place: Path, written: dict[str, Any]) -> Path:
    run_sweep(file_of(place, written), place / "swept", None)
    return place / "swept"


@pytest.mark.slow
def test_branches_of_a_trunk_are_the_separate_runs_and_cost_what_the_formula_says(
    swept: Path, place: Path, written: dict[str, Any]
) -> None:
    separate = run_sweep(file_of(place, written, runs="separate"), place / "separate", None)
    result = json.loads((swept / "sweep.json").read_text())

    for cell in sorted((swept / "cells").iterdir()):
        alone = place / "separate" / "cells" / cell.name
        assert (cell / "export/model.safetensors").read_bytes() == (alone / "export/model.safetensors").read_bytes()
    assert result["data_sets"] == separate["data_sets"]
    assert (swept / "measurements.jsonl").read_text() == (place / "separate/measurements.jsonl").read_text()
    formula = (0.9 * max(DURATIONS) + 0.1 * sum(DURATIONS)) / sum(DURATIONS)
    assert result["tokens_trained"] / result["tokens_of_separate_runs"] == pytest.approx(formula, rel=0.1)
    assert separate["tokens_trained"] == separate["tokens_of_separate_runs"] == result["tokens_of_separate_runs"]
    steps = [len((cell / "metrics.jsonl").read_text().splitlines()) for cell in (swept / "cells").iterdir()]
    assert steps == [
        len((place / "separate/cells" / cell.name / "metrics.jsonl").read_text().splitlines()) for cell in (swept / "cells").iterdir()
    ]
    assert not (swept / "trunks" / "small-lr0.01-seed17").exists()


def test_finished_cells_are_never_run_again(swept: Path, place: Path, written: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = (swept / "measurements.jsonl").read_bytes()

    def train(*arguments: object) -> None:
        raise AssertionError("a finished cell was run")

    monkeypatch.setattr(loop, "train", train)
    run_sweep(file_of(place, written), swept, None)

    assert (swept / "measurements.jsonl").read_bytes() == before


def test_measurements_are_what_optimal_durations_reads(swept: Path) -> None:
    rows = read(swept / "measurements.jsonl")
    by_metric = [Row(**row) for row in rows.select(Row._fields).to_pylist()]
    best = json.loads((swept / "sweep.json").read_text())["data_sets"]["small"]["best"]

    learned = learn_durations(OptimalDurations(measurements="m.jsonl", metric="target"), ["small"], by_metric)

    assert learned.durations is not None
    assert learned.durations["small"] == pytest.approx(best["duration"], rel=0.1)
    assert learned.censored == ["small"]
    assert {row["group"] for row in rows.to_pylist() if row["metric"].endswith("/prose")} == {"guard"}


def test_target_of_a_cell_that_breaks_a_guard_has_no_value(written: dict[str, Any], tmp_path: Path) -> None:
    sweep = Sweep(**(written | {"guards": {"loss/prose": 0.1}}))
    kept, broken = cells(sweep, lanes(sweep)[0])[:2]
    for cell, prose in ((kept, 4.05), (broken, 4.2)):
        (tmp_path / "cells" / cell.name).mkdir(parents=True)
        blank = Measurement("run", "digest", None, "", "target", 0, None, None, 17, None, None)
        values = {0: {"loss/code": 5.0, "loss/prose": 4.0}, cell.tokens: {"loss/code": 3.0, "loss/prose": prose}}
        rows = [blank._replace(metric=name, tokens=tokens, value=value) for tokens, one in values.items() for name, value in one.items()]
        append(tmp_path / "cells" / cell.name / "measurements.jsonl", rows)

    found = {cell.name: [line for line in lines_of(sweep, cell, tmp_path) if line.metric == "target"] for cell in (kept, broken)}

    assert [line.value for line in found[kept.name]] == [5.0, 3.0]
    assert [line.value for line in found[broken.name]] == [5.0, None]
    guards = [line for line in lines_of(sweep, kept, tmp_path) if line.group == "guard"]
    assert {line.metric for line in guards} == {"loss/prose"}
    assert {(line.run, line.component, line.learning_rate) for line in guards} == {(kept.name, "small", 1e-3)}


def test_what_a_cell_does_may_not_change_in_a_folder(swept: Path, place: Path, written: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"decay: changed since the sweep in .* was begun"):
        run_sweep(file_of(place, written, decay=0.2), swept, None)
    other = place / "other.yaml"
    other.write_text(Path(written["train"]).read_text().replace("batch: 2", "batch: 4"))
    with pytest.raises(UserError, match="train: changed since the sweep"):
        run_sweep(file_of(place, written, train=str(other)), swept, None)


def planned(**changed: Any) -> Sweep:
    values = {"train": "t", "manifests": {"a": "m"}, "learning_rates": [1e-5, 1e-4, 1e-3], "durations": [10, 20], "target": "loss/t"}
    return Sweep(**(values | changed))


def grid(values: dict[tuple[float, int], tuple[float, float]]) -> dict[tuple[float, int], dict[str, float]]:
    return {place: {"loss/t": target, "loss/g": guard} for place, (target, guard) in values.items()}


BEFORE = {"loss/t": 5.0, "loss/g": 4.0}


def test_choice_in_the_middle_of_the_grid_has_no_warning() -> None:
    values = grid({(1e-5, 10): (4.5, 4.0), (1e-4, 10): (3.9, 4.1), (1e-3, 10): (4.2, 4.5), (1e-4, 20): (4.0, 4.2)})

    found = choice(planned(), "a", BEFORE, values)

    assert (found["best"]["learning_rate"], found["best"]["duration"]) == (1e-4, 10)
    assert (found["edge"], found["censored"], found["warnings"]) == (False, False, [])


def test_choice_flags_edges_censoring_ties_and_broken_guards() -> None:
    values = grid({(1e-5, 20): (3.9, 4.0), (1e-4, 20): (3.9, 4.0), (1e-3, 10): (3.0, 6.0)})

    free = choice(planned(), "a", BEFORE, values)
    guarded = choice(planned(guards={"loss/g": 0.5}), "a", BEFORE, values)
    none = choice(planned(guards={"loss/g": 0.0}), "a", BEFORE | {"loss/g": 3.0}, values)

    assert (free["best"]["learning_rate"], free["edge"], free["censored"]) == (1e-3, True, False)
    assert (guarded["best"]["learning_rate"], guarded["edge"], guarded["censored"]) == (1e-5, True, True)  # of equals the lower rate
    assert [cell["keeps_guards"] for cell in guarded["cells"]] == [True, True, False]
    assert any("at the edge of the grid" in warning for warning in guarded["warnings"])
    assert any("still improving at 20 tokens" in warning for warning in guarded["warnings"])
    assert none["best"] is None
    assert "no cell keeps every guard" in none["warnings"][0]


def test_choice_that_is_no_better_than_before_says_so() -> None:
    found = choice(planned(), "a", BEFORE, grid({(1e-4, 10): (5.5, 4.0)}))

    assert "nothing is better in loss/t than before training" in found["warnings"][-1]


def test_sweep_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="share no trunk; write runs: separate"):
        planned(simulate=100)
    with pytest.raises(ValidationError, match="target has nothing for a"):
        planned(target={"b": "loss/t"})
    with pytest.raises(ValidationError, match="a duration is a count of tokens"):
        planned(durations=[0.5])


def test_cells_share_warm_up_and_leave_the_trunk_at_a_step_before_their_decay(written: dict[str, Any], place: Path) -> None:
    share = place / "share.yaml"
    share.write_text(Path(written["train"]).read_text().replace("warmup: 500", "warmup: 0.1"))
    sweep = Sweep(**(written | {"train": str(share)}))

    found = [cell for lane in lanes(sweep) for cell in cells(sweep, lane)]

    assert len(found) == 6
    assert {cell.config.schedule.warmup for cell in found} == {200}
    for cell in found:
        assert cell.tokens >= cell.duration > cell.tokens - 2 * 64 * 2
        assert 0 <= 0.9 * cell.tokens - cell.decay_from < 2 * 64 + 1
    assert [lane.rate for lane in lanes(sweep)] == [1e-3, 1e-2]


def test_simulated_cells_repeat_like_the_long_run(written: dict[str, Any], place: Path) -> None:
    sweep = Sweep(**(written | {"runs": "separate", "simulate": 80_000, "durations": [2000], "learning_rates": [1e-2]}))
    path = place / "simulated.yaml"
    path.write_text(yaml.safe_dump(sweep.model_dump()))

    run_sweep(path, place / "simulated", None)

    rows = read(place / "simulated" / "measurements.jsonl").to_pylist()
    assert max(row["epochs"] or 0 for row in rows) > 5


def records_under(folder: Path) -> set[Path]:
    """The runs' records so far. `os.walk`, since folders vanish while it looks, and `rglob` fails on that."""
    return {Path(inside, "metrics.jsonl") for inside, _, files in os.walk(folder) if "metrics.jsonl" in files}


@pytest.mark.slow
def test_sweep_killed_at_random_resumes_and_ends_with_equal_measurements(swept: Path, place: Path, written: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "train", "sweep", str(file_of(place, written)), "-o", str(place / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    killed = 0
    for attempt in range(3):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 90
        before = records_under(place / "killed")
        while process.poll() is None and time.monotonic() < deadline and not records_under(place / "killed") - before:
            time.sleep(0.02)
        time.sleep(random.Random(attempt).uniform(0.0, 1.5))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert killed, "no attempt was still running when it was to be killed"

    result = CliRunner().invoke(main, ["sweep", str(file_of(place, written)), "-o", str(place / "killed")])

    assert result.exit_code == 0, result.output
    assert (place / "killed/measurements.jsonl").read_text() == (swept / "measurements.jsonl").read_text()
    assert (place / "killed/sweep.json").read_text() == (swept / "sweep.json").read_text()


@pytest.mark.slow
def test_a_lane_that_fails_ends_the_others_at_once_and_they_go_on_when_it_can(swept: Path, place: Path, written: dict[str, Any]) -> None:
    in_the_way = place / "failing/trunks/small-lr0.01-seed17"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    with pytest.raises(OSError, match=r"small-lr0\.01-seed17"):
        run_sweep(file_of(place, written), place / "failing", 2)

    assert not list((place / "failing/cells").glob("*/export"))
    in_the_way.unlink()
    run_sweep(file_of(place, written), place / "failing", 2)
    assert (place / "failing/measurements.jsonl").read_text() == (swept / "measurements.jsonl").read_text()


def test_processes_of_lanes_share_out_the_gpus_that_this_one_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_devices(3, None) == ["0", "1", "2"]
    assert visible_devices(2, "4,GPU-5ebe9f43,") == ["4", "GPU-5ebe9f43"]
    assert visible_devices(0, "") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    free = get_context("spawn").SimpleQueue()
    free.put("7")
    take_device(free)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.slow
def test_sweep_interrupted_on_a_terminal_is_one_sentence_and_its_processes_are_gone(place: Path, written: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "train", "sweep", file_of(place, written), "-o", place / "interrupted", "--jobs", "2"]

    seen = on_terminal(command, columns=120, environment={"CUDA_VISIBLE_DEVICES": ""}, interrupt_at="so far")

    assert seen.code == 130
    assert seen.last == ["interrupted; a run goes on from its newest checkpoint with --start resume, a sweep with the same command"]
    with locked(place / "interrupted"):
        assert not (place / "interrupted" / "sweep.json").exists()
