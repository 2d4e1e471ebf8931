"""Word n-gram models: counted by sorting, smoothed by interpolated Witten-Bell, scored by hash look-ups.

A document is a sentence `<s> w1 … wn </s>`; `<s>` is only ever context, `</s>` is predicted. With c(h) occurrences of a context h, followed by T(h)
distinct words, and h' the context without its first word (Witten and Bell 1991; the interpolated form of Chen and Goodman 1998):

    P(w | h) = (c(hw) + T(h) P(w | h')) / (c(h) + T(h))        P(w) = (c(w) + T / V) / (N + T)

with N words and T distinct ones in the reference and a language of V words. It sums to one over V words, and a word never seen gets the least of all.

Stored as in an ARPA file: each n-gram seen with its log P(w | h) and its back-off log T/(c + T), by which an n-gram not seen is its shorter one's
probability. N-grams go by 64-bit hashes in one memory-mapped table, so that the workers of a machine share one copy. (Two n-grams among a billion share
a hash with probability 3 %; then one of them gets the other's numbers.) Counts are integers, and where an n-gram stands in the table does not depend
on when it came: the same texts in any order give the same bytes.

Training holds about 155 bytes per word of the reference (measured), its text aside; the model takes 32 to 64 bytes per distinct n-gram.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.text.words import Bytes, Hashes, Offsets, kernel

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# Stand-ins for the hashes of `<s>` and `</s>`; no word hash is likelier to equal them than to equal another word's.
BEGIN, END = np.uint64(0xB5AD4ECEDA1CE2A9), np.uint64(0x452821E638D01377)
EMPTY = np.uint64(0)
_TOUCHED_AT_ONCE = 256
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class Model(NamedTuple):
    order: int
    words: int  # distinct words of the reference, `</s>` among them
    floor: float  # log P of a word never seen
    table: Hashes  # (slots, 2), slots a power of two: an n-gram's hash (EMPTY: none), then its two float32, log P(w | h) and the back-off


class Grams(NamedTuple):
    """The distinct n-grams of one length, in the order of their first occurrence."""

    keys: Hashes
    counts: Indices
    first: Indices  # where each ends first
    rank: Indices  # which of them ends at a position; -1 where none does


def train(words: Hashes, offsets: Offsets, order: int, vocabulary: int) -> Model:
    """The model of documents given as flat word hashes and offsets. Documents without words are left out."""
    text, place = _sentences(words, offsets)
    ending = text.copy()  # the hash of the n-gram that ends at each position
    grams = _distinct(ending, place, 1)
    total, types = int(grams.counts.sum()), len(grams.keys)
    probabilities = (grams.counts + types / vocabulary) / (total + types)
    rank = grams.rank.copy()
    rank[place == 0] = types  # `<s>`: a context, never a prediction
    keys, logs, backoffs = [np.append(grams.keys, BEGIN)], [np.append(np.log(probabilities), 0.0)], []
    for length in range(2, order + 1):
        ending[1:] = extended(ending[:-1], text[1:])
        grams = _distinct(ending, place, length - 1)
        context, suffix = rank[grams.first - 1], rank[grams.first]
        contexts = len(keys[-1])
        followed = np.bincount(context, grams.counts, contexts)
        distinct = np.bincount(context, minlength=contexts)
        probabilities = (grams.counts + distinct[context] * probabilities[suffix]) / (followed + distinct)[context]
        with np.errstate(divide="ignore", invalid="ignore"):
            backoffs.append(np.where(distinct > 0, np.log(distinct / (followed + distinct)), 0.0))
        keys.append(grams.keys)
        logs.append(np.log(probabilities))
        rank = grams.rank
    backoffs.append(np.zeros(len(keys[-1])))
    floor = float(np.log(types / vocabulary / (total + types)))
    return model_of(order, types, floor, np.concatenate(keys), np.concatenate(logs), np.concatenate(backoffs))


def model_of(order: int, words: int, floor: float, keys: Hashes, logs: Floats, backoffs: Floats) -> Model:
    """The model of n-grams given by their keys, `BEGIN` for `<s>` among them, with natural log probabilities and back-offs."""
    return Model(order, words, floor, _table(keys, logs, backoffs))


def seen(words: Hashes, offsets: Offsets, order: int) -> Iterator[tuple[Hashes, Hashes]]:
    """Per length, the distinct n-grams but `<s>` alone: u64[n, length] of word hashes, and their keys."""
    text, place = _sentences(words, offsets)
    ending = text.copy()
    for length in range(1, order + 1):
        if length > 1:
            ending[1:] = extended(ending[:-1], text[1:])
        grams = _distinct(ending, place, max(1, length - 1))
        yield text[grams.first[:, None] + np.arange(1 - length, 1)], grams.keys


def keys_of(grams: Hashes) -> Hashes:
    """The keys of n-grams given as u64[n, length] of word hashes."""
    keys: Hashes = grams[:, 0].copy()
    for column in range(1, grams.shape[1]):
        keys = extended(keys, grams[:, column])
    return keys


def values(model: Model, keys: Hashes) -> tuple[Floats, Floats]:
    """The log probability and the back-off of n-grams that the model has."""
    found = np.empty((len(keys), 2))
    _values(keys, model.table, model.table.view(np.float32), found)
    return found[:, 0], found[:, 1]


def log_likelihoods(model: Model, words: Hashes, offsets: Offsets) -> Floats:
    """The natural log of each document's probability, its end included."""
    sums = np.empty(len(offsets) - 1)
    _score(words, offsets, model.table, model.table.view(np.float32), model.order, model.floor, sums)
    return sums


def save(model: Model, folder: Path) -> None:
    np.save(folder / "table.npy", model.table, allow_pickle=False)
    header = {"order": model.order, "words": model.words, "floor": model.floor}
    (folder / "model.json").write_text(json.dumps(header, sort_keys=True) + "\n", encoding="utf-8")


def load(folder: Path) -> Model:
    """The model in `folder`, its table memory-mapped."""
    header = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    table = np.asarray(np.load(folder / "table.npy", mmap_mode="r", allow_pickle=False))
    return Model(header["order"], header["words"], header["floor"], table)


def extended(context: Hashes, word: Hashes) -> Hashes:
    """The hash of a context followed by one more word; `_extended` is the same for the kernels."""
    value = (context * _STEP + word) * _MIX
    return value ^ (value >> np.uint64(32))


def _sentences(words: Hashes, offsets: Offsets) -> tuple[Hashes, Indices]:
    """All documents with words as one row of `<s> w1 … wn </s>`, and each symbol's place in its sentence."""
    lengths = np.diff(offsets)
    lengths = lengths[lengths > 0]
    ends = np.cumsum(lengths + 2)
    starts = ends - lengths - 2
    text = np.empty(int(ends[-1]) if len(ends) else 0, np.uint64)
    is_word = np.ones(len(text), np.bool_)
    is_word[starts] = is_word[ends - 1] = False
    text[starts], text[ends - 1], text[is_word] = BEGIN, END, words[offsets[0] : offsets[-1]]
    return text, np.arange(len(text)) - np.repeat(starts, lengths + 2)


def _distinct(ending: Hashes, place: Indices, least: int) -> Grams:
    """The n-grams that end at least `least` symbols into their sentence."""
    room = len(ending)
    keys, counts, first = np.empty(room, np.uint64), np.zeros(room, np.int64), np.empty(room, np.int64)
    rank = np.full(room, -1, np.int64)
    found = _collect(ending, place, least, keys, counts, first, rank)
    return Grams(keys[:found], counts[:found], first[:found], rank)


def _table(keys: Hashes, logs: Floats, backoffs: Floats) -> Hashes:
    """The n-grams in a table that is at most half full, so that a look-up seldom reads a second cache line."""
    slots = 1 << max(4, int(2 * len(keys) - 1).bit_length())
    table = np.zeros((slots, 2), np.uint64)
    values = np.empty((len(keys), 2), np.float32)
    values[:, 0], values[:, 1] = logs, backoffs
    _fill(keys, values.view(np.uint64)[:, 0], table)
    return table


@kernel
def _extended(context: np.uint64, word: np.uint64) -> np.uint64:
    value = (context * _STEP + word) * _MIX
    return value ^ (value >> np.uint64(32))


@kernel
def _home(key: np.uint64, slots: int) -> np.uint64:
    return (key ^ (key >> np.uint64(29))) & np.uint64(slots - 1)


@kernel
def _collect(ending: Hashes, place: Indices, least: int, keys: Hashes, counts: Indices, first: Indices, rank: Indices) -> int:
    """Numbers the distinct n-grams as they come, through a table of their numbers that doubles when it is half full."""
    found = 0
    slots = 1 << 16
    numbers = np.full(slots, -1, np.int64)
    for position in range(ending.size):
        if place[position] < least:
            continue
        if 2 * found >= slots:
            slots *= 2
            numbers = np.full(slots, -1, np.int64)
            for number in range(found):
                at = _home(keys[number], slots)
                while numbers[at] >= 0:
                    at = (at + np.uint64(1)) & np.uint64(slots - 1)
                numbers[at] = number
        key = ending[position]
        at = _home(key, slots)
        while numbers[at] >= 0 and keys[numbers[at]] != key:
            at = (at + np.uint64(1)) & np.uint64(slots - 1)
        number = numbers[at]
        if number < 0:
            number = found
            numbers[at] = number
            keys[number] = key
            first[number] = position
            found += 1
        counts[number] += 1
        rank[position] = number
    return found


@kernel
def _fill(keys: Hashes, values: Hashes, table: Hashes) -> None:
    """Linear probing in which the lower key stands first (Amble and Knuth 1974): one layout, whatever the order of insertion."""
    slots = len(table)
    for row in range(keys.size):
        key, value = keys[row], values[row]
        at = _home(key, slots)
        while table[at, 0] != EMPTY:
            if table[at, 0] > key:
                key, table[at, 0] = table[at, 0], key
                value, table[at, 1] = table[at, 1], value
            at = (at + np.uint64(1)) & np.uint64(slots - 1)
        table[at, 0] = key
        table[at, 1] = value


@kernel
def _slot(table: Hashes, key: np.uint64) -> np.int64:
    """Where `key` stands; -1 where it does not."""
    at = _home(key, len(table))
    while table[at, 0] != EMPTY and table[at, 0] < key:
        at = (at + np.uint64(1)) & np.uint64(len(table) - 1)
    return np.int64(at) if table[at, 0] == key else np.int64(-1)


@kernel
def _values(keys: Hashes, table: Hashes, values: Singles, found: Floats) -> None:
    for row in range(keys.size):
        slot = _slot(table, keys[row])
        found[row, 0] = values[slot, 2]
        found[row, 1] = values[slot, 3]


@kernel
def _hash_candidates(words: Hashes, length: int, longest: Bytes, hashes: Hashes) -> None:
    """The n-gram of `length` + 1 words that ends at each place of a sentence, where its shorter one and its context were seen; EMPTY elsewhere."""
    for at in range(longest.size):
        word = words[at] if at < words.size else END
        key = EMPTY
        if length == 0:
            key = word
        elif longest[at] == length and at == 0:
            key = _extended(BEGIN, word) if length == 1 else EMPTY
        elif longest[at] == length and longest[at - 1] >= length:
            key = _extended(hashes[length - 1, at - 1], word)
        hashes[length, at] = key


@kernel
def _look_up(table: Hashes, values: Singles, length: int, hashes: Hashes, longest: Bytes, found: Singles, touched: Hashes) -> None:
    """The log probability and back-off of each candidate that the table has."""
    for start in range(0, longest.size, _TOUCHED_AT_ONCE):
        end = min(start + _TOUCHED_AT_ONCE, longest.size)
        # Reading every home slot first, with no branch on what stands there, lets the processor wait for many cache lines at a time.
        for at in range(start, end):
            touched[0] ^= table[_home(hashes[length, at], len(table)), 0]
        for at in range(start, end):
            if hashes[length, at] != EMPTY:
                slot = _slot(table, hashes[length, at])
                if slot >= 0:
                    longest[at] = length + 1
                    found[length, at, 0] = values[slot, 2]
                    found[length, at, 1] = values[slot, 3]


@kernel
def _score(words: Hashes, offsets: Offsets, table: Hashes, values: Singles, order: int, floor: float, sums: Floats) -> None:
    room = 1 + (np.diff(offsets).max() if offsets.size > 1 else 0)
    hashes, found = np.empty((order, room), np.uint64), np.empty((order, room, 2), np.float32)
    seen, touched = np.empty(room, np.uint8), np.zeros(1, np.uint64)
    begin = values[_slot(table, BEGIN), 3]
    for document in range(offsets.size - 1):
        sentence = words[offsets[document] : offsets[document + 1]]
        longest = seen[: sentence.size + 1]  # how many words the longest n-gram has that ends here and was seen
        longest[:] = 0
        for length in range(order):
            _hash_candidates(sentence, length, longest, hashes)
            _look_up(table, values, length, hashes, longest, found, touched)
        total = 0.0
        for at in range(longest.size):
            total += found[longest[at] - 1, at, 0] if longest[at] else floor
            contexts = min(longest[at - 1] if at else 1, order - 1)
            for length in range(max(longest[at], 1), contexts + 1):
                total += begin if at == 0 else found[length - 1, at - 1, 1]
        sums[document] = total
