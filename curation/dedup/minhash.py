"""Shingles and MinHash signatures of texts: pure functions of one text each.

A *shingle* is the hash of five consecutive words (`curation.text.words`); a text of one to four words has one shingle, of all its words; a text
without a word has none and is nobody's near-duplicate. In unspaced scripts every character is a word, so a shingle is five characters there.
Shingle hash (64 bits): MurmurHash3's finalizer over the sum of word hash times `POSITIONS[i]`, modulo 2^64. *Exact Jaccard* everywhere in
curation means that of the sets of these 64-bit hashes: two different shingles fall together with probability 2^-64 per pair.

Signature: 128 u32, datasketch 2's scheme `affine32` with its seed 1 over the upper 32 bits of the shingle hashes, bit for bit, so
`datasketch.MinHash(hashvalues=row, scheme="affine32")` reads what we write. No shingle gives the empty signature, all bits set.
The share of equal places estimates Jaccard with a standard error of sqrt(J (1 - J) / 128) (Broder 1997).

The exact scheme costs nothing: its pre-mix is three more vector operations per shingle, beside 128 multiply-add-min.
The permutation loop is outermost and its body runs over a contiguous u32 buffer, because that is the form LLVM vectorises.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from curation.dedup.preference import Preference
from curation.text.words import WORDS_VERSION, Hashes, Offsets, hash_room, hash_words, kernel, mix64_python, text_buffers, word_hash, words

SIGNATURE_VERSION = f"1/affine32-128/words-{WORDS_VERSION}"
PERMUTATIONS = 128
SHINGLE_WORDS = 5
POSITIONS = (0x9FB21C651E98DF25, 0xD1342543DE82EF95, 0xF1357AEA2E62A9C5, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB)
EMPTY = np.uint32(0xFFFFFFFF)

Signatures = npt.NDArray[np.uint32]

_P0, _P1, _P2, _P3, _P4 = (np.uint64(p) for p in POSITIONS)
_MIX_A = np.uint64(0xFF51AFD7ED558CCD)
_MIX_B = np.uint64(0xC4CEB9FE1A85EC53)
_FMIX_A = np.uint32(0x85EBCA6B)
_FMIX_B = np.uint32(0xC2B2AE35)
_BLOCK = 4096  # shingles hashed before they are permuted: 16 KB of u32 stay in the first-level cache
_RANGE_BYTES = 1 << 18  # text whose word hashes are made before they are read again: they stay in the second-level cache


class MinhashConfig(Preference):
    """Near-duplicates: documents whose sets of five-word shingles have a Jaccard similarity of `threshold` or more."""

    kind: Literal["minhash"] = "minhash"
    threshold: float = Field(default=0.8, ge=0.3, le=1)


def shingle_set(text: str) -> set[int]:
    """The shingle hashes of a text in plain Python: the definition the kernels are tested against."""
    hashes = [word_hash(word) for word in words(text)]
    runs = [hashes[i : i + SHINGLE_WORDS] for i in range(max(len(hashes) - SHINGLE_WORDS + 1, min(len(hashes), 1)))]
    return {mix64_python(sum(h * p for h, p in zip(run, POSITIONS, strict=False)) & 0xFFFFFFFFFFFFFFFF) for run in runs}


@lru_cache(maxsize=1)
def permutations() -> tuple[Signatures, Signatures]:
    """Multipliers (odd) and addends of datasketch's `affine32` at seed 1; NumPy keeps RandomState's streams for good."""
    stream = np.random.RandomState(1)
    multipliers = stream.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return multipliers, stream.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)


@kernel
def _shingle(hashes: Hashes, at: int, out: Hashes) -> None:
    """Hash the len(out) full shingles of five words that start at `at`."""
    for i in range(len(out)):
        value = (
            hashes[at + i] * _P0 + hashes[at + i + 1] * _P1 + hashes[at + i + 2] * _P2 + hashes[at + i + 3] * _P3 + hashes[at + i + 4] * _P4
        )
        value = (value ^ (value >> np.uint64(33))) * _MIX_A
        value = (value ^ (value >> np.uint64(33))) * _MIX_B
        out[i] = value ^ (value >> np.uint64(33))


@kernel
def _shingle_short(hashes: Hashes, first: int, last: int) -> np.uint64:
    """Hash the one shingle of a text of one to four words."""
    value: np.uint64 = hashes[first] * _P0
    if last - first > 1:
        value += hashes[first + 1] * _P1
    if last - first > 2:
        value += hashes[first + 2] * _P2
    if last - first > 3:
        value += hashes[first + 3] * _P3
    value = (value ^ (value >> np.uint64(33))) * _MIX_A
    value = (value ^ (value >> np.uint64(33))) * _MIX_B
    return value ^ (value >> np.uint64(33))


@kernel
def _permute(shingles: Hashes, mixed: Signatures, multipliers: Signatures, addends: Signatures, signature: Signatures) -> None:
    """Lower `signature` to the minima over these shingles, by way of the buffer `mixed`."""
    count = len(shingles)
    for i in range(count):
        value = np.uint32(shingles[i] >> np.uint64(32))
        value = np.uint32((value ^ (value >> np.uint32(16))) * _FMIX_A)
        value = np.uint32((value ^ (value >> np.uint32(13))) * _FMIX_B)
        mixed[i] = value ^ (value >> np.uint32(16))
    for p in range(len(signature)):
        multiplier = multipliers[p]
        addend = addends[p]
        least = signature[p]
        for i in range(count):
            value = np.uint32(multiplier * mixed[i] + addend)
            least = value if value < least else least
        signature[p] = least


@kernel
def _sign(hashes: Hashes, offsets: Offsets, multipliers: Signatures, addends: Signatures, out: Signatures) -> None:
    shingles = np.empty(_BLOCK, np.uint64)
    mixed = np.empty(_BLOCK, np.uint32)
    for document in range(len(offsets) - 1):
        first = offsets[document]
        last = offsets[document + 1]
        if first < last < first + SHINGLE_WORDS:
            shingles[0] = _shingle_short(hashes, first, last)
            _permute(shingles[:1], mixed, multipliers, addends, out[document])
        for at in range(first, last - SHINGLE_WORDS + 1, _BLOCK):
            block = shingles[: min(_BLOCK, last - SHINGLE_WORDS + 1 - at)]
            _shingle(hashes, at, block)
            _permute(block, mixed, multipliers, addends, out[document])


@kernel
def _shingle_documents(hashes: Hashes, offsets: Offsets, out: Hashes, out_offsets: Offsets) -> None:
    count = 0
    out_offsets[0] = 0
    for document in range(len(offsets) - 1):
        first = offsets[document]
        last = offsets[document + 1]
        if first < last < first + SHINGLE_WORDS:
            out[count] = _shingle_short(hashes, first, last)
            count += 1
        elif first < last:
            _shingle(hashes, first, out[count : count + last - first - SHINGLE_WORDS + 1])
            count += last - first - SHINGLE_WORDS + 1
        out_offsets[document + 1] = count


@kernel
def _unique(values: Hashes, offsets: Offsets, unique_offsets: Offsets) -> None:
    """Close up the runs of equal values inside each document's sorted stretch, in place."""
    count = 0
    unique_offsets[0] = 0
    for document in range(len(offsets) - 1):
        for i in range(offsets[document], offsets[document + 1]):
            if i == offsets[document] or values[i] != values[i - 1]:
                values[count] = values[i]
                count += 1
        unique_offsets[document + 1] = count


def _ranges(offsets: Offsets) -> Iterator[tuple[int, int]]:
    """Document ranges of about _RANGE_BYTES of text, at least one document each."""
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + np.int64(_RANGE_BYTES), side="right")) - 1
        yield first, max(last, first + 1)
        first = max(last, first + 1)


def signatures(texts: pa.LargeStringArray) -> Signatures:
    """u32[n, 128]: the MinHash signature of every text; rows of all bits set where a text has no word. Releases the GIL while it computes."""
    data, offsets = text_buffers(texts)
    out = np.full((len(texts), PERMUTATIONS), EMPTY, np.uint32)
    multipliers, addends = permutations()
    scratch = np.empty(0, np.uint64)
    for first, last in _ranges(offsets):
        part = offsets[first : last + 1]
        if len(scratch) < hash_room(part):
            scratch = np.empty(hash_room(part), np.uint64)
        hashes, places = hash_words(data, part, scratch)
        _sign(hashes, places, multipliers, addends, out[first:last])
    return out


def shingles(texts: pa.LargeStringArray) -> tuple[Hashes, Offsets]:
    """The set of shingle hashes of every text, sorted and flat, and the len(texts) + 1 offsets into it."""
    hashes, places = hash_words(*text_buffers(texts))
    out = np.empty(len(hashes), np.uint64)
    offsets = np.empty(len(places), np.int64)
    _shingle_documents(hashes, places, out, offsets)
    return sorted_sets(out, offsets)


def sorted_sets(values: Hashes, offsets: Offsets) -> tuple[Hashes, Offsets]:
    """The distinct values of each document's stretch of `values`, sorted, in the same array, and the offsets into it."""
    for document in range(len(offsets) - 1):
        values[offsets[document] : offsets[document + 1]].sort()
    unique_offsets = np.empty_like(offsets)
    _unique(values, offsets, unique_offsets)
    return values[: unique_offsets[-1]], unique_offsets


@kernel
def _intersection(left: Hashes, right: Hashes) -> int:
    i = 0
    j = 0
    common = 0
    while i < len(left) and j < len(right):
        a = left[i]
        b = right[j]
        common += a == b
        i += a <= b
        j += b <= a
    return common


@kernel
def jaccards(left: Hashes, left_spans: Offsets, right: Hashes, right_spans: Offsets) -> npt.NDArray[np.float64]:
    """Exact Jaccard of each pair of sorted sets: `left_spans` and `right_spans` are i64[n, 2], start and end in `left` and `right`.

    0 where a set is empty. The quotient is one correctly rounded division, so a share of 4/5 reaches a threshold of 0.8.
    """
    out = np.zeros(len(left_spans), np.float64)
    for pair in range(len(left_spans)):
        a = left[left_spans[pair, 0] : left_spans[pair, 1]]
        b = right[right_spans[pair, 0] : right_spans[pair, 1]]
        if len(a) and len(b):
            common = _intersection(a, b)
            out[pair] = common / (len(a) + len(b) - common)
    return out


@kernel
def agreements(left: Signatures, left_at: Offsets, right: Signatures, right_at: Offsets) -> npt.NDArray[np.int64]:
    """How many places each pair of signatures, `left[left_at[i]]` and `right[right_at[i]]`, has in common."""
    out = np.empty(len(left_at), np.int64)
    for pair in range(len(left_at)):
        a = left[left_at[pair]]
        b = right[right_at[pair]]
        common = np.uint32(0)
        for i in range(left.shape[1]):
            common += np.uint32(a[i] == b[i])
        out[pair] = common
    return out
