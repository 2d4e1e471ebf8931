"""Weights to shares to whole tokens: closed forms, published numbers, and properties over random sizes and caps."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixing import UserError
from mixing.strategies import named, parse, weigh
from mixing.strategies.reference import RATES
from mixing.strategies.shares import Supply, in_billionths, largest_remainder, plain, settled, water_fill, whole

SIZES = st.lists(st.integers(1, 10**12), min_size=1, max_size=12)


def supply_of(sizes: list[int] | dict[str, int], tokens: int = 1000, cap: float = 1) -> Supply:
    by_name = sizes if isinstance(sizes, dict) else {f"c{number}": size for number, size in enumerate(sizes)}
    return Supply(Fraction(tokens), by_name, {name: math.floor(Fraction(str(cap)) * size) for name, size in by_name.items()})


def shares_of(weights: dict[str, Any], supply: Supply) -> dict[str, float]:
    return in_billionths(weigh(parse(weights), supply))


# --- shares and tokens


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


def test_water_fill_what_one_may_not_have_goes_to_the_others_in_proportion() -> None:
    weights = {"a": Fraction(6), "b": Fraction(3), "c": Fraction(1)}
    found = water_fill(weights, Fraction(100), {"c": Fraction(20)}, {"a": Fraction(50)})
    assert found == {"a": 50, "b": 30, "c": 20}
    assert water_fill(weights, Fraction(100), {}, {"a": Fraction(40)}) == {"a": 40, "b": 45, "c": 15}
    full = {"a": Fraction(5), "b": Fraction(50), "c": Fraction(1)}
    assert water_fill(weights, Fraction(56), {}, full) == full
    assert water_fill(weights, Fraction(56), full, {}) == full
    none = {"a": Fraction(1), "b": Fraction(0), "c": Fraction(0)}
    assert water_fill(none, Fraction(10), {"b": Fraction(3)}, {"c": Fraction(5)}) == {"a": 7, "b": 3, "c": 0}


@given(st.data())
def test_water_fill_random_bounds_sum_keep_the_bounds_and_leave_the_rest_proportional(data: st.DataObject) -> None:
    names = [f"c{number}" for number in range(data.draw(st.integers(1, 8)))]
    weights = {name: Fraction(data.draw(st.integers(1, 1000))) for name in names}
    low = {name: Fraction(data.draw(st.integers(0, 50))) for name in names if data.draw(st.booleans())}
    high = {name: low.get(name, 0) + Fraction(data.draw(st.integers(0, 100))) for name in names if data.draw(st.booleans())}
    least = sum(low.values(), Fraction(0))
    most = sum(high.values(), Fraction(0)) if len(high) == len(names) else least + 500
    total = least + (most - least) * Fraction(data.draw(st.integers(0, 16)), 16)

    found = water_fill(weights, total, low, high)

    assert sum(found.values()) == total
    assert all(low.get(name, 0) <= found[name] <= high.get(name, total) for name in names)
    # One level for all that stand at no bound; those at a lower one stand above it, those at an upper one below.
    free = {found[name] / weights[name] for name in names if found[name] not in (low.get(name, 0), high.get(name))}
    assert len(free) <= 1
    for level in free:
        assert all(found[name] / weights[name] >= level for name in names if found[name] == low.get(name) != high.get(name))
        assert all(found[name] / weights[name] <= level for name in names if found[name] == high.get(name) != low.get(name))


@given(st.lists(st.fractions(0, 1000), min_size=1, max_size=9))
def test_whole_amounts_sum_exactly_and_move_by_less_than_one(parts: list[Fraction]) -> None:
    amounts = {str(index): part for index, part in enumerate(parts)}
    amounts["rest"] = math.ceil(sum(parts)) - sum(parts)
    found = whole(amounts)
    assert sum(found.values()) == sum(amounts.values())
    assert all(abs(found[name] - amount) < 1 for name, amount in amounts.items())


def test_settled_shares_of_a_large_stage_keep_a_cap_that_rounding_passes() -> None:
    # A third of 1e13 tokens is 3,333,333,333,333 and rounds to a share of 3,333,333,330,000 or 3,333,333,340,000.
    tokens, cap = 10**13, 3_333_333_335_000
    shares = {"a": 0.333333334, "b": 0.666666666}
    assert largest_remainder(shares, tokens)["a"] > cap
    assert largest_remainder(settled(shares, tokens, {}, {"a": cap}), tokens) == {"a": 3_333_333_330_000, "b": 6_666_666_670_000}
    with pytest.raises(UserError, match="keep these bounds: a 0 to 3,333,333,335,000"):
        settled({"a": 1.0}, tokens, {}, {"a": cap})


# --- by size


@given(SIZES)
def test_proportional_and_equal_random_sizes_are_their_closed_forms(sizes: list[int]) -> None:
    supply = supply_of(sizes)
    assert weigh(parse({"strategy": "proportional"}), supply) == {f"c{i}": Fraction(size, sum(sizes)) for i, size in enumerate(sizes)}
    assert set(weigh(parse({"strategy": "equal"}), supply).values()) == {Fraction(1, len(sizes))}


def test_temperature_of_two_takes_square_roots() -> None:
    supply = supply_of({"large": 900, "small": 100})
    assert shares_of({"strategy": "temperature", "temperature": 2}, supply) == {"large": 0.75, "small": 0.25}
    assert shares_of({"strategy": "temperature", "exponent": 0.5}, supply) == {"large": 0.75, "small": 0.25}


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_temperature_ends_are_proportional_and_equal(sizes: list[int]) -> None:
    supply = supply_of(sizes)
    warm = weigh(parse({"strategy": "temperature", "exponent": 0}), supply)
    assert warm == weigh(parse({"strategy": "equal"}), supply)
    cold = weigh(parse({"strategy": "temperature", "temperature": 1}), supply)
    assert {name: float(share) for name, share in cold.items()} == pytest.approx(
        {name: float(share) for name, share in weigh(parse({"strategy": "proportional"}), supply).items()}, rel=1e-12
    )


def test_unimax_small_components_stand_at_the_cap_and_the_others_are_equal() -> None:
    # By hand, arXiv 2304.09151: budget 1000, cap 2. c1 gets min(1000/4, 20), then c3 min(980/3, 200), c0 and c2 share 780.
    supply = supply_of({"c0": 10_000, "c1": 10, "c2": 500, "c3": 100})
    assert shares_of({"strategy": "unimax", "max_epochs": 2}, supply) == {"c0": 0.39, "c1": 0.02, "c2": 0.39, "c3": 0.2}


@given(SIZES, st.integers(1, 10**13), st.sampled_from([0.5, 1, 2.5, 10]))
def test_unimax_random_sizes_is_the_max_min_fair_allocation(sizes: list[int], tokens: int, cap: float) -> None:
    supply = supply_of(sizes, tokens)
    ceiling = [size * Fraction(str(cap)) for size in sizes]
    found = list(weigh(parse({"strategy": "unimax", "max_epochs": cap}), supply).values())
    if sum(ceiling) <= tokens:
        assert found == [one / sum(ceiling) for one in ceiling]  # the paper's p: what was taken, normalised
    else:
        # Its definition: at the cap, or at the largest amount of all.
        amounts = [share * tokens for share in found]
        assert all(amount == min(one, max(amounts)) for amount, one in zip(amounts, ceiling, strict=True))
        assert sum(amounts) == tokens


def test_unimax_without_a_cap_of_its_own_takes_what_the_mixture_still_allows() -> None:
    supply = Supply(Fraction(100), {"a": 50, "b": 60}, {"a": 20, "b": 500})
    assert shares_of({"strategy": "unimax"}, supply) == {"a": 0.2, "b": 0.8}


def test_component_without_tokens_cannot_be_weighed_by_its_size() -> None:
    with pytest.raises(UserError, match="component 'b' has no tokens to be weighed by; leave it out of `components`"):
        shares_of({"strategy": "proportional"}, supply_of({"a": 5, "b": 0}))
    assert shares_of({"strategy": "proportional", "components": ["a"]}, supply_of({"a": 5, "b": 0})) == {"a": 1.0}


# --- groups and replay

CHINESE = {"web": 70, "encyclopedia": 5, "book": 20, "qa": 5}
ENGLISH = {"web": 40, "encyclopedia": 5, "book": 15, "qa": 5, "paper": 10, "math": 10, "code": 15}


def languages(chinese: float, english: float, **more: float) -> dict[str, Any]:
    return {
        "cn": {"weight": chinese, "components": {f"cn-{name}": weight for name, weight in CHINESE.items()}},
        "en": {"weight": english, "components": {f"en-{name}": weight for name, weight in ENGLISH.items()}},
        **more,
    }


def test_nested_groups_reproduce_the_token_table_of_llama_3_syne() -> None:
    # arXiv 2407.18743: 92.5B tokens at cn:en = 2:8, then 7.5B at cn:en:synthetic = 1:7:2. Billions of tokens by source, from its own calculator.
    names = [f"cn-{name}" for name in CHINESE] + [f"en-{name}" for name in ENGLISH] + ["synthetic"]
    supply = supply_of(dict.fromkeys(names, 1))
    stages = [(92_500_000_000, languages(2, 8)), (7_500_000_000, languages(1, 7, synthetic=2))]
    totals = dict.fromkeys(["web", "encyclopedia", "book", "qa", "paper", "math", "code", "synthetic"], 0)
    shares = [shares_of(weights, supply) for _, weights in stages]
    for share, (tokens, _) in zip(shares, stages, strict=True):
        for name, count in largest_remainder(share, tokens).items():
            totals[name.rpartition("-")[2]] += count
    first = {f"cn-{name}": 0.2 * weight / 100 for name, weight in CHINESE.items()} | {f"en-{n}": 0.8 * w / 100 for n, w in ENGLISH.items()}
    assert shares[0] == pytest.approx(first, abs=1e-9)
    assert {name: count / 1e9 for name, count in totals.items()} == {
        "web": 45.175,
        "encyclopedia": 4.925,
        "book": 15.7375,
        "qa": 4.925,
        "paper": 7.925,
        "math": 7.925,
        "code": 11.8875,
        "synthetic": 1.5,
    }


def test_group_holds_groups_and_strategies_and_its_share_of_the_budget() -> None:
    weights = {
        "own": 1,
        "general": {"weight": 3, "components": {"code": 1, "prose": {"weight": 2, "components": {"strategy": "unimax", "max_epochs": 1}}}},
    }
    # Prose is half the tokens, 500: wiki has only 100 of them and is read once, books take the other 400. What stands outside is not in it.
    supply = supply_of({"own": 10**6, "code": 10**6, "wiki": 100, "books": 10**6})
    assert shares_of(weights, supply) == {"own": 0.25, "code": 0.25, "wiki": 0.1, "books": 0.4}


def test_replay_takes_its_share_and_leaves_the_others_to_another_strategy() -> None:
    weights = {
        "strategy": "replay",
        "share": 0.2,
        "replay": {"strategy": "proportional", "components": ["wiki", "books"]},
        "rest": {"strategy": "equal"},
    }
    supply = supply_of({"law": 5, "wiki": 300, "books": 100, "tax": 50})
    assert shares_of(weights, supply) == {"law": 0.4, "wiki": 0.15, "books": 0.05, "tax": 0.4}
    # 800 of the 1000 tokens are for the rest: all 300 of law, and 500 of tax.
    capped = {"strategy": "replay", "share": 0.2, "replay": {"wiki": 1}, "rest": {"strategy": "unimax"}}
    assert shares_of(capped, supply_of({"law": 300, "wiki": 300, "tax": 900})) == {"law": 0.3, "wiki": 0.2, "tax": 0.5}


@pytest.mark.parametrize(
    ("weights", "known", "found"),
    [
        ({"a": 1.0, "g": {"weight": 1, "components": {"b": 1, "c": 1}}}, "abcd", "abc"),
        ({"a": 1.0, "g": {"weight": 1, "components": {"strategy": "equal"}}}, "abc", "abc"),
        ({"strategy": "replay", "share": 0.1, "replay": {"b": 1}, "rest": {"strategy": "equal"}}, "abc", "bac"),
        ({"strategy": "equal", "components": ["c"]}, "abc", "c"),
    ],
)
def test_named_components_of_nested_weights_are_those_written_and_those_left(weights: dict[str, Any], known: str, found: str) -> None:
    assert named(parse(weights), list(known)) == list(found)


# --- reference rates


def test_reference_rates_of_llama_without_the_web_are_82_percent_domain() -> None:
    components = {"code": "github", "curated": ["wikipedia", "books"], "papers": "arxiv", "forum": "stackexchange"}
    weights = {"strategy": "reference_rates", "rates": "llama", "domain": "medical", "components": components}
    supply = supply_of(dict.fromkeys(["medical", "code", "curated", "papers", "forum"], 1))
    assert shares_of(weights, supply) == {"medical": 0.82, "code": 0.045, "curated": 0.09, "papers": 0.025, "forum": 0.02}


def test_reference_rates_of_ones_own_move_what_is_replaced() -> None:
    weights = {
        "strategy": "reference_rates",
        "rates": {"crawl": 3, "wiki": 1},
        "domain": "law",
        "replace": ["crawl"],
        "components": {"w": "wiki"},
    }
    assert shares_of(weights, supply_of({"law": 1, "w": 1})) == {"law": 0.75, "w": 0.25}


@pytest.mark.parametrize("name", ["llama", "pile", "llama-3"])
def test_published_rates_in_percent_sum_to_a_hundred(name: str) -> None:
    assert sum(Fraction(str(rate)) for rate in RATES[name].shares.values()) == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"components": {"w": "wikipedia"}}, "no component stands for github, books, arxiv, stackexchange; map each under `components`"),
        ({"components": {"w": ["wikipedia", "wiki"]}}, "the rates have no source 'wiki'; they have: commoncrawl, c4, github"),
        ({"components": {"w": "wikipedia", "v": "wikipedia"}}, "source 'wikipedia' has two places"),
        ({"rates": {"a": 1}}, "rates of your own need `replace`"),
    ],
)
def test_reference_rates_without_a_place_for_each_source_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse({"strategy": "reference_rates", "rates": "llama", "domain": "law", **change})
