"""How parameters move: AdamW with its groups, the gradient's norm, and learning rates as pure functions of tokens.

Nothing here holds a state that a checkpoint could bring back against the configuration: the rate of a step is computed from its tokens, the
hyperparameters come from the configuration, and AdamW's moments exist from the start, so that resuming needs no more memory than training.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from train.config import Optimizer, Schedule
from train.model import World


def adamw(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """Fused AdamW over the model's parameters; only matrices decay. Its moments are there, and zero."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon, fused=True)
    for parameter in trained:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter.detach()),
            "exp_avg_sq": torch.zeros_like(parameter.detach()),
        }
    return optimizer


def learning_rate(settings: Optimizer, schedule: Schedule, tokens: float, total: int) -> float:
    """The rate when `tokens` of `total` have been seen; the schedule's amounts are in tokens."""
    return settings.learning_rate * share_of_peak(schedule, tokens, total)


def share_of_peak(schedule: Schedule, tokens: float, total: int) -> float:
    """Rises from 0 to 1 over the warm-up; then constant, a half cosine (arXiv 1608.03983), a line, or constant with a line at the end
    (warm-up, stable, decay: arXiv 2404.06395), each ending at `floor`."""
    if tokens < schedule.warmup:
        return tokens / schedule.warmup
    if schedule.kind == "constant":
        return 1.0
    begin = max(schedule.warmup, total - schedule.decay) if schedule.kind == "wsd" else schedule.warmup
    progress = min(1.0, max(0.0, tokens - begin) / (total - begin)) if total > begin else 1.0
    fallen = (1 - math.cos(math.pi * progress)) / 2 if schedule.kind == "cosine" else progress
    return 1.0 - (1.0 - schedule.floor) * fallen


def gradients(model: nn.Module) -> list[torch.Tensor]:
    """This process' share of every gradient."""
    return [
        parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
        for parameter in model.parameters()
        if parameter.grad is not None
    ]


def gradient_norm(shares: list[torch.Tensor], world: World) -> float:
    """The norm over all processes, summed in fp64 so that its value hardly depends on how the parameters are sharded."""
    squares = [torch.linalg.vector_norm(share, dtype=torch.float64).square() for share in shares]
    return math.sqrt(world.total(torch.stack(squares).sum()).item())


def clip(shares: list[torch.Tensor], norm: float, limit: float | None) -> None:
    if limit is not None and norm > limit:
        torch._foreach_mul_(shares, limit / norm)
