"""Weights drawn or read share by share: the same on any number of processes, and those that transformers gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mixing import validated
from train import model as models
from train import weights
from train.config import Config
from train.loop import train
from train.stream import read_step

SHAPE = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SHAPE | {"pad_token_id": 200},  # a row that transformers sets to zero, on another process than row 0
    "qwen3": SHAPE | {"head_dim": 16, "tie_word_embeddings": True, "pad_token_id": 3},
    "gpt2": {"vocab_size": 257, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma3_text": SHAPE | {"head_dim": 16},
    "mixtral": SHAPE | {"num_local_experts": 4},  # its files name other tensors than the model has
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

IN_SHARES = """
import os
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import AutoConfig
from train import model as models, weights
from train.config import Config
from train.model import joined_world
torch.set_num_threads(1)
models.prepare_transformers()
folder, replicate = Path(sys.argv[1]), int(sys.argv[2])
with joined_world() as world:
    for kind in sorted(path.name for path in folder.iterdir()):
        config = Config.model_validate({"model": {"path": kind}, "batch": 1, "parallel": {"replicate": replicate}})
        for way in ("drawn", "read"):
            model = models.place(weights.skeleton(AutoConfig.from_pretrained(folder / kind)), config, world)
            weights.draw(model, 5) if way == "drawn" else weights.read(model, str(folder / kind))
            held = sum(parameter.to_local().numel() for parameter in model.parameters())
            assert held < 0.6 * sum(parameter.numel() for parameter in model.parameters())
            whole = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
            if world.rank == 0:
                save_file(whole, folder / kind / f"{way}-{replicate}.tensors")
os._exit(0)  # as train.__main__.program ends under torchrun, and why
"""


def built(folder: Path) -> Any:
    model = weights.skeleton(AutoConfig.from_pretrained(folder))
    weights.materialise(model, torch.device("cpu"))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a kind, as transformers writes it, in several files."""
    parent = tmp_path_factory.mktemp("models")
    for kind, settings in KINDS.items():
        model = models.new_model(AutoConfig.for_model(kind, **settings), seed=1)
        model.save_pretrained(parent / kind, max_shard_size="20KB")
        assert (parent / kind / weights.INDEX).is_file()
    return parent


@pytest.mark.parametrize("kind", KINDS)
def test_weights_read_are_those_of_from_pretrained_bit_for_bit(kind: str, folders: Path) -> None:
    model = built(folders / kind)
    weights.read(model, str(folders / kind))

    expected = AutoModelForCausalLM.from_pretrained(folders / kind, dtype=torch.float32)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in expected.named_parameters()]
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    for (name, ours), theirs in zip(model.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_weights_kept_in_bf16_are_read_into_fp32(folders: Path, tmp_path: Path) -> None:
    model = built(folders / "llama")
    weights.read(model, str(folders / "llama"))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")

    half = built(tmp_path / "half")
    weights.read(half, str(tmp_path / "half"))

    for ours, theirs in zip(half.parameters(), model.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_drawn_are_as_transformers_initialises_them(kind: str, folders: Path) -> None:
    model = built(folders / kind)
    weights.draw(model, 5)

    expected = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folders / kind), dtype=torch.float32)
    for module in expected.modules():
        module._is_hf_initialized = False
    torch.manual_seed(5)
    expected.initialize_weights()
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "replicate"), [(2, 1), (4, 2)])
def test_weights_in_shares_are_those_of_one_process(processes: int, replicate: int, folders: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "shares.py"
    script.write_text(IN_SHARES)
    command = [*TORCHRUN, f"--nproc-per-node={processes}", str(script), str(folders), str(replicate)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]

    for kind in KINDS:
        for way in ("drawn", "read"):
            model = built(folders / kind)
            if way == "drawn":
                weights.draw(model, 5)
            else:
                weights.read(model, str(folders / kind))
            whole = load_file(folders / kind / f"{way}-{replicate}.tensors")
            for name, parameter in model.named_parameters():
                assert torch.equal(whole[name], parameter), (kind, way, name)


@pytest.mark.slow
def test_copies_of_shares_train_as_one_process_does(manifest_folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    values = settings | {"batch": 32, "micro_batch": 8}
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps(values))
    command = [*TORCHRUN, "--nproc-per-node=4", "-m", "train", "run", str(manifest_folder), str(config), "parallel.replicate=2"]
    result = subprocess.run(
        [*command, "-o", str(tmp_path / "four")], env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]

    one = train(manifest_folder, validated(Config, values), "fresh", tmp_path / "one")

    def recorded(run: Path, key: str) -> list[float]:
        return [json.loads(line)[key] for line in (run / "metrics.jsonl").read_text().splitlines()]

    for key in ("loss", "gradient_norm"):
        assert recorded(tmp_path / "four", key) == pytest.approx(recorded(one, key), rel=1e-4)


def gradients(recompute: str, compile_blocks: bool, manifest: Any, world: Any, seen: list[Any] | None = None) -> list[torch.Tensor]:
    """Of every parameter; `seen` gets an entry each time that the first block's activation function is computed."""
    values = {"model": {"path": "-"}, "batch": 4, "recompute": recompute, "compile": compile_blocks}
    shape = SHAPE | {"num_key_value_heads": 2, "max_position_embeddings": 64}
    model = models.place(weights.skeleton(AutoConfig.for_model("llama", **shape)), validated(Config, values), world)
    weights.draw(model, 5)
    if seen is not None:
        model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: seen.append(1))
    models.losses(model, read_step(manifest, 0, 4, 4, 0, 1).micro_batches[0], "fp32")[0].backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_blocks_computed_again_give_the_same_bits(recompute: str, manifest: Any, world: Any) -> None:
    once: list[Any] = []
    twice: list[Any] = []
    plain, again = gradients("none", False, manifest, world, once), gradients(recompute, False, manifest, world, twice)

    assert (len(once), len(twice)) == (1, 2)
    assert len(plain) == len(again) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, plain, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_compiled_blocks_give_the_same_gradients_to_rounding(recompute: str, manifest: Any, world: Any) -> None:
    for ours, theirs in zip(gradients(recompute, True, manifest, world), gradients("none", False, manifest, world), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
