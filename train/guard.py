"""Steps that would do harm, found and left out on the device, without waiting for it.

A step is skipped if its loss or the norm of its gradient is not finite, or if its loss stands more than `sigma` standard deviations above the mean of the
last `window` steps, or the norm more than `norm_sigma`. OLMo-core's SkipStepOptimizer has 6 over 128 for both; here norms are not judged unless asked, since
clipping bounds what they do and those of small batches have long tails (docs/LOG.md). A step is judged from half a window on. Finite values enter the window also when they were
skipped, so that a new level, of another stage say, is accepted after a step or two. The window is part of a checkpoint: a resumed run skips the same
steps. Nothing here draws a number or depends on the number of processes.
"""

from __future__ import annotations

import math

import torch

from train import config


class Guard:
    """The losses and norms of the last steps; `judge` decides about one and remembers it."""

    def __init__(self, settings: config.Guard, device: torch.device) -> None:
        self.limits = torch.tensor([math.inf if limit is None else limit for limit in (settings.sigma, settings.norm_sigma)], device=device)
        self.values = torch.zeros(2, settings.window, dtype=torch.float64, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"guard/values": self.values, "guard/seen": self.seen}

    def judge(self, loss: torch.Tensor, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether to skip the step (fp32, 1 or 0), and how many standard deviations its loss and norm stand above the mean (fp64 [2], 0: unknown)."""
        latest = torch.stack([loss, norm]).double()
        window = self.values.shape[1]
        there = torch.arange(window, device=self.values.device) < self.seen
        count = there.sum().clamp(min=2)
        mean = (self.values * there).sum(1) / count
        spread = (((self.values - mean[:, None]) * there).square().sum(1) / (count - 1)).sqrt()
        judged = (self.seen >= window // 2) & (spread > 0)
        above = torch.where(judged, (latest - mean) / spread, 0.0)
        finite = latest.isfinite().all()
        spike = (above > self.limits).any()
        place = (self.seen % window)[None]
        kept = torch.where(finite, latest, self.values.index_select(1, place).squeeze(1))
        self.values.index_copy_(1, place, kept[:, None])
        self.seen += finite
        return (~finite | spike).float(), above
