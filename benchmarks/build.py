"""How long does a whole build take, where does the time go, and how much memory, beside datatrove doing the same work on a part of it? `build.md` has the answers.

    python benchmarks/build.py corpus OUT books=books_en/*.parquet wiki=wiki_en/*.parquet … --gb 0.5
    python benchmarks/build.py whole OUT TOKENIZER.json EVALS [--peer PEER/bin/python] [--part 5]
    python benchmarks/build.py thresholds OUT TOKENIZER.json EVALS [--builds 20]

`corpus` resamples texts with their lines: each is a run of words of a real one, with one word in six replaced by a word of the same source, and one in twenty is a near-copy of the one before it. `whole` reads,
cleans, removes copies and near-copies, computes every heuristic, language, a classifier, a perplexity and contamination, counts tokens and plans; `thresholds` changes a rule before each of many builds.
"""

from __future__ import annotations

import hashlib
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
import pyarrow.parquet as pq
from dedup_accuracy import read_texts
from memory import rollup, tree

RECIPE = """
name: build
seed: 17
tokenizer: {{path: {tokenizer}, eos: "<|endoftext|>"}}
clean: [nfc, control_characters]
sources:
  medical: {{files: "corpus/medical/*.jsonl", key: id}}
  books: {{files: "corpus/books/*.jsonl", key: id}}
  wiki: {{files: "corpus/wiki/*.jsonl", key: id}}
  tech: {{files: "corpus/tech/*.jsonl", key: id}}
steps:
  - add: {{copy_of: {{kind: exact}}}}
  - keep: copy_of IS NULL
  - add: {{duplicate_of: {{kind: minhash, threshold: 0.8}}}}
  - keep: duplicate_of IS NULL
  - add: {{tongue: {{kind: language}}}}
  - keep: tongue.code = 'en'
  - add: {{repetition: {{kind: heuristics, set: gopher_repetition}}}}
  - keep: repetition.duplicate_lines <= 0.3 AND repetition.top_2_gram <= 0.2 AND repetition.duplicate_5_grams <= 0.15 AND repetition.duplicate_10_grams <= 0.1
  - add: {{c4: {{kind: heuristics, set: c4}}}}
  - keep: c4.sentences >= 3 AND c4.lorem_ipsum = 0 AND c4.curly_brackets = 0
  - add: {{gopher: {{kind: heuristics, set: gopher}}}}
  - keep: gopher.words BETWEEN 50 AND 100000 AND gopher.mean_length BETWEEN 3 AND 10 AND gopher.symbol_ratio <= 0.1
  - keep: gopher.bullet_lines <= 0.9 AND gopher.ellipsis_lines <= 0.3 AND gopher.stop_words >= 2
  - add: {{fineweb: {{kind: heuristics, set: fineweb}}}}
  - keep: fineweb.terminated >= 0.12 AND fineweb.short_lines <= 0.67
  - add: {{quality: {{kind: fasttext, train: {{positive: "references/positive.jsonl", negative: "references/negative.jsonl"}}}}}}
  - keep: quality >= {quality}
  - add: {{perplexity: {{kind: ngram, reference: "references/positive.jsonl"}}}}
  - add: {{contaminated: {{kind: contamination, against: "{evals}"}}}}
  - keep: contaminated.share IS NULL OR contaminated.share < 0.3
holdout: {{documents: 200}}
mixture:
  sequence_length: 4096
  components: {{medical: "source = 'medical'", replay: "source != 'medical'"}}
  on_shortage: redistribute
  stages: [{{name: adapt, tokens: {tokens}, weights: {{medical: 0.7, replay: 0.3}}}}]
"""
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

    for source in texts:
        print(source, f"{sum(path.stat().st_size for path in (out / 'corpus' / source).glob('*')) / 1e6:,.0f} MB")


def write_recipe(out: Path, tokenizer: Path, evals: Path, quality: float, tokens: int) -> Path:
    recipe = out / "recipe.yaml"
    recipe.write_text(RECIPE.format(tokenizer=tokenizer.absolute(), evals=evals.absolute(), quality=quality, tokens=tokens))
    return recipe


def build(recipe: Path, out: Path, workers: int) -> Watched:
    """One build of OUT/recipe.yaml in the work directory OUT/work."""
    command = [
        *CURATE,
        "build",
        str(recipe),
        "-o",
        str(out / "manifest"),
        "--work",
        str(out / "work"),
        "--workers",
        str(workers),
        "--replace",
    ]
    return watch(command)


def phases(out: Path) -> list[dict[str, Any]]:
    """What the newest log says of each phase."""
    log = max((out / "work" / "log").glob("*.jsonl"))
    return [entry for entry in map(json.loads, log.read_text().splitlines()) if entry["event"] == "phase"]


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*.jsonl")) / 1e6


@main.command()
@OUT
@TOKENIZER
@EVALS
@click.option("--peer", type=click.Path(exists=True, path_type=Path), help="The interpreter of datatrove's environment.")
@click.option("--part", default=5.0, show_default=True, help="How many MB of each source the peer is given.")
@click.option("--workers", default=2, show_default=True)
@click.option("--tokens", default="20M", show_default=True)
def whole(out: Path, tokenizer: Path, evals: Path, peer: Path | None, part: float, workers: int, tokens: str) -> None:
    shutil.rmtree(out / "work", ignore_errors=True)
    shutil.rmtree(out / "manifest", ignore_errors=True)
    size = megabytes(out / "corpus")
    ours = build(write_recipe(out, tokenizer, evals, 0.05, tokens), out, workers)
    print(ours.output)
    print("| | MB | seconds | CPU seconds | MB/s/core | GB held | GB with mapped files |\n|---|---:|---:|---:|---:|---:|---:|")
    _row("this project", size, ours)
    if peer is not None:
        _row("datatrove", *_by_peer(out, tokenizer, evals, peer, part))
    print("\n| phase | seconds | share |\n|---|---:|---:|")
    entries = phases(out)
    total = sum(entry["seconds"] for entry in entries)
    for entry in sorted(entries, key=lambda entry: -entry["seconds"])[:20]:
        print(f"| {entry['phase']} | {entry['seconds']:.1f} | {entry['seconds'] / total:.1%} |")


def _row(name: str, size: float, found: Watched) -> None:
    print(
        f"| {name} | {size:,.0f} | {found.seconds:,.1f} | {found.cpu:,.1f} | {size / found.cpu:.2f} | {found.anonymous:.2f} | {found.resident:.2f} |"
    )


def _by_peer(out: Path, tokenizer: Path, evals: Path, peer: Path, part: float) -> tuple[float, Watched]:
    """datatrove on the first `part` MB of each source."""
    folder = out / "part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for source in sorted((out / "corpus").iterdir()):
        with (source / "part-000.jsonl").open("rb") as lines, (folder / f"{source.name}.jsonl").open("wb") as some:
            while some.tell() < part * 1e6 and (line := lines.readline()):
                some.write(line)
    questions = pq.read_table(evals, columns=["question"])["question"].to_pylist()
    (out / "evals.jsonl").write_bytes(b"".join(orjson.dumps({"question": one}) + b"\n" for one in questions))
    command = [str(peer), str(Path(__file__).with_name("build_peers.py")), str(folder), str(out / "peer"), str(tokenizer)]
    watched = watch([*command, str(out / "references"), str(out / "evals.jsonl")])
    answer = json.loads(watched.output.splitlines()[-1])
    print(f"\ndatatrove kept {answer['kept']:,}", file=sys.stderr)
    return megabytes(folder), watched._replace(seconds=answer["seconds"], cpu=answer["cpu"])


@main.command()
@OUT
@TOKENIZER
@EVALS
@click.option("--builds", default=20, show_default=True)
@click.option("--workers", default=2, show_default=True)
def thresholds(out: Path, tokenizer: Path, evals: Path, builds: int, workers: int) -> None:
    """Each build tightens or loosens one rule; the first of `whole` is there."""
    print("| quality >= | seconds | computed | remembered | digest |\n|---:|---:|---:|---:|---|")
    for number in range(builds):
        quality = 0.05 + 0.02 * (number * 7 % builds)
        found = build(write_recipe(out, tokenizer, evals, quality, 1_000_000), out, workers)
        counted = [entry for entry in phases(out) if entry["computed"] is not None]
        digest = hashlib.sha256((out / "manifest" / "manifest.json").read_bytes()).hexdigest()
        print(
            f"| {quality:.2f} | {found.seconds:.1f} | {sum(one['computed'] for one in counted):,} | {sum(one['remembered'] for one in counted):,} | {digest[:8]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
