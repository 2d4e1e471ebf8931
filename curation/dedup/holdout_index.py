"""Copies and near-duplicates of held-out documents, so that none is trained on.

An index file holds the held-out documents' rows, contents, signatures and shingle sets; every task reads it anew (2 KB per 1,000 characters held out). A document matches when its
content hash equals one of theirs or its verified Jaccard with one reaches the threshold. Held-out sets are small and a miss is a leak, so the
bands are chosen for a recall of `RECALL` at the threshold: about one pair in a million is missed there, far fewer above it,
and none to speak of because its signatures stand `MARGIN` standard errors below the threshold.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.dedup.banding import band_keys, banding, has_shingles, least_agreement
from curation.dedup.minhash import SIGNATURE_VERSION, Signatures, agreements, jaccards, shingles, signatures
from curation.dedup.runs import DUPLICATES
from curation.text.words import Hashes, Offsets

RECALL = 1 - 1e-6
MARGIN = 6.0


class HoldoutIndex(NamedTuple):
    version: str
    rows: Hashes
    contents: npt.NDArray[np.uint64]
    signatures: Signatures
    sets: Hashes
    offsets: Offsets


def write_holdout_index(path: Path, texts: pa.LargeStringArray, contents: npt.NDArray[np.uint64], rows: Hashes) -> None:
    """Index held-out documents: their texts, content hashes u64[n, 2] and pool rows, in any order. Equal input gives equal bytes."""
    order = np.argsort(rows)
    texts = texts.take(pa.array(order))
    sets, offsets = shingles(texts)
    np.savez(
        path,
        version=np.array(SIGNATURE_VERSION),
        rows=rows[order].astype(np.uint64),
        contents=contents[order],
        signatures=signatures(texts),
        sets=sets,
        offsets=offsets,
    )


def open_holdout_index(path: Path) -> HoldoutIndex:
    """The index of one file; an index of another version of words or signatures is refused."""
    with np.load(path, allow_pickle=False) as stored:
        index = HoldoutIndex(str(stored["version"]), *(stored[name] for name in HoldoutIndex._fields[1:]))
    if index.version != SIGNATURE_VERSION:
        raise ValueError(f"{path}: index of signatures {index.version}; this program makes {SIGNATURE_VERSION}; build the index again")
    return index


def match_holdout(
    texts: pa.LargeStringArray,
    contents: npt.NDArray[np.uint64],
    signatures: Signatures,
    index: HoldoutIndex,
    threshold: float,
    pairs_at_once: int = 1 << 24,
) -> npt.NDArray[np.void]:
    """`DUPLICATES` of the texts that equal a held-out document or resemble one: the most similar one, the lowest row among equals.

    texts, contents u64[n, 2] and signatures u32[n, 128] are those of one shard, position by position. Only candidates' texts are read. `pairs_at_once`
    bounds memory (a byte each) and changes nothing.
    """
    copies = _equal_contents(contents, index)
    near = _candidates(signatures, index.signatures, threshold, pairs_at_once)
    wanted, at = np.unique(near[0], return_inverse=True)
    sets, offsets = shingles(texts.take(pa.array(wanted)))
    similarity = jaccards(sets, _spans(offsets, at), index.sets, _spans(index.offsets, near[1]))
    reach = similarity >= threshold
    position = np.concatenate([copies[0], near[0][reach]])
    survivor = index.rows[np.concatenate([copies[1], near[1][reach]])]
    similarity = np.concatenate([np.ones(copies.shape[1]), similarity[reach]])
    order = np.lexsort((survivor, -similarity, position))
    order = order[np.concatenate([np.ones(min(len(order), 1), bool), np.diff(position[order]) != 0])]
    found = np.empty(len(order), DUPLICATES)
    found["position"], found["survivor"], found["similarity"] = position[order], survivor[order], similarity[order]
    return found


def _spans(offsets: Offsets, at: npt.NDArray[np.int64]) -> Offsets:
    return np.stack([offsets[at], offsets[at + 1]], axis=1)


def _equal_contents(contents: npt.NDArray[np.uint64], index: HoldoutIndex) -> npt.NDArray[np.int64]:
    """i64[2, n]: positions, and places in the index, of equal content."""
    places: dict[bytes, list[int]] = {}
    for place, content in enumerate(index.contents):
        places.setdefault(content.tobytes(), []).append(place)
    likely = np.flatnonzero(np.isin(contents[:, 0], index.contents[:, 0]))
    pairs = [(position, place) for position in likely for place in places.get(contents[position].tobytes(), [])]
    return np.array(pairs, np.int64).reshape(-1, 2).T


def _candidates(left: Signatures, right: Signatures, threshold: float, pairs_at_once: int) -> npt.NDArray[np.int64]:
    """i64[2, n]: distinct pairs of positions that share a band and whose signatures do not rule them out."""
    bands = banding(threshold, RECALL)
    left_at, right_at = np.flatnonzero(has_shingles(left)), np.flatnonzero(has_shingles(right))
    right_keys = band_keys(np.ascontiguousarray(right[right_at]), bands.bands, bands.rows)
    orders = np.argsort(right_keys, axis=1)
    right_keys = np.take_along_axis(right_keys, orders, 1)
    pairs = [np.empty((2, 0), np.int64)]
    step = max(pairs_at_once // max(len(right_at), 1), 1)
    for at in range(0, len(left_at), step):
        chunk = left_at[at : at + step]
        met = np.zeros((len(chunk), len(right_at)), bool)
        left_keys = band_keys(np.ascontiguousarray(left[chunk]), bands.bands, bands.rows)
        for mine, theirs, order in zip(left_keys, right_keys, orders, strict=True):
            first = np.searchsorted(theirs, mine, "left")
            count = np.searchsorted(theirs, mine, "right") - first
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            met[np.repeat(np.arange(len(chunk)), count), order[np.repeat(first, count) + within]] = True
        here, there = np.nonzero(met)
        here, there = chunk[here], right_at[there]
        likely = agreements(left, here, right, there) >= least_agreement(threshold, MARGIN)
        pairs.append(np.stack([here[likely], there[likely]]))
    return np.concatenate(pairs, axis=1)
