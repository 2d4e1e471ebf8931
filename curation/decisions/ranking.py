"""`top`: where a ranking of all documents is cut, without ever holding all of them.

Each shard saves the sort keys of its documents in order, with the running total of their costs. The place of the cut is then found by halving: a key's rank over the corpus
is a sum of one look-up a shard, and only the documents that tie at the cut are put in order of their rows. What comes out is a key and a row, so that taking the top is
a comparison which every shard makes for itself.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.engine.atomic_files import save
from mixing.strategies.shares import TokenCount

Keys = npt.NDArray[np.float64]


class TopConfig(BaseModel):
    """The best documents by a signal, until a budget is reached: `tokens`, `documents`, or a `share` of the documents ranked. A smaller budget takes a part of what a larger one
    takes; `order: random` is the control that any ranking has to beat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str | None = Field(
        None, description="a numeric signal or column, `words.mean_length` for one of several values; none for a random order"
    )
    order: Literal["ascending", "descending", "random"] = Field(
        description="ascending keeps the lowest values; random draws by content, so that equal texts are drawn together"
    )
    where: str | None = Field(None, description="a rule; documents outside it pass untouched")
    tokens: TokenCount | None = None
    documents: TokenCount | None = None
    share: float | None = Field(None, gt=0, le=1)
    no_worse_than: float | None = Field(
        None, allow_inf_nan=False, description="documents with a value beyond this are not taken, even if the budget is not used up"
    )
    seed: int | None = Field(None, ge=0, lt=2**64, description="of a random order; the recipe's if not given")

    @model_validator(mode="after")
    def _one_budget(self) -> TopConfig:
        if sum(budget is not None for budget in (self.tokens, self.documents, self.share)) != 1:
            raise ValueError("give exactly one of tokens, documents, share")
        if self.order == "random" and (self.by is not None or self.no_worse_than is not None):
            raise ValueError("a random order has no `by` and no `no_worse_than`")
        if self.order != "random" and (self.by is None or self.seed is not None):
            raise ValueError("give `by`, and a `seed` only with `order: random`")
        return self

    @property
    def worst(self) -> float:
        """The largest sort key that may be taken."""
        if self.no_worse_than is None:
            return float("inf")
        return float(order_key(np.array([self.no_worse_than]), self.order)[0])

    @property
    def told(self) -> str:
        """What the progress says."""
        return "rank at random" if self.by is None else f"rank by {self.by}"


def order_key(values: Keys, order: str) -> Keys:
    """Values as sort keys, lowest first."""
    return values + 0.0 if order == "ascending" else -values + 0.0


def lots(contents: list[bytes], seed: int) -> Keys:
    """A number in [0, 1) for each content hash: xxh3-64 over "top", the seed (u64, little-endian) and the content. Equal texts draw the same."""
    salt = b"top" + seed.to_bytes(8, "little")
    drawn = np.array([xxhash.xxh3_64_intdigest(salt + content) >> 11 for content in contents], np.float64)
    return drawn * 2.0**-53


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
            save(path.with_suffix(f".{name}.npy"), values)
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


def cost_of(shards: list[Ranked], cut: Cut, worst: float) -> int:
    """What the documents up to a cut cost that are no worse than `worst`."""
    total = 0
    for shard in shards:
        keys = np.asarray(shard.load("keys"))
        taken = int(np.count_nonzero(cut.keeps(keys, np.asarray(shard.load("rows"))) & (keys <= worst)))
        total += int(shard.load("totals")[taken - 1]) if taken else 0
    return total


def left_of(budget: int | None, spent: int) -> int | None:
    """What an earlier wave left of a budget."""
    return None if budget is None else max(budget - spent, 0)


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
