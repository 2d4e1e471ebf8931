from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from mixing import UserError
from train.config import Optimizer as Settings
from train.model import World
from train.optim import Optimizer, freeze, gradient_norm, taken_gradients
from train.start import Run

ONE, GO, SKIP = torch.ones(()), torch.zeros(()), torch.ones(())


def random_gradients(model: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(parameter.shape, generator=generator) for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def optimizer_of(model: Any, run: Run, **settings: Any) -> Optimizer:
    outer = {key: settings.pop(key) for key in ("exact", "ema") if key in settings}
    return Optimizer(model, run.config.model_copy(update={"optimizer": Settings(learning_rate=0.1, **settings)} | outer))


@pytest.mark.parametrize("outer", [{}, {"exact": object()}], ids=["fused", "exact"])
def test_adamw_steps_against_their_formula_in_fp64(outer: dict[str, Any], model: Any, run: Run) -> None:
    """Three steps by hand: matrices decay, vectors do not, gradients are divided by the scale."""
    optimizer = optimizer_of(model, run, betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.5, **outer)
    expected = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
    mean, square = ({name: torch.zeros_like(value) for name, value in expected.items()} for _ in range(2))

    for step in (1, 2, 3):
        gradients = random_gradients(model, step)
        for name, gradient in gradients.items():
            scaled = gradient.double() / 2
            mean[name] = 0.8 * mean[name] + 0.2 * scaled
            square[name] = 0.9 * square[name] + 0.1 * scaled.square()
            change = mean[name] / (1 - 0.8**step) / ((square[name] / (1 - 0.9**step)).sqrt() + 1e-3)
            expected[name] = expected[name] * (1 - 0.1 * 0.5 * (gradient.ndim >= 2)) - 0.1 * change
        optimizer.step(gradients, 0.1, torch.tensor(2.0), GO, 1)

    assert {parameter.ndim for parameter in model.parameters()} == {1, 2}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def test_muon_moves_hidden_matrices_as_torch_does_and_adamw_the_rest(model: Any, run: Run) -> None:
    optimizer = optimizer_of(model, run, kind="muon", weight_decay=0.3)
    hidden = [name for name, parameter in model.named_parameters() if parameter.ndim == 2 and "layers" in name]
    assert optimizer.muon == set(hidden)
    oracle = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in model.named_parameters()}
    muon = torch.optim.Muon([oracle[name] for name in hidden], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    rest = [name for name in oracle if name not in hidden]
    decayed = [{"params": [oracle[n] for n in rest if (oracle[n].ndim == 2) is two], "weight_decay": 0.3 * two} for two in (True, False)]
    adamw = torch.optim.AdamW(decayed, lr=0.1, betas=(0.9, 0.95))

    for step in (1, 2):
        gradients = random_gradients(model, step)
        for name, parameter in oracle.items():
            parameter.grad = gradients[name].clone()
        optimizer.step(gradients, 0.1, ONE, GO, 1)
        muon.step()
        adamw.step()

    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), oracle[name].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"moments": "bf16"}, {"kind": "muon"}, {"exact": object()}])
def test_skipped_step_with_a_gradient_that_is_not_finite_changes_nothing(kind: dict[str, Any], model: Any, run: Run) -> None:
    optimizer = optimizer_of(model, run, **kind)
    optimizer.step(random_gradients(model), 0.1, ONE, GO, 1)
    before = copied(dict(model.named_parameters()) | optimizer.tensors())
    gradients = {name: torch.full_like(value, math.nan) for name, value in random_gradients(model).items()}

    optimizer.step(gradients, 0.1, torch.tensor(math.nan), SKIP, 1)

    after = dict(model.named_parameters()) | optimizer.tensors()
    assert all(torch.equal(after[name].detach(), value) for name, value in before.items())


def test_bf16_moments_stay_near_fp32_ones_in_half_the_memory(model: Any, run: Run) -> None:
    start = copied(dict(model.named_parameters()))
    ended = []
    for moments in ("fp32", "bf16"):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name])
        optimizer = optimizer_of(model, run, moments=moments)
        assert {value.dtype for name, value in optimizer.tensors().items() if "exp_avg" in name} == {
            torch.float32 if moments == "fp32" else torch.bfloat16
        }
        for step in range(5):
            optimizer.step(random_gradients(model, step), 0.01, ONE, GO, 1)
        ended.append(copied(dict(model.named_parameters())))

    moved = torch.cat([(ended[0][name] - value).flatten() for name, value in start.items()])
    apart = torch.cat([(ended[0][name] - value).flatten() for name, value in ended[1].items()])
    assert 0 < apart.norm() < 0.02 * moved.norm()


def test_average_of_the_weights_halves_its_distance_every_half_life(model: Any, run: Run) -> None:
    optimizer = optimizer_of(model, run, ema=100)
    begun = copied(optimizer.ema)
    optimizer.step(random_gradients(model), 0.1, ONE, GO, 0)
    for _ in range(4):
        optimizer.step({}, 0.1, ONE, GO, 50)

    for name, parameter in model.named_parameters():
        torch.testing.assert_close(optimizer.ema[name], begun[name].lerp(parameter.detach(), 0.75), rtol=1e-4, atol=1e-6)


def test_decay_of_embeddings_can_be_left_out(model: Any, run: Run) -> None:
    assert optimizer_of(model, run).decayed - optimizer_of(model, run, decay_embeddings=False).decayed == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }


def test_gradient_norm_agrees_with_torch(model: Any, world: World) -> None:
    shares = list(random_gradients(model).values())

    norm = gradient_norm(shares, world)

    assert norm.item() == pytest.approx(torch.cat([share.double().flatten() for share in shares]).norm().item(), rel=1e-12)
    assert gradient_norm([*shares, *shares], world, copies=2).item() == pytest.approx(norm.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("parts", "trained"),
    [
        (["embeddings"], {"layers.0", "layers.1", "norm", "lm_head"}),
        (["head", "0"], {"embed_tokens", "layers.1", "norm"}),
        (["0-1"], {"embed_tokens", "norm", "lm_head"}),
    ],
)
def test_frozen_parts_get_no_gradient_and_no_moments(parts: list[str], trained: set[str], model: Any, run: Run) -> None:
    freeze(model, parts)
    optimizer = optimizer_of(model, run)

    found = {".".join(name.removeprefix("model.").split(".")[: 2 if "layers" in name else 1]) for name in optimizer.state}
    assert found == trained
    model(torch.arange(8)[None], cu_seq_lens_q=torch.tensor([0, 8], dtype=torch.int32), max_length_q=8).logits.sum().backward()
    assert taken_gradients(model).keys() == optimizer.state.keys()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_freezing_what_is_not_there_or_everything_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match="freeze: found 1-2; the model's layers are 0 to 1"):
        freeze(model, ["1-2"])
    for parameter in model.model.norm.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match=r"freeze: embeddings, head, 0-1 is all of the model; leave something to train"):
        freeze(model, ["embeddings", "head", "0-1"])
