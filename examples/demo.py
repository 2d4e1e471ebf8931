"""The whole way in miniature, as a user would walk it: raw text, tokenizer, two manifests, a model pre-trained on prose and then taught code.

Every step is a command that is shown before it runs; nothing is done behind its back. All of it happens below `build/demo` and
starts afresh each time, apart from what the builds remember. The last part prints what happened to the loss, whatever that is.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
FOLDER = Path("build/demo")  # below ROOT, where every command runs
# A model this small gains a third from a second thread on an idle machine, and loses half and more on a busy one.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
HEIGHT, WIDTH = 12, 64

PLACES = """
Where it lies, in {folder}:
  corpus/, bpe-4096/   the texts and their tokenizer
  report.html          what was read, kept and dropped, thresholds to try, and the curves of the training: open it in a browser
  demo-base/, demo/    the manifests; `curate inspect {folder}/demo` shows one again
  runs/base, runs/demo metrics, measurements, checkpoints, and in export/ the models as transformers opens them
  work/                what the builds remember of all documents; safe to delete"""

Curve = Sequence[tuple[float, float]]


def main() -> None:
    began = time.monotonic()
    corpus, tokenizer, base, demo, runs = (FOLDER / name for name in ("corpus", "bpe-4096", "demo-base", "demo", "runs"))
    shutil.rmtree(ROOT / runs, ignore_errors=True)

    say("A corpus: what this machine's own Python has to read")
    run("python", "examples/harvest_stdlib.py", corpus)

    say("A tokenizer of that corpus")
    run(
        "python",
        "examples/train_tokenizer.py",
        tokenizer,
        *(corpus / name for name in ("docstrings.jsonl", "descriptions.parquet", "code.jsonl.zst")),
    )

    say("Two manifests: prose to begin with, then code with prose replayed")
    build = ("--work", FOLDER / "work", "--replace")
    run("curate", "build", "data_manifests/demo-base.yaml", "-o", base, *build)
    run("curate", "build", "data_manifests/demo.yaml", "-o", demo, *build)
    run("curate", "verify", demo)

    say("Why one document is not in there")
    run("curate", "why", demo, near_duplicate(ROOT / demo))

    say("A small model, pre-trained on the prose")
    run("python", "-m", "train", "run", base, "examples/demo-base.train.yaml", "-o", runs / "base")

    say("The same model, continually trained on code with replay")
    run("python", "-m", "train", "run", demo, "examples/demo.train.yaml", "-o", runs / "demo")

    say("All of it on one page")
    run("curate", "report", demo, runs / "demo", "-o", FOLDER / "report.html", "--work", FOLDER / "work")

    say("What happened")
    print(outcome(ROOT / runs / "demo"))
    print(PLACES.format(folder=FOLDER))
    print(f"\nIt took {(time.monotonic() - began) / 60:.1f} minutes.")


def say(what: str) -> None:
    print(f"\n== {what}", flush=True)


def run(*words: str | Path) -> None:
    """Shows a command and runs it from the repository's root with this environment's commands on the path; its failure ends the demo."""
    command = [str(word) for word in words]
    print(f"$ {shlex.join(command)}", flush=True)
    environment = os.environ | {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]} | ONE_THREAD
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status:
        sys.exit(status)


def near_duplicate(manifest: Path) -> str:
    """The pool row of the first document that was dropped because it says nearly the same as another one."""
    reasons = pq.read_table(manifest / "pool", columns=["row", "reason"])
    return str(next(row["row"] for row in reasons.to_pylist() if row["reason"] == "duplicate_of IS NULL"))


def outcome(run_folder: Path) -> str:
    lines = [json.loads(line) for line in (run_folder / "measurements.jsonl").read_text(encoding="utf-8").splitlines()]
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line["metric"].startswith("loss/"):
            curves.setdefault(line["metric"].partition("/")[2], []).append((line["tokens"], line["value"]))
    table = [f"{'hold-out loss, nats a token':30}{'before':>8}{'after':>8}{'change':>9}{'highest':>9}"]
    for name, curve in curves.items():
        first, last, highest = curve[0][1], curve[-1][1], max(value for _, value in curve)
        table.append(f"{name:30}{first:8.3f}{last:8.3f}{last - first:+9.3f}{highest:9.3f}")
    return "\n".join([*table, "", chart(curves)])


def chart(curves: Mapping[str, Curve], height: int = HEIGHT, width: int = WIDTH) -> str:
    """Curves over one axis in characters: each curve is drawn with its own letter, straight between its points."""
    values = [value for curve in curves.values() for _, value in curve]
    low, high = min(values), max(values)
    last = max(place for curve in curves.values() for place, _ in curve)
    cells = [[" "] * width for _ in range(height)]
    for letter, curve in zip("abcdefghijklmnopqrstuvwxyz", curves.values(), strict=False):
        for column in range(width):
            value = between(curve, last * column / (width - 1))
            if value is not None:
                cells[round((high - value) / ((high - low) or 1) * (height - 1))][column] = letter
    levels = [high - (high - low) * row / (height - 1) for row in range(height)]
    drawing = [f"{level:7.2f} |{''.join(row).rstrip()}" for level, row in zip(levels, cells, strict=True)]
    legend = "   ".join(f"{letter} {name}" for letter, name in zip("abcdefghijklmnopqrstuvwxyz", curves, strict=False))
    axis = f"{'':8}+{'-' * width}\n{'':9}0{f'{last:,.0f} tokens':>{width - 1}}"
    return "\n".join([*drawing, axis, f"{'':9}{legend}"])


def between(curve: Curve, place: float) -> float | None:
    """The curve's value at `place`, straight between its points; None outside them."""
    for (left, value), (right, after) in itertools.pairwise(curve):
        if left <= place <= right:
            return value + (after - value) * (place - left) / ((right - left) or 1)
    return None


if __name__ == "__main__":
    main()
