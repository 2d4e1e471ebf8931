"""Parameters equal bit for bit on 1, 2, 4, … processes: every sum in an order that depends on the configuration only.

A step is C equal bins, each one forward and backward pass in a process of its own choosing: process r of W computes the bins r, r + W, r + 2W, …
After every bin the gradients are reduced, so the j-th reduction adds the bins jW … jW + W - 1; `TreeReduceScatter` adds them in pairs, and `Tree` adds
the reductions in pairs. Both together are one binary tree over the C bins, the same one for every W that is a power of two and divides C. What is left
is the gradient's norm, whose squares `norm` adds as integers. The rest of a step is element by element, or the same on every process.

It costs log2(C / W) further shards of the gradient and a reduction a bin instead of one a step. On a CPU a process computes with one thread, on a GPU
with torch's deterministic kernels. Proved on CPU in fp32 and bf16; nothing is known about GPUs of different kinds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import (
    ReduceScatter,
)  # the type of an argument of set_custom_reduce_scatter, public nowhere
from transformers import PreTrainedModel

from mixing import UserError
from train.config import Config
from train.model import World

LIMB = 24
"""Bits of a square that one integer holds: sums of up to 2^39 elements fit into 63 bits."""


def refuse(config: Config, world: World) -> None:
    """A world whose sums would stand in another order."""
    assert config.exact is not None
    bins = config.exact.bins
    if bins % world.size or world.size & (world.size - 1):
        fitting = [str(2**power) for power in range(bins.bit_length()) if bins % 2**power == 0]
        raise UserError(
            f"exact.bins: {bins} bins on {world.size} processes; exact mode needs a number of processes that is a power of two and divides the bins: "
            f"{', '.join(fitting)}"
        )
    if config.compile or config.parallel.replicate > 1:
        raise UserError("exact: compile and parallel.replicate add in an order of their own; leave both out of an exact run")
    if config.precision == "bf16" and not world.sharded:
        raise UserError("precision: bf16 in exact mode rounds as under torchrun; start it with torchrun --nproc-per-node 1, or use fp32")


def prepare(model: PreTrainedModel, world: World) -> None:
    """Everything in `model`, and in torch, that decides the order of a sum."""
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.use_deterministic_algorithms(True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_reduce_scatter(TreeReduceScatter())


class TreeReduceScatter(ReduceScatter):
    """A reduce-scatter that adds the processes' parts in pairs, which neither gloo nor NCCL promises."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False) -> None:
        assert op == dist.ReduceOp.SUM
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        parts = list(received.view(dist.get_world_size(group), -1).unbind(0))
        while len(parts) > 1:
            parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
        output_tensor.copy_(parts[0].view_as(output_tensor))


class Tree:
    """A sum in pairs of gradients that arrive one after the other: a binary counter, so at most log2(n) + 1 of them are kept."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, dict[str, torch.Tensor]]] = []

    def push(self, gradients: dict[str, torch.Tensor]) -> None:
        level = 0
        while self.kept and self.kept[-1][0] == level:
            gradients = self._onto_last(gradients)
            level += 1
        self.kept.append((level, gradients))

    def total(self) -> dict[str, torch.Tensor]:
        _, gradients = self.kept.pop()
        while self.kept:
            gradients = self._onto_last(gradients)
        return gradients

    def _onto_last(self, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        _, before = self.kept.pop()
        torch._foreach_add_(list(before.values()), list(gradients.values()))
        return before


def norm(shares: list[torch.Tensor], world: World) -> torch.Tensor:
    """The norm of all processes' `shares` together, fp64, whatever their shapes and order: squares below 1 are cut into integers, 72 bits in all, and
    integers add up to the same sum in any order."""
    largest = torch.stack(
        [share.abs().max().double() if share.numel() else share.new_zeros((), dtype=torch.float64) for share in shares]
    ).max()
    if world.sharded:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    exponent = torch.frexp(largest).exponent
    limbs = torch.zeros(3, dtype=torch.int64, device=largest.device)
    for share in shares:
        rest = torch.ldexp(share.double(), -exponent).square()
        for place in range(3):
            rest = rest * 2**LIMB
            whole = rest.floor()
            rest -= whole
            limbs[place] += whole.long().sum()
    high, middle, low = world.total(limbs).double().unbind()
    total = high + (middle + low * 2**-LIMB) * 2**-LIMB
    norm = torch.ldexp((total * 2**-LIMB).sqrt(), exponent)
    return torch.where(largest.isfinite(), norm, largest)
