"""Models that a recipe trains for its signals, from files or from samples of its sources as they were read, or that it names as files.

A model is named by a key over the signal's configuration and the content of its references, so a changed rule never changes a model; the clean steps and what is held out
enter too, because references are cleaned like documents and nothing is trained on a held-out text. Each training runs in a fresh process on one thread: fastText fails on a second training in one process, and differs between runs on two threads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import xxhash
from pydantic import BaseModel

from curation.corpus.input_files import hash_files, locate
from curation.corpus.shards import Corpus, Mask, Positions, Shard
from curation.decisions.holdout import Drawn, draw, held_contents, texts_of
from curation.engine.atomic_files import beside
from curation.engine.local import Engine, Run
from curation.engine.memory import Memory
from curation.engine.work_directory import Digests, Work, folder_atomic, key_of, sha256_folder
from curation.formats import ACCEPTED, FORMATS, format_of, readers_of, true_format
from curation.formats.records import Fields, Record, records_of
from curation.signals import SIGNALS, Columns, ModelFile, ModelFolder, Reference, Sample
from curation.text.clean import cleaned, has_visible, spelled
from curation.text.tokenizer import HUB_NAME, hub_folder
from mixing import UserError
from mixing.canonical import canonical_json
from mixing.remote import Place, on_disk

TEXT = "text"
METRICS = "metrics.json"
TEXTS = Columns([TEXT], [TEXT])


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
    is_folder: bool = False


def resolve_references(
    where: str, kind: str, config: BaseModel, sources: list[str], folder: Path, run: Run, digests: Digests, engine: Engine
) -> list[Referenced]:
    """The references of a signal, found and hashed; everything about them that can be refused before data is read."""
    columns = SIGNALS[kind].columns(config)
    return [
        _resolve(f"{where}.{role}", role, one, columns.get(role, TEXTS), sources, folder, run, digests, engine)
        for role, one in SIGNALS[kind].references(config).items()
    ]


def _resolve(
    where: str,
    role: str,
    reference: Reference | ModelFile | ModelFolder,
    wanted: Columns,
    sources: list[str],
    folder: Path,
    run: Run,
    digests: Digests,
    engine: Engine,
) -> Referenced:
    if isinstance(reference, ModelFolder):
        return _resolve_folder(where, role, reference, folder, run, digests, engine)
    if isinstance(reference, ModelFile):
        return _resolve_model(where, role, reference, folder, run, digests, engine)
    if isinstance(reference, Sample):
        if reference.sample not in sources:
            raise UserError(f"{where}: no source '{reference.sample}'; the recipe has: {', '.join(sources)}")
        return Referenced(role, None, [], reference, reference.model_dump(exclude_none=True))
    root, name, patterns, paths = locate(where, reference, role, folder, run.roots)
    unknown = [path for path in paths if format_of(path) is None]
    if unknown:
        raise UserError(f"{where}: cannot read {unknown[0]!r}; accepted, with a column {_any(wanted)}: {ACCEPTED}")
    readers = readers_of(where, {path: _format(root, path) for path in paths})
    for path in paths:
        if format_of(path) in ("parquet", "arrow", "delimited") or wanted is not TEXTS:
            columns = FORMATS[_format(root, path)].columns(root / path, wanted.names)
            if columns is None:
                raise UserError(f"{where}: {path} cannot be read as {str(format_of(path)).title()}; mend it or leave it out")
            there = [column for column, _ in columns]
            if not set(wanted.needed) & set(there):
                raise UserError(f"{where}: no column {_any(wanted)} in {path}; it has: {', '.join(there) or 'none that is known'}")
    inputs = hash_files(root, paths, digests, engine, f"hash {role}")
    named = [one.digest if wanted is TEXTS else [one.path, one.digest] for one in inputs]  # a record's place names it
    return Referenced(role, root, paths, None, {"root": name, "pattern": patterns[0], "digest": key_of(named)}, readers)


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


def _resolve_folder(where: str, role: str, model: ModelFolder, folder: Path, run: Run, digests: Digests, engine: Engine) -> Referenced:
    """A model's folder, found here or on the hub, looked into and hashed."""
    local = folder / Path(model.path).expanduser()
    on_hub = not local.exists() and ":" not in model.path and HUB_NAME.fullmatch(model.path.partition("@")[0]) is not None
    if on_hub:
        root, name, pattern = (
            hub_folder(where, model.path, model.files, "a folder with a transformers model, or a hub name"),
            "hub",
            model.path,
        )
    else:
        found, name, patterns, _ = locate(where, f"{model.path}/config.json", role, folder, run.roots)
        if not isinstance(found, Path):
            raise UserError(
                f"{where}: {model.path} lies in an object store; a model is read from a local folder or the Hugging Face hub: copy it"
            )
        root, pattern = (found / patterns[0]).parent, Path(model.path).name
    try:
        model.check(root)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    paths = sorted({path.name for files in model.files for path in root.glob(files)})
    inputs = hash_files(root, paths, digests, engine, f"hash {role}")
    digest = hashlib.sha256(canonical_json([[one.path, one.digest] for one in inputs]).encode()).hexdigest()
    return Referenced(role, root, paths, None, {"root": name, "pattern": pattern, "digest": digest}, is_folder=True)


def _any(wanted: Columns) -> str:
    return " or ".join(f"'{name}'" for name in wanted.needed)


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
    """A model: its folder, the sha256 over its files, its key, and the bytes that using it takes."""

    folder: Path
    sha256: str
    key: str
    bytes: int

    def metrics(self) -> dict[str, Any] | None:
        """What its training measured on texts it held out; None where there is no such file, and for a model that others trained."""
        path = self.folder / METRICS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() and self.folder.name == self.key else None


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
    name: str,
    kind: str,
    config: BaseModel,
    references: list[Referenced],
    ground: Ground,
    engine: Engine,
    passing: Mapping[str, Passing],
) -> Model:
    """The model of the signal `name`, trained unless the work directory has it, or where it lies. `passing` has the rules of its samples by role."""
    signal = SIGNALS[kind]
    of_samples = [
        [shard.name, shard.first_row] for reference in references if reference.sample for shard in ground.corpus.of(reference.sample.sample)
    ]
    written = spelled_config(config, references)
    readers = [reference.readers for reference in references if reference.readers]
    rules = [["where", role, *one.keys] for role, one in passing.items()]
    key = key_of(
        "model", kind, signal.version(config), written, ground.seed, of_samples, spelled(ground.clean), ground.holdout, *readers, *rules
    )
    for reference in references:
        if reference.is_folder:
            assert isinstance(reference.root, Path)
            size = sum((reference.root / path).stat().st_size for path in reference.paths)
            assert isinstance(reference.spelled, dict)
            return Model(reference.root, reference.spelled["digest"], key, size)
    folder = ground.work.room("models") / key
    if not folder.exists():
        columns = signal.columns(config)
        texts = {
            reference.role: _records(kind, reference, columns[reference.role], ground)
            if reference.role in columns
            else _texts(kind, reference, ground, engine, passing.get(reference.role))
            for reference in references
        }
        for role, found in texts.items():
            if not len(found):
                raise UserError(f"{kind}: the reference '{role}' holds no text; it needs documents with a visible '{TEXT}'")
        with folder_atomic(folder) as temporary:
            _train_apart(name, kind, config, texts, temporary, ground, engine)
    return Model(folder, sha256_folder(folder), key, sum(path.stat().st_size for path in folder.rglob("*")))


def require(model: Model, kind: str, config: BaseModel, step: str, memory: Memory) -> None:
    """Refuses a model for which the processes that will have it have no room; one that is mapped takes none."""
    signal = SIGNALS[kind]
    if not signal.mapped:
        at_most = signal.processes(config) if signal.processes is not None else None
        memory._replace(workers=min(memory.workers, at_most or memory.workers)).require(f"add {step}", worker=model.bytes)


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
            _refuse_loss(kind, path, records)
            found += texts
        else:
            readable = [text for text, _ in (cleaned(text, ground.clean) for text in texts) if has_visible(text)]
            found += [text for text in readable if xxhash.xxh3_128_digest(text.encode()) not in reserved]
    return pa.array(found, pa.large_string())


def _records(kind: str, reference: Referenced, wanted: Columns, ground: Ground) -> pa.LargeStringArray:
    """The records of a reference as JSON objects of their columns as text, cleaned like documents, and where they stand under the name of none."""
    assert reference.root is not None
    fields = Fields(None, None, dict.fromkeys(wanted.names, "string"))
    found = []
    for path in reference.paths:
        records = list(records_of(FORMATS[_format(reference.root, path)].read(reference.root / path, fields, 0, None)))
        _refuse_loss(kind, path, records)
        for record in records:
            values = zip(wanted.names, record.columns, strict=True)
            texts = {name: cleaned(value, ground.clean)[0] for name, value in values if isinstance(value, str)}
            found.append(orjson.dumps({"": f"{path}#{record.position}", **texts}))
    return pa.array(found, pa.large_binary()).cast(pa.large_string())


def _refuse_loss(kind: str, path: str, records: list[Record]) -> None:
    lost = next((record for record in records if record.reason is not None), None)
    if lost is not None:
        raise UserError(f"{kind}: {path}#{lost.position} cannot be read: {lost.reason}; mend the list, no entry of it may be lost")


def _train_apart(
    name: str, kind: str, config: BaseModel, texts: dict[str, pa.LargeStringArray], folder: Path, ground: Ground, engine: Engine
) -> None:
    paths, scratch = {}, ground.work.room("scratch")
    for role, found in texts.items():
        paths[role] = scratch / f"{folder.name}.{role}.arrow"
        table = pa.table({TEXT: found})
        with pa.OSFile(str(paths[role]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    try:
        made = engine.apart(_train_here, (kind, config, paths, scratch / folder.name, ground.seed), f"train {name}")
    except UserError as error:
        raise UserError(f"{kind}: {error}") from None
    for path in made.iterdir():
        shutil.move(path, folder / path.name)


def _train_here(kind: str, config: BaseModel, paths: dict[str, Path], near: Path, seed: int) -> Path:
    """The folder of the model, one of this attempt alone."""
    texts, folder = {}, beside(near)
    folder.mkdir()
    for role, path in paths.items():
        with pa.memory_map(str(path)) as source:
            texts[role] = pa.ipc.open_file(source).read_all()[TEXT].combine_chunks()
    SIGNALS[kind].train(config, texts, folder, seed)
    return folder
