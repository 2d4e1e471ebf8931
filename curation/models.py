"""Models that a recipe trains for its signals: from files, or from samples of its sources as they were read.

A model is named by a key over the signal's configuration and the content of its references, so a changed rule never changes a model; only what is held out enters, because
nothing is trained on it. Each training runs in a fresh process on one thread: fastText fails on a second training in one process, and differs between runs on two threads.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from curation.corpus import Corpus
from curation.engine import Engine, Run
from curation.finding import hash_files, locate
from curation.formats import ACCEPTED, FORMATS, format_of, true_format
from curation.holdout import draw, texts_of
from curation.reading import Fields
from curation.remote import Place
from curation.signals import SIGNALS, Reference, Sample
from curation.work import Digests, Work, folder_atomic, key_of, sha256_folder
from mixing import UserError

TEXT = "text"


@dataclass(frozen=True)
class Referenced:
    """A reference whose files have been found. `spelled` is how a resolved recipe and the keys hold it."""

    role: str
    root: Place | None
    paths: list[str]
    sample: Sample | None
    spelled: object


def resolve_references(
    where: str, kind: str, config: BaseModel, sources: list[str], folder: Path, run: Run, digests: Digests, engine: Engine
) -> list[Referenced]:
    """The references of a signal, found and hashed; everything about them that can be refused before data is read."""
    return [
        _resolve(f"{where}.{role}", role, one, sources, folder, run, digests, engine)
        for role, one in SIGNALS[kind].references(config).items()
    ]


def _resolve(
    where: str, role: str, reference: Reference, sources: list[str], folder: Path, run: Run, digests: Digests, engine: Engine
) -> Referenced:
    if isinstance(reference, Sample):
        if reference.sample not in sources:
            raise UserError(f"{where}: no source '{reference.sample}'; the recipe has: {', '.join(sources)}")
        return Referenced(role, None, [], reference, reference.model_dump())
    root, name, patterns, paths = locate(where, reference, role, folder, run.roots)
    unknown = [path for path in paths if format_of(path) is None]
    if unknown:
        raise UserError(f"{where}: cannot read {unknown[0]!r}; accepted, with a column '{TEXT}': {ACCEPTED}")
    for path in paths:
        if format_of(path) in ("parquet", "arrow", "delimited"):
            columns = FORMATS[_format(root, path)].columns(root / path, [TEXT])
            if columns is None:
                raise UserError(f"{where}: {path} cannot be read as {str(format_of(path)).title()}; mend it or leave it out")
            there = [column for column, _ in columns]
            if TEXT not in there:
                raise UserError(f"{where}: no column '{TEXT}' in {path}; it has: {', '.join(there)}")
    inputs = hash_files(root, paths, digests, engine, f"hash {role}")
    return Referenced(role, root, paths, None, {"root": name, "pattern": patterns[0], "digest": key_of([one.digest for one in inputs])})


def _format(root: Place, path: str) -> str:
    return true_format(root / path, format_of(path) or "")


def spelled_config(config: BaseModel, references: list[Referenced]) -> dict[str, object]:
    """The configuration with every reference as found, without a path of this machine: what keys and resolved recipes hold."""
    by_role = {reference.role: reference.spelled for reference in references}

    def spell(name: str, value: Any) -> object:
        if name in by_role:
            return by_role[name]
        return {inner: spell(inner, one) for inner, one in value.items()} if isinstance(value, dict) else value

    return {name: spell(name, value) for name, value in config.model_dump(by_alias=True).items()}


@dataclass(frozen=True)
class Model:
    """A trained model: its folder, the sha256 over its files, and its key."""

    folder: Path
    sha256: str
    key: str


def train(
    kind: str, config: BaseModel, references: list[Referenced], seed: int, corpus: Corpus, holdout: str | None, work: Work, engine: Engine
) -> Model:
    """The signal's model, trained unless the work directory has it."""
    signal = SIGNALS[kind]
    of_samples = [
        [shard.name, shard.first_row] for reference in references if reference.sample for shard in corpus.of(reference.sample.sample)
    ]
    key = key_of(
        "model", kind, signal.version(config), spelled_config(config, references), seed, of_samples, holdout if of_samples else None
    )
    folder = work.room("models") / key
    if not folder.exists():
        texts = {reference.role: _texts(kind, reference, seed, corpus, holdout, work, engine) for reference in references}
        for role, found in texts.items():
            if not len(found):
                raise UserError(f"{kind}: the reference '{role}' holds no text; it needs documents with a visible '{TEXT}'")
        with folder_atomic(folder) as temporary:
            _train_apart(kind, config, texts, temporary, seed, work)
    return Model(folder, sha256_folder(folder), key)


def _texts(
    kind: str, reference: Referenced, seed: int, corpus: Corpus, holdout: str | None, work: Work, engine: Engine
) -> pa.LargeStringArray:
    if reference.sample is not None:
        shards = corpus.of(reference.sample.sample)
        return texts_of(draw(shards, seed, reference.sample.documents, holdout, work, engine), shards, engine)
    assert reference.root is not None
    fields = Fields(TEXT, None, {})
    found = []
    for path in reference.paths:
        records = list(FORMATS[_format(reference.root, path)].read(reference.root / path, fields, 0, None))
        lost = [record for record in records if record.text is None]
        if lost and SIGNALS[kind].whole:
            raise UserError(
                f"{kind}: {path}#{lost[0].position} cannot be read: {lost[0].reason}; mend the list, no entry of it may be lost"
            )
        found += [record.text for record in records if record.text is not None]
    return pa.array(found, pa.large_string())


def _train_apart(kind: str, config: BaseModel, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int, work: Work) -> None:
    paths = {}
    for role, found in texts.items():
        paths[role] = work.room("scratch") / f"{folder.name}.{role}.arrow"
        table = pa.table({TEXT: found})
        with pa.OSFile(str(paths[role]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        try:
            apart.submit(_train_here, kind, config, paths, folder, seed).result()
        except BrokenProcessPool:
            raise UserError(f"{kind}: the process that trained it was killed (out of memory?); run the build again") from None
        except UserError as error:
            raise UserError(f"{kind}: {error}") from None


def _train_here(kind: str, config: BaseModel, paths: dict[str, Path], folder: Path, seed: int) -> None:
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = "1"
    texts = {}
    for role, path in paths.items():
        with pa.memory_map(str(path)) as source:
            texts[role] = pa.ipc.open_file(source).read_all()[TEXT].combine_chunks()
    SIGNALS[kind].train(config, texts, folder, seed)
