"""The four published filters, told in plain Python once, with a switch for every place where datatrove and we define something differently.

A filter gives the rule that drops a text, or nothing. With no switch on, each gives datatrove's verdict, with all on, ours; `heuristics.py` checks both on every document. So where the two verdicts
differ, the fewest switches that turn one into the other are the reason. Of our code it imports only which
scripts have no spaces.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any, NamedTuple

from curation.text.words import UNSPACED

BULLETS = "-*•‣⁃◦▪▫■□●○▶◀–"
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
AT_END = re.compile(r"(?:\[[0-9]*\]|\[edit\]|\[citation needed\])$")

CLOSERS = "\"')]”’」』）】"
MARKS = re.compile(rf"([.?!。！？])[.?!。！？{re.escape(CLOSERS)}]*")
INITIAL, SMALL = re.compile(r"(?:^|[\x00-\x20.])[A-Z]$"), re.compile(r"[\x00-\x20]+[a-z]")
ALONE = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED) + "]")


class Seen(NamedTuple):
    """One document as datatrove's word splitter sees it, beside our own definition of words."""

    text: str
    tokens: list[str]
    sentences: dict[str, int]
    """How many sentences datatrove finds in a line."""
    punctuation: frozenset[str]
    terminal: tuple[str, ...]
    unicode_terminal: tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Our words: a run between white space is cut before a letter or digit when that or the last one is of a script without spaces."""
    found = []
    for run in text.split():
        if run.isascii() or not ALONE.search(run):
            found.append(run)
            continue
        word = last = ""
        for letter in run:
            if letter.isalnum():
                if last and (ALONE.match(letter) or ALONE.match(last)):
                    found.append(word)
                    word = ""
                last = letter
            word += letter
        found.append(word)
    return found


def sentences_of(line: str) -> int:
    """Our sentences of a line."""
    found = behind = 0
    for match in MARKS.finditer(line):
        rest = line[match.end() :]
        initial = match[1] == "." and INITIAL.search(line[max(0, match.start() - 2) : match.start()])
        begins = rest[:1] <= " " and not match[0].startswith("...") and not initial and not SMALL.match(rest)
        if match[1] in "。！？" or not rest or begins:
            found, behind = found + 1, match.end()
    return found + any(letter > " " and letter not in CLOSERS + ".?!。！？" for letter in line[behind:])


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def core(word: str) -> str:
    while word and not word[0].isalnum():
        word = word[1:]
    while word and not word[-1].isalnum():
        word = word[:-1]
    return word.lower() if word.isascii() else ""


def split(seen: Seen, on: frozenset[str]) -> list[str]:
    if "words by white space" in on:
        return words_of(seen.text) if "Chinese by the character" in on else seen.text.split()
    return [part for token in seen.tokens for part in words_of(token)] if "Chinese by the character" in on else seen.tokens


def gopher(seen: Seen, on: frozenset[str]) -> str:
    text = seen.text
    words = split(seen, on)
    counted = words if "marks counted as words" in on else [word for word in words if any(c not in seen.punctuation for c in word)]
    if not 50 <= len(counted) <= 100_000:
        return "words"
    if not 3 <= sum(map(len, counted)) / len(counted) <= 10:
        return "mean length"
    if max(text.count("#"), text.count("...") + text.count("…")) / len(words) > 0.1:
        return "symbols"
    lines = lines_of(text) if "blank and other lines" in on else text.splitlines()
    bullets = BULLETS if "more bullets" in on else "•-"
    if sum(line.lstrip().startswith(tuple(bullets)) for line in lines) / len(lines) > 0.9:
        return "bullets"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
        return "ellipses"
    if sum(any(map(str.isalpha, word)) for word in words) / len(words) < 0.8:
        return "alphabetic"
    found = {core(word) for word in words} if "stop words in any case" in on else set(words)
    return "" if len(found & STOP_WORDS) >= 2 else "stop words"


def again(units: Iterable[Any]) -> list[Any]:
    seen: set[Any] = set()
    return [unit for unit in units if unit in seen or seen.add(unit)]


def gopher_repetition(seen: Seen, on: frozenset[str]) -> str:
    text = seen.text
    if "blank and other lines" in on:
        lines = lines_of(text)
        blocks = "\n".join(line.strip() for line in text.split("\n")).split("\n\n")
        paragraphs = [paragraph for block in blocks if (paragraph := block.strip("\n"))]
    else:
        lines = re.split("\n+", text)
        paragraphs = re.split("\n{2,}", text.strip())
    if not text or not lines:
        return "empty"
    for kind, units in (("paragraphs", paragraphs), ("lines", lines)):
        twice = again(units)
        if len(twice) / len(units) > 0.3 or sum(map(len, twice)) / len(text) > 0.2:
            return kind
    words = split(seen, on)
    for size, limit in ((2, 0.2), (3, 0.18), (4, 0.16)):
        if top(words, size, 2 if "n-grams that occur once" in on else 1) / len(text) > limit:
            return "top n-gram"
    for size, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), strict=True):
        if duplicate(words, size, "joined words" in on) / len(text) > limit:
            return "n-grams"
    return ""


def top(words: list[str], size: int, least: int) -> int:
    counts: dict[str, int] = {}
    for start in range(len(words) - size + 1):
        gram = " ".join(words[start : start + size])
        counts[gram] = counts.get(gram, 0) + 1
    most = max(counts.values(), default=0)
    return next((most * len(gram) for gram, count in counts.items() if count == most), 0) if most >= least else 0


def duplicate(words: list[str], size: int, apart: bool) -> int:
    seen, found, start = set(), 0, 0
    while start + size <= len(words):
        gram = ("\0" if apart else "").join(words[start : start + size])
        if gram in seen:
            found += sum(map(len, words[start : start + size]))
            start += size
        else:
            seen.add(gram)
            start += 1
    return found


def c4(seen: Seen, on: frozenset[str]) -> str:
    marks = tuple(".?!\"'”’。！？」』") if "end marks of other typography" in on else tuple(".?!\"'")
    words_in = words_of if "Chinese by the character" in on else str.split
    page = "brackets in dropped lines" in on
    if page and ("{" in seen.text or any("lorem ipsum" in line.lower() for line in lines_of(seen.text))):
        return "page"
    sentences = 0
    for line in lines_of(seen.text) if "blank and other lines" in on else [line.strip() for line in seen.text.splitlines()]:
        words = words_in(line)
        if any(len(word) > 1000 for word in words):
            continue
        shown = end = CITATION.sub("", line)
        if "white space before a citation" in on:
            end = line
            while AT_END.search(end):
                end = AT_END.sub("", end).rstrip(" ")
        if not end.endswith(marks) or end.endswith("...") or len(words) < 3:
            continue
        lower = shown.lower()
        if "lorem ipsum" in lower:
            return "page"
        if "javascript" in lower:
            continue
        if "{" in shown:
            return "page"
        if any(phrase in lower for phrase in POLICY):
            continue
        sentences += sentences_of(line) if "sentences" in on or shown not in seen.sentences else seen.sentences[shown]
    return "" if sentences >= 5 else "sentences"


def fineweb(seen: Seen, on: frozenset[str]) -> str:
    text = seen.text
    lines = [line for line in text.split("\n") if line.strip()]
    characters = len(text.replace("\n", ""))
    if "white space at the ends of lines" in on:
        lines = [line.strip() for line in lines]
        characters = sum(map(len, lines))
    if not lines:
        return "empty"
    if sum(line.endswith(seen.unicode_terminal if "a newer Unicode" in on else seen.terminal) for line in lines) / len(lines) < 0.12:
        return "terminated"
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return "short lines"
    if sum(map(len, again(lines))) / characters > 0.01:
        return "duplicate characters"
    return "newlines" if text.count("\n") / len(split(seen, on)) > 0.3 else ""


FILTERS: dict[str, tuple[Callable[[Seen, frozenset[str]], str], tuple[str, ...]]] = {
    "gopher": (
        gopher,
        (
            "words by white space",
            "Chinese by the character",
            "marks counted as words",
            "blank and other lines",
            "more bullets",
            "stop words in any case",
        ),
    ),
    "gopher_repetition": (
        gopher_repetition,
        ("words by white space", "Chinese by the character", "n-grams that occur once", "blank and other lines", "joined words"),
    ),
    "c4": (
        c4,
        (
            "sentences",
            "end marks of other typography",
            "white space before a citation",
            "brackets in dropped lines",
            "Chinese by the character",
            "blank and other lines",
        ),
    ),
    "fineweb": (fineweb, ("words by white space", "Chinese by the character", "white space at the ends of lines", "a newer Unicode")),
}


def reason(name: str, seen: Seen) -> str:
    """The fewest switches that turn datatrove's verdict into ours, of equally many the first as FILTERS lists them, and the rule that drops."""
    rule, switches = FILTERS[name]
    theirs, ours = rule(seen, frozenset()), rule(seen, frozenset(switches))
    for many in range(1, len(switches) + 1):
        for on in combinations(switches, many):
            if bool(rule(seen, frozenset(on))) == bool(ours):
                return f"{' + '.join(on)} ({theirs or ours})"
    sys.exit(f"{name}: no switch explains a difference")
