"""Training a fastText classifier of any number of labels (supervised, softmax, word n-grams) so that equal texts give equal bytes.

Training sees 90 % of the texts of each label; the tenth with the lowest xxh3(seed, text) is held out. Lines are sorted by the same hash, so the model does not depend on the order
of the texts; a text under several labels is left out of all, since it says nothing about the difference. One thread, one fixed seed, memory zeroed for fastText, which does not:
equal bytes. It belongs in a fresh process, where nothing else can disturb it.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from curation.signals import fasttext_scoring
from mixing import UserError

if TYPE_CHECKING:
    import fasttext
    import pyarrow as pa

METRICS = "metrics.json"
_M_PERTURB = -6


class Settings(BaseModel):
    """fastText's own settings under plain names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int = Field(default=32, gt=0, le=1024)
    buckets: int = Field(default=200_000, gt=0, le=50_000_000)
    word_ngrams: int = Field(default=2, ge=1, le=5)
    epochs: int = Field(default=10, gt=0)
    learning_rate: float = Field(default=0.5, gt=0, le=5)
    min_count: int = Field(default=2, ge=1)


class Split(NamedTuple):
    """Cleaned texts of one label, in hash order: the held-out tenth and the rest."""

    held_out: list[str]
    trained: list[str]


def train(settings: Settings, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """Writes the model of the `texts` by label (without prefix) into `folder`: the library's own file, the table that scores, and METRICS, the held-out figures of that table.

    A UserError where a label has fewer than 10 distinct texts of its own.
    """
    splits = _split(texts, seed)
    lines = folder / "lines.txt"
    with lines.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_interleaved(splits))
    try:
        model = _trained(settings, lines, seed)
    finally:
        lines.unlink()
    model.save_model(str(folder / fasttext_scoring.MODEL))
    fasttext_scoring.prepare(folder / fasttext_scoring.MODEL, folder)
    _write_metrics(splits, folder)


def _write_metrics(splits: dict[str, Split], folder: Path) -> None:
    import json

    import pyarrow as pa

    from curation.signals.classifier_quality import measure

    names = fasttext_scoring.labels(folder)
    order = [names.index(fasttext_scoring.PREFIX + label) for label in splits]
    found = {
        label: fasttext_scoring.probabilities(folder, pa.array(split.held_out, pa.large_string()))[:, order]
        for label, split in splits.items()
    }
    metrics = measure({label: len(split.trained) for label, split in splits.items()}, found)
    (folder / METRICS).write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _split(texts: dict[str, pa.LargeStringArray], seed: int) -> dict[str, Split]:
    import xxhash

    by_label = {
        label: {xxhash.xxh3_128_digest(text.encode(), seed=seed): text for text in some.to_pylist()} for label, some in texts.items()
    }
    times = Counter(key for by_hash in by_label.values() for key in by_hash)
    splits = {}
    for label, by_hash in by_label.items():
        own = sorted(key for key in by_hash if times[key] == 1)
        if len(own) < 10:
            shared = len(by_hash) - len(own)
            several = f", {shared} more stand under several labels" if shared else ""
            raise UserError(
                f"train.{label}: {len(own)} distinct texts{several}; a classifier needs at least 10 of each label: name more files or sources"
            )
        found = [fasttext_scoring.clean(by_hash[key]) for key in own]
        splits[label] = Split(found[: len(found) // 10], found[len(found) // 10 :])
    return splits


def _interleaved(splits: dict[str, Split]) -> Iterator[str]:
    """Training lines with the labels spread evenly: under stochastic descent a block of one label at the end would tilt the model."""
    places = sorted(
        ((index + 0.5) / len(split.trained), label, text) for label, split in splits.items() for index, text in enumerate(split.trained)
    )
    return (f"{fasttext_scoring.PREFIX}{label} {text}\n" for _, label, text in places)


def _trained(settings: Settings, lines: Path, seed: int) -> fasttext.FastText._FastText:
    import fasttext

    with _zeroed_memory():
        return fasttext.train_supervised(
            input=str(lines),
            dim=settings.dimensions,
            bucket=settings.buckets,
            wordNgrams=settings.word_ngrams,
            epoch=settings.epochs,
            lr=settings.learning_rate,
            minCount=settings.min_count,
            loss="softmax",
            thread=1,
            seed=seed % 2**31,
            verbose=0,
        )


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Lets glibc hand out zeroed memory. fastText 0.9.3 with one thread sets the first tenth of its matrix (facebookresearch/fastText#1061) and leaves
    the rest as malloc gave it: other bytes in every process, and NaN where the memory was used before (2 of 5 trainings of a small model)."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield  # another C library: large allocations come zeroed from the kernel, as long as the process is fresh
        return
    libc.mallopt(_M_PERTURB, 0xFF)  # memory is filled with the complement of this byte
    try:
        yield
    finally:
        libc.mallopt(_M_PERTURB, 0)
