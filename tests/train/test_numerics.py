"""Logits, gradients, an update and a stretch of training against transformers' model and torch's optimizer, one document at a time in fp64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig

from mixing import validated
from mixing.manifest import Manifest
from train import model as models
from train.config import Config, resolved
from train.loop import Learner, Run, take_step
from train.model import World
from train.stream import fill, read_step

SHAPE = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}


def pair(kind: str) -> tuple[Any, Any]:
    """A model as this trainer runs it, and transformers' own with the same weights in fp64."""
    ours = models.new_model(AutoConfig.for_model(kind, **SHAPE | KINDS[kind]), seed=1)
    theirs = copy.deepcopy(ours).double()
    theirs.set_attn_implementation("eager")
    return ours, theirs


def alone(model: Any, documents: list[Any]) -> torch.Tensor:
    """The sum of nats, document by document."""
    total = torch.zeros((), dtype=torch.float64)
    for document in documents:
        ids = torch.from_numpy(document.astype("int64"))
        if len(ids) > 1:
            total = total + F.cross_entropy(model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="sum")
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_and_gradients_equal_transformers_in_fp64(kind: str) -> None:
    ours, theirs = pair(kind)
    ours = ours.double()
    random = np.random.default_rng(2)
    documents = [random.integers(0, 256, n) for n in (23, 17, 11)]

    rows = fill([documents], [0], 64)
    packed = models.logits(ours, rows, "fp32")[0]
    total, _ = models.losses(ours, rows, "fp32")
    total.backward()  # type: ignore[no-untyped-call]
    reference = alone(theirs, documents)
    reference.backward()  # type: ignore[no-untyped-call]

    begins = np.cumsum([0, *map(len, documents)])
    for begin, document in zip(begins, documents, strict=False):
        expected = theirs(input_ids=torch.from_numpy(document)[None], use_cache=False).logits[0]
        # transformers rounds norms and rotary angles to fp32 also in an fp64 model
        torch.testing.assert_close(packed[begin : begin + len(document)], expected, rtol=1e-6, atol=1e-6)
    assert total.item() == pytest.approx(reference.item(), rel=1e-8)
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() <= 1e-6 * other.grad.norm(), name


def settings(kind: str, manifest: Manifest, rate: float) -> Config:
    model = {"model_type": kind, **SHAPE, **KINDS[kind]}
    values = {"model": {"config": model}, "batch": 4, "micro_batch": 2, "optimizer": {"learning_rate": rate, "clip": 0.5}}
    return resolved(validated(Config, values), manifest, "fresh")


def torch_adamw(model: Any, config: Config) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    chosen = config.optimizer
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": chosen.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=chosen.learning_rate, betas=chosen.betas, eps=chosen.epsilon, foreach=False)


def torch_step(model: Any, optimizer: torch.optim.AdamW, config: Config, manifest: Manifest, first: int) -> float:
    """One step as a textbook has it: all documents alone, the mean over predictions, clip, AdamW."""
    spans = manifest.spans(first, first + config.batch)
    documents = [manifest.ids(*(int(value) for value in span)) for span in zip(*spans[1:5], strict=True)]
    loss = alone(model, documents) / manifest.predictions(first, first + config.batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip or 0.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_moves_the_parameters_as_torch_does_in_fp64(kind: str, manifest: Manifest, world: World) -> None:
    config = settings(kind, manifest, 1e-2)
    ours, theirs = pair(kind)
    before = [parameter.detach().clone() for parameter in theirs.parameters()]

    run = Run(Path(), manifest, config, world)
    take_step(run, Learner(ours, config, world.device), read_step(manifest, 8, 4, 2, 0, 1), 1e-2)
    torch_step(theirs, torch_adamw(theirs, config), config, manifest, 8)

    moved = torch.cat([(after - start).detach().flatten() for after, start in zip(ours.parameters(), before, strict=True)])
    expected = torch.cat([(after - start).detach().flatten() for after, start in zip(theirs.parameters(), before, strict=True)])
    # the first step of AdamW is nearly the sign of the gradient: where that is smaller than fp32's rounding it may be another
    assert (moved - expected).norm() < 5e-3 * expected.norm()


def test_losses_of_25_steps_are_those_of_torch_in_fp64(manifest: Manifest, world: World) -> None:
    """The long form, 200 steps against the Trainer of transformers, is `benchmarks/trainer.py curve`."""
    config = settings("llama", manifest, 3e-3)
    ours, theirs = pair("llama")
    learner, optimizer = Learner(ours, config, world.device), torch_adamw(theirs, config)
    run = Run(Path(), manifest, config, world)
    curves: tuple[list[float], list[float]] = ([], [])
    for first in range(0, 100, 4):
        step = read_step(manifest, first, 4, 2, 0, 1)
        nats = take_step(run, learner, step, 3e-3).read()[0][0]
        curves[0].append(sum(nats) / step.predictions)
        curves[1].append(torch_step(theirs, optimizer, config, manifest, first))

    assert curves[1][-1] < curves[1][0] - 0.2
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
