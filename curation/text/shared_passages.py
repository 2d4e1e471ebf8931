"""What two texts have in common: their longest passage of equal words, and where they part.

Words are those of `curation.text.words`, so case, punctuation and white space do not count. Texts that share a passage of n words share one of n - 1, so the longest is found by halving
over lengths, each a look-up of rolling hashes; the passage found is compared word by word. Two texts of a million words take some seconds, where comparing line by
line or character by character takes minutes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from curation.text.words import ALONE, LETTER, Hashes, hash_words, word_class

_BASE = np.uint64(0x9E3779B97F4A7C15)


class Passage(NamedTuple):
    """So many words are equal from word `here` of the one text and word `there` of the other on, numbered from 0."""

    words: int
    here: int
    there: int


def words_of(text: str) -> Hashes:
    """The hash of every word of a text."""
    return _hashes(text.encode())


def longest_shared(here: Hashes, there: Hashes) -> Passage:
    """The longest passage of equal words, the first of the one text among equals; no words if they share none."""
    powers = np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(max(len(here), len(there)), _BASE)]))
    low, high = 0, min(len(here), len(there))
    while low < high:
        middle = (low + high + 1) // 2
        if _share(_rolling(here, middle, powers), _rolling(there, middle, powers)):
            low = middle
        else:
            high = middle - 1
    while low:  # once, unless two hashes fell together
        if (found := _shared(here, there, low, powers)) is not None:
            return found
        low -= 1
    return Passage(0, 0, 0)


def _share(mine: Hashes, theirs: Hashes) -> bool:
    """Whether any value is in both; sorted values look each other up in the order of memory."""
    mine, theirs = np.sort(mine), np.sort(theirs)
    return bool((theirs[np.minimum(np.searchsorted(theirs, mine), len(theirs) - 1)] == mine).any())


def _shared(here: Hashes, there: Hashes, length: int, powers: Hashes) -> Passage | None:
    """The first passage of so many words of the one text that the other has too."""
    mine, theirs = (_rolling(words, length, powers) for words in (here, there))
    order = np.argsort(theirs, kind="stable")
    at = np.minimum(np.searchsorted(theirs[order], mine), len(theirs) - 1)
    for first in np.flatnonzero(theirs[order][at] == mine).tolist():
        other = int(order[at[first]])
        if (here[first : first + length] == there[other : other + length]).all():
            return Passage(length, first, other)
    return None


def _rolling(words: Hashes, length: int, powers: Hashes) -> Hashes:
    """A hash of every passage of so many words, the same wherever it stands (modulo 2^64)."""
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers[: len(words)])])
    count = len(words) - length + 1
    rolling: Hashes = (sums[length:] - sums[:count]) * powers[::-1][:count]
    return rolling


def first_difference(here: Hashes, there: Hashes) -> int:
    """The first word at which two texts differ, or the number of words of the one that the other begins with."""
    count = min(len(here), len(there))
    unequal = np.flatnonzero(here[:count] != there[:count])
    return int(unequal[0]) if len(unequal) else count


def first_character(here: str, there: str) -> int:
    """The first character at which two texts differ, or the length of the one that the other begins with."""
    pairs = enumerate(zip(here, there, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(here), len(there)))


def excerpt(text: str, first: int, count: int) -> str:
    """The text as written from its word `first`, over `count` words or to its end."""
    data = text.encode()
    total = len(_hashes(data))
    if first >= total or count <= 0:
        return ""
    last = data[_start(data, min(first + count, total) - 1) :].decode()
    rest = last[1:] if word_class(ord(last[0])) == ALONE else last[_letters(last) :]
    return data[_start(data, first) : len(data) - len(rest.encode())].decode()


def _letters(text: str) -> int:
    """How many word characters a text begins with."""
    return next((at for at, character in enumerate(text) if word_class(ord(character)) != LETTER), len(text))


def _hashes(data: bytes) -> Hashes:
    return hash_words(np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8), np.array([0, len(data)], np.int64))[0]


def _start(data: bytes, word: int) -> int:
    """The byte where a word begins: the shortest beginning of the text that has so many words ends behind its first character."""
    low, high = 0, len(data)
    while low < high:
        middle = (low + high) // 2
        if len(_hashes(data[:middle])) > word:
            high = middle
        else:
            low = middle + 1
    at = low - 1
    while data[at] & 0xC0 == 0x80:
        at -= 1
    return at
