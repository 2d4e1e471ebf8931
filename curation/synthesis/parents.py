"""Who the parents are: documents kept, of the sources named, for which a rule holds. In an order that follows from the seed and their content, so that any number of them is a fair sample.

In: the fates and signals of decided documents. Out: one record of 32 bytes a parent (lot, row, shard, position, group), held by the driver; texts are read when they are wanted, some thousands of
parents at a time. No held-out document is a parent, and none that resembles one: those are not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from curation import rules
from curation.corpus.shards import Shard, contents
from curation.decisions.apply_steps import ALIVE, State, frame, start
from curation.decisions.holdout import draw_of
from curation.engine.atomic_files import save
from curation.engine.local import Engine

PARENT = np.dtype([("lot", "<u8"), ("row", "<u8"), ("shard", "<u4"), ("group", "<u4"), ("position", "<i8")])
AT_ONCE = 2048


def find_parents(
    shards: Sequence[Shard], rule: str, by: str | None, values: Sequence[str], seed: int, state: State, engine: Engine, label: str
) -> npt.NDArray[np.void]:
    """The parents in `shards`, in order of (group, lot, row); a group is the number of the `by` value in `values`."""
    tasks = [(shard, number, rule, by, list(values), seed, state) for number, shard in enumerate(shards)]
    parts = [np.load(path) for path in engine.map(_parents_in, tasks, label)]
    engine.memory.require(label, driver=2 * sum(part.nbytes for part in parts))
    found = np.concatenate([np.empty(0, PARENT), *parts])
    return found[np.lexsort((found["row"], found["lot"], found["group"]))]


def _parents_in(shard: Shard, number: int, rule: str, by: str | None, values: list[str], seed: int, state: State) -> Path:
    fates, held = start(shard, state)
    positions = np.flatnonzero((fates == ALIVE) & ~held)
    checked = rules.parse(rule, "synthesize.from", state.schema())
    positions = positions[checked.decide(frame(shard, checked.columns, positions, state))[0]]
    group = np.zeros(len(positions), np.int64)
    if by is not None:
        column, _, part = by.partition(".")
        series = frame(shard, [column], positions, state)[column]
        named = (series.struct.field(part) if part else series).cast(pl.String).to_list()
        group = np.array([values.index(name) if name in values else -1 for name in named], np.int64)
        positions, group = positions[group >= 0], group[group >= 0]
    found = np.empty(len(positions), PARENT)
    found["lot"] = [draw_of(content, seed) for content in contents(shard, positions)]
    found["row"], found["shard"], found["group"], found["position"] = shard.rows()[positions], number, group, positions
    path = state.scratch / f"{shard.name}.parents.npy"
    return save(path, found)


def texts_in_turn(parents: npt.NDArray[np.void], shards: Sequence[Shard]) -> Iterator[tuple[int, str]]:
    """(row, text) of each parent, in their order."""
    for first in range(0, len(parents), AT_ONCE):
        part = parents[first : first + AT_ONCE]
        found: list[str] = [""] * len(part)
        for number in np.unique(part["shard"]).tolist():
            places = np.flatnonzero(part["shard"] == number)
            for place, text in zip(places.tolist(), shards[number].texts(part["position"][places]).to_pylist(), strict=True):
                found[place] = text
        yield from zip(part["row"].tolist(), found, strict=True)
