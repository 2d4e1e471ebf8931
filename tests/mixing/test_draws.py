"""Which tokens a stage takes, against a tape of tokens written out one by one."""

from __future__ import annotations

from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mixing import UserError
from mixing.draws import ComponentDraws, Documents, Drawn, round_tokens, shuffled

LENGTHS = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=12)


def documents_of(lengths: list[int], seed: int = 3) -> Documents:
    content = np.random.default_rng(seed).integers(0, 2**64, (len(lengths), 2), np.uint64)
    count = len(lengths)
    return Documents(np.arange(count, dtype=np.uint64), content, np.zeros(count, np.uint16), np.array(lengths, np.int64))


def draws_of(documents: Documents, cap: Any = 10**4, seed: int = 17) -> ComponentDraws:
    return ComponentDraws("domain", 0, documents, np.zeros(len(documents.row), np.uint16), seed, Fraction(str(cap)))


def tokens_of(drawn: Drawn) -> list[tuple[int, int, int]]:
    """(document, epoch, token) for every token drawn, in draw order."""
    rows = zip(*(column.tolist() for column in drawn.pieces), strict=True)
    return [(document, epoch, token) for document, start, length, epoch in rows for token in range(start, start + length)]


def tape(documents: Documents, tokens: int) -> list[tuple[int, int, int]]:
    """The cursor's tape: pass after pass of the shuffled component, token by token."""
    written: list[tuple[int, int, int]] = []
    for epoch in count():
        for document in reference_order(documents, [17, "domain", epoch]):
            written += [(document, epoch, token) for token in range(int(documents.tokens[document]))]
        if len(written) >= tokens:
            return written


def reference_order(documents: Documents, key: list[object]) -> list[int]:
    """The definition, with the reference implementation of xxh3: content hashed under the hash of the draw's name, then identity."""
    text = "[" + ",".join(f'"{part}"' if isinstance(part, str) else str(part) for part in key) + "]"
    seed = xxhash.xxh3_64_intdigest(text.encode())
    keys = [xxhash.xxh3_64_intdigest(content.astype("<u8").tobytes(), seed=seed) for content in documents.content]
    return sorted(range(len(keys)), key=lambda document: (keys[document], document))


def test_shuffled_order_is_xxh3_of_content_then_identity() -> None:
    documents = documents_of([1] * 500)
    documents.content[100:200] = documents.content[7]  # a hundred copies of one text
    members = np.arange(500, dtype=np.uint32)
    order = shuffled(members, documents.content, [17, "domain", "adapt", 3])
    assert order.tolist() == reference_order(documents, [17, "domain", "adapt", 3])


def test_shuffled_other_documents_gone_keeps_the_order_of_the_rest() -> None:
    documents = documents_of([1] * 100)
    order = shuffled(np.arange(100, dtype=np.uint32), documents.content, ["key"])
    fewer = shuffled(np.arange(0, 100, 3, dtype=np.uint32), documents.content, ["key"])
    assert fewer.tolist() == [document for document in order.tolist() if document % 3 == 0]


@settings(max_examples=100)
@given(LENGTHS, st.lists(st.integers(0, 90), min_size=1, max_size=6), st.integers(1, 3))
def test_cursor_stages_read_one_tape_without_gap_or_repeat(lengths: list[int], asked: list[int], rounds: int) -> None:
    documents = documents_of(lengths)
    draws = draws_of(documents)
    written = tape(documents, sum(asked))
    for number, tokens in enumerate(asked):
        drawn = draws.take(f"stage{number}", "cursor", round_tokens(tokens, rounds))
        assert tokens_of(drawn) == written[:tokens]
        # The budget cuts a document unless it ends where a document ends.
        ends = tokens > 0 and tokens < len(written) and written[tokens][:2] == written[tokens - 1][:2]
        assert drawn.cut_to_budget == ends
        written = written[tokens:]


@settings(max_examples=100)
@given(LENGTHS, st.integers(0, 60), st.integers(1, 60), st.integers(2, 5))
def test_fixed_rounds_repeat_the_first_ones_tokens(lengths: list[int], before: int, tokens: int, rounds: int) -> None:
    documents = documents_of(lengths)
    draws = draws_of(documents)
    draws.take("before", "cursor", [before])
    written = tape(documents, before + tokens)
    sizes = round_tokens(tokens, rounds)
    drawn = tokens_of(draws.take("stage", "fixed", sizes))
    for size in sizes:
        one, drawn = drawn[:size], drawn[size:]
        assert sorted((d, t) for d, _, t in one) == sorted((d, t) for d, _, t in written[before : before + size])
    assert not drawn
    # The cursor stands where the longest round ended.
    after = tokens_of(draws.take("after", "cursor", [5]))
    at = before + max(sizes)
    assert [(d, t) for d, _, t in after] == [(d, t) for d, _, t in tape(documents, at + 5)[at : at + 5]]


@settings(max_examples=100)
@given(
    LENGTHS,
    st.lists(st.tuples(st.sampled_from(["cursor", "fresh"]), st.integers(1, 4), st.integers(1, 99)), min_size=1, max_size=4),
    st.sampled_from([1, 1.5, 2, 3.25]),
)
def test_cursor_and_fresh_up_to_the_cap_always_find_their_tokens(
    lengths: list[int], stages: list[tuple[str, int, int]], cap: float
) -> None:
    documents = documents_of(lengths)
    draws = draws_of(documents, cap)
    left = draws.available
    assert left == sum(lengths) * Fraction(str(cap)) // 1
    seen: list[tuple[int, int, int]] = []
    for number, (draw, rounds, asked) in enumerate(stages):
        asked = min(asked, left)
        left -= asked
        drawn = tokens_of(draws.take(f"stage{number}", draw, round_tokens(asked, rounds)))
        assert len(drawn) == asked
        seen += drawn
    assert len(set(seen)) == len(seen)
    for document, length in enumerate(lengths):
        visits = [epoch for d, epoch, _ in seen if d == document]
        assert visits == sorted(visits)
        assert set(visits) == set(range(len(set(visits))))
        assert len(set(visits)) <= -(-cap // 1)
        assert all(token < length for d, _, token in seen if d == document)


def test_fresh_coverage_of_equal_documents_is_that_of_independent_draws() -> None:
    documents = documents_of([10] * 4000)
    share, rounds = 0.25, 4
    drawn = draws_of(documents).take("stage", "fresh", round_tokens(int(40_000 * share * rounds), rounds))
    covered = len(np.unique(drawn.pieces.document)) / 4000
    expected = 1 - (1 - share) ** rounds
    assert abs(covered - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_fresh_passes_over_documents_visited_often_enough() -> None:
    documents = documents_of([10] * 100)
    drawn = draws_of(documents, cap=1).take("stage", "fresh", [250, 250, 500])
    assert sorted(drawn.pieces.document.tolist()) == list(range(100))


def test_fixed_more_rounds_than_the_cap_is_a_shortage_with_its_figures() -> None:
    draws = draws_of(documents_of([10] * 10), cap=2)
    draws.take("before", "cursor", [50])
    with pytest.raises(
        UserError,
        match=r"stage 'adapt' asks 120 tokens of component 'domain' and finds 100: max_epochs 2 lets no document be visited more than 2 times",
    ):
        draws.take("adapt", "fixed", [60, 60])


def test_fixed_takes_documents_that_can_be_visited_in_every_round() -> None:
    draws = draws_of(documents_of([10] * 10), cap=2)
    first = draws.take("first", "fresh", [50]).pieces.document
    twice = draws.take("second", "fixed", [50, 50]).pieces.document
    assert sorted([*first.tolist() * 2, *twice.tolist()]) == sorted([*range(10)] * 2)


def test_round_tokens_of_seven_in_three_differ_by_one() -> None:
    assert round_tokens(7, 3) == [2, 2, 3]
    assert round_tokens(2, 4) == [0, 1, 0, 1]
