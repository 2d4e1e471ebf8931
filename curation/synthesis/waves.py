"""Later waves: documents made from those decided, which go through the same steps.

What is read has been decided by then and stays so: its survivors are context, ranked higher, with which new documents are compared. Sources made from read documents alone are the first wave, those
made from them the second, and so on; the sources of a wave are decided together. Models are trained on what was read, hold-out is chosen from it, and what resembles a held-out document is dropped
from every wave like everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from curation.corpus.shards import Corpus, read_corpus
from curation.decisions.apply_steps import Decided, Wave, decide
from curation.decisions.holdout import drop_resembling
from curation.decisions.signal_models import Ground
from curation.engine.local import Engine
from curation.synthesis.making import synthesize

if TYPE_CHECKING:
    from curation.recipe import Resolved


def synthesize_waves(resolved: Resolved, ground: Ground, decided: Decided, engine: Engine) -> tuple[Corpus, Decided, dict[str, Any]]:
    """Everything read and synthesized, with all decisions, and what people are told of each synthesized source."""
    corpus, told = ground.corpus, {}
    for _, syntheses in groupby(resolved.syntheses, key=lambda one: one.wave):
        made = []
        for one in syntheses:
            shards = [shard for shard in corpus.shards if shard.source in one.parents]
            made.append(synthesize(one, shards, decided.state, ground.seed, engine))
            told[one.name] = made[-1].told
        later = read_corpus([one.source for one in made], ground.clean, ground.work, engine, sum(corpus.read.values()))
        if ground.holdout is not None and resolved.recipe.holdout is not None:
            drop_resembling(ground.holdout, resolved.recipe.holdout.similarity, ground.corpus, later.shards, ground.work, engine)
        state = replace(decided.state, parents=decided.state.parents | {one.source.name: one.parents for one in made})
        decided = _together(decided, decide(resolved.steps, ground, state, engine, Wave(later, corpus.shards, decided)))
        decided.warnings |= {f"{one.source.name}.synthesize": one.warning for one in made if one.warning}
        corpus = corpus.joined(later)
    return corpus, decided, told


def _together(before: Decided, later: Decided) -> Decided:
    """What was decided about sources in two waves: what is by source stands side by side, what is counted is added up."""

    def added(a: dict[Any, int], b: dict[Any, int]) -> dict[Any, int]:
        return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}

    told = {line["step"]: line for line in before.told}
    for line in later.told:
        one = told.get(line["step"], {"groups_gone": 0, "sources": {}})
        told[line["step"]] = line | {"groups_gone": one["groups_gone"] + line["groups_gone"], "sources": one["sources"] | line["sources"]}
    return replace(
        before,
        state=later.state,
        dropped=before.dropped | later.dropped,
        duplicates=before.duplicates | later.duplicates,
        told=[told[step] for step in sorted(told)],
        warnings=before.warnings | later.warnings,
        computed=added(before.computed, later.computed),
        remembered=added(before.remembered, later.remembered),
        taken=added(before.taken, later.taken),
    )
