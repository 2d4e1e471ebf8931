"""Duplicates of the members of an index, against the rule in plain Python: members stay and have priority over every document."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from duplicates import Decisions, Listed, all_pairs, decided, families, plain_shingles, serial, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.dedup.exact import exact_duplicates
from curation.dedup.minhash import MinhashConfig
from curation.dedup.near import near_duplicates
from curation.dedup.ranks import rank
from curation.dedup.runs import FOREIGN

MEMBER = int(FOREIGN)


shingled = lru_cache(maxsize=None)(plain_shingles)


def jaccard(one: str, other: str) -> float:
    a, b = shingled(one), shingled(other)
    return len(a & b) / len(a | b) if a and b else 0.0


def parts_of(texts: list[str], parts: int) -> list[Listed]:
    """The members of an index in their order, cut into parts."""
    cuts = np.linspace(0, len(texts), parts + 1).astype(int).tolist()
    return [Listed(f"part-{i}", tuple(enumerate(texts))[cuts[i] : cuts[i + 1]]) for i in range(parts)]


def near(
    members: list[str], texts: list[str], threshold: float, *, parts: int = 2, shards: int = 3, range_bytes: int = 1 << 26
) -> Decisions:
    with tempfile.TemporaryDirectory() as scratch:
        dealt = shuffled(texts, shards, len(texts))
        config = MinhashConfig(threshold=threshold)
        return decided(dealt, near_duplicates(dealt, config, Path(scratch), serial, range_bytes, index=parts_of(members, parts)))


def expected(members: list[str], texts: list[str], threshold: float) -> set[int]:
    """Who is removed: whoever resembles a member; of the rest, by the rule among themselves."""
    known = {row for row, text in enumerate(texts) if any(jaccard(text, member) >= threshold for member in members)}
    rest = [row for row in range(len(texts)) if row not in known]
    _, among = all_pairs([texts[row] for row in rest], threshold)
    return known | {rest[row] for row in among}


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_of_members_and_of_each_other_are_those_of_the_rule(seed: int) -> None:
    everything = families(seed, 700)
    members, texts = everything[::4], [text for at, text in enumerate(everything) if at % 4]
    threshold = 0.7

    found = near(members, texts, threshold)

    truth = expected(members, texts, threshold)
    assert len(truth ^ set(found)) <= 0.02 * len(truth)  # what the bands may give up
    of_members = {row: one for row, one in found.items() if one[0] >= MEMBER}
    assert min(len(of_members), len(found) - len(of_members)) > 20
    for row, (survivor, similarity) in found.items():
        other = members[survivor - MEMBER] if survivor >= MEMBER else texts[survivor]
        assert similarity == jaccard(texts[row], other) >= threshold
        assert survivor >= MEMBER or (survivor < row and survivor not in found)
    assert near(members, texts, threshold, parts=5, shards=1, range_bytes=4000) == found


def test_near_duplicates_of_a_member_that_resembles_another_member_are_removed() -> None:
    """a - b - c, each like the next alone: if b were removed for a, c would stay."""
    words = [f"w{i}" for i in range(60)]
    a, b, c = (" ".join(words[at : at + 50]) for at in (0, 5, 10))
    assert jaccard(a, b) >= 0.8 > jaccard(a, c)

    assert near([a, b], [c], 0.8) == {0: (MEMBER + 1, jaccard(b, c))}
    assert near([a], [b, c], 0.8) == {0: (MEMBER, jaccard(a, b))}


def test_near_duplicates_of_members_from_one_template_take_few_comparisons(tmp_path: Path) -> None:
    template = " ".join(f"t{i}" for i in range(200))

    def page(number: int) -> str:
        return template + "".join(f" p{number}x{i}" for i in range(40))  # 0.71 of each other

    members = [page(number) for number in range(1500)]
    texts = [page(5000 + at) if at % 10 else members[at] + " end" for at in range(1500)]
    dealt = shuffled(texts, 2, 1)

    found = decided(dealt, near_duplicates(dealt, MinhashConfig(), tmp_path, serial, index=parts_of(members, 2)))

    assert {row: survivor - MEMBER for row, (survivor, _) in found.items()} == {at: at for at in range(0, 1500, 10)}
    report = (tmp_path / "report.json").read_text()
    assert '"members_of_the_index": 1500' in report
    assert '"documents": 1500' in report
    assert '"pairs_given_up": 0' in report


def test_near_duplicates_with_a_priority_prefer_members_to_the_best(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(100)]
    member, one, two, three = (" ".join([*words[:-1], last]) for last in ("m", "x", "y", "z"))
    other = " ".join(f"o{i}" for i in range(100))
    texts = [other, one, other + " end", two, three]
    dealt = shuffled(texts, 2, 3)

    def keys(shard: Listed) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return -shard.rows().astype(np.float64)

    ranks = rank(dealt, [0, 0], keys, tmp_path / "ranks", lambda function, tasks: [function(*task) for task in tasks])
    found = decided(dealt, near_duplicates(dealt, MinhashConfig(), tmp_path / "near", serial, ranks=ranks, index=parts_of([member], 1)))

    assert {row: survivor for row, (survivor, _) in found.items()} == {0: 2, 1: MEMBER, 3: MEMBER, 4: MEMBER}


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["", "a", "A", "b", "c", "d d", "D, d"]), max_size=8),
    st.lists(st.sampled_from(["", "a", "A", "b", "c", "d d", "D, d", "e"]), max_size=30),
    st.sampled_from(["text", "normalized"]),
    st.sampled_from([100, 1 << 26]),
)
def test_exact_duplicates_of_members_name_the_first_and_the_rest_stay_as_they_were(
    members: list[str], texts: list[str], by: str, range_bytes: int
) -> None:
    def key(text: str) -> object:
        return text if by == "text" else next(iter(plain_shingles(text)), None)

    expected: Decisions = {}
    for row, text in enumerate(texts):
        if key(text) is None:
            continue
        for place, other in [(MEMBER + at, one) for at, one in enumerate(members)] + list(enumerate(texts[:row])):
            if key(other) == key(text):
                expected[row] = (place, 1.0)
                break

    with tempfile.TemporaryDirectory() as scratch:
        dealt = shuffled(texts, 2, len(texts))
        index = parts_of(members, 2)
        found = decided(dealt, exact_duplicates(dealt, Path(scratch), serial, range_bytes, by=by, index=index))  # type: ignore[arg-type]

    assert found == expected


def test_near_duplicates_of_unrelated_members_are_those_without_an_index() -> None:
    texts = families(9, 500)
    strangers = [" ".join(f"q{seed}v{i}" for i in range(80)) for seed in range(300)]

    assert near(strangers, texts, 0.7) == near([], texts, 0.7)


def test_near_duplicates_after_unrelated_documents_were_added_decide_the_rest_as_before() -> None:
    texts = families(11, 500)
    strangers = [" ".join(f"q{seed}v{i}" for i in range(80)) for seed in range(300)]
    strangers += [text + " end" for text in strangers[::7]]
    alone = near([], texts, 0.7)

    mixed = [
        text for pair in zip(texts, strangers + [""] * len(texts), strict=False) for text in pair
    ]  # between them, so that every row is another
    together = near([], mixed, 0.7, shards=4)

    assert {row // 2: (survivor // 2, similarity) for row, (survivor, similarity) in together.items() if row % 2 == 0} == alone
    assert all(survivor % 2 == row % 2 for row, (survivor, _) in together.items())
