"""Effects, verdicts and gates: what may be said of numbers over seeds."""

from __future__ import annotations

import math
import statistics

import pytest

from experiments.rig.judging import FAILS, HOLDS, MISSING, PARTLY, UNCLEAR, Check, overall, sd, spread


def check(*values: float, **settings: float | bool | None) -> Check:
    return Check("effect", {("medical", 11 + number): value for number, value in enumerate(values)}, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((-0.1, -0.2, -0.3), HOLDS),
        ((-0.1, -0.2, 0.01), UNCLEAR),
        ((0.1, 0.2, 0.0), FAILS),
        ((-0.1, -0.2), UNCLEAR),
        ((), MISSING),
    ],
)
def test_verdict_needs_every_one_of_three_seeds(values: tuple[float, ...], verdict: str) -> None:
    assert check(*values).verdict() == verdict


def test_verdict_of_two_domains_that_differ_is_open() -> None:
    medical = {("medical", seed): -0.1 for seed in (11, 12, 13)}
    both = Check("effect", medical | {("math", seed): 0.1 for seed in (11, 12, 13)})

    assert [both.verdict(domain) for domain in both.domains] == [HOLDS, FAILS]
    assert both.domains == ["medical", "math"]
    assert both.verdict() == UNCLEAR


def test_domain_that_lacks_seeds_does_not_undo_another() -> None:
    medical = {("medical", seed): -0.1 for seed in (11, 12, 13)}

    assert Check("effect", medical | {("math", 11): 0.1}).verdict() == HOLDS
    assert Check("effect", {("math", 11): -0.1}).verdict() == UNCLEAR


def test_gate_is_broken_where_a_single_seed_misses_it_although_the_claim_holds() -> None:
    found = check(-0.4, -0.1, -0.5, gate=-0.3)

    assert found.verdict() == HOLDS
    assert found.broken() == [("medical", 12)]
    assert check(-0.4, -0.1).broken() == []
    assert check(math.nan, gate=0.0).broken() == [("medical", 11)]  # what was not measured keeps no gate


def test_claim_holds_in_part_where_its_checks_differ() -> None:
    holds, fails, open_one, beside = check(-1, -1, -1), check(1, 1, 1), check(-1, 1, 1), check(1, 1, 1, decides=False)

    assert overall([holds, holds, beside]) == HOLDS
    assert overall([holds, fails]) == PARTLY
    assert overall([holds, open_one]) == PARTLY
    assert overall([fails, open_one]) == UNCLEAR
    assert overall([fails]) == FAILS
    assert overall([holds, check()]) == MISSING


def test_spread_is_mean_and_standard_deviation_of_the_seeds() -> None:
    values = [-0.162, -0.127, -0.153]

    assert sd(values) == pytest.approx(statistics.stdev(values))
    assert spread(values, signed=True) == "-0.147 ± 0.018"
    assert spread([0.5]) == "0.500 (n = 1)"
    assert spread([]) == "-"
