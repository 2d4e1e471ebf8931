"""How long does planning take, how much memory, and how large is the plan, by the size of the corpus?

    python benchmarks/mixture_scale.py TOKENIZER COMPONENT… [--tokens 1e9 --tokens 1e10]

Components as for `mixture.py`. Each gets one and a tenth times the tokens its weight asks for, in documents whose token counts are drawn from those of its files;
content hashes are random. One stage takes the whole budget. Every run has a process of its own, whose peak resident memory is read when the plan is made and again
with the documents alone. A plan's bytes are those of its Arrow columns on disk: 18 a span and 10 a sequence.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from mixture import Component, component_of, encoded

from mixing import validated
from mixing.draws import Documents
from mixing.plan import Mixture, plan

SPAN, SEQUENCE = 18, 10  # bytes of plan/<stage>.spans.arrow a span, of plan/<stage>.arrow a sequence


def resampled(lengths: list[list[int]], weights: list[float], tokens: float, seed: int = 17) -> Documents:
    """Documents of every component, enough for 1.1 times its share of `tokens`."""
    chance = np.random.default_rng(seed)
    parts = []
    for known, weight in zip(lengths, weights, strict=True):
        counts = np.array(known, np.int64)
        parts.append(counts[chance.integers(0, len(counts), int(1.1 * weight * tokens / counts.mean()) + 1)])
    component = np.repeat(np.arange(len(parts), dtype=np.uint16), [len(part) for part in parts])
    count = len(component)
    content = chance.integers(0, 2**64, (count, 2), np.uint64)
    return Documents(np.arange(count, dtype=np.uint64), content, component, np.concatenate(parts))


def peak() -> float:
    """Gigabytes, the largest resident set of this process so far; what `getrusage` says may be the parent's."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def one_run(file: Path, tokens: float, length: int) -> None:
    """Plans once and prints a row of the table; the parent's child."""
    task = json.loads(file.read_text())
    weights = task["weights"]
    names = [f"c{k}" for k in range(len(weights))]
    warm = resampled(task["lengths"], weights, 4e6)
    plan(mixture(names, weights, length, int(1e6)), warm, 1)  # compiled before the clock starts
    idle = peak()
    documents = resampled(task["lengths"], weights, tokens)
    held = sum(column.nbytes for column in documents[:4]) / 1e9
    before = peak()
    began, cpu = time.monotonic(), time.process_time()
    made = plan(mixture(names, weights, length, int(tokens)), documents, 1)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    spans, sequences = sum(len(stage.document) for stage in made.stages), sum(len(stage.component) for stage in made.stages)
    size = SPAN * spans + SEQUENCE * sequences
    print(
        f"| {tokens:.0e} | {length} | {len(documents.tokens) / 1e6:.1f} M | {spans / 1e6:.1f} M | {seconds:.1f} s ({cpu:.1f} s) | {spans / seconds * 60 / 1e6:.0f} M "
        f"| {idle:.2f} / {held:.2f} / {before:.2f} / {peak():.2f} GB | {size / 1e9:.2f} GB | {size / tokens:.4f} |"
    )


def mixture(names: list[str], weights: list[float], length: int, tokens: int) -> Mixture:
    stage = {"name": "adapt", "tokens": tokens, "weights": dict(zip(names, weights, strict=True))}
    return validated(Mixture, {"sequence_length": length, "components": dict.fromkeys(names, "true"), "stages": [stage]}, "mixture")


@click.command()
@click.argument("tokenizer", type=click.Path(exists=True, path_type=Path))
@click.argument("written", nargs=-1, required=True, metavar="COMPONENT…")
@click.option("--text", "column", default="text", show_default=True, help="The column that holds the text.")
@click.option("--tokens", "sizes", type=float, multiple=True, default=(1e9,), show_default=True)
@click.option("--length", "lengths", type=int, multiple=True, default=(8192,), show_default=True)
@click.option("--runs", default=3, show_default=True)
def main(tokenizer: Path, written: tuple[str, ...], column: str, sizes: tuple[float, ...], lengths: tuple[int, ...], runs: int) -> None:
    components: list[Component] = [component_of(one) for one in written]
    documents, _ = encoded(tokenizer, components, column)
    total = sum(component.weight for component in components)
    counts = [documents.tokens[(documents.component == k) & (documents.tokens > 0)].tolist() for k in range(len(components))]
    print(
        "| tokens | length | documents | spans | planning, wall (CPU) | spans a minute | memory: idle / documents / before / peak | plan | bytes a token |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        task = Path(scratch) / "task.json"
        task.write_text(json.dumps({"weights": [component.weight / total for component in components], "lengths": counts}))
        for size in sizes:
            for length in lengths:
                for _ in range(runs):
                    subprocess.run([sys.executable, __file__, "--one", str(task), str(size), str(length)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one_run(Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
