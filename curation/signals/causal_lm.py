"""Perplexity of a text under a causal language model that exists: a folder with a transformers model, or the name of one on the Hugging Face hub.

A text's tokens t1 … tn, BOS before them, give n predictions; `nll` is the sum of -log p(token | what stands before it). One struct per text: `perplexity` =
exp(nll / predictions), `bits_per_byte` = nll / ln 2 / bytes of UTF-8 (comparable across tokenizers), `tokens` = predictions. Null without a prediction.

BOS is the model's own, refused where its tokenizer names none; `bos: false` leaves it out, and then the first token is only context. EOS is not predicted. What looks like a
control token in a text is text, as in training (`curation.text.tokenizer`).

A text longer than `context` tokens (2048, or what the model has if that is less) is read in windows that begin `stride` tokens apart (half a context): a token is counted once, in the
first window it stands in, with at least `context - stride` tokens before it from the second window on.

A value depends on its text, the model, the settings, and in its last digits on the machine. It does not depend on the texts beside it: on a CPU a window is computed alone and on one thread, on a
GPU (in bfloat16) every batch of a length has one shape, filled up with empty rows, so that the same kernels run for every text. A value once computed is remembered with its row and not
computed again.

Only safetensors are read, no code of the model's own is run. On GPUs one process a GPU has the model, whatever `--workers` says.

`engine: vllm` (extra `vllm`) asks vLLM for the log-probabilities of its prompts instead: faster where a GPU is. It keeps a place in the model's context for an answer, so a window has at most one token less
than the model has positions; and how it cuts its batches may move a value's last digits from one build to another, unless vLLM is told to be batch-invariant (`VLLM_BATCH_INVARIANT=1`, on GPUs that it can).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.reference import ModelFolder
from curation.text.tokenizer import Encoder, TokenizerConfig
from curation.text.tokenizer import resolve as resolve_tokenizer
from mixing import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

CONTEXT = 2048
FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class CausalLMConfig(BaseModel):
    """The model, and how a long text is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["causal_lm"]
    model: str = Field(description="a folder with a transformers model, or a hub name, `@revision` behind it for another than the last")
    bos: bool | str = Field(default=True, description="the token before a text: true for the tokenizer's own, false for none, or its text")
    context: int | None = Field(default=None, ge=2, description="tokens of a window")
    stride: int | None = Field(default=None, ge=1, description="tokens from one window to the next")
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="what computes: transformers, or vLLM's prompt log-probabilities"
    )


def version(config: CausalLMConfig) -> str:
    return "causal lm 1"


def fields(config: CausalLMConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.struct([pa.field("perplexity", pa.float64()), pa.field("bits_per_byte", pa.float64()), pa.field("tokens", pa.int64())])


def references(config: CausalLMConfig) -> dict[str, ModelFolder]:
    return {"model": ModelFolder(config.model, FILES, partial(_check, config))}


def _check(config: CausalLMConfig, folder: Path) -> None:
    """Refuses a folder whose model cannot be scored with, before any data is read."""
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} has no config.json that can be read; accepted: a folder that transformers wrote") from None
    if "auto_map" in settings:
        raise UserError(
            f"{folder} needs code of its own ({', '.join(settings['auto_map'].values())}), which is not run; accepted: models that transformers knows"
        )
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has no weights as safetensors; load the model and write it with save_pretrained")
    tokenizer = resolve_tokenizer(_tokenizer(config, folder), folder)
    inner = settings.get("text_config", settings)
    if tokenizer.vocab_size > inner.get("vocab_size", tokenizer.vocab_size):
        raise UserError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model {inner['vocab_size']} embeddings; they do not belong together"
        )
    limit = _limit(config, inner.get("max_position_embeddings"))
    if config.context is not None and limit is not None and config.context > limit:
        raise UserError(f"context: {config.context}, but the model at {folder} can read {limit} tokens at once; give at most that")
    if config.stride is not None and config.stride >= (context := _context(config, limit)):
        raise UserError(f"stride: {config.stride} leaves nothing before a window's first token; give less than the context, {context}")


def _tokenizer(config: CausalLMConfig, folder: Path) -> TokenizerConfig:
    return TokenizerConfig(path=str(folder), bos=config.bos, eos=False)


def _limit(config: CausalLMConfig, positions: int | None) -> int | None:
    return positions - 1 if positions is not None and config.engine == "vllm" else positions


def _context(config: CausalLMConfig, limit: int | None) -> int:
    return config.context or min(CONTEXT, limit or CONTEXT)


def train(config: CausalLMConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    raise AssertionError("the model exists")


def processes(config: CausalLMConfig) -> int | None:
    """As many as there are GPUs; without one, as many as the build has, or a single one for vLLM, which takes all cores itself."""
    import torch

    return torch.cuda.device_count() or (1 if config.engine == "vllm" else None)


class Scorer(NamedTuple):
    """What reads a text as ids, and an engine: windows of ids -> -log p of every token but a window's first."""

    losses: Callable[[Sequence[npt.NDArray[np.uint32]]], list[npt.NDArray[np.float32]]]
    encoder: Encoder
    context: int
    stride: int


class Window(NamedTuple):
    """Tokens `[begin, end)` of a text, of which those from `counted` on are predicted for the first time."""

    text: int
    begin: int
    end: int
    counted: int


def compute(config: CausalLMConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.StructArray:
    """Perplexity, bits a byte and predictions of every text."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    assert model is not None
    scorer = _loaded(config, str(model))
    ids, offsets = scorer.encoder.encode(texts.to_pylist())
    nll, predictions = score(scorer, ids, offsets)
    none = predictions == 0
    size = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [np.exp(nll / predictions), nll / np.log(2) / size, predictions]
    return pa.StructArray.from_arrays([pa.array(column) for column in columns], fields=list(fields(config)), mask=pa.array(none))


def score(
    scorer: Scorer, ids: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Per text the sum of -log p over its predictions, in nats, and their number."""
    import numpy as np

    windows = [
        window._replace(text=text)
        for text, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
        for window in _windows(last - first, scorer.context, scorer.stride)
    ]
    pieces = [ids[offsets[at.text] + at.begin : offsets[at.text] + at.end] for at in windows]
    sums = np.zeros(len(windows))
    for number, (at, losses) in enumerate(zip(windows, scorer.losses(pieces), strict=True)):
        sums[number] = losses[at.counted - at.begin - 1 :].sum(dtype=np.float64)
    nll, owner = np.zeros(len(offsets) - 1), np.array([window.text for window in windows], np.int64)
    np.add.at(nll, owner, sums)  # one after the other, so in the order of a text's windows
    return nll, np.maximum(np.diff(offsets) - 1, 0)


def _windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """The windows of a text of so many tokens; none where nothing is predicted."""
    begin, end, counted = 0, min(length, context), 1
    while end > counted:
        yield Window(0, begin, end, counted)
        begin, counted = begin + stride, end
        end = min(begin + context, length)


@lru_cache(maxsize=2)
def _loaded(config: CausalLMConfig, folder: str) -> Scorer:
    from curation.signals import causal_lm_engines

    settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    context = _context(config, _limit(config, settings.get("text_config", settings).get("max_position_embeddings")))
    engine = causal_lm_engines.Vllm(folder, context) if config.engine == "vllm" else causal_lm_engines.Transformers(folder, context)
    encoder = Encoder.open(resolve_tokenizer(_tokenizer(config, Path(folder)), folder))
    return Scorer(engine.losses, encoder, context, config.stride or max(1, context // 2))
