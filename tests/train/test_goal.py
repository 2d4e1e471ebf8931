from __future__ import annotations

import math

import pytest

from mixing import UserError
from mixing.curves import gain, lower_is_better
from train.goal import Candidate, best

BEFORE = {"loss/t": 5.0, "accuracy/g": 0.5}


def candidate(rate: float, target: float, guard: float) -> Candidate:
    return Candidate(f"{rate}", (rate,), {"loss/t": target, "accuracy/g": guard})


def test_direction_follows_the_metric() -> None:
    assert [lower_is_better(metric) for metric in ("loss", "loss/a", "bits_per_byte/a", "accuracy/a", "margin/a", "core_average")] == [
        *[True] * 3,
        *[False] * 3,
    ]
    assert gain("loss/a", 5.0, 4.0) == 1.0
    assert gain("accuracy/a", 0.5, 0.4) == pytest.approx(-0.1)


def test_best_is_the_best_target_that_keeps_the_guards() -> None:
    candidates = [candidate(1e-5, 4.5, 0.5), candidate(3e-5, 4.2, 0.47), candidate(1e-4, 4.0, 0.3)]

    assert best(candidates, BEFORE, "loss/t", {}) is candidates[2]
    assert best(candidates, BEFORE, "loss/t", {"accuracy/g": 0.05}) is candidates[1]
    assert best(candidates, BEFORE, "loss/t", {"accuracy/g": 0.0}) is candidates[0]
    assert best(candidates[1:], BEFORE, "loss/t", {"accuracy/g": 0.0}) is None


def test_best_among_equals_is_the_lower_rate() -> None:
    candidates = [candidate(3e-5, 4.2, 0.5), candidate(1e-5, 4.2, 0.5)]

    assert best(candidates, BEFORE, "loss/t", {}) is candidates[1]


def test_best_ignores_what_diverged_and_refuses_what_was_not_measured() -> None:
    candidates = [candidate(1e-5, math.nan, 0.5), candidate(3e-5, 4.9, 0.5)]

    assert best(candidates, BEFORE, "loss/t", {}) is candidates[1]
    with pytest.raises(UserError, match="no measurement of 'loss/x'; measured are: accuracy/g, loss/t"):
        best(candidates, BEFORE, "loss/x", {})
