"""The raw material: corpora cut into passages, noisy pools with known labels, reference samples, a tokenizer.

In: a folder with one folder per corpus, its files Parquet or .jsonl.zst with the columns `id`, `text`, `meta` (JSON). Out, below the rig's folder: a
Parquet file for each corpus with `text`, `kind` (the corpus) and `part` (0 to 99, by hash of the document, of the whole book where there are books, so
that passages of one document never stand on two sides of a split). Everything is a function of the corpora and the seed.

Parts 0 to 9 are the exam, 10 to 14 references, 88 to 99 of general text are never shown to a base model.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from tokenizers import Tokenizer

from experiments.rig.files import missing

LONGEST = 1_600  # characters of a passage
REFERENCES = 100  # passages of each corpus
EXAM, REFERENCE, UNSEEN = 10, 15, 88  # parts below, below, and from
GENERAL = ("books_en", "wiki_en")
TRAIN_TOKENIZER = Path(__file__).parents[2] / "examples" / "train_tokenizer.py"


class Domain(NamedTuple):
    """What is learned, and what a pool holds beside it."""

    kinds: tuple[str, ...]
    noise: tuple[str, ...]


DOMAINS = {
    "medical": Domain(
        ("med_abstracts", "med_textbook", "med_qa"),
        ("techdocs_en", "math_tex", "math_textbook", "math_word", "code_methods", "sci_abstracts", "handbook_en"),
    ),
    "math": Domain(
        ("math_word", "math_tex", "math_mc"),
        ("techdocs_en", "med_abstracts", "med_textbook", "code_methods", "sci_abstracts", "handbook_en"),
    ),
}
# Millions of characters that the tokenizer learns from.
LEARNED_FROM = {"books_en": 6.0, "wiki_en": 2.0, "med_abstracts": 0.5, "med_textbook": 0.5, "med_qa": 0.5} | dict.fromkeys(
    ("techdocs_en", "math_tex", "math_word", "code_methods"), 0.2
)


def kinds() -> list[str]:
    """Every corpus that some experiment reads."""
    return sorted({*GENERAL, *(kind for domain in DOMAINS.values() for kind in (*domain.kinds, *domain.noise))})


def prepare(corpora: Path, folder: Path, vocabulary: int) -> None:
    """Passages of every corpus and the tokenizer, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds():
        if not (folder / f"{kind}.parquet").exists():
            write(folder / f"{kind}.parquet", kind, documents(corpora / kind, kind))
    if not (folder / "tokenizer" / "tokenizer_config.json").exists():
        train_tokenizer(folder, vocabulary)


def documents(folder: Path, kind: str) -> Iterator[tuple[str, int]]:
    """(passage, part) of every document of a corpus."""
    for row in records(folder):
        meta = json.loads(row["meta"] or "{}") if isinstance(row.get("meta"), str) else {}
        group = meta.get("book") if kind == "books_en" else meta.get("module")
        part = int.from_bytes(hashlib.sha256(f"{kind}/{group or row['id']}".encode()).digest()[:8]) % 100
        for passage in passages(str(row["text"])):
            yield passage, part


def records(folder: Path) -> Iterator[dict[str, str]]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet":
            yield from pq.read_table(path, columns=["id", "text", "meta"]).to_pylist()
        elif path.suffix == ".zst":
            with path.open("rb") as file:
                for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file)):
                    yield json.loads(line)


def passages(text: str, longest: int = LONGEST) -> list[str]:
    """The text in pieces of at most `longest` characters, cut at blank lines, else at line ends, else at sentences, else anywhere; only what is blank is lost."""
    pieces = [text]
    for boundary in (r"(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?。！？] )"):
        pieces = [part for piece in pieces for part in (gathered(re.split(boundary, piece), longest) if len(piece) > longest else [piece])]
    cut = [piece[begin : begin + longest] for piece in pieces for begin in range(0, len(piece), longest)]
    return [piece for piece in cut if piece.strip()]


def gathered(parts: Sequence[str], longest: int) -> list[str]:
    """Neighbours joined as long as they fit."""
    joined = [""]
    for part in parts:
        if joined[-1] and len(joined[-1]) + len(part) > longest:
            joined.append("")
        joined[-1] += part
    return joined


def write(file: Path, kind: str, rows: Iterator[tuple[str, int]]) -> None:
    found = list(rows)
    if not found:
        sys.exit(f"{kind}: no text in its folder; experiments/README.md says what lies there")
    store(file, {"text": [text for text, _ in found], "kind": [kind] * len(found), "part": [part for _, part in found]})


def store(file: Path, columns: dict[str, list[str] | list[int]]) -> None:
    partial = file.with_suffix(".incomplete")
    pq.write_table(pa.table(columns), partial)
    partial.rename(file)


def read(folder: Path, kind: str, first: int, end: int) -> list[str]:
    """The distinct passages of a corpus in the parts from `first` up to `end`, in the order of the corpus."""
    table = pq.read_table(folder / f"{kind}.parquet").to_pylist()
    return list(dict.fromkeys(row["text"] for row in table if first <= row["part"] < end))


def train_tokenizer(folder: Path, vocabulary: int) -> None:
    """The byte-level BPE of `examples/train_tokenizer.py`, of training text alone."""
    shares = {kind: beginning(read(folder, kind, EXAM, UNSEEN), millions * 1e6) for kind, millions in LEARNED_FROM.items()}
    store(folder / "tokenizer.parquet", {"text": [text for texts in shares.values() for text in texts]})
    command = [sys.executable, str(TRAIN_TOKENIZER), str(folder / "tokenizer"), str(folder / "tokenizer.parquet")]
    subprocess.run([*command, "--entries", str(vocabulary), "--megabytes", "1000"], check=True)


def beginning(texts: Sequence[str], characters: float) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def pool(folder: Path, name: str, seed: int, tokens: int, general: float = 0.0) -> Path:
    """A noisy pool of at least `tokens` tokens: a quarter the domain in equal parts of its corpora, `general` of it general text that no base has read,
    the rest other corpora in equal parts. `kind` is the label that no recipe looks at but to judge a selection."""
    file = folder / f"pool-{name}{'-general' if general else ''}-{seed}.parquet"
    with missing(file, folder) as wanted:
        if not wanted:
            return file
        domain = DOMAINS[name]
        shares = {kind: 0.25 / len(domain.kinds) for kind in domain.kinds}
        shares |= {kind: (0.75 - general) / len(domain.noise) for kind in domain.noise}
        shares |= {"books_en": general * 0.9, "wiki_en": general * 0.1} if general else {}
        drawn = random.Random(f"pool {name} {seed}")
        counted = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        rows: list[tuple[str, str]] = []
        for kind, share in shares.items():
            texts = read(folder, kind, UNSEEN if kind in GENERAL else REFERENCE, 100)
            drawn.shuffle(texts)
            rows += [(text, kind) for text in until(texts, counted, share * tokens)]
        drawn.shuffle(rows)
        store(file, {"text": [text for text, _ in rows], "kind": [kind for _, kind in rows]})
    return file


def until(texts: Sequence[str], tokenizer: Tokenizer, tokens: float) -> Iterator[str]:
    """Texts, each with its end token, until they have `tokens` tokens. ValueError if there are not so many."""
    for text in texts:
        if tokens <= 0:
            return
        tokens -= len(tokenizer.encode(text, add_special_tokens=False).ids) + 1
        yield text
    if tokens > 0:
        raise ValueError(f"the corpus ends {tokens:,.0f} tokens too early")


def reference(folder: Path, name: str) -> Path:
    """Some passages of each corpus of the domain, of documents that no pool and no exam has."""
    file = folder / f"reference-{name}.parquet"
    with missing(file, folder) as wanted:
        if not wanted:
            return file
        drawn = random.Random(f"reference {name}")
        texts: list[str] = []
        for kind in DOMAINS[name].kinds:
            found = read(folder, kind, EXAM, REFERENCE)
            texts += drawn.sample(found, min(REFERENCES, len(found)))
        store(file, {"text": texts})
    return file
