from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixing import UserError
from mixing.manifest import Manifest
from train import checkpoint
from train.checkpoint import Saver, State, checkpoints, export_checkpoint, model_tensors, read_state, restore
from train.model import architecture, new_model
from train.optim import Optimizer
from train.start import Run


def state(step: int) -> State:
    return State(step, 8 * step, 512 * step, "m" * 64, "c" * 64)


def trained(model: Any, run: Run, steps: int) -> Optimizer:
    """An optimizer that has taken some steps on random gradients."""
    optimizer = Optimizer(model, run.config)
    torch.manual_seed(3)
    for _ in range(steps):
        gradients = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
        optimizer.step(gradients, 0.01, torch.ones(()), torch.zeros(()), 512)
    return optimizer


def tensors(model: Any, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return model_tensors(model) | optimizer.tensors()


def save(run: Run, state: State, model: Any, optimizer: Optimizer, keep: int = 2) -> None:
    with Saver(run.folder, keep, run.world) as saver:
        saver.save(state, tensors(model, optimizer))
        saver.wait()


def test_restored_tensors_are_the_saved_ones_bit_for_bit(model: Any, run: Run) -> None:
    optimizer = trained(model, run, 3)
    saved = {name: tensor.clone() for name, tensor in tensors(model, optimizer).items()}
    save(run, state(3), model, optimizer)

    other = new_model(architecture(run.config), seed=99)
    other_optimizer = Optimizer(other, run.config)
    restore(run.folder / "checkpoints/step-3", tensors(other, other_optimizer), sharded=False)

    restored = tensors(other, other_optimizer)
    assert restored.keys() == saved.keys()
    assert all(torch.equal(restored[name], tensor) for name, tensor in saved.items())
    assert restored["step/lm_head.weight"] == 3
    assert restored["exp_avg/lm_head.weight"].abs().sum() > 0
    assert read_state(run.folder / "checkpoints/step-3") == state(3)


def test_saved_checkpoints_beyond_keep_are_removed_the_oldest_first(model: Any, run: Run) -> None:
    optimizer = trained(model, run, 1)
    for step in (8, 9, 10, 11):
        save(run, state(step), model, optimizer)

    assert [path.name for path in checkpoints(run.folder)] == ["step-10", "step-11"]


def test_checkpoint_that_a_kill_left_incomplete_is_never_read_and_goes_with_the_next(model: Any, run: Run) -> None:
    optimizer = trained(model, run, 1)
    save(run, state(1), model, optimizer)
    left = run.folder / "checkpoints/step-2.incomplete"
    shutil.copytree(run.folder / "checkpoints/step-1", left)

    assert [path.name for path in checkpoints(run.folder)] == ["step-1"]
    save(run, state(2), model, optimizer)
    assert [path.name for path in checkpoints(run.folder)] == ["step-1", "step-2"]
    assert not left.exists()


def test_checkpoint_with_a_file_cut_short_is_refused_by_name(model: Any, run: Run) -> None:
    save(run, state(1), model, trained(model, run, 1))
    folder = run.folder / "checkpoints/step-1"
    (shard,) = folder.glob("*.safetensors")
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 1)

    with pytest.raises(UserError, match=rf"{shard.name}: {size - 1} bytes, state.json says {size}; remove step-1"):
        read_state(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: cannot be read"):
        read_state(folder)


def test_exported_folder_loads_in_transformers_with_equal_logits(model: Any, run: Run, manifest: Manifest, tmp_path: Path) -> None:
    optimizer = trained(model, run, 2)
    run.folder.mkdir()
    checkpoint.write_blueprint(run.folder, model, manifest)
    save(run, state(2), model, optimizer)
    ids = torch.arange(40)[None] % 256

    folder = export_checkpoint(run.folder, tmp_path / "exported", None)

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.dtype == torch.float32
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "attn_implementation" not in (folder / "config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("the soil is ready")["input_ids"]) == "the soil is ready"
    with pytest.raises(UserError, match="exported: exists"):
        export_checkpoint(run.folder, folder, None)
    with pytest.raises(UserError, match=r"--step 5: no such checkpoint .*; it has 2"):
        export_checkpoint(run.folder, tmp_path / "other", 5)
    with pytest.raises(UserError, match="no checkpoint of a training run here"):
        export_checkpoint(tmp_path / "empty", tmp_path / "other", None)


def test_tied_weights_are_saved_once_and_stay_tied(run: Run) -> None:
    assert run.config.model.config is not None
    tied = run.config.model.model_copy(update={"config": run.config.model.config | {"tie_word_embeddings": True}})
    config = run.config.model_copy(update={"model": tied})
    model = new_model(architecture(config), 1)
    save(run, state(1), model, trained(model, run, 1))
    assert not any("lm_head" in name for name in model_tensors(model))

    other = new_model(architecture(config), 2)
    restore(run.folder / "checkpoints/step-1", tensors(other, Optimizer(other, config)), sharded=False)

    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)
