"""The loss without logits, against torch's cross-entropy of whole logits in fp64, and where it must not be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig

from train import loss
from train import model as models
from train.stream import IGNORED, fill


def case(words: int = 97, positions: int = 40, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(positions, 12, generator=random, dtype=dtype, requires_grad=True)
    weight = torch.randn(words, 12, generator=random, dtype=dtype, requires_grad=True)
    targets = torch.randint(words, (positions,), generator=random)
    targets[::7] = IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("scores", [97, 5 * 97, 1 << 24])
def test_loss_in_slices_equals_cross_entropy_of_whole_logits_in_fp64(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.SLICE, "cpu", scores)  # a position, five, all of them at once
    hidden, weight, targets = case()
    expected = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORED, reduction="none")
    toward = torch.autograd.grad(expected.sum() / 31, [hidden, weight])

    total, nats = loss.sum_of_nats(hidden, weight, targets)
    found = torch.autograd.grad(total / 31, [hidden, weight])

    torch.testing.assert_close(total, expected.sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(nats, expected.detach(), rtol=1e-12, atol=1e-13)
    assert not nats.requires_grad
    for ours, theirs in zip(found, toward, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_loss_of_a_frozen_head_derives_the_hidden_states_only() -> None:
    hidden, weight, targets = case()
    weight = weight.detach()
    expected = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets, reduction="sum"), hidden)[0]

    loss.sum_of_nats(hidden, weight, targets)[0].backward()

    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-11, atol=1e-13)


def test_loss_in_bf16_keeps_nats_in_fp32_and_stays_near() -> None:
    hidden, weight, targets = case(dtype=torch.float32)
    exact, _ = loss.sum_of_nats(hidden, weight, targets)
    toward = torch.autograd.grad(exact, [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        rounded, nats = loss.sum_of_nats(hidden, weight, targets)
    found = torch.autograd.grad(rounded, [hidden, weight])

    assert nats.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)
    for ours, theirs in zip(found, toward, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("kind", "extra", "whole"),
    [
        ("llama", {}, False),
        ("qwen2", {"tie_word_embeddings": True}, False),
        ("granite", {"logits_scaling": 4.0}, True),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 0.5, "attn_logit_softcapping": None}, True),
        ("phi", {}, True),  # its output layer has a bias
    ],
)
def test_losses_equal_the_cross_entropy_of_the_models_own_logits(kind: str, extra: dict[str, Any], whole: bool) -> None:
    model = models.new_model(AutoConfig.for_model(kind, vocab_size=64, **SHAPE | extra), seed=1)
    rows = fill([[np.arange(1, 20), np.arange(5, 11)]], [0], 32)
    scores = models.logits(model, rows, "fp32")
    expected = F.cross_entropy(scores.flatten(0, 1), rows.targets.flatten(), ignore_index=IGNORED, reduction="none")
    toward = torch.autograd.grad(expected.sum(), list(model.parameters()))

    for _ in range(2):  # the first call finds out what the model does to its scores
        total, nats = models.losses(model, rows, "fp32")
        found = torch.autograd.grad(total, list(model.parameters()))

        torch.testing.assert_close(nats.flatten(), expected.detach(), rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(found, toward, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (model in loss._whole) is (whole and kind != "phi")
    assert "forward" not in vars(model.get_output_embeddings())
