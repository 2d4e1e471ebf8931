"""A byte-level BPE tokenizer of one's own corpus, as a folder that `transformers` and a recipe's `tokenizer.path` can open.

In: files of documents with a `text` field (.jsonl, .jsonl.gz, .jsonl.zst, .parquet). Out: `tokenizer.json` and `tokenizer_config.json`, with
`<|endoftext|>` as the one special token, which also ends a document. The same files give the same tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a byte-level BPE tokenizer.")
    parser.add_argument("folder", type=Path, help="where to write the tokenizer")
    parser.add_argument("files", type=Path, nargs="+", help="documents: .jsonl, .jsonl.gz, .jsonl.zst or .parquet")
    parser.add_argument("--entries", type=int, default=4096, help="size of the vocabulary")
    parser.add_argument("--megabytes", type=float, default=4, help="text to learn from, of each file")
    arguments = parser.parse_args()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=arguments.entries,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for path in arguments.files for text in beginning(path, arguments.megabytes)), trainer)

    arguments.folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "model_max_length": 1_000_000}
    (arguments.folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"  {tokenizer.get_vocab_size():,} entries from {len(arguments.files)} files")


def beginning(path: Path, megabytes: float) -> Iterator[str]:
    """The texts of a file until they hold that many million characters."""
    characters = 0
    for text in texts(path):
        if characters >= megabytes * 1e6:
            return
        characters += len(text)
        yield text


def texts(path: Path) -> Iterator[str]:
    if path.suffix == ".parquet":
        yield from pq.read_table(path, columns=["text"])["text"].to_pylist()
        return
    with path.open("rb") as file:
        stream: io.BufferedIOBase = file
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=file)
        elif path.suffix == ".zst":
            stream = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
        for line in stream:  # at line feeds only: texts hold other line separators
            yield json.loads(line)["text"]


if __name__ == "__main__":
    main()
