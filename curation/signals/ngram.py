"""Word n-gram models: counted by sorting, smoothed by interpolated Witten-Bell, scored by hash look-ups.

A document is a sentence `<s> w1 … wn </s>`; `<s>` is only ever context, `</s>` is predicted. With c(h) occurrences of a context h, followed by T(h)
distinct words, and h' the context without its first word (Witten and Bell 1991; the interpolated form of Chen and Goodman 1998):

    P(w | h) = (c(hw) + T(h) P(w | h')) / (c(h) + T(h))        P(w) = (c(w) + T / V) / (N + T)

with N words and T distinct ones in the reference and a language of V words. It sums to one over V words, and a word never seen gets the least of all.

Stored as in an ARPA file: each n-gram seen with its log P(w | h) and its back-off log T/(c + T), by which an n-gram not seen is its shorter one's
probability. N-grams go by 64-bit hashes in one open-addressing table of three arrays, memory-mapped, so that the workers of a machine share one copy.
Two n-grams among a billion share a hash with probability 3 %, and then one of them gets the other's numbers. Counts are integers, keys are sorted
before they are placed: the same texts in any order give the same bytes.

Training holds about 60 bytes per word of the reference; the model takes 32 to 64 bytes per distinct n-gram.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.words import Hashes, Offsets, kernel

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# Stand-ins for the hashes of `<s>` and `</s>`; no word hash is likelier to equal them than to equal another word's.
BEGIN, END = np.uint64(0xB5AD4ECEDA1CE2A9), np.uint64(0x452821E638D01377)
EMPTY = np.uint64(0)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class Model(NamedTuple):
    order: int
    words: int  # distinct words of the reference, `</s>` among them
    floor: float  # log P of a word never seen
    keys: Hashes  # a power of two of slots; EMPTY where none
    probabilities: Singles  # log P(w | h) of the n-gram in that slot
    backoffs: Singles  # log T/(c + T) of the n-gram as a context; 0 where it is none


class Grams(NamedTuple):
    """The distinct n-grams of one order, and where each position's n-gram stands among them."""

    keys: Hashes
    counts: Indices
    first: Indices  # a position of each
    rank: Indices  # of the n-gram that ends at a position; -1 where none does


def train(words: Hashes, offsets: Offsets, order: int, vocabulary: int) -> Model:
    """The model of documents given as flat word hashes and offsets. Documents without words are left out."""
    text, place = _sentences(words, offsets)
    ending = text.copy()  # the hash of the n-gram that ends at each position
    grams = _distinct(ending, np.flatnonzero(place > 0))
    total, types = int(grams.counts.sum()), len(grams.keys)
    probabilities = (grams.counts + types / vocabulary) / (total + types)
    rank = grams.rank.copy()
    rank[place == 0] = types  # `<s>`: a context, never a prediction
    keys, logs, backoffs = [np.append(grams.keys, BEGIN)], [np.append(np.log(probabilities), 0.0)], []
    for length in range(2, order + 1):
        ending[1:] = extended(ending[:-1], text[1:])
        grams = _distinct(ending, np.flatnonzero(place >= length - 1))
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
    return Model(order, types, floor, *_table(np.concatenate(keys), np.concatenate(logs), np.concatenate(backoffs)))


def log_likelihoods(model: Model, words: Hashes, offsets: Offsets) -> Floats:
    """The natural log of each document's probability, its end included."""
    sums = np.empty(len(offsets) - 1)
    _score(words, offsets, model.keys, model.probabilities, model.backoffs, model.order, model.floor, sums)
    return sums


def save(model: Model, folder: Path) -> None:
    np.save(folder / "keys.npy", model.keys, allow_pickle=False)
    np.save(folder / "probabilities.npy", model.probabilities, allow_pickle=False)
    np.save(folder / "backoffs.npy", model.backoffs, allow_pickle=False)
    header = {"order": model.order, "words": model.words, "floor": model.floor}
    (folder / "model.json").write_text(json.dumps(header, sort_keys=True) + "\n", encoding="utf-8")


def load(folder: Path) -> Model:
    """The model in `folder`, its table memory-mapped."""
    header = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    names = ("keys", "probabilities", "backoffs")
    table = [np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in names]
    return Model(header["order"], header["words"], header["floor"], *table)


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


def _distinct(ending: Hashes, positions: Indices) -> Grams:
    values = ending[positions]
    by_value = np.argsort(values)
    ordered = values[by_value]
    new = np.ones(len(ordered), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    rank = np.full(len(ending), -1, np.int64)
    rank[positions[by_value]] = np.cumsum(new) - 1
    return Grams(ordered[starts], np.diff(np.append(starts, len(ordered))), positions[by_value[starts]], rank)


def _table(keys: Hashes, logs: Floats, backoffs: Floats) -> tuple[Hashes, Singles, Singles]:
    """The n-grams in a table that is at most half full, so that a look-up reads one or two slots."""
    slots = 1 << max(4, int(2 * len(keys) - 1).bit_length())
    table = (np.full(slots, EMPTY), np.zeros(slots, np.float32), np.zeros(slots, np.float32))
    by_key = np.argsort(keys, kind="stable")
    _fill(keys[by_key], logs[by_key].astype(np.float32), backoffs[by_key].astype(np.float32), *table)
    return table


@kernel
def _extended(context: np.uint64, word: np.uint64) -> np.uint64:
    value = (context * _STEP + word) * _MIX
    return value ^ (value >> np.uint64(32))


@kernel
def _slot(keys: Hashes, key: np.uint64) -> np.int64:
    """Where `key` stands, or would."""
    mask = np.uint64(keys.size - 1)
    at = (key ^ (key >> np.uint64(29))) & mask
    while keys[at] != key and keys[at] != EMPTY:
        at = (at + np.uint64(1)) & mask
    return np.int64(at)


@kernel
def _fill(keys: Hashes, logs: Singles, backoffs: Singles, to_keys: Hashes, to_logs: Singles, to_backoffs: Singles) -> None:
    for row in range(keys.size):
        at = _slot(to_keys, keys[row])
        to_keys[at] = keys[row]
        to_logs[at] = logs[row]
        to_backoffs[at] = backoffs[row]


@kernel
def _score(words: Hashes, offsets: Offsets, keys: Hashes, logs: Singles, backoffs: Singles, order: int, floor: float, sums: Floats) -> None:
    # Per length: the hash and the back-off of the n-gram that ends at the word before (seen) and at this one (now).
    seen_hash, now_hash = np.empty(order, np.uint64), np.empty(order, np.uint64)
    seen_backoff, now_backoff = np.empty(order), np.empty(order)
    for document in range(offsets.size - 1):
        total = 0.0
        seen_hash[0] = BEGIN
        seen_backoff[0] = backoffs[_slot(keys, BEGIN)]
        seen = min(1, order - 1)  # contexts of how many words are known
        for position in range(offsets[document], offsets[document + 1] + 1):
            word = words[position] if position < offsets[document + 1] else END
            longest = 0
            value = floor
            # A longer n-gram was seen only if its shorter one was: go up until one is missing.
            while longest < order and longest <= seen:
                now_hash[longest] = word if longest == 0 else _extended(seen_hash[longest - 1], word)
                at = _slot(keys, now_hash[longest])
                if keys[at] == EMPTY:
                    break
                value = logs[at]
                now_backoff[longest] = backoffs[at]
                longest += 1
            for length in range(max(longest, 1) - 1, seen):
                value += seen_backoff[length]
            total += value
            seen = min(longest, order - 1)
            for length in range(seen):
                seen_hash[length] = now_hash[length]
                seen_backoff[length] = now_backoff[length]
        sums[document] = total
