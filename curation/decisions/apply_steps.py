"""Apply the recipe's steps: `add` a signal, `keep` by a rule, take the `top` by rank.

Every document has a fate: alive, or the step that dropped it. The fates of a shard are one u16 a document in the scratch room; they are a pure function of the recipe and of
remembered values, so a build that was killed makes them anew in seconds. Steps that look at one document run together, shard by shard; what needs all documents (finding
duplicates, `top`) ends such a stretch. A signal is computed for the documents alive when its step runs and for no other, and only where its value is not remembered.

Held-out documents go through the row-wise steps, so that the rule they fail is known, but take no part in duplicates and in `top`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from curation import rules
from curation.corpus.shards import Corpus, Mask, Positions, Shard, contents, fill_sidecar, identities, read_sidecar, sidecar_path
from curation.corpus.token_ids import tokenize
from curation.decisions.build_state import Placed
from curation.decisions.build_state import State as State
from curation.decisions.dedup_guard import ALIVE as ALIVE
from curation.decisions.dedup_guard import Copies, Dropped, Loss, Removal, gone, guard, losses, survivors_of, told, within
from curation.decisions.duplicates import DEDUP, LiveShard, Priority, find_duplicates, find_repeats, report_of
from curation.decisions.holdout import holdout_of
from curation.decisions.ranking import Ranked, cost_of, find_cut, left_of, lots, order_key
from curation.decisions.resolved_steps import Add, Keep, Step, Top, fate_of
from curation.decisions.signal_models import Ground, Model, Passing, require, spelled_config, train
from curation.dedup.exact import ExactConfig
from curation.dedup.minhash import MinhashConfig
from curation.dedup.repeats import RepeatsConfig
from curation.engine.atomic_files import save
from curation.engine.local import Engine
from curation.engine.work_directory import key_of
from curation.signals import SIGNALS

GIVEN_UP = "that might be alike were not compared, because more than 10,000 documents that stay share one rare shingle; some near-duplicates among them may have stayed"
Fates = npt.NDArray[np.uint16]


def frame(shard: Shard, names: list[str], positions: Positions, state: State) -> pl.DataFrame:
    """The named columns of a shard's documents at `positions`."""
    columns: dict[str, Any] = {}
    for name in names:
        if name == "source":
            columns[name] = pl.Series(name, [shard.source], dtype=pl.String).new_from_index(0, len(positions))
        elif name in ("origin", "content"):
            columns[name] = pl.Series(name, identities(shard, name, positions), dtype=pl.String)
        elif name in state.signals:
            columns[name] = pl.Series(name, pl.from_arrow(signal_values(shard, name, state).take(pa.array(positions))))
        elif name in ("key", "bytes"):
            columns[name] = pl.Series(name, pl.from_arrow(shard.read([name])[name].take(pa.array(positions))))
        elif name in shard.columns:
            columns[name] = pl.Series(name, pl.from_arrow(shard.read([f"column.{name}"])[f"column.{name}"].take(pa.array(positions))))
        else:
            columns[name] = pl.Series(name, pl.from_arrow(pa.nulls(len(positions), state.columns[name])))
    return pl.DataFrame(columns) if columns else pl.DataFrame({"": np.zeros(len(positions), np.bool_)})


def signal_values(shard: Shard, name: str, state: State) -> pa.Array:
    """A signal's values as the pool shows them, null where not computed."""
    placed = state.signals[name]
    sidecar = read_sidecar(sidecar_path(state.work, placed.of(shard), shard))
    if sidecar is None:
        return pa.nulls(shard.documents, placed.type)
    if not placed.survivors:
        return sidecar.values
    if not pa.types.is_struct(placed.type):
        return sidecar.values.field("row")
    parts = [sidecar.values.field(one.name) for one in placed.type]
    return pa.StructArray.from_arrays(parts, fields=list(placed.type), mask=sidecar.values.is_null())


# --- one shard


class Outcome(NamedTuple):
    """What a stretch of steps did to one shard: documents dropped by fate, duplicates dropped by step, and per signal the values computed and remembered."""

    dropped: dict[int, int]
    duplicates: dict[int, Copies]
    computed: dict[str, int]
    remembered: dict[str, int]
    alive: int


def advance(shard: Shard, steps: list[Step], models: dict[int, Path], state: State) -> Outcome:
    """Takes a shard's documents through row-wise steps: reads texts a row group at a time, and only where a value is missing."""
    fates, held = start(shard, state)
    computed: dict[str, int] = {}
    remembered: dict[str, int] = {}
    duplicates: dict[int, Copies] = {}
    spans = shard.spans()
    for step in steps:
        alive = fates == ALIVE
        if isinstance(step, Add):
            path = sidecar_path(state.work, state.signals[step.name].key, shard)
            sidecar = fill_sidecar(path, alive, partial(_compute, step, models.get(step.index), shard), spans)
            computed[step.name], remembered[step.name] = sidecar.computed, int(alive.sum()) - sidecar.computed
        elif isinstance(step, Keep):
            if shard.source not in state.exams:
                _keep(shard, step, fates, np.flatnonzero(alive), state)
            if (removal := removal_by(step, state)) is not None:
                named, rows = survivors_of(shard, removal.keys, np.flatnonzero(alive & (fates != ALIVE)), state.work)
                duplicates[step.index] = Copies(int(named.sum()), int((named & within(rows, state.rows[shard.source])).sum()))
        else:
            _take_top(shard, step, fates, np.flatnonzero(alive & ~held), state)
    save(_next_fates(shard, steps, state), fates)  # an attempt after this one starts from what this one did
    save(state.present(shard), fates == ALIVE)
    save(state.mask(shard), (fates == ALIVE) & ~held)
    values, counts = np.unique(fates[~held], return_counts=True)
    dropped = {int(value): int(count) for value, count in zip(values, counts, strict=True) if value != ALIVE}
    return Outcome(dropped, duplicates, computed, remembered, int((fates[~held] == ALIVE).sum()))


def _next_fates(shard: Shard, steps: list[Step], state: State) -> Path:
    """Where a stretch of steps leaves the fates, until it has ended for all shards."""
    return state.fates(shard).with_suffix(f".{steps[-1].index if steps else 0}.npy")


def start(shard: Shard, state: State) -> tuple[Fates, Mask]:
    """(fates so far, who is held out). Before the first step only what equals a held-out document has been dropped."""
    nothing = np.zeros(shard.documents, np.bool_)
    held, copies = (nothing, nothing) if state.holdout is None else holdout_of(shard, state.holdout, state.work)
    if state.fates(shard).exists():
        return np.load(state.fates(shard)), held
    return np.where(copies, fate_of(0), ALIVE).astype(np.uint16), held


def _compute(step: Add, model: Path | None, shard: Shard, positions: Positions) -> pa.Array:
    signal = SIGNALS[step.kind]
    reads = signal.reads(step.config)
    if reads == "text":
        return signal.compute(step.config, shard.texts(positions), model)
    return signal.compute(step.config, pa.array(identities(shard, reads, positions), pa.large_string()), model)


def _passes(shard: Shard, positions: Positions, where: str, path: str, reads: list[tuple[Add, Path | None]], state: State) -> Mask:
    """Whether a sample's rule holds for documents as they were read; computes what it reads of them."""
    wanted = np.zeros(shard.documents, np.bool_)
    wanted[positions] = True
    for step, model in reads:
        fill_sidecar(
            sidecar_path(state.work, state.signals[step.name].key, shard), wanted, partial(_compute, step, model, shard), shard.spans()
        )
    rule = rules.parse(where, path, state.schema())
    return rule.decide(frame(shard, rule.columns, positions, state))[0]


def removal_by(step: Keep, state: State) -> Removal | None:
    """The step as one that drops duplicates, if its rule looks at a signal that names survivors."""
    columns = rules.parse(step.rule, f"steps[{step.index}].keep", state.schema()).columns
    keys = [state.signals[name].key for name in columns if name in state.signals and state.signals[name].survivors]
    return Removal(step.index, step.rule, keys) if keys else None


def _keep(shard: Shard, step: Keep, fates: Fates, positions: Positions, state: State) -> None:
    rule = rules.parse(step.rule, f"steps[{step.index}].keep", state.schema())
    passed, no_value = rule.decide(frame(shard, rule.columns, positions, state))
    fates[positions[~passed & ~no_value]] = fate_of(step.index)
    fates[positions[~passed & no_value]] = fate_of(step.index, no_value=True)


def _take_top(shard: Shard, step: Top, fates: Fates, positions: Positions, state: State) -> None:
    assert step.cut is not None
    positions, keys, valued = ranked_values(shard, step, positions, state)
    fates[positions[~valued]] = fate_of(step.index, no_value=True)
    positions, keys = positions[valued], keys[valued]
    fates[positions[(keys > step.config.worst) | ~step.cut.keeps(keys, shard.rows()[positions])]] = fate_of(step.index)


def ranked_values(shard: Shard, step: Top, positions: Positions, state: State) -> tuple[Positions, npt.NDArray[np.float64], Mask]:
    """(documents that `top` ranks, their sort keys, whether they have a value)."""
    config = step.config
    if config.where is not None:
        rule = rules.parse(config.where, f"steps[{step.index}].top.where", state.schema())
        positions = positions[rule.decide(frame(shard, rule.columns, positions, state))[0]]
    if config.by is None:
        return positions, lots(contents(shard, positions), step.seed), np.ones(len(positions), np.bool_)
    values = numbers(shard, config.by, positions, state)
    return positions, order_key(np.nan_to_num(values), config.order), ~np.isnan(values)


def numbers(shard: Shard, by: str, positions: Positions, state: State) -> npt.NDArray[np.float64]:
    """The values of a column or signal, or of one of its parts, NaN for none: no signal stores NaN itself."""
    column, _, part = by.partition(".")
    series = frame(shard, [column], positions, state)[column]
    return (series.struct.field(part) if part else series).cast(pl.Float64).fill_null(float("nan")).to_numpy()


def priority_of(config: ExactConfig | MinhashConfig, state: State) -> Priority | None:
    """What a declared priority names, as the pool shows it now."""
    if config.priority is None:
        return None
    signal = state.signals.get(config.priority.partition(".")[0])
    return Priority(signal.key if signal else None, partial(_numbers_at, by=config.priority, state=state))


def _numbers_at(shard: Shard, positions: Positions, by: str, state: State) -> npt.NDArray[np.float64]:
    return numbers(shard, by, positions, state)


def rank(shard: Shard, step: Top, state: State) -> Ranked:
    """The shard's part of a ranking: its documents' sort keys in order, with what each would cost."""
    fates, held = start(shard, state)
    positions, keys, valued = ranked_values(shard, step, np.flatnonzero((fates == ALIVE) & ~held), state)
    ranked, keys = positions[valued], keys[valued]
    costs = np.ones(len(ranked), np.int64)
    if step.config.tokens is not None:
        wanted = np.zeros(shard.documents, np.bool_)
        wanted[positions] = True
        costs = tokenize(shard, wanted, state.tokenizer, state.work)[ranked]
        save(state.counted(shard, step.index), wanted)
    return Ranked.save(state.scratch / f"{shard.name}.rank-{step.index}.npz", keys, shard.rows()[ranked], costs)


# --- all shards


@dataclass
class Decided:
    """What the steps decided: the last state, the models trained, and the counts that people are shown."""

    state: State
    models: dict[str, tuple[str, Model]] = field(default_factory=dict)
    dropped: dict[str, dict[int, int]] = field(default_factory=dict)
    duplicates: dict[str, dict[int, Copies]] = field(default_factory=dict)
    removals: list[Removal] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    reports: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    remembered: dict[str, int] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    """What each `top` took of its budget."""


@dataclass(frozen=True)
class Wave:
    """Documents decided after others: their corpus, the shards decided before, and what was decided there. Those that stayed rank higher and stay; a `top` goes on with what they left of its budget."""

    corpus: Corpus
    context: list[Shard]
    before: Decided


def decide(steps: list[Step], ground: Ground, state: State, engine: Engine, wave: Wave | None = None) -> Decided:
    """Runs all steps over all shards that were read, or over those of a later wave; models are trained on what was read alone."""
    corpus = ground.corpus if wave is None else wave.corpus
    first = 0 if wave is None else max(end for _, end in wave.before.state.rows.values())
    ends = np.cumsum([first, *(corpus.read[source.name] for source in corpus.sources)]).tolist()
    rows = {source.name: span for source, span in zip(corpus.sources, pairwise(ends), strict=True)}
    earlier = {} if wave is None else wave.before.state.keys()
    decided = Decided(replace(state, signals={}, rows=rows if wave is None else wave.before.state.rows | rows))
    models: dict[int, Path] = {}
    stretch: list[Step] = []
    for step in steps:
        if isinstance(step, Add) and step.kind in SIGNALS:
            key = _model_and_key(step, steps, ground, decided, models, engine)
            _place(decided, step, key, earlier.get(step.name, {}), survivors=False)
        elif not isinstance(step, Keep):
            _run(stretch, corpus, models, decided, engine)
            stretch = []
        elif (removal := removal_by(step, decided.state)) is not None:
            decided.removals.append(removal)
        if isinstance(step, Add) and step.kind not in SIGNALS:
            _look_over(step, corpus, wave, decided, engine)
        elif isinstance(step, Top):
            ranked = engine.map(rank, [(shard, step, decided.state) for shard in corpus.shards], step.config.told)
            spent = 0 if wave is None else wave.before.taken.get(step.index, 0)
            cut = find_cut(ranked, left_of(step.config.tokens, spent), left_of(step.config.documents, spent), step.config.share)
            decided.taken[step.index] = cost_of(ranked, cut, step.config.worst)
            stretch.append(replace(step, cut=cut))
        elif isinstance(step, Add) and (processes := SIGNALS[step.kind].processes) is not None:
            _run(stretch, corpus, models, decided, engine)
            stretch = []
            _run([step], corpus, models, decided, engine, engine.places(partial(processes, step.config)))
        else:
            stretch.append(step)
    by_source = _run(stretch, corpus, models, decided, engine)
    if decided.removals:
        everything = _dropped_in(corpus, decided)
        found = gone(everything, decided.removals, ends[-1], state.scratch, engine)
        decided.told = told(decided.removals, by_source, everything, found)
    return decided


def _look_over(step: Add, corpus: Corpus, wave: Wave | None, decided: Decided, engine: Engine) -> None:
    """Adds a signal that depends on all documents alive, those of earlier waves before all others."""
    state = decided.state
    context = [] if wave is None else [LiveShard(shard, state.mask(shard), state.work) for shard in wave.context]
    live, present = (
        [*context, *(LiveShard(shard, mask(shard), state.work) for shard in corpus.shards)] for mask in (state.mask, state.present)
    )
    if isinstance(step.config, ExactConfig | MinhashConfig):
        key, anew = find_duplicates(step.config, live, state.work, engine, priority_of(step.config, state), step.compared_with())
        decided.reports[step.name] = report_of(state.work, key)
    else:
        assert isinstance(step.config, RepeatsConfig)
        key, anew = find_repeats(step.config, live, present, state.work, engine)
    earlier = {} if wave is None else wave.before.state.keys()
    _place(decided, step, key, earlier.get(step.name, {}), survivors=step.kind in DEDUP)
    if given_up := decided.reports.get(step.name, {}).get("pairs_given_up"):
        decided.warnings[step.name] = f"steps[{step.index - 1}].add.{step.name}: {given_up:,} pairs {GIVEN_UP}"
    alive = sum(int(np.load(one.mask).sum()) for one in live)
    decided.computed[step.name], decided.remembered[step.name] = anew, alive - anew


def _passing(step: Add, steps: list[Step], state: State, models: dict[int, Path]) -> dict[str, Passing]:
    """The rules of the samples of a signal's model, by role."""
    earlier = {one.name: one for one in steps[: step.index - 1] if isinstance(one, Add)}
    found = {}
    for reference in step.references:
        if reference.sample is not None and (where := reference.sample.where) is not None:
            path = f"steps[{step.index - 1}].add.{step.name}.{reference.role}.where"
            reads = [earlier[name] for name in rules.parse(where, path, state.schema()).columns if name in earlier]
            of = partial(_passes, where=where, path=path, reads=[(one, models.get(one.index)) for one in reads], state=state)
            found[reference.role] = Passing([state.signals[one.name].key for one in reads], of)
    return found


def _model_and_key(step: Add, steps: list[Step], ground: Ground, decided: Decided, models: dict[int, Path], engine: Engine) -> str:
    """Trains the signal's model if it has one, and gives the key of its values."""
    signal, model = SIGNALS[step.kind], None
    if step.references:
        model = train(step.name, step.kind, step.config, step.references, ground, engine, _passing(step, steps, decided.state, models))
        models[step.index] = model.folder
        require(model, step.kind, step.config, step.name, engine.memory)
        decided.models[step.name] = (step.kind, model)
        if (caveat := signal.caveat(model.folder)) is not None:
            decided.warnings[step.name] = f"steps[{step.index - 1}].add.{step.name}: {caveat}"
    return key_of(
        "signal", step.kind, signal.version(step.config), spelled_config(step.config, step.references), model.sha256 if model else None
    )


def _place(decided: Decided, step: Add, key: str, earlier: dict[str, str], *, survivors: bool) -> None:
    placed = Placed(step.index, key, step.type, survivors, SIGNALS[step.kind].evidence if step.kind in SIGNALS else (), earlier)
    decided.state = replace(decided.state, signals=decided.state.signals | {step.name: placed})


def _dropped_in(corpus: Corpus, decided: Decided) -> list[Dropped]:
    return [Dropped(shard, decided.state.fates(shard), decided.state.rows[shard.source], decided.state.work) for shard in corpus.shards]


def _run(
    stretch: list[Step], corpus: Corpus, models: dict[int, Path], decided: Decided, engine: Engine, at_most: int | None = None
) -> dict[str, list[Loss]]:
    """Takes all shards through a stretch; returns what each source has lost to duplicates so far, which the guard has seen."""
    label = ", ".join(step.name for step in stretch if isinstance(step, Add)) or "decide"
    outcomes = engine.map(advance, [(shard, stretch, models, decided.state) for shard in corpus.shards], label, at_most)
    for shard in corpus.shards:
        _next_fates(shard, stretch, decided.state).replace(decided.state.fates(shard))
    decided.dropped = {source.name: {} for source in corpus.sources}
    alive = dict.fromkeys(decided.dropped, 0)
    for shard, outcome in zip(corpus.shards, outcomes, strict=True):
        alive[shard.source] += outcome.alive
        copies = decided.duplicates.setdefault(shard.source, {})
        for step, more in outcome.duplicates.items():
            copies[step] = Copies(*(a + b for a, b in zip(copies.get(step, Copies(0, 0)), more, strict=True)))
        dropped = decided.dropped[shard.source]
        for fate, count in outcome.dropped.items():
            dropped[fate] = dropped.get(fate, 0) + count
        for into, counts in ((decided.computed, outcome.computed), (decided.remembered, outcome.remembered)):
            for name, number in counts.items():
                into[name] = into.get(name, 0) + number
    computed, remembered = (
        sum(sum(counts.values()) for counts in found) for found in ([o.computed for o in outcomes], [o.remembered for o in outcomes])
    )
    engine.journal.count(computed, remembered)
    by_source = {name: losses(decided.duplicates.get(name, {}), dropped, alive[name]) for name, dropped in decided.dropped.items()}
    for source in corpus.sources:
        mine = [one for one in _dropped_in(corpus, decided) if one.shard.source == source.name]
        warning = guard(source.name, source.config.max_duplicates, by_source[source.name], decided.removals, mine, engine)
        if warning is not None:
            decided.warnings[source.name] = warning
    return by_source
