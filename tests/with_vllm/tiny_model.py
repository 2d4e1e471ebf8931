"""A language model of half a million parameters, made and trained on the spot to answer with question-answer pairs: `python tiny_model.py FOLDER`.

It learns to write, after a word that is repeated, a JSON object with a question and an answer about it; about a minute on one core. A chat template that it was trained with stands in its
tokenizer.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = [
    "river",
    "sea",
    "north",
    "flows",
    "rises",
    "city",
    "bridge",
    "stone",
    "water",
    "light",
    "long",
    "deep",
    "old",
    "new",
    "high",
    "low",
    "warm",
    "cold",
    "wide",
    "near",
]
CONTEXT, STEPS, BATCH = 512, 300, 16


def passage(draw: random.Random) -> str:
    """One word some times."""
    return " ".join([draw.choice(WORDS)] * draw.randint(4, 12))


def exchange(draw: random.Random) -> tuple[str, str]:
    """A passage, and a question-answer pair about its word."""
    text = passage(draw)
    word = text.split()[0]
    return text, json.dumps({"pairs": [{"question": f"{word} {word}?", "answer": f"the {word}."}]})


def made_tokenizer(draw: random.Random) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(exchange(draw)) for _ in range(500)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", chat_template=CHAT)


def train(folder: Path) -> float:
    """Trains and saves; the last loss."""
    torch.manual_seed(0)
    draw = random.Random(0)
    tokenizer = made_tokenizer(draw)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=CONTEXT, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = torch.tensor(0.0)
    for step in range(STEPS):
        texts = ["<|user|>{}<|end|><|assistant|>{}<|end|>".format(*exchange(draw)) for _ in range(BATCH)]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (STEPS - step) / 100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss.item()


if __name__ == "__main__":
    print(f"loss {train(Path(sys.argv[1])):.3f}")
