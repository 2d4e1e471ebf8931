"""The loss of a model's last layer, without its logits: nats summed over predictions, a slice of positions at a time.

`sum_of_nats` multiplies a slice by the vocabulary matrix, takes its cross-entropy and at once the gradient with respect to both, so that the scores of
one slice are all that ever exists (64 MiB on a CPU, 1 GiB on a GPU, and in bf16 half as much again) and nothing is computed twice. At 8 x 4,096 tokens
and 128,000 words whole scores take 16.8 GB in fp32, and their gradient as much. torch's own linear_cross_entropy either returns no loss of a single prediction, which the record per
component needs, or computes the scores again in the backward pass; on 1 CPU core, 1,024 positions, width 256, 32,768 words, it took 13.4 s and 17.3 s,
transformers' way 2.8 s, this 2.3 s.

`losses_of` puts it in place of a model's output layer. A model that does more to its scores than that layer (a soft cap, a scale) gets them whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from train.stream import IGNORED

SLICE = {"cpu": 1 << 24}
"""Scores of a slice, by the type of device; elsewhere 2^28."""

_whole: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""The models that were seen to change their scores after the output layer."""


class _SumOfNats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, derive: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        precise = torch.promote_types(weight.dtype, torch.float32)
        nats = torch.empty(len(hidden), dtype=precise, device=hidden.device)
        counted = (targets != IGNORED).unsqueeze(1)
        targets = targets.clamp(min=0).unsqueeze(1)
        toward_hidden = torch.empty_like(hidden) if derive else None
        toward_weight = torch.zeros_like(weight, dtype=precise) if derive and ctx.needs_input_grad[1] else None
        size = max(1, SLICE.get(hidden.device.type, 1 << 28) // len(weight))
        raw = torch.empty(min(size, len(hidden)), len(weight), dtype=weight.dtype, device=weight.device)
        room = raw if precise == weight.dtype else torch.empty_like(raw, dtype=precise)
        for first in range(0, len(hidden), size):
            here = slice(first, first + size)
            scores = torch.mm(hidden[here], weight.T, out=raw[: len(hidden[here])])
            if room is not raw:
                scores = room[: len(scores)].copy_(scores)
            highest, picked = scores.amax(1, keepdim=True), scores.gather(1, targets[here])
            shares = torch.softmax(scores, 1, out=scores)
            loss = highest - picked - shares.amax(1, keepdim=True).log()  # the highest score's share is 1 over the sum of exponentials
            nats[here] = (loss * counted[here]).squeeze(1)
            if toward_hidden is None:
                continue
            shares = shares.scatter_(1, targets[here], torch.expm1(-loss)).to(weight.dtype)
            toward_hidden[here] = (shares @ weight) * counted[here]
            if toward_weight is not None:
                predicting = hidden[here] * counted[here]
                if precise == weight.dtype:
                    toward_weight.addmm_(shares.T, predicting)
                else:
                    toward_weight += shares.T @ predicting
        ctx.toward = toward_hidden, toward_weight, weight.dtype
        ctx.mark_non_differentiable(nats)
        return nats.sum(), nats

    @staticmethod
    def backward(ctx: Any, *scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override,unused-ignore]
        (toward_hidden, toward_weight, dtype), ctx.toward = ctx.toward, None
        return toward_hidden.mul_(scale[0]), None if toward_weight is None else toward_weight.mul_(scale[0]).to(dtype), None, None


def sum_of_nats(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [n, d], weight [v, d], targets [n]. The sum over predictions (differentiable, once), and each one [n], 0 where nothing is predicted."""
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    result: tuple[torch.Tensor, torch.Tensor] = _SumOfNats.apply(hidden, weight, targets, torch.is_grad_enabled())  # type: ignore[no-untyped-call,unused-ignore]
    return result


def losses_of(model: PreTrainedModel, targets: torch.Tensor, forward: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of nats over predictions, and each one, fp32 [m, L] without gradient; `forward` runs the model and returns its logits."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    plain = isinstance(head, nn.Linear) and head.bias is None
    if plain and model not in _whole:
        found: list[torch.Tensor] = []

        def shortcut(hidden: torch.Tensor) -> torch.Tensor:
            total, nats = sum_of_nats(hidden.flatten(0, -2), head.weight, targets.flatten())
            found.extend([total.view(1, 1, 1).clone(), nats.view(targets.shape)])  # FSDP warns of views
            return found[0]

        head.forward = shortcut
        try:
            total = forward()
        finally:
            del head.forward
        if total is found[0]:
            return total.sum(), found[1]
        _whole[model] = True
    scores = forward()
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    nats = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none").view(targets.shape)
    return nats.sum(), nats.detach()
