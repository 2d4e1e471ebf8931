"""Near- and exact duplicates over shards, against a plain all-pairs greedy written from the rule."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from duplicates import Decisions, Listed, all_pairs, decided, families, serial, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.dedup.banding import Buckets, emit
from curation.dedup.exact import exact_duplicates
from curation.dedup.minhash import MinhashConfig
from curation.dedup.near import near_duplicates
from curation.dedup.rare import count_shingles, lists_of, no_counts, prefix_lengths, rarest, ratio_of
from curation.dedup.runs import Shard
from curation.text.words import mix64_python


def near(
    texts: Sequence[str], threshold: float, *, shards: int = 3, seed: int = 0, range_bytes: int = 1 << 26
) -> tuple[Decisions, dict[str, int]]:
    with tempfile.TemporaryDirectory() as scratch:
        dealt: list[Shard] = list(shuffled(texts, shards, seed))
        paths = near_duplicates(dealt, MinhashConfig(threshold=threshold), Path(scratch), serial, range_bytes)
        return decided(dealt, paths), json.loads((Path(scratch) / "report.json").read_text())  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_near_duplicates_against_all_pairs_are_precise_and_nearly_complete(threshold: float) -> None:
    texts = families(11, 3000)
    similar, truth = all_pairs(texts, threshold)
    found, _ = near(texts, threshold)
    for row, (survivor, similarity) in found.items():
        assert similar[row][survivor] == similarity >= threshold
        assert survivor < row
        assert survivor not in found
    partners = [row for row, others in similar.items() if any(other not in found for other in others)]
    assert len(partners) > 300
    assert sum(row in found for row in partners) >= 0.99 * len(partners)
    assert len(set(found) ^ set(truth)) <= 0.02 * len(truth)


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([600, 5000, 1 << 26]))
def test_near_duplicates_any_sharding_and_ranges_decide_the_same(seed: int, shards: int, deal: int, range_bytes: int) -> None:
    texts = families(seed, 120)
    one, reported = near(texts, 0.75, shards=1)
    other, reported_other = near(texts, 0.75, shards=shards, seed=deal, range_bytes=range_bytes)
    assert other == one
    assert reported_other == reported


def test_near_duplicates_unrelated_documents_change_nothing() -> None:
    texts = families(5, 300)
    alone, _ = near(texts, 0.8)
    among, _ = near(texts + [f"unrelated {i} " * 3 + " ".join(f"u{i}x{j}" for j in range(50)) for i in range(200)], 0.8)
    assert among == alone
    assert alone


def test_near_duplicates_of_removed_documents_stay() -> None:
    chain = [" ".join(f"c{i}" for i in range(at, at + 40)) for at in (0, 3, 6, 9)]  # neighbours 33/39, two apart 30/42
    found, _ = near(chain, 0.8)
    assert found == {1: (0, 33 / 39), 3: (2, 33 / 39)}


def test_near_duplicates_survivor_is_most_similar_then_lowest_row() -> None:
    base = [f"b{i}" for i in range(104)]
    left, right = ["l0", *base[1:]], [*base[:-9], "r0"]  # 99/101 and 91/101 of the base's 100 shingles; 90/102 of each other
    found, _ = near([" ".join(right), " ".join(left), " ".join(base)], 0.9)
    assert found == {2: (1, 99 / 101)}
    twins = [" ".join(["l0", *base[1:-1]]), " ".join([*base[1:-1], "r0"]), " ".join(base[1:-1])]
    found, _ = near(twins, 0.98)
    assert found[2] == (0, 98 / 99)


def test_near_duplicates_short_wordless_and_chinese_texts_follow_the_definition() -> None:
    poem = "床前明月光疑是地上霜举头望明月低头思故乡"
    texts = [
        "",
        "...",
        "😀",
        "Hello",
        "hello!",
        "hello there",
        "Hello, there",
        "...",
        poem,
        "，".join(poem[i : i + 5] for i in range(0, 20, 5)),
        poem[1:] + "啊",
    ]
    found, _ = near(texts, 0.8)
    assert found == {4: (3, 1.0), 6: (5, 1.0), 9: (8, 1.0), 10: (8, 15 / 17)}


def test_near_duplicates_of_nothing_are_nothing(tmp_path: Path) -> None:
    assert near_duplicates([], MinhashConfig(), tmp_path / "a", serial) == []
    (path,) = near_duplicates([Listed("empty", ())], MinhashConfig(), tmp_path / "b", serial)
    assert len(np.load(path)) == 0
    (path,) = exact_duplicates([Listed("empty", ())], tmp_path / "c", serial)
    assert len(np.load(path)) == 0


def templated(pages: int, own: int) -> list[str]:
    """Pages of one template, each with `own` words of its own at its end."""
    template = " ".join(f"t{i}" for i in range(200))
    return [template + "".join(f" p{page}x{i}" for i in range(own)) for page in range(pages)]


def test_near_duplicates_of_one_template_take_few_comparisons() -> None:
    pages = 5000
    found, report = near(templated(pages, 1), 0.8)
    assert set(found) == set(range(1, pages))
    assert {survivor for survivor, _ in found.values()} == {0}
    assert report["candidates"] < 20 * pages  # all pairs would be 12.5 million
    assert report["pairs_given_up"] == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_near_duplicates_large_buckets_of_kept_and_removed_members_decide_as_all_pairs(seed: int) -> None:
    rng = random.Random(seed)
    template = [f"t{i}" for i in range(60)]
    pages = []
    for _ in range(400):
        page = list(template)
        for at in rng.sample(range(60), rng.randrange(7)):
            page[at] = f"{page[at]}v{rng.randrange(3)}"
        pages.append(" ".join(page))
    _, truth = all_pairs(pages, 0.5)
    found, report = near(pages, 0.5, seed=seed)
    assert set(found) == set(truth)
    assert 200 < len(truth) < 398
    assert report["rounds"] > 2


def test_near_duplicates_of_one_template_below_the_threshold_all_stay() -> None:
    pages = 300
    found, report = near(templated(pages, 40), 0.8)  # 196/276 = 0.71 of each other
    assert found == {}
    assert report["buckets_closed"] == 0


def test_near_duplicates_of_many_pages_of_one_template_that_stay_are_joined_by_what_is_their_own() -> None:
    pages = 4000
    texts = templated(pages, 40)
    copies = {page: 13 * page % 1000 for page in range(3000, 4000, 7)}  # of another page's own words, but two
    for page, other in copies.items():
        texts[page] = texts[other].rsplit(" ", 2)[0] + f" q{page} r{page}"

    found, report = near(texts, 0.8)

    assert {page: survivor for page, (survivor, _) in found.items()} == copies
    assert report["crowded"] >= pages - len(copies)
    assert report["verified"] < 100 * pages  # all pairs would be 8 million
    assert (report["buckets_closed"], report["pairs_given_up"]) == (0, 0)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8])
def test_near_duplicates_of_templated_pages_decide_as_all_pairs(threshold: float) -> None:
    """Pages of one template whose own parts come from a few hundred sentences, so that similarities lie on both sides of the threshold."""
    rng = random.Random(5)
    template = " ".join(f"t{i}" for i in range(90))
    sentences = [" ".join(f"s{number}w{i}" for i in range(12)) for number in range(120)]
    pages = [" ".join([template, *rng.sample(sentences, 4)]) for _ in range(900)]
    _, truth = all_pairs(pages, threshold)

    found, report = near(pages, threshold)

    assert set(found) == set(truth)
    assert truth or threshold == 0.8
    assert report["pairs_given_up"] == 0


@given(
    st.lists(st.frozensets(st.integers(0, 40), min_size=1, max_size=12), min_size=2, max_size=12),
    st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]),
)
def test_rarest_shingles_of_any_pair_that_reaches_the_threshold_meet(sets: list[frozenset[int]], threshold: float) -> None:
    values = np.array([mix64_python(value) for one in sets for value in sorted(one)], np.uint64)
    sizes = np.array([len(one) for one in sets])
    ends = np.cumsum(sizes)
    spans = np.stack([ends - sizes, ends], axis=1)
    counts = no_counts()
    count_shingles(values, spans, counts)
    lengths = prefix_lengths(sizes, threshold)

    postings, facts = rarest(values, spans, lengths, counts)
    keys = np.split(postings, np.cumsum(lengths)[:-1])
    rows = np.repeat(np.arange(len(sets), dtype=np.uint64), lengths)
    lists = lists_of(postings, rows, facts, ratio_of(threshold))
    met = emitted_pairs(lists, threshold)

    assert counts.sum() == len(values)
    for (a, one), (b, other) in combinations(enumerate(sets), 2):
        shared = set(keys[a].tolist()) & set(keys[b].tolist())
        if Fraction(len(one & other), len(one | other)) >= Fraction(str(threshold)):
            assert shared
            assert (a, b) in met
        elif (a, b) in met:
            assert shared


def emitted_pairs(buckets: Buckets, threshold: float) -> set[tuple[int, int]]:
    """All pairs of these buckets in one go."""
    lower, upper = np.empty(10_000, np.uint64), np.empty(10_000, np.uint64)
    lead = np.diff(buckets.offsets)
    count = emit(*buckets, ratio_of(threshold), lead, np.zeros(3, np.int64), lower, upper)
    return set(zip(lower[:count].tolist(), upper[:count].tolist(), strict=True))


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from(["", "a", "A", "b", "c", "long " * 30, "中文"]), max_size=40),
    st.integers(1, 5),
    st.sampled_from([100, 1 << 26]),
)
def test_exact_duplicates_survivor_is_the_first_row_of_equal_content(texts: list[str], shards: int, range_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        dealt = shuffled(texts, shards, len(texts))
        found = decided(dealt, exact_duplicates(dealt, Path(scratch), serial, range_bytes))
    assert found == {row: (texts.index(text), 1.0) for row, text in enumerate(texts) if texts.index(text) < row}
