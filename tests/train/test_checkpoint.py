from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixing import UserError
from mixing.manifest import Manifest
from train import checkpoint
from train.checkpoint import Saver, State, checkpoints, export_checkpoint, model_tensors, read_state, restore
from train.model import architecture, new_model
from train.optim import Optimizer, freeze
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


def test_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_offered(model: Any, run: Run) -> None:
    optimizer = trained(model, run, 1)
    for step in (1, 2):
        save(run, state(step), model, optimizer)
    folder = run.folder / "checkpoints/step-2"
    (shard,) = folder.glob("*.safetensors")
    whole = shard.read_bytes()

    shard.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(UserError, match=rf"{shard.name}: its bytes are not those that were written; remove step-2 to go on from step-1"):
        read_state(folder)
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{shard.name}: {len(whole) - 1} bytes, state.json says {len(whole)}; remove step-2"):
        read_state(folder)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: None bytes"):
        read_state(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: cannot be read: .*; remove step-2 to go on from step-1"):
        read_state(folder)
    (folder.with_name("step-1") / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"remove step-1 to go on from the start"):
        read_state(folder.with_name("step-1"))


def test_tensors_changed_while_they_are_being_written_are_saved_as_they_were(model: Any, run: Run) -> None:
    optimizer = trained(model, run, 1)
    before = {name: tensor.clone() for name, tensor in tensors(model, optimizer).items()}

    with Saver(run.folder, 2, run.world) as saver:
        saver.save(state(1), tensors(model, optimizer))
        saver.wait_for_copy()
        for tensor in tensors(model, optimizer).values():
            tensor.fill_(7)
        saver.wait()

    restored = tensors(model, optimizer)
    restore(run.folder / "checkpoints/step-1", restored, sharded=False)
    assert all(torch.equal(restored[name], tensor) for name, tensor in before.items())


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from train.checkpoint import Saver, State
from train.model import World
from mixing import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, world = Path(sys.argv[1]), World(0, 1, torch.device("cpu"), sharded=False)
values = {"model/w": torch.ones(100_000)}
with Saver(folder, 2, world) as saver:
    saver.save(State(1, 1, 1, "", ""), values)
    saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # a file of 400 kB does not fit any more
    try:
        saver.save(State(2, 2, 2, "", ""), values)
        saver.wait()
    except UserError as error:
        print(error)
print(sorted(path.name for path in (folder / "checkpoints").iterdir()))
"""


def test_save_that_does_not_fit_is_one_message_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)

    message, left = result.stdout.splitlines()
    assert message.startswith(f"{tmp_path}/checkpoints: the checkpoint cannot be written: ")
    assert "File too large" in message
    assert message.endswith("; make room, then go on from the one before it with --start resume")
    assert left == "['step-1']"


def test_average_is_exported_and_frozen_weights_with_it(model: Any, run: Run, manifest: Manifest, tmp_path: Path) -> None:
    freeze(model, ["embeddings"])
    config = run.config.model_copy(update={"ema": 512})
    optimizer = Optimizer(model, config)
    run.folder.mkdir()
    checkpoint.write_blueprint(run.folder, model, manifest)
    optimizer.step({name: torch.ones_like(value) for name, value in optimizer.ema.items()}, 0.1, torch.ones(()), torch.zeros(()), 512)
    save(run, state(1), model, optimizer)

    latest = load_file(export_checkpoint(run.folder, tmp_path / "latest", None) / "model.safetensors")
    average = load_file(export_checkpoint(run.folder, tmp_path / "average", None, "ema") / "model.safetensors")

    assert torch.equal(average["lm_head.weight"], optimizer.ema["lm_head.weight"])
    assert not torch.equal(average["lm_head.weight"], latest["lm_head.weight"])
    assert torch.equal(average["model.embed_tokens.weight"], latest["model.embed_tokens.weight"])
    save(run, state(2), model, trained(model, run, 0))
    with pytest.raises(UserError, match=r"step-2: holds no average of the weights; train with ema: HALF_LIFE"):
        export_checkpoint(run.folder, tmp_path / "other", None, "ema")


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
