"""Words and lines of texts and what is counted in them, from their UTF-8 bytes: integers only, no lock held.

Definitions are those of `heuristics`. Code points are classed by Python's own `str.isspace`, `str.isalpha` and `str.isalnum`, and by the unspaced
scripts of `curation.text.words`. All kernels that decode text stand here; the others read the arrays that these make.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.text.words import UNSPACED, Bytes, Hashes, Offsets, kernel, text_buffers

if TYPE_CHECKING:
    import pyarrow as pa

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = "-*•‣⁃◦▪▫■□●○▶◀–"

Integers = npt.NDArray[np.int64]

_SPACE, _ALPHABETIC, _ALPHANUMERIC, _BULLET, _UNSPACED = 1, 2, 4, 8, 16
_SEED, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_CLASSED = 0x40000  # above this plane no code point is a space, a letter or a digit (variation selectors and private use)
_WORDS, _CHARACTERS, _HASHES, _ELLIPSES, _ALPHABETIC_WORDS, _STOP_WORDS, _LINES, _BULLET_LINES, _ELLIPSIS_LINES = range(9)


class Counts(NamedTuple):
    """One int64 per text in each."""

    words: Integers
    word_characters: Integers
    hashes: Integers
    ellipses: Integers
    alphabetic_words: Integers
    stop_words: Integers
    lines: Integers
    bullet_lines: Integers
    ellipsis_lines: Integers


def count(texts: pa.LargeStringArray) -> Counts:
    """The counts of every text (no nulls)."""
    data, offsets = text_buffers(texts)
    counts = np.zeros((len(texts), 9), np.int64)
    classes, packed = _tables()
    _count(data, offsets, classes, packed, counts)
    return Counts(*counts.T)


@lru_cache(maxsize=1)
def _tables() -> tuple[Bytes, npt.NDArray[np.uint32]]:
    """The class of every code point, and the stop words as little-endian numbers of their bytes."""
    classes = np.zeros(_CLASSED, np.uint8)
    for point in range(_CLASSED):
        character = chr(point)
        if character.isspace():
            classes[point] = _SPACE
        elif character.isalnum():
            classes[point] = _ALPHANUMERIC | (_ALPHABETIC if character.isalpha() else 0)
    for first, last in UNSPACED:
        block = classes[first : last + 1]
        block[block & _ALPHANUMERIC != 0] |= _UNSPACED
    for character in BULLETS:
        classes[ord(character)] |= _BULLET
    packed = np.array([int.from_bytes(word.encode(), "little") for word in STOP_WORDS], np.uint32)
    return classes, packed


@kernel
def _stop_word(data: Bytes, start: int, end: int, packed: npt.NDArray[np.uint32]) -> int:
    """The bit of the stop word that stands in data[start:end], or 0."""
    if end - start < 2 or end - start > 4:
        return 0
    value = np.uint32(0)
    for position in range(start, end):
        byte = data[position]
        if byte >= 65 and byte <= 90:
            byte |= np.uint8(32)
        value |= np.uint32(byte) << np.uint32(8 * (position - start))
    for which in range(packed.size):
        if packed[which] == value:
            return 1 << which
    return 0


@kernel
def _code_point(data: Bytes, position: int) -> tuple[np.int64, int]:
    """The code point that begins at `position`, and its length in bytes."""
    first = np.int64(data[position])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | np.int64(data[position + 1]) & 0x3F, 2
    if first < 0xF0:
        return (first & 0x0F) << 12 | (np.int64(data[position + 1]) & 0x3F) << 6 | np.int64(data[position + 2]) & 0x3F, 3
    high = (first & 0x07) << 18 | (np.int64(data[position + 1]) & 0x3F) << 12
    return high | (np.int64(data[position + 2]) & 0x3F) << 6 | np.int64(data[position + 3]) & 0x3F, 4


@kernel
def _next_word(kind: np.uint8, seen: np.uint8) -> bool:
    """Whether a code point of class `kind` begins another word, in a run where code points of the classes `seen` are the word so far."""
    return bool(kind & seen & _ALPHANUMERIC and (kind | seen) & _UNSPACED)


@kernel
def _words(data: Bytes, position: int, end: int, classes: Bytes, packed: npt.NDArray[np.uint32], counts: Integers) -> None:
    """Adds the words of data[position:end] and what is counted in them to `counts`, one text's row."""
    stop_words = 0  # a bit for each that occurred
    dots = 0  # `.` in a row
    while position < end:
        core_start = core_end = -1  # of the word less the punctuation at its ends
        characters = 0
        seen = np.uint8(0)
        while position < end:
            point, length = _code_point(data, position)
            kind = classes[point] if point < _CLASSED else np.uint8(0)
            if kind & _SPACE or _next_word(kind, seen):
                break
            characters += 1
            seen |= kind
            if kind & _ALPHANUMERIC:
                if core_start < 0:
                    core_start = position
                core_end = position + length
            else:
                dots = dots + 1 if point == 46 else 0
                counts[_ELLIPSES] += point == 0x2026 or dots == 3
                counts[_HASHES] += point == 35
            dots = dots if point == 46 and dots < 3 else 0
            position += length
        if characters:
            counts[_WORDS] += 1
            counts[_CHARACTERS] += characters
            counts[_ALPHABETIC_WORDS] += seen & _ALPHABETIC != 0
            stop_words |= _stop_word(data, core_start, core_end, packed)
        else:
            position += length
        dots = 0
    while stop_words:
        counts[_STOP_WORDS] += stop_words & 1
        stop_words >>= 1


@kernel
def _lines(data: Bytes, position: int, end: int, classes: Bytes, counts: Integers) -> None:
    """Adds the lines of data[position:end] to `counts`, one text's row. Looks only at both ends of each line."""
    while position < end:
        stop = position
        while stop < end and data[stop] != 10:
            stop += 1
        kind = np.uint8(_SPACE)
        while position < stop and kind & _SPACE:
            point, length = _code_point(data, position)
            kind = classes[point] if point < _CLASSED else np.uint8(0)
            position += length
        if not kind & _SPACE:
            counts[_LINES] += 1
            counts[_BULLET_LINES] += kind & _BULLET != 0
            counts[_ELLIPSIS_LINES] += _ends_with_ellipsis(data, position - length, stop, classes)
        position = stop + 1


@kernel
def _ends_with_ellipsis(data: Bytes, start: int, end: int, classes: Bytes) -> bool:
    """Whether the last visible characters of data[start:end], which has one, are `...` or U+2026."""
    while True:
        last = end - 1
        while data[last] & 0xC0 == 0x80:
            last -= 1
        point, _ = _code_point(data, last)
        if point >= _CLASSED or not classes[point] & _SPACE:
            break
        end = last
    if point == 46:
        return end - start >= 3 and data[end - 2] == 46 and data[end - 3] == 46
    return bool(point == 0x2026)


@kernel
def _count(data: Bytes, offsets: Integers, classes: Bytes, packed: npt.NDArray[np.uint32], counts: Integers) -> None:
    for document in range(offsets.size - 1):
        _words(data, offsets[document], offsets[document + 1], classes, packed, counts[document])
        _lines(data, offsets[document], offsets[document + 1], classes, counts[document])


class Lines(NamedTuple):
    """The lines that hold a visible character, without the white space at their ends."""

    starts: Integers
    """First byte."""
    ends: Integers
    """One past the last byte."""
    characters: Integers
    """Code points."""
    words: Integers
    longest: Integers
    """Code points of the longest word."""
    last: Integers
    """The last code point."""
    opens: Integers
    """1 where a paragraph begins: the first line, and a line after a blank one."""
    hashes: Hashes
    """Of the bytes, 64 bits."""
    offsets: Offsets
    """n + 1: where each text's lines begin."""


class Words(NamedTuple):
    hashes: Hashes
    characters: npt.NDArray[np.int32]
    offsets: Offsets


def characters(texts: pa.LargeStringArray) -> Integers:
    """Code points of every text."""
    import pyarrow.compute as pc

    lengths: Integers = pc.utf8_length(texts).to_numpy()
    return lengths


def lines(texts: pa.LargeStringArray) -> Lines:
    data, offsets = text_buffers(texts)
    room = int(np.count_nonzero(data[offsets[0] : offsets[-1]] == 10)) + len(texts)
    table, hashes, ends = np.zeros((room, 7), np.int64), np.empty(room, np.uint64), np.zeros(len(texts) + 1, np.int64)
    _all_lines(data, offsets, _tables()[0], table, hashes, ends)
    return Lines._make([*table[: ends[-1]].T, hashes[: ends[-1]], ends])


def words(texts: pa.LargeStringArray, found: Lines) -> Words:
    """Every word of every text; `found` are its lines, which say how many there are."""
    data, offsets = text_buffers(texts)
    room = int(found.words.sum())
    hashes, lengths, ends = np.empty(room, np.uint64), np.empty(room, np.int32), np.zeros(len(texts) + 1, np.int64)
    _all_words(data, offsets, _tables()[0], hashes, lengths, ends)
    return Words(hashes, lengths, ends)


@kernel
def _mixed(value: np.uint64) -> np.uint64:
    """MurmurHash3's finalizer."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@kernel
def _hashed(data: Bytes, start: int, end: int) -> np.uint64:
    value = _SEED
    for position in range(start, end):
        value = (value ^ np.uint64(data[position])) * _PRIME
    return _mixed(value)


@kernel
def _word(data: Bytes, position: int, end: int, classes: Bytes) -> tuple[int, int]:
    """Where the word that begins at `position` ends, and its code points."""
    seen = np.uint8(0)
    inside = 0  # continuation bytes
    start = position
    while position < end:
        kind = classes[data[position]]  # of ASCII
        length = 1
        if data[position] >= 0x80:
            point, length = _code_point(data, position)
            kind = classes[point] if point < _CLASSED else np.uint8(0)
        if (kind | seen) & (_SPACE | _UNSPACED) and (kind & _SPACE or _next_word(kind, seen)):
            break
        seen |= kind
        inside += length - 1
        position += length
    return position, position - start - inside


@kernel
def _all_words(data: Bytes, offsets: Offsets, classes: Bytes, hashes: Hashes, lengths: npt.NDArray[np.int32], ends: Offsets) -> None:
    count = 0
    for document in range(offsets.size - 1):
        position, end = offsets[document], offsets[document + 1]
        while position < end:
            stop, found = _word(data, position, end, classes)
            if found:
                hashes[count] = _hashed(data, position, stop)
                lengths[count] = found
                count += 1
                position = stop
            else:
                position += _code_point(data, position)[1]
        ends[document + 1] = count


@kernel
def _line(data: Bytes, position: int, end: int, classes: Bytes, row: Integers) -> None:
    """Fills starts to last of one line's row from data[position:end]; `characters` stays 0 where nothing is visible."""
    between = 0  # white space since the last word
    while position < end:
        stop, found = _word(data, position, end, classes)
        if not found:
            position += _code_point(data, position)[1]
            between += 1
            continue
        if not row[2]:
            row[0], between = position, 0
        row[1] = stop
        row[2] += between + found
        row[3] += 1
        row[4] = max(row[4], found)
        position, between = stop, 0
    if row[2]:
        tail = row[1] - 1
        while data[tail] & 0xC0 == 0x80:
            tail -= 1
        row[5] = _code_point(data, tail)[0]


@kernel
def _all_lines(data: Bytes, offsets: Offsets, classes: Bytes, table: Integers, hashes: Hashes, ends: Offsets) -> None:
    count = 0
    for document in range(offsets.size - 1):
        position, end = offsets[document], offsets[document + 1]
        opens = 1
        while position < end:
            stop = position
            while stop < end and data[stop] != 10:
                stop += 1
            _line(data, position, stop, classes, table[count])
            if table[count, 2]:
                table[count, 6] = opens
                hashes[count] = _hashed(data, table[count, 0], table[count, 1])
                count += 1
                opens = 0
            else:
                opens = 1
            position = stop + 1
        ends[document + 1] = count


def tally(texts: pa.LargeStringArray, classes: Bytes, size: int) -> Integers:
    """How many code points of each class (below `size`) every text has, by a table of all code points: one row per text."""
    data, offsets = text_buffers(texts)
    found = np.zeros((len(texts), size), np.int64)
    _tally(data, offsets, classes, found)
    return found


@kernel
def _tally(data: Bytes, offsets: Offsets, classes: Bytes, found: Integers) -> None:
    for document in range(found.shape[0]):
        position, end = offsets[document], offsets[document + 1]
        while position < end:
            point, length = _code_point(data, position)
            found[document, classes[point]] += 1
            position += length
