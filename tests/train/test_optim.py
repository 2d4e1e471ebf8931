from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from train.config import Optimizer, Schedule
from train.model import World
from train.optim import adamw, clip, gradient_norm, gradients, learning_rate, share_of_peak

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
    ],
)
def test_schedule_at_a_token_is_its_closed_form(kind: Any, tokens: int, share: float) -> None:
    schedule = Schedule(kind=kind, warmup=100, decay=250, floor=0.2)

    assert share_of_peak(schedule, tokens, TOTAL) == pytest.approx(share, abs=1e-12)
    assert share_of_peak(schedule, 25, TOTAL) == 0.25
    assert share_of_peak(schedule, 0, TOTAL) == 0
    assert learning_rate(Optimizer(learning_rate=0.5), schedule, tokens, TOTAL) == pytest.approx(share / 2)


def test_schedule_without_warm_up_or_longer_than_the_run_stays_in_range() -> None:
    assert share_of_peak(Schedule(kind="linear", warmup=0, floor=0.0), 0, TOTAL) == 1.0
    assert share_of_peak(Schedule(kind="wsd", warmup=900, decay=500, floor=0.0), 950, TOTAL) == pytest.approx(0.5)
    assert share_of_peak(Schedule(kind="cosine", warmup=2000, floor=0.0), 1000, TOTAL) == 0.5


def test_adamw_step_against_its_formula(model: Any) -> None:
    """One step by hand in fp64: matrices decay, vectors do not."""
    settings = Optimizer(learning_rate=0.1, betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.5)
    optimizer = adamw(model, settings)
    before = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    grads = {name: parameter.grad.double() for name, parameter in model.named_parameters()}

    optimizer.step()

    kinds = set()
    for name, parameter in model.named_parameters():
        kinds.add(parameter.ndim)
        decay = 1 - 0.1 * 0.5 * (parameter.ndim >= 2)
        mean, square = grads[name], grads[name].square()  # (1 - beta) g / (1 - beta^1)
        expected = before[name] * decay - 0.1 * mean / (square.sqrt() + 1e-3)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert kinds == {1, 2}


def test_gradient_norm_and_clip_agree_with_torch(model: Any, world: World) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    shares = gradients(model)

    norm = gradient_norm(shares, world)

    flat = torch.cat([share.double().flatten() for share in shares])
    assert norm == pytest.approx(flat.norm().item(), rel=1e-12)
    clip(shares, norm, None)
    clip(shares, norm, 2 * norm)
    assert gradient_norm(shares, world) == norm
    clip(shares, norm, 0.5)
    assert gradient_norm(gradients(model), world) == pytest.approx(0.5, rel=1e-6)
