"""The whole loop in miniature: two small data sets are characterised one by one, and what was learned decides the mixture that a model is trained on.

    python examples/loop.py [FOLDER]

A corpus made on the spot (this machine's own Python: prose, code; and worded sums), a base model of prose, then: sweep (learning rates by durations by
data sets), what each data set helps and hurts, the mixture by optimal durations with prose replayed, training, a soup with the base, the mixtures that
merging the two data sets' models predicts, and one page with all of it. Every step is a command that is shown before it runs. It took 16 minutes
on two cores that sixteen other processes shared; less when they are idle.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
RATES = [5e-4, 1.5e-3, 5e-3]
DURATIONS = [10_000, 20_000, 40_000]
BASE_TOKENS, MIXTURE_TOKENS = 250_000, 100_000
MODEL = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def main() -> None:
    began = time.monotonic()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "loop").resolve()
    corpus, tokenizer = folder / "corpus", folder / "bpe-2048"
    shutil.rmtree(folder / "runs", ignore_errors=True)

    say("A corpus of prose, code and worded sums, and its tokenizer")
    run("python", ROOT / "examples/harvest_stdlib.py", corpus)
    write_sums(corpus / "sums.jsonl")
    texts = [corpus / name for name in ("docstrings.jsonl", "descriptions.parquet", "code.jsonl.zst", "sums.jsonl")]
    run("python", ROOT / "examples/train_tokenizer.py", tokenizer, *texts, "--entries", "2048", "--megabytes", "1")

    say("Three manifests: prose for the base, and each data set alone; all hold out the same texts of all three")
    for name, tokens in (("prose", BASE_TOKENS), ("code", 50_000), ("sums", 50_000)):
        build(folder, corpus, name, {name: 1}, tokens)

    say("A base model that has read prose")
    base_config = config({"config": MODEL}, 2e-3) | {
        "schedule": {"kind": "wsd", "warmup": 0.03, "decay": 0.4},
        "evaluate": {"first": None, "every": 0.5},
    }
    train(folder, "prose", base_config)
    base = folder / "runs/prose/export"

    say("Sweep: every learning rate and duration on each data set, prose as the guard")
    write(folder / "sweep-train.yaml", config({"path": str(base)}, 1e-3) | {"evaluate": {"guards": ["prose"]}})
    sweep = {
        "train": str(folder / "sweep-train.yaml"),
        "manifests": {name: str(folder / name) for name in ("code", "sums")},
        "learning_rates": RATES,
        "durations": DURATIONS,
        "target": {"code": "loss/code", "sums": "loss/sums"},
        "guards": {"loss/prose": 1.0},
    }
    write(folder / "sweep.yaml", sweep)
    run("python", "-m", "train", "sweep", folder / "sweep.yaml", "-o", folder / "runs/sweep")
    run("python", "-m", "train", "characterise", folder / "runs/sweep", "--parameters", "530000", "--base-tokens", str(BASE_TOKENS))

    say("The mixture: each data set in proportion to its optimal duration, and a fifth of prose")
    durations = {
        "strategy": "optimal_durations",
        "measurements": "sweep:runs/sweep/measurements.jsonl",
        "metric": "target",
        "components": ["code", "sums"],
    }
    weights = {"strategy": "replay", "share": 0.2, "replay": {"prose": 1}, "rest": durations}
    build(folder, corpus, "mixture", weights, MIXTURE_TOKENS, ("--root", f"sweep={folder}"))
    run("curate", "inspect", folder / "mixture")
    best = {name: found["best"] for name, found in json.loads((folder / "runs/sweep/sweep.json").read_text())["data_sets"].items()}
    rate = min(one["learning_rate"] for one in best.values() if one)
    mixture = config({"path": str(base)}, rate) | {"evaluate": {"every": 0.1, "first": 0.01, "guards": ["prose"]}}
    train(folder, "mixture", mixture)

    say("A soup of base and result, chosen under a guard")
    judged: list[str | Path] = ["-m", folder / "mixture", "--target", "loss/code", "--guard", "loss/prose=0.1"]
    models = [f"base={base}", f"mixture={folder / 'runs/mixture/export'}"]
    run("python", "-m", "train", "soup", *models, "--grid", "8", *judged, "-o", folder / "runs/soup")

    say("Mixtures predicted by merging the models of the sweep, before any is trained")
    cells = folder / "runs/sweep/cells"
    longest = {name: cells / f"{name}-lr{one['learning_rate']:g}-seed17-{one['duration']}" for name, one in best.items() if one}
    parts = [f"{name}={cell / 'export'}" for name, cell in longest.items()]
    predicted: list[str | Path] = ["-m", folder / "mixture", "--target", "loss/code", "--guard", "loss/sums=10"]
    run("python", "-m", "train", "soup", *parts, "--grid", "4", *predicted, "-o", folder / "runs/predicted")

    say("One page")
    shown = [folder / "runs" / name for name in ("mixture", "sweep", "soup", "predicted")]
    run("python", "-m", "train", "updates", base, folder / "runs/mixture/export", folder / "runs/soup")
    run("python", "-m", "train", "report", *shown, *longest.values(), "-o", folder / "report.html", "--figures", folder / "figures")
    print(f"\nIt took {(time.monotonic() - began) / 60:.1f} minutes. The page: {folder / 'report.html'}")


def say(what: str) -> None:
    print(f"\n== {what}", flush=True)


def run(*words: str | Path) -> None:
    """Shows a command and runs it from the repository's root; its failure ends the loop."""
    command = [str(word) for word in words]
    print(f"$ {shlex.join(command)}", flush=True)
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    status = subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": path} | ONE_THREAD, check=False).returncode
    if status:
        sys.exit(status)


def write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def config(model: dict[str, Any], rate: float) -> dict[str, Any]:
    return {
        "model": model,
        "batch": 4,
        "optimizer": {"learning_rate": rate},
        "schedule": {"kind": "cosine", "warmup": 0.05},
        "checkpoint": {"every": 0.5, "keep": 1},
    }


def build(folder: Path, corpus: Path, name: str, weights: dict[str, Any], tokens: int, options: tuple[str, ...] = ()) -> None:
    """A recipe over the three sources and its manifest; the hold-out depends on sources and seed, so it is the same in all."""
    components = {part: f"source = '{part}'" for part in ("prose", "code", "sums")}
    used = components if name == "mixture" else {name: components[name]}
    recipe = {
        "name": f"loop-{name}",
        "version": 1,
        "seed": 17,
        "tokenizer": {"path": str(folder / "bpe-2048")},
        "sources": {
            "prose": {"files": [str(corpus / "docstrings.jsonl"), str(corpus / "descriptions.parquet")]},
            "code": {"files": str(corpus / "code.jsonl.zst")},
            "sums": {"files": str(corpus / "sums.jsonl")},
        },
        "steps": [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}],
        "holdout": {"documents": 8},
        "mixture": {
            "sequence_length": 256,
            "components": used,
            "max_epochs": dict.fromkeys(used, 4),
            "stages": [{"name": "train", "tokens": tokens, "weights": weights}],
        },
    }
    write(folder / f"{name}.yaml", recipe)
    run("curate", "build", folder / f"{name}.yaml", "-o", folder / name, "--work", folder / "work", "--replace", *options)


def train(folder: Path, name: str, values: dict[str, Any]) -> None:
    write(folder / f"{name}-train.yaml", values)
    run("python", "-m", "train", "run", folder / name, folder / f"{name}-train.yaml", "-o", folder / "runs" / name)


def write_sums(file: Path, documents: int = 1500) -> None:
    """Additions and subtractions in words, twelve a document."""
    drawn = random.Random(17)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(documents):
            lines = []
            for _ in range(12):
                a, b = drawn.randint(0, 99), drawn.randint(0, 99)
                a, b = max(a, b), min(a, b)
                lines.append(
                    f"{spelled(a)} plus {spelled(b)} is {spelled(a + b)}."
                    if drawn.random() < 0.5
                    else f"{spelled(a)} minus {spelled(b)} is {spelled(a - b)}."
                )
            out.write(json.dumps({"text": "\n".join(lines)}) + "\n")


def spelled(number: int) -> str:
    if number >= 100:
        return "one hundred" + (f" and {spelled(number - 100)}" if number > 100 else "")
    if number < 20:
        return WORDS[number]
    return TENS[number // 10] + (f"-{WORDS[number % 10]}" if number % 10 else "")


if __name__ == "__main__":
    main()
