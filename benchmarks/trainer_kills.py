"""Kill a training run at random instants, also while it saves, resume it until it ends, and compare its parameters with those of a run left alone.

    python benchmarks/trainer_kills.py data_manifests/docs-v1 --kills 50

The model has 2 layers and a checkpoint is saved after every step, so that most kills fall into a save. Each run is a process forked from one that has imported everything;
it is killed with SIGKILL at an instant drawn evenly from the time that an undisturbed run takes, and resumed until it ends; then a new run begins. Prints where the kills
fell and what the runs ended with; exits 1 if a run cannot be resumed, or ends with other parameters or losses.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import click

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["train.loop"])


def follow(manifest: Path, run: Path, batch: int) -> None:
    """One process of a run, from the start or from what is left of it."""
    import torch

    from mixing import validated
    from train.config import Config
    from train.loop import train

    torch.set_num_threads(1)
    architecture = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    values = {
        "model": {"config": architecture},
        "batch": batch,
        "optimizer": {"learning_rate": 0.01},
        "ema": 0.2,
        "evaluate": {"every": 0.5},
        "checkpoint": {"every": 1, "keep": 2},
    }
    train(manifest, validated(Config, values), "resume" if (run / "config.yaml").exists() else None, run)


def result(run: Path) -> str:
    """A digest of the exported parameters and of the loss of every step."""
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return hashlib.sha256((run / "export/model.safetensors").read_bytes() + json.dumps(losses).encode()).hexdigest()


def place(run: Path, recorded: int) -> str:
    """What a run was doing when it was killed, by what it left."""
    if any((run / "checkpoints").glob("*.incomplete")):
        return "while a checkpoint was written"
    if (run / "export.incomplete").exists():
        return "while the export was written"
    metrics = run / "metrics.jsonl"
    return "between saves" if metrics.exists() and metrics.stat().st_size > recorded else "before its first step"


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, exists=True))
@click.option("--kills", type=int, default=50)
@click.option("--batch", type=int, default=8)
@click.option("--seed", type=int, default=0)
def main(manifest: Path, kills: int, batch: int, seed: int) -> None:
    """Kills runs of MANIFEST."""
    draw = random.Random(seed)
    places: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:

        def start(run: Path) -> BaseProcess:
            process = FORKS.Process(target=follow, args=(manifest, run, batch))
            process.start()
            return process

        for warm in ("warm", "alone"):  # the first one also starts the server
            began = time.monotonic()
            process = start(Path(scratch, warm))
            process.join()
            span = time.monotonic() - began
        expected = result(Path(scratch, "alone"))
        print(f"undisturbed: {span:.1f} s, {len((Path(scratch, 'alone') / 'metrics.jsonl').read_text().splitlines())} steps", flush=True)
        run = Path(scratch, "alone")
        while places.total() < kills or not (run / "export").exists():
            if (run / "export").exists():
                run = Path(scratch, f"run-{ends.total()}")
            metrics = run / "metrics.jsonl"
            recorded = metrics.stat().st_size if metrics.exists() else 0
            process = start(run)
            process.join(draw.uniform(0, span) if places.total() < kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                places[place(run, recorded)] += 1
            elif process.exitcode != 0:
                raise SystemExit(f"a run could not be resumed (exit code {process.exitcode}) after {places.total()} kills")
            if (run / "export").exists():
                ends["the same parameters and losses" if result(run) == expected else "OTHERS"] += 1
    for counted in (places, ends):
        print(f"{counted.total()}: " + ", ".join(f"{count} {name}" for name, count in counted.most_common()))
    raise SystemExit("OTHERS" in ends)


if __name__ == "__main__":
    main()
