"""`curate index`: add documents to a persistent index (`dedup.index`), or remove a source of it; show and verify it.

A manifest gives its kept documents, whose texts are read once more from its work directory. A YAML file of `sources` and `clean`, as a recipe writes them, gives every document
that can be used: for a published corpus, or a sample of what a model was trained on before. What is in an index never leaves it but by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from curation.commands.explain import shards_of
from curation.corpus.shards import Positions, Shard, chunkless, read_corpus
from curation.corpus.sources import SourceConfig, SourceName, resolve
from curation.dedup.index import FILE, Index, Part, Source, batch, changing, damaged, save, write_members
from curation.engine.local import Engine, Run
from curation.engine.work_directory import Digests, Work, folder_atomic
from curation.recipe import read_yaml
from mixing import UserError, validated
from mixing.manifest import Manifest

DOCUMENTS = 1 << 12  # whose shingles are held at once


class Corpora(BaseModel):
    """What to add to an index that no manifest holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clean: list[Literal["nfc", "control_characters", "line_endings", "mask_pii"]] = []
    sources: dict[SourceName, SourceConfig] = Field(min_length=1)


class Given(NamedTuple):
    """What is to be added: its name unless another is given, how its texts were cleaned, where they lie, and a file of the rows meant; None means all."""

    name: str
    clean: list[str]
    shards: list[Shard]
    rows: Path | None


def add(folder: Path, what: Path, name: str | None, work: Path | None, run: Run) -> tuple[Index, Source]:
    """Adds the manifest, or the file of sources, at `what` to the index in `folder`, which is made if it is not there. `work` is where the manifest's texts lie, if they have moved."""
    with TemporaryDirectory() as room, Engine(run.workers, run.memory) as engine:
        manifest = (what / "manifest.json").is_file() or what.name == "manifest.json"
        given = _of_manifest(what, work, Path(room)) if manifest else _of_sources(what, run, engine)
        name = _checked(name or given.name)
        with changing(folder):
            index = Index.open(folder) if (folder / FILE).exists() else Index(folder, given.clean, [])
            index.require_clean(given.clean, f"curate index add: {what}")
            if any(source.name == name for source in index.sources):
                raise UserError(
                    f"curate index add: {folder} has a source '{name}' already; remove it first with `curate index remove {folder} {name}`, or give another --name"
                )
            with folder_atomic(folder / name) as temporary:
                tasks = [(shard, given.rows, temporary / f"{number:05}.arrow") for number, shard in enumerate(given.shards)]
                parts = [part for part in engine.map(_write, tasks, "add to the index") if part is not None]
            placed = [part._replace(path=f"{name}/{part.path}") for part in parts]
            source = Source(name, sum(part.documents for part in parts), placed)
            index = Index(folder, index.clean, sorted([*index.sources, source]))
            save(index)
    return index, source


def _checked(name: str) -> str:
    if not name or name[0] in ".-" or not all(one.isalnum() or one in "._-" for one in name):
        raise UserError(f"--name {name!r}: accepted: letters, digits, '-', '_' and '.', a letter or digit first")
    return name


def _of_manifest(path: Path, work: Path | None, room: Path) -> Given:
    manifest = Manifest.open(path)
    shards = shards_of(manifest, work)
    kept = manifest.pool().filter(pl.col("decision") == "kept").select("row").collect()["row"].to_numpy()
    np.save(room / "kept.npy", kept)
    header = manifest.header
    return Given(f"{header['name']}-v{header['version']}", header["recipe"]["clean"], shards, room / "kept.npy")


def _of_sources(path: Path, run: Run, engine: Engine) -> Given:
    corpora = validated(Corpora, read_yaml(path, "a file of sources"), str(path))
    work = Work(run.work)
    with work.locked():
        digests = Digests(work)
        sources = [resolve(name, config, path.parent, run.roots, digests, engine) for name, config in corpora.sources.items()]
        digests.save()
        corpus = read_corpus(sources, tuple(corpora.clean), work, engine)
    return Given(path.stem, list(corpora.clean), corpus.shards, None)


def _write(shard: Shard, rows: Path | None, path: Path) -> Part | None:
    """Task: the documents of one shard that are meant, in order of their rows; nothing if there are none."""
    there = shard.rows()
    chosen = np.argsort(there) if rows is None else np.flatnonzero(np.isin(there, np.load(rows, mmap_mode="r")))
    chosen = chosen[np.argsort(there[chosen])]
    return write_members(path, _batches(shard, chosen)) if len(chosen) else None


def _batches(shard: Shard, chosen: Positions) -> Iterator[pa.RecordBatch]:
    table = shard.read(["key", "content"])
    for at in range(0, len(chosen), DOCUMENTS):
        positions = chosen[at : at + DOCUMENTS]
        mine = table.take(pa.array(positions))
        yield batch(shard.source, shard.origins(positions), chunkless(mine["key"]), chunkless(mine["content"]), shard.texts(positions))


def remove(folder: Path, name: str) -> Index:
    """The index without one of its sources."""
    with changing(folder):
        index = Index.open(folder)
        left = [source for source in index.sources if source.name != name]
        if len(left) == len(index.sources):
            raise UserError(
                f"curate index remove: {folder} has no source '{name}'; it has: {', '.join(one.name for one in index.sources) or 'none'}"
            )
        index = Index(folder, index.clean, left)
        save(index)
    return index


def shown(folder: Path) -> str:
    """The index for a person to read."""
    index = Index.open(folder)
    width = max([len(source.name) for source in index.sources], default=0)
    lines = [f"{index.folder}  {index.documents:,} documents  clean {index.clean}  digest {index.digest}"]
    for source in index.sources:
        size = sum((index.folder / part.path).stat().st_size for part in source.parts)
        lines.append(f"  {source.name:<{width}}  {source.documents:>12,} documents  {size / 1e6:>10,.1f} MB")
    return "\n".join(lines)


def verify(folder: Path, run: Run) -> Sequence[str]:
    """The files of the index that are not what was written."""
    index = Index.open(folder)
    parts = [part for source in index.sources for part in source.parts]
    with Engine(run.workers, run.memory) as engine:
        found = engine.map(damaged, [(index, part) for part in parts], "read the index")
    return [part.path for part, bad in zip(parts, found, strict=True) if bad]
