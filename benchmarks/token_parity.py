"""Are the ids that fastokens gives those of Hugging Face tokenizers, and how fast are both? Compares every document of the given files.

    python benchmarks/token_parity.py TOKENIZER FILE… [--text COLUMN] [--documents N]

Reads Parquet and JSON Lines (plain, .gz, .zst). Control tokens of the tokenizer are planted in one more document of every file. Exits with 1 where a
document differs. One thread; MB is a million bytes of UTF-8, time is processor time.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["FASTOKENS_BPE_THREADS"] = os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import click
import orjson
import pyarrow.parquet as pq
import zstandard

from curation.tokens import Fastokens, HuggingFace, Library, TokenizerConfig, first_difference, parsed, resolve

BATCH = 256


def documents(path: Path, column: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
        return
    with path.open("rb") as raw:
        plain = {".gz": lambda: gzip.GzipFile(fileobj=raw), ".zst": lambda: zstandard.ZstdDecompressor().stream_reader(raw)}.get(
            path.suffix, lambda: raw
        )()
        for line in io.TextIOWrapper(plain, encoding="utf-8", newline="\n"):
            yield orjson.loads(line)[column]


def timed(library: Library, texts: list[str]) -> float:
    start = time.process_time()
    library.encode(texts)
    return time.process_time() - start


@click.command()
@click.argument("tokenizer", type=click.Path(exists=True, path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", "column", default="text", show_default=True, help="The column that holds the text.")
@click.option("--documents", "most", default=1000, show_default=True, help="How many documents of each file, from its start.")
def main(tokenizer: Path, files: tuple[Path, ...], column: str, most: int) -> None:
    resolved = resolve(TokenizerConfig(path=str(tokenizer), eos=False))
    trusted = parsed(resolved.read(), tokenizer)
    control = " ".join(token.content for token in trusted.get_added_tokens_decoder().values())
    fast, slow = Fastokens(resolved.read().decode()), HuggingFace(trusted)
    compared = differing = size = 0
    seconds = {fast.name: 0.0, slow.name: 0.0}
    for path in files:
        texts = [text for text, _ in zip(documents(path, column), range(most), strict=False)]
        texts.append(f"{texts[0][:200]} {control} {texts[0][-200:]}")
        wrong = 0
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            for library in (fast, slow):
                seconds[library.name] += timed(library, batch)
            if first_difference(fast, slow, batch) is not None:
                messages = [message for text in batch if (message := first_difference(fast, slow, [text])) is not None]
                wrong += len(messages)
                print(f"{path.parent.name}/{path.name}: {messages[0]}", file=sys.stderr)
        size += sum(len(text.encode()) for text in texts)
        compared, differing = compared + len(texts), differing + wrong
        print(f"{path.parent.name}/{path.name}: {len(texts)} documents compared, {wrong} differ")
    print(f"all: {compared} documents compared, {differing} differ, {size / 1e6:.1f} MB")
    for name, spent in seconds.items():
        print(f"{name}: {size / 1e6 / spent:.1f} MB/s")
    sys.exit(int(differing > 0))


if __name__ == "__main__":
    main()
