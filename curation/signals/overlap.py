"""An exact index of the word n-grams of many short passages, and which passage a text has most of.

A passage's n-grams are all its runs of n words (`plain.Words`). N-grams that stand in more than MOST_PASSAGES different passages tell nothing about any of them and are left
out, and so is what stands in too many texts of a sample. A passage without an n-gram, too short or of left-out ones alone, is found as a whole line if it has enough words:
`What is gout?` within a sentence is nobody's question.

A text's share of a passage is the number of distinct n-grams of the passage that one stretch of the text has, over the number in the index. A stretch ends where nothing
of the passage follows for as many words as the passage has and n more, so a book is not charged with what its chapters have together, and no text hides anything by being long.

N-grams go by 64-bit hashes, sorted, behind a table of bits that tells in one look that an n-gram is not there (exact: what passes is compared). With 30 million n-grams one of
600 billion others falls on the hash of one of them. About 24 bytes an n-gram, memory-mapped, so that the workers of a machine share one copy; building holds about 100.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.signals.plain import FIRST, Points, Words, words_of
from curation.text.words import Bytes, Hashes, Offsets, kernel

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

MOST_PASSAGES = 10
LABELS = 2  # words that may stand before a passage on its line, as in `Question 12:`
NEAR = 30  # words besides the options' own within which an option is near
AT_ONCE = 1 << 20  # bytes of texts whose words are held
LOOKS = 1024  # n-grams that are hashed before any is looked for
_BITS_PER_KEY = 16
_BASE = np.uint64(0xD1342543DE82EF95)
_LENGTH = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class Index(NamedTuple):
    """`keys` are sorted; passage numbers of key k are `passages[first[k]:first[k + 1]]`. `lines` likewise, one passage each. By passage: `grams` in the index and `sizes`
    in words; its options are `options[option_first[p]:option_first[p + 1]]`, hashes of `option_sizes` words. `lengths`: n, and the most words of a line."""

    lengths: Indices
    bits: Hashes
    buckets: Points
    keys: Hashes
    first: Points
    passages: Points
    lines: Hashes
    line_passages: Points
    grams: Points
    sizes: Points
    option_first: Indices
    options: Hashes
    option_sizes: Points


class Found(NamedTuple):
    """By text, the passage that it has most of (-1: none), the share, where in the text, in characters, and the share of the passage's options that follow (-1: it has none)."""

    passage: Indices
    share: Floats
    start: Indices
    length: Indices
    options: Floats


class Grams(NamedTuple):
    """Distinct n-grams in the order of their hashes; n-gram k stands in passages `owners[first[k]:first[k + 1]]`."""

    keys: Hashes
    first: Indices
    owners: Points


def build(items: Words, offsets: Offsets, ngram: int, shortest: int, samples: list[tuple[Bytes, Offsets]], share: float) -> Index:
    """The index of the passages that `offsets` cuts out of `items`, no two of them equal, without what stands in more than `share` of a sample's texts. A passage that is
    to be found as a line has at least `shortest` words. Options come later."""
    sizes = np.diff(offsets)
    grams = _grams_of(items.hashes, offsets, ngram)
    whole = np.empty(len(sizes), np.uint64)
    _whole(items.hashes, offsets, whole)
    keep, is_line = np.diff(grams.first) <= MOST_PASSAGES, sizes >= shortest
    everything = _index(grams, np.ones(len(keep), np.bool_), whole, sizes, np.flatnonzero(is_line), ngram)
    for data, text_offsets in samples:
        in_texts, lines_in_texts = np.zeros(len(everything.keys), np.int64), np.zeros(len(everything.lines), np.int64)
        last, last_line = np.full(len(in_texts), -1), np.full(len(lines_in_texts), -1)
        for begin, words, word_offsets in _some_at_a_time(data, text_offsets):
            _count_texts(words, word_offsets, begin, everything, in_texts, lines_in_texts, last, last_line)
        most = max(1, int(share * (len(text_offsets) - 1)))
        keep &= in_texts <= most
        is_line[everything.line_passages[lines_in_texts > most]] = False
    without = np.bincount(grams.owners[np.repeat(keep, np.diff(grams.first))], minlength=len(sizes)) == 0
    return _index(grams, keep, whole, sizes, np.flatnonzero(is_line & without), ngram)


def distinct(words: Words, offsets: Offsets) -> Indices:
    """The first of the passages of equal words, ascending; those without a word are left out."""
    whole = np.empty(len(offsets) - 1, np.uint64)
    _whole(words.hashes, offsets, whole)
    there = np.flatnonzero(np.diff(offsets))
    return np.sort(there[np.unique(whole[there], return_index=True)[1]])


def protection(index: Index) -> list[str]:
    """How each passage is found: `ngrams`, `line`, or `nothing`."""
    is_line = np.zeros(len(index.sizes), np.bool_)
    is_line[index.line_passages] = True
    found: list[str] = np.select([index.grams > 0, is_line], ["ngrams", "line"], "nothing").tolist()
    return found


def with_options(index: Index, words: Words, offsets: Offsets, option_first: Indices) -> Index:
    """The index with the options that `offsets` cuts out of `words`; `option_first`: n + 1 offsets into them by passage."""
    hashes = np.empty(len(offsets) - 1, np.uint64)
    _whole(words.hashes, offsets, hashes)
    return index._replace(option_first=option_first, options=hashes, option_sizes=np.diff(offsets).astype(np.uint32))


def find(data: Bytes, offsets: Offsets, index: Index) -> Found:
    """What the texts that `offsets` cuts out of `data` have of the passages."""
    count = len(offsets) - 1
    found = Found(np.full(count, -1), np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.int64), np.full(count, -1.0))
    for begin, words, word_offsets in _some_at_a_time(data, offsets):
        _find_all(data, offsets, words, word_offsets, begin, index, found)
    return found


def _some_at_a_time(data: Bytes, offsets: Offsets) -> Iterator[tuple[int, Words, Offsets]]:
    """(number of the first text, words, offsets into them) of consecutive texts of AT_ONCE bytes, or of one that is larger."""
    begin = 0
    while begin < len(offsets) - 1:
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + AT_ONCE, side="right")) - 1)
        yield begin, *words_of(data, offsets[begin : end + 1])
        begin = end


def save(index: Index, folder: Path) -> None:
    for name, column in index._asdict().items():
        np.save(folder / f"{name}.npy", column, allow_pickle=False)


def load(folder: Path) -> Index:
    """The index in `folder`, memory-mapped."""
    return Index(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in Index._fields))


def _grams_of(hashes: Hashes, offsets: Offsets, ngram: int) -> Grams:
    counts = np.maximum(np.diff(offsets) - ngram + 1, 0)
    keys, owners = np.empty(int(counts.sum()), np.uint64), np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
    _all_grams(hashes, offsets, ngram, keys)
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    new = np.ones(len(keys), np.bool_)
    new[1:] = (keys[1:] != keys[:-1]) | (owners[1:] != owners[:-1])
    keys, owners = keys[new], owners[new]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
    return Grams(keys[starts], np.append(starts, len(keys)), owners)


def _index(grams: Grams, keep: npt.NDArray[np.bool_], whole: Hashes, sizes: Indices, lines: Indices, ngram: int) -> Index:
    """The index of the n-grams to `keep`, and of the passages `lines` as lines."""
    counts = np.diff(grams.first)
    owners = grams.owners[np.repeat(keep, counts)]
    keys = grams.keys[keep]
    lines = lines[np.argsort(whole[lines], kind="stable")]
    slots = 1 << max(7, int(_BITS_PER_KEY * len(keys)).bit_length())  # two words at least: a hash shifted by 64 is itself
    bits = np.zeros(slots >> 6, np.uint64)
    _set_bits(keys, bits)
    buckets = 1 << max(4, len(keys).bit_length())
    return Index(
        lengths=np.array([ngram, int(sizes[lines].max()) if len(lines) else 0]),
        bits=bits,
        buckets=np.searchsorted(keys >> np.uint64(64 - (buckets.bit_length() - 1)), np.arange(buckets + 1, dtype=np.uint64)).astype(
            np.uint32
        ),
        keys=keys,
        first=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[keep])]).astype(np.uint32),
        passages=owners,
        lines=whole[lines],
        line_passages=lines.astype(np.uint32),
        grams=np.bincount(owners, minlength=len(sizes)).astype(np.uint32),
        sizes=sizes.astype(np.uint32),
        option_first=np.zeros(len(sizes) + 1, np.int64),
        options=np.zeros(0, np.uint64),
        option_sizes=np.zeros(0, np.uint32),
    )


# --- kernels


@kernel
def _sealed(rolling: np.uint64, length: int) -> np.uint64:
    """The hash of a run of words from its rolling hash."""
    value = (rolling ^ (np.uint64(length) * _LENGTH)) * _MIX
    return value ^ (value >> np.uint64(31))


@kernel
def _power(length: int) -> np.uint64:
    value = np.uint64(1)
    for _ in range(length):
        value *= _BASE
    return value


@kernel
def _all_grams(hashes: Hashes, offsets: Offsets, length: int, keys: Hashes) -> None:
    count, out = 0, _power(length)
    for passage in range(offsets.size - 1):
        rolling = np.uint64(0)
        for at in range(offsets[passage], offsets[passage + 1]):
            rolling = rolling * _BASE + hashes[at]
            if at - offsets[passage] >= length:
                rolling -= hashes[at - length] * out
            if at - offsets[passage] >= length - 1:
                keys[count] = _sealed(rolling, length)
                count += 1


@kernel
def _whole(hashes: Hashes, offsets: Offsets, whole: Hashes) -> None:
    for passage in range(whole.size):
        rolling = np.uint64(0)
        for at in range(offsets[passage], offsets[passage + 1]):
            rolling = rolling * _BASE + hashes[at]
        whole[passage] = _sealed(rolling, offsets[passage + 1] - offsets[passage])


@kernel
def _set_bits(keys: Hashes, bits: Hashes) -> None:
    shift = _shift(bits.size)
    for key in keys:
        bits[key >> shift] |= _three_bits(key)


@kernel
def _three_bits(key: np.uint64) -> np.uint64:
    """Three bits of one word: with 16 bits a key one absent key in 150 finds them set, and needs two looks more. (One bit: one in 16, and half the speed with a million items.)"""
    one, last = np.uint64(1), np.uint64(63)
    return one << (key & last) | one << (key >> np.uint64(6) & last) | one << (key >> np.uint64(12) & last)


@kernel
def _shift(slots: int) -> np.uint64:
    """By how much a hash is shifted to be one of `slots`, a power of two."""
    places = 0
    while slots > 1:
        slots >>= 1
        places += 1
    return np.uint64(64 - places)


@kernel
def _rank(index: Index, key: np.uint64) -> int:
    """The number of a key; -1 if the index does not have it."""
    bucket = key >> _shift(index.buckets.size - 1)
    for at in range(index.buckets[bucket], index.buckets[bucket + np.uint64(1)]):
        if index.keys[at] == key:
            return at
    return -1


@kernel
def _found_grams(words: Words, begin: int, end: int, index: Index, ranks: Indices, ats: Indices) -> int:
    """The n-grams of the text of words `[begin, end)` that the index has: their numbers and their first words.

    A loop of its own looks into the bits: those of a large index lie outside every cache, and the processor has more looks under way when nothing is hashed in between.
    """
    shift, length = _shift(index.bits.size), index.lengths[0]
    out, rolling, hits = _power(length - 1), np.uint64(0), 0
    keys, likely = np.empty(LOOKS, np.uint64), np.empty(LOOKS, np.int64)
    for at in range(begin, min(begin + length - 1, end)):
        rolling = rolling * _BASE + words.hashes[at]
    for first in range(begin, end - length + 1, LOOKS):
        looks = min(LOOKS, end - length + 1 - first)
        for look in range(looks):
            rolling = rolling * _BASE + words.hashes[first + look + length - 1]
            keys[look] = _sealed(rolling, length)
            rolling -= words.hashes[first + look] * out
        count = 0
        for look in range(looks):
            bits = _three_bits(keys[look])
            likely[count] = look
            count += index.bits[keys[look] >> shift] & bits == bits
        for look in likely[:count]:
            rank = _rank(index, keys[look])
            if rank >= 0:
                ranks[hits], ats[hits] = rank, first + look
                hits += 1
    return hits


@kernel
def _next_line(words: Words, at: int, end: int) -> int:
    """Where the line that begins at word `at` ends."""
    at += 1
    while at < end and not words.flags[at] & FIRST:
        at += 1
    return at


@kernel
def _line_at(words: Words, begin: int, end: int, index: Index) -> tuple[int, int]:
    """(the number of the passage in `lines` that the line `[begin, end)` is, but for a label before it, the word it begins with); (-1, 0) if it is none."""
    for start in range(begin, min(begin + LABELS + 1, end)):
        if end - start > index.lengths[1]:
            continue
        rolling = np.uint64(0)
        for at in range(start, end):
            rolling = rolling * _BASE + words.hashes[at]
        key = _sealed(rolling, end - start)
        place = int(np.searchsorted(index.lines, key))
        if place < index.lines.size and index.lines[place] == key:
            return place, start
    return -1, 0


@kernel
def _count_texts(
    words: Words, offsets: Offsets, number: int, index: Index, in_texts: Indices, lines_in_texts: Indices, last: Indices, last_line: Indices
) -> None:
    """Adds one for each n-gram and each line that a text has. `number` is that of the first text; `last` is the last text in which each was found."""
    room = np.diff(offsets).max()
    ranks, ats = np.empty(room, np.int64), np.empty(room, np.int64)
    for text in range(offsets.size - 1):
        begin, end = offsets[text], offsets[text + 1]
        for rank in ranks[: _found_grams(words, begin, end, index, ranks, ats)]:
            in_texts[rank] += last[rank] != number + text
            last[rank] = number + text
        while begin < end:
            behind = _next_line(words, begin, end)
            place, _ = _line_at(words, begin, behind, index)
            if place >= 0:
                lines_in_texts[place] += last_line[place] != number + text
                last_line[place] = number + text
            begin = behind


@kernel
def _find_all(data: Bytes, text_offsets: Offsets, words: Words, offsets: Offsets, number: int, index: Index, found: Found) -> None:
    """What each text has of a passage, into `found` from text `number` on."""
    room = np.diff(offsets).max()
    ranks, ats = np.empty(room, np.int64), np.empty(room, np.int64)
    for text in range(number, number + offsets.size - 1):
        first, behind = offsets[text - number], offsets[text - number + 1]
        hits = _found_grams(words, first, behind, index, ranks, ats)
        passage, share, begin, end = _most(ranks[:hits], ats[:hits], index)
        line, line_begin, line_end = _longest_line(words, first, behind, index)
        if line >= 0 and (share < 1.0 or index.sizes[line] > index.sizes[passage]):
            passage, share, begin, end = line, 1.0, line_begin, line_end
        if passage >= 0:
            found.passage[text], found.share[text] = passage, share
            found.start[text] = _characters(data, text_offsets[text], words.starts[begin])
            found.length[text] = _characters(data, words.starts[begin], words.ends[end - 1])
            found.options[text] = _options_near(words, begin, end, behind, passage, index)


@kernel
def _characters(data: Bytes, begin: int, end: int) -> int:
    """How many characters begin in `[begin, end)`."""
    count = 0
    for at in range(begin, end):
        count += data[at] & 0xC0 != 0x80
    return count


@kernel
def _longest_line(words: Words, begin: int, end: int, index: Index) -> tuple[int, int, int]:
    """(passage, first word, word behind the last) of the longest line that is a passage, the first among equals; passage -1 if there is none."""
    best, best_begin, best_end = -1, 0, 0
    while begin < end and index.lines.size:
        behind = _next_line(words, begin, end)
        if behind - begin <= index.lengths[1] + LABELS:
            place, start = _line_at(words, begin, behind, index)
            if place >= 0 and behind - start > best_end - best_begin:
                best, best_begin, best_end = int(index.line_passages[place]), start, behind
        begin = behind
    return best, best_begin, best_end


@kernel
def _most(ranks: Indices, ats: Indices, index: Index) -> tuple[int, float, int, int]:
    """(passage, share, first word, word behind the last) of the passage of which one stretch has the greatest share; the larger, then the earlier passage among equals."""
    total = 0
    for rank in ranks:
        total += index.first[rank + 1] - index.first[rank]
    owner, at, gram = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.int64)
    total = 0
    for hit in range(ranks.size):
        for place in range(index.first[ranks[hit]], index.first[ranks[hit] + 1]):
            owner[total], at[total], gram[total] = index.passages[place], ats[hit], ranks[hit]
            total += 1
    order = np.argsort(owner, kind="mergesort")
    best, best_share, best_begin, best_end = -1, 0.0, 0, 0
    begin = 0
    while begin < total:
        passage, end = owner[order[begin]], begin + 1
        reach = int(index.sizes[passage]) + index.lengths[0]
        while end < total and owner[order[end]] == passage and at[order[end]] - at[order[end - 1]] <= reach:
            end += 1
        number, last = _new(gram[order[begin:end]])
        share = number / index.grams[passage]
        if best < 0 or share > best_share or (share == best_share and index.sizes[passage] > index.sizes[best]):
            best, best_share, best_begin = passage, share, at[order[begin]]
            best_end = at[order[begin + last]] + index.lengths[0]
        begin = end
    return best, best_share, best_begin, best_end


@kernel
def _new(grams: Indices) -> tuple[int, int]:
    """How many distinct ones there are, and where the last of them occurs first: what is said again behind it belongs to no one's quotation."""
    order = np.argsort(grams, kind="mergesort")
    number, last = 0, 0
    for place in range(order.size):
        if place == 0 or grams[order[place]] != grams[order[place - 1]]:
            number += 1
            last = max(last, order[place])
    return number, last


@kernel
def _options_near(words: Words, begin: int, end: int, behind: int, passage: int, index: Index) -> float:
    """The share of the passage's options that stand behind `begin` and not far behind `end`; -1 if it has none."""
    first, last = index.option_first[passage], index.option_first[passage + 1]
    if first == last:
        return -1.0
    limit = end + NEAR
    for option in range(first, last):
        limit += 2 * index.option_sizes[option]
    limit = min(limit, behind)
    near = 0
    for option in range(first, last):
        length, rolling = int(index.option_sizes[option]), np.uint64(0)
        out = _power(length)
        for at in range(begin, limit):
            rolling = rolling * _BASE + words.hashes[at]
            if at - begin >= length:
                rolling -= words.hashes[at - length] * out
            if at - begin >= length - 1 and _sealed(rolling, length) == index.options[option]:
                near += 1
                break
    return near / int(last - first)
