from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from manifests import small_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from mixing import UserError, validated
from mixing.manifest import Manifest
from train import model as models
from train import weights
from train.config import Config


@pytest.fixture
def saved(model: Any, tmp_path: Path) -> Path:
    """The model as a folder, as transformers writes it."""
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def read(folder: Path) -> PreTrainedModel:
    model = weights.skeleton(AutoConfig.from_pretrained(folder))
    weights.materialise(model, torch.device("cpu"))
    weights.read(model, str(folder))
    return model


def test_new_model_depends_on_the_seed_alone(config: Config) -> None:
    def drawn(seed: int) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in models.new_model(models.architecture(config), seed).parameters()])

    first = drawn(1)
    torch.manual_seed(99)
    torch.rand(5)

    assert torch.equal(drawn(1), first)
    assert not torch.equal(drawn(2), first)


def test_loaded_weights_are_those_of_the_folder(saved: Path, model: Any) -> None:
    loaded = read(saved)

    for (name, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_weights_that_do_not_fill_the_model_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})

    with pytest.raises(UserError, match=r"lacks 1 of the model's tensors \(lm_head\.weight"):
        read(saved)


def test_weights_as_pickle_are_refused(saved: Path, model: Any) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(model.state_dict(), saved / "pytorch_model.bin")

    with pytest.raises(UserError, match="a folder or hub name with safetensors weights is needed"):
        read(saved)


def test_vocabulary_larger_than_the_model_is_refused(config: Config, manifest: Manifest) -> None:
    assert config.model.config is not None
    narrow = config.model_copy(update={"model": config.model.model_copy(update={"config": config.model.config | {"vocab_size": 200}})})
    model = models.new_model(models.architecture(narrow), 1)

    with pytest.raises(UserError, match="model: 200 embedding rows, the manifest's tokenizer small has 256 tokens"):
        models.refuse_mismatch(model, None, manifest)


def test_sequences_longer_than_the_context_are_refused(config: Config, manifest: Manifest) -> None:
    assert config.model.config is not None
    short = config.model_copy(
        update={"model": config.model.model_copy(update={"config": config.model.config | {"max_position_embeddings": 32}})}
    )
    model = models.new_model(models.architecture(short), 1)

    with pytest.raises(UserError, match="a context of 32 tokens, the manifest's sequences have 64"):
        models.refuse_mismatch(model, None, manifest)


def test_tokenizer_that_names_other_tokens_is_refused(saved: Path, model: Any, manifest: Manifest) -> None:
    described = json.loads(small_tokenizer())
    (saved / "tokenizer.json").write_text(json.dumps(described, indent=2))
    models.refuse_mismatch(model, str(saved), manifest)  # the same tokens in other bytes

    vocabulary = described["model"]["vocab"]
    last, before = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
    vocabulary[last], vocabulary[before] = vocabulary[before], vocabulary[last]
    (saved / "tokenizer.json").write_text(json.dumps(described))

    with pytest.raises(UserError, match="another tokenizer than the manifest: they differ in 2 tokens, such as"):
        models.refuse_mismatch(model, str(saved), manifest)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"config": {"model_type": "lama"}}, r"model\.config\.model_type: transformers knows no 'lama'"),
        (
            {"config": {"model_type": "llama", "hiden_size": 3}},
            r"model\.config\.hiden_size: unknown key for llama; accepted here: .*hidden_size",
        ),
        ({"path": "/no/such/folder"}, r"model\.path: /no/such/folder: no such folder"),
    ],
)
def test_model_that_cannot_be_built_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.architecture(validated(Config, {"model": model, "batch": 1}))


def test_bf16_agrees_with_fp32_to_its_precision(model: Any, manifest: Manifest) -> None:
    from train.stream import read_step

    rows = read_step(manifest, 0, 8, 8, 0, 1).micro_batches[0]
    with torch.no_grad():
        exact, rounded = (models.losses(model, rows, precision)[0].item() for precision in ("fp32", "bf16"))

    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-2)
