"""The truth about near-duplicates, in plain Python and without a kernel: what `dedup.py` judges everybody by.

Definition, as `curation/dedup/minhash.py` documents it: a word is a maximal run of letters, marks and numbers (Unicode categories L*, M*, N*), lower-cased one code point at a time;
in scripts written without spaces every character is a word; a shingle is five consecutive words, and a text of one to four words is one shingle. Jaccard is that of the sets.
Of the product only the table of unspaced scripts is shared, which is data. Shingles are compared as strings, so nothing can collide.

All pairs at or above a threshold come from an inverted index over each set's rarest shingles: two sets of Jaccard t or more have to share one of the first |x| - ceil(t |x|) + 1 in any
order common to all, whichever it is. `brute_force` looks at every pair and must agree with it on a part of the corpus.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from curation.text.words import UNSPACED

Pairs = dict[int, dict[int, tuple[int, int]]]
"""For each row its partners, with the sizes of intersection and union."""


class _Classes(dict[int, str]):
    """What becomes of a code point: itself in lower case, between blanks in unspaced scripts, or a blank. Filled as code points are met."""

    def __missing__(self, point: int) -> str:
        character = chr(point)
        if unicodedata.category(character)[0] not in "LMN":
            found = " "
        elif any(first <= point <= last for first, last in UNSPACED):
            found = f" {character} "
        else:
            found = "i" if character == "\u0130" else character.lower()
        self[point] = found
        return found


_CLASSES = _Classes()


def plain_words(text: str) -> list[str]:
    return [word for word in text.translate(_CLASSES).split(" ") if word]


def plain_shingles(text: str) -> set[str]:
    words = plain_words(text)
    return {" ".join(words[i : i + 5]) for i in range(max(len(words) - 4, 1))} - {""}


def numbered(texts: Iterable[str]) -> list[frozenset[int]]:
    """The shingle sets of texts, each shingle as a number of its own."""
    numbers: dict[str, int] = {}
    return [frozenset(numbers.setdefault(shingle, len(numbers)) for shingle in plain_shingles(text)) for text in texts]


def reaches(common: int, union: int, threshold: Fraction) -> bool:
    return common * threshold.denominator >= threshold.numerator * union


def all_pairs(sets: Sequence[frozenset[int]], threshold: Fraction) -> Pairs:
    """Every pair at or above the threshold, in both directions."""
    holders = Counter(shingle for one in sets for shingle in one)
    index: dict[int, list[int]] = {}
    pairs: Pairs = {}
    for row, mine in enumerate(sets):
        if not mine:
            continue
        size = len(mine)
        least = -(-size * threshold.numerator // threshold.denominator)  # a partner's size, and what is shared with it, cannot be below
        rarest = sorted(mine, key=lambda shingle: (holders[shingle], shingle))[: size - least + 1]
        candidates: set[int] = set()
        for shingle in rarest:
            candidates.update(index.setdefault(shingle, []))
            index[shingle].append(row)
        for other in candidates:
            theirs = sets[other]
            small, large = sorted((size, len(theirs)))
            if not reaches(small, large, threshold):
                continue
            common = len(mine & theirs)
            union = size + len(theirs) - common
            if reaches(common, union, threshold):
                pairs.setdefault(row, {})[other] = pairs.setdefault(other, {})[row] = (common, union)
    return pairs


def brute_force(sets: Sequence[frozenset[int]], threshold: Fraction) -> Pairs:
    pairs: Pairs = {}
    for row, mine in enumerate(sets):
        for other in range(row):
            common = len(mine & sets[other])
            union = len(mine) + len(sets[other]) - common
            if common and reaches(common, union, threshold):
                pairs.setdefault(row, {})[other] = pairs.setdefault(other, {})[row] = (common, union)
    return pairs


class Verdict(NamedTuple):
    """What the truth says about one tool's removals at one threshold."""

    removed: int
    right: int
    """Removed with a partner at or above the threshold that the tool kept."""
    chained: int
    """Removed with such a partner, but none that was kept: what it resembled is gone, too."""
    wrong: int
    """Removed without any such partner."""
    missed: int
    """Kept although a kept document before it is at or above the threshold."""

    @property
    def precision(self) -> float:
        return self.right / self.removed if self.removed else 1.0

    @property
    def recall(self) -> float:
        """Of the documents that have a kept partner at or above the threshold, the share that was removed."""
        return self.right / (self.right + self.missed) if self.right + self.missed else 1.0


def judge(kept: Sequence[bool], rows: Sequence[int], pairs: Pairs, threshold: Fraction) -> Verdict:
    """Judges what became of `rows`."""
    counts: Counter[str] = Counter()
    for row in rows:
        partners = [other for other, (common, union) in pairs.get(row, {}).items() if reaches(common, union, threshold)]
        if kept[row]:
            counts["missed"] += any(kept[other] and other < row for other in partners)
        elif any(kept[other] for other in partners):
            counts["right"] += 1
        else:
            counts["chained" if partners else "wrong"] += 1
    removed = counts["right"] + counts["chained"] + counts["wrong"]
    return Verdict(removed, counts["right"], counts["chained"], counts["wrong"], counts["missed"])


def greedy(size: int, pairs: Pairs, threshold: Fraction) -> list[bool]:
    """Who stays by the rule: row after row, removed iff a kept row before it is at or above the threshold."""
    kept: list[bool] = []
    for row in range(size):
        partners = pairs.get(row, {}).items()
        kept.append(not any(other < row and kept[other] and reaches(*sizes, threshold) for other, sizes in partners))
    return kept


class Document(NamedTuple):
    text: str
    corpus: str
    planted: bool


def planted_copy(text: str, similarity: float, vocabulary: Sequence[str], chance: random.Random) -> str:
    """The text, changed so that its Jaccard with itself is about `similarity`: cut short, words replaced at random, or a passage exchanged."""
    unspaced = " " not in text.strip()
    words = list(text) if unspaced else text.split()
    how = chance.randrange(3)
    if how == 0:
        changed = words[: max(int(len(words) * similarity), 1)]
    elif how == 1:
        stays = (2 * similarity / (1 + similarity)) ** 0.2  # of each word, so that all five of a shingle stay often enough
        changed = [word if chance.random() < stays else chance.choice(vocabulary) for word in words]
    else:
        length = int(len(words) * (1 - 2 * similarity / (1 + similarity)))
        first = chance.randrange(max(len(words) - length, 1))
        changed = [*words[:first], *(chance.choice(vocabulary) for _ in range(length)), *words[first + length :]]
    return ("" if unspaced else " ").join(changed)


def with_planted(corpora: Mapping[str, Sequence[str]], share: float, seed: int) -> list[Document]:
    """The documents of all corpora with near-copies of a `share` of each among them, at Jaccard 0.6 to 0.98, in random order."""
    chance = random.Random(seed)
    documents = []
    for name, texts in corpora.items():
        joined = chance.sample(texts, min(len(texts), 200))
        vocabulary = [word for text in joined for word in (list(text) if " " not in text.strip() else text.split())]
        documents += [Document(text, name, False) for text in texts]
        for text in chance.sample(texts, int(len(texts) * share)):
            documents.append(Document(planted_copy(text, chance.uniform(0.6, 0.98), vocabulary, chance), name, True))
    chance.shuffle(documents)
    return documents
