"""`curate build`, top to bottom."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curation.assemble import Measured, Planned, assemble, make_plan, measure
from curation.corpus.shards import Corpus, read_corpus
from curation.corpus.token_ids import token_key
from curation.decisions.apply_steps import Decided, State, decide
from curation.decisions.duplicates import normalized_key, signature_key
from curation.decisions.holdout import reserve
from curation.decisions.resolved_steps import Step
from curation.decisions.signal_models import Ground
from curation.engine.local import Engine, Run, is_full
from curation.engine.memory import DOCUMENT
from curation.engine.work_directory import Digests, Work, write_json
from curation.recipe import Recipe, Resolved, resolve_recipe
from curation.synthesis.waves import synthesize_waves
from curation.text.tokenizer import Encoder
from mixing import UserError
from mixing.canonical import canonical_json
from mixing.manifest import Manifest
from mixing.write import ManifestWriter


@dataclass(frozen=True)
class Built:
    """A manifest and how it came about: `unchanged` if it lay there already, and what the signals had to compute."""

    folder: Path
    digest: str
    unchanged: bool
    seconds: float
    computed: dict[str, int]
    remembered: dict[str, int]
    warnings: list[str]

    @property
    def manifest(self) -> Manifest:
        """What was made, opened."""
        return Manifest.open(self.folder)


def build(recipe: Recipe, folder: Path, target: Path, run: Run, *, replace: bool = False) -> Built:
    """Builds the manifest of `recipe`, whose paths start at `folder`, into `target`."""
    began = time.monotonic()
    work = Work(run.work, secrets.token_hex(4))
    with work.locked(), _engine(run) as engine:
        try:
            return _build(recipe, folder, target, run, replace, work, engine, began)
        except KeyboardInterrupt:
            engine.journal.end("interrupted")
            raise
        except UserError:
            engine.journal.end("refused")
            raise
        except OSError as error:
            if not is_full(error):
                raise
            shutil.rmtree(work.root / "scratch", ignore_errors=True)  # room for whoever has to make some
            raise _no_room(work.root, target, engine.journal.phase) from None


def _engine(run: Run) -> Engine:
    if run.ray is None:
        return Engine(run.workers, run.memory)
    from curation.engine.cluster import Cluster

    return Cluster(run.ray, run.workers, run.memory, run.work)


def _no_room(work: Path, target: Path, phase: str) -> UserError:
    places = {
        "the work directory": work,
        "the manifest's folder": next(path for path in [target, *target.absolute().parents] if path.exists()),
    }
    free = ", ".join(f"{name} {path} has {shutil.disk_usage(path).free / 1e6:,.0f} MB free" for name, path in places.items())
    return UserError(
        f"no room left on the disk in '{phase}' ({free}); make room, with `curate clean --work {work}` perhaps, or move either with --work and -o, "
        "and run the same command again: what was finished is kept, and the build goes on from there"
    )


def _build(recipe: Recipe, folder: Path, target: Path, run: Run, replace: bool, work: Work, engine: Engine, began: float) -> Built:
    digests = Digests(work)
    resolved = resolve_recipe(recipe, folder, run, digests, engine)
    recipe = resolved.recipe
    digests.save()
    if (digest := _unchanged(resolved, target, work)) is not None:
        (work.room("builds") / f"{resolved.key}.json").touch()  # `curate clean` goes by when a build was last wanted
        return Built(target, digest, True, time.monotonic() - began, {}, {}, [])
    engine.journal.open(work.root / "log", resolved.key, workers=engine.memory.workers, memory=run.memory)
    _refuse_target(target, resolved.values, replace=replace)
    encoder = Encoder.open(resolved.tokenizer)
    corpus = read_corpus(resolved.sources, tuple(recipe.clean), work, engine)
    holdout = reserve(recipe.holdout, resolved.earlier, recipe.seed, corpus, work, engine) if recipe.holdout else None
    scratch = work.room("scratch")
    exams = frozenset(recipe.holdout.files if recipe.holdout else ())
    state = State(work, scratch, holdout.key if holdout else None, resolved.tokenizer, resolved.columns, exams=exams)
    ground = Ground(corpus, tuple(recipe.clean), state.holdout, recipe.seed, work)
    decided = decide(resolved.steps, ground, state, engine)
    corpus, decided, synthesized = synthesize_waves(resolved, ground, decided, engine)
    measured = _by_source(
        corpus, engine.map(measure, [(shard, recipe.mixture, resolved.steps, decided.state) for shard in corpus.shards], "count tokens")
    )
    engine.memory.require("plan", driver=DOCUMENT * sum(one.kept - one.unassigned for one in measured.values()))
    first_made = sum(ground.corpus.read.values()) if resolved.syntheses else None
    (planned,) = engine.map(make_plan, [(corpus.shards, recipe.mixture, recipe.seed, first_made, decided.state)], "plan")
    with ManifestWriter(target, resolved.tokenizer.dtype, replace=replace) as writer:
        writer.tokenizer(resolved.tokenizer.files)
        used = assemble(writer, corpus, decided.state, resolved.steps, planned, engine)
        with engine.phase("finish"):
            digest = writer.finish(
                _header(resolved, corpus, decided, measured, used, planned),
                _provenance(resolved, encoder.name, run, engine.memory.workers, began) | _counted(corpus, decided, synthesized),
            )
    write_json(work.room("builds") / f"{resolved.key}.json", _record(digest, corpus, decided, work))
    warnings = [*_misfits(corpus), *(holdout.warnings if holdout else []), *decided.warnings.values(), *planned.warnings]
    return Built(target, digest, False, time.monotonic() - began, decided.computed, decided.remembered, warnings)


def _unchanged(resolved: Resolved, target: Path, work: Work) -> str | None:
    """The digest of the manifest at `target` if it is what this build would make, and whole."""
    remembered = work.room("builds") / f"{resolved.key}.json"
    if not remembered.exists() or not (target / "manifest.json").exists():
        return None
    digest = str(json.loads(remembered.read_text())["digest"])
    try:
        return digest if Manifest.open(target).digest == digest else None
    except UserError:
        return None


def _refuse_target(target: Path, recipe: dict[str, Any], *, replace: bool) -> None:
    """Says at the start, not after hours, that the target folder is something else, damaged, or a manifest of another recipe or of other inputs."""
    if target.exists() and not (target / "manifest.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"-o {target}: exists and is not a manifest; choose another folder or remove it")
    if target.exists() and any(target.iterdir()) and not replace:
        try:
            there = Manifest.open(target)
        except UserError as error:
            raise UserError(f"-o {target}: {error}, or pass --replace") from None
        if canonical_json(there.header["recipe"]) != canonical_json(recipe):
            raise UserError(
                f"-o {target}: holds another manifest, {there.header['name']} v{there.header['version']}, digest {there.digest}, of another recipe or other "
                "inputs; choose another folder and compare the two with `curate diff`, or pass --replace"
            )


def _misfits(corpus: Corpus) -> list[str]:
    """Values that a rule sees as null though the files have something there."""
    return [
        f"{source.where}: {count:,} value{'s'[: count > 1]} of the column '{name}' {'are' if count > 1 else 'is'} not of its type, {source.fields.columns[name]}, and null here; "
        "a column has the type of its first records"
        for source in corpus.sources
        for name, count in corpus.misfits[source.name].items()
        if count
    ]


def _by_source(corpus: Corpus, measured: list[Measured]) -> dict[str, Measured]:
    totals = {source.name: Measured(0, 0, 0) for source in corpus.sources}
    for shard, one in zip(corpus.shards, measured, strict=True):
        totals[shard.source] = Measured(*(a + b for a, b in zip(totals[shard.source], one, strict=True)))
    return totals


def _header(
    resolved: Resolved, corpus: Corpus, decided: Decided, measured: dict[str, Measured], used: dict[str, int], planned: Planned
) -> dict[str, Any]:
    recipe, tokenizer = resolved.recipe, resolved.tokenizer
    sources = {}
    for source in corpus.sources:
        counts = measured[source.name]
        sources[source.name] = {
            "read": corpus.read[source.name],
            "quarantined": sum(corpus.quarantined[source.name].values()),
            "dropped": _dropped(decided.dropped[source.name], resolved.steps),
            "held_out": counts.held_out,
            "kept": counts.kept,
            "used": used[source.name],
            "unused": counts.kept - counts.unassigned - used[source.name],
            "unassigned": counts.unassigned,
            "licence": source.config.licence,
            "inputs": [{"path": one.path, "bytes": one.bytes, "digest": one.digest} for one in source.inputs],
        }
    return {
        "name": recipe.name,
        "version": recipe.version,
        "seed": recipe.seed,
        "recipe": resolved.values,
        "parent": None,
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "dtype": tokenizer.dtype,
        },
        **planned.header,
        "sources": sources,
        "models": {name: {"kind": kind, "sha256": model.sha256} for name, (kind, model) in decided.models.items()},
    }


def _dropped(fates: dict[int, int], steps: list[Step]) -> list[dict[str, Any]]:
    """Documents dropped, by step: 0 is the hold-out, whose copies go first."""
    by_step: dict[int, int] = {}
    for fate, count in fates.items():
        by_step[fate // 2] = by_step.get(fate // 2, 0) + count
    rule = {0: "holdout"} | {step.index: getattr(step, "rule", "") for step in steps}
    return [{"step": step, "rule": rule[step], "documents": count} for step, count in sorted(by_step.items())]


def _provenance(resolved: Resolved, encoder: str, run: Run, workers: int, began: float) -> dict[str, Any]:
    packages = ("tilth", "polars", "pyarrow", "numpy", "numba", "fasttext", "tokenizers", "fastokens")
    return {
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 3),
        "user": os.environ.get("USER", ""),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages} | resolved.readers,
        "encoder": encoder,
        "work": str(run.work.resolve()),
        "build": resolved.key,
        "roots": {source.name: str(source.root) for source in resolved.sources},
        "workers": workers,
    }


def _counted(corpus: Corpus, decided: Decided, synthesized: dict[str, Any]) -> dict[str, Any]:
    """What the build counted besides the manifest's header."""
    return {
        "cleaned": corpus.cleaned,
        "duplicates": decided.told,
        "models": {name: found for name, (_, model) in decided.models.items() if (found := model.metrics()) is not None},
        "compared": {name: one for name, one in decided.reports.items() if one},
        "synthesized": synthesized,
    }


def _record(digest: str, corpus: Corpus, decided: Decided, work: Work) -> dict[str, Any]:
    """What `show`, `why` and `clean` know of a build: its shards, and the keys of its sidecars and models."""
    state = decided.state
    placed = {key for keys in state.keys().values() for key in keys.values()}
    keys = {token_key(state.tokenizer), signature_key(), normalized_key(), *placed}
    return {
        "digest": digest,
        "shards": [_portable(shard, work) for shard in corpus.shards],
        "sidecars": sorted(keys | ({state.holdout} if state.holdout else set())),
        "models": sorted(model.key for _, model in decided.models.values()),
    }


def _portable(shard: Any, work: Work) -> dict[str, Any]:
    """A shard as `show` and `why` find it again in the work directory."""
    return asdict(shard) | {"path": shard.path.relative_to(work.root).as_posix()}
