"""Repeated paragraphs and spans against plain Python written from their definition."""

from __future__ import annotations

import math
import random
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from duplicates import serial
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation.dedup import repeats
from curation.dedup.repeats import ParagraphsConfig, RepeatsConfig, SpansConfig, find_repeated, shares_in
from curation.text.words import words


@dataclass(frozen=True)
class Read:
    """A shard held in memory, read a few documents at a time."""

    name: str
    documents: tuple[str, ...]
    step: int = 3

    def spans(self) -> list[tuple[int, int]]:
        return [(at, min(at + self.step, len(self.documents))) for at in range(0, len(self.documents), self.step)]

    def texts(self, positions: npt.NDArray[np.int64]) -> pa.LargeStringArray:
        return pa.array([self.documents[i] for i in positions], pa.large_string())


def paragraphs(text: str, separated_by: str) -> list[tuple[tuple[str, ...], int]]:
    """(words, characters without white space) of each."""
    parts = text.split("\n") if separated_by == "line" else re.split(r"\n(?:[ \t\r]*\n)+", re.sub(r"\A(?:[ \t\r]*\n)+", "", text))
    return [(tuple(words(part)), len(re.sub(r"[ \t\r\n]", "", part))) for part in parts if words(part)]


def plain(config: RepeatsConfig, texts: Sequence[str], counted: Sequence[bool]) -> list[Fraction | None]:
    """The value of every document."""

    def pieces(text: str) -> list[tuple[str, ...]]:
        if isinstance(config, ParagraphsConfig):
            return [words for words, _ in paragraphs(text, config.separated_by)]
        found = words(text)
        return [tuple(found[at : at + config.words]) for at in range(len(found) - config.words + 1)]

    times = Counter(piece for text, counts in zip(texts, counted, strict=True) if counts for piece in set(pieces(text)))
    values: list[Fraction | None] = []
    for text, counts in zip(texts, counted, strict=True):
        repeated = [times[piece] + (not counts) >= config.at_least for piece in pieces(text)]
        if isinstance(config, ParagraphsConfig):
            weights = [size for _, size in paragraphs(text, config.separated_by)]
            part, whole = sum(size for size, one in zip(weights, repeated, strict=True) if one), sum(weights)
        else:
            part = len({at + i for at, one in enumerate(repeated) if one for i in range(config.words)})
            whole = len(words(text))
        values.append(Fraction(part, whole) if whole else None)
    return values


def found(
    config: RepeatsConfig, texts: Sequence[str], counted: Sequence[bool], *, shards: int = 2, step: int = 3, range_bytes: int = 1 << 26
) -> list[Fraction | None]:
    places = [list(range(number, len(texts), shards)) for number in range(shards)]
    with tempfile.TemporaryDirectory() as scratch:
        live = [Read(f"live-{number}", tuple(texts[at] for at in mine if counted[at]), step) for number, mine in enumerate(places)]
        repeated = find_repeated(config, live, Path(scratch) / "work", serial, range_bytes)
        values: dict[int, float] = {}
        for number, mine in enumerate(places):
            present = Read(f"present-{number}", tuple(texts[at] for at in mine), step)
            here = shares_in(config, present, repeated, np.array([counted[at] for at in mine], bool))
            values |= dict(zip(mine, here.tolist(), strict=True))
    return [None if math.isnan(values[at]) else values[at] for at in range(len(texts))]  # type: ignore[misc]


PARTS = ["a b c", "A, b c!", "one", "two words", "...", "中文 字", " \t ", "", "\r", "d e f g", "x" * 30, "ß é İ"]
LINES = st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(["\n", "\n\n", "\n \t\r\n", " ", "\r\n"])), max_size=8)
TEXTS = st.lists(LINES.map(lambda parts: "".join(part + end for part, end in parts)), min_size=1, max_size=12)
SIZES = st.sampled_from([(1, 1, 64), (2, 3, 1 << 26), (3, 2, 40)])


@settings(max_examples=40)
@given(TEXTS, st.integers(2, 4), st.sampled_from(["blank_line", "line"]), st.integers(0, 3), SIZES)
@example(["\n\n  a b\n\n\na b", "a b", "\n", "", "a b\n \nc"], 2, "blank_line", 0, (1, 1, 64))
def test_repeated_paragraphs_any_documents_and_sizes_are_those_of_the_definition(
    texts: list[str], at_least: int, separated_by: str, uncounted: int, sizes: tuple[int, int, int]
) -> None:
    config = ParagraphsConfig.model_validate({"kind": "repeated_paragraphs", "at_least": at_least, "separated_by": separated_by})
    counted = [at % 4 >= uncounted for at in range(len(texts))]

    values = found(config, texts, counted, shards=sizes[0], step=sizes[1], range_bytes=sizes[2])

    assert values == [None if one is None else float(one) for one in plain(config, texts, counted)]


@settings(max_examples=40)
@given(st.lists(st.text("ab ", max_size=40), min_size=1, max_size=12), st.integers(5, 7), st.integers(2, 4), st.integers(0, 3), SIZES)
@example(["a b a b a b a b", "b a b a b", "", " ", "a"], 5, 2, 0, (1, 1, 64))
def test_repeated_spans_any_documents_and_sizes_are_those_of_the_definition(
    texts: list[str], length: int, at_least: int, uncounted: int, sizes: tuple[int, int, int]
) -> None:
    config = SpansConfig(kind="repeated_spans", words=length, at_least=at_least)
    counted = [at % 4 >= uncounted for at in range(len(texts))]

    values = found(config, texts, counted, shards=sizes[0], step=sizes[1], range_bytes=sizes[2])

    assert values == [None if one is None else float(one) for one in plain(config, texts, counted)]


def test_repeated_spans_of_long_documents_in_many_chunks_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_CHUNK", 5000)
    rng = random.Random(3)
    shared = [" ".join(f"s{number}w{i}" for i in range(rng.choice([20, 49, 50, 51, 200]))) for number in range(30)]
    texts = []
    for document in range(60):
        parts = [rng.choice(shared) if rng.random() < 0.4 else " ".join(f"d{document}p{part}w{i}" for i in range(40)) for part in range(20)]
        texts.append("\n\n".join(parts))
    counted = [at % 7 != 0 for at in range(60)]
    for config in (SpansConfig(kind="repeated_spans"), ParagraphsConfig(kind="repeated_paragraphs")):
        expected = [float(one or 0) for one in plain(config, texts, counted)]
        assert found(config, texts, counted, step=20) == expected
        assert found(config, texts, counted, shards=5, step=1, range_bytes=2000) == expected
        assert 0.05 < sum(expected) / 60 < 0.9


def test_repeated_paragraphs_of_one_document_alone_are_no_repetition() -> None:
    config = ParagraphsConfig(kind="repeated_paragraphs", at_least=2)
    assert found(config, ["same\n\nsame\n\nsame"], [True]) == [0.0]
    assert found(config, ["same\n\nsame", "Same!"], [True, True]) == [1.0, 1.0]
    assert found(config, ["same\n\nsame", "Same!"], [True, False]) == [0.0, 1.0]  # as if it were one of them


def test_repeated_text_of_nothing_is_nothing() -> None:
    config = SpansConfig(kind="repeated_spans")
    assert found(config, [], []) == []
    assert found(config, ["", "...", "word"], [True] * 3) == [None, None, 0.0]
