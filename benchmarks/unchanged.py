"""How long does a build take that has nothing to do?

    python benchmarks/unchanged.py TOKENIZER --files 1000

Writes so many small files of JSON Lines, cuts them one shard a file (by setting the limit under which files are read together to nothing), builds once, and times: the second
build in this process, a bare `os.stat` of all input files, and the second build as a command, which also loads Python and its libraries. Medians of 7, interleaved.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from curation.build import build
from curation.corpus import sources
from curation.engine.local import Run
from curation.recipe import load

CURATE = [sys.executable, "-c", "from curation.cli import main; main(prog_name='curate')"]


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@click.command()
@click.argument("tokenizer", type=click.Path(exists=True, path_type=Path))
@click.option("--files", default=1000, show_default=True)
def main(tokenizer: Path, files: int) -> None:
    sources.SMALL = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for number in range(files):
            lines = [json.dumps({"text": f"the text of {number} and {line}, " * 20}) + "\n" for line in range(20)]
            path = folder / "corpus" / f"part-{number:05}.jsonl"
            path.write_text("".join(lines))
            os.utime(path, (time.time() - 60,) * 2)
        stage = {"name": "adapt", "tokens": 100_000, "weights": {"all": 1}}
        mixture = {"sequence_length": 1024, "components": {"all": "true"}, "stages": [stage]}
        values = {"name": "unchanged", "tokenizer": {"path": str(tokenizer.absolute()), "eos": False}}
        recipe = folder / "recipe.yaml"
        recipe.write_text(json.dumps(values | {"sources": {"a": {"files": "corpus/*.jsonl"}}, "mixture": mixture}))
        run, loaded = Run(folder / "work"), load(recipe)
        first = timed(lambda: build(loaded, folder, folder / "out", run))
        shards = len(list((folder / "work" / "shards").iterdir()))
        paths = [str(path) for path in (folder / "corpus").iterdir()]
        command = [*CURATE, "build", str(recipe), "-o", str(folder / "out"), "--work", str(folder / "work")]
        times: dict[str, list[float]] = {"second build": [], "bare stat": [], "second build, as a command": [], "curate --version": []}
        for _ in range(7):
            times["bare stat"].append(timed(lambda: [os.stat(path) for path in paths]))
            times["second build"].append(timed(lambda: build(loaded, folder, folder / "out", run)))
            assert build(loaded, folder, folder / "out", run).unchanged
            for label, arguments in (("second build, as a command", command), ("curate --version", [*CURATE, "--version"])):
                times[label].append(timed(lambda arguments=arguments: subprocess.run(arguments, check=True, capture_output=True)))  # type: ignore[misc]
        print(f"{files:,} files, {shards:,} shards; first build {first:.1f} s")
        for label, found in times.items():
            print(f"{label:<28} {1000 * statistics.median(found):>8,.1f} ms")


if __name__ == "__main__":
    main()
