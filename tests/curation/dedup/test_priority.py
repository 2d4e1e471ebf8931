"""Normalised keys and declared priority, against plain Python written from the rules."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from duplicates import Decisions, Listed, all_pairs, decided, families, serial, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.dedup.exact import ExactConfig, exact_duplicates, normalized
from curation.dedup.minhash import MinhashConfig
from curation.dedup.near import near_duplicates
from curation.dedup.ranks import Ranks, behind, open_run, rank
from curation.text.words import words

NAN = float("nan")


@dataclass(frozen=True)
class Values:
    """A sort key per row; picklable."""

    of_row: tuple[float, ...]

    def __call__(self, shard: Listed) -> npt.NDArray[np.float64]:
        return np.array([self.of_row[int(row)] for row in shard.rows()], np.float64)


def dealt_by_source(texts: Sequence[str], sources: Sequence[int], shards: int, seed: int) -> tuple[list[Listed], list[int]]:
    """Shards of one source each, in order of the sources."""
    rng = random.Random(seed)
    found: list[Listed] = []
    owners: list[int] = []
    for source in sorted(set(sources)):
        parts: list[list[tuple[int, str]]] = [[] for _ in range(shards)]
        for row, text in enumerate(texts):
            if sources[row] == source:
                parts[rng.randrange(shards)].append((row, text))
        for number, part in enumerate(parts):
            rng.shuffle(part)  # a shard of several files is not in order of its rows
            found.append(Listed(f"{source}-{number}", tuple(part)))
            owners.append(source)
    return found, owners


def preferred(sources: Sequence[int], keys: Sequence[float]) -> list[int]:
    """Rows from the most to the least preferred: source, key with NaN last, row."""
    return sorted(
        range(len(sources)), key=lambda row: (sources[row], keys[row] != keys[row], 0.0 if keys[row] != keys[row] else keys[row], row)
    )


def near_by(texts: Sequence[str], sources: Sequence[int], keys: Sequence[float], shards: int, seed: int, range_bytes: int) -> Decisions:
    with tempfile.TemporaryDirectory() as scratch:
        dealt, owners = dealt_by_source(texts, sources, shards, seed)
        ranks = rank(dealt, owners, Values(tuple(keys)), Path(scratch) / "ranks", serial, range_bytes)
        return decided(dealt, near_duplicates(dealt, MinhashConfig(threshold=0.7), Path(scratch) / "near", serial, range_bytes, ranks))


def ranked_rows(ranks: Ranks) -> list[int]:
    return [row for part in ranks.parts for row in open_run(part)[0].tolist()]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([NAN, -0.0, 0.0, 1.5, -2.0, float("inf"), float("-inf"), 5e-324, 1e300])), max_size=60
    ),
    st.integers(1, 3),
    st.integers(0, 9),
    st.sampled_from([48, 200, 1 << 26]),
)
def test_rank_any_dealing_and_ranges_is_a_plain_sort(rows: list[tuple[int, float]], shards: int, seed: int, range_bytes: int) -> None:
    sources, keys = [source for source, _ in rows], [key for _, key in rows]
    dealt, owners = dealt_by_source([""] * len(rows), sources, shards, seed)
    with tempfile.TemporaryDirectory() as scratch:
        ranks = rank(dealt, owners, Values(tuple(keys)), Path(scratch) / "ranks", serial, range_bytes)
        expected = preferred(sources, keys)
        assert ranked_rows(ranks) == expected
        for shard, over in zip(dealt, behind(dealt, ranks, 0), strict=True):
            assert [expected[int(one)] for one in over.rows()] == shard.rows().tolist()


def test_rank_of_equal_keys_stays_within_its_ranges() -> None:
    count, range_bytes = 5000, 6000
    dealt, owners = dealt_by_source([""] * count, [0] * count, 3, 1)
    with tempfile.TemporaryDirectory() as scratch:
        ranks = rank(dealt, owners, Values((NAN,) * count), Path(scratch) / "ranks", serial, range_bytes)
        assert ranked_rows(ranks) == list(range(count))
        assert max(open_run(part).shape[1] for part in ranks.parts) * 24 < 2 * range_bytes


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_by_priority_decide_as_all_pairs_in_its_order(seed: int) -> None:
    rng = random.Random(seed)
    texts = families(seed, 1200)
    sources = [row * 3 // len(texts) for row in range(len(texts))]
    keys = [rng.choice([NAN, float(rng.randrange(20))]) for _ in texts]
    order = preferred(sources, keys)
    similar, truth = all_pairs([texts[row] for row in order], 0.7)
    expected = {order[removed]: (order[survivor], similarity) for removed, (survivor, similarity) in truth.items()}

    found = near_by(texts, sources, keys, 1 + seed, seed, [1 << 26, 5000][seed % 2])

    assert len(set(found) ^ set(expected)) <= 0.02 * len(expected)
    assert len(expected) > 100
    place = {row: number for number, row in enumerate(order)}
    for removed, (survivor, similarity) in found.items():
        assert place[survivor] < place[removed]
        assert survivor not in found
        assert similar[place[removed]][place[survivor]] == similarity >= 0.7
    assert sum(survivor > removed for removed, (survivor, _) in found.items()) > 20  # what rows alone would never decide
    assert found == near_by(texts, sources, keys, 2, seed + 1, 9000)


def normal(text: str) -> tuple[str, ...]:
    return tuple(words(text))


TEXTS = ["", "...", "😀", "a b", "A  b!", "a-B\n", "ab", "b a", "ΟΔΟΣ", "οδοσ", "中文", "中, 文", "a b c"]


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from([NAN, 1.0, 2.0])), max_size=40),
    st.integers(1, 4),
    st.sampled_from([100, 1 << 26]),
)
def test_exact_duplicates_of_normalised_keys_keep_the_preferred_of_equal_words(
    documents: list[tuple[str, float]], shards: int, range_bytes: int
) -> None:
    texts, keys = [text for text, _ in documents], [key for _, key in documents]
    order = preferred([0] * len(texts), keys)
    first: dict[tuple[str, ...], int] = {}
    for row in order:
        first.setdefault(normal(texts[row]), row)

    with tempfile.TemporaryDirectory() as scratch:
        dealt, owners = dealt_by_source(texts, [0] * len(texts), shards, len(texts))
        ranks = rank(dealt, owners, Values(tuple(keys)), Path(scratch) / "ranks", serial, range_bytes)
        found = decided(dealt, exact_duplicates(dealt, Path(scratch) / "exact", serial, range_bytes, by="normalized", ranks=ranks))

    assert found == {row: (first[normal(text)], 1.0) for row, text in enumerate(texts) if normal(text) and first[normal(text)] != row}


def test_exact_duplicates_of_normalised_keys_without_priority_keep_the_first_row(tmp_path: Path) -> None:
    texts = ["Hello, World", "...", "hello world", "HELLO WORLD!", "hello worlds", "..."]
    dealt = shuffled(texts, 2, 1)
    assert decided(dealt, exact_duplicates(dealt, tmp_path, serial, by="normalized")) == {2: (0, 1.0), 3: (0, 1.0)}


@given(st.text(st.sampled_from("aAbİ中 ,.\n"), max_size=12), st.text(st.sampled_from("aAbİ中 ,.\n"), max_size=12))
def test_normalized_keys_are_equal_where_the_words_are_and_null_without_one(one: str, other: str) -> None:
    keys = normalized(pa.array([one, other], pa.large_string())).to_pylist()
    assert (keys[0] == keys[1]) == (normal(one) == normal(other))
    assert [key is None for key in keys] == [not normal(one), not normal(other)]


def test_preference_keys_that_are_not_written_are_not_spelled() -> None:
    assert MinhashConfig(threshold=0.7).model_dump() == {"kind": "minhash", "threshold": 0.7}
    assert ExactConfig(kind="exact").model_dump() == {"kind": "exact"}
    written = ExactConfig(kind="exact", by="normalized", priority="score").model_dump()
    assert written == {"kind": "exact", "by": "normalized", "priority": "score", "order": "descending"}
    with pytest.raises(ValidationError, match="order says nothing without priority"):
        MinhashConfig.model_validate({"order": "ascending"})
