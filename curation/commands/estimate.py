"""`curate build --dry-run`: what a build would find, from a sample of each source.

Nothing is written. The recipe has been checked whole by then. A sample is taken from all over a source's first, middle and last file (from the start only, where it is compressed), so its figures are
about, not exactly, what the build will count; they are before any step, so they are what there is at most.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from curation import rules
from curation.corpus.file_samples import spread_records
from curation.corpus.record_selection import select
from curation.corpus.sources import Source
from curation.decisions.resolved_steps import Add
from curation.engine.local import Engine, Run
from curation.engine.memory import DOCUMENT, LEAST_RANGE, RANGE_TIMES
from curation.engine.work_directory import Digests, Work
from curation.formats.records import Record, in_chunks, records_of
from curation.recipe import Recipe, Resolved, resolve_recipe
from curation.rules import rule_schema
from curation.text.clean import has_visible
from curation.text.tokenizer import Encoder
from mixing.plan import Mixture, stage_quotas
from mixing.strategies import needs_sizes


class Sampled(NamedTuple):
    """A source by its sample: `documents` and `tokens` are estimates for all of it, `share` maps a component to its part of the documents, if that can be told."""

    name: str
    files: int
    bytes: int
    sampled: int
    unusable: int
    documents: int
    tokens: int
    text_bytes: int
    share: dict[str, float | None]


class Wanted(NamedTuple):
    """What a component is asked for over all stages, and what there is at most; None if that needs a signal, of its own or of one it is weighed against."""

    name: str
    asked: int | None
    cap: float
    tokens: int | None
    verdict: str


@dataclass(frozen=True)
class Estimate:
    """Everything `--dry-run` has to say."""

    sources: list[Sampled]
    components: list[Wanted]
    needed_bytes: int
    free_bytes: int
    memory_bytes: int
    workers: int
    warnings: list[str]


def estimate(recipe: Recipe, folder: Path, run: Run) -> Estimate:
    """Resolves the recipe as a build would and samples its sources."""
    with Engine(run.workers, run.memory) as engine:
        resolved = resolve_recipe(recipe, folder, run, Digests(Work(run.work)), engine)
        sources = []
        with engine.phase("take samples", len(resolved.sources)):
            for source in resolved.sources:
                sources.append(_sample(source, resolved))
                engine.progress.advance()
    sources += [_unmade(one.name, resolved) for one in resolved.syntheses]
    components = _wanted(resolved.recipe.mixture, sources)
    text = sum(source.text_bytes for source in sources)
    documents, tokens = sum(source.documents for source in sources), sum(source.tokens for source in sources)
    width = np.dtype(resolved.tokenizer.dtype).itemsize
    needed = text // 2 + documents * (512 + 200) + 2 * tokens * width
    parent = next(path for path in [run.work.absolute(), *run.work.absolute().parents] if path.exists())
    free = shutil.disk_usage(parent).free
    engine.memory.require("plan", driver=documents * DOCUMENT)
    memory = engine.memory.needed(driver=documents * DOCUMENT, worker=LEAST_RANGE * RANGE_TIMES)
    return Estimate(sources, components, needed, free, memory, run.workers, _warnings(sources, needed, free, memory, resolved))


def _warnings(sources: list[Sampled], needed: int, free: int, memory: int, resolved: Resolved) -> list[str]:
    found = [] if needed < free else [f"warning: about {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free"]
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory > there:
        found.append(
            f"warning: about {memory / 1e6:,.0f} MB of memory are needed and the machine has {there / 1e6:,.0f} MB; take fewer --workers"
        )
    for source, sampled in zip(resolved.sources, sources, strict=False):  # those to be synthesized follow
        if sampled.sampled and sampled.unusable > source.config.max_quarantine * sampled.sampled:
            found.append(
                f"warning: {sampled.unusable:,} of {sampled.sampled:,} sampled records of '{source.name}' cannot be used; the build stops above "
                f"{source.config.max_quarantine:.1%} ({source.where}.max_quarantine)"
            )
    return found


def _sample(source: Source, resolved: Resolved) -> Sampled:
    chosen = sorted({0, len(source.inputs) // 2, len(source.inputs) - 1})
    records: list[Record] = []
    raw = 0
    for index in chosen:
        path, size, _ = source.inputs[index]
        read, share = spread_records(source.root / path, size, source.formats[path], source.fields)
        records += read
        raw += round(size * share)
    selected = list(records_of(select(in_chunks(records, len(source.fields.columns)), source.choice, tuple(resolved.recipe.clean))))
    kept = [(record, record.text) for record in selected if record.text is not None and has_visible(record.text)]
    usable, texts = [record for record, _ in kept], [text for _, text in kept]
    total = sum(one.bytes for one in source.inputs)
    scale = total / raw if raw else 0.0
    if source.config.limit is not None and selected:
        scale = min(scale, source.config.limit / len(selected))
    ids, _ = Encoder.open(resolved.tokenizer).encode(texts)
    bytes_of = sum(len(text.encode()) for text in texts)
    return Sampled(
        source.name,
        len(source.inputs),
        total,
        len(selected),
        len(selected) - len(usable),
        round(len(usable) * scale),
        round(len(ids) * scale),
        round(bytes_of * scale),
        _shares(source, usable, texts, resolved),
    )


def _unmade(name: str, resolved: Resolved) -> Sampled:
    """A source that a model has yet to write: of its components nothing is known but that other sources' have none of it."""
    schema = rule_schema(resolved.columns, {step.name: step.type for step in resolved.steps if isinstance(step, Add)})
    alone = pl.DataFrame({"source": [name]})
    shares: dict[str, float | None] = {}
    for component, predicate in resolved.recipe.mixture.components.items():
        rule = rules.parse(predicate, "", schema)
        elsewhere = set(rule.columns) == {"source"} and not rule.decide(alone)[0].any()
        shares[component] = 0.0 if elsewhere else None
    return Sampled(name, 0, 0, 0, 0, 0, 0, 0, shares)


def _shares(source: Source, usable: list[Record], texts: list[str], resolved: Resolved) -> dict[str, float | None]:
    """Each component's share of the sampled documents, where its predicate reads nothing that is computed later."""
    if resolved.recipe.holdout is not None and source.name in resolved.recipe.holdout.files:
        return dict.fromkeys(resolved.recipe.mixture.components, 0.0)
    columns, carried = resolved.columns, list(source.columns)
    values: dict[str, pa.Array] = {
        "source": pa.array([source.name] * len(usable), pa.large_string()),
        "key": pa.array([record.key for record in usable], pa.large_string()),
        "bytes": pa.array([len(text.encode()) for text in texts], pa.uint64()),
    }
    for name, kind in columns.items():
        place = carried.index(name) if name in carried else -1
        values[name] = pa.array([record.columns[place] if place >= 0 else None for record in usable], kind)
    frame = pl.DataFrame(pl.from_arrow(pa.table(values)))
    signals = {step.name: step.type for step in resolved.steps if isinstance(step, Add)}
    shares: dict[str, float | None] = {}
    for name, predicate in resolved.recipe.mixture.components.items():
        rule = rules.parse(predicate, "", rule_schema(columns, signals))
        known = set(rule.columns) <= set(values)
        shares[name] = (float(rule.decide(frame)[0].mean()) if len(usable) else 0.0) if known else None
    return shares


def _wanted(mixture: Mixture, sources: list[Sampled]) -> list[Wanted]:
    sizes: dict[str, int | None] = {}
    for name in mixture.components:
        shares = [(source.share[name], source.tokens) for source in sources]
        size = sum((share or 0) * count for share, count in shares) * float(mixture.simulated_share())
        sizes[name] = None if any(share is None for share, _ in shares) else round(size)
    asked: dict[str, int] | None = None
    if None not in sizes.values() or not any(needs_sizes(stage.weights) for stage in mixture.stages):
        quotas = stage_quotas(mixture, {name: size or 0 for name, size in sizes.items()})
        asked = {name: sum(one.asked.get(name, 0) for one in quotas) for name in sizes}
    wanted = []
    for name, tokens in sizes.items():
        cap, count = float(mixture.cap(name)), None if asked is None else asked[name]
        verdict = ""
        if tokens is not None and count is not None:
            verdict = "short" if count > cap * tokens else f"at least {count / tokens:.2f} epochs" if tokens else ""
        wanted.append(Wanted(name, count, cap, tokens, verdict))
    return wanted
