"""Bags of hashed words and word pairs, and noise that a text's hash decides: the kernels of `importance`.

A word's bucket is its 64-bit hash modulo `buckets`; a pair's is that of both hashes mixed in their order. A text of n words has 2n - 1 features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xxhash

from curation.text.words import Hashes, Offsets, kernel, text_buffers

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_STEP, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_HALF = np.uint64(32)


def count(words: Hashes, offsets: Offsets, buckets: int) -> Integers:
    """How often each bucket occurs in documents given as flat word hashes and offsets."""
    counts = np.zeros(buckets, np.int64)
    _count(words, offsets, counts)
    return counts


def sums(words: Hashes, offsets: Offsets, weights: Floats) -> Floats:
    """Per document the sum of its features' weights."""
    found = np.zeros(len(offsets) - 1)
    _sum(words, offsets, weights, found)
    return found


def gumbel(texts: pa.LargeStringArray, seed: int) -> Floats:
    """A standard Gumbel variable per text, -log(-log u) of a u in (0, 1) that xxh3(seed, text) is scaled to."""
    data, offsets = text_buffers(texts)
    raw = memoryview(data.data)
    hashes = [
        xxhash.xxh3_64_intdigest(raw[first:end], seed=seed) for first, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    uniform = ((np.array(hashes, np.uint64) >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    noise: Floats = -np.log(-np.log(uniform))
    return noise


@kernel
def _bucket(value: np.uint64, buckets: int) -> np.int64:
    return np.int64(value % np.uint64(buckets))


@kernel
def _pair(first: np.uint64, second: np.uint64) -> np.uint64:
    value = (first * _STEP + second) * _MIX
    return value ^ (value >> _HALF)


@kernel
def _count(words: Hashes, offsets: Offsets, counts: Integers) -> None:
    for document in range(offsets.size - 1):
        for at in range(offsets[document], offsets[document + 1]):
            counts[_bucket(words[at], counts.size)] += 1
            if at > offsets[document]:
                counts[_bucket(_pair(words[at - 1], words[at]), counts.size)] += 1


@kernel
def _sum(words: Hashes, offsets: Offsets, weights: Floats, found: Floats) -> None:
    for document in range(offsets.size - 1):
        total = 0.0
        for at in range(offsets[document], offsets[document + 1]):
            total += weights[_bucket(words[at], weights.size)]
            if at > offsets[document]:
                total += weights[_bucket(_pair(words[at - 1], words[at]), weights.size)]
        found[document] = total
