"""The parts of texts in which an identifier can stand, by their bytes: an `@`; digits enough for a number or an address; a long run without white space.

The patterns that decide are in `identifiers`; this reads every byte once so that they need not.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from curation.text.words import Bytes, Offsets, kernel

Integers = npt.NDArray[np.int64]
ADDRESS, NUMBER, POINTED, HEXADECIMAL, LONG = 1, 2, 4, 8, 16  # what was found: @, digits, digits and points, digits and colons, a long run
DIGITS, POINTS, TOKEN = 7, 3, 20  # the fewest digits of a number, points of an address and characters of a key

_DIGIT, _LETTER, _NUMBER, _TOKEN, _HEX = 1, 2, 4, 8, 16


def windows(data: Bytes, offsets: Offsets, around: int, address: int) -> tuple[Integers, Integers]:
    """Start and end in each text, without overlap, `around` or `address` bytes wider than what was found, and what it was; n + 1 offsets into them."""
    # Windows apart are at least `around` long, but for the first and the last of a text.
    room = np.empty((data.size // around + 2 * offsets.size, 3), np.int64)
    ends = np.zeros(offsets.size, np.int64)
    _windows(data, offsets, _classes(), around, address, room, ends)
    return room[: ends[-1]], ends


@lru_cache(maxsize=1)
def _classes() -> Bytes:
    classes = np.zeros(256, np.uint8)
    for members, meaning in (
        (b"0123456789", _DIGIT | _NUMBER | _TOKEN | _HEX),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", _LETTER | _TOKEN),
        (b"ABCDEFabcdef:", _HEX),
        (b" ().-/", _NUMBER),
        (b"+/_=-", _TOKEN),
    ):
        classes[list(members)] |= meaning
    return classes


@kernel
def _add(room: Integers, first: int, count: int, start: int, end: int, what: int) -> int:
    """Adds a window to those from `first` on, or widens the last one where they touch; returns the new count. Starts need not rise."""
    while count > first and room[count - 1, 1] >= start:
        start, end, what = min(start, room[count - 1, 0]), max(end, room[count - 1, 1]), what | room[count - 1, 2]
        count -= 1
    room[count, 0], room[count, 1], room[count, 2] = start, end, what
    return count + 1


@kernel
def _windows(data: Bytes, offsets: Offsets, classes: Bytes, around: int, address: int, room: Integers, ends: Integers) -> None:
    count = 0
    for document in range(offsets.size - 1):
        begin, end = offsets[document], offsets[document + 1]
        first = count
        digits, points, colons = 0, 0, 0
        number = token = hexadecimal = begin  # where the runs that go on here began
        kinds = np.uint8(0)  # of the token's characters
        for position in range(begin, end + 1):
            kind = classes[data[position]] if position < end else np.uint8(0)
            byte = data[position] if position < end else np.uint8(0)
            if not kind & _NUMBER:
                what = NUMBER * (digits >= DIGITS) | POINTED * (points >= POINTS and digits > POINTS)
                if what:
                    count = _add(room, first, count, max(begin, number - around) - begin, min(end, position + around) - begin, what)
                digits, points = 0, 0
                number = position + 1
            else:
                digits += int(kind & _DIGIT)
                points += byte == 46
            if not kind & _TOKEN:
                if position - token >= TOKEN and kinds & _DIGIT and kinds & _LETTER:
                    count = _add(room, first, count, max(begin, token - around) - begin, min(end, position + around) - begin, LONG)
                token, kinds = position + 1, np.uint8(0)
            else:
                kinds |= kind
            if not kind & _HEX:
                if colons >= 2 and (data[hexadecimal] == 50 or data[hexadecimal] == 51):
                    count = _add(
                        room, first, count, max(begin, hexadecimal - around) - begin, min(end, position + around) - begin, HEXADECIMAL
                    )
                hexadecimal, colons = position + 1, 0
            else:
                colons += byte == 58
            if byte == 64:
                count = _add(room, first, count, max(begin, position - address) - begin, min(end, position + address) - begin, ADDRESS)
        ends[document + 1] = count
