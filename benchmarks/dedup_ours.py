"""Whole near-dedup of JSON Lines by the product's own functions: read, sign, band, verify, decide, write the survivors.

    python benchmarks/dedup_ours.py FILES OUT [--threshold 0.8] [--workers 2]

Prints one line of JSON: seconds (wall and CPU of all processes) from the files to the written survivors, those of every task by its function's name, documents, removed, and the search's
own report. Starting the workers and loading kernels is not counted. OUT gets one file of survivors a shard, and is a work directory besides; `dedup.py` deletes it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import numpy as np
import orjson
import pyarrow as pa

from curation.corpus.shards import read_corpus, read_sidecar, sidecar_path
from curation.corpus.sources import SourceConfig, resolve
from curation.decisions.duplicates import LiveShard, find_duplicates
from curation.dedup.minhash import MinhashConfig, jaccards, shingles, signatures
from curation.engine.local import Engine
from curation.engine.work_directory import Digests, Work

Result = TypeVar("Result")
TICK = os.sysconf("SC_CLK_TCK")


class TimedEngine(Engine):
    """An engine that remembers the wall and CPU seconds of each kind of task."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.taken: dict[str, tuple[float, float]] = {}

    def map(
        self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], label: str, at_most: int | None = None
    ) -> list[Result]:
        began, before = time.monotonic(), cpu(self.journal.processes)
        found = super().map(function, tasks, label, at_most)
        wall, busy = self.taken.get(function.__name__, (0.0, 0.0))
        self.taken[function.__name__] = (wall + time.monotonic() - began, busy + cpu(self.journal.processes) - before)
        return found


def cpu(processes: list[int]) -> float:
    """CPU seconds these processes have used so far."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def load() -> None:
    """What a worker needs once: the tables of words, and the kernels."""
    texts = pa.array(["one two three four five six", "one two three four five seven"], pa.large_string())
    signatures(texts)
    values, offsets = shingles(texts)
    jaccards(values, offsets[None, :2], values, offsets[None, 1:])
    time.sleep(0.5)  # so that every worker takes one


class Done(NamedTuple):
    shards: list[LiveShard]
    key: str
    facts: dict[str, Any]


def deduplicate(files: str, out: Path, threshold: float, workers: int) -> Done:
    """Reads the files that match, removes near-duplicates, writes the survivors."""
    work = Work(out)
    scratch = work.room("scratch")
    (out / "survivors").mkdir()
    timed = TimedEngine(workers)
    with timed as engine:
        load()
        engine.map(load, [()] * workers, "start")
        timed.taken.clear()
        began, before = time.monotonic(), cpu(engine.journal.processes)
        source = resolve("corpus", SourceConfig.model_validate({"files": files}), Path(), {}, Digests(work), engine)
        corpus = read_corpus([source], (), work, engine)
        read = time.monotonic() - began
        live = [LiveShard(shard, scratch / f"{shard.name}.live.npy", work) for shard in corpus.shards]
        for one in live:
            np.save(one.mask, np.ones(one.shard.documents, np.bool_))
        key, _ = find_duplicates(MinhashConfig(threshold=threshold), live, work, engine)
        decided = time.monotonic() - began
        kept = sum(engine.map(write_survivors, [(one, key, out / "survivors" / f"{i}.jsonl") for i, one in enumerate(live)], "write"))
        wall, busy = time.monotonic() - began, cpu(engine.journal.processes) - before
    documents = sum(one.shard.documents for one in live)
    facts = {
        "seconds": wall,
        "cpu": busy,
        "seconds of reading": read,
        "seconds of near-dedup": decided - read,
        "documents": documents,
        "kept": kept,
        "removed": documents - kept,
        "report": json.loads((scratch / key / "report.json").read_text()),
        "tasks": {name: [round(one, 3) for one in taken] for name, taken in timed.taken.items()},
        "bytes of shards": sum(one.shard.path.stat().st_size for one in live),
    }
    return Done(live, key, facts)


def write_survivors(live: LiveShard, key: str, path: Path) -> int:
    sidecar = read_sidecar(sidecar_path(live.work, key, live.shard))
    assert sidecar is not None
    stays = sidecar.values.is_null().to_numpy(zero_copy_only=False)
    kept = 0
    with path.open("wb") as file:
        for first, end in live.shard.spans():
            positions = first + np.flatnonzero(stays[first:end])
            texts, rows = live.shard.texts(positions), live.shard.rows()[positions].tolist()
            file.writelines(orjson.dumps({"id": row, "text": text}) + b"\n" for row, text in zip(rows, texts.to_pylist(), strict=True))
            kept += len(positions)
    return kept


def survivors_of(done: Done) -> dict[int, tuple[int, float]]:
    """Of every removed row, its survivor's row and their similarity."""
    found = {}
    for live in done.shards:
        sidecar = read_sidecar(sidecar_path(live.work, done.key, live.shard))
        assert sidecar is not None
        for row, value in zip(live.rows().tolist(), sidecar.values.to_pylist(), strict=True):
            if value is not None:
                found[row] = (value["row"], value["similarity"])
    return found


@click.command()
@click.argument("files")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--threshold", default=0.8, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(files: str, out: Path, threshold: float, workers: int) -> None:
    click.echo(json.dumps(deduplicate(str(Path(files).absolute()), out, threshold, workers).facts))


if __name__ == "__main__":
    main()
