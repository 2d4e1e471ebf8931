"""The script that most letters of a text belong to, as its ISO 15924 code, from Unicode's names of the letters.

A letter is what `str.isalpha` says. Han with at least a twentieth of kana is `Jpan`; without, it is `Hans` where characters that only GB 2312 has
outnumber those that only Big5 has, `Hant` where it is the other way round, and `Hani` where they tie (most characters are in both). Letters that
belong to no script, and scripts not in NAMES, are `Zyyy`.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from curation.signals import counting
from curation.text.words import CODE_POINTS, Bytes

if TYPE_CHECKING:
    import pyarrow as pa

# The word with which Unicode's names of a script's letters begin, and the script's code.
NAMES = {
    "LATIN": "Latn",
    "CYRILLIC": "Cyrl",
    "GREEK": "Grek",
    "ARMENIAN": "Armn",
    "HEBREW": "Hebr",
    "ARABIC": "Arab",
    "SYRIAC": "Syrc",
    "THAANA": "Thaa",
    "DEVANAGARI": "Deva",
    "BENGALI": "Beng",
    "GURMUKHI": "Guru",
    "GUJARATI": "Gujr",
    "ORIYA": "Orya",
    "TAMIL": "Taml",
    "TELUGU": "Telu",
    "KANNADA": "Knda",
    "MALAYALAM": "Mlym",
    "SINHALA": "Sinh",
    "THAI": "Thai",
    "LAO": "Laoo",
    "TIBETAN": "Tibt",
    "MYANMAR": "Mymr",
    "GEORGIAN": "Geor",
    "HANGUL": "Hang",
    "ETHIOPIC": "Ethi",
    "CHEROKEE": "Cher",
    "CANADIAN": "Cans",
    "KHMER": "Khmr",
    "MONGOLIAN": "Mong",
    "BOPOMOFO": "Bopo",
    "YI": "Yiii",
    "TIFINAGH": "Tfng",
    "JAVANESE": "Java",
    "NKO": "Nkoo",
    "HIRAGANA": "Jpan",
    "KATAKANA": "Jpan",
    "KATAKANA-HIRAGANA": "Jpan",
    "CJK": "Hani",
    "IDEOGRAPHIC": "Hani",
}
OTHER = "Zyyy"
CODES = (OTHER, *sorted(set(NAMES.values())))
KANA = 0.05
_WIDTHS = ("FULLWIDTH ", "HALFWIDTH ", "MODIFIER LETTER ")
_LETTERS_END = 0x40000  # no code point above is a letter
_NO_LETTER, _SIMPLIFIED, _TRADITIONAL = len(CODES), len(CODES) + 1, len(CODES) + 2


def of(texts: pa.LargeStringArray) -> tuple[list[str | None], npt.NDArray[np.float64]]:
    """The dominant script of every text (of several with equally many letters the first code of the alphabet; None without a letter) and its share of letters."""
    found = counting.tally(texts, _classes(), len(CODES) + 3)
    han, kana = CODES.index("Hani"), CODES.index("Jpan")
    simplified, traditional = found[:, _SIMPLIFIED], found[:, _TRADITIONAL]
    letters = found[:, : len(CODES)].copy()
    letters[:, han] += simplified + traditional
    japanese = letters[:, kana] >= KANA * (letters[:, han] + letters[:, kana])
    letters[:, kana] += np.where(japanese, letters[:, han], 0)
    letters[:, han] += np.where(japanese, -letters[:, han], letters[:, kana])
    letters[~japanese, kana] = 0
    total = letters.sum(1)
    most = letters.argmax(1)
    chinese = np.where(simplified > traditional, "Hans", np.where(traditional > simplified, "Hant", "Hani"))
    names = [
        None if not count else str(chinese[row]) if column == han else CODES[column]
        for row, (column, count) in enumerate(zip(most.tolist(), total.tolist(), strict=True))
    ]
    return names, letters.max(1) / np.maximum(total, 1)


@lru_cache(maxsize=1)
def _classes() -> Bytes:
    """The place in CODES of every letter's script, or one of the three classes behind it."""
    classes = np.full(CODE_POINTS, _NO_LETTER, np.uint8)
    for point in range(_LETTERS_END):
        letter = chr(point)
        if letter.isalpha():
            classes[point] = CODES.index(NAMES.get(_script_word(letter), OTHER))
    for point in np.flatnonzero(classes[:0x10000] == CODES.index("Hani")).tolist():  # neither encoding has more
        simplified, traditional = (_encodes(point, one) for one in ("gb2312", "big5"))
        if simplified != traditional:
            classes[point] = _SIMPLIFIED if simplified else _TRADITIONAL
    return classes


def _script_word(letter: str) -> str:
    name = unicodedata.name(letter, "")
    for width in _WIDTHS:
        name = name.removeprefix(width)
    return name.partition(" ")[0]


def _encodes(point: int, encoding: str) -> bool:
    try:
        chr(point).encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
