"""Where a ranking of all documents is cut, without ever holding all of them.

Each shard saves the sort keys of its documents in order, with the running total of their costs. The place of the cut is then found by halving: a key's rank over the corpus
is a sum of one look-up a shard, and only the documents that tie at the cut are put in order of their rows. What comes out is a key and a row, so that taking the top is
a comparison which every shard makes for itself.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.float64]


def order_key(values: Keys, order: str) -> Keys:
    """Values as sort keys, lowest first."""
    return values + 0.0 if order == "ascending" else -values + 0.0


class Cut(NamedTuple):
    """Documents up to (`key`, `row`), in that order, are taken."""

    key: float
    row: int

    def keeps(self, keys: Keys, rows: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        kept: npt.NDArray[np.bool_] = (keys < self.key) | ((keys == self.key) & (rows <= np.uint64(self.row)))
        return kept


LAST_ROW = 2**64 - 1
EVERYTHING = Cut(float("inf"), LAST_ROW)
NOTHING = Cut(float("nan"), 0)


class Ranked(NamedTuple):
    """One shard's documents in order of (key, row), on disk: keys f64, rows u64, and costs as running totals i64."""

    path: Path
    documents: int
    cost: int

    @staticmethod
    def save(path: Path, keys: Keys, rows: npt.NDArray[np.uint64], costs: npt.NDArray[np.int64]) -> Ranked:
        order = np.lexsort((rows, keys))
        totals = np.cumsum(costs[order])
        for name, values in (("keys", keys[order]), ("rows", rows[order]), ("totals", totals)):
            np.save(path.with_suffix(f".{name}.npy"), values)
        return Ranked(path, len(order), int(totals[-1]) if len(order) else 0)

    def load(self, name: str) -> npt.NDArray[np.generic]:
        loaded: npt.NDArray[np.generic] = np.load(self.path.with_suffix(f".{name}.npy"), mmap_mode="r")
        return loaded


def find_cut(shards: list[Ranked], tokens: int | None, documents: int | None, share: float | None) -> Cut:
    """The last document, in order of (key, row), before the one that would exceed the budget: what follows it is not taken, even if it is small."""
    shards = [shard for shard in shards if shard.documents]
    budget = (
        tokens
        if tokens is not None
        else documents
        if documents is not None
        else int(Fraction(str(share)) * sum(shard.documents for shard in shards))  # 0.29 of 100 is 29, and 28 in floating point
    )
    if sum(shard.cost for shard in shards) <= budget:
        return EVERYTHING
    keys = [shard.load("keys") for shard in shards]
    totals = [shard.load("totals") for shard in shards]

    def cost_up_to(key: float) -> int:
        ends = [np.searchsorted(one, key, side="right") for one in keys]
        return sum(int(total[end - 1]) for total, end in zip(totals, ends, strict=True) if end)

    low, high = _as_integer(min(float(one[0]) for one in keys)) - 1, _as_integer(max(float(one[-1]) for one in keys))
    spent = 0
    while high - low > 1:  # what costs up to `low` fits, what costs up to `high` does not
        middle = (low + high) // 2
        cost = cost_up_to(_as_float(middle))
        if cost <= budget:
            low, spent = middle, cost
        else:
            high = middle
    return _within_ties(shards, _as_float(high), budget - spent)


def _within_ties(shards: list[Ranked], key: float, budget: int) -> Cut:
    """The cut among the documents of one key, taken in order of their rows while `budget` lasts."""
    rows, costs = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for shard in shards:
        keys = shard.load("keys")
        first, last = np.searchsorted(keys, key, side="left"), np.searchsorted(keys, key, side="right")
        totals = np.asarray(shard.load("totals")[max(first - 1, 0) : last])
        rows.append(np.asarray(shard.load("rows")[first:last]))
        costs.append(np.diff(totals, prepend=0)[-(last - first) :] if last > first else costs[0])
    order = np.argsort(np.concatenate(rows))
    fitting = int(np.searchsorted(np.cumsum(np.concatenate(costs)[order]), budget, side="right"))
    if fitting == 0:
        return NOTHING if key == -np.inf else Cut(float(np.nextafter(key, -np.inf)), LAST_ROW)
    return Cut(key, int(np.concatenate(rows)[order][fitting - 1]))


def _as_integer(value: float) -> int:
    """Doubles as integers in the same order."""
    bits = int(np.float64(value + 0.0).view(np.int64))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFFFFFFFFFF)


def _as_float(order: int) -> float:
    bits = np.int64(order) if order >= 0 else np.int64(-0x8000000000000000 - order)
    return float(bits.view(np.float64))
