"""Band parameters, bucket keys, and the rounds of large buckets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.dedup import banding as banding_module
from curation.dedup.banding import SMALL, Buckets, band_keys, banding, emit, group, leave, live, next_leaders
from curation.dedup.settling import REMOVED

Pairs = list[tuple[int, int]]
MOST = 1000


@pytest.mark.parametrize(("threshold", "expected"), [(0.7, (32, 4)), (0.8, (21, 6)), (0.9, (14, 9)), (1.0, (1, 128))])
def test_banding_at_a_threshold_is_the_longest_that_reaches_recall(threshold: float, expected: tuple[int, int]) -> None:
    bands, rows = banding(threshold)
    assert (bands, rows) == expected
    assert 1 - (1 - threshold**rows) ** bands >= 0.995
    assert rows == 128 or 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.995


def one_bucket(size: int) -> Buckets:
    return group(np.zeros(size, np.uint64), np.arange(size, dtype=np.uint64)[::-1].copy())


def emitted(buckets: Buckets, wave: int, room: int) -> Pairs:
    place = np.zeros(3, np.int64)
    lower, upper = np.empty(room, np.uint64), np.empty(room, np.uint64)
    pairs: Pairs = []
    while count := emit(*buckets, (4, 5), next_leaders(buckets, wave), place, lower, upper):
        pairs += zip(lower[:count].tolist(), upper[:count].tolist(), strict=True)
    return pairs


def test_band_keys_equal_bands_only_share_a_key() -> None:
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 2, (60, 128), dtype=np.uint32)  # few values, so that bands meet
    keys = band_keys(signatures, 25, 5)
    for band, other in itertools.product(range(25), repeat=2):
        equal = (signatures[:, None, band * 5 : band * 5 + 5] == signatures[None, :, other * 5 : other * 5 + 5]).all(axis=2)
        assert ((keys[band][:, None] == keys[other][None]) == (equal & (band == other))).all()


@settings(max_examples=50)
@given(st.lists(st.integers(0, 12), max_size=40))
def test_group_random_keys_gives_the_shared_ones(keys: list[int]) -> None:
    rows = np.arange(len(keys), dtype=np.uint64)[::-1].copy()
    buckets = group(np.array(keys, np.uint64), rows)
    found = [buckets.members[a:b].tolist() for a, b in itertools.pairwise(buckets.offsets)]
    expected = [sorted(int(rows[i]) for i, k in enumerate(keys) if k == key) for key in sorted(set(keys)) if keys.count(key) > 1]
    assert found == expected


@pytest.mark.parametrize("size", [2, 3, SMALL, SMALL + 1, 100, MOST, MOST + 1, MOST + 60])
def test_emit_bucket_of_kept_members_gives_each_pair_once_and_counts_the_rest(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(banding_module, "MOST_LEADERS", MOST)
    buckets, pairs, closed, given_up = one_bucket(size), list[tuple[int, int]](), 0, 0
    for wave in itertools.count():
        if not len(buckets.leaders):
            break
        pairs += emitted(buckets, wave, 1000)
        left = leave(buckets, next_leaders(buckets, wave))
        settled = size - len(left.waiting)
        compared = set(pairs)
        assert left.closed or all((a, settled - 1) in compared for a in range(settled - 1))
        buckets, closed, given_up = left.buckets, closed + left.closed, given_up + left.given_up
    expected = {pair for pair in itertools.combinations(range(size), 2) if pair[0] < MOST}
    assert len(pairs) == len(expected)
    assert set(pairs) == expected
    beyond = max(size - MOST, 0)
    assert (closed, given_up) == (beyond > 1, beyond * (beyond - 1) // 2)


def test_live_removed_members_leave_and_leaders_are_recounted() -> None:
    buckets = Buckets(np.array([3, 5, 8, 9, 1, 2], np.uint64), np.array([0, 4, 6]), np.array([2, 1]))
    status = np.zeros(10, np.uint8)
    status[[5, 9, 1]] = REMOVED
    after = live(buckets, status)
    assert [after.members.tolist(), after.offsets.tolist(), after.leaders.tolist()] == [[3, 8, 2], [0, 2, 3], [1, 0]]
