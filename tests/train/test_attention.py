"""Promise 10, with models that must be refused: the proof has to be able to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoConfig, PretrainedConfig

from mixing import UserError
from mixing.manifest import Manifest
from train import model as models
from train.attention import NAME, check_isolation
from train.config import Config
from train.loop import Run
from train.model import logits, new_model
from train.stream import Rows, fill

SMALL = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL |= {"max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 0}

ISOLATED = {
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 4},  # shorter than the documents: the window itself is tested
    "qwen3": SMALL | {"head_dim": 16, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma3_text": SMALL | {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": SMALL | {"head_dim": 16, "sliding_window": 4, "attn_logit_softcapping": None},
    "olmo2": SMALL,
    "phi3": SMALL | {"pad_token_id": 0},
    "gpt_neox": {key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
    "mixtral": SMALL | {"num_local_experts": 4},
    "gpt2": {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None, "eos_token_id": 0},
}
NOT_ISOLATED = {
    "gemma2": (
        SMALL | {"head_dim": 8, "query_pre_attn_scalar": 8},
        "has a soft cap or sinks in its attention",  # at 50, its default, a small model's logits hardly show it
    ),
    "gpt_oss": (SMALL | {"head_dim": 8, "num_local_experts": 2}, "has a soft cap or sinks in its attention"),
    "llama4_text": (SMALL | {"head_dim": 8, "num_local_experts": 2}, "layers of the kind chunked_attention cannot be kept inside"),
}


def built(kind: str, settings: dict[str, Any]) -> Any:
    config: PretrainedConfig = AutoConfig.for_model(kind, **settings)
    model = new_model(config, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)  # larger than at birth, so that attention matters to the logits
    return model


@pytest.mark.parametrize("kind", ISOLATED)
def test_packed_logits_equal_the_document_alone_and_ignore_all_others(kind: str) -> None:
    model = built(kind, ISOLATED[kind])
    model.train(False)
    random = np.random.default_rng(0)
    documents = [random.integers(0, 256, n) for n in (17, 1, 30, 9)]
    others = [random.integers(0, 256, len(document)) for document in documents]
    ends = np.cumsum([0, *map(len, documents)])
    with torch.no_grad():
        packed = logits(model, fill([documents, others], [0, 0], 60), "fp32")
        for kept in range(4):
            mixed = [document if number == kept else other for number, (document, other) in enumerate(zip(documents, others, strict=True))]
            again = logits(model, fill([mixed, documents], [0, 0], 60), "fp32")
            here = slice(ends[kept], ends[kept + 1])
            assert torch.equal(again[0, here], packed[0, here])
        model.set_attn_implementation("eager")
        for number, document in enumerate(documents):
            alone = model(input_ids=torch.from_numpy(document)[None], use_cache=False).logits[0]
            torch.testing.assert_close(packed[0, ends[number] : ends[number + 1]], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())


@pytest.mark.parametrize("kind", ISOLATED)
def test_self_test_of_an_isolated_model_passes(kind: str, manifest: Manifest, run: Run, config: Config) -> None:
    model = built(kind, ISOLATED[kind])

    models.check_isolation(model, config, manifest, run.world)

    assert model.training
    assert model.config._attn_implementation == NAME


@pytest.mark.parametrize("kind", NOT_ISOLATED)
def test_self_test_of_a_model_that_mixes_documents_refuses_it(kind: str, manifest: Manifest, run: Run, config: Config) -> None:
    settings, message = NOT_ISOLATED[kind]
    model = built(kind, settings)

    with pytest.raises(UserError, match=message):
        models.check_isolation(model, config, manifest, run.world)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("gptj", {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}, "gptj does not take the attention functions of transformers"),
        ("mamba", {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 1}, "mamba does not take the attention functions"),
        ("qwen3_next", SMALL | {"head_dim": 8, "num_experts": 0}, "qwen3_next does not take the attention functions"),
        ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 4}, "bloom does not take the attention functions of transformers"),
        ("llama", SMALL | {"pad_token_id": 900}, "cannot build a llama of this configuration: Padding_idx must be within num_embeddings"),
    ],
)
def test_model_that_cannot_be_built_for_packed_rows_is_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        new_model(AutoConfig.for_model(kind, **settings), 1)


def over_the_whole_row(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **_: Any) -> Any:
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return mixed.transpose(1, 2), None


def as_transformers_does(model: Any, **extra: Any) -> Callable[[Rows], torch.Tensor]:
    def forward(rows: Rows) -> torch.Tensor:
        scores: torch.Tensor = model(
            input_ids=rows.input_ids, position_ids=rows.position_ids, **{key: value(rows) for key, value in extra.items()}
        ).logits
        return scores

    return forward


@pytest.mark.parametrize("leak", ["attention over the whole row", "use_cache as it comes", "a mask of ones"])
def test_self_test_of_a_forward_pass_that_leaks_fires(leak: str) -> None:
    model = built("llama", SMALL)
    alone = as_transformers_does(model, use_cache=lambda _: False)
    if leak == "attention over the whole row":
        AttentionInterface.register("over_the_whole_row", over_the_whole_row)
        model.set_attn_implementation("over_the_whole_row")
        packed = as_transformers_does(model, cu_seq_lens_q=lambda rows: rows.boundaries, use_cache=lambda _: False)
    else:
        model.set_attn_implementation("sdpa")
        packed = (
            as_transformers_does(model)
            if leak == "use_cache as it comes"
            else as_transformers_does(model, attention_mask=lambda rows: torch.ones_like(rows.input_ids), use_cache=lambda _: False)
        )

    with pytest.raises(UserError, match=r"change by [0-9.e-]+ when another document of the same row changes"):
        check_isolation(packed, alone, 256, 64, 1e-4)


def test_gradients_of_packed_rows_equal_those_of_documents_alone() -> None:
    model = built("llama", SMALL)
    random = np.random.default_rng(1)
    documents = [random.integers(0, 256, n) for n in (17, 30, 9)]
    models.losses(model, fill([documents], [0], 60), "fp32")[0].backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("eager")
    for document in documents:
        ids = torch.from_numpy(document)[None]
        scores = model(input_ids=ids, use_cache=False).logits
        F.cross_entropy(scores[0, :-1], ids[0, 1:], reduction="sum").backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-3, atol=1e-5 * parameter.grad.abs().max().item() + 1e-6)
