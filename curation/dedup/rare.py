"""Candidates by rare shingles: how documents from one template are compared without comparing each with all.

Two sets x and y of Jaccard J >= t share at least t / (1 + t) (|x| + |y|) elements, so whatever order all shingles are put in, they share one among the first
|x| - ceil(t |x|) + 1 of x and as many of y (prefix filtering: Chaudhuri et al. 2006; Bayardo et al. 2007). In order of rarity these are the shingles that a page does not
share with the template. Every pair that reaches the threshold is found, whatever the order; rarity only decides how many others are met.

How rare a shingle is, is counted in a table of `COUNTERS` over the documents in question; shingles that fall together look more frequent than they are. The key of a posting is
the rarity above 48 bits of the shingle's hash: two shingles that agree in both make a candidate more, which is then verified like any other.

A posting carries its *facts*, the size of its set above how much of it is left from this shingle on. If it is the first that x and y share, they share at most the smaller rest;
below t / (1 + t) (|x| + |y|) the pair is left out (positional filtering: Xiao et al. 2008). So pages that differ in more than the threshold allows never become pairs,
although they have the template in common.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from curation.dedup.banding import Buckets
from curation.text.words import Hashes, Offsets, kernel

COUNTERS = 1 << 20

Counts = npt.NDArray[np.uint32]


def no_counts() -> Counts:
    return np.zeros(COUNTERS, np.uint32)


@kernel
def count_shingles(values: Hashes, spans: Offsets, counts: Counts) -> None:
    """Adds the shingles of documents, `values[spans[i, 0]:spans[i, 1]]` each, to `counts`."""
    mask = np.uint64(len(counts) - 1)
    for document in range(len(spans)):
        for at in range(spans[document, 0], spans[document, 1]):
            counts[values[at] & mask] += np.uint32(1)


def ratio_of(threshold: float) -> tuple[int, int]:
    """The threshold as it is written, not as a double: a fraction of integers."""
    return Fraction(str(threshold)).as_integer_ratio()


def prefix_lengths(sizes: npt.NDArray[np.int64], threshold: float) -> npt.NDArray[np.int64]:
    """How many of the first shingles of sets of these sizes two must share one of, if their Jaccard is to reach `threshold`."""
    part, whole = ratio_of(threshold)
    found: npt.NDArray[np.int64] = np.where(sizes > 0, sizes + (-sizes * part) // whole + 1, 0)
    return found


@kernel
def rarest(values: Hashes, spans: Offsets, lengths: Offsets, counts: Counts) -> tuple[Hashes, Hashes]:
    """(keys, facts) of the postings of documents one after the other: of each the `lengths[i]` rarest shingles."""
    mask = np.uint64(len(counts) - 1)
    keys = np.empty(lengths.sum(), np.uint64)
    facts = np.empty(lengths.sum(), np.uint64)
    done = 0
    for document in range(len(spans)):
        mine = values[spans[document, 0] : spans[document, 1]].copy()
        for at in range(len(mine)):
            rarity = min(np.uint64(counts[mine[at] & mask]), np.uint64(0xFFFF))
            mine[at] = (rarity << np.uint64(48)) | (mine[at] >> np.uint64(16))
        mine.sort()
        for at in range(lengths[document]):
            keys[done] = mine[at]
            facts[done] = (np.uint64(len(mine)) << np.uint64(32)) | np.uint64(len(mine) - at)
            done += 1
    return keys, facts


def lists_of(keys: Hashes, rows: Hashes, facts: Hashes, ratio: tuple[int, int]) -> Buckets:
    """The lists of documents that share a rare shingle, rows ascending in each, without those that can have no partner in it."""
    order = np.lexsort((rows, keys))
    keys, rows, facts = keys[order], rows[order], facts[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]]))
    offsets = np.append(starts, len(rows)).astype(np.int64)
    hopeful = np.zeros(len(rows), np.bool_)
    _find_hopeful(offsets, facts, ratio, hopeful)
    size = np.add.reduceat(hopeful, starts, dtype=np.int64) if len(starts) else np.empty(0, np.int64)
    hopeful &= np.repeat(size > 1, np.diff(offsets))
    offsets = np.concatenate([[0], np.cumsum(size[size > 1])]).astype(np.int64)
    return Buckets(rows[hopeful], offsets, np.zeros(len(offsets) - 1, np.int64), facts[hopeful])


@kernel
def _find_hopeful(offsets: Offsets, facts: Hashes, ratio: tuple[int, int], hopeful: npt.NDArray[np.bool_]) -> None:
    """Marks the postings for which their list has a size that would do: the smallest that is not too small for the threshold must leave enough to share."""
    for one in range(len(offsets) - 1):
        if offsets[one + 1] - offsets[one] < 2:
            continue
        sizes = np.sort((facts[offsets[one] : offsets[one + 1]] >> np.uint64(32)).astype(np.int64))
        for at in range(offsets[one], offsets[one + 1]):
            size = np.int64(facts[at] >> np.uint64(32))
            rest = np.int64(facts[at] & np.uint64(0xFFFFFFFF))
            smallest = np.searchsorted(sizes, (size * ratio[0] + ratio[1] - 1) // ratio[1])
            hopeful[at] = smallest < len(sizes) and rest * (ratio[0] + ratio[1]) >= ratio[0] * (size + sizes[smallest])
