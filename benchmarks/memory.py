"""How much memory does a build take, and does it grow with the corpus?

    python benchmarks/memory.py OUT TOKENIZER --gb 0.5 --gb 1 --memory 2 CORPUS.parquet…

For each size a corpus is resampled at word level from the given files: every text is a run of words from one of theirs, with one word in six replaced by a word drawn
from anywhere, so that hardly any two are near-duplicates. It is built once from an empty work directory with `curate build --memory`, and the memory of the whole process tree is
read four times a second from /proc/*/smaps_rollup: the proportional set size, and its anonymous part, which leaves out pages of files that the kernel can drop at any
time. Prints a table, with the phase of each peak from the build's log, and what share of the documents survived deduplication.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq

CURATE = [sys.executable, "-c", "from curation.cli import main; main(prog_name='curate')"]
RECIPE = """
name: memory
seed: 17
tokenizer: {{path: {tokenizer}, eos: false}}
sources:
  books: {{files: "corpus/*.jsonl", key: id}}
steps:
  - add: {{copy_of: {{kind: exact}}}}
  - keep: copy_of IS NULL
  - add: {{duplicate_of: {{kind: minhash, threshold: 0.8}}}}
  - keep: duplicate_of IS NULL
  - add: {{words: {{kind: heuristics, set: gopher}}}}
  - keep: words.words >= 20
holdout: {{documents: 500}}
mixture:
  sequence_length: 2048
  components: {{all: "true"}}
  max_epochs: {{all: 1}}
  stages: [{{name: adapt, tokens: {tokens}, weights: {{all: 1}}}}]
"""


def words_of(files: tuple[Path, ...]) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """The words of some Parquet files, one after the other; 5 million at most."""
    found: list[str] = []
    for path in files:
        for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
            found += text.split()
            if len(found) > 5_000_000:
                break
    return np.array(found, object)


def resample(words: np.ndarray[tuple[int], np.dtype[np.object_]], folder: Path, size: int, seed: int = 17) -> None:
    """JSON Lines of `size` bytes in files of 256 MB; one document in twenty is a near-copy of the one before it."""
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    written = number = 0
    text: list[str] = []
    while written < size:
        with (folder / f"part-{number:03}.jsonl").open("w", encoding="utf-8") as out:
            while written < size and out.tell() < 256_000_000:
                if chance.random() < 0.05 and text:
                    text = [*text[:-1], "again"]
                else:
                    length = int(chance.lognormal(5.7, 0.6)) + 30
                    first = int(chance.integers(0, len(words) - length))
                    text = words[first : first + length].tolist()
                    for place, other in zip(
                        chance.integers(0, length, length // 6), chance.integers(0, len(words), length // 6), strict=True
                    ):
                        text[place] = words[other]
                written += out.write(json.dumps({"id": f"{number}-{written}", "text": " ".join(text)}, ensure_ascii=False) + "\n")
        number += 1


def tree(root: int) -> list[int]:
    """The processes under `root`, itself included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def rollup(process: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def build(recipe: Path, folder: Path, memory: float, workers: int) -> tuple[float, float, float, float]:
    """(seconds, peak PSS, peak anonymous PSS, peak of one process's anonymous PSS)."""
    command = [*CURATE, "build", str(recipe), "-o", str(folder / "manifest"), "--work", str(folder / "work")]
    process = subprocess.Popen([*command, "--workers", str(workers), "--memory", str(memory)], stdout=subprocess.DEVNULL)
    began, peaks = time.monotonic(), [0, 0, 0]
    while process.poll() is None:
        seen = [one for one in map(rollup, tree(process.pid)) if one]
        now = [sum(one["Pss"] for one in seen), sum(one["Pss_Anon"] for one in seen), max((one["Pss_Anon"] for one in seen), default=0)]
        peaks = [max(old, new) for old, new in zip(peaks, now, strict=True)]
        time.sleep(0.25)
    if process.returncode:
        sys.exit(f"the build failed: {process.returncode}")
    return time.monotonic() - began, *(peak / 1e9 for peak in peaks)


def phases(folder: Path) -> list[dict[str, object]]:
    log = max((folder / "work" / "log").glob("*.jsonl"))
    return [entry for entry in map(json.loads, log.read_text().splitlines()) if entry["event"] == "phase"]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("tokenizer", type=click.Path(exists=True, path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--gb", "sizes", multiple=True, type=float, default=(0.5, 1.0))
@click.option("--memory", default=2.0, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(out: Path, tokenizer: Path, files: tuple[Path, ...], sizes: tuple[float, ...], memory: float, workers: int) -> None:
    words = words_of(files)
    for size in sizes:
        folder = out / f"{size:g}"
        shutil.rmtree(folder, ignore_errors=True)
        resample(words, folder / "corpus", int(size * 1e9))
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(tokenizer=tokenizer.absolute(), tokens=int(size * 1e8)))
        seconds, total, anonymous, one = build(recipe, folder, memory, workers)
        source = json.loads((folder / "manifest" / "manifest.json").read_text())["sources"]["books"]
        print(
            f"| {size:g} GB | {source['read']:,} | {source['kept'] / source['read']:.1%} | {seconds:,.0f} s | {total:.2f} GB | {anonymous:.2f} GB | {one:.2f} GB |",
            flush=True,
        )
        for entry in phases(folder):
            print(
                f"    {entry['phase']:<32} {entry['tasks']:>5} {entry['seconds']:>8} s {float(str(entry['peak_memory'])) / 1e6:>8,.0f} MB",
                flush=True,
            )
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
