"""What an index saves, and how much of real corpora is repeated paragraphs and spans: `dedup.md` has the answers.

    python benchmarks/dedup_index.py index OUT --old books_en/*.parquet --old wiki_en/*.parquet --new messy/*.gz [--runs 3]
    python benchmarks/dedup_index.py repeats OUT med_qa/*.zst books_en/*.parquet …

`index`: makes an index of the old files, compares the new ones with it, and, as one does without, finds near-duplicates in old and new files together, one worker, interleaved. The decisions about
the new documents are compared. `repeats`: every file is a corpus by itself, called after its folder. CPU seconds of all processes, which other jobs on the machine disturb less than
wall time. OUT is emptied.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.compute as pc
from dedup_ours import cpu, load

from curation.commands.indexing import add
from curation.corpus.shards import Corpus, read_corpus, read_sidecar, sidecar_path
from curation.corpus.sources import SourceConfig, resolve
from curation.decisions.duplicates import LiveShard, find_duplicates, find_repeats
from curation.dedup.index import Index
from curation.dedup.minhash import MinhashConfig, signatures
from curation.dedup.repeats import ParagraphsConfig, RepeatsConfig, SpansConfig
from curation.engine.local import Engine, Run
from curation.engine.work_directory import Digests, Work

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
CONFIGS: dict[str, RepeatsConfig] = {
    "paragraphs, 3": ParagraphsConfig(kind="repeated_paragraphs"),
    "lines, 3": ParagraphsConfig(kind="repeated_paragraphs", separated_by="line"),
    "spans of 50 words, 2": SpansConfig(kind="repeated_spans"),
    "spans of 20 words, 3": SpansConfig(kind="repeated_spans", words=20, at_least=3),
}


@click.group(help=__doc__.splitlines()[0] if __doc__ else None)
def main() -> None:
    pass


def measured(engine: Engine, work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, CPU seconds, wall seconds)."""
    began, before = time.monotonic(), cpu(engine.journal.processes)
    result = work()
    return result, cpu(engine.journal.processes) - before, time.monotonic() - began


def read(files: tuple[Path, ...], work: Work, engine: Engine) -> tuple[Corpus, list[LiveShard]]:
    """Every file as a source of its own, all documents alive."""
    sources = [
        resolve(f"s{number}", SourceConfig.model_validate({"files": str(path), "max_quarantine": 1}), Path(), {}, Digests(work), engine)
        for number, path in enumerate(files)
    ]
    corpus = read_corpus(sources, (), work, engine)
    live = [LiveShard(shard, work.room("scratch") / f"{shard.name}.live.npy", work) for shard in corpus.shards]
    for one in live:
        np.save(one.mask, np.ones(one.shard.documents, np.bool_))
    return corpus, live


def removed(live: list[LiveShard], key: str) -> dict[str, float]:
    """Of every document with a duplicate before it, by origin, the similarity."""
    found = {}
    for one in live:
        sidecar = read_sidecar(sidecar_path(one.work, key, one.shard))
        assert sidecar is not None
        for origin, value in zip(one.shard.origins(), sidecar.values.to_pylist(), strict=True):
            if value is not None:
                found[f"{one.shard.source} {origin}"] = value["similarity"]
    return found


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--old", "old", multiple=True, required=True, type=FILE)
@click.option("--new", "new", multiple=True, required=True, type=FILE)
@click.option("--runs", default=3)
def index(out: Path, old: tuple[Path, ...], new: tuple[Path, ...], runs: int) -> None:
    """An index of the old files, and the new ones against it or beside the old ones."""
    load()
    seconds: dict[str, list[float]] = {"make the index": [], "new against the index": [], "old and new together": []}
    for _ in range(runs):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        sources = {f"o{number}": {"files": str(path.resolve()), "max_quarantine": 1} for number, path in enumerate(old)}
        (out / "old.yaml").write_text(json.dumps({"sources": sources}))
        with Engine(1) as engine:
            _, busy, _ = measured(engine, lambda: add(out / "index", out / "old.yaml", None, None, Run(out / "work")))
            seconds["make the index"].append(busy)

            def against() -> dict[str, float]:
                _, live = read(new, Work(out / "a"), engine)
                return removed(live, find_duplicates(MinhashConfig(), live, Work(out / "a"), engine, index=Index.open(out / "index"))[0])

            def together() -> dict[str, float]:
                _, live = read((*old, *new), Work(out / "b"), engine)
                found = removed(live, find_duplicates(MinhashConfig(), live, Work(out / "b"), engine)[0])
                names = {f"s{len(old) + number}": f"s{number}" for number in range(len(new))}
                return {f"{names[one.split()[0]]} {one.split(' ', 1)[1]}": value for one, value in found.items() if one.split()[0] in names}

            one, busy, _ = measured(engine, against)
            seconds["new against the index"].append(busy)
            other, busy, _ = measured(engine, together)
            seconds["old and new together"].append(busy)
    shown = Index.open(out / "index")
    size = sum(path.stat().st_size for path in (out / "index").rglob("*") if path.is_file())
    print(
        f"members {shown.documents:,}; index {size / 1e6:.1f} MB; removed from the new: {len(one):,} against the index, {len(other):,} together, {len(set(one) ^ set(other))} differ"
    )
    for name, found in seconds.items():
        print(f"{name}: {statistics.median(found):.2f} s CPU ({min(found):.2f}-{max(found):.2f})")
    ratios = [b / a for a, b in zip(seconds["new against the index"], seconds["old and new together"], strict=True)]
    print(f"together / against: {statistics.median(ratios):.1f}")


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=FILE)
def repeats(out: Path, files: tuple[Path, ...]) -> None:
    """What part of each corpus is repeated, and what it takes to know."""
    load()
    shutil.rmtree(out, ignore_errors=True)
    totals: dict[str, list[float]] = {name: [0.0, 0.0] for name in [*CONFIGS, "signatures"]}
    with Engine(1) as engine:
        work = Work(out)
        for path in files:
            _, live = read((path,), work, engine)
            texts = [one.shard.texts() for one in live]
            size = sum(int(pc.sum(pc.binary_length(text)).as_py()) for text in texts)
            shown = [f"{path.parent.name}: {sum(map(len, texts)):,} documents, {size / 1e6:.1f} MB"]
            _, busy, _ = measured(engine, lambda texts=texts: [signatures(text) for text in texts])
            totals["signatures"][0] += size
            totals["signatures"][1] += busy
            for name, config in CONFIGS.items():
                (key, _), busy, _ = measured(engine, lambda config=config, live=live: find_repeats(config, live, live, work, engine))
                totals[name][0] += size
                totals[name][1] += busy
                values = np.concatenate([_values(one, key) for one in live])
                valued = values[~np.isnan(values)]
                shown.append(f"{name}: mean {valued.mean():.3f}, over half {np.mean(valued > 0.5):.3f}")
            print("; ".join(shown))
    for name, (size, busy) in totals.items():
        print(f"{name}: {size / 1e6 / busy:.0f} MB/s of CPU time")
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


def _values(live: LiveShard, key: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    sidecar = read_sidecar(sidecar_path(live.work, key, live.shard))
    assert sidecar is not None
    return sidecar.values.to_numpy(zero_copy_only=False)


if __name__ == "__main__":
    main()
