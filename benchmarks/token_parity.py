"""Are the ids that fastokens gives those of Hugging Face tokenizers, and how fast are both? Compares every document of the given files.

    python benchmarks/token_parity.py TOKENIZER FILE… [--text COLUMN] [--documents N] [--unigram]

Reads Parquet and JSON Lines (plain, .gz, .zst). Control tokens of the tokenizer are planted in one more document of every file. Exits with 1 where a
document differs. `--unigram` also trains a Unigram tokenizer on the first documents, which fastokens does not read, and checks that the encoder falls back to
`tokenizers`, says so in a warning, and gives its ids. One thread; MB is a million bytes of UTF-8, time is processor time.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

os.environ["FASTOKENS_BPE_THREADS"] = os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import click
import orjson
import pyarrow.parquet as pq
import zstandard

from curation.text.tokenizer import Encoder, Fastokens, HuggingFace, Library, TokenizerConfig, first_difference, parsed, resolve

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


def check_unigram(texts: list[str]) -> bool:
    """A Unigram tokenizer trained on `texts` is encoded by `tokenizers`, with a warning that says so."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trained.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=8000, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False)
    )
    with tempfile.TemporaryDirectory() as folder:
        trained.save(f"{folder}/tokenizer.json")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            encoder = Encoder.open(resolve(TokenizerConfig(path=folder, eos="</s>")))
        ids, ends = encoder.encode(texts)
        saved = Tokenizer.from_file(f"{folder}/tokenizer.json")
    saved.encode_special_tokens = True
    expected = [[*saved.encode(text, add_special_tokens=False).ids, saved.token_to_id("</s>")] for text in texts]
    same = [ids[low:high].tolist() for low, high in pairwise(ends.tolist())] == expected
    told = [str(one.message) for one in said if encoder.name in str(one.message)]
    print(
        f"unigram of {trained.get_vocab_size()} tokens: encoded by {encoder.name}; {len(texts)} documents, ids {'equal' if same else 'DIFFER'}; {told}"
    )
    return same and encoder.name.startswith("tokenizers ") and len(told) == 1


@click.command()
@click.argument("tokenizer", type=click.Path(exists=True, path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", "column", default="text", show_default=True, help="The column that holds the text.")
@click.option("--documents", "most", default=1000, show_default=True, help="How many documents of each file, from its start.")
@click.option("--unigram", is_flag=True, help="Check the fallback on a Unigram tokenizer too.")
def main(tokenizer: Path, files: tuple[Path, ...], column: str, most: int, unigram: bool) -> None:
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
    print(f"ratio: {seconds[slow.name] / seconds[fast.name]:.1f}")
    fell_back = not unigram or check_unigram([text for path in files for text, _ in zip(documents(path, column), range(100), strict=False)])
    sys.exit(int(differing > 0 or not fell_back))


if __name__ == "__main__":
    main()
