"""What C4 (arXiv 1910.10683, section 2.2) looks for in lines and pages, counted in the UTF-8 bytes of lines that `counting` found.

Definitions are those of `heuristics`. Phrases are ASCII, in any case.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.signals.counting import Integers, Lines
from curation.text.words import Bytes, kernel, text_buffers

if TYPE_CHECKING:
    import pyarrow as pa

END_MARKS = ".?!\"'”’。！？」』"  # those of C4's code, and what stands for them in other typography
SENTENCE_MARKS = ".?!。！？"
CLOSERS = "\"')]”’」』）】"
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
PHRASES = ("lorem ipsum", "javascript", *POLICY)
CITATIONS = ("[edit]", "[citation needed]")
WORDS_PER_LINE, LONGEST_WORD = 3, 1000

_LOREM, _SCRIPT, _POLICY = 1, 2, 4
_END, _SENTENCE, _CLOSER = 1, 2, 4
_UNENDED, _SHORT, _LONG, _SCRIPTED, _POLICED, _DROPPED, _KEPT_CHARACTERS, _LOREMS, _BRACES, _SENTENCES = range(10)


class Counts(NamedTuple):
    """One int64 per text in each: lines by what C4 drops them for, the code points of the lines it keeps, what it drops whole pages for, and
    sentences in the kept lines."""

    unended: Integers
    short: Integers
    long: Integers
    javascript: Integers
    policy: Integers
    dropped: Integers
    kept_characters: Integers
    lorem_ipsum: Integers
    curly_brackets: Integers
    sentences: Integers


def count(texts: pa.LargeStringArray, lines: Lines) -> Counts:
    data, _ = text_buffers(texts)
    counts = np.zeros((len(texts), 10), np.int64)
    _count(data, lines.starts, lines.ends, lines.characters, lines.words, lines.longest, lines.offsets, _tables(), counts)
    return Counts(*counts.T)


class Tables(NamedTuple):
    """Phrases and marks as the kernels read them: a string of several bytes is a row, its length beside it."""

    phrases: npt.NDArray[np.uint8]
    phrase_lengths: Integers
    meanings: npt.NDArray[np.uint8]
    """_LOREM, _SCRIPT or _POLICY per phrase."""
    firsts: Bytes
    """Per byte 1 where a phrase begins with it, in lower case."""
    citations: npt.NDArray[np.uint8]
    citation_lengths: Integers
    marks: npt.NDArray[np.uint8]
    """Per byte, and from 256 on per character of `wide`: _END, _SENTENCE and _CLOSER."""
    wide: Integers
    """The three UTF-8 bytes of marks that are not ASCII, as big-endian numbers."""


@lru_cache(maxsize=1)
def _tables() -> Tables:
    firsts = np.zeros(256, np.uint8)
    firsts[[ord(phrase[0]) for phrase in PHRASES]] = 1
    every = sorted({*END_MARKS, *SENTENCE_MARKS, *CLOSERS})
    wide = [mark for mark in every if not mark.isascii()]
    marks = np.zeros(256 + len(wide), np.uint8)
    for meaning, members in ((_END, END_MARKS), (_SENTENCE, SENTENCE_MARKS), (_CLOSER, CLOSERS)):
        for mark in members:
            marks[ord(mark) if mark.isascii() else 256 + wide.index(mark)] |= meaning
    meanings = np.array([_LOREM, _SCRIPT, *[_POLICY] * len(POLICY)], np.uint8)
    packed = np.array([int.from_bytes(mark.encode(), "big") for mark in wide], np.int64)
    return Tables(*_rows(PHRASES), meanings, firsts, *_rows(CITATIONS), marks, packed)


def _rows(strings: tuple[str, ...]) -> tuple[npt.NDArray[np.uint8], Integers]:
    lengths = np.array([len(one) for one in strings], np.int64)
    rows = np.zeros((len(strings), int(lengths.max())), np.uint8)
    for row, one in zip(rows, strings, strict=True):
        row[: len(one)] = np.frombuffer(one.encode(), np.uint8)
    return rows, lengths


@kernel
def _phrases(data: Bytes, start: int, end: int, tables: Tables) -> int:
    """Which of _LOREM, _SCRIPT and _POLICY occur in data[start:end]."""
    found = 0
    for position in range(start, end):
        lower = data[position] | np.uint8(32)
        if not tables.firsts[lower]:
            continue
        for which in range(tables.phrase_lengths.size):
            length = tables.phrase_lengths[which]
            if position + length > end or tables.phrases[which, 0] != lower or found & tables.meanings[which]:
                continue
            same = 1
            while same < length:
                byte = data[position + same]
                if byte >= 65 and byte <= 90:
                    byte |= np.uint8(32)
                if byte != tables.phrases[which, same]:
                    break
                same += 1
            if same == length:
                found |= tables.meanings[which]
    return found


@kernel
def _cited(data: Bytes, start: int, end: int, tables: Tables) -> int:
    """Where data[start:end] ends without the citations and ASCII spaces at its end."""
    while True:
        while end > start and data[end - 1] == 32:
            end -= 1
        stop = end
        if end - start >= 2 and data[end - 1] == 93:
            position = end - 2
            while position > start and data[position] >= 48 and data[position] <= 57:
                position -= 1
            if data[position] == 91:
                stop = position
            for which in range(tables.citation_lengths.size):
                length = tables.citation_lengths[which]
                if end - start >= length and np.all(data[end - length : end] == tables.citations[which, :length]):
                    stop = end - length
        if stop == end:
            return end
        end = stop


@kernel
def _mark(data: Bytes, position: int, end: int, tables: Tables) -> tuple[int, int]:
    """What the character at `position` is (_END, _SENTENCE, _CLOSER or nothing), and its bytes as far as they matter: 1 or 3."""
    first = data[position]
    if first < 0x80 or position + 3 > end:
        return int(tables.marks[first]) if first < 0x80 else 0, 1
    packed = np.int64(first) << 16 | np.int64(data[position + 1]) << 8 | np.int64(data[position + 2])
    for which in range(tables.wide.size):
        if tables.wide[which] == packed:
            return int(tables.marks[256 + which]), 3
    return 0, 1


@kernel
def _ended(data: Bytes, start: int, end: int, tables: Tables) -> bool:
    """Whether data[start:end], less citations, ends with an end mark and not with an ellipsis."""
    end = _cited(data, start, end, tables)
    if end == start:
        return False
    if data[end - 1] == 46:
        return not (end - start >= 3 and data[end - 2] == 46 and data[end - 3] == 46)
    if data[end - 1] < 0x80:
        return bool(tables.marks[data[end - 1]] & _END)
    return end - start >= 3 and data[end - 3] >= 0xE0 and bool(_mark(data, end - 3, end, tables)[0] & _END)


@kernel
def _sentences(data: Bytes, start: int, end: int, tables: Tables) -> int:
    found = 0
    position = start
    rest = False  # whether anything stands behind the last sentence
    while position < end:
        meaning, length = _mark(data, position, end, tables)
        if not meaning & _SENTENCE:
            rest |= data[position] > 32 and not meaning & _CLOSER
            position += length
            continue
        begin, wide = position, length == 3
        while position < end and meaning & (_SENTENCE | _CLOSER):
            position += length
            if position < end:
                meaning, length = _mark(data, position, end, tables)
        if wide or position == end or _next_sentence(data, start, begin, position, end):
            found += 1
            rest = False
    return found + rest


@kernel
def _next_sentence(data: Bytes, start: int, mark: int, position: int, end: int) -> bool:
    """Whether a sentence begins after the marks that stand from `mark` to `position`: behind white space, with no small letter, and they are
    neither an ellipsis nor the full stop of an initial."""
    if data[position] > 32 or (position - mark >= 3 and data[mark] == 46 and data[mark + 1] == 46 and data[mark + 2] == 46):
        return False
    initial = data[mark] == 46 and mark > start and data[mark - 1] >= 65 and data[mark - 1] <= 90
    if initial and (mark - 1 == start or data[mark - 2] <= 32 or data[mark - 2] == 46):
        return False
    while position < end and data[position] <= 32:
        position += 1
    return position == end or data[position] < 97 or data[position] > 122


@kernel
def _count(
    data: Bytes,
    starts: Integers,
    ends: Integers,
    characters: Integers,
    words: Integers,
    longest: Integers,
    offsets: Integers,
    tables: Tables,
    counts: Integers,
) -> None:
    for document in range(counts.shape[0]):
        row = counts[document]
        for line in range(offsets[document], offsets[document + 1]):
            start, end = starts[line], ends[line]
            phrases = _phrases(data, start, end, tables)
            unended = not _ended(data, start, end, tables)
            short, long = words[line] < WORDS_PER_LINE, longest[line] > LONGEST_WORD
            dropped = unended or short or long or phrases & (_SCRIPT | _POLICY) != 0
            row[_UNENDED] += unended
            row[_SHORT] += short
            row[_LONG] += long
            row[_SCRIPTED] += phrases & _SCRIPT != 0
            row[_POLICED] += phrases & _POLICY != 0
            row[_LOREMS] += phrases & _LOREM != 0
            row[_DROPPED] += dropped
            for position in range(start, end):
                row[_BRACES] += data[position] == 123
            if not dropped:
                row[_KEPT_CHARACTERS] += characters[line]
                row[_SENTENCES] += _sentences(data, start, end, tables)
