"""How parameters move: AdamW, or Muon beside it; the gradient's norm; an average of the weights.

Nothing here holds a rate that a checkpoint could bring back against the configuration: it comes with every step. Every tensor of the state exists from
the start, so that resuming needs no more memory than training. Everything works on this process' shares of the parameters, element by element; only
Muon needs whole matrices, which it gathers one at a time: every process computes all of them, which costs W times the arithmetic of Muon (not of the
step) on W processes, and is the same for all W. Whether a step counts is decided on the device: `skip` changes nothing and waits for nothing.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim._muon import _zeropower_via_newtonschulz  # torch.optim.Muon has it as a method of nothing and takes no sharded matrix
from torch.optim.adamw import adamw
from transformers import PreTrainedModel

from mixing import UserError
from train.config import Config
from train.model import World
from train.weights import share

Tensors = dict[str, torch.Tensor]

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315), 5, 1e-7)  # Muon's own (kellerjordan.github.io/posts/muon): coefficients, iterations, epsilon


BLOCK = 1 << 15
"""Elements whose norm is taken at once on a CPU, where torch copies them to fp64 first: 17 M take 13 ms in blocks that stay in the cache, 60 as a whole."""


class Optimizer:
    """State by parameter name, each tensor laid out like its parameter: `step`, `exp_avg`, `exp_avg_sq`, or Muon's `momentum`; `ema` of each."""

    def __init__(self, model: PreTrainedModel, settings: Config) -> None:
        self.settings = settings.optimizer
        self.half_life = settings.ema
        # AdamW's fused kernel for CPUs rounds the last elements of a tensor otherwise than the rest, so its result depends on how parameters are
        # sharded; and it takes no moments but those of the parameters' own type
        self.fused = settings.exact is None and settings.optimizer.moments == "fp32"
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        outside = set(map(id, ends(model)))
        self.muon = {n for n, p in self.parameters.items() if self.settings.kind == "muon" and p.ndim == 2 and id(p) not in outside}
        kept = outside if not self.settings.decay_embeddings else set()
        self.decayed = {name for name, parameter in self.parameters.items() if parameter.ndim >= 2 and id(parameter) not in kept}
        self.state = {name: self._moments(name, parameter.detach()) for name, parameter in self.parameters.items()}
        self.ema = {name: parameter.detach().clone() for name, parameter in self.parameters.items()} if self.half_life else {}

    def _moments(self, name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        dtype = torch.bfloat16 if self.settings.moments == "bf16" else torch.float32
        if name in self.muon:
            return {"momentum": torch.zeros_like(parameter, dtype=dtype)}
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return {"step": step, "exp_avg": torch.zeros_like(parameter, dtype=dtype), "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype)}

    def tensors(self) -> dict[str, torch.Tensor]:
        moments = {f"{kind}/{name}": value for name, state in self.state.items() for kind, value in state.items()}
        return moments | {f"ema/{name}": average for name, average in self.ema.items()}

    def begin_average(self, restored: Tensors) -> None:
        """The average of the weights is the weights as they are now, where none was restored."""
        for name, average in self.ema.items():
            if f"ema/{name}" not in restored:
                average.copy_(self.parameters[name].detach())

    def step(self, gradients: Tensors, rate: float, scale: torch.Tensor, skip: torch.Tensor, tokens: int) -> None:
        """Moves the parameters by `gradients` over `scale`; by nothing where `skip` is 1. Both fp32, without shape. The step had `tokens` tokens."""
        if self.fused:
            for decay in (True, False):
                names = [name for name in gradients if name not in self.muon and (name in self.decayed) is decay]
                self._fused_adamw(names, gradients, rate, decay, scale, skip)
        for name, gradient in gradients.items():
            if name in self.muon or not self.fused:
                parameter, state = share(self.parameters[name]), {kind: share(value) for kind, value in self.state[name].items()}
                decayed = parameter * (1 - rate * self.settings.weight_decay) if name in self.decayed else parameter
                update = self._muon if name in self.muon else self._adamw
                change, later = update(self.parameters[name], state, gradient / scale)
                for value, new in [(parameter, decayed - rate * change), *((state[kind], value) for kind, value in later.items())]:
                    value.copy_(torch.where(skip > 0, value, new))
        if self.half_life:
            averages, latest = ([share(value) for value in values.values()] for values in (self.ema, self.parameters))
            torch._foreach_lerp_(averages, latest, 1 - 0.5 ** (tokens / self.half_life))

    def _fused_adamw(self, names: list[str], gradients: Tensors, rate: float, decay: bool, scale: torch.Tensor, skip: torch.Tensor) -> None:
        moments = [[share(self.state[name][kind]) for name in names] for kind in ("exp_avg", "exp_avg_sq")]
        first, second = self.settings.betas
        adamw(
            [share(self.parameters[name]) for name in names],
            [gradients[name] for name in names],
            moments[0],
            moments[1],
            [],
            [self.state[name]["step"] for name in names],
            fused=True,
            grad_scale=scale,
            found_inf=skip,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=rate,
            weight_decay=self.settings.weight_decay if decay else 0.0,
            eps=self.settings.epsilon,
            maximize=False,
        )

    def _adamw(self, _: nn.Parameter, state: Tensors, gradient: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """The change at rate 1, and the state after it."""
        first, second = self.settings.betas
        step = state["step"] + 1
        mean = state["exp_avg"].float().lerp(gradient, 1 - first)
        square = state["exp_avg_sq"].float().lerp(gradient.square(), 1 - second)
        unbiased = ((square / (1 - second ** step.double())).sqrt() + self.settings.epsilon) * (1 - first ** step.double())
        return mean / unbiased, {"step": step, "exp_avg": mean, "exp_avg_sq": square}

    def _muon(self, parameter: nn.Parameter, state: Tensors, gradient: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """Nesterov momentum, made orthogonal, 0.2 sqrt(longer side) times: the size of AdamW's changes (arXiv 2502.16982)."""
        average = state["momentum"].float().lerp(gradient, 1 - self.settings.momentum)
        update = gradient.lerp(average, self.settings.momentum)
        if isinstance(parameter, DTensor):
            place = parameter.device_mesh, parameter.placements
            whole = DTensor.from_local(update, *place, run_check=False, shape=parameter.shape, stride=parameter.stride()).full_tensor()
            orthogonal = distribute_tensor(_zeropower_via_newtonschulz(whole, *NEWTON_SCHULZ), *place, src_data_rank=None).to_local()
        else:
            orthogonal = _zeropower_via_newtonschulz(update, *NEWTON_SCHULZ)
        return 0.2 * math.sqrt(max(parameter.shape)) * orthogonal.float(), {"momentum": average}


def taken_gradients(model: nn.Module) -> Tensors:
    """This process' share of every gradient, by the parameter's name; the model keeps none."""
    taken = {name: share(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return taken


def gradient_norm(shares: list[torch.Tensor], world: World, copies: int = 1) -> torch.Tensor:
    """The norm over all processes, fp64 and on the device, summed in fp64 so that its value hardly depends on how the parameters are sharded; all
    processes together hold `copies` of the gradient."""
    blocks = [block for one in shares for block in (torch.split(one.flatten(), BLOCK) if one.is_cpu else [one])]
    squares = [torch.linalg.vector_norm(block, dtype=torch.float64).square() for block in blocks]
    return (world.total(torch.stack(squares).sum()) / copies).sqrt()


def ends(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices of the input embeddings and of the head, one and the same if they are tied."""
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    return layers[0].weight, layers[1].weight


def freeze(model: PreTrainedModel, parts: list[str]) -> None:
    """Leaves the `embeddings`, the `head` and layers (`3`, `0-11`, by the first number in a parameter's name) as they are."""
    named = dict(model.named_parameters())
    layer_of = {name: int(found[1]) for name in named if (found := re.search(r"\.(\d+)\.", name))}
    last = max(layer_of.values(), default=-1)
    for part in parts:
        if part in ("embeddings", "head"):
            ends(model)[part == "head"].requires_grad_(False)
            continue
        begin, _, end = part.partition("-")
        chosen = range(int(begin), int(end or begin) + 1)
        if not chosen or chosen[-1] > last:
            raise UserError(f"freeze: found {part}; the model's layers are 0 to {last}")
        for name in (name for name, number in layer_of.items() if number in chosen):
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UserError(f"freeze: {', '.join(parts)} is all of the model; leave something to train")
