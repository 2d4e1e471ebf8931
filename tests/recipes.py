"""A small corpus with planted truth, a trained tokenizer and recipes over them, for tests of curation; and tasks that worker processes can import.

`write_corpus(folder)` writes three sources in four formats: distinct random texts, exact copies and near-copies of some of them within a source and across sources, lines
that cannot be used, blank lines and short texts. What it returns says which record is what, by key. Nothing depends on time or order of files on disk.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from manifests import small_tokenizer

from curation.build import Built, build
from curation.engine.atomic_files import whole
from curation.engine.local import Engine, Lost, Run
from curation.recipe import load

VOCABULARY = [
    "".join(parts)
    for parts in zip(
        *(random.Random(seed).choices(["so", "il", "ra", "ven", "tu", "mek", "or", "lis"], k=400) for seed in range(3)), strict=True
    )
]


def text_of(seed: int, words: int = 60) -> str:
    """A text of its own for every seed: shares hardly a run of five words with any other."""
    chosen = random.Random(f"text {seed}").choices(VOCABULARY, k=words)
    return " ".join(chosen) + "."


def near_copy(text: str, seed: int) -> str:
    """The text with one word replaced in the middle: with 60 words, 56 shingles, Jaccard 51/61."""
    parts = text.split()
    parts[len(parts) // 2] = f"other{seed}"
    return " ".join(parts)


# --- what commands say

PHASE = re.compile(r"(\S.*\S  )?\s*[\d,.]* ?(parts|documents|records|sequences)?  +\d+(\.\d s| m \d\d s)")
"""The line of a phase that took a second or more."""


def said(errors: str) -> str:
    """What stands on stderr besides the phases, of which a busy machine has some."""
    return "".join(line for line in errors.splitlines(keepends=True) if not PHASE.fullmatch(line.rstrip("\n")))


# --- files


def json_lines(records: Iterable[Mapping[str, Any] | bytes]) -> bytes:
    """One line a record; bytes stand as they are."""
    return b"".join((record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n" for record in records)


def write_file(path: Path, content: bytes) -> None:
    """`content` as it is, gzipped or as zstd, by the name's end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {".gz": lambda: gzip.compress(content, mtime=0), ".zst": lambda: zstandard.compress(content)}.get(
        path.suffix, lambda: content
    )()
    path.write_bytes(packed)


def write_records(path: Path, records: Sequence[Mapping[str, Any]], group: int = 50) -> None:
    """JSON Lines, or Parquet with row groups of `group` rows."""
    if path.suffix != ".parquet":
        write_file(path, json_lines(records))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=group)


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(small_tokenizer())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    return folder


def write_model(folder: Path) -> Path:
    """An untrained Llama of two layers that knows 256 positions, with the tokenizer of `write_tokenizer`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(write_tokenizer(folder / "tokenizer") / "tokenizer.json"), eos_token="<|end|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@dataclass
class Planted:
    """What was written, by key: its text, source and score; whose copies and near-copies there are; which are short; and how many records cannot be used."""

    text: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    score: dict[str, int] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)
    broken: dict[str, int] = field(default_factory=dict)


def write_corpus(folder: Path, size: int = 40) -> Planted:
    """`prose` (two plain files and one gzip), `web` (zstd, with broken lines) and `code` (Parquet): `size` distinct texts a file and some more."""
    planted = Planted()
    files = [
        ("prose", "prose/part-2.jsonl"),
        ("prose", "prose/part-10.jsonl"),
        ("prose", "prose/sub/more.jsonl.gz"),
        ("web", "web/pages.jsonl.zst"),
        ("code", "code/all.parquet"),
    ]
    made: list[str] = []
    for number, (source, name) in enumerate(files):
        records = []

        def put(text: str, kind: str, records: list[dict[str, Any]] = records, source: str = source, number: int = number) -> str:
            key = f"{number}-{kind}-{len(records)}"
            score = (7 * len(planted.text)) % 41
            records.append({"id": key, "text": text, "score": score})
            planted.text[key], planted.source[key], planted.score[key] = text, source, score
            return key

        for index in range(size):
            made.append(put(text_of(1000 * number + index), "own"))
            if index % 10 == 3:  # of a text in this file or one before it
                original = made[(index * 7) % len(made)]
                planted.copies[put(planted.text[original], "copy")] = original
            if index % 10 == 6:
                original = made[(index * 5) % len(made)]
                planted.near[put(near_copy(planted.text[original], 1000 * number + index), "near")] = original
            if index % 20 == 9:
                planted.short.add(put(f"short {number} {index}", "short"))
        lines: list[Mapping[str, Any] | bytes] = list(records)
        if source == "web":
            broken = [
                b'{"text": "cut',
                b"[1]",
                b'{"id": 1}',
                b'{"text": 3}',
                b'{"text": " \xe2\x80\x8b"}',
                b'{"text": "\xff"}',
                b'{"text": "\0"}',
            ]
            lines[5:5] = [*broken, b"", b" \t\r"]
            planted.broken["web"] = len(broken)
        path = folder / name
        if path.suffix == ".parquet":
            write_records(path, records)
        else:
            write_file(path, json_lines(lines))
    return planted


# --- recipes


def recipe(**changes: Any) -> dict[str, Any]:
    """A recipe over the corpus of `write_corpus` with every kind of step that needs no model; `changes` replace its keys."""
    return {
        "name": "small",
        "seed": 17,
        "tokenizer": {"path": "tokenizer"},
        "sources": {
            "prose": {"files": ["prose/*.jsonl", "prose/sub/*.jsonl.gz"], "key": "id", "columns": ["score"], "licence": "CC0"},
            "web": {"files": "web/*.jsonl.zst", "key": "id", "columns": ["score"], "max_quarantine": 0.2},
            "code": {"files": "code/*.parquet", "key": "id", "columns": ["score"]},
        },
        "steps": [
            {"add": {"copy_of": {"kind": "exact"}}},
            {"keep": "copy_of IS NULL"},
            {"add": {"duplicate_of": {"kind": "minhash", "threshold": 0.8}}},
            {"keep": "duplicate_of IS NULL"},
            {"add": {"words": {"kind": "heuristics", "set": "gopher"}}},
            {"keep": "words.words >= 10"},
            {"top": {"by": "score", "order": "descending", "where": "source = 'code'", "share": 0.8}},
        ],
        "holdout": {"documents": 3},
        "mixture": {
            "sequence_length": 128,
            "components": {"domain": "source = 'code'", "replay": "source IN ('prose', 'web')"},
            "max_epochs": {"domain": 3},
            "stages": [{"name": "adapt", "tokens": 9000, "weights": {"domain": 0.4, "replay": 0.6}}],
        },
        **changes,
    }


def write_recipe(folder: Path, values: Mapping[str, Any], name: str = "recipe.yaml") -> Path:
    """JSON is YAML."""
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder / "tokenizer")
    path = folder / name
    path.write_text(json.dumps(values))
    return path


def built(
    folder: Path, values: Mapping[str, Any], out: Path, work: Path | None = None, *, workers: int = 1, replace: bool = False
) -> Built:
    """Builds `values` as a recipe in `folder`."""
    loaded = load(write_recipe(folder, values))
    return build(loaded, folder, out, Run(work or folder / ".tilth", workers), replace=replace)


def pool_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of a manifest's pool."""
    found: list[dict[str, Any]] = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "pool").iterdir())]).to_pylist()
    return found


def serial(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    with Engine(1) as engine:
        return engine.map(function, tasks, "test")


# --- tasks for worker processes


def square(number: int) -> int:
    return number * number


def fails_on(number: int, bad: int) -> int:
    if number == bad:
        raise ValueError(f"{number} is bad")
    return number


def naps(path: Path, seconds: float) -> None:
    path.touch()
    time.sleep(seconds)


def dies_until(name: Path, deaths: int) -> str:
    """Kills its own process the first `deaths` times; the marks lie beside `name`."""
    marks = len(list(name.parent.glob(f"{name.name}.*")))
    if marks < deaths:
        (name.parent / f"{name.name}.{marks}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name.name


def threads(_: int) -> tuple[int, str]:
    """(this process, the thread limit it sees)."""
    assert threading.current_thread() is threading.main_thread()
    return os.getpid(), os.environ["POLARS_MAX_THREADS"]


def parents(seconds: float) -> tuple[int, int]:
    """(the parent of this process, this process), after a while."""
    time.sleep(seconds)
    return os.getppid(), os.getpid()


def fells(mark: Path, raylet: int) -> int:
    """Kills the raylet it runs under if it is this one, leaving its own process's number; elsewhere it waits for that, and gives its raylet's."""
    if os.getppid() == raylet:
        mark.write_text(str(os.getpid()))
        os.kill(raylet, signal.SIGKILL)
        time.sleep(120)
    while not mark.exists():
        time.sleep(0.05)
    return os.getppid()


def stalls(folder: Path, name: str, raylet: int) -> int:
    """Writes a file whole, and gives its raylet. Under this one it stops that and itself before, leaves its number, and tells of its end when somebody has waked it."""
    if os.getppid() == raylet:
        (folder / "stalled").write_text(str(os.getpid()))
        os.kill(raylet, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    while not (folder / "stalled").exists():
        time.sleep(0.05)
    with whole(folder / name) as temporary:
        temporary.write_text(name * 1000)
    if os.getppid() == raylet:
        (folder / "late").touch()
    return os.getppid()


def place(_: int) -> tuple[int, str]:
    """(this process, the GPUs it sees)."""
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def keeps(mark: Path) -> Callable[[int], tuple[int, int, str]]:
    """Makes a function that says (its argument's square, this process, the GPUs it sees), and leaves a mark of each making."""
    (mark.parent / f"{mark.name}.{os.getpid()}").touch()
    return lambda number: (number * number, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))


def never_makes(mark: Path) -> Callable[[], None]:
    """Dies, or says that it is as good as dead, and leaves a mark of it."""
    before = len(list(mark.parent.glob(f"{mark.name}.*")))
    (mark.parent / f"{mark.name}.{os.getpid()}").touch()
    if before % 2:
        raise Lost("its model is gone")
    os.kill(os.getpid(), signal.SIGKILL)
    return lambda: None


def random_keys(seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Sort keys with many ties, negative and infinite ones."""
    chosen = np.random.default_rng(seed).choice([-np.inf, -2.5, -1.0, -0.0, 0.0, 1e-300, 1.0, 3.0, 1e300, np.inf], count)
    return np.asarray(chosen, np.float64)
