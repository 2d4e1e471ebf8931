"""Perplexity against the smoothing formula written out with dictionaries of tuples and exact fractions."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.signals import SIGNALS, Sample
from curation.signals.perplexity import PerplexityConfig
from curation.text.words import words
from mixing import UserError

SIGNAL = SIGNALS["ngram"]
CORPUS = ["The cat sat on the mat.", "the dog sat", "A cat; the cat!"]


def config(**settings: int) -> PerplexityConfig:
    return PerplexityConfig.model_validate({"kind": "ngram", "reference": "reference/*.jsonl", **settings})


def array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def trained(folder: Path, texts: list[str], **settings: int) -> Path:
    folder.mkdir()
    SIGNAL.train(config(**settings), {"reference": array(texts)}, folder, 17)
    return folder


def scored(folder: Path, texts: list[str], **settings: int) -> list[float | None]:
    values: list[float | None] = SIGNAL.compute(config(**settings), array(texts), folder).to_pylist()
    return values


class WittenBell:
    """P(w | h) = (c(hw) + T(h) P(w | h')) / (c(h) + T(h)), by its definition."""

    def __init__(self, corpus: list[str], order: int, vocabulary: int) -> None:
        self.order, self.vocabulary = order, vocabulary
        self.followers: dict[tuple[str, ...], Counter[str]] = {}
        for sentence in filter(None, map(words, corpus)):
            symbols = ["<s>", *sentence, "</s>"]
            for at in range(1, len(symbols)):
                for length in range(min(order - 1, at) + 1):
                    self.followers.setdefault(tuple(symbols[at - length : at]), Counter())[symbols[at]] += 1

    def probability(self, word: str, context: tuple[str, ...]) -> Fraction:
        shorter = self.probability(word, context[1:]) if context else Fraction(1, self.vocabulary)
        seen = self.followers.get(context)
        if seen is None:
            return shorter
        return (seen[word] + len(seen) * shorter) / Fraction(seen.total() + len(seen))

    def perplexity(self, text: str) -> float:
        symbols = ["<s>", *words(text), "</s>"]
        logs = [math.log(self.probability(symbols[at], tuple(symbols[max(0, at - self.order + 1) : at]))) for at in range(1, len(symbols))]
        return math.exp(-sum(logs) / len(logs))


def test_perplexity_of_a_three_sentence_corpus_equals_the_hand_computation(tmp_path: Path) -> None:
    # Reference `a b`, `a c`, bigrams, V = 10. Seen: a 2, b 1, c 1, </s> 2: N = 6, T = 4. P(x) = (c(x) + 4/10) / 10.
    # `<s>` is followed by a twice, T = 1: P(a|<s>) = (2 + .24) / 3. `a` by b and c: P(b|a) = (1 + 2 · .14) / 4. `b` by </s>: P(</s>|b) = (1 + .24) / 2.
    folder = trained(tmp_path / "model", ["a b", "a c", "..."], order=2, vocabulary=10)

    (value,) = scored(folder, ["A, b."])

    assert value == pytest.approx(((2.24 / 3) * (1.28 / 4) * (1.24 / 2)) ** (-1 / 3), rel=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_perplexity_of_seen_and_unseen_texts_equals_the_definition(tmp_path: Path, order: int) -> None:
    folder = trained(tmp_path / "model", CORPUS, order=order, vocabulary=1000)
    texts = [
        *CORPUS,
        "the",
        "the mat sat on a dog",
        "mat mat mat",
        "unknown cat",
        "the cat unknown the cat sat",
        "zzz yyy xxx",
        "on the cat",
    ]
    definition = WittenBell(CORPUS, order, 1000)

    assert scored(folder, texts, order=order) == pytest.approx([definition.perplexity(text) for text in texts], rel=1e-6)


LETTERS = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)


@settings(max_examples=60)
@given(
    st.lists(LETTERS, min_size=1, max_size=8).filter(lambda texts: any(texts)), st.lists(LETTERS, min_size=1, max_size=5), st.integers(1, 5)
)
def test_perplexity_of_any_corpus_equals_the_definition(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[str], texts: list[str], order: int
) -> None:
    folder = trained(tmp_path_factory.mktemp("any") / "model", corpus, order=order, vocabulary=50)
    definition = WittenBell(corpus, order, 50)

    expected = [definition.perplexity(text) if text else None for text in texts]

    for found, wanted in zip(scored(folder, texts, order=order), expected, strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-6))


def test_probabilities_of_the_definition_sum_to_one() -> None:
    # What the oracle above rests on: over V words, seen and unseen, the mass is one after every context.
    model = WittenBell(CORPUS, 3, 1000)
    seen = set(model.followers[()])
    for context in model.followers:
        mass = sum(model.probability(word, context) for word in seen) + (1000 - len(seen)) * model.probability("unseen", context)
        assert mass == 1


def test_text_of_unknown_words_scores_worst_not_best(tmp_path: Path) -> None:
    folder = trained(tmp_path / "model", CORPUS)

    unknown, scrambled, mixed, seen = scored(folder, ["qwe rtz uio asd", "mat on dog a", "the qwe sat rtz", "the cat sat on"])

    assert unknown is not None
    assert scrambled is not None
    assert mixed is not None
    assert seen is not None
    assert unknown > mixed > scrambled > seen


def test_texts_without_words_are_null_and_batches_do_not_matter(tmp_path: Path) -> None:
    folder = trained(tmp_path / "model", CORPUS)
    texts = ["", "the cat", "…!", "a dog sat on zzz", " \n"]

    values = scored(folder, texts)

    assert [value is None for value in values] == [True, False, True, False, True]
    assert values == [scored(folder, [text])[0] for text in texts]
    assert SIGNAL.compute(config(), array(["left out", *texts]).slice(1), folder).to_pylist() == values
    assert SIGNAL.compute(config(), array([]), folder).type == SIGNAL.fields(config())


def test_model_bytes_do_not_depend_on_the_order_of_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = [" ".join(f"w{word}" for word in rng.zipf(1.4, rng.integers(0, 30)) % 500) for _ in range(200)]
    one = trained(tmp_path / "one", texts)
    other = trained(tmp_path / "other", [texts[at] for at in rng.permutation(len(texts))])

    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    assert all(path.read_bytes() == (other / path.name).read_bytes() for path in one.iterdir())


def test_reference_of_a_domain_ranks_its_texts_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def drawn(shift: int, count: int) -> list[str]:
        # Two domains with one vocabulary and the same word frequencies: only which word follows which tells them apart.
        texts = []
        for _ in range(count):
            word, text = int(rng.integers(40)), []
            for _ in range(60):
                text.append(f"w{word}")
                word = (word + shift + int(rng.integers(3))) % 40
            texts.append(" ".join(text))
        return texts

    folder = trained(tmp_path / "model", drawn(3, 50))
    domain, general = scored(folder, drawn(3, 100)), scored(folder, drawn(17, 100))

    assert max(value for value in domain if value) < min(value for value in general if value)


def test_reference_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reference: no word in its 2 texts"):
        trained(tmp_path / "model", ["", "…"])


def test_vocabulary_smaller_than_the_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocabulary: 5, but the reference has 8 distinct words"):
        trained(tmp_path / "model", CORPUS, vocabulary=5)


def test_references_of_a_config_are_its_own() -> None:
    sampled = PerplexityConfig.model_validate({"kind": "ngram", "reference": {"sample": "books", "documents": 10}})

    assert SIGNAL.references(sampled) == {"reference": Sample(sample="books", documents=10)}
    assert SIGNAL.references(config()) == {"reference": "reference/*.jsonl"}
