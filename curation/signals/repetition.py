"""How much of a text repeats itself: lines, paragraphs and word n-grams that occur before (Gopher, arXiv 2112.11446, table A1).

What is compared are 64-bit hashes of sequences of words and lines. Definitions are those of `heuristics`. Memory: up to 100 bytes per word of the largest text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.signals.counting import Integers, Lines, Words
from curation.text.words import Hashes, Offsets, kernel

TOP, DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # lengths of n-grams, in words

_FOLD = np.uint64(0x9E3779B97F4A7C15)


class Repeated(NamedTuple):
    """Of each text, how many of its units occurred before, and their code points."""

    units: Integers
    characters: Integers


def repeated(hashes: Hashes, characters: Integers, offsets: Offsets) -> Repeated:
    """Of units (lines, paragraphs) that lie one behind the other, text after text."""
    found = np.zeros((offsets.size - 1, 2), np.int64)
    _repeated(hashes, characters, offsets, found)
    return Repeated(*found.T)


def paragraphs(lines: Lines) -> tuple[Hashes, Integers, Offsets]:
    """Hashes, code points (line ends between its lines included) and offsets of the paragraphs that lines make."""
    firsts = np.flatnonzero(lines.opens)
    if not firsts.size:
        return np.empty(0, np.uint64), np.empty(0, np.int64), np.zeros_like(lines.offsets)
    hashes = np.empty(firsts.size, np.uint64)
    _folded(lines.hashes, np.append(firsts, lines.hashes.size), hashes)
    inside = np.diff(np.append(firsts, lines.hashes.size)) - 1
    return hashes, np.add.reduceat(lines.characters, firsts) + inside, np.searchsorted(firsts, lines.offsets)


def n_grams(words: Words) -> Integers:
    """Code points in repeated n-grams, one row per text: a column for each length in TOP, then for each in DUPLICATE."""
    found = np.zeros((words.offsets.size - 1, len(TOP) + len(DUPLICATE)), np.int64)
    _n_grams(words.hashes, words.characters, words.offsets, found)
    return found


@kernel
def _room(units: int) -> int:
    """Slots of a hash table for so many units: a power of two, at most half full."""
    room = 16
    while room < 2 * units:
        room *= 2
    return room


@kernel
def _folded(hashes: Hashes, offsets: Offsets, out: Hashes) -> None:
    for unit in range(out.size):
        value = np.uint64(0)
        for part in range(offsets[unit], offsets[unit + 1]):
            value = value * _FOLD + hashes[part]
        out[unit] = value


@kernel
def _slot(keys: Hashes, counts: npt.NDArray[np.int32], mask: int, key: np.uint64) -> int:
    """The slot that holds `key`, or the empty one where it belongs."""
    slot = int((key * _FOLD) >> np.uint64(32)) & mask
    while counts[slot] and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@kernel
def _repeated(hashes: Hashes, characters: Integers, offsets: Offsets, found: Integers) -> None:
    for document in range(found.shape[0]):
        first, end = offsets[document], offsets[document + 1]
        room = _room(end - first)
        keys, counts = np.empty(room, np.uint64), np.zeros(room, np.int32)
        for unit in range(first, end):
            slot = _slot(keys, counts, room - 1, hashes[unit])
            if counts[slot]:
                found[document, 0] += 1
                found[document, 1] += characters[unit]
            keys[slot] = hashes[unit]
            counts[slot] = 1


@kernel
def _top(
    grams: Hashes,
    lengths: npt.NDArray[np.int32],
    size: int,
    keys: Hashes,
    counts: npt.NDArray[np.int32],
    firsts: npt.NDArray[np.int32],
) -> int:
    """Code points of the most frequent n-gram (the first of several) times its occurrences; 0 where none occurs twice."""
    mask = counts.size - 1
    counts[:] = 0
    most, first = 1, 0
    for position in range(grams.size - size + 1):
        slot = _slot(keys, counts, mask, grams[position])
        if not counts[slot]:
            keys[slot] = grams[position]
            firsts[slot] = position
        counts[slot] += 1
        if counts[slot] > most or (counts[slot] == most and firsts[slot] < first):
            most, first = counts[slot], firsts[slot]
    if most == 1:
        return 0
    return int(most * (lengths[first : first + size].sum() + size - 1))


@kernel
def _duplicate(grams: Hashes, lengths: npt.NDArray[np.int32], size: int, keys: Hashes, counts: npt.NDArray[np.int32]) -> int:
    """Code points of the n-grams that occurred before, from left to right and without overlap."""
    mask = counts.size - 1
    counts[:] = 0
    found = 0
    position = 0
    while position < grams.size - size + 1:
        slot = _slot(keys, counts, mask, grams[position])
        if counts[slot]:
            found += lengths[position : position + size].sum()
            position += size
        else:
            keys[slot] = grams[position]
            counts[slot] = 1
            position += 1
    return found


@kernel
def _n_grams(hashes: Hashes, lengths: npt.NDArray[np.int32], offsets: Offsets, found: Integers) -> None:
    """A length without a repeated n-gram ends the search: a longer one would contain a repeated shorter one."""
    for document in range(found.shape[0]):
        own, own_lengths = hashes[offsets[document] : offsets[document + 1]], lengths[offsets[document] : offsets[document + 1]]
        room = _room(own.size)
        keys, counts, firsts = np.empty(room, np.uint64), np.empty(room, np.int32), np.empty(room, np.int32)
        grams = own.copy()
        for size in range(2, 11):
            for position in range(grams.size - size + 1):
                grams[position] = grams[position] * _FOLD + own[position + size - 1]
            if size < 5:
                found[document, size - 2] = _top(grams, own_lengths, size, keys, counts, firsts)
            else:
                found[document, size - 2] = _duplicate(grams, own_lengths, size, keys, counts)
            if not found[document, size - 2]:
                break
