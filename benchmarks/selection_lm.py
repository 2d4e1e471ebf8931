"""Two small causal language models for `selection.py`: one of general text, and the same one continued on the reference.

Sizes and rates were fixed before the first run and not changed after it: a 4,096-token byte-level BPE of the general texts and the reference; a Llama of three layers, width 96, 256 positions, 0.73 M
parameters; the first model reads 600,000 tokens of general text once at a peak rate of 3e-3, the second then reads the reference three times at 1e-3; both cosine to a tenth, warmed up over a twentieth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY, POSITIONS, ROWS = 4096, 256, 8
GENERAL_TOKENS, GENERAL_RATE = 600_000, 3e-3
PASSES, RATE = 3, 1e-3


def write(reference: list[str], general: list[str], seed: int, folder: Path) -> tuple[Path, Path]:
    """The folders of the two models, as transformers reads them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    tokenizer = trained_tokenizer(general + reference)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    fit(model, rows(tokenizer, general, 1, seed)[: GENERAL_TOKENS // POSITIONS], GENERAL_RATE)
    save(model, tokenizer, folder / "general")
    fit(model, rows(tokenizer, reference, PASSES, seed), RATE)
    save(model, tokenizer, folder / "reference")
    return folder / "general", folder / "reference"


def trained_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer()
    made.train_from_iterator((text[:20_000] for text in texts), VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, bos_token="<s>", eos_token="</s>")


def rows(tokenizer: PreTrainedTokenizerFast, texts: list[str], passes: int, seed: int) -> torch.Tensor:
    """Texts in a new order each pass, a BOS before each, cut into rows of POSITIONS + 1 ids."""

    def ids() -> Iterator[int]:
        for number in range(passes):
            for text in random.Random(f"{seed} {number}").sample(texts, len(texts)):
                yield tokenizer.bos_token_id
                yield from tokenizer.encode(text, add_special_tokens=False)

    flat = torch.tensor(list(ids()))
    return flat[: len(flat) // (POSITIONS + 1) * (POSITIONS + 1)].view(-1, POSITIONS + 1)


def fit(model: Any, data: torch.Tensor, peak: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    batches = data[torch.randperm(len(data))].split(ROWS)
    for step, batch in enumerate(batches):
        rate = peak * min((step + 1) / max(1, len(batches) // 20), 0.55 + 0.45 * math.cos(math.pi * step / len(batches)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(batch[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
