"""Budgets under bounds: the fewest tokens, the largest share, redistribution, simulation, and synthetic documents."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from plans import documents_of, mixture_of

from mixing import UserError
from mixing.budget import redistributed
from mixing.draws import Documents
from mixing.plan import plan, stage_quotas


def stage(weights: dict[str, Any], tokens: int = 1000, **keys: Any) -> dict[str, Any]:
    return {"name": keys.pop("name", "s0"), "tokens": tokens, "weights": weights, **keys}


def tokens_of(mixture: Any, documents: Documents, number: int = 0) -> dict[str, int]:
    return {name: one["tokens"] for name, one in plan(mixture, documents, 1).stages[number].header["components"].items()}


# --- the fewest tokens and the largest share


def test_bounds_move_what_they_free_and_take_to_the_others_in_proportion() -> None:
    weights = {"c0": 6, "c1": 3, "c2": 1}
    sizes = dict.fromkeys(["c0", "c1", "c2"], 10**6)
    capped = mixture_of(3, [stage(weights, max_share={"c0": 0.4})])
    assert stage_quotas(capped, sizes)[0].asked == {"c0": 400, "c1": 450, "c2": 150}
    both = mixture_of(3, [stage(weights, max_share={"c0": 0.5}, min_tokens={"c2": 200})])
    assert stage_quotas(both, sizes)[0] == ({"c0": 0.5, "c1": 0.3, "c2": 0.2}, *[{"c0": 500, "c1": 300, "c2": 200}] * 2)
    # The minimum takes from both others in proportion to their weights, so the first falls below its bound and is free again.
    taken = mixture_of(3, [stage(weights, max_share={"c0": 0.59}, min_tokens={"c2": 400})])
    assert stage_quotas(taken, sizes)[0].asked == {"c0": 400, "c1": 200, "c2": 400}


def test_bounds_hold_over_a_strategy_and_bounds_that_do_not_bind_change_nothing() -> None:
    sizes = {"c0": 900, "c1": 100}
    plain = mixture_of(2, [stage({"strategy": "proportional"}, 500)])
    loose = mixture_of(2, [stage({"strategy": "proportional"}, 500, min_tokens={"c1": 50}, max_share={"c0": 0.9})])
    tight = mixture_of(2, [stage({"strategy": "proportional"}, 500, min_tokens={"c1": 80})])
    assert stage_quotas(loose, sizes) == stage_quotas(plain, sizes)
    assert stage_quotas(tight, sizes)[0].asked == {"c0": 420, "c1": 80}


@given(st.data())
def test_bounds_random_ones_hold_to_the_token_and_the_budget_is_whole(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    names = [f"c{number}" for number in range(count)]
    tokens = data.draw(st.sampled_from([10, 997, 10**6, 10**10 + 7]))
    weights = {name: data.draw(st.integers(1, 50)) for name in names}
    least = {name: data.draw(st.integers(1, tokens // count)) for name in names if data.draw(st.booleans())}
    most = {name: data.draw(st.integers(1, 100)) / 100 for name in names if data.draw(st.booleans())}
    try:
        mixture = mixture_of(count, [stage(weights, tokens, min_tokens=least, max_share=most)], max_epochs=1)
    except UserError as error:
        event("refused")
        impossible = [name for name in least if name in most and least[name] > Fraction(str(most[name])) * tokens]
        assert (impossible and "lower the one or raise the other" in str(error)) or sum(Fraction(str(share)) for share in most.values()) < 1  # noqa: PT017
        return
    try:
        (found,) = stage_quotas(mixture, dict.fromkeys(names, 10**12))
    except UserError as error:
        event("no whole numbers")  # bounds that meet leave no room for rounding
        assert "leave a little more room between them" in str(error)  # noqa: PT017
        return
    assert sum(found.asked.values()) == tokens
    assert all(found.asked[name] >= count for name, count in least.items())
    assert all(found.asked[name] < Fraction(str(share)) * tokens + 1 for name, share in most.items())
    free = [name for name in names if found.asked[name] > least.get(name, 0) + 20 and found.asked[name] < most.get(name, 1) * tokens - 20]
    off = 1 + tokens / 10**9  # shares are recorded with nine decimals, and each component gets whole tokens
    lowest, highest = ([(found.asked[name] + by) / weights[name] for name in free] for by in (-off, off))
    assert max(lowest, default=0) <= min(highest, default=1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"min_tokens": {"c0": 600, "c1": 500}},
            "mixture.stages[0].min_tokens: c0 600, c1 500 are 1,100 together, more than the stage's 1,000 tokens",
        ),
        (
            {"min_tokens": {"c0": 300}, "max_share": {"c0": 0.2}},
            "mixture.stages[0].min_tokens: 'c0' has at least 300, and its max_share 0.2 of 1,000 tokens is 200; lower the one or raise the other",
        ),
        (
            {"max_share": {"c0": 0.5, "c1": 0.4}},
            "mixture.stages[0].max_share: c0 0.5, c1 0.4 are less than 1 together, and the stage has no other",
        ),
        ({"max_share": {"c2": 0.5}}, "mixture.stages[0].max_share: component 'c2' is not in the stage; it mixes: c0, c1"),
        ({"min_tokens": {"c0": "few"}}, "mixture.stages[0].min_tokens.c0: 'few' is not a number of tokens"),
        ({"max_share": {"c0": 1.2}}, "mixture.stages[0].max_share.c0: found 1.2"),
        (
            {"tokens": "all", "weights": {"strategy": "concatenate"}, "max_share": {"c0": 0.5}},
            "mixture.stages[0]: tokens: all takes every component whole; min_tokens and max_share leave nothing to choose",
        ),
    ],
)
def test_bounds_that_nothing_can_satisfy_are_refused_with_all_the_numbers(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        mixture_of(3, [{**stage({"c0": 1, "c1": 1}), **keys}])


def test_bound_of_more_tokens_than_there_are_is_refused_by_name() -> None:
    mixture = mixture_of(2, [stage({"c0": 1, "c1": 1}, min_tokens={"c1": 300})], max_epochs=2, on_shortage="redistribute")
    message = (
        "mixture.stages[0].min_tokens: component 'c1' is to have at least 300 tokens; it has 100, of which its max_epochs still allows 200"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        stage_quotas(mixture, {"c0": 10**6, "c1": 100})


def test_bound_of_a_component_that_earlier_stages_used_up_is_refused_by_name() -> None:
    stages = [stage({"c0": 1}, 100), stage({"strategy": "unimax"}, 50, name="s1", max_share={"c0": 0.5})]
    with pytest.raises(UserError, match=re.escape("mixture.stages[1].weights: c0 has a share below 1e-9 (0.0 of 50.0); leave it out")):
        stage_quotas(mixture_of(2, stages), {"c0": 100, "c1": 100})


# --- redistribution


def test_redistribution_moves_the_excess_by_weight_until_nothing_is_short() -> None:
    # c0 lacks 400. By 3:1 the others take 300 and 100; c1 can take only 200 of them, so c2 takes 200.
    asked = {"c0": 600, "c1": 300, "c2": 100}
    assert redistributed("s", asked, {"c0": 200, "c1": 500, "c2": 900}, {}) == {"c0": 200, "c1": 500, "c2": 300}
    assert redistributed("s", asked, {"c0": 200, "c1": 900, "c2": 900}, {}) == {"c0": 200, "c1": 600, "c2": 200}
    assert redistributed("s", asked, {"c0": 200, "c1": 900, "c2": 900}, {"c1": 0.5}) == {"c0": 200, "c1": 500, "c2": 300}
    assert redistributed("s", asked, {"c0": 600, "c1": 300, "c2": 100}, {}) == asked


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 2000)), min_size=1, max_size=9))
def test_redistribution_random_shortages_keep_the_budget_or_say_what_there_is(components: list[tuple[int, int]]) -> None:
    asked = {f"c{number}": count for number, (count, _) in enumerate(components)}
    available = {f"c{number}": count for number, (_, count) in enumerate(components)}
    most = sum(count for name, count in available.items() if asked[name])
    if sum(asked.values()) > most:
        event("too little")
        with pytest.raises(UserError, match=f"its components can give {sum(available.values()):,}"):
            redistributed("s", asked, available, {})
        return
    found = redistributed("s", asked, available, {})
    assert sum(found.values()) == sum(asked.values())
    assert all(found[name] <= available[name] for name in asked)
    assert all(found[name] >= min(asked[name], available[name]) for name in asked)
    # Whoever has room left got as much more as all the others that have, in proportion.
    level = [Fraction(found[name], asked[name]) for name in asked if asked[name] and found[name] < available[name]]
    assert all(abs(one - other) <= max(Fraction(2, count) for count in asked.values() if count) for one in level for other in level)


def test_plan_redistributes_over_stages_in_order_and_keeps_every_promise() -> None:
    documents = documents_of([[30] * 10, [25] * 40, [70] * 20])  # 300, 1,000 and 1,400 tokens
    stages = [stage({"c0": 2, "c1": 1, "c2": 1}, 400), stage({"c0": 1, "c1": 1, "c2": 2}, 800, name="s1")]
    refused = mixture_of(3, stages)
    with pytest.raises(UserError, match="the stages ask 400 tokens of component 'c0'"):
        plan(refused, documents, 1)
    mixture = mixture_of(3, stages, on_shortage="redistribute")
    assert tokens_of(mixture, documents) == {"c0": 200, "c1": 100, "c2": 100}
    assert tokens_of(mixture, documents, 1) == {"c0": 100, "c1": 233, "c2": 467}
    headers = [one.header for one in plan(mixture, documents, 1).stages]
    assert [[one["asked_tokens"] for one in header["components"].values()] for header in headers] == [[200, 100, 100], [200, 200, 400]]
    assert [(header["asked_tokens"], header["tokens"]) for header in headers] == [(400, 400), (800, 800)]


def test_plan_component_that_can_give_nothing_leaves_all_to_the_others() -> None:
    mixture = mixture_of(2, [stage({"c0": 1, "c1": 1}, 100)], on_shortage="redistribute")
    documents = documents_of([[], [40] * 3])
    assert tokens_of(mixture, documents) == {"c0": 0, "c1": 100}
    with pytest.raises(UserError) as refused:
        plan(mixture_of(2, [stage({"c0": 1, "c1": 1}, 121)], on_shortage="redistribute"), documents, 1)
    assert "mixture.stages[0]: asks 121 tokens, and its components can give 120 under max_epochs, wherever they are moved: " in str(
        refused.value
    )
    assert "'c0' 0 of 61 asked, 'c1' 120 of 60 asked" in str(refused.value)


# --- simulation


def test_simulation_of_a_longer_run_repeats_as_that_run_would() -> None:
    random = np.random.default_rng(2)
    documents = documents_of([random.integers(5, 60, size).tolist() for size in (4000, 800, 100)])
    weights = {"c0": 5, "c1": 3, "c2": 2}
    tokens = documents.tokens.sum() * 2 // 10 * 10
    long = plan(mixture_of(3, [stage(weights, int(tokens))], max_epochs=50), documents, 7)
    short = plan(mixture_of(3, [stage(weights, int(tokens) // 10)], max_epochs=50, simulate=int(tokens)), documents, 7)
    for name, one in long.stages[0].header["components"].items():
        other = short.stages[0].header["components"][name]
        assert other["weight"] == one["weight"]
        assert other["unique_tokens"] == pytest.approx(one["unique_tokens"] / 10, abs=60)
        assert other["epochs"] == pytest.approx(one["epochs"], rel=0.12 if name == "c2" else 0.03)
        assert 0 <= short.components[name]["tokens"] - long.components[name]["tokens"] / 10 < 60


def test_simulation_of_a_still_longer_run_takes_some_of_the_same_documents() -> None:
    documents = documents_of([[20] * 200, [30] * 100])  # 4,000 and 3,000 tokens, of which 8,000 and 16,000 would read each more than once

    def read(simulate: int, cap: float) -> set[int]:
        mixture = mixture_of(2, [stage({"c0": 1, "c1": 1}, 800)], simulate=simulate, max_epochs=cap)
        return set(plan(mixture, documents, 3).documents().tolist())

    assert [len(read(simulate, 3)) for simulate in (8000, 16_000)] == [20 + 10, 10 + 5]
    assert read(16_000, 3) < read(8000, 3)
    with pytest.raises(UserError, match="ask 400 tokens of component 'c0'; it has 200 in 10 documents"):
        read(16_000, 1)  # what the longer run would lack, the short one lacks


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"simulate": "1K"}, "mixture.simulate: 1,000 tokens are not more than the 1,000 of the stages"),
        ({"simulate": "soon"}, "mixture.simulate: 'soon' is not a number of tokens"),
        ({"on_shortage": "ignore"}, "mixture.on_shortage: found 'ignore'"),
    ],
)
def test_mixture_that_simulates_nothing_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        mixture_of(1, [stage({"c0": 1})], **keys)


# --- synthetic documents


def test_synthetic_share_above_its_cap_is_refused_and_a_large_one_warned_of() -> None:
    documents = documents_of([[50] * 20, [40] * 25])
    made = documents.component == 1
    twenty, forty = ([stage({"c0": 1 - share, "c1": share})] for share in (0.2, 0.4))
    assert plan(mixture_of(2, twenty, max_synthetic=0.2), documents, 1, made).warnings == ()
    (warning,) = plan(mixture_of(2, forty), documents, 1, made).warnings
    assert warning == "stage 's0': 400 of 1,000 tokens (40.0%) are of documents made from others; beyond about 30% they were found to hurt"
    assert plan(mixture_of(2, forty), documents, 1).warnings == ()
    message = (
        "mixture.stages[0]: 400 of 1,000 tokens (40.0%) are of documents made from others; max_synthetic allows 39.9%; lower the weights"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        plan(mixture_of(2, forty, max_synthetic=0.399), documents, 1, made)


# --- the resolved form


def test_resolved_mixture_names_a_bound_only_where_one_is_asked_for() -> None:
    silent = mixture_of(2, [stage({"c0": 1, "c1": 1})]).resolved()
    assert set(silent) == {"sequence_length", "fill", "components", "first_match", "max_epochs", "stages"}
    assert set(silent["stages"][0]) == {"name", "tokens", "weights", "rounds", "draw"}
    keys = {"on_shortage": "redistribute", "simulate": 5000, "max_synthetic": 0.2}
    loud = mixture_of(2, [stage({"c0": 1, "c1": 1}, min_tokens={"c0": 5}, max_share={"c1": 0.5})], **keys)
    assert keys.items() <= loud.resolved().items()
    assert type(loud).model_validate(loud.resolved()) == loud


def test_equal_remainders_go_in_the_order_of_the_components_whatever_that_of_the_weights() -> None:
    # `verify` splits the budget again from the header, where weights have no order of their own.
    mixture = mixture_of(2, [stage({"c1": 1, "c0": 1}, 7)])
    assert stage_quotas(mixture, {"c0": 100, "c1": 100})[0].asked == {"c0": 4, "c1": 3}
