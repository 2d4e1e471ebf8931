"""Words: the definition against a second telling of it, the kernel against the definition."""

from __future__ import annotations

import re
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import caching

from curation.text.words import UNSPACED, hash_room, kernel, tables, text_buffers, word_hash, word_hashes, words

HAN = "一-鿿㐀-䶿"
TRICKY = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "Hello, World! 3rd_time—don't",
    "İstanbul IŞIK ışık I",
    "ΣΊΣΥΦΟΣ Σ ΑΣ.",
    "Straße STRASSE ẞ",
    "ᎠᎡᎢ ꭰꭱ Ꮠ",
    "中文 wikipedia维基百科2024年",
    "สวัสดี ชาวโลก",
    "한국어 띄어쓰기",
    "བོད་ཡིག",
    "e\u0301 é A\u030a Å \u212b \u212a",
    "👩‍👩‍👧 ❤️ 1️⃣ x",
    "ｶﾀｶﾅ カタカナ ゛が",
    "½ Ⅷ x² ٣",
    "\u2c6f Ɐ \u1e9e \ua7aa",
    "x" * 7 + " " + "x" * 8 + " " + "x" * 9 + " " + "é" * 4 + " " + "aé" * 7,
    "\U00020000\U0001f600\U00010400\U0010ffff",
    "\ufeffa\u200bb\u00adc\u202ed",
]


def told_again(text: str) -> list[str]:
    """The docstring's definition as a regular expression over marked characters, written without looking at the code."""
    marked = ""
    for character in text:
        if unicodedata.category(character)[0] not in {"L", "M", "N"}:
            marked += "\n"
        else:
            lowered = "i" if character == "\u0130" else character.lower()
            unspaced = any(first <= ord(character) <= last for first, last in UNSPACED)
            marked += f"\n{lowered}\n" if unspaced else lowered
    return [word for word in re.split("\n+", marked) if word]


def kernel_hashes(texts: list[str]) -> list[list[int]]:
    hashes, offsets = word_hashes(pa.array(texts, pa.large_string()))
    return [hashes[offsets[i] : offsets[i + 1]].tolist() for i in range(len(texts))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop_me-now 3.5", ["don", "t", "stop", "me", "now", "3", "5"]),
        ("İI ΑΣ Σ", ["ii", "ας".replace("ς", "σ"), "σ"]),
        ("Straße ẞ", ["straße", "ß"]),
        ("Ꭰ", ["ꭰ"]),
        ("维基wiki百科", ["维", "基", "wiki", "百", "科"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("한국어 말", ["한국어", "말"]),
        ("e\u0301t e\u0301", ["e\u0301t", "e\u0301"]),
        ("a\x00b😀c", ["a", "b", "c"]),
        ("", []),
    ],
)
def test_words_known_texts_are_cut_and_lowered_as_defined(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_words_tricky_texts_agree_with_second_telling_and_kernel() -> None:
    assert [words(text) for text in TRICKY] == [told_again(text) for text in TRICKY]
    assert kernel_hashes(TRICKY) == [[word_hash(word) for word in words(text)] for text in TRICKY]


@settings(max_examples=150)
@given(st.lists(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aZ İΣ中ไ\u0301'0\x00"))), max_size=5))
def test_words_random_texts_kernel_equals_definition(texts: list[str]) -> None:
    assert kernel_hashes(texts) == [[word_hash(word) for word in words(text)] for text in texts]


def test_words_every_code_point_kernel_and_tables_equal_definition() -> None:
    points = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF and (c < 0x3400 or c % 7 == 0 or 0xA000 <= c < 0x1F000)]
    expected = [words(chr(c)) for c in points]
    assert kernel_hashes([chr(c) for c in points]) == [[word_hash(w) for w in found] for found in expected]
    classes, lowered = tables()
    assert [bool(classes[c]) for c in points] == [bool(found) for found in expected]
    assert [[chr(lowered[c])] for c, found in zip(points, expected, strict=True) if found] == [found for found in expected if found]


def test_words_unspaced_code_points_take_three_bytes_so_room_suffices() -> None:
    assert min(len(chr(first).encode()) for first, _ in UNSPACED) == 3
    densest = ["a中a中a中a", "a b c d", "中", "a", ""]
    hashes, offsets = word_hashes(pa.array(densest, pa.large_string()))
    assert np.diff(offsets).tolist() == [7, 4, 1, 1, 0]
    assert len(hashes) <= hash_room(text_buffers(pa.array(densest, pa.large_string()))[1])


def test_word_hashes_slice_of_an_array_gives_the_slice() -> None:
    texts = pa.array(TRICKY, pa.large_string())
    assert kernel_hashes(TRICKY)[3:9] == kernel_hashes(texts.slice(3, 6).to_pylist())
    hashes, offsets = word_hashes(texts.slice(3, 6))
    whole, places = word_hashes(texts)
    assert hashes.tolist() == whole[places[3] : places[9]].tolist()
    assert offsets.tolist() == (places[3:10] - places[3]).tolist()


def test_word_hashes_invalid_utf8_is_read_within_bounds() -> None:
    broken = [b"ab\xff cd", b"x\xe4\xb8", b"\xf7\xbf\xbf\xbf y", b"\xc3", b"\xed\xa0\x80z"]
    data = pa.py_buffer(b"".join(broken))
    offsets = pa.py_buffer(np.cumsum([0, *map(len, broken)]).astype(np.int64))
    hashes, places = word_hashes(pa.LargeStringArray.from_buffers(len(broken), offsets, data))
    expected = [["ab", "cd"], ["x"], ["y"], [], ["z"]]
    assert [hashes[places[i] : places[i + 1]].tolist() for i in range(5)] == [[word_hash(w) for w in found] for found in expected]


def test_word_hash_short_words_and_neighbours_never_collide() -> None:
    points = [chr(c) for c in range(0x21, 0x3000) if words(chr(c)) == [chr(c)]]
    several = points + [a + b for a in points[:300] for b in points[:300]] + ["a" * n for n in range(3, 60)]
    assert len({word_hash(word) for word in several}) == len(set(several))


def test_text_buffers_nulls_and_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="1 nulls"):
        text_buffers(pa.array(["a", None], pa.large_string()))
    with pytest.raises(TypeError, match="large_string"):
        text_buffers(pa.array(["a"], pa.string()))


def test_kernel_without_a_writable_cache_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def add(a: int, b: int) -> int:
        return a + b

    assert kernel(add)(2, 3) == 5
