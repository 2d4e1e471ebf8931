"""A fastText classifier trained in the recipe: the probability that a text is like the positive samples rather than the negative ones.

Training (supervised, softmax, word n-grams) sees 90 % of each sample; the tenth with the lowest xxh3(seed, text) of each label is held out, and the
held-out figures in `metrics.json` are those of the very model that scores. Lines are sorted by the same hash, so the model does not depend on the
order of the samples; a text in both samples is left out of both, since it says nothing about the difference. One thread, one fixed seed, memory
zeroed for fastText, which does not: equal bytes. `train` belongs in a fresh process, where nothing else can disturb it.

The defaults are made for small samples: 100 medical abstracts against 100 encyclopedia texts rank others of both with AUC .977, 300 with .995 and 1,500
with .9996; fastText's own rate of 0.1 and 5 epochs give .909, .913 and .981. The model file takes about 4 * dimensions * (buckets + words) bytes: 26 MB
for few words.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.reference import Reference
from mixing import UserError

if TYPE_CHECKING:
    import fasttext
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

POSITIVE, NEGATIVE = "__label__positive", "__label__negative"
MODEL, METRICS = "model.bin", "metrics.json"
_M_PERTURB = -6
_SCORED_AT_ONCE = 1024  # texts: bounds the Python strings alive at one time


class Samples(BaseModel):
    """What to find, and what to tell it from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive: Reference
    negative: Reference


class ClassifierConfig(BaseModel):
    """The samples and fastText's own settings under plain names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fasttext"]
    samples: Samples = Field(alias="train")
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


def version(config: ClassifierConfig) -> str:
    return "fasttext 1"


def fields(config: ClassifierConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.float64()


def references(config: ClassifierConfig) -> dict[str, Reference]:
    return {"positive": config.samples.positive, "negative": config.samples.negative}


def train(config: ClassifierConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """Writes MODEL and METRICS into `folder`. A UserError where a sample has fewer than 10 distinct texts of its own."""
    import json

    positive, negative = _split(texts["positive"], texts["negative"], seed)
    lines = folder / "lines.txt"
    with lines.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_interleaved(positive.trained, negative.trained))
    try:
        model = _trained(config, lines, seed)
    finally:
        lines.unlink()
    model.save_model(str(folder / MODEL))
    metrics = {
        "positive": {"trained": len(positive.trained), "held_out": len(positive.held_out)},
        "negative": {"trained": len(negative.trained), "held_out": len(negative.held_out)},
        "auc": area_under_curve(_scores(model, positive.held_out), _scores(model, negative.held_out)),
    }
    (folder / METRICS).write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def compute(config: ClassifierConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.DoubleArray:
    """The probability of the positive label, 0 to 1; null for a text in which the model finds nothing to read."""
    import numpy as np
    import pyarrow as pa

    assert model is not None
    loaded = _loaded(str(model / MODEL))
    parts = [
        _scores(loaded, [clean(text) for text in texts.slice(start, _SCORED_AT_ONCE).to_pylist()])
        for start in range(0, len(texts), _SCORED_AT_ONCE)
    ]
    scores = np.concatenate([*parts, np.empty(0)])
    return pa.array(scores, mask=np.isnan(scores))


def clean(text: str) -> str:
    """`text` as one line in which nothing is read as a label or as the end of the line: fastText takes a word `</s>` for one, in any text."""
    text = text.replace("\n", " ")
    if "__label__" in text:
        text = text.replace("__label__", "__label ")
    if "</s>" in text:
        text = text.replace("</s>", "< /s>")
    return text


def area_under_curve(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """The share of (positive, negative) pairs that the scores put in the right order, ties counting half (Mann-Whitney)."""
    import numpy as np

    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left").astype(np.float64)
    up_to = np.searchsorted(ordered, positive, side="right").astype(np.float64)
    return float((below + up_to).sum() / (2 * positive.size * negative.size))


def _split(positive: pa.LargeStringArray, negative: pa.LargeStringArray, seed: int) -> tuple[Split, Split]:
    import xxhash

    def distinct(texts: pa.LargeStringArray) -> dict[bytes, str]:
        return {xxhash.xxh3_128_digest(text.encode(), seed=seed): text for text in texts.to_pylist()}

    by_label = {"positive": distinct(positive), "negative": distinct(negative)}
    shared = by_label["positive"].keys() & by_label["negative"].keys()
    splits = []
    for label, by_hash in by_label.items():
        lines = [clean(by_hash[key]) for key in sorted(by_hash.keys() - shared)]
        if len(lines) < 10:
            both = f", {len(shared)} more stand in both samples" if shared else ""
            raise UserError(
                f"train.{label}: {len(lines)} distinct texts{both}; a classifier needs at least 10 of each label: name more files or sources"
            )
        splits.append(Split(lines[: len(lines) // 10], lines[len(lines) // 10 :]))
    return splits[0], splits[1]


def _interleaved(positive: list[str], negative: list[str]) -> Iterator[str]:
    """Training lines with the labels spread evenly: under stochastic descent a block of one label at the end would tilt the model."""
    total = {POSITIVE: len(positive), NEGATIVE: len(negative)}
    places = sorted(
        ((index + 0.5) / total[label], label, text)
        for label, texts in ((POSITIVE, positive), (NEGATIVE, negative))
        for index, text in enumerate(texts)
    )
    return (f"{label} {text}\n" for _, label, text in places)


def _trained(config: ClassifierConfig, lines: Path, seed: int) -> fasttext.FastText._FastText:
    import fasttext

    with _zeroed_memory():
        return fasttext.train_supervised(
            input=str(lines),
            dim=config.dimensions,
            bucket=config.buckets,
            wordNgrams=config.word_ngrams,
            epoch=config.epochs,
            lr=config.learning_rate,
            minCount=config.min_count,
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


@lru_cache(maxsize=4)
def _loaded(path: str) -> fasttext.FastText._FastText:
    import fasttext

    return fasttext.load_model(path)


def _scores(model: fasttext.FastText._FastText, lines: list[str]) -> npt.NDArray[np.float64]:
    """The positive label's probability for each cleaned line; NaN where fastText returns no label. (A list, always: one string fails on NumPy 2.)"""
    import numpy as np

    labels, probabilities = model.predict(lines, k=2)
    scores = np.full(len(lines), np.nan)
    for row, (named, found) in enumerate(zip(labels, probabilities, strict=True)):
        if len(named):
            # fastText adds 1e-5 to a probability before its logarithm, so the surest come back as 1.00001.
            scores[row] = min(1.0, float(found[list(named).index(POSITIVE)]))
    return scores
