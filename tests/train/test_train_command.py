"""The commands in processes of their own: help, refusals, kills, and two processes against one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mixing import validated
from train.__main__ import main
from train.config import Config
from train.loop import train

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TRAIN = [sys.executable, "-W", "error", "-m", "train", "run"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> bytes:
    return (run / "export/model.safetensors").read_bytes()


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\nfrom train.__main__ import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)

    assert result.returncode == 0, result.stderr
    assert "--start [fresh|weights|weights-optimizer|continue|resume]" in result.stdout


@pytest.mark.parametrize(("arguments", "code"), [(["run", "--help"], 0), (["run"], 2)])
def test_process_of_torchrun_ends_without_taking_the_interpreter_down(arguments: list[str], code: int, tmp_path: Path) -> None:
    mark = tmp_path / "taken-down"
    script = f"import atexit, sys\nfrom train.__main__ import program\natexit.register(open, {str(mark)!r}, 'w')\nsys.argv[1:] = {arguments}\nprogram()"

    for environment in (ENVIRONMENT, ENVIRONMENT | {"RANK": "0"}):
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60, check=False)

        assert result.returncode == code
        assert (result.stdout + result.stderr).rstrip()
        assert mark.exists() == ("RANK" not in environment)
        mark.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{manifest}", "{config}", "optimzer.clip=1"],
            "optimzer: unknown key 'optimzer', perhaps 'optimizer'; accepted here: batch, checkpoint",
        ),
        (
            ["{manifest}", "{config}", "model.config.vocab_size=100"],
            "model: 100 embedding rows, the manifest's tokenizer small has 256 tokens",
        ),
        (
            ["{manifest}", "{config}", "batch=9", "micro_batch=2"],
            "batch: 9 sequences cannot be dealt to 1 process(es) in micro-batches of 2",
        ),
        (["{manifest}", "{config}", "--start", "weights"], "--start weights: model.config has no weights"),
        (["{manifest}", "{config}", "--start", "resume"], "no run to resume"),
        (["{manifest}", "no.yaml"], "no.yaml: cannot be read"),
        (["no/manifest", "{config}"], "a manifest is a folder with manifest.json"),
        (["{broken}", "{config}"], "bytes, files.json says"),
    ],
)
def test_run_that_cannot_work_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, manifest_folder: Path, config_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(manifest_folder, broken)
    with (broken / "plan/adapt.arrow").open("ab") as file:
        file.write(b"0")
    places = {"manifest": manifest_folder, "config": config_file, "broken": broken}

    result = CliRunner().invoke(main, ["run", *(part.format(**places) for part in arguments), "-o", str(tmp_path / "run")])

    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def killed_after(arguments: list[str], seconds: float, run: Path) -> bool:
    """Starts a run and kills it with SIGKILL some time after its first step was recorded; whether it was still running."""
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    recorded = run / "metrics.jsonl"
    before = recorded.stat().st_mtime_ns if recorded.exists() else 0
    while (
        time.monotonic() < deadline
        and process.poll() is None
        and not (recorded.exists() and recorded.stat().st_mtime_ns > before and losses(run))
    ):
        time.sleep(0.01)
    time.sleep(seconds)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert running or process.returncode == 0, errors.decode()
    return running


@pytest.mark.slow
def test_run_killed_and_resumed_ends_with_the_same_bits(
    manifest_folder: Path, config_file: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*TRAIN, str(manifest_folder), str(config_file), "checkpoint.every=1", "-o", str(run)]

    killed = killed_after(arguments, 0.05, run)
    assert killed, "the run was over before it could be killed"
    assert not (run / "export").exists()
    result = subprocess.run([*arguments, "--start", "resume"], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{run}\n"

    whole = train(manifest_folder, validated(Config, settings), "fresh", tmp_path / "whole")
    assert weights(run) == weights(whole)
    assert losses(run) == losses(whole)


@pytest.mark.slow
def test_run_told_to_stop_saves_a_checkpoint_and_exits_with_75(
    manifest_folder: Path, config_file: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """By SIGTERM and by the time limit; the rest of the run ends with the same bits as one that was left alone."""
    run = tmp_path / "run"
    small_steps = ["batch=1", "checkpoint.every=1M"]  # many, so that there is time to tell it
    arguments = [*TRAIN, str(manifest_folder), str(config_file), *small_steps, "-o", str(run)]
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.terminate()
    printed, errors = process.communicate(timeout=90)
    assert (process.returncode, printed) == (75, ""), errors
    (saved,) = (run / "checkpoints").iterdir()
    told = losses(run)
    assert f"stopped after step {saved.name[5:]}, " in errors.splitlines()[-1]
    assert errors.splitlines()[-1].endswith("go on with --start resume")
    assert len(told) == int(saved.name[5:])

    again = [*arguments, "--start", "resume", "time_limit=0.01s"]
    limited = subprocess.run(again, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert limited.returncode == 75, limited.stderr
    assert len(told) < len(losses(run)) <= len(told) + 3  # the flag travels with a step, and its record is read when the next was launched
    result = subprocess.run([*again[:-1], "time_limit=1h"], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr

    whole = train(manifest_folder, validated(Config, settings | {"batch": 1}), "fresh", tmp_path / "whole")
    assert weights(run) == weights(whole)
    assert losses(run) == losses(whole)


MEMORY = """
import resource, sys
import train.loop
from train.__main__ import main
with open("/proc/self/status") as file:
    used = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 800_000_000,) * 2)  # what threads reserve for themselves is counted, too; a step takes 2 GB
main(["run", *sys.argv[1:]])
"""


def test_step_that_memory_does_not_hold_names_what_to_change(manifest_folder: Path, config_file: Path, tmp_path: Path) -> None:
    wide = ["model.config.intermediate_size=60000", "batch=128"]
    command = [sys.executable, "-c", MEMORY, str(manifest_folder), str(config_file), *wide, "-o", str(tmp_path / "run")]

    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)

    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: out of memory: ")
    assert "use a smaller micro_batch" in line


TWO_PROCESSES = """
import json, shutil, sys
from pathlib import Path
import torch
from mixing import validated
from train.config import Config
from train.loop import train
from train.model import joined_world
torch.set_num_threads(1)
manifest, folder, values = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
config = validated(Config, values)
with joined_world() as world:
    first = train(manifest, config, "fresh", folder / "two")
    again = folder / "again"
    if world.rank == 0:
        shutil.copytree(first, again, ignore=shutil.ignore_patterns("export"))
        for later in sorted((again / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))[2:]:
            shutil.rmtree(later)
    world.meet()
    train(manifest, config, "resume", again)
"""


@pytest.mark.slow
def test_two_processes_agree_with_one_and_resume_bit_for_bit(manifest_folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    values = settings | {"micro_batch": 2, "checkpoint": {"every": 2000, "keep": 100}}
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [*TORCHRUN, str(script), str(manifest_folder), str(tmp_path), json.dumps(values)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stderr[-3000:]

    one = train(manifest_folder, validated(Config, values), "fresh", tmp_path / "one")

    assert len(losses(one)) >= 20
    assert losses(tmp_path / "two")[:20] == pytest.approx(losses(one)[:20], rel=1e-6)
    assert weights(tmp_path / "again") == weights(tmp_path / "two")
    assert losses(tmp_path / "again") == losses(tmp_path / "two")
    shards = [path.name for path in (tmp_path / "two/checkpoints").glob("step-*/*.safetensors")]
    assert {name[:11] for name in shards} == {"shard-00001", "shard-00002"}

    # and a run of two processes goes on in one
    on_one = tmp_path / "on_one"
    shutil.copytree(tmp_path / "again", on_one, ignore=shutil.ignore_patterns("export"))
    for later in sorted((on_one / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))[2:]:
        shutil.rmtree(later)
    train(manifest_folder, validated(Config, values), "resume", on_one)
    assert losses(on_one) == pytest.approx(losses(one), rel=1e-5)


def test_export_command_writes_the_folder_it_names(manifest_folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    run = train(manifest_folder, validated(Config, settings), None, tmp_path / "run")

    result = CliRunner().invoke(main, ["export", str(run), "-o", str(tmp_path / "out/exported")])

    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{tmp_path}/out/exported\n"
    assert (tmp_path / "out/exported/model.safetensors").read_bytes() == weights(run)
    refused = CliRunner().invoke(main, ["export", str(tmp_path), "-o", str(tmp_path / "other")])
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_configuration_of_a_run_repeats_it(manifest_folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    first = train(manifest_folder, validated(Config, settings), None, tmp_path / "first")
    assert yaml.safe_load((first / "config.yaml").read_text())["manifest"]["name"] == "small"

    result = CliRunner().invoke(
        main, ["run", str(manifest_folder / "manifest.json"), str(first / "config.yaml"), "-o", str(tmp_path / "second")]
    )

    assert result.exit_code == 0, result.stderr
    assert weights(tmp_path / "second") == weights(first)
