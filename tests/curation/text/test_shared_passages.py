"""Shared passages against all passages in plain Python."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curation.text.shared_passages import Passage, excerpt, first_character, first_difference, longest_shared, words_of
from curation.text.words import words

TEXT = st.text(st.sampled_from("abİ中é -,\n😀"), max_size=40)


def plain_longest(one: list[str], other: list[str]) -> Passage:
    """The longest first, the first of the one among equals, then the first of the other."""
    for length in range(min(len(one), len(other)), 0, -1):
        for here in range(len(one) - length + 1):
            for there in range(len(other) - length + 1):
                if one[here : here + length] == other[there : there + length]:
                    return Passage(length, here, there)
    return Passage(0, 0, 0)


@given(TEXT, TEXT)
def test_longest_shared_passage_is_that_of_a_look_at_all(one: str, other: str) -> None:
    assert longest_shared(words_of(one), words_of(other)) == plain_longest(words(one), words(other))


@given(TEXT, st.integers(0, 12), st.integers(0, 12))
def test_excerpt_has_the_words_asked_for_and_begins_and_ends_with_them(text: str, first: int, count: int) -> None:
    found = excerpt(text, first, count)
    assert words(found) == words(text)[first : first + count]
    assert found in text
    if found:
        assert words(found[:1])
        assert words(found[-1:])


@given(TEXT, TEXT)
def test_first_difference_is_where_the_words_and_characters_part(one: str, other: str) -> None:
    mine, theirs = words(one), words(other)
    at = first_difference(words_of(one), words_of(other))
    assert mine[:at] == theirs[:at]
    assert mine[at : at + 1] != theirs[at : at + 1] or len(mine) == len(theirs) == at or not (mine[at:] and theirs[at:])
    character = first_character(one, other)
    assert one[:character] == other[:character]
    assert one[character : character + 1] != other[character : character + 1] or one == other


def test_longest_shared_passage_of_long_texts_is_the_planted_one() -> None:
    """300,000 words each of a small vocabulary, where many short passages repeat, and one of 5,000 words in both."""
    draw = np.random.default_rng(3)
    one, other, planted = (
        draw.integers(0, 50, count).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F) for count in (300_000, 300_000, 5_000)
    )
    here, there = np.insert(one, 123_456, planted), np.insert(other, 7, planted)

    found = longest_shared(here, there)

    assert 5_000 <= found.words < 5_010
    assert 123_446 < found.here <= 123_456
    assert found.here - found.there == 123_456 - 7


def test_excerpt_of_a_long_text_is_cut_at_its_words() -> None:
    parts = [random.Random(n).choice(["é́x", "中", "Word", "ab"]) + str(n) for n in range(20_000)]
    text = " … ".join(parts)
    begin = len(words(" ".join(parts[:9_000])))
    assert excerpt(text, begin, len(words(" ".join(parts[9_000:9_050])))) == " … ".join(parts[9_000:9_050])
