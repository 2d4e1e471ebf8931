"""The plan as a whole: promise 5 (exact tokens, even prefixes), 6 (packing), 8 (shortage), and what a mixture may say."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from plans import check_plan, documents_of, mixture_of

from mixing import UserError, validated
from mixing.canonical import canonical_json, content_digest
from mixing.draws import Documents
from mixing.plan import Mixture, plan, stage_quotas
from mixing.strategies.shares import token_count

LENGTHS = st.lists(st.one_of(st.just(1), st.integers(1, 70), st.integers(600, 1700)), min_size=1, max_size=25)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Mixture, Documents]:
    components = draw(st.lists(LENGTHS, min_size=1, max_size=5))
    names = [f"c{number}" for number in range(len(components))]
    stages = []
    for number in range(draw(st.integers(1, 3))):
        mixed = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        weights = {name: draw(st.floats(0.01, 1)) for name in mixed}
        draws = st.sampled_from(["cursor", "fresh", "fixed"])
        stages.append(
            {
                "name": f"s{number}",
                "tokens": draw(st.integers(1, 2500)),
                "weights": weights,
                "rounds": draw(st.integers(1, 4)),
                "draw": draw(draws),
            }
            | draw(
                st.sampled_from(
                    [{}, {"order": {"by": "x"}}, {"order": {"by": "x", "direction": "descending", "buckets": 3, "components": mixed[:1]}}]
                )
            )
        )
    caps = {name: draw(st.sampled_from([0.5, 1, 1.7, 3, 50])) for name in names}
    fill = draw(st.sampled_from([0.5, 0.9, 0.99]))
    documents = documents_of(components, gap=3)
    values = np.random.default_rng(draw(st.integers(0, 9))).choice([np.nan, 0.0, 1.0, 2.5], len(documents.row))
    return mixture_of(len(components), stages, max_epochs=caps, fill=fill), documents._replace(values={"x": values})


@settings(max_examples=250)
@given(cases())
def test_plan_random_mixtures_keep_the_promises_or_name_the_shortage(case: tuple[Mixture, Documents]) -> None:
    mixture, documents = case
    short = short_components(mixture, documents)
    try:
        planned = plan(mixture, documents, 17)
    except UserError as error:
        # Rounds that repeat the same documents may need more visits than the cap allows although the tokens would do.
        found = re.search(r"ask(?:s)? ([0-9,]+) tokens of component '(c[0-4])'", str(error))
        event("shortage")
        assert found, str(error)  # noqa: PT017
        asked = int(found[1].replace(",", ""))
        assert short.get(found[2]) == asked or (not short and "fixed" in {stage.draw for stage in mixture.stages})
    else:
        event("planned")
        assert not short
        check_plan(mixture, documents, planned)


@settings(max_examples=150)
@given(cases(), st.data())
def test_plan_random_strategies_and_bounds_with_redistribution_keep_the_promises(
    case: tuple[Mixture, Documents], data: st.DataObject
) -> None:
    mixture, documents = case
    names = [name for index, name in enumerate(mixture.components) if documents.tokens[documents.component == index].sum()]
    stages = []
    for one in mixture.resolved()["stages"]:
        weights = data.draw(
            st.sampled_from(
                [
                    one["weights"],
                    {"strategy": "proportional", "components": names},
                    {"strategy": "temperature", "temperature": 3.0, "components": names},
                    {"strategy": "unimax", "max_epochs": 2, "components": names},
                    {names[0]: 1, "rest": {"weight": 2, "components": {"strategy": "equal", "components": names[1:] or None}}},
                ]
            )
        )
        if weights != one["weights"] and data.draw(st.booleans()):
            one = {**one, "max_share": {names[0]: data.draw(st.sampled_from([0.1, 0.5, 0.9]))}}
        stages.append({**one, "weights": weights})
    try:
        mixed = validated(Mixture, {**mixture.resolved(), "stages": stages, "on_shortage": "redistribute"})
        planned = plan(mixed, documents, 17)
    except UserError as error:
        # Nothing to move it to, or a single component that may not have all; rounds of the same documents need visits of their own.
        event("refused")
        known = "its components can give|less than 1 together|no component is left|lets no document be visited more than"
        assert re.search(known, str(error)), str(error)  # noqa: PT017
    else:
        event(
            "moved"
            if any(one["tokens"] != one["asked_tokens"] for s in planned.stages for one in s.header["components"].values())
            else "as asked"
        )
        check_plan(mixed, documents, planned)


def short_components(mixture: Mixture, documents: Documents) -> dict[str, int]:
    """The components of which more is asked than cap x tokens, and how much, by exact arithmetic."""
    short = {}
    for index, name in enumerate(mixture.components):
        asked = 0
        for stage in mixture.stages:
            exact = {n: Fraction(str(stage.weights[n])) for n in mixture.components if n in stage.weights}
            parts = {n: round(w * 10**9 / sum(exact.values())) for n, w in exact.items()}
            whole = {n: stage.tokens * p // sum(parts.values()) for n, p in parts.items()}
            spare = stage.tokens - sum(whole.values())
            for n in sorted(parts, key=lambda n: -(stage.tokens * parts[n] % sum(parts.values())))[:spare]:
                whole[n] += 1
            asked += whole.get(name, 0)
        if asked > mixture.cap(name) * int(documents.tokens[documents.component == index].sum()):
            short[name] = asked
    return short


def test_plan_forty_components_keeps_the_promises() -> None:
    random = np.random.default_rng(4)
    components = [random.integers(1, 300, random.integers(1, 30)).tolist() for _ in range(40)]
    weights = {f"c{number}": float(sum(lengths)) for number, lengths in enumerate(components)}
    total = sum(map(sum, components))
    mixture = mixture_of(
        40,
        [
            {"name": "all", "tokens": total // 2, "weights": weights},
            {"name": "more", "tokens": total, "weights": weights, "draw": "fresh", "rounds": 2},
        ],
        max_epochs=2,
    )
    documents = documents_of(components)
    check_plan(mixture, documents, plan(mixture, documents, 5))


def test_plan_one_document_component_repeats_it_up_to_its_cap() -> None:
    mixture = mixture_of(1, [{"name": "only", "tokens": 350, "weights": {"c0": 1}}], max_epochs=3.5)
    documents = documents_of([[100]])
    planned = plan(mixture, documents, 1)
    check_plan(mixture, documents, planned)
    assert sorted(set(planned.stages[0].epoch.tolist())) == [0, 1, 2, 3]
    header = planned.stages[0].header["components"]["c0"]
    assert (header["unique_tokens"], header["epochs"], header["cut_to_budget"]) == (100, 3.5, 1)


def test_plan_one_token_too_many_is_a_shortage_naming_all_four_figures() -> None:
    stages = [{"name": "first", "tokens": 60, "weights": {"c0": 1}}, {"name": "second", "tokens": 91, "weights": {"c0": 1}}]
    with pytest.raises(UserError) as refused:
        plan(mixture_of(1, stages, max_epochs=1.5), documents_of([[40, 60]]), 1)
    found = "mixture: the stages ask 151 tokens of component 'c0'; it has 100 in 2 documents, and max_epochs 1.5 allows 150"
    assert str(refused.value).startswith(found)
    assert "raise max_epochs.c0 to 1.51" in str(refused.value)


def test_plan_budget_of_exactly_the_cap_is_no_shortage() -> None:
    # 0.3 x 10 is 2.9999999999999996 in floating point; the cap means the decimal that was written.
    mixture = mixture_of(1, [{"name": "only", "tokens": 3, "weights": {"c0": 1}}], max_epochs=0.3)
    assert plan(mixture, documents_of([[4, 6]]), 1).stages[0].header["tokens"] == 3


def test_plan_component_without_documents_is_a_shortage() -> None:
    with pytest.raises(UserError, match="ask 50 tokens of component 'c1'; it has 0 in 0 documents"):
        plan(mixture_of(2, [{"name": "only", "tokens": 100, "weights": {"c0": 1, "c1": 1}}]), documents_of([[90], []]), 1)


def test_plan_weights_named_in_another_order_are_the_same_plan() -> None:
    documents = documents_of([[30] * 4, [30] * 4])
    stages = [[{"name": "only", "tokens": 75, "weights": dict(weights)}] for weights in ([("c0", 1), ("c1", 1)], [("c1", 1), ("c0", 1)])]

    one, other = (plan(mixture_of(2, stage), documents, 17) for stage in stages)

    assert one.header() == other.header()
    assert [part["asked_tokens"] for part in one.header()["stages"][0]["components"].values()] == [38, 37]


def test_plan_documents_without_tokens_or_component_are_never_planned() -> None:
    documents = documents_of([[30, 0, 30], [50]])
    documents.component[documents.component == 1] = 65535
    planned = plan(mixture_of(2, [{"name": "only", "tokens": 60, "weights": {"c0": 1}}]), documents, 1)
    assert planned.documents().tolist() == np.flatnonzero(documents.tokens == 30).tolist()
    assert planned.components == {"c0": {"documents": 3, "tokens": 60}, "c1": {"documents": 0, "tokens": 0}}


def test_plan_other_seed_is_another_order_of_the_same_tokens() -> None:
    documents = documents_of([[20] * 30])
    mixture = mixture_of(1, [{"name": "only", "tokens": 600, "weights": {"c0": 1}}])
    one, same, other = (plan(mixture, documents, seed).stages[0].document for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
    assert set(one.tolist()) == set(other.tolist())


def test_plan_pool_rows_renumbered_gives_the_same_documents() -> None:
    documents = documents_of([[7, 40, 31] * 9, [12] * 20])
    mixture = mixture_of(2, [{"name": "only", "tokens": 300, "weights": {"c0": 1, "c1": 0.5}}])
    spread = documents._replace(row=documents.row * np.uint64(1000))
    assert plan(mixture, documents, 1).stages[0].document.tolist() == plan(mixture, spread, 1).stages[0].document.tolist()


def test_plan_fixed_documents_reproduces_its_golden_digest() -> None:
    index = np.arange(400, dtype=np.uint64)
    content = np.stack([index * np.uint64(0x9E3779B97F4A7C15), index * np.uint64(0xC2B2AE3D27D4EB4F)], axis=1)
    documents = Documents(index, content, (index % 3).astype(np.uint16), (index * 37 % 211 + 1).astype(np.int64))
    stages = [
        {"name": "one", "tokens": 20_000, "weights": {"c0": 0.5, "c1": 0.3, "c2": 0.2}, "rounds": 3, "draw": "fresh"},
        {"name": "two", "tokens": 9_000, "weights": {"c0": 1, "c2": 1}},
        {"name": "three", "tokens": 5_000, "weights": {"c1": 1}, "rounds": 2, "draw": "fixed"},
    ]
    planned = plan(mixture_of(3, stages, max_epochs=2, sequence_length=128), documents, 17)
    columns = ("component", "first_span", "document", "start", "length", "epoch")
    found = [content_digest(pa.table({name: [getattr(stage, name)] for name in columns}))[:16] for stage in planned.stages]
    assert found == ["52e71ca4b8b455eb", "22d8667ed954abf5", "100d7d93ce173c6a"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [(20000, 20000), ("20_000", 20000), ("1e9", 10**9), ("5B", 5 * 10**9), ("0.5M", 500_000), (1e6, 10**6), ("2 T", 2 * 10**12)],
)
def test_token_count_of_each_spelling_is_an_integer(written: object, meant: int) -> None:
    assert token_count(written) == meant


@pytest.mark.parametrize("written", [0, -5, "1.5", "5G", "many", True, None, float("nan"), float("inf"), "1e-3", "1.2.3B", ""])
def test_token_count_of_anything_else_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a number of tokens; write 20000, 1e9, 300M or 5B"):
        token_count(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"wikipdia": 1}}]},
            r"mixture.stages\[0\].weights: no component 'wikipdia'; the mixture has: c0, c1",
        ),
        ({"max_epochs": {"c7": 2}}, "mixture.max_epochs: no component 'c7'; the mixture has: c0, c1"),
        ({"stages": [{"name": "a", "tokens": 9, "weights": {"c0": 1}}] * 2}, r"mixture.stages\[1\].name: 'a' names an earlier stage too"),
        ({"stages": [{"name": "../a", "tokens": 9, "weights": {"c0": 1}}]}, r"mixture.stages\[0\].name: found '../a'"),
        (
            {"stages": [{"name": "a", "tokens": "lots", "weights": {"c0": 1}}]},
            r"mixture.stages\[0\].tokens: 'lots' is not a number of tokens",
        ),
        ({"stages": [{"name": "a", "tokens": 9, "weights": {"c0": -1}}]}, r"mixture.stages\[0\].weights.c0: found -1"),
        ({"stages": [{"name": "a", "tokens": 9, "weights": {"c0": 1}, "draw": "random"}]}, r"mixture.stages\[0\].draw: found 'random'"),
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"strategy": "unimaxx"}}]},
            r"mixture.stages\[0\].weights: found strategy 'unimaxx'; accepted: proportional, equal, temperature, unimax, ",
        ),
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"strategy": "unimax", "epochs": 2}}]},
            r"mixture.stages\[0\].weights: unknown key 'epochs' of strategy unimax; accepted: strategy, max_epochs, budget, components",
        ),
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"strategy": "temperature"}}]},
            r"mixture.stages\[0\].weights: give exactly one of temperature and exponent",
        ),
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"strategy": "unimax", "max_epochs": -1}}]},
            r"mixture.stages\[0\].weights.max_epochs: found -1",
        ),
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"strategy": "equal", "components": ["c0", "c2"]}}]},
            r"mixture.stages\[0\].weights: no component 'c2'; the mixture has: c0, c1",
        ),
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"g": {"weight": 1, "components": {"c0": 0}}}}]},
            r"mixture.stages\[0\].weights.g.components.c0: found 0",
        ),
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"c0": 1, "g": {"weight": 1, "components": {"c0": 1}}}}]},
            r"mixture.stages\[0\].weights: component 'c0' is named twice",
        ),
        (
            {
                "stages": [
                    {"name": "a", "tokens": 9, "weights": {"c0": 1, "c1": 1, "g": {"weight": 1, "components": {"strategy": "equal"}}}}
                ]
            },
            r"mixture.stages\[0\].weights: no component is left for strategy equal",
        ),
        (
            {"stages": [{"name": "a", "tokens": 9, "weights": {"strategy": "concatenate"}}]},
            r"mixture.stages\[0\]: found tokens 9; the strategy concatenate takes every component once: it and `tokens: all` need each other",
        ),
        (
            {"stages": [{"name": "a", "tokens": "all", "weights": {"c0": 1}}]},
            r"mixture.stages\[0\]: found tokens all; the strategy concatenate",
        ),
        ({"max_epochs": 0}, "mixture.max_epochs"),
        ({"sequence_lenght": 4}, "mixture.sequence_lenght: unknown key"),
        ({"fill": 1.2}, "mixture.fill: found 1.2"),
    ],
)
def test_mixture_that_makes_no_sense_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    stages = [{"name": "a", "tokens": 9, "weights": {"c0": 1}}]
    with pytest.raises(UserError, match=message):
        validated(Mixture, {"sequence_length": 32, "components": {"c0": "a", "c1": "b"}, "stages": stages, **change}, "mixture")


def test_plan_concatenate_takes_every_token_once_and_the_budget_follows() -> None:
    components = [[70, 31] * 9, [1], [555] * 7]
    mixture = mixture_of(3, [{"name": "only", "tokens": "all", "weights": {"strategy": "concatenate"}}])
    planned = plan(mixture, documents_of(components), 1)
    check_plan(mixture, documents_of(components), planned)
    header = planned.stages[0].header
    assert header["asked_tokens"] == sum(map(sum, components))
    assert [one["tokens"] for one in header["components"].values()] == [sum(lengths) for lengths in components]
    assert {one["epochs"] for one in header["components"].values()} == {1.0}


def test_plan_concatenate_of_a_dwarf_beside_a_giant_is_exact_or_refused() -> None:
    # 7 of 1e13 tokens are less than half a billionth: no share in billionths could ask for them.
    sizes = {"giant": 10**13, "dwarf": 7}
    mixture = mixture_of(2, [{"name": "only", "tokens": "all", "weights": {"strategy": "concatenate"}}])
    with pytest.raises(UserError, match=r"mixture.stages\[0\].weights: c1 has a share below 1e-9"):
        stage_quotas(mixture, dict(zip(mixture.components, sizes.values(), strict=True)))
    (found,) = stage_quotas(mixture, {"c0": 10**13, "c1": 70_001})
    assert found.asked == {"c0": 10**13, "c1": 70_001}


def test_plan_strategy_in_a_later_stage_sees_what_the_earlier_left_of_the_caps() -> None:
    stages = [
        {"name": "first", "tokens": 90, "weights": {"c0": 1}},
        {"name": "second", "tokens": 110, "weights": {"strategy": "unimax"}},
    ]
    documents = documents_of([[20] * 5, [20] * 5])
    planned = plan(mixture_of(2, stages), documents, 1)
    assert {name: one["tokens"] for name, one in planned.stages[1].header["components"].items()} == {"c0": 10, "c1": 100}


def test_mixture_resolved_reads_back_the_same() -> None:
    mixture = mixture_of(3, [{"name": "a", "tokens": "1K", "weights": {"c2": 1}}], max_epochs={"c1": 2})
    resolved = mixture.resolved()
    assert resolved["components"][1] == {"name": "c1", "where": "source = '1'"}
    assert resolved["stages"][0]["tokens"] == 1000
    assert Mixture.model_validate(resolved) == mixture


def test_mixture_resolved_with_strategies_and_groups_reads_back_the_same() -> None:
    nested = {"c0": 1, "g": {"weight": 2, "components": {"strategy": "temperature", "exponent": 0.3, "components": ["c1"]}}}
    replay = {"strategy": "replay", "share": 0.1, "replay": {"c1": 1}, "rest": {"strategy": "unimax", "max_epochs": 2}}
    stages = [{"name": name, "tokens": "1K", "weights": weights} for name, weights in (("a", nested), ("b", replay))]
    mixture = mixture_of(3, stages)
    resolved = mixture.resolved()
    assert resolved["stages"][0]["weights"]["g"]["components"]["components"] == ["c1"]
    assert resolved["stages"][1]["weights"]["rest"]["strategy"] == "unimax"
    assert Mixture.model_validate(json.loads(canonical_json(resolved))) == mixture
