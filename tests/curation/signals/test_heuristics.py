"""The Gopher statistics against the same definitions written with Python's own string methods."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.signals import SIGNALS
from curation.signals.heuristics import HeuristicsConfig

CONFIG = HeuristicsConfig.model_validate({"kind": "heuristics", "set": "gopher"})
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
BULLETS = "-*•‣⁃◦▪▫■□●○▶◀–"


def computed(*texts: str) -> list[dict[str, float | None]]:
    values: list[dict[str, float | None]] = SIGNALS["heuristics"].compute(CONFIG, pa.array(texts, pa.large_string()), None).to_pylist()
    return values


def core(word: str) -> str:
    while word and not word[0].isalnum():
        word = word[1:]
    while word and not word[-1].isalnum():
        word = word[:-1]
    return word


def expected(text: str) -> dict[str, float | None]:
    words = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    hashes = text.count("#")
    ellipses = text.count("...") + text.count("…")

    def share(count: int, of: int) -> float | None:
        return count / of if of else None

    return {
        "words": len(words),
        "stop_words": len({core(word).lower() for word in words if core(word).isascii()} & STOP_WORDS),
        "lines": len(lines),
        "mean_length": share(sum(map(len, words)), len(words)),
        "hash_ratio": share(hashes, len(words)),
        "ellipsis_ratio": share(ellipses, len(words)),
        "symbol_ratio": share(max(hashes, ellipses), len(words)),
        "bullet_lines": share(sum(line[0] in BULLETS for line in lines), len(lines)),
        "ellipsis_lines": share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "alphabetic": share(sum(any(map(str.isalpha, word)) for word in words), len(words)),
    }


PIECES = st.sampled_from(
    [
        "the",
        "The,",
        "“AND”",
        "of",
        "with's",
        "word",
        "naïve",
        "ſ",
        "中文。",
        "ไทย",
        "1984",
        "#",
        ".",
        "..",
        "...",
        "....",
        "…",
        "….",
        "-",
        "• ",
        "*",
        "–",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u2028",
        "\u3000",
        "\x85",
        "\x00",
        "🙂",
        "\U000e0100",
        "\U0010ffff",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=30).map("".join))
def test_statistics_of_any_text_equal_pythons_own_string_methods(text: str) -> None:
    assert computed(text) == [expected(text)]


def test_statistics_of_a_batch_equal_those_of_its_slices() -> None:
    texts = ["", "one the", "• a\n• b and to…", "###", "中文 text"]
    array = pa.array(["left out", *texts, "left out"], pa.large_string()).slice(1, len(texts))

    assert SIGNALS["heuristics"].compute(CONFIG, array, None).to_pylist() == [computed(text)[0] for text in texts]


@pytest.mark.parametrize("text", ["", " \n\t ", "\u3000\n"])
def test_text_without_words_has_counts_of_zero_and_null_ratios(text: str) -> None:
    (values,) = computed(text)

    assert {name for name, value in values.items() if value == 0} == {"words", "stop_words", "lines"}
    assert {name for name, value in values.items() if value is None} == values.keys() - {"words", "stop_words", "lines"}


@pytest.mark.parametrize(
    ("text", "column", "value"),
    [
        ("word " * 49, "words", 49),
        ("ab " * 10, "mean_length", 2.0),
        ("# a b c d e f g h", "hash_ratio", 1 / 9),
        ("wait... what… ok", "ellipsis_ratio", 2 / 3),
        ("- a\n- b\nc\n\n", "bullet_lines", 2 / 3),
        ("read more...\nplain\n", "ellipsis_lines", 0.5),
        ("a 1 2 3", "alphabetic", 0.25),
        ("The cat sat with the dog", "stop_words", 2),
    ],
)
def test_statistic_of_a_planted_text_is_its_known_value(text: str, column: str, value: float) -> None:
    assert computed(text)[0][column] == value


def test_type_of_the_values_is_the_declared_one() -> None:
    assert SIGNALS["heuristics"].compute(CONFIG, pa.array([], pa.large_string()), None).type == SIGNALS["heuristics"].fields(CONFIG)
