"""The words of a text with what differs between two copies of a passage taken out, and where each word stands.

A word is that of `curation.text.words` (a run of letters, marks and numbers; a character of a script without spaces), but read through markup and spelling: HTML tags are
left out, entities are the characters they stand for, accents, full-width forms and ligatures are the plain letters (NFKD without combining marks), and soft hyphens and
zero-width characters are nothing. A tag of running text (`<b>`, `<a href=…>`) does not end a word, any other (`<p>`, `<br>`) ends a word and a line. Only the elements
of HTML count, `<b and c>` is text (an opening tag is bare or has an attribute with `=`), and so are LaTeX and Markdown, whose marks are punctuation anyway.

Each word has a 64-bit hash of its code points, the bytes `[start, end)` of the text that it was read from, and a flag: FIRST, the first word of its line. Which code
points are letters depends on the Unicode version of the Python in use, so `PLAIN_VERSION` names it.
"""

from __future__ import annotations

import html.entities
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.text.words import ALONE as _ALONE
from curation.text.words import CODE_POINTS, SEPARATOR, Bytes, Hashes, Offsets, kernel, tables
from curation.text.words import LETTER as _LETTER

PLAIN_VERSION = f"1/unicode-{unicodedata.unidata_version}"

Points = npt.NDArray[np.uint32]
Places = npt.NDArray[np.int64]

FIRST = 1
_SOFT_HYPHEN = 0xAD
_NOTHING = 3  # a class besides those of curation.text.words: inside a word, and no part of it
_RUNNING = "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q s samp small span strike strong sub sup time tt u var wbr"
_BREAKING = (
    "address article aside audio base blockquote body br button canvas caption center col colgroup dd details dialog dir div dl dt embed fieldset figcaption figure "
    "footer form frame h1 h2 h3 h4 h5 h6 head header hr html iframe img input legend li link main map menu meta nav noscript object ol optgroup option output p param "
    "picture pre script section select source style summary table tbody td template textarea tfoot th thead title tr track ul video"
)
_LONGEST_TAG = 2000  # bytes: what stands open longer is no tag
_SEED, _FOLD = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_LIGATURES = (0xFB00, ("ff", "fi", "fl", "ffi", "ffl", "st", "st"))


class Plain(NamedTuple):
    """What reading looks up: classes and plain letters by code point; hashes of names, sorted, with what they stand for."""

    classes: Bytes
    folded: Points
    tags: Hashes
    running: Bytes
    entities: Hashes
    points: Points
    ligatures: Points  # (7, 3), 0 for none


@lru_cache(maxsize=1)
def plain_tables() -> Plain:
    """Built once per process, in 0.4 s."""
    classes, folded = tables().classes.copy(), tables().lower.copy()
    for code in range(0xA0, CODE_POINTS):
        if classes[code] == SEPARATOR:
            continue
        apart = unicodedata.normalize("NFKD", chr(code)) if not 0xAC00 <= code <= 0xD7A3 else ""
        if len(apart) == 1 or (len(apart) > 1 and all("\u0300" <= mark <= "\u036f" for mark in apart[1:])):
            base = ord(apart[0].lower()[0])
            if classes[base] != SEPARATOR:
                folded[code] = base
    classes[0x300:0x370] = _NOTHING
    classes[[_SOFT_HYPHEN, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF]] = _NOTHING
    names = {name: running for running, row in ((1, _RUNNING), (0, _BREAKING)) for name in row.split()}
    tags = sorted((_name_hash(name), running) for name, running in names.items())
    values = sorted((_name_hash(name[:-1]), ord(text[0])) for name, text in html.entities.html5.items() if name.endswith(";"))
    first, ligatures = _LIGATURES
    classes[first : first + len(ligatures)] = _LETTER
    spelled = np.zeros((len(ligatures), 3), np.uint32)
    for row, letters in enumerate(ligatures):
        spelled[row, : len(letters)] = [ord(letter) for letter in letters]
    return Plain(
        classes,
        folded,
        np.array([key for key, _ in tags], np.uint64),
        np.array([running for _, running in tags], np.uint8),
        np.array([key for key, _ in values], np.uint64),
        np.array([point for _, point in values], np.uint32),
        spelled,
    )


def _name_hash(name: str) -> int:
    value = _SEED
    for character in name:
        value = ((value ^ ord(character)) * _FOLD) & (1 << 64) - 1
        value ^= value >> 32
    return value


class Words(NamedTuple):
    """The words of consecutive texts, flat: hash, first byte, byte behind the last, flags."""

    hashes: Hashes
    starts: Places
    ends: Places
    flags: Bytes

    @staticmethod
    def room(count: int) -> Words:
        return Words(np.empty(count, np.uint64), np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.uint8))


def words_of(data: Bytes, offsets: Offsets) -> tuple[Words, Offsets]:
    """The words of the texts that `offsets` cuts out of `data`, and the n + 1 offsets into them."""
    room = Words.room(int(offsets[-1] - offsets[0]) // 2 + len(offsets))
    word_offsets = np.zeros(len(offsets), np.int64)
    _read_all(data, offsets, plain_tables(), room, word_offsets)
    count = word_offsets[-1]
    return Words(room.hashes[:count], room.starts[:count], room.ends[:count], room.flags[:count]), word_offsets


@kernel
def _read_all(data: Bytes, offsets: Offsets, plain: Plain, words: Words, word_offsets: Offsets) -> None:
    count = 0
    for text in range(len(offsets) - 1):
        count = _read_words(data, offsets[text], offsets[text + 1], plain, words, count)
        word_offsets[text + 1] = count


@kernel
def _step(value: np.uint64, point: int) -> np.uint64:
    value = (value ^ np.uint64(point)) * np.uint64(_FOLD)
    return value ^ (value >> np.uint64(32))


@kernel
def _found(names: Hashes, name: np.uint64) -> int:
    """Where `name` stands among sorted hashes; -1 where it does not."""
    at = int(np.searchsorted(names, name))
    return at if at < names.size and names[at] == name else -1


@kernel
def _letter(byte: int) -> bool:
    return 97 <= byte | 32 <= 122


@kernel
def _tag(data: Bytes, at: int, end: int, plain: Plain) -> tuple[int, int]:
    """(the byte behind the tag that begins at `at`, whether it stands in running text); (-1, 0) where none does."""
    place = at + 1
    closing = place < end and data[place] == 47
    place += closing
    name = np.uint64(_SEED)
    begin = place
    while place < end and place < begin + 12 and (_letter(data[place]) or (place > begin and 48 <= data[place] <= 57)):
        letter = data[place] | 32 if _letter(data[place]) else data[place]
        name = _step(name, letter)
        place += 1
    found = _found(plain.tags, name) if place > begin else -1
    if found < 0:
        return -1, 0
    bare, attribute = True, False
    while place < end and place < begin + _LONGEST_TAG:
        byte = data[place]
        if byte == 62:
            return (place + 1, int(plain.running[found])) if bare or (attribute and not closing) else (-1, 0)
        if byte == 60:
            return -1, 0
        if bare and byte not in (32, 9, 10, 13, 47):
            if place == begin or data[place - 1] not in (32, 9, 10, 13):
                return -1, 0
            bare = False
        attribute |= byte == 61
        place += 1
    return -1, 0


@kernel
def _entity(data: Bytes, at: int, end: int, plain: Plain) -> tuple[int, int]:
    """(the byte behind the entity that begins at `at`, its code point); (-1, 0) where none does."""
    place = at + 1
    if place < end and data[place] == 35:
        place += 1
        hexadecimal = place < end and data[place] | 32 == 120
        place += hexadecimal
        begin, point = place, 0
        while place < end and place < begin + 7:
            byte = int(data[place])
            if 48 <= byte <= 57:
                digit = byte - 48
            elif hexadecimal and 97 <= byte | 32 <= 102:
                digit = (byte | 32) - 87
            else:
                break
            point = point * (16 if hexadecimal else 10) + digit
            place += 1
        known = place > begin and place < end and data[place] == 59 and point < CODE_POINTS
        return (place + 1, point) if known else (-1, 0)
    name = np.uint64(_SEED)
    begin = place
    while place < end and place < begin + 32 and (_letter(data[place]) or 48 <= data[place] <= 57):
        name = _step(name, data[place])
        place += 1
    if place == begin or place >= end or data[place] != 59:
        return -1, 0
    found = _found(plain.entities, name)
    return (place + 1, int(plain.points[found])) if found >= 0 else (-1, 0)


@kernel
def _decoded(data: Bytes, at: int) -> tuple[int, int]:
    """(the byte behind the character of two to four bytes at `at`, its code point); the text is UTF-8, Arrow has seen to it."""
    first = int(data[at])
    if first < 0xE0:
        return at + 2, (first & 0x1F) << 6 | int(data[at + 1]) & 0x3F
    point = (int(data[at + 1]) & 0x3F) << 6 | int(data[at + 2]) & 0x3F
    if first < 0xF0:
        return at + 3, (first & 0x0F) << 12 | point
    return at + 4, (first & 0x07) << 18 | point << 6 | int(data[at + 3]) & 0x3F


@kernel
def _marked(data: Bytes, at: int, end: int, plain: Plain) -> tuple[int, int]:
    """(the byte behind what begins with `&` or `<` at `at`, the code point that it means): an entity, a tag, which is a line break, or nothing in running text, or the sign alone."""
    point = int(data[at])
    if point == 38:
        behind, meant = _entity(data, at, end, plain)
        if behind > 0:
            return behind, meant
    else:
        behind, running = _tag(data, at, end, plain)
        if behind > 0:
            return behind, _SOFT_HYPHEN if running else 10
    return at + 1, point


@kernel
def _read_words(data: Bytes, at: int, end: int, plain: Plain, words: Words, count: int) -> int:
    """The words of one text into `words` from `count` on; the new count."""
    value = np.uint64(_SEED)
    inside, first = False, True
    while at < end:
        begin, point = at, int(data[at])
        at += 1
        if point >= 0x80:
            at, point = _decoded(data, begin)
        elif point in (38, 60):  # a call for every letter would take nine times as long
            at, point = _marked(data, begin, end, plain)
        kind = plain.classes[point]
        if kind == _NOTHING:
            continue
        if inside and kind != _LETTER:
            words.hashes[count] = value ^ (value >> np.uint64(29))
            count += 1
            inside = False
        if kind == SEPARATOR:
            first |= point in (10, 13)
            continue
        if not inside:
            value = np.uint64(_SEED)
            words.starts[count] = begin
            words.flags[count] = FIRST if first else 0
            first = False
        words.ends[count] = at
        if 0xFB00 <= point <= 0xFB06:
            for letter in plain.ligatures[point - 0xFB00]:
                value = _step(value, letter) if letter else value
        else:
            value = _step(value, plain.folded[point])
        inside = True
        if kind == _ALONE:
            words.hashes[count] = value ^ (value >> np.uint64(29))
            count += 1
            inside = False
    if inside:
        words.hashes[count] = value ^ (value >> np.uint64(29))
        count += 1
    return count
