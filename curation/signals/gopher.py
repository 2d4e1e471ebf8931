"""The counts behind the `gopher` set, in one pass over the UTF-8 bytes of each text: integers only, no allocation per text, no lock held.

Definitions are those of `heuristics`. Code points are classed by Python's own `str.isspace`, `str.isalpha` and `str.isalnum`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from curation.words import text_buffers

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
    counts = np.zeros((9, len(texts)), np.int64)
    classes, packed = _tables()
    _count(data, offsets, classes, packed, counts)
    return Counts(*counts)


@lru_cache(maxsize=1)
def _tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
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


@numba.njit(cache=True, nogil=True)
def _stop_word(data: npt.NDArray[np.uint8], start: int, end: int, packed: npt.NDArray[np.uint32]) -> int:
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


@numba.njit(cache=True, nogil=True)
def _code_point(data: npt.NDArray[np.uint8], position: int) -> tuple[int, int]:
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


@numba.njit(cache=True, nogil=True)
def _count(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    classes: npt.NDArray[np.uint8],
    packed: npt.NDArray[np.uint32],
    counts: npt.NDArray[np.int64],
) -> None:
    for document in range(offsets.size - 1):
        words = characters = hashes = ellipses = alphabetic_words = lines = bullet_lines = ellipsis_lines = 0
        stop_words = 0  # a bit for each that occurred
        in_word = alphabetic = False
        core_start = core_end = -1  # the word less the punctuation at its ends
        bullet = ended = False  # of the line so far: its first visible character; whether white space followed its last one
        visible = False
        dots = 0  # how many `.` in a row end the line so far, white space aside
        ellipsis = False  # whether U+2026 does
        position, end = offsets[document], offsets[document + 1]
        while position <= end:
            # The end of the text closes the last word and the last line just as a line end does.
            point, length = (10, 1) if position == end else _code_point(data, position)
            kind = classes[point] if point < classes.size else np.uint8(0)
            if kind & _SPACE:
                if in_word:
                    in_word = False
                    words += 1
                    alphabetic_words += alphabetic
                    if core_start >= 0:
                        stop_words |= _stop_word(data, core_start, core_end, packed)
                ended = True
                if point == 10:
                    if visible:
                        lines += 1
                        bullet_lines += bullet
                        ellipsis_lines += dots >= 3 or ellipsis
                    visible = False
            else:
                if not in_word:
                    in_word = True
                    alphabetic = False
                    core_start = -1
                if not visible:
                    visible = True
                    bullet = kind & _BULLET != 0
                characters += 1
                dots = 0 if point != 46 else 1 if ended else dots + 1
                ended = False
                ellipsis = point == 0x2026
                if kind & _ALPHANUMERIC:
                    if core_start < 0:
                        core_start = position
                    core_end = position + length
                    alphabetic |= kind & _ALPHABETIC != 0
                else:
                    ellipses += ellipsis or (dots > 0 and dots % 3 == 0)
                    hashes += point == 35
            position += length
        found = 0
        while stop_words:
            found += stop_words & 1
            stop_words >>= 1
        column = (words, characters, hashes, ellipses, alphabetic_words, found, lines, bullet_lines, ellipsis_lines)
        for row in range(9):
            counts[row, document] = column[row]
