"""How long does a whole build take, where does the time go, and how much memory, beside datatrove doing the same work on a part of it? `build.md` has the answers.

    python benchmarks/build.py corpus OUT books=books_en/*.parquet wiki=wiki_en/*.parquet … --gb 0.5
    python benchmarks/build.py whole OUT TOKENIZER.json EVALS [--peer PEER/bin/python] [--part 5]
    python benchmarks/build.py thresholds OUT TOKENIZER.json EVALS [--builds 20]

`corpus` resamples texts with their lines: each is a run of words of a real one, with one word in six replaced by a word of the same source, and one in twenty is a near-copy of the one before it. `whole` reads,
cleans, removes copies and near-copies, computes every heuristic, language, a classifier, a perplexity and contamination, counts tokens and plans; `thresholds` changes a rule before each of many builds.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import orjson
from dedup_accuracy import read_texts
from memory import rollup, tree

CURATE = [sys.executable, "-c", "from curation.cli import main; main(prog_name='curate')"]
WORD = re.compile(r"\S+\s*")
OUT = click.argument("out", type=click.Path(path_type=Path))
TOKENIZER = click.argument("tokenizer", type=click.Path(exists=True, path_type=Path))
EVALS = click.argument("evals", type=click.Path(exists=True, path_type=Path))


class Watched(NamedTuple):
    """One command: wall and CPU seconds, and the largest proportional and anonymous sets of its process tree in GB."""

    seconds: float
    cpu: float
    resident: float
    anonymous: float
    output: str


def watch(command: list[str]) -> Watched:
    """Runs a command to its end, reading its memory four times a second."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=output, stderr=said, text=True)
        resident = anonymous = 0.0
        while process.poll() is None:
            seen = [one for one in map(rollup, tree(process.pid)) if one]
            resident = max(resident, sum(one["Pss"] for one in seen) / 1e9)
            anonymous = max(anonymous, sum(one["Pss_Anon"] for one in seen) / 1e9)
            time.sleep(0.25)
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        output.seek(0)
        said.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed: {said.read()[-2000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Watched(seconds, cpu, resident, anonymous, output.read())


def resample(texts: list[str], folder: Path, size: int, seed: int) -> int:
    """JSON Lines of `size` bytes in files of 64 MB; returns the number of documents."""
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    words = [WORD.findall(text) for text in texts]
    words = [one for one in words if len(one) >= 8]
    bare = np.array([word.rstrip() for one in words for word in one], object)
    written = file = documents = 0
    before = ""
    while written < size:
        with (folder / f"part-{file:03}.jsonl").open("wb") as out:
            while written < size and out.tell() < 64_000_000:
                one = words[int(chance.integers(len(words)))]
                if chance.random() < 0.05 and before:
                    text = before + " Again."
                else:
                    first = int(chance.integers(max(1, len(one) // 4)))
                    chosen = list(one[first : first + 3000])
                    for place, other in zip(
                        chance.integers(0, len(chosen), len(chosen) // 6), chance.integers(0, len(bare), len(chosen) // 6), strict=True
                    ):
                        word = chosen[place]
                        chosen[place] = bare[other] + word[len(word.rstrip()) :]
                    text = before = "".join(chosen)
                line = orjson.dumps({"id": f"{folder.name}-{documents}", "text": text}) + b"\n"
                documents += 1
                written += out.write(line)
        file += 1
    return documents


@click.group()
def main() -> None:
    pass


@main.command()
@OUT
@click.argument("sources", nargs=-1, required=True, metavar="NAME=GLOB,…")
@click.option("--gb", default=0.5, show_default=True)
@click.option(
    "--domain", default="medical", show_default=True, help="The source whose texts are good examples; those of the others are bad ones."
)
def corpus(out: Path, sources: tuple[str, ...], gb: float, domain: str) -> None:
    texts = {}
    for written in sources:
        name, _, globs = written.partition("=")
        texts[name] = [
            text for pattern in globs.split(",") for path in sorted(glob(pattern)) for text in read_texts(Path(path), "text").to_pylist()
        ]
    shutil.rmtree(out, ignore_errors=True)
    (out / "references").mkdir(parents=True)
    chance = np.random.default_rng(3)
    chosen = {name: [one[i] for i in chance.permutation(len(one))[:1000]] for name, one in texts.items()}
    for label, names in (("positive", [domain]), ("negative", [name for name in texts if name != domain])):
        lines = [orjson.dumps({"text": text}) + b"\n" for name in names for text in chosen[name]]
        (out / "references" / f"{label}.jsonl").write_bytes(b"".join(lines))
    for number, (name, found) in enumerate(texts.items()):
        print(name, f"{resample(found, out / 'corpus' / name, int(gb * 1e9 / len(texts)), number):,} documents", flush=True)


if __name__ == "__main__":
    main()
