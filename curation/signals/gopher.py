"""The counts behind the `gopher` set, from the UTF-8 bytes of each text: integers only, no allocation per text, no lock held.

Definitions are those of `heuristics`. Code points are classed by Python's own `str.isspace`, `str.isalpha` and `str.isalnum`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.words import Bytes, kernel, text_buffers

if TYPE_CHECKING:
    import pyarrow as pa

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = "-*•‣⁃◦▪▫■□●○▶◀–"

_SPACE, _ALPHABETIC, _ALPHANUMERIC, _BULLET = 1, 2, 4, 8
_CLASSED = 0x40000  # above this plane no code point is a space, a letter or a digit (variation selectors and private use)
_WORDS, _CHARACTERS, _HASHES, _ELLIPSES, _ALPHABETIC_WORDS, _STOP_WORDS, _LINES, _BULLET_LINES, _ELLIPSIS_LINES = range(9)


class Counts(NamedTuple):
    """One int64 per text in each."""

    words: npt.NDArray[np.int64]
    word_characters: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.int64]
    ellipses: npt.NDArray[np.int64]
    alphabetic_words: npt.NDArray[np.int64]
    stop_words: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    bullet_lines: npt.NDArray[np.int64]
    ellipsis_lines: npt.NDArray[np.int64]


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
def _words(data: Bytes, position: int, end: int, classes: Bytes, packed: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64]) -> None:
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
            if kind & _SPACE:
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
def _lines(data: Bytes, position: int, end: int, classes: Bytes, counts: npt.NDArray[np.int64]) -> None:
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
def _count(
    data: Bytes, offsets: npt.NDArray[np.int64], classes: Bytes, packed: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64]
) -> None:
    for document in range(offsets.size - 1):
        _words(data, offsets[document], offsets[document + 1], classes, packed, counts[document])
        _lines(data, offsets[document], offsets[document + 1], classes, counts[document])
