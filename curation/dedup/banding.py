"""Candidates: documents whose signatures agree in a whole band, found bucket by bucket.

`b` bands of `r` rows make a pair of Jaccard J a candidate with probability 1 - (1 - J^r)^b (Broder 1997, Leskovec et al., chapter 3). Because
every candidate is verified, banding is chosen for recall alone: the longest rows that still reach it.

Buckets of up to `SMALL` members give all their pairs at once. A larger bucket goes in rounds: its first `FIRST_LEADERS` live members in row
order, then twice as many, and so on, are compared with everyone behind them, and who is removed in between is never compared again. So a
bucket of n near-copies costs n comparisons, not n^2 / 2, and the result is still that of all pairs.

A bucket of documents that resemble each other but stay (pages of one template) would cost all pairs. When a round leaves more than `LARGE`
members, and more than half of those there were, the bucket is *crowded*: it is left, and its members are joined by rare shingles instead (`rare`), in
buckets of the same kind. Only there a bucket may close behind `MOST_LEADERS` leaders: the remaining members are not compared with each other in
it (they may still meet in another), and the pairs given up are counted and reported.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.dedup.minhash import EMPTY, PERMUTATIONS, Signatures
from curation.dedup.settling import REMOVED
from curation.text.words import Bytes, Hashes, Offsets, kernel

RECALL = 0.995
SMALL = 32
FIRST_LEADERS = 4
LARGE = 128
LAST_WAVE = 6  # of a band's bucket: it is crowded if it is still large then
MOST_LEADERS = 10_000

_NONE_KNOWN = np.uint64(0)
_SEED = np.uint64(0x2545F4914F6CDD1D)
_FOLD = np.uint64(0xD6E8FEB86659FD93)


class Banding(NamedTuple):
    bands: int
    rows: int

    def recall(self, similarity: float) -> float:
        """The probability that a pair of this Jaccard becomes a candidate."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


@lru_cache(maxsize=16)
def banding(threshold: float, recall: float = RECALL) -> Banding:
    """The longest rows whose bands together reach `recall` at the threshold: 21 x 6 at 0.8, 32 x 4 at 0.7, 14 x 9 at 0.9."""
    choices = [Banding(PERMUTATIONS // rows, rows) for rows in range(1, PERMUTATIONS + 1)]
    return max((choice for choice in choices if choice.recall(threshold) >= recall), key=lambda choice: choice.rows, default=choices[0])


def least_agreement(threshold: float, deviations: float) -> int:
    """The places of 128 that a pair at the threshold shares, less this many standard errors."""
    return math.ceil(PERMUTATIONS * threshold - deviations * math.sqrt(PERMUTATIONS * threshold * (1 - threshold)))


def has_shingles(signatures: Signatures) -> npt.NDArray[np.bool_]:
    """Which documents have any shingle: the others carry the empty signature and would all look alike."""
    found: npt.NDArray[np.bool_] = (signatures != EMPTY).any(axis=1)
    return found


@kernel
def band_keys(signatures: Signatures, bands: int, rows: int) -> Hashes:
    """u64[bands, n]: the bucket of each document in each band; buckets of different bands differ."""
    out = np.empty((bands, len(signatures)), np.uint64)
    for document in range(len(signatures)):
        for band in range(bands):
            value = _SEED + np.uint64(band) * _FOLD
            for i in range(band * rows, band * rows + rows):
                value = (value ^ np.uint64(signatures[document, i])) * _FOLD
                value ^= value >> np.uint64(32)
            value *= _FOLD
            out[band, document] = value ^ (value >> np.uint64(29))
    return out


NO_FACTS = np.empty(0, np.uint64)


class Buckets(NamedTuple):
    members: Hashes
    """Rows, ascending within each bucket."""
    offsets: Offsets
    leaders: npt.NDArray[np.int64]
    """How many members at the head of each bucket have been compared with all others."""
    facts: Hashes = NO_FACTS
    """What `rare` knows of each member of a list of rare shingles; nothing for bands."""


def group(keys: Hashes, rows: Hashes) -> Buckets:
    """Buckets of two and more members from (key, row) in any order."""
    order = np.argsort(keys)
    keys, rows = keys[order], rows[order]
    equal = keys[1:] == keys[:-1]
    shared = np.zeros(len(keys), bool)
    shared[1:] = equal
    shared[:-1] |= equal
    keys, rows = keys[shared], rows[shared]
    order = np.lexsort((rows, keys))
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]]))
    return Buckets(rows, np.append(starts, len(rows)).astype(np.int64), np.zeros(len(starts), np.int64))


def live(buckets: Buckets, status: Bytes) -> Buckets:
    """The buckets without their removed members, who led already or never will."""
    stays = status[buckets.members] != REMOVED
    before = np.concatenate([[0], np.cumsum(stays)])
    offsets = before[buckets.offsets]
    leaders = before[buckets.offsets[:-1] + buckets.leaders] - offsets[:-1]
    return Buckets(buckets.members[stays], offsets, leaders, buckets.facts[stays] if len(buckets.facts) else buckets.facts)


def crowded(before: Offsets, buckets: Buckets, wave: int) -> npt.NDArray[np.bool_]:
    """Which live `buckets` of a round, large ones with offsets `before` in the last, are to be joined by rare shingles."""
    size = np.diff(buckets.offsets)
    found: npt.NDArray[np.bool_] = (size > LARGE) & ((2 * size > np.diff(before)) | (wave >= LAST_WAVE)) & (wave > 0)
    return found


def kept(buckets: Buckets, these: npt.NDArray[np.bool_]) -> Buckets:
    """Only `these` buckets."""
    if these.all():
        return buckets
    size = np.diff(buckets.offsets)
    inside = np.repeat(these, size)
    offsets = np.concatenate([[0], np.cumsum(size[these])]).astype(np.int64)
    return Buckets(buckets.members[inside], offsets, buckets.leaders[these], buckets.facts[inside] if len(buckets.facts) else buckets.facts)


def parted(buckets: Buckets, out: npt.NDArray[np.bool_]) -> tuple[Buckets, Hashes]:
    """The buckets that are not `out`, and the distinct members of those that are."""
    return kept(buckets, ~out), np.unique(kept(buckets, out).members)


def reaching(buckets: Buckets, known: int) -> npt.NDArray[np.bool_]:
    """Which buckets have any member but the `known` ones of an index, which come first and are not compared with each other."""
    found = np.ones(len(buckets.leaders), np.bool_)
    if known:
        found = np.diff(buckets.offsets) > 0
        found[found] = buckets.members[buckets.offsets[1:][found] - 1] >= np.uint64(known)
    return found


def next_leaders(buckets: Buckets, wave: int) -> npt.NDArray[np.int64]:
    """How many members of each bucket have led after round `wave` (from 0). A list of rare shingles, whose pairs are mostly ruled out by a glance, goes on faster."""
    more = FIRST_LEADERS << 2 * wave + 3 if len(buckets.facts) else FIRST_LEADERS << wave
    size = np.diff(buckets.offsets)
    lead: npt.NDArray[np.int64] = np.where(size <= SMALL, size, np.minimum(buckets.leaders + more, MOST_LEADERS))
    np.minimum(lead, np.maximum(size - 1, 0), out=lead)
    return lead


@kernel
def emit(
    members: Hashes,
    offsets: Offsets,
    leaders: Offsets,
    facts: Hashes,
    ratio: tuple[int, int],
    lead: Offsets,
    place: npt.NDArray[np.int64],
    lower: Hashes,
    upper: Hashes,
    known: np.uint64 = _NONE_KNOWN,
) -> int:
    """Fill `lower` and `upper` with pairs of rows from `place` (bucket, leader, member) on, leave `place` where it stopped; returns how many.

    With `facts`, pairs that these keep from reaching the threshold, as a `ratio` of integers, are left out. So are pairs of rows below `known`, members of an index.
    """
    count, low = 0, np.uint64(0xFFFFFFFF)
    bucket, leader, member = place[0], place[1], place[2]
    while bucket < len(lead):
        first = offsets[bucket]
        size = offsets[bucket + 1] - first
        fresh = np.searchsorted(members[first : first + size], known) if known else 0
        leader = max(leader, leaders[bucket])
        while leader < lead[bucket]:
            member = max(member, leader + 1, fresh)
            while member < size:
                if count == len(lower):
                    place[0], place[1], place[2] = bucket, leader, member
                    return count
                if len(facts):
                    one, other = facts[first + leader], facts[first + member]
                    rest = min(np.int64(one & low), np.int64(other & low))
                    if rest * (ratio[0] + ratio[1]) < ratio[0] * np.int64((one >> np.uint64(32)) + (other >> np.uint64(32))):
                        member += 1
                        continue
                lower[count] = members[first + leader]
                upper[count] = members[first + member]
                count += 1
                member += 1
            leader += 1
            member = 0
        bucket += 1
        leader = 0
    place[0], place[1], place[2] = bucket, 0, 0
    return count


class Left(NamedTuple):
    buckets: Buckets
    """Those that go on into another round."""
    waiting: Hashes
    """Rows not yet compared with everyone before them in one of these buckets."""
    closed: int
    """Buckets closed at MOST_LEADERS."""
    given_up: int
    """Pairs never compared in them."""


def leave(buckets: Buckets, lead: npt.NDArray[np.int64]) -> Left:
    """What is left after a round in which `lead` members of each bucket have led."""
    size = np.diff(buckets.offsets)
    behind = np.maximum(size - 1 - lead, 0)
    capped = (lead >= MOST_LEADERS) & (behind > 0)
    goes_on = (behind > 0) & ~capped
    at = np.arange(len(buckets.members)) - np.repeat(buckets.offsets[:-1], size)
    inside = np.repeat(goes_on, size)
    waiting = np.unique(buckets.members[inside & (at > np.repeat(lead, size))])
    offsets = np.concatenate([[0], np.cumsum(size[goes_on])]).astype(np.int64)
    rest = (behind[capped] + 1).astype(object)
    return Left(
        Buckets(buckets.members[inside], offsets, lead[goes_on], buckets.facts[inside] if len(buckets.facts) else buckets.facts),
        waiting,
        int(capped.sum()),
        int(sum(n * (n - 1) // 2 for n in rest)),
    )
