"""Strategies that read measurements: published vectors, planted laws, independent optima, and what is refused when a measurement is missing."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from mixing import UserError
from mixing.learned import learn, read_ratios
from mixing.measurements import Measurement, append
from mixing.strategies import named, parse, weigh
from mixing.strategies.measured import Found, OptimalDurations, Row, TopicController, learn_durations, learn_perplexities
from mixing.strategies.regression import Regression, fit, minimise
from mixing.strategies.shares import Supply, in_billionths

FOUND = Found(root="measurements", pattern="m.jsonl", digest="d" * 32)


def supply_of(names: str, size: int = 1000, tokens: int = 1000) -> Supply:
    return Supply(Fraction(tokens), dict.fromkeys(names.split(), size), dict.fromkeys(names.split(), size))


def shares_of(weights: Any, supply: Supply) -> dict[str, float]:
    return in_billionths(weigh(parse(weights) if isinstance(weights, dict) else weights, supply))


def curve(component: str, values: dict[int, float | None], run: str = "r", rate: float | None = 1e-5, metric: str = "mmlu") -> list[Row]:
    return [Row(run, component, metric, "target", tokens, rate, value) for tokens, value in values.items()]


# --- optimal durations

BLOG = curve("flan", {0: 0.4, 2: 0.45, 4: 0.47, 8: 0.5, 16: 0.48}, "a") + curve("owm", {10: 0.44, 20: 0.46, 40: 0.49}, "b")


def test_optimal_durations_of_the_published_sweep_are_a_sixth_and_five_sixths() -> None:
    config = learn_durations(OptimalDurations(measurements="m.jsonl", metric="mmlu", goal="higher"), ["flan", "owm"], BLOG)

    # FLAN was best after 8 (billion) tokens; OpenWebMath was still rising at 40, so 40 is a lower bound.
    assert (config.durations, config.censored, config.points) == ({"flan": 8, "owm": 40}, ["owm"], {"flan": 4, "owm": 3})
    assert shares_of(config, supply_of("flan owm")) == {"flan": 0.166666667, "owm": 0.833333333}
    assert shares_of({"strategy": "optimal_durations", "durations": {"flan": "8B", "owm": "40B"}}, supply_of("flan owm")) == {
        "flan": 0.166666667,
        "owm": 0.833333333,
    }


def test_optimal_durations_average_repetitions_and_choose_the_best_learning_rate() -> None:
    rows = [
        *curve("a", {10: 2.0, 20: 1.0, 30: 1.2}, "seed-1"),
        *curve("a", {10: 2.0, 20: 1.6, 30: 1.2}, "seed-2"),  # the mean is best at 30 although seed 1 alone was better at 20
        *curve("a", {10: 1.25, 20: None, 30: 1.3}, "hot", 1e-4),
    ]
    config = learn_durations(OptimalDurations(measurements="m", metric="mmlu"), ["a"], rows)
    assert (config.durations, config.censored, config.points) == ({"a": 30}, ["a"], {"a": 5})

    best = learn_durations(OptimalDurations(measurements="m", metric="mmlu"), ["a"], rows + curve("a", {10: 0.5, 20: 0.5}, "low", 1e-6))
    assert (best.durations, best.censored) == ({"a": 10}, [])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (BLOG, "no measurement of 'mmlu' for law, tax; components that have one: flan, owm"),
        (curve("law", {8: 1.0}, metric="loss"), "no measurement of 'mmlu' for law, tax; components that have one: none; its metrics: loss"),
        (
            curve("law", {8: 1.0}) + curve("tax", {0: 1.0, 8: None}),
            "component 'tax' has no finite measurement of 'mmlu' after the first token",
        ),
        (
            curve("law", {0: 1.0, 4: 1.5, 8: 1.0}) + curve("tax", {0: 1.0, 4: 0.5, 8: 1.0}),
            "component 'law' was never better in 'mmlu' than before its first token; leave it out",
        ),
        (
            curve("law", {8: 1.0}) + curve("tax", {4: 1.0, 8: 1.0}),
            "component 'law' has one measurement of 'mmlu'; a duration needs at least two",
        ),
    ],
)
def test_optimal_durations_without_a_component_in_the_file_are_refused(rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn_durations(OptimalDurations(measurements="m", metric="mmlu"), ["law", "tax"], rows)


# --- the topic controller


def controller(perplexities: dict[str, tuple[float, float]], **keys: Any) -> dict[str, Any]:
    shares = dict.fromkeys(perplexities, 1)
    return {"strategy": "topic_controller", "shares": shares, "step": 0.4, "perplexities": perplexities, **keys}


FELL_STAYED_ROSE = {"a": (10.0, 9.0), "b": (10.0, 10.0), "c": (10.0, 11.0)}


def test_topic_controller_reproduces_its_vector() -> None:
    # r = (1/3, 1/3, 1/3), changes (-1, 0, 1), step 0.4: factors 0.8, 1, 1.2.
    assert shares_of(controller(FELL_STAYED_ROSE), supply_of("a b c")) == {"a": 0.266666667, "b": 0.333333333, "c": 0.4}
    doubled = controller(FELL_STAYED_ROSE, sensitivity={"c": 2.0})
    assert shares_of(doubled, supply_of("a b c")) == {"a": 0.25, "b": 0.3125, "c": 0.4375}


@given(st.lists(st.tuples(st.integers(1, 99), st.floats(1, 500), st.floats(1, 500)), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_topic_controller_random_changes_keep_the_sum_move_the_right_way_and_do_not_see_the_order(
    topics: list[tuple[int, float, float]], step: float
) -> None:
    names = [f"t{number}" for number in range(len(topics))]
    weights = {
        "strategy": "topic_controller",
        "step": step,
        "shares": {name: share for name, (share, _, _) in zip(names, topics, strict=True)},
        "perplexities": {name: (before, after) for name, (_, before, after) in zip(names, topics, strict=True)},
    }
    before = {name: Fraction(share, sum(weights["shares"].values())) for name, share in weights["shares"].items()}  # type: ignore[attr-defined]
    found = weigh(parse(weights), supply_of(" ".join(names)))
    assert sum(found.values()) == 1
    assert all(share > 0 for share in found.values())
    rise = {name: after - old for name, (_, old, after) in zip(names, topics, strict=True)}
    by_rise = sorted(names, key=lambda name: rise[name])
    factors = [found[name] / before[name] for name in by_rise]
    assert factors == sorted(factors)
    assert weigh(parse(weights), supply_of(" ".join(reversed(names)))) == found


def test_topic_controller_without_a_change_keeps_the_shares_and_too_large_a_step_is_refused() -> None:
    assert shares_of(controller({"a": (5.0, 5.0), "b": (7.0, 7.0)}), supply_of("a b")) == {"a": 0.5, "b": 0.5}
    with pytest.raises(UserError, match="step 2 leaves component 'a' nothing \\(a factor of 0\\)"):
        shares_of(controller(FELL_STAYED_ROSE, step=2), supply_of("a b c"))
    # factors -0.5, 1, 2.5; the first is lifted to 0.5
    assert shares_of(controller(FELL_STAYED_ROSE, step=3, floor=0.5), supply_of("a b c")) == {"a": 0.125, "b": 0.25, "c": 0.625}
    assert shares_of(controller(FELL_STAYED_ROSE, floor=0.5), supply_of("a b c")) == shares_of(
        controller(FELL_STAYED_ROSE), supply_of("a b c")
    )


def test_topic_controller_by_losses_sees_which_part_of_a_perplexity_changed() -> None:
    halved = controller({"low": (8.0, 4.0), "high": (800.0, 400.0), "same": (50.0, 50.0)})

    assert shares_of(halved, supply_of("low high same"))["high"] < 0.25 < shares_of(halved, supply_of("low high same"))["low"]
    # Factors 0.8, 0.8 and 1: both fell by log 2.
    assert shares_of(halved | {"change": "loss"}, supply_of("low high same")) == {
        "low": 0.307692308,
        "high": 0.307692308,
        "same": 0.384615385,
    }


def test_topic_controller_takes_the_last_two_counts_that_all_topics_have() -> None:
    rows = [
        *curve("a", {10: 3.0, 20: 2.0, 30: 1.0, 40: 0.5}, metric="loss"),
        *curve("b", {10: 2.5, 20: 2.5, 30: 2.5}, metric="loss"),
        *curve("b", {30: 2.0}, metric="loss"),  # written again after a resume
    ]
    config = TopicController(shares={"a": 1, "b": 1}, step=0.1, measurements="m")
    learned = learn_perplexities(config, rows)
    assert (learned.at, learned.run) == ((20, 30), "r")
    assert learned.perplexities == {"a": (7.389056099, 2.718281828), "b": (12.182493961, 7.389056099)}
    as_given = learn_perplexities(config.model_copy(update={"values": "perplexity"}), rows)
    assert as_given.perplexities == {"a": (2.0, 1.0), "b": (2.5, 2.0)}


@pytest.mark.parametrize(
    ("change", "rows", "message"),
    [
        ({}, curve("a", {1: 2.0}, metric="loss"), "no measurement of 'loss' for b; components that have one: a"),
        (
            {},
            curve("a", {1: 2.0, 2: 2.0}, metric="loss") + curve("b", {2: 2.0, 3: 2.0}, metric="loss"),
            "two token counts are needed at which every component has 'loss'; such counts are: 2",
        ),
        (
            {},
            curve("a", {1: 2.0}, "x", metric="loss") + curve("b", {1: 2.0}, "y", metric="loss"),
            "the file has 2 runs with 'loss' \\(x, y\\); name one under `run`",
        ),
        ({"at": (1, 5)}, [row for name in "ab" for row in curve(name, {1: 2.0, 2: 2.0}, metric="loss")], "such counts are: 1, 2"),
    ],
)
def test_topic_controller_without_two_measurements_of_all_topics_is_refused(change: Any, rows: list[Row], message: str) -> None:
    config = TopicController(shares={"a": 1, "b": 1}, step=0.1, measurements="m").model_copy(update=change)
    with pytest.raises(UserError, match=message):
        learn_perplexities(config, rows)


# --- regression


def proxies(laws: dict[str, list[float]], runs: int, noise: float = 0, seed: int = 5) -> tuple[dict[str, dict[str, Fraction]], list[Row]]:
    """Ratios drawn at random, and final metrics that follow log v = t·p, up to noise."""
    random = np.random.default_rng(seed)
    names = [f"c{number}" for number in range(len(next(iter(laws.values()))))]
    drawn = random.dirichlet([1.0] * len(names), runs).round(6)
    ratios = {f"p{index}": {name: Fraction(str(part)) for name, part in zip(names, row, strict=True)} for index, row in enumerate(drawn)}
    rows = []
    for index, row in enumerate(drawn):
        for target, law in laws.items():
            value = math.exp(float(row / row.sum() @ law) + noise * random.standard_normal())
            rows += [
                Row(f"p{index}", target, "loss", "target", 50, None, 9.0),
                Row(f"p{index}", target, "loss", "target", 100, None, value),
            ]
    return ratios, rows


def test_regression_recovers_a_planted_law() -> None:
    laws = {"c0": [0.3, 1.1, 0.9, 1.4], "c1": [1.2, 0.2, 1.0, 0.8]}
    ratios, rows = proxies(laws, 30)
    config = fit(Regression(ratios="r", measurements="m"), ["c0", "c1", "c2", "c3"], ratios, rows)
    assert config.coefficients is not None
    assert {target: list(one.values()) for target, one in config.coefficients.items()} == {
        f"loss of {target}": pytest.approx(law, abs=1e-6) for target, law in laws.items()
    }
    assert config.errors == {f"loss of {target}": 0 for target in laws}
    assert config.runs == 30


def test_regression_with_noise_fits_as_numpy_does_whatever_the_order_of_runs() -> None:
    ratios, rows = proxies({"c0": [0.3, 1.1, 0.9]}, 40, noise=0.05)
    config = fit(Regression(ratios="r", measurements="m"), ["c0", "c1", "c2"], ratios, rows)
    design = np.array([[float(part) for part in run.values()] for run in ratios.values()])
    logs = np.log([row.value for row in rows if row.tokens == 100])
    solved, residual, *_ = np.linalg.lstsq(design / design.sum(axis=1, keepdims=True), logs, rcond=None)
    assert config.coefficients is not None and config.errors is not None  # noqa: PT018
    assert list(config.coefficients["loss of c0"].values()) == pytest.approx(solved, abs=1e-6)
    assert config.errors["loss of c0"] == pytest.approx(math.sqrt(residual[0] / 40), abs=6e-5)
    backwards = dict(reversed(ratios.items()))
    assert fit(Regression(ratios="r", measurements="m"), ["c0", "c1", "c2"], backwards, rows[::-1]) == config


def objective(laws: np.ndarray[Any, Any], prior: np.ndarray[Any, Any], kl: float, shares: np.ndarray[Any, Any]) -> float:
    shares = np.maximum(shares, 1e-300)
    return float(np.exp(laws @ shares).mean() + kl * (shares * np.log(shares / prior)).sum())


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 6), st.sampled_from([0.001, 0.1, 1.0]))
def test_regression_optimum_satisfies_the_conditions_that_only_the_optimum_does(seed: int, size: int, targets: int, kl: float) -> None:
    random = np.random.default_rng(seed)
    laws, prior = random.uniform(0, 1.5, (targets, size)), random.dirichlet([1.0] * size) * 0.99 + 0.01 / size
    caps = np.where(random.random(size) < 0.5, 1.0, random.uniform(1.1 / size, 1, size))
    shares = np.array(minimise(laws.tolist(), prior.tolist(), caps.tolist(), kl))
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert (shares <= caps + 1e-12).all()
    # Strictly convex, so these conditions (Karush-Kuhn-Tucker) are enough: one multiplier for all that are free, a larger pull at the caps,
    # and what is next to nothing would shrink even if it were a little more.
    gradient = np.exp(laws @ shares) @ laws / targets
    pull = -(gradient + kl * np.log(np.maximum(shares, 1e-7) / prior))
    capped, tiny = shares >= caps - 1e-9, shares < 1e-7
    level = pull[~capped & ~tiny]
    if len(level):
        assert np.ptp(level) < 1e-6
        assert (pull[capped] > level.max() - 1e-6).all()
        assert (pull[tiny] < level.min() + 1e-6).all()


def test_regression_optimum_is_that_of_scipy_and_of_a_grid() -> None:
    random = np.random.default_rng(8)
    for _ in range(5):
        laws, prior = random.uniform(0, 1.5, (2, 3)), random.dirichlet([2.0] * 3)
        caps = np.array([0.5, 1.0, 0.6])
        shares = np.array(minimise(laws.tolist(), prior.tolist(), caps.tolist(), 0.05))
        best = objective(laws, prior, 0.05, shares)
        other = scipy.optimize.minimize(
            lambda p, laws=laws, prior=prior: objective(laws, prior, 0.05, p),
            prior,
            method="SLSQP",
            bounds=[(1e-9, cap) for cap in caps],
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        assert best <= other.fun + 1e-9
        assert shares == pytest.approx(other.x, abs=1e-4)
        grid = [np.array([a, b, 200 - a - b]) / 200 for a, b in itertools.product(range(201), repeat=2) if a + b <= 200]
        assert best <= min(objective(laws, prior, 0.05, point) for point in grid if (point <= caps).all())


def test_regression_that_cannot_tell_the_components_apart_stays_at_the_prior() -> None:
    weights = {"strategy": "regression", "coefficients": {"loss": {"a": 0.7, "b": 0.7}}, "prior": {"a": 3, "b": 1}, "max_epochs": 10}
    assert shares_of(weights, supply_of("a b")) == {"a": 0.75, "b": 0.25}
    capped = {**weights, "max_epochs": 0.6}
    assert shares_of(capped, supply_of("a b")) == {"a": 0.6, "b": 0.4}


def test_regression_prefers_what_lowers_the_loss_and_kl_draws_it_back() -> None:
    def share(kl: float) -> float:
        weights = {"strategy": "regression", "coefficients": {"loss": {"a": 0.9, "b": 1.2}}, "kl": kl, "max_epochs": 10}
        return shares_of(weights, supply_of("a b"))["a"]

    assert 0.5 < share(100) < 0.51 < share(1) < share(0.1) < share(0.05) < 1
    with pytest.raises(
        UserError, match="the regression leaves component 'b' less than 1e-9; leave it out of `components`, or take a larger kl"
    ):
        share(0.001)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_epochs": 0.4}, "the caps allow fewer tokens than the 1,000 asked: a 400, b 400; raise max_epochs"),
        ({"prior": {"a": 1}}, "prior has nothing for component 'b'"),
        ({"coefficients": {"loss": {"a": 1}}, "components": ["a", "b"]}, "coefficients of 'loss' has nothing for component 'b'"),
    ],
)
def test_regression_that_cannot_be_solved_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shares_of({"strategy": "regression", "coefficients": {"loss": {"a": 1, "b": 2}}, **change}, supply_of("a b"))


def test_regression_of_runs_that_vary_together_is_refused() -> None:
    ratios = {f"p{i}": {"a": Fraction(i + 1), "b": Fraction(2 * i + 2), "c": Fraction(10 - i)} for i in range(9)}
    rows = [Row(run, None, "loss", "target", 1, None, 2.0) for run in ratios]
    with pytest.raises(UserError, match="the 9 runs do not tell component 'b' from those before it"):
        fit(Regression(ratios="r", measurements="m"), ["a", "b", "c"], ratios, rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no measurement of loss in any run of the ratios: p0, p1"),
        ([Row("p0", "a", "loss", "target", 1, None, 2.0)], "no measurement of 'loss of a' for 1 of 2 runs: p1"),
        ([Row(run, None, "loss", "guard", 1, None, 0.0) for run in ("p0", "p1")], "'loss' of run 'p0' is 0 after `goal: lower`"),
    ],
)
def test_regression_without_every_measurement_is_refused(rows: list[Row], message: str) -> None:
    ratios = {"p0": {"a": Fraction(1), "b": Fraction(0)}, "p1": {"a": Fraction(0), "b": Fraction(1)}}
    with pytest.raises(UserError, match=message):
        fit(Regression(ratios="r", measurements="m"), ["a", "b"], ratios, rows)


# --- files


def test_ratios_in_three_formats_read_the_same(tmp_path: Path) -> None:
    rows = [{"run": "p0", "a": 0.25, "b": 0.75}, {"run": "p1", "a": 1.0, "b": 0.0}]
    (tmp_path / "r.csv").write_text("run,a,b\np0,0.25,0.75\np1,1.0,0.0\n")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    expected = {"p0": {"a": Fraction(1, 4), "b": Fraction(3, 4)}, "p1": {"a": Fraction(1), "b": Fraction(0)}}
    assert [read_ratios(tmp_path / f"r.{form}", ["a", "b"]) for form in ("csv", "jsonl", "parquet")] == [expected] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,a\np,1\n", "r.csv, row 1: found run, a; ratios have: run, a, b"),
        ("run,a,b,c\np,1,1,1\n", "row 1: found run, a, b, c; ratios have: run, a, b"),
        ("run,a,b\np,1,much\n", "row 1: found \\['1', 'much'\\]; ratios are numbers"),
        ("run,a,b\np,1,-1\n", "row 1: ratios are not negative"),
        ("run,a,b\np,0,0\n", "and not all 0"),
        ("run,a,b\np,1,1\np,1,2\n", "row 2: run 'p' is there twice"),
        ("run,a,b\np,1\n", "row 1: found"),
        ("run,a,b\np,1,2,3\n", "row 1: found"),
        ("run,a,b\np,nan,2\n", "row 1: found \\['nan', '2'\\]; ratios are numbers"),
    ],
)
def test_ratios_that_are_none_are_refused_by_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_ratios(tmp_path / "r.csv", ["a", "b"])


def test_learn_puts_what_files_say_beside_their_digest_and_needs_them_no_more(tmp_path: Path) -> None:
    rows = [
        Measurement("r", "d", name, "loss", "target", tokens, None, None, 1, value, None)
        for name, tokens, value in [
            ("a", 10, 2.0),
            ("a", 20, 1.0),
            ("a", 30, 1.5),
            ("b", 10, 2.0),
            ("b", 20, 1.0),
            ("d", 10, 1.0),
            ("d", 20, 2.0),
        ]
    ]
    append(tmp_path / "m.jsonl", rows)
    asked = []

    def find(where: str, pattern: str) -> tuple[Found, list[Path]]:
        asked.append((where, pattern))
        return FOUND, [tmp_path / pattern]

    written = {"c": 1, "rest": {"weight": 3, "components": {"strategy": "optimal_durations", "measurements": "m.jsonl"}}}
    learned = learn("weights", parse(written), list("abcd"), find)
    assert asked == [("weights.rest.components.measurements", "m.jsonl")]
    inner = learned["rest"].components
    assert (inner.measurements, inner.durations, inner.censored) == (FOUND, {"a": 20, "b": 20, "d": 10}, ["b"])
    again = parse(json.loads(json.dumps({"c": 1, "rest": learned["rest"].model_dump(mode="json")})))
    assert sorted(named(again, list("abcd"))) == list("abcd")
    assert (
        in_billionths(weigh(again, supply_of("a b c d")))
        == in_billionths(weigh(learned, supply_of("a b c d")))
        == {"a": 0.3, "b": 0.3, "c": 0.25, "d": 0.15}
    )

    with pytest.raises(UserError, match=r"weights\.rest\.components: no measurement of 'loss' for e; components that have one: a, b, d"):
        learn("weights", parse(written), list("abcde"), find)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"strategy": "optimal_durations"}, "give exactly one of measurements and durations"),
        ({"strategy": "optimal_durations", "measurements": "m", "durations": {"a": 1}}, "give exactly one of measurements and durations"),
        ({"strategy": "topic_controller", "shares": {"a": 1}, "step": 0.1}, "give exactly one of measurements and perplexities"),
        (controller({"a": (1.0, 1.0)}, sensitivity={"b": 1}), "sensitivity has 'b', which has no share; shares has: a"),
        ({"strategy": "regression", "ratios": "r"}, "give ratios and measurements, or coefficients instead of both"),
        (
            {"strategy": "regression", "ratios": "r", "measurements": "m", "coefficients": {"l": {"a": 1}}},
            "or coefficients instead of both",
        ),
    ],
)
def test_weights_with_neither_or_both_of_files_and_numbers_are_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(weights)
