"""Shards held in memory, and the rule of near-duplicates in plain Python over all pairs: what tests of deduplication compare with."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from curation.dedup.exact import normalized
from curation.dedup.minhash import shingles, signatures
from curation.text.words import words

Decisions = dict[int, tuple[int, float]]


@dataclass(frozen=True)
class Listed:
    """A shard held in memory: the texts of some rows."""

    name: str
    documents: tuple[tuple[int, str], ...]

    def rows(self) -> npt.NDArray[np.uint64]:
        return np.array([row for row, _ in self.documents], np.uint64)

    def signatures(self) -> npt.NDArray[np.uint32]:
        return signatures(self.texts(np.arange(len(self.documents))))

    def contents(self) -> npt.NDArray[np.uint64]:
        digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for _, text in self.documents)
        return np.frombuffer(digests, np.uint64).reshape(-1, 2)

    def normalized(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
        keys = normalized(self.texts(np.arange(len(self.documents)))).to_pylist()
        digests = b"".join(key or bytes(16) for key in keys)
        return np.frombuffer(digests, np.uint64).reshape(-1, 2), np.array([key is not None for key in keys], np.bool_)

    def shingles(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        return shingles(self.texts(positions))

    def texts(self, positions: npt.NDArray[np.int64]) -> pa.LargeStringArray:
        return pa.array([self.documents[i][1] for i in positions], pa.large_string())


def serial(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """One after the other, through pickle as between processes."""
    results = []
    for each in arguments:
        function_there, arguments_there = pickle.loads(pickle.dumps((function, each)))
        results.append(pickle.loads(pickle.dumps(function_there(*arguments_there))))
    return results


def shuffled(texts: Sequence[str], shards: int, seed: int) -> list[Listed]:
    """The texts, rows in list order, dealt at random over shards in random order."""
    rng = random.Random(seed)
    dealt: list[list[tuple[int, str]]] = [[] for _ in range(shards)]
    for document in enumerate(texts):
        dealt[rng.randrange(shards)].append(document)
    rng.shuffle(dealt)
    return [Listed(f"shard-{i}", tuple(documents)) for i, documents in enumerate(dealt)]


def decided(shards: Sequence[Listed], paths: Sequence[Path]) -> Decisions:
    found: Decisions = {}
    for shard, path in zip(shards, paths, strict=True):
        decisions = np.load(path)
        assert (np.diff(decisions["position"].astype(np.int64)) > 0).all()
        for position, survivor, similarity in decisions.tolist():
            found[int(shard.rows()[position])] = (survivor, similarity)
    return found


def plain_shingles(text: str) -> frozenset[tuple[str, ...]]:
    found = words(text)
    return frozenset(tuple(found[i : i + 5]) for i in range(len(found) - 4)) if len(found) >= 5 else frozenset([tuple(found)]) - {()}


def all_pairs(texts: Sequence[str], threshold: float) -> tuple[dict[int, dict[int, float]], Decisions]:
    """Every pair at or above the threshold (row -> lower row -> Jaccard), and the greedy decisions in row order over them."""
    sets = [plain_shingles(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}
    similar: dict[int, dict[int, float]] = {}
    decisions: Decisions = {}
    for row, mine in enumerate(sets):
        common: dict[int, int] = {}
        for shingle in mine:
            for other in holders.setdefault(shingle, []):
                common[other] = common.get(other, 0) + 1
            holders[shingle].append(row)
        jaccard = {other: count / (len(mine) + len(sets[other]) - count) for other, count in common.items()}
        similar[row] = {other: value for other, value in jaccard.items() if value >= threshold}
        kept = [(-value, other) for other, value in similar[row].items() if other not in decisions]
        if kept:
            decisions[row] = (min(kept)[1], -min(kept)[0])
    return similar, decisions


def families(seed: int, count: int) -> list[str]:
    """Random documents, and edits of earlier ones at every distance; a few short, empty and Chinese ones."""
    rng = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(count):
        if texts and rng.random() < 0.6:
            edited = list(rng.choice(texts[-200:]))
            for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 8])):
                if edited:
                    at = rng.randrange(len(edited))
                    edited[at : at + rng.randrange(3)] = [f"e{rng.randrange(10**6)}"]
            texts.append(edited)
        else:
            texts.append([f"w{rng.randrange(3000)}" for _ in range(rng.choice([0, 1, 3, 5, 12, 60, 150, 400]))])
    return [" ".join(text) for text in texts]
