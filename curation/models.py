"""Models that a recipe trains for its signals: from files, or from samples of its sources as they were read.

A model is named by a key over the signal's configuration and the content of its references, so a changed rule never changes a model; the clean steps and what is held out
enter too, because references are cleaned like documents and nothing is trained on a held-out text. Each training runs in a fresh process on one thread: fastText fails on a second training in one process, and differs between runs on two threads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import BaseModel

from curation.clean import cleaned, has_visible
from curation.corpus import Corpus, Mask, Positions, Shard
from curation.engine import Engine, Run
from curation.finding import hash_files, locate
from curation.formats import ACCEPTED, FORMATS, format_of, readers_of, true_format
from curation.formats.records import Fields, records_of
from curation.holdout import Drawn, draw, held_contents, texts_of
from curation.remote import Place, on_disk
from curation.signals import SIGNALS, ModelFile, Reference, Sample
from curation.work import Digests, Work, folder_atomic, key_of, sha256_folder
from mixing import UserError

TEXT = "text"
METRICS = "metrics.json"


@dataclass(frozen=True)
class Referenced:
    """A reference whose files have been found. `spelled` is how a resolved recipe and the keys hold it; `readers` are the versions of the packages that read its formats for us."""

    role: str
    root: Place | None
    paths: list[str]
    sample: Sample | None
    spelled: object
    readers: dict[str, str] = field(default_factory=dict)
    is_model: bool = False


def resolve_references(
    where: str, kind: str, config: BaseModel, sources: list[str], folder: Path, run: Run, digests: Digests, engine: Engine
) -> list[Referenced]:
    """The references of a signal, found and hashed; everything about them that can be refused before data is read."""
    return [
        _resolve(f"{where}.{role}", role, one, sources, folder, run, digests, engine)
        for role, one in SIGNALS[kind].references(config).items()
    ]


def _resolve(
    where: str, role: str, reference: Reference | ModelFile, sources: list[str], folder: Path, run: Run, digests: Digests, engine: Engine
) -> Referenced:
    if isinstance(reference, ModelFile):
        return _resolve_model(where, role, reference, folder, run, digests, engine)
    if isinstance(reference, Sample):
        if reference.sample not in sources:
            raise UserError(f"{where}: no source '{reference.sample}'; the recipe has: {', '.join(sources)}")
        return Referenced(role, None, [], reference, reference.model_dump(exclude_none=True))
    root, name, patterns, paths = locate(where, reference, role, folder, run.roots)
    unknown = [path for path in paths if format_of(path) is None]
    if unknown:
        raise UserError(f"{where}: cannot read {unknown[0]!r}; accepted, with a column '{TEXT}': {ACCEPTED}")
    readers = readers_of(where, {path: _format(root, path) for path in paths})
    for path in paths:
        if format_of(path) in ("parquet", "arrow", "delimited"):
            columns = FORMATS[_format(root, path)].columns(root / path, [TEXT])
            if columns is None:
                raise UserError(f"{where}: {path} cannot be read as {str(format_of(path)).title()}; mend it or leave it out")
            there = [column for column, _ in columns]
            if TEXT not in there:
                raise UserError(f"{where}: no column '{TEXT}' in {path}; it has: {', '.join(there)}")
    inputs = hash_files(root, paths, digests, engine, f"hash {role}")
    spelled = {"root": name, "pattern": patterns[0], "digest": key_of([one.digest for one in inputs])}
    return Referenced(role, root, paths, None, spelled, readers)


def _resolve_model(where: str, role: str, model: ModelFile, folder: Path, run: Run, digests: Digests, engine: Engine) -> Referenced:
    """A model's file, found, hashed and looked into."""
    root, name, patterns, paths = locate(where, model.path, role, folder, run.roots)
    if len(paths) > 1:
        raise UserError(f"{where}: {patterns[0]!r} matches {len(paths)} files, {paths[0]} and {paths[1]} among them; name one")
    ((_, _, digest),) = hash_files(root, paths, digests, engine, f"hash {role}")
    fact = key_of("model file", model.look.__name__, digest)
    found = digests.fact(fact)
    try:
        if found is None:
            with TemporaryDirectory() as room:
                found = model.look(on_disk(root / paths[0], Path(room)))
            digests.note(fact, found)
        model.check(found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Referenced(role, root, paths, None, {"root": name, "pattern": patterns[0], "digest": digest}, is_model=True)


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

    def metrics(self) -> dict[str, Any] | None:
        """What its training measured on texts it held out; None where there is no such file."""
        path = self.folder / METRICS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


@dataclass(frozen=True)
class Ground:
    """What models are trained from: the documents as they were read and cleaned, without those held out."""

    corpus: Corpus
    clean: tuple[str, ...]
    holdout: str | None
    seed: int
    work: Work


class Passing(NamedTuple):
    """The rule of a sample: the keys of the signals that it reads, and whether it holds for documents of a shard. Picklable."""

    keys: list[str]
    of: Callable[[Shard, Positions], Mask]


def train(
    kind: str, config: BaseModel, references: list[Referenced], ground: Ground, engine: Engine, passing: Mapping[str, Passing]
) -> Model:
    """The signal's model, trained unless the work directory has it. `passing` has the rules of its samples by role."""
    signal = SIGNALS[kind]
    of_samples = [
        [shard.name, shard.first_row] for reference in references if reference.sample for shard in ground.corpus.of(reference.sample.sample)
    ]
    spelled = spelled_config(config, references)
    readers = [reference.readers for reference in references if reference.readers]
    rules = [["where", role, *one.keys] for role, one in passing.items()]
    key = key_of(
        "model", kind, signal.version(config), spelled, ground.seed, of_samples, list(ground.clean), ground.holdout, *readers, *rules
    )
    folder = ground.work.room("models") / key
    if not folder.exists():
        texts = {reference.role: _texts(kind, reference, ground, engine, passing.get(reference.role)) for reference in references}
        for role, found in texts.items():
            if not len(found):
                raise UserError(f"{kind}: the reference '{role}' holds no text; it needs documents with a visible '{TEXT}'")
        with folder_atomic(folder) as temporary:
            _train_apart(kind, config, texts, temporary, ground)
    return Model(folder, sha256_folder(folder), key)


def _draw(sample: Sample, shards: list[Shard], ground: Ground, engine: Engine, passing: Passing | None) -> list[Drawn]:
    """A sample's documents. With a rule, ever more candidates are looked at, so that signals are computed for few more documents than it takes."""
    wanted = sample.documents
    while True:
        candidates = draw(shards, ground.seed, wanted, ground.holdout, ground.work, engine)
        if passing is None:
            return candidates
        asked = {shard.name: np.array([one.position for one in candidates if one.shard == shard.name], np.int64) for shard in shards}
        asked = {name: np.sort(positions) for name, positions in asked.items() if len(positions)}
        masks = engine.map(passing.of, [(shard, asked[shard.name]) for shard in shards if shard.name in asked], "choose samples")
        passed = {name: set(positions[mask].tolist()) for (name, positions), mask in zip(asked.items(), masks, strict=True)}
        chosen = [one for one in candidates if one.position in passed[one.shard]]
        if len(chosen) >= sample.documents or len(candidates) < wanted:
            return chosen[: sample.documents]
        wanted *= 4


def _texts(kind: str, reference: Referenced, ground: Ground, engine: Engine, passing: Passing | None) -> pa.LargeStringArray:
    if reference.sample is not None:
        shards = ground.corpus.of(reference.sample.sample)
        return texts_of(_draw(reference.sample, shards, ground, engine, passing), shards, engine)
    assert reference.root is not None
    if reference.is_model:
        return pa.array([str(on_disk(reference.root / reference.paths[0], ground.work.room("scratch")))], pa.large_string())
    reserved = held_contents(ground.corpus.shards, ground.holdout, ground.work, engine)
    fields = Fields(TEXT, None, {})
    found = []
    for path in reference.paths:
        records = list(records_of(FORMATS[_format(reference.root, path)].read(reference.root / path, fields, 0, None)))
        texts = [record.text for record in records if record.text is not None]
        if SIGNALS[kind].whole:
            lost = [record for record in records if record.text is None]
            if lost:
                raise UserError(
                    f"{kind}: {path}#{lost[0].position} cannot be read: {lost[0].reason}; mend the list, no entry of it may be lost"
                )
            found += texts
        else:
            readable = [text for text, _ in (cleaned(text, ground.clean) for text in texts) if has_visible(text)]
            found += [text for text in readable if xxhash.xxh3_128_digest(text.encode()) not in reserved]
    return pa.array(found, pa.large_string())


def _train_apart(kind: str, config: BaseModel, texts: dict[str, pa.LargeStringArray], folder: Path, ground: Ground) -> None:
    paths = {}
    for role, found in texts.items():
        paths[role] = ground.work.room("scratch") / f"{folder.name}.{role}.arrow"
        table = pa.table({TEXT: found})
        with pa.OSFile(str(paths[role]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        try:
            apart.submit(_train_here, kind, config, paths, folder, ground.seed).result()
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
