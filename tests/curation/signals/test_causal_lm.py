"""Perplexity under a causal language model: a tiny random Llama against direct forward passes of transformers, alone and through whole builds."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from recipes import built, pool_of, recipe, text_of, write_corpus, write_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from curation.engine.local import Engine
from curation.signals import SIGNALS
from curation.signals.causal_lm import CausalLMConfig, _loaded, score
from curation.signals.causal_lm_engines import Transformers, batches
from curation.text.tokenizer import Encoder, TokenizerConfig, resolve
from mixing import UserError

SIGNAL = SIGNALS["causal_lm"]
END = "<|end|>"


def array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def config(folder: Path, **changes: Any) -> CausalLMConfig:
    return CausalLMConfig.model_validate({"kind": "causal_lm", "model": str(folder), "bos": END, **changes})


def write_model(folder: Path, positions: int = 64) -> Path:
    """A random Llama of 0.1 million parameters with the test tokenizer."""
    write_tokenizer(folder)
    torch.manual_seed(5)
    size = resolve(TokenizerConfig(path=str(folder), eos=END)).vocab_size
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=positions,
            initializer_range=0.3,  # far from uniform, so that a token more or less before another one shows
        )
    )
    assert sum(weights.numel() for weights in llama.parameters()) < 1_000_000
    llama.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("lm") / "tiny")


def direct(folder: Path, ids: list[int], counted: int = 1) -> float:
    """The sum of -log p of the tokens from `counted` on, by one forward pass of transformers."""
    llama = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logs = torch.log_softmax(llama(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    return -sum(float(logs[at - 1, ids[at]]) for at in range(counted, len(ids)))


def encoded(folder: Path, text: str, bos: str | bool = END) -> list[int]:
    encoder = Encoder.open(resolve(TokenizerConfig(path=str(folder), bos=bos, eos=False)))
    return [int(one) for one in encoder.encode([text])[0]]


@pytest.mark.parametrize("bos", [END, False])
def test_perplexity_and_bits_equal_a_direct_forward_pass(model: Path, bos: str | bool) -> None:
    text = text_of(1, 6)
    ids = encoded(model, text, bos)
    assert 10 < len(ids) <= 64

    (value,) = SIGNAL.compute(config(model, bos=bos), array([text]), model).to_pylist()

    nll = direct(model, ids)
    assert value["tokens"] == len(ids) - 1
    assert value["perplexity"] == pytest.approx(math.exp(nll / (len(ids) - 1)), rel=1e-4)
    assert value["bits_per_byte"] == pytest.approx(nll / math.log(2) / len(text.encode()), rel=1e-4)


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (16, 4), (16, 15), (10, 1), (2, 1)])
def test_windows_count_every_token_once_after_what_stands_before_it(model: Path, context: int, stride: int) -> None:
    text = text_of(2, 30)
    ids = encoded(model, text)
    assert len(ids) > 100

    (value,) = SIGNAL.compute(config(model, context=context, stride=stride), array([text]), model).to_pylist()

    nll, done, begin = 0.0, 1, 0
    while done < len(ids):  # told again, plainly: the next window begins `stride` tokens on and counts what no window has counted
        end = min(begin + context, len(ids))
        if end > done:
            nll += direct(model, ids[begin:end], done - begin)
            done = end
        begin += stride
    assert value["tokens"] == len(ids) - 1
    assert value["perplexity"] == pytest.approx(math.exp(nll / (len(ids) - 1)), rel=1e-4)


def test_a_value_depends_on_its_text_alone_to_the_last_bit(model: Path) -> None:
    texts = [text_of(seed, 3 + seed * 5) for seed in range(9)] + ["", "a", text_of(3, 200)]
    together = SIGNAL.compute(config(model), array(texts), model).to_pylist()

    assert together == [SIGNAL.compute(config(model), array([text]), model).to_pylist()[0] for text in texts]
    assert together[::-1] == SIGNAL.compute(config(model), array(texts[::-1]), model).to_pylist()


def test_batches_of_one_shape_give_each_text_what_it_has_alone(model: Path) -> None:
    """What a GPU does, on this processor: rows filled up to one length, batches to one number of rows."""
    one_by_one = _loaded(config(model), str(model))
    scorer = one_by_one._replace(losses=Transformers(str(model), one_by_one.context, tokens=256).losses)
    texts = [text_of(seed, 2 + seed * 3) for seed in range(12)]

    def scored(some: list[str]) -> npt.NDArray[np.float64]:
        return score(scorer, *scorer.encoder.encode(some))[0]

    alone = np.concatenate([scored([text]) for text in texts])
    assert np.array_equal(scored(texts), alone)
    assert np.array_equal(scored(texts[::-1])[::-1], alone)
    unpadded = score(one_by_one, *scorer.encoder.encode(texts))[0]
    assert np.allclose(alone, unpadded, rtol=1e-5)


def test_rows_of_a_batch_are_no_longer_than_the_context() -> None:
    assert list(batches([2, 40, 70, 100], 200, 100)) == [([2, 3], 100), ([0, 1], 64)]


def test_control_tokens_in_a_text_are_text(model: Path) -> None:
    (value,) = SIGNAL.compute(config(model), array([END]), model).to_pylist()

    assert value["tokens"] == len(encoded(model, END, False)) > 1


def test_a_text_without_a_prediction_has_no_value(model: Path) -> None:
    assert SIGNAL.compute(config(model, bos=False), array(["", "a"]), model).to_pylist() == [None, None]
    assert SIGNAL.compute(config(model), array([""]), model).to_pylist() == [None]


# --- builds


def ordered(folder: Path, model: str) -> dict[str, Any]:
    """A recipe that keeps the half the model finds likeliest and trains on them in that order."""
    write_corpus(folder)
    steps = [
        {"add": {"lm": {"kind": "causal_lm", "model": model, "bos": END}}},
        {"top": {"by": "lm.perplexity", "order": "ascending", "share": 0.5}},
    ]
    values = recipe(steps=steps)
    values["mixture"] |= {"max_epochs": {"domain": 50, "replay": 50}}
    values["mixture"]["stages"][0]["order"] = {"by": "lm.perplexity", "buckets": 4, "components": ["replay"]}
    return values


def test_a_build_ranks_and_orders_by_the_model_and_computes_no_value_twice(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "tiny")
    values = ordered(tmp_path, "tiny")

    first = built(tmp_path, values, tmp_path / "one", tmp_path / "work")
    other = built(tmp_path, values, tmp_path / "two", tmp_path / "other", workers=2)
    values["steps"][1]["top"]["share"] = 0.4
    again = built(tmp_path, values, tmp_path / "three", tmp_path / "work")

    assert first.digest == other.digest
    assert first.computed["lm"] > 0
    assert again.computed["lm"] == 0
    rows = [row for row in pool_of(tmp_path / "one") if row["lm"] is not None]
    kept, dropped = ([row["lm"]["perplexity"] for row in rows if row["decision"] == one] for one in ("kept", "dropped"))
    assert max(kept) <= min(dropped)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), "has no weights as safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "has no config.json that can be read"),
        (lambda folder: (folder / "config.json").unlink(), "no file matches"),
        (lambda folder: change(folder, auto_map={"AutoModel": "own.Model"}), r"needs code of its own \(own.Model\), which is not run"),
        (lambda folder: change(folder, vocab_size=3), "they do not belong together"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_data_is_read(tmp_path: Path, model: Path, spoil: Any, message: str) -> None:
    shutil.copytree(model, tmp_path / "tiny")
    spoil(tmp_path / "tiny")

    with pytest.raises(UserError, match=rf"(?s)steps\[0\]\.add\.lm\.model: .*{message}"):
        built(tmp_path, ordered(tmp_path, "tiny"), tmp_path / "out")
    assert not (tmp_path / ".tilth" / "shards").exists()


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context": 65}, "context: 65, but the model at .* can read 64 tokens at once"),
        ({"stride": 64}, "stride: 64 leaves nothing before"),
        ({"bos": True}, "names a bos token"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(model: Path, values: dict[str, Any], message: str) -> None:
    (reference,) = SIGNAL.references(config(model, **values)).values()

    with pytest.raises(UserError, match=message):
        reference.check(model)


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "tiny")
    change(tmp_path / "tiny", num_hidden_layers=3)

    with pytest.raises(UserError, match=r"causal_lm\.model: .* lacks \d+ of the model's tensors"):
        SIGNAL.compute(config(tmp_path / "tiny"), array(["a"]), tmp_path / "tiny")


def test_a_changed_model_has_another_digest(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "tiny")
    values = ordered(tmp_path, "tiny")
    first = built(tmp_path, values, tmp_path / "one")
    torch.manual_seed(6)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    with torch.no_grad():
        llama.lm_head.weight.mul_(2)
    llama.save_pretrained(tmp_path / "tiny")

    second = built(tmp_path, values, tmp_path / "two")

    assert first.digest != second.digest
    assert second.computed["lm"] > 0


def test_fewer_processes_are_started_for_a_step_and_ended_with_it() -> None:
    import recipes

    with Engine(3) as engine:
        many = {process for process, _ in engine.map(recipes.threads, [(one,) for one in range(12)], "many")}
        few = {process for process, _ in engine.map(recipes.threads, [(one,) for one in range(12)], "few", 2)}
        again = engine.map(recipes.square, [(one,) for one in range(5)], "again")

    assert len(few) <= 2
    assert not few & many
    assert again == [0, 1, 4, 9, 16]
