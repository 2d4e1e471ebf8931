"""How large is the page of `curate report`, how long does it take and how much memory, by the documents read?

    python benchmarks/report.py MANIFEST FOLDER [--times 1 --times 4 --times 40] [--work DIR]

MANIFEST is multiplied: its pool is written over and over, source by source, with rows numbered anew, and the counts of its header with it, until there are so many times as many
documents; plan and tokens stay. Signals and reasons are therefore those of real documents. The first page is also made with texts, where the work directory is at hand. Every page is made in
a process of its own with one thread of Polars; its peak resident memory is the kernel's. Beside it stands how long Polars takes to read the same columns of the pool once and sum them: what no page can beat.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import polars as pl
import pyarrow as pa

from mixing.manifest import Manifest
from mixing.pool import ROWS_PER_FILE

COUNTS = ("read", "quarantined", "held_out", "kept", "unassigned")


def multiplied(manifest: Manifest, times: int, folder: Path) -> Path:
    """A manifest at `folder` with every document `times` times."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(manifest.folder, folder, ignore=shutil.ignore_patterns("pool", "tokens", "files.json"))
    pool = pl.read_parquet([str(path) for path in manifest.pool_files()]).sort("row")
    blocks = {name: pool.filter(pl.col("source") == name) for name in pool["source"].unique(maintain_order=True)}
    (folder / "pool").mkdir()
    for number, frame in enumerate(filled(blocks, times)):
        frame.write_parquet(folder / "pool" / f"{number:05}.parquet", compression="zstd")
    renumbered(manifest, blocks, times, folder)
    header = manifest.header
    for source in header["sources"].values():
        for key in COUNTS:
            source[key] *= times
        for dropped in source["dropped"]:
            dropped["documents"] *= times
        source["unused"] = source["kept"] - source["used"] - source["unassigned"]
    kept = [entry for entry in header["files"] if not entry["path"].startswith("pool/")]
    header["files"] = kept + [{"path": f"pool/{path.name}", "rows": 0, "digest": ""} for path in sorted((folder / "pool").iterdir())]
    (folder / "manifest.json").write_text(json.dumps(header, sort_keys=True))
    provenance = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(provenance | {"work": "gone"}))  # its rows are others
    sizes = [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": ""}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    (folder / "files.json").write_text(json.dumps(sizes))
    return folder


def filled(blocks: dict[str, pl.DataFrame], times: int) -> Iterator[pl.DataFrame]:
    """The pool in files of a million rows."""
    waiting: list[pl.DataFrame] = []
    row = 0
    for block in blocks.values():
        for _ in range(times):
            waiting.append(block.with_columns(row=pl.arange(row, row + block.height, eager=True, dtype=pl.UInt64)))
            row += block.height
            if sum(frame.height for frame in waiting) >= ROWS_PER_FILE:
                joined = pl.concat(waiting)
                yield joined.head(ROWS_PER_FILE)
                waiting = [joined.slice(ROWS_PER_FILE)]
    yield pl.concat(waiting)


def renumbered(manifest: Manifest, blocks: dict[str, pl.DataFrame], times: int, folder: Path) -> None:
    """The tokens, under the rows that their documents have in the first copy."""
    (folder / "tokens").mkdir()
    starts, ends = [], []
    row = 0
    for block in blocks.values():
        starts.append(int(block["row"][0]))
        ends.append(row)
        row += block.height * times
    for number in range(manifest.token_files):
        path = f"tokens/{number:05}.arrow"
        with pa.memory_map(str(manifest.folder / path)) as mapped:
            batch = pa.ipc.open_file(mapped).get_batch(0)
            old = pl.Series(batch["pool_row"]).cast(pl.Int64)
            place = pl.Series(starts).search_sorted(old, side="right").cast(pl.Int64) - 1
            moved = old - pl.Series(starts).gather(place) + pl.Series(ends).gather(place)
            rows = pa.array(moved.cast(pl.UInt64).to_numpy())
            with pa.OSFile(str(folder / path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(pa.record_batch([rows, batch["ids"]], schema=batch.schema))


def one(folder: Path, work: Path | None) -> dict[str, Any]:
    """A page, in this process."""
    from curation.page.compose import report

    manifest = Manifest.open(folder)
    began, cpu = time.monotonic(), time.process_time()
    page = report(manifest, work=work)
    spent, busy = time.monotonic() - began, time.process_time() - cpu
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return {"bytes": len(page.encode()), "seconds": spent, "cpu": busy, "peak": peak, "holds": "differs: " not in page}


def floor(folder: Path) -> float:
    """CPU seconds that Polars takes to read all columns of numbers and sum them, streaming."""
    files = sorted((folder / "pool").iterdir())
    schema = pl.scan_parquet(files).collect_schema()
    columns = [pl.col(name) for name, kind in schema.items() if kind.is_numeric()]
    columns += [
        pl.col(name).struct.field(part.name).alias(f"{name}.{part.name}")
        for name, kind in schema.items()
        if isinstance(kind, pl.Struct)
        for part in kind.fields
        if part.dtype.is_numeric()
    ]
    began = time.process_time()
    pl.scan_parquet(files).select(column.cast(pl.Float64).sum() for column in columns).collect(engine="streaming")
    return time.process_time() - began


def apart(*words: str) -> dict[str, Any]:
    """What this script prints as another process with one thread."""
    environment = os.environ | {"POLARS_MAX_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--times", multiple=True, type=int, default=(1, 4, 40))
@click.option("--work", type=click.Path(path_type=Path))
@click.option("--child", type=click.Choice(["page", "floor"]), hidden=True)
def main(manifest: Path, folder: Path, times: tuple[int, ...], work: Path | None, child: str | None) -> None:
    if child is not None:
        print(json.dumps(one(manifest, work) if child == "page" else {"cpu": floor(manifest)}))
        return
    print("| documents | texts | pool, MB | page, MB | seconds | CPU seconds | of them reading | peak memory, MB |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    if work is not None:
        row(manifest, folder, work)
    for factor in times:
        made = multiplied(Manifest.open(manifest), factor, folder / f"times-{factor}")
        row(made, folder, None)
        shutil.rmtree(made)


def row(made: Path, folder: Path, work: Path | None) -> None:
    documents = sum(source["read"] for source in Manifest.open(made).sources.values())
    pool = sum(path.stat().st_size for path in (made / "pool").iterdir()) / 1e6
    page = apart(str(made), str(folder), "--child", "page", *(["--work", str(work)] if work else []))
    reading = apart(str(made), str(folder), "--child", "floor")
    assert page["holds"], "the pool does not say what the header says"
    cells = [f"{documents:,}", "yes" if work else "no", f"{pool:,.0f}", f"{page['bytes'] / 1e6:.2f}", f"{page['seconds']:.1f}"]
    print(f"| {' | '.join(cells)} | {page['cpu']:.1f} | {reading['cpu']:.1f} | {page['peak'] / 1e6:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
