"""How fast does reading turn JSON Lines into shards, beside Polars, datatrove and Daft writing the same file as Parquet?

    python benchmarks/ingest.py corpus.jsonl --runs 3 --peers PEERS/bin/python

All read one plain file and write zstd Parquet on all cores, one after the other in every run, imports and start of processes not counted. Reading also checks every record,
cleans it, and gives it content hash, position and key; the file is hashed before, which is timed apart. `polars` is `scan_ndjson(…).sink_parquet(…)` as it comes
(zstd at its own level), `polars level 1` writes as this project does. Prints megabytes a second, and the ratio of reading to each, as medians of the runs.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import click
import polars as pl

from curation.corpus.shards import read_corpus
from curation.corpus.sources import SourceConfig, refuse_unknown, resolve
from curation.engine.local import Engine, default_workers
from curation.engine.work_directory import Digests, Work

PEERS = ("datatrove", "daft")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", default="text", show_default=True, help="The column that holds the text.")
@click.option("--runs", default=3, show_default=True)
@click.option("--peers", type=click.Path(exists=True, path_type=Path), help="The Python of an environment with datatrove and daft.")
def main(file: Path, text: str, runs: int, peers: Path | None) -> None:
    size = file.stat().st_size / 1e6
    found: dict[str, list[float]] = {}
    for run in range(runs):
        with tempfile.TemporaryDirectory() as scratch:
            seconds = {
                "polars": written_by_polars(file, Path(scratch) / "a.parquet"),
                "polars level 1": written_by_polars(file, Path(scratch) / "b.parquet", compression_level=1),
            }
            seconds["hashing"], seconds["reading"] = read_by_tilth(file, text, Path(scratch))
            for peer in PEERS if peers else ():
                seconds[peer] = written_by(peer, peers, file, Path(scratch) / peer)
        for name, taken in seconds.items():
            found.setdefault(name, []).append(size / taken)
        print(f"run {run + 1}: " + ", ".join(f"{name} {speeds[-1]:.0f} MB/s" for name, speeds in found.items()), flush=True)
    print(f"{size:,.0f} MB; medians:")
    for name, speeds in found.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(found["reading"], speeds, strict=True))
        print(f"  {name:<16} {statistics.median(speeds):>7.1f} MB/s   reading is {ratio:.2f} of it")


def written_by_polars(file: Path, out: Path, **how: int) -> float:
    began = time.monotonic()
    pl.scan_ndjson(file).sink_parquet(out, compression="zstd", **how)
    return time.monotonic() - began


def read_by_tilth(file: Path, text: str, scratch: Path) -> tuple[float, float]:
    """Seconds for hashing the file, and for reading it."""
    work = Work(scratch / "work")
    work.room("scratch")
    with Engine(default_workers()) as engine:
        engine.map(refuse_unknown, [("", [])] * 8, "start")  # the workers load what they will need
        began = time.monotonic()
        config = SourceConfig.model_validate({"files": str(file.resolve()), "text": text})
        source = resolve("file", config, Path(), {}, Digests(work), engine)
        hashed = time.monotonic()
        read_corpus([source], ("nfc", "control_characters"), work, engine)
        return hashed - began, time.monotonic() - hashed


def written_by(peer: str, python: Path | None, file: Path, out: Path) -> float:
    command = [str(python), str(Path(__file__).with_name("ingest_peers.py")), peer, str(file.resolve()), str(out)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(answer.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
