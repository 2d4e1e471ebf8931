"""Perplexity of a text under a causal language model that exists: a folder with a transformers model, or the name of one on the Hugging Face hub.

A text's tokens t1 … tn, BOS before them, give n predictions; `nll` is the sum of -log p(token | what stands before it). One struct per text: `perplexity` =
exp(nll / predictions), `bits_per_byte` = nll / ln 2 / bytes of UTF-8 (comparable across tokenizers), `tokens` = predictions. Null without a prediction.

BOS is the model's own, refused where its tokenizer names none; `bos: false` leaves it out, and then the first token is only context. EOS is not predicted. What looks like a
control token in a text is text, as in training (`curation.tokens`).

A text longer than `context` tokens (2048, or what the model has if that is less) is read in windows that begin `stride` tokens apart (half a context): a token is counted once, in the
first window it stands in, with at least `context - stride` tokens before it from the second window on.

A value depends on its text, the model, the settings, and in its last digits on the machine. It does not depend on the texts beside it: on a CPU a window is computed alone and on one thread, on a
GPU (in bfloat16) every batch of a length has one shape, filled up with empty rows, so that the same kernels run for every text. A value once computed is remembered with its row and not
computed again.

Only safetensors are read, no code of the model's own is run. On GPUs one process a GPU has the model, whatever `--workers` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.reference import ModelFolder
from curation.tokens import Encoder, TokenizerConfig
from curation.tokens import resolve as resolve_tokenizer
from mixing import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import torch

CONTEXT = 2048
TOKENS_AT_ONCE = 8192  # of a batch on a GPU
SHORTEST = 64  # tokens of a batch's rows on a GPU, the next lengths are twice the last
FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class CausalLMConfig(BaseModel):
    """The model, and how a long text is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["causal_lm"]
    model: str = Field(description="a folder with a transformers model, or a hub name, `@revision` behind it for another than the last")
    bos: bool | str = Field(default=True, description="the token before a text: true for the tokenizer's own, false for none, or its text")
    context: int | None = Field(default=None, ge=2, description="tokens of a window")
    stride: int | None = Field(default=None, ge=1, description="tokens from one window to the next")


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
    limit = inner.get("max_position_embeddings")
    if config.context is not None and limit is not None and config.context > limit:
        raise UserError(f"context: {config.context}, but the model at {folder} has {limit} positions; give at most that")
    if config.stride is not None and config.stride >= (context := _context(config, limit)):
        raise UserError(f"stride: {config.stride} leaves nothing before a window's first token; give less than the context, {context}")


def _tokenizer(config: CausalLMConfig, folder: Path) -> TokenizerConfig:
    return TokenizerConfig(path=str(folder), bos=config.bos, eos=False)


def _context(config: CausalLMConfig, limit: int | None) -> int:
    return config.context or min(CONTEXT, limit or CONTEXT)


def train(config: CausalLMConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    raise AssertionError("the model exists")


def processes() -> int | None:
    """As many as there are GPUs; None without one."""
    import torch

    return torch.cuda.device_count() or None


class Scorer(NamedTuple):
    model: Any  # a transformers causal language model on its device
    encoder: Encoder
    context: int
    stride: int
    rows: int  # tokens of a batch; 0: windows one by one


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
    sums = np.zeros(len(windows))
    for batch, length in _batches(windows, scorer.rows, scorer.context):
        rows = np.zeros((max(1, scorer.rows // length), length), np.int64)
        for row, number in enumerate(batch):
            at = windows[number]
            first = int(offsets[at.text])
            rows[row, : at.end - at.begin] = ids[first + at.begin : first + at.end]
        losses = _losses(scorer.model, rows)
        for row, number in enumerate(batch):
            at = windows[number]
            sums[number] = losses[row, at.counted - at.begin - 1 : at.end - at.begin - 1].sum(dtype=np.float64)
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


def _batches(windows: list[Window], tokens: int, context: int) -> Iterator[tuple[list[int], int]]:
    """(numbers of windows, the length of their rows): the windows one by one, or by length, as many rows as `tokens` allows and none longer than `context`."""
    lengths = [window.end - window.begin for window in windows]
    if not tokens:
        yield from (([number], length) for number, length in enumerate(lengths))
        return
    by_length: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        by_length.setdefault(min(context, max(SHORTEST, 1 << (length - 1).bit_length())), []).append(number)
    for length, numbers in sorted(by_length.items(), reverse=True):  # the largest first: memory that does not suffice shows at once
        rows = max(1, tokens // length)
        yield from ((numbers[first : first + rows], length) for first in range(0, len(numbers), rows))


def _losses(model: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """-log p of every token but the first of each row; what fills a row up stands behind its tokens, where no token sees it."""
    import torch
    import torch.nn.functional as F

    with torch.inference_mode(), _one_thread(model.device):
        ids = torch.from_numpy(rows).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        found = [F.cross_entropy(logits[row, :-1].float(), ids[row, 1:], reduction="none") for row in range(len(ids))]
        losses: npt.NDArray[np.float32] = torch.stack(found).cpu().numpy()
    return losses


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU the number of threads decides how sums are cut, and so the last digits."""
    import torch

    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache(maxsize=2)
def _loaded(config: CausalLMConfig, folder: str) -> Scorer:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = _device()
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"causal_lm.model: {folder}: {reason}; a transformers model with safetensors weights is needed") from None
    model, report = loaded
    if missing := sorted(str(key) for key in [*report["missing_keys"], *report["mismatched_keys"]]):
        raise UserError(
            f"causal_lm.model: {folder} lacks {len(missing)} of the model's tensors ({missing[0]}, …); its weights do not fit its config.json"
        )
    model = model.to(device).eval()
    context = _context(config, getattr(model.config.get_text_config(), "max_position_embeddings", None))
    encoder = Encoder.open(resolve_tokenizer(_tokenizer(config, Path(folder)), folder))
    return Scorer(model, encoder, context, config.stride or max(1, context // 2), TOKENS_AT_ONCE if device.type == "cuda" else 0)


def _device() -> torch.device:
    """The GPU of this process, by its number among the workers; the CPU without one."""
    import multiprocessing

    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = multiprocessing.current_process()._identity  # none for the build's own process
    return torch.device("cuda", (number[0] - 1 if number else 0) % torch.cuda.device_count())
