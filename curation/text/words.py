"""What a word is, everywhere in curation: one definition, told twice, in plain Python and as a kernel over Arrow buffers.

A *word code point* has a Unicode general category L*, M* or N* (letters, marks, numbers). A *word* is a maximal run of word code points, each
lower-cased alone by the simple mapping (`chr(c).lower()`; U+0130, the only one that would become two, gives `i`; so every capital sigma gives
`σ`, and `ß` stays). A word code point of a script written without spaces (`UNSPACED`: Chinese, Japanese, Bopomofo, Yi, Tangut, Nushu, Khitan,
and the South-East Asian scripts of line-breaking class SA) is a word of its own, so five consecutive words are five characters there. Hangul is
written with spaces and Tibetan with a mark between syllables: both are ordinary words. Everything else separates, apostrophes, hyphens, `_`,
emoji and NUL included.

Word hash (64 bits): the UTF-8 bytes of the lower-cased word, in little-endian groups of eight, the last one filled up with zeros (no word
contains NUL, so this is unambiguous); from `SEED`, per group `h = (h ^ group) * FOLD; h ^= h >> 32`; then MurmurHash3's 64-bit finalizer.
Words of up to eight bytes never collide with each other. The hash is unkeyed: it is no defence against someone who wants collisions.

Which code points are letters depends on the Unicode version of the Python in use, so `WORDS_VERSION` names it.

Cost: 0.2 s once per process for the tables; then 250 to 400 MB of text a second and core (English; `benchmarks/dedup_accuracy.py` measures it).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

WORDS_VERSION = f"1/unicode-{unicodedata.unidata_version}"

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

SEPARATOR, LETTER, ALONE = 0, 1, 2
CODE_POINTS = 0x110000

SEED = 0x9E3779B97F4A7C15
FOLD = 0xD6E8FEB86659FD93
_SEED = np.uint64(SEED)
_FOLD = np.uint64(FOLD)
_MIX_A = np.uint64(0xFF51AFD7ED558CCD)
_MIX_B = np.uint64(0xC4CEB9FE1A85EC53)
_MASK = (1 << 64) - 1

UNSPACED: tuple[tuple[int, int], ...] = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3031, 0x3035),  # kana repeat marks
    (0x3038, 0x303C),  # Hangzhou numerals, vertical iteration mark, masu
    (0x3041, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo extended
    (0x31F0, 0x31FF),  # Katakana phonetic extensions
    (0x3400, 0x4DBF),  # Han extension A
    (0x4E00, 0x9FFF),  # Han
    (0xA000, 0xA48C),  # Yi
    (0xA9E0, 0xA9FF),  # Myanmar extended B
    (0xAA60, 0xAADF),  # Myanmar extended A, Tai Viet
    (0xF900, 0xFAFF),  # Han compatibility
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x11700, 0x1174F),  # Ahom
    (0x16FE0, 0x16FFF),  # Tangut, Nushu and Khitan marks, Han reading marks
    (0x17000, 0x18D8F),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # kana extensions and supplement, Nushu
    (0x20000, 0x3FFFF),  # Han extensions B and later
)


def word_class(code_point: int) -> int:
    """SEPARATOR, LETTER (part of a run) or ALONE (a word of its own)."""
    if unicodedata.category(chr(code_point))[0] not in "LMN":
        return SEPARATOR
    return ALONE if any(first <= code_point <= last for first, last in UNSPACED) else LETTER


def lower(code_point: int) -> int:
    """The simple lower-case mapping of one code point."""
    return ord(chr(code_point).lower()[0])


def words(text: str) -> list[str]:
    """The words of a text, lower-cased: the definition, slow and plain."""
    found: list[str] = []
    run: list[str] = []
    for character in text:
        kind = word_class(ord(character))
        if kind == LETTER:
            run.append(chr(lower(ord(character))))
            continue
        if run:
            found.append("".join(run))
            run = []
        if kind == ALONE:
            found.append(chr(lower(ord(character))))
    return [*found, "".join(run)] if run else found


def word_hash(word: str) -> int:
    """The 64-bit hash of one lower-cased word, in plain Python."""
    encoded = word.encode()
    value = SEED
    for at in range(0, len(encoded), 8):
        value = ((value ^ int.from_bytes(encoded[at : at + 8], "little")) * FOLD) & _MASK
        value ^= value >> 32
    return mix64_python(value)


def mix64_python(value: int) -> int:
    """MurmurHash3's 64-bit finalizer, in plain Python."""
    value = ((value ^ (value >> 33)) * int(_MIX_A)) & _MASK
    value = ((value ^ (value >> 33)) * int(_MIX_B)) & _MASK
    return value ^ (value >> 33)


class Tables(NamedTuple):
    classes: npt.NDArray[np.uint8]
    """SEPARATOR, LETTER or ALONE per code point."""
    lower: npt.NDArray[np.uint32]
    """Lower-cased code point per code point; meaningful for word code points, the code point itself elsewhere."""


@lru_cache(maxsize=1)
def tables() -> Tables:
    """The definition as tables over all code points, built once per process."""
    letters = [c for c, category in enumerate(map(unicodedata.category, map(chr, range(CODE_POINTS)))) if category[0] in "LMN"]
    classes = np.zeros(CODE_POINTS, np.uint8)
    classes[letters] = LETTER
    lowered = np.arange(CODE_POINTS, dtype=np.uint32)
    lowered[letters] = [lower(c) for c in letters]
    for first, last in UNSPACED:
        block = classes[first : last + 1]
        block[block == LETTER] = ALONE
    classes.setflags(write=False)
    lowered.setflags(write=False)
    return Tables(classes, lowered)


@lru_cache(maxsize=1)
def _encoded() -> npt.NDArray[np.uint32]:
    """Per code point the UTF-8 bytes of its lower case, packed little-endian; 0 for separators."""
    classes, lowered = tables()
    c = lowered.astype(np.uint32)
    tail = [(c >> np.uint32(6 * n)) & np.uint32(0x3F) | np.uint32(0x80) for n in range(3)]
    one = c
    two = (c >> np.uint32(6)) | np.uint32(0xC0) | tail[0] << np.uint32(8)
    three = (c >> np.uint32(12)) | np.uint32(0xE0) | tail[1] << np.uint32(8) | tail[0] << np.uint32(16)
    four = (c >> np.uint32(18)) | np.uint32(0xF0) | tail[2] << np.uint32(8) | tail[1] << np.uint32(16) | tail[0] << np.uint32(24)
    packed: npt.NDArray[np.uint32] = np.select([c < 0x80, c < 0x800, c < 0x10000], [one, two, three], four)
    packed[classes == SEPARATOR] = 0
    return packed


def kernel(function: Kernel) -> Kernel:
    """Compile with numba: no GIL, and cached on disk wherever numba finds a writable place (NUMBA_CACHE_DIR is the user's choice).

    numba raises while decorating where it finds none (a read-only installation without a home); then the kernel is compiled per process.
    A cached kernel is not rebuilt when a kernel it calls or a constant it reads changes in *another file*, so kernels keep to their own module.
    """
    try:
        return cast(Kernel, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return cast(Kernel, numba.njit(nogil=True)(function))


@kernel
def _mix64(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> np.uint64(33))) * _MIX_A
    value = (value ^ (value >> np.uint64(33))) * _MIX_B
    return value ^ (value >> np.uint64(33))


@kernel
def _fold(value: np.uint64, group: np.uint64) -> np.uint64:
    value = (value ^ group) * _FOLD
    return value ^ (value >> np.uint64(32))


@kernel
def _decode(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """Code point and length of the multi-byte sequence at `at`; what is not UTF-8 is a separator of one byte (code point 0)."""
    first = int(data[at])
    if first < 0xE0:
        if first < 0xC0 or at + 2 > end:
            return 0, 1
        return (first & 0x1F) << 6 | int(data[at + 1]) & 0x3F, 2
    if first < 0xF0:
        if at + 3 > end:
            return 0, 1
        return (first & 0x0F) << 12 | (int(data[at + 1]) & 0x3F) << 6 | int(data[at + 2]) & 0x3F, 3
    if at + 4 > end:
        return 0, 1
    high = (first & 0x07) << 18 | (int(data[at + 1]) & 0x3F) << 12
    point = high | (int(data[at + 2]) & 0x3F) << 6 | int(data[at + 3]) & 0x3F
    return (point, 4) if point < CODE_POINTS else (0, 1)


@kernel
def _packed_bits(packed: np.uint64) -> np.uint64:
    if packed < 0x10000:
        return np.uint64(8) if packed < 0x100 else np.uint64(16)
    return np.uint64(24) if packed < 0x1000000 else np.uint64(32)


@kernel
def _hash_document(data: Bytes, at: int, end: int, classes: Bytes, encoded: npt.NDArray[np.uint32], out: Hashes, count: int) -> int:
    """Hash the words of one document into `out` from `count` on; returns the new count. At most (bytes + 1) // 2 words."""
    value = _SEED
    group = np.uint64(0)
    bits = np.uint64(0)  # filled bits of the open group
    inside = False
    while at < end:
        point = int(data[at])
        alone = False
        if point < 0x80:
            at += 1
            packed = np.uint64(encoded[point])
            size = np.uint64(8)
        else:
            point, length = _decode(data, at, end)
            at += length
            packed = np.uint64(encoded[point])
            alone = classes[point] == ALONE
            size = _packed_bits(packed)
        if packed == 0 or alone:
            if inside:
                out[count] = _mix64(_fold(value, group) if bits else value)
                count += 1
                value = _SEED
                group = np.uint64(0)
                bits = np.uint64(0)
                inside = False
            if alone:
                out[count] = _mix64(_fold(_SEED, packed))
                count += 1
            continue
        inside = True
        group |= packed << bits
        bits += size
        if bits >= 64:
            value = _fold(value, group)
            bits -= np.uint64(64)
            group = packed >> (size - bits) if bits else np.uint64(0)
    if inside:
        out[count] = _mix64(_fold(value, group) if bits else value)
        count += 1
    return count


@kernel
def _hash_documents(
    data: Bytes, offsets: Offsets, classes: Bytes, encoded: npt.NDArray[np.uint32], out: Hashes, out_offsets: Offsets
) -> None:
    count = 0
    out_offsets[0] = 0
    for document in range(len(offsets) - 1):
        count = _hash_document(data, offsets[document], offsets[document + 1], classes, encoded, out, count)
        out_offsets[document + 1] = count


def text_buffers(texts: pa.LargeStringArray) -> tuple[Bytes, Offsets]:
    """The UTF-8 bytes and the n + 1 offsets into them, without a copy; slices are respected. Refuses nulls: a document has a text."""
    if not pa.types.is_large_string(texts.type):
        raise TypeError(f"texts: found {texts.type}, accepted is large_string")
    if texts.null_count:
        raise ValueError(f"texts: {texts.null_count} nulls; every document has a text")
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or offsets is None:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    places = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
    return np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8), places


def hash_words(data: Bytes, offsets: Offsets, scratch: Hashes | None = None) -> tuple[Hashes, Offsets]:
    """Word hashes of the documents that `offsets` cuts out of `data`, flat, and the n + 1 offsets into them.

    `scratch` of at least `hash_room(offsets)` entries is filled and viewed instead of a new array, for callers who go through many ranges.
    """
    out = np.empty(hash_room(offsets), np.uint64) if scratch is None else scratch
    out_offsets = np.empty(len(offsets), np.int64)
    _hash_documents(data, offsets, tables().classes, _encoded(), out, out_offsets)
    return out[: out_offsets[-1]], out_offsets


def hash_room(offsets: Offsets) -> int:
    """The most words these documents can have: two neighbouring words need a separator or an unspaced code point, which has three bytes."""
    return int(offsets[-1] - offsets[0]) // 2 + len(offsets)


def word_hashes(texts: pa.LargeStringArray) -> tuple[Hashes, Offsets]:
    """The 64-bit hash of every word of every text, flat, and the len(texts) + 1 offsets into them."""
    return hash_words(*text_buffers(texts))
