from __future__ import annotations

import math
from typing import Any

import pytest

from mixing import UserError, validated
from mixing.manifest import Manifest
from train.config import Config, Optimizer, Schedule, Stage, resolved
from train.schedule import learning_rate, share_of_peak

TOTAL = 1000


@pytest.mark.parametrize(
    ("kind", "tokens", "share"),
    [
        ("constant", 100, 1.0),
        ("constant", 1000, 1.0),
        ("linear", 100, 1.0),
        ("linear", 550, 0.6),
        ("linear", 1000, 0.2),
        ("cosine", 100, 1.0),
        ("cosine", 550, 0.6),
        ("cosine", 400, 0.2 + 0.8 * (1 + math.cos(math.pi / 3)) / 2),
        ("cosine", 1000, 0.2),
        ("wsd", 100, 1.0),
        ("wsd", 750, 1.0),
        ("wsd", 875, 0.6),
        ("wsd", 1000, 0.2),
        ("wsd", 5000, 0.2),
        # periods 0-400, 400-600, 600-1000; a decay of 250 fills the second from its start
        ("wsds", 100, 1.0),
        ("wsds", 150, 1.0),
        ("wsds", 275, 0.6),
        ("wsds", 399.999, 0.2),
        ("wsds", 400, 1.0),
        ("wsds", 500, 0.6),
        ("wsds", 600, 1.0),
        ("wsds", 750, 1.0),
        ("wsds", 875, 0.6),
        ("wsds", 1000, 0.2),
        ("inverse_square_root", 100, 1.0),
        ("inverse_square_root", 400, 0.5),
        ("inverse_square_root", 1000, math.sqrt(0.1)),
        ("inverse_square_root", 10000, 0.2),
        # half a cosine 1 -> 0.5 over 100-500, 0.5, exponential 0.5 -> 0.2 over 750-1000
        ("infinite", 100, 1.0),
        ("infinite", 300, 0.75),
        ("infinite", 500, 0.5),
        ("infinite", 750, 0.5),
        ("infinite", 875, math.sqrt(0.5 * 0.2)),
        ("infinite", 1000, 0.2),
    ],
)
def test_schedule_at_a_token_is_its_closed_form(kind: Any, tokens: float, share: float) -> None:
    schedule = Schedule(kind=kind, warmup=100, decay=250, floor=0.2, periods=[400, 200], cooldown=400, plateau=0.5)

    assert share_of_peak(schedule, tokens, TOTAL) == pytest.approx(share, abs=1e-5)
    assert share_of_peak(schedule, 25, TOTAL) == 0.25
    assert share_of_peak(schedule, 0, TOTAL) == 0
    again = schedule.model_copy(update={"warmup_from": 0.5})
    assert [share_of_peak(again, tokens, TOTAL) for tokens in (0, 50)] == [0.5, 0.75]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd", "wsds", "inverse_square_root", "infinite"])
def test_schedule_changes_in_small_steps_but_for_a_new_period(kind: Any) -> None:
    schedule = Schedule(kind=kind, warmup=100, decay=250, floor=0.2, periods=[400, 200], cooldown=400, plateau=0.5)
    shares = [share_of_peak(schedule, tokens, TOTAL) for tokens in range(TOTAL + 1)]

    jumps = [tokens for tokens in range(TOTAL) if abs(shares[tokens + 1] - shares[tokens]) > 0.011]
    assert jumps == ([399, 599] if kind == "wsds" else [])
    assert max(shares) <= 1
    assert min(shares[100:]) >= 0.2 - 1e-12


def test_schedule_without_warm_up_or_longer_than_the_run_stays_in_range() -> None:
    assert share_of_peak(Schedule(kind="linear", warmup=0, floor=0.0), 0, TOTAL) == 1.0
    assert share_of_peak(Schedule(kind="wsd", warmup=900, decay=500, floor=0.0), 950, TOTAL) == pytest.approx(0.5)
    assert share_of_peak(Schedule(kind="cosine", warmup=2000, floor=0.0), 1000, TOTAL) == 0.5
    assert share_of_peak(Schedule(kind="infinite", warmup=0, decay=0, cooldown=5000, plateau=0.5), 1000, TOTAL) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "inverse_square_root", "warmup": 0}, "inverse_square_root falls as the root of warmup / tokens, so it needs a warmup"),
        ({"kind": "infinite", "floor": 0}, "infinite decays exponentially from plateau"),
        ({"kind": "infinite", "floor": 0.6, "plateau": 0.5}, "found floor 0.6"),
    ],
)
def test_schedule_without_a_value_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validated(Schedule, settings)


def test_stage_overrides_the_peak_or_counts_a_schedule_of_its_own(settings: dict[str, Any], manifest: Manifest) -> None:
    """A stage that warms up again, and one that keeps the run's schedule at another peak."""
    lengths = {stage["name"]: stage["tokens"] for stage in manifest.stages}
    total = sum(lengths.values())
    stages = {"adapt": {"learning_rate": 0.5}, "enhance": {"schedule": {"kind": "linear", "warmup": 0.1, "warmup_from": 0.2, "floor": 0.0}}}
    config = resolved(validated(Config, settings | {"stages": stages, "schedule": {"kind": "wsd", "warmup": 0}}), manifest, "fresh")

    def rate(stage: str, seen: float, begun: int) -> float:
        return learning_rate(config, stage, begun + seen, total, seen, lengths[stage])

    override = config.stages["enhance"].schedule
    assert override is not None
    assert override.warmup == round(0.1 * lengths["enhance"])
    assert rate("adapt", 100, 0) == 0.5
    assert rate("enhance", 0, lengths["adapt"]) == pytest.approx(0.2 * 0.01)
    assert rate("enhance", override.warmup, lengths["adapt"]) == pytest.approx(0.01)
    assert rate("enhance", lengths["enhance"], lengths["adapt"]) == 0
    assert learning_rate(config.model_copy(update={"optimizer": Optimizer(learning_rate=3.0)}), "adapt", 100, total, 100, 1) == 0.5
    assert config.stages["adapt"] == Stage(learning_rate=0.5)
    with pytest.raises(UserError, match=r"stages\.anneal: no such stage; the manifest has: adapt, enhance"):
        resolved(validated(Config, settings | {"stages": {"anneal": {}}}), manifest, "fresh")
