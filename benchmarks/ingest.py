"""How fast does reading turn JSON Lines into shards, beside Polars writing the same file as Parquet?

    python benchmarks/ingest.py corpus.jsonl --runs 3

Both read one plain file and write zstd Parquet at level 1 on all cores. Reading also checks every record, cleans it, and gives it content hash, position and key; the file
is hashed before, which is timed apart. Prints a line a run and the median ratio.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click
import polars as pl

from curation.corpus import read_corpus
from curation.engine import Engine, default_workers
from curation.sources import SourceConfig, refuse_unknown, resolve
from curation.work import Digests, Work


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", default="text", show_default=True, help="The column that holds the text.")
@click.option("--runs", default=3, show_default=True)
def main(file: Path, text: str, runs: int) -> None:
    size = file.stat().st_size / 1e6
    ratios = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as scratch:
            polars = written_by_polars(file, Path(scratch))
            work = Work(Path(scratch) / "work")
            work.room("scratch")
            with Engine(default_workers()) as engine:
                engine.map(refuse_unknown, [("", [])] * 8, "start")  # its module, which the workers load now
                began = time.monotonic()
                source = resolve(
                    "file", SourceConfig.model_validate({"files": str(file.resolve()), "text": text}), Path(), {}, Digests(work), engine
                )
                hashed = time.monotonic() - began
                began = time.monotonic()
                read_corpus([source], ("nfc", "control_characters"), work, engine)
                ours = time.monotonic() - began
        ratios.append(polars / ours)
        print(
            f"polars {size / polars:.0f} MB/s, reading {size / ours:.0f} MB/s (hashing {size / hashed:.0f} MB/s), ratio {polars / ours:.2f}"
        )
    print(f"{size:,.0f} MB, median ratio {statistics.median(ratios):.2f}")


def written_by_polars(file: Path, folder: Path) -> float:
    began = time.monotonic()
    pl.scan_ndjson(file).sink_parquet(folder / "polars.parquet", compression="zstd", compression_level=1)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
