"""The statistics of every set against the same definitions written with Python's own string methods."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import regex
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.rules import parse
from curation.signals import SIGNALS
from curation.signals.fineweb import SENTENCE_TERMINAL
from curation.signals.heuristics import COLUMNS, HeuristicsConfig
from curation.text.words import UNSPACED

SETS = sorted(COLUMNS)
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
BULLETS = "-*•‣⁃◦▪▫■□●○▶◀–"


def config(of: str) -> HeuristicsConfig:
    return HeuristicsConfig.model_validate({"kind": "heuristics", "set": of})


def computed(*texts: str, of: str = "gopher") -> list[dict[str, float | None]]:
    values: list[dict[str, float | None]] = SIGNALS["heuristics"].compute(config(of), pa.array(texts, pa.large_string()), None).to_pylist()
    return values


def unspaced(letter: str) -> bool:
    return letter.isalnum() and any(first <= ord(letter) <= last for first, last in UNSPACED)


def words_of(text: str) -> list[str]:
    found = []
    for run in text.split():
        word = ""
        for letter in run:
            letters = [one for one in word if one.isalnum()]
            if letter.isalnum() and letters and (unspaced(letter) or unspaced(letters[-1])):
                found.append(word)
                word = ""
            word += letter
        found.append(word)
    return found


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def share(count: float, of: int) -> float | None:
    return count / of if of else None


def core(word: str) -> str:
    while word and not word[0].isalnum():
        word = word[1:]
    while word and not word[-1].isalnum():
        word = word[:-1]
    return word


def gopher(text: str) -> dict[str, float | None]:
    words, lines = words_of(text), lines_of(text)
    hashes = text.count("#")
    ellipses = text.count("...") + text.count("…")
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


def seen_before(units: list[str]) -> list[str]:
    return [unit for position, unit in enumerate(units) if unit in units[:position]]


def top(words: list[str], size: int) -> int:
    grams = [" ".join(words[start : start + size]) for start in range(len(words) - size + 1)]
    most = Counter(grams).most_common(1)
    return most[0][1] * len(most[0][0]) if most and most[0][1] > 1 else 0


def duplicate(words: list[str], size: int) -> int:
    seen, found, start = set(), 0, 0
    while start + size <= len(words):
        gram = tuple(words[start : start + size])
        if gram in seen:
            found += sum(map(len, gram))
            start += size
        else:
            seen.add(gram)
            start += 1
    return found


def gopher_repetition(text: str) -> dict[str, float | None]:
    words, lines = words_of(text), lines_of(text)
    blocks = "\n".join(line.strip() for line in text.split("\n")).split("\n\n")
    paragraphs = [paragraph for block in blocks if (paragraph := block.strip("\n"))]
    size = len(text) if words else 0
    return {
        "duplicate_lines": share(len(seen_before(lines)), len(lines)),
        "duplicate_paragraphs": share(len(seen_before(paragraphs)), len(paragraphs)),
        "duplicate_line_characters": share(sum(map(len, seen_before(lines))), size),
        "duplicate_paragraph_characters": share(sum(map(len, seen_before(paragraphs))), size),
        **{f"top_{n}_gram": share(top(words, n), size) for n in (2, 3, 4)},
        **{f"duplicate_{n}_grams": share(duplicate(words, n), size) for n in (5, 6, 7, 8, 9, 10)},
    }


CLOSING = "\"')]”’」』）】"
CITATION = re.compile(r"\[(?:[0-9]*|edit|citation needed)\]$")


def end_is_marked(line: str) -> bool:
    line = line.rstrip(" ")
    while CITATION.search(line):
        line = CITATION.sub("", line).rstrip(" ")
    return line.endswith(tuple(".?!\"'”’。！？」』")) and not line.endswith("...")


def sentences(line: str) -> int:
    """By a regular expression: marks and closers, then what decides."""
    found, behind = 0, 0
    for match in re.finditer(rf"([.?!。！？])([.?!。！？{re.escape(CLOSING)}]*)", line):
        rest = line[match.end() :]
        initial = re.search(r"(?:^|[\x00-\x20.])[A-Z]$", line[: match.start()]) and match[1] == "."
        wide = match[1] in "。！？"
        begins = rest[:1] <= " " and not match[0].startswith("...") and not initial and not re.match(r"[\x00-\x20]+[a-z]", rest)
        if wide or not rest or begins:
            found, behind = found + 1, match.end()
    return found + any(letter > " " and letter not in CLOSING + ".?!。！？" for letter in line[behind:])


def c4(text: str) -> dict[str, float | None]:
    lines = lines_of(text)
    lowered = [re.sub("[A-Z]+", lambda found: found[0].lower(), line) for line in lines]
    phrases = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
    causes = {
        "unended": [not end_is_marked(line) for line in lines],
        "short": [len(words_of(line)) < 3 for line in lines],
        "long": [any(len(word) > 1000 for word in words_of(line)) for line in lines],
        "javascript": ["javascript" in line for line in lowered],
        "policy": [any(phrase in line for phrase in phrases) for line in lowered],
    }
    kept = [line for line, *dropped in zip(lines, *causes.values(), strict=True) if not any(dropped)]
    return {
        "lines": len(lines),
        "dropped_lines": len(lines) - len(kept),
        **{name: sum(found) for name, found in causes.items()},
        "sentences": sum(map(sentences, kept)),
        "lorem_ipsum": sum("lorem ipsum" in line for line in lowered),
        "curly_brackets": text.count("{"),
        "kept": share(sum(map(len, kept)), sum(map(len, lines))),
    }


def fineweb(text: str) -> dict[str, float | None]:
    lines = lines_of(text)
    terminal = tuple(chr(point) for point in terminal_points())
    return {
        "lines": len(lines),
        "terminated": share(sum(line.endswith(terminal) for line in lines), len(lines)),
        "short_lines": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "duplicate_characters": share(sum(map(len, seen_before(lines))), sum(map(len, lines))),
        "newlines_per_word": share(text.count("\n"), len(words_of(text))),
    }


def terminal_points() -> Iterator[int]:
    for span in "".join(SENTENCE_TERMINAL).split():
        first, _, last = span.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


ORACLES = {"gopher": gopher, "gopher_repetition": gopher_repetition, "c4": c4, "fineweb": fineweb}


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
        "“平时90年代”，",
        "平",
        "かな",
        "」",
        "！",
        "a b c d e f",
        "a b c d e f.",
        "x" * 1001,
        "e.g. this",
        "J. K. Doe",
        "(Why?) No!",
        "[1]",
        "[edit]",
        "[citation needed] ",
        ".[12] [3]",
        "JavaScript",
        "Lorem ipsum",
        "we use COOKIES",
        "privacy policy",
        "{",
        '."',
        "\n\n",
        "\n \n",
        "\u0e31",
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


@settings(max_examples=600)
@given(st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=40).map("".join))
def test_statistics_of_any_text_equal_pythons_own_string_methods(text: str) -> None:
    for of, oracle in ORACLES.items():
        assert computed(text, of=of) == [oracle(text)], of


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["a", "b ", "c\n", "中", "\n", " ", "the end. "]), max_size=120).map("".join))
def test_statistics_of_repetitive_text_equal_pythons_own_string_methods(text: str) -> None:
    for of, oracle in ORACLES.items():
        assert computed(text, of=of) == [oracle(text)], of


@pytest.mark.parametrize(
    ("text", "words", "lines"),
    [
        ("word " * 100_000, 100_000, 1),
        ("x" * 1_000_000, 1, 1),
        ("平" * 100_000, 100_000, 1),
        ("\r\n" * 1000, 0, 0),
        ("line one\r\nline one\r\n" * 2000, 8000, 4000),
        ("🙂" * 5000, 1, 1),
    ],
)
def test_statistics_of_a_huge_or_odd_text_are_counted(text: str, words: int, lines: int) -> None:
    short = text[:600]  # the oracles are quadratic
    for of, oracle in ORACLES.items():
        assert computed(short, of=of) == [oracle(short)]
        assert all(value is None or value >= 0 for value in computed(text, of=of)[0].values())
    assert (computed(text)[0]["words"], computed(text)[0]["lines"]) == (words, lines)


@pytest.mark.parametrize("of", SETS)
def test_statistics_of_a_batch_equal_those_of_its_slices(of: str) -> None:
    texts = ["", "one the", "• a\n• b and to…", "###", "中文 text", "a b a b a b\n\na b\n\na b", "\n"]
    array = pa.array(["left out", *texts, "left out"], pa.large_string()).slice(1, len(texts))

    assert SIGNALS["heuristics"].compute(config(of), array, None).to_pylist() == [computed(text, of=of)[0] for text in texts]


@pytest.mark.parametrize("of", SETS)
@pytest.mark.parametrize("text", ["", " \n\t ", "\u3000\n"])
def test_text_without_words_has_counts_of_zero_and_null_ratios(text: str, of: str) -> None:
    (values,) = computed(text, of=of)

    counts, ratios = COLUMNS[of]
    assert {name for name, value in values.items() if value == 0} == set(counts)
    assert {name for name, value in values.items() if value is None} == set(ratios)


def test_terminal_marks_are_those_of_the_unicode_property() -> None:
    listed = set(terminal_points())

    assert {point for point in range(0x110000) if regex.match(r"\p{Sentence_Terminal}", chr(point))} <= listed
    assert {ord(mark) for mark in ".?!。！？．؟।"} <= listed
    assert listed.isdisjoint(map(ord, "\"',;:)…"))


@pytest.mark.parametrize(
    ("of", "text", "column", "value"),
    [
        ("gopher", "word " * 49, "words", 49),
        ("gopher", "ab " * 10, "mean_length", 2.0),
        ("gopher", "# a b c d e f g h", "hash_ratio", 1 / 9),
        ("gopher", "wait... what… ok", "ellipsis_ratio", 2 / 3),
        ("gopher", "- a\n- b\nc\n\n", "bullet_lines", 2 / 3),
        ("gopher", "read more...\nplain\n", "ellipsis_lines", 0.5),
        ("gopher", "a 1 2 3", "alphabetic", 0.25),
        ("gopher", "The cat sat with the dog", "stop_words", 2),
        ("gopher", "平时90年代。", "words", 4 + 1),
        ("gopher", "用GPT模型。", "words", 4),
        ("gopher_repetition", "one line\nanother\none line\none line", "duplicate_lines", 0.5),
        ("gopher_repetition", "a\nb\n\nc\n\na\nb\n\n\nc\r\n\r\nd", "duplicate_paragraphs", 2 / 5),
        ("gopher_repetition", "same line\nsame line\n", "duplicate_line_characters", 9 / 20),
        ("gopher_repetition", "x y and x y", "top_2_gram", 6 / 11),
        ("gopher_repetition", "all words here differ", "top_2_gram", 0),
        ("gopher_repetition", "a b c d e f a b c d e", "duplicate_5_grams", 5 / 21),
        ("gopher_repetition", "a b c d e f a b c d e", "duplicate_6_grams", 0),
        ("c4", "One two three.\nno end here\nToo short.\nEnable JavaScript to see this.", "dropped_lines", 3),
        ("c4", "One two three.[1]\nSee our Privacy Policy for more.", "policy", 1),
        ("c4", "Dr. J. Doe left at 3.15 p.m. today. Why? He said so.", "sentences", 4),
        ("c4", "他来了。为什么？不知道", "unended", 1),
        ("c4", "他来了。为什么？不知道！", "sentences", 3),
        ("c4", "if (x) { return }", "curly_brackets", 1),
        ("c4", "Lorem Ipsum dolor", "lorem_ipsum", 1),
        ("c4", "Wait for it...", "unended", 1),
        ("fineweb", 'It ends.\r\nIt does not\r\n这里结束。\nHe said "yes."\n', "terminated", 0.5),
        ("fineweb", "x" * 30 + "\n" + "x" * 31, "short_lines", 0.5),
        ("fineweb", "abcd\nabcd\nxy", "duplicate_characters", 0.4),
        ("fineweb", "a b\nc\n", "newlines_per_word", 2 / 3),
    ],
)
def test_statistic_of_a_planted_text_is_its_known_value(of: str, text: str, column: str, value: float) -> None:
    assert computed(text, of=of)[0][column] == value


@pytest.mark.parametrize("of", SETS)
def test_type_of_the_values_is_the_declared_one(of: str) -> None:
    assert SIGNALS["heuristics"].compute(config(of), pa.array([], pa.large_string()), None).type == SIGNALS["heuristics"].fields(config(of))


PAGE = Path(__file__).parents[3] / "docs/concepts/signals.md"
STORY = (
    "The river had been low all summer, and the boats stayed where they were. Anna walked along the bank with her brother every evening. "
    "They talked about the harvest, about their mother, and of the letters that did not come. Would he have written if he could? "
    "She thought so. In the village people said that the war would be over soon, but nobody knew. It rained at last in September."
)


@pytest.mark.parametrize(
    "block", re.findall(r"```yaml\n(# .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL), ids=lambda block: block.split(" (")[0]
)
def test_published_rules_of_the_page_keep_a_story_and_drop_junk(block: str) -> None:
    add, *keeps = yaml.safe_load(block)
    ((name, values),) = add["add"].items()
    signal = SIGNALS["heuristics"]
    texts = [STORY, "{buy} " * 400, "- now\n" * 200]
    computed = signal.compute(signal.config.model_validate(values), pa.array(texts, pa.large_string()), None)

    passed = [[True] * len(texts)]
    for step in keeps:
        rule = parse(step["keep"], "keep", pa.schema([(name, computed.type)]))
        passed.append(rule.decide(pl.DataFrame({name: pl.Series(computed)}))[0].tolist())

    assert [all(kept) for kept in zip(*passed, strict=True)] == [True, False, False]
