"""Weights to shares to whole tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixing import UserError
from mixing.strategies import largest_remainder, plain


def test_plain_weights_of_any_scale_become_shares() -> None:
    assert plain({"domain": 40, "replay": 8}) == {"domain": 0.833333333, "replay": 0.166666667}


def test_plain_share_below_a_billionth_is_refused() -> None:
    with pytest.raises(UserError, match="tiny has a share below 1e-9"):
        plain({"all": 1.0, "tiny": 1e-10})


def test_largest_remainder_equal_remainders_go_to_the_first_named() -> None:
    assert largest_remainder({"a": 0.25, "b": 0.25, "c": 0.5}, 5) == {"a": 1, "b": 1, "c": 3}
    assert largest_remainder({"a": 0.5, "b": 0.5}, 7) == {"a": 4, "b": 3}


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.integers(1, 10**13))
def test_largest_remainder_random_shares_sum_exactly_and_miss_by_less_than_one(weights: list[float], tokens: int) -> None:
    shares = plain({str(i): weight for i, weight in enumerate(weights)})
    quotas = largest_remainder(shares, tokens)
    assert sum(quotas.values()) == tokens
    parts = {name: round(share * 10**9) for name, share in shares.items()}
    total = sum(parts.values())
    assert all(abs(quota * total - tokens * parts[name]) < total for name, quota in quotas.items())
