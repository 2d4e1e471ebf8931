"""Recipes and training configurations of the experiments, and what every claim begins from: an exam, a base model.

The exam is a manifest of its own whose hold-out measures everything: of each corpus, passages of documents that nothing else reads. Whatever is trained
on is first compared with the exam's documents (an index), and what equals or nearly equals one is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.rig import corpora
from experiments.rig.corpora import DOMAINS, EXAM, GENERAL, REFERENCE, UNSEEN, Domain
from experiments.rig.running import Settings, Workshop
from experiments.rig.scale import Scale

CURVE = {"first": 0.03, "every": 0.2}
ENDS = {"first": None, "every": 0.5}
FIRST = next(iter(DOMAINS))
BOOKS = 0.92  # of general text, as the base reads it
COPIES: list[Settings] = [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}]


@dataclass(frozen=True)
class Rig:
    """One seed of one domain: its base, its draws, its pool."""

    workshop: Workshop
    scale: Scale
    domain: str
    seed: int

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.parts.kinds

    @property
    def parts(self) -> Domain:
        return DOMAINS[self.domain]

    @property
    def corpora(self) -> Path:
        return self.workshop.folder / "corpora"

    # What everything is measured by.

    @cached_property
    def exam(self) -> Path:
        sources = {kind: {"files": f"corpora:{kind}.parquet", "where": f"part < {EXAM}"} for kind in (*GENERAL, *self.kinds)}
        recipe = self.plain(sources, {"all": "bytes > 0"}, [stage(1_000, {"all": 1})], COPIES)
        holdout = {"documents": self.scale.exam_documents}
        return self.workshop.manifest(f"exam-{self.domain}", recipe | {"seed": 1, "name": "exam", "holdout": holdout})

    @cached_property
    def reserved(self) -> Path:
        """The index of every passage of the exam's documents."""
        sources = {kind: {"files": f"corpora:{kind}.parquet", "where": f"part < {EXAM}"} for kind in corpora.kinds()}
        return self.workshop.index("exam", {"sources": sources})

    def made(self) -> None:
        """Makes what the seeds of a domain share."""
        assert self.exam.is_dir()
        assert self.reserved.is_dir()
        corpora.reference(self.corpora, self.domain)

    # What is trained on.

    def recipe(
        self,
        sources: Mapping[str, Any],
        components: Mapping[str, str],
        stages: Sequence[Settings],
        steps: Sequence[Settings] = (),
        **mixture: Any,
    ) -> dict[str, Any]:
        """A recipe that drops what equals or resembles a document of the exam, or another of its own that stands before it."""
        apart = {"kind": "minhash", "against": f"runs:{self.reserved.relative_to(self.workshop.folder)}"}
        first: list[Settings] = [{"add": {"known": apart}}, {"keep": "known IS NULL"}]
        return self.plain(sources, components, stages, [*first, *steps], **mixture)

    def plain(
        self,
        sources: Mapping[str, Any],
        components: Mapping[str, str],
        stages: Sequence[Settings],
        steps: Sequence[Settings],
        **mixture: Any,
    ) -> dict[str, Any]:
        return {
            "version": 1,
            "seed": self.seed,
            "tokenizer": {"path": "corpora:tokenizer"},
            "sources": dict(sources),
            "steps": list(steps),
            "mixture": {"sequence_length": self.scale.sequence_length, "components": dict(components), **mixture, "stages": list(stages)},
        }

    def general(self) -> dict[str, Any]:
        """The sources that the base was trained on."""
        return {kind: {"files": f"corpora:{kind}.parquet", "where": f"part >= {EXAM} AND part < {UNSEEN}"} for kind in GENERAL}

    @cached_property
    def stock(self) -> Path:
        """A manifest to plan arms from: of the domain's corpora and of general text as many documents as the arms read, drawn by the seed."""
        tokens = self.scale.tokens
        sources = {kind: {"files": f"corpora:{kind}.parquet", "where": f"part >= {REFERENCE}"} for kind in self.kinds} | self.general()
        weights = {
            "domain": {"weight": 1, "components": dict.fromkeys(self.kinds, 1)},
            "general": {"weight": 1, "components": dict.fromkeys(GENERAL, 1)},
        }
        recipe = self.recipe(sources, of_sources([*self.kinds, *GENERAL]), [stage(2 * tokens, weights)])
        return self.workshop.manifest(f"stock-{self.domain}-{self.seed}", recipe)

    def planned(self, name: str, stages: Sequence[Settings], **mixture: Any) -> Path:
        """Another plan from the stock's documents."""
        components = of_sources([*self.kinds, *GENERAL])
        used = {kind for one in stages for kind in named(one["weights"])}
        kept = {kind: rule for kind, rule in components.items() if kind in used}
        planned = {"sequence_length": self.scale.sequence_length, "components": kept, **mixture, "stages": list(stages)}
        return self.workshop.remix(self.stock, f"{name}-{self.domain}-{self.seed}", {"mixture": planned})

    def mixed(self, replay: float, books: float = BOOKS) -> dict[str, Any]:
        """Weights: the domain's corpora in equal parts, and a share of general text as the base has read it (or with other shares of books)."""
        if not replay:
            return dict.fromkeys(self.kinds, 1)
        general = {kind: share for kind, share in zip(GENERAL, (books, 1 - books), strict=True) if share}
        return {"strategy": "replay", "share": replay, "replay": general, "rest": dict.fromkeys(self.kinds, 1)}

    def pooled(self, name: str, steps: Sequence[Settings], weights: Settings, tokens: int, general: float = 0.0, visits: int = 1) -> Path:
        """A manifest of the noisy pool and general text."""
        file = corpora.pool(self.corpora, self.domain, self.seed, round(1.03 * self.scale.pool_tokens), general)
        sources = {"pool": {"files": f"corpora:{file.name}", "columns": ["kind"]}} | (self.general() if len(weights) > 1 else {})
        recipe = self.recipe(sources, of_sources(list(sources)), [stage(tokens, weights)], steps, max_epochs={"pool": visits})
        return self.workshop.manifest(f"{name}-{self.domain}-{self.seed}", recipe)

    def selected(self, scorer: str, share: float, general: float = 0.0) -> list[dict[str, Any]]:
        """Steps: the best `share` of the pool's tokens by a scorer."""
        budget = {"where": "source = 'pool'", "tokens": round(share * self.scale.pool_tokens)}
        reference = f"corpora:{corpora.reference(self.corpora, self.domain).name}"
        if scorer == "random":
            return [{"top": {"order": "random", **budget}}]
        if scorer == "perplexity":
            return [
                {"add": {"surprise": {"kind": "ngram", "reference": reference, "order": 2}}},
                {"top": {"by": "surprise", "order": "ascending", **budget}},
            ]
        return [
            {"add": {"likeness": {"kind": "importance", "target": reference, "pool": {"sample": "pool"}}}},
            {"top": {"by": "likeness.mean", "order": "descending", **budget}},
        ]

    # Models.

    def base(self) -> Path:
        """The model that the seed's arms begin from: general text once, warm-up, constant rate, a decay over the last fifth."""
        if self.domain != FIRST:
            return replace(self, domain=FIRST).base()  # one base a seed, watched by one exam, whatever the domain
        recipe = self.recipe(self.general(), of_sources(GENERAL), [stage(self.scale.base_tokens, {"strategy": "proportional"})])
        manifest = self.workshop.manifest(f"base-{self.seed}", recipe)
        config = self.config({"config": self.scale.model}, self.scale.base_rate) | {
            "batch": self.scale.base_batch,
            "schedule": {"kind": "wsd", "warmup": 0.03, "decay": 0.2},
        }
        return self.workshop.trained(f"base-{self.seed}", manifest, config) / "export"

    def config(self, model: Settings, rate: float, **evaluate: Any) -> dict[str, Any]:
        return {
            "model": dict(model),
            "seed": self.seed,
            "batch": self.scale.batch,
            "compile": self.scale.compile,
            "optimizer": {"learning_rate": rate},
            "schedule": {"kind": "cosine", "warmup": 0.05},
            "evaluate": ENDS | {"holdouts": [str(self.exam)], "guards": [f"exam-v1/{kind}" for kind in GENERAL]} | evaluate,
            "checkpoint": {"every": 0.25, "keep": 1},
        }


def stage(tokens: int | str, weights: Settings, name: str = "train", **more: Any) -> dict[str, Any]:
    return {"name": name, "tokens": tokens, "weights": dict(weights), **more}


def named(weights: Settings) -> set[str]:
    """The components that weights name, at any depth."""
    inner = [value for key, value in weights.items() if isinstance(value, Mapping) and key != "max_epochs"]
    here = {key for key, value in weights.items() if not isinstance(value, Mapping | str) and key not in ("share", "weight", "components")}
    return here.union(*map(named, inner), weights.get("components") or [])


def of_sources(kinds: Sequence[str]) -> dict[str, str]:
    """A component for each source, under its name."""
    return {kind: f"source = '{kind}'" for kind in kinds}
