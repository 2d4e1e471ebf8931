"""Is MinHash as good as its mathematics, and is the verification the documented Jaccard? Measured on real pairs of given corpora.

    python benchmarks/dedup_accuracy.py PATH... [--pairs 1000] [--seed 17] [--json]

Pairs: a quarter are documents of one corpus that share a band of their signatures, a tenth random documents, the rest a document and itself cut
short or with words replaced, so that Jaccard covers 0 to 1. For each: the estimate from the signatures, the kernel's Jaccard, and a Jaccard in
plain Python that shares nothing with the kernels but the table of unspaced scripts. Last, the signatures' speed in MB of text per second of CPU
time, one thread, median of five.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import statistics
import time
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from curation.dedup.banding import band_keys, group
from curation.dedup.minhash import PERMUTATIONS, jaccards, shingles, signatures
from curation.text.words import UNSPACED, text_buffers, words

BOUND = 3 / math.sqrt(PERMUTATIONS)


class Pair(NamedTuple):
    corpus: str
    kind: str
    a: str
    b: str


def read_texts(path: Path, column: str) -> pa.LargeStringArray:
    """The non-empty texts of one Parquet or JSON Lines file (plain, .gz, .zst)."""
    if path.suffix == ".parquet":
        found = pq.read_table(path, columns=[column])[column].to_pylist()
    else:
        opened: Any = {".zst": zstandard.open, ".gz": gzip.open}.get(path.suffix, open)
        with opened(path, "rb") as lines:
            found = [orjson.loads(line)[column] for line in lines.read().split(b"\n") if line.strip()]
    return pa.array([text for text in found if isinstance(text, str) and text], pa.large_string())


def plain_words(text: str) -> list[str]:
    """The documented definition, told once more."""
    marked = []
    for character in text:
        if unicodedata.category(character)[0] not in "LMN":
            marked.append(" ")
        elif any(first <= ord(character) <= last for first, last in UNSPACED):
            marked.append(f" {character} ")
        else:
            marked.append("i" if character == "\u0130" else character.lower())
    return "".join(marked).split(" ")


@cache
def plain_shingles(text: str) -> frozenset[tuple[str, ...]]:
    found = [word for word in plain_words(text) if word]
    if 0 < len(found) < 5:
        return frozenset([tuple(found)])
    return frozenset(zip(*(found[i:] for i in range(5)), strict=False))


def plain_jaccard(a: str, b: str) -> float:
    left, right = plain_shingles(a), plain_shingles(b)
    return len(left & right) / len(left | right) if left and right else 0.0


def variant(text: str, similarity: float, rng: random.Random) -> tuple[str, str]:
    """A kind, and the text changed so that its Jaccard with itself is about `similarity`."""
    if rng.random() < 0.5:
        return "cut short", text[: max(int(len(text) * similarity), 1)]
    stays = (2 * similarity / (1 + similarity)) ** (1 / 5)  # of each word, so that the five of a shingle stay together often enough
    return "words replaced", " ".join(word if rng.random() < stays else f"x{rng.randrange(10**6)}" for word in words(text))


def draw_pairs(corpora: dict[str, pa.LargeStringArray], count: int, rng: random.Random) -> Iterator[Pair]:
    """As many pairs of every corpus; where no two documents share a band, variants stand in for candidates."""
    for i, (name, texts) in enumerate(corpora.items()):
        wanted = count // len(corpora) + (i < count % len(corpora))
        buckets = group(*bucket_records(texts))
        candidates = rng.choices(range(len(buckets.leaders)), k=wanted // 4) if len(buckets.leaders) else []
        for bucket in candidates:
            first, second = rng.sample(buckets.members[buckets.offsets[bucket] : buckets.offsets[bucket + 1]].tolist(), 2)
            yield Pair(name, "candidate", texts[first].as_py(), texts[second].as_py())
        for _ in range(wanted // 10):
            yield Pair(name, "random", texts[rng.randrange(len(texts))].as_py(), texts[rng.randrange(len(texts))].as_py())
        for _ in range(wanted - len(candidates) - wanted // 10):
            text = texts[rng.randrange(len(texts))].as_py()
            kind, changed = variant(text, rng.random(), rng)
            yield Pair(name, kind, text, changed)


def bucket_records(texts: pa.LargeStringArray) -> tuple[Any, Any]:
    """Bucket and row of every document in 25 bands of 5 rows."""
    keys = band_keys(signatures(texts), 25, 5)
    return keys.ravel(), np.tile(np.arange(len(texts), dtype=np.uint64), len(keys))


def beyond(jaccard: float, bound: float) -> float:
    """The probability that a binomial share of 128 lies farther than `bound` from its expectation."""
    if jaccard in (0.0, 1.0):
        return 0.0
    chances = [math.comb(PERMUTATIONS, k) * jaccard**k * (1 - jaccard) ** (PERMUTATIONS - k) for k in range(PERMUTATIONS + 1)]
    return sum(chance for k, chance in enumerate(chances) if abs(k / PERMUTATIONS - jaccard) > bound)


def measure(pairs: list[Pair]) -> dict[str, object]:
    left, right = pa.array([pair.a for pair in pairs], pa.large_string()), pa.array([pair.b for pair in pairs], pa.large_string())
    estimate = (signatures(left) == signatures(right)).mean(axis=1)
    (a, a_offsets), (b, b_offsets) = shingles(left), shingles(right)
    kernel = jaccards(a, np.stack([a_offsets[:-1], a_offsets[1:]], 1), b, np.stack([b_offsets[:-1], b_offsets[1:]], 1))
    plain = np.array([plain_jaccard(pair.a, pair.b) for pair in pairs])
    error = np.where(plain + kernel > 0, estimate - plain, 0)  # two texts without a word look alike, and are never compared
    inside = (plain > 0) & (plain < 1)
    deviation = error[inside] / np.sqrt(plain[inside] * (1 - plain[inside]) / PERMUTATIONS)
    worst = int(np.abs(error).argmax())
    return {
        "pairs": len(pairs),
        "kinds": {kind: sum(pair.kind == kind for pair in pairs) for kind in sorted({pair.kind for pair in pairs})},
        "pairs by Jaccard, [0, .1) to [.9, 1]": np.histogram(plain, np.linspace(0, 1, 11))[0].tolist(),
        "kernel Jaccard differs from plain Python": int((kernel != plain).sum()),
        "max |estimate - exact|": round(float(np.abs(error).max()), 4),
        "exact Jaccard there": round(float(plain[worst]), 4),
        "beyond 3/sqrt(128) = 0.265": int((np.abs(error) > BOUND).sum()),
        "beyond it, predicted by the binomial": float(f"{sum(beyond(j, BOUND) for j in plain):.3g}"),
        "beyond 3 standard errors of their own": int((np.abs(deviation) > 3).sum()),
        "beyond those, predicted by the binomial": round(sum(beyond(j, 3 * math.sqrt(j * (1 - j) / PERMUTATIONS)) for j in plain), 2),
        "mean and spread of errors in standard errors (ideal 0, 1)": [round(float(deviation.mean()), 3), round(float(deviation.std()), 3)],
    }


def speed(texts: pa.LargeStringArray) -> float:
    """MB of text per second of CPU time, median of five."""
    _, offsets = text_buffers(texts)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        signatures(texts)
        seconds.append(time.process_time() - start)
    return float(offsets[-1] - offsets[0]) / 1e6 / statistics.median(seconds)


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--pairs", "count", default=1000, show_default=True)
@click.option("--seed", default=17, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(paths: tuple[Path, ...], column: str, count: int, seed: int, as_json: bool) -> None:
    corpora = {path.parent.name or path.name: read_texts(path, column) for path in paths}
    found = measure(list(draw_pairs(corpora, count, random.Random(seed))))
    found["signatures, MB/s/core"] = {name: round(speed(texts)) for name, texts in corpora.items()}
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        for name, value in found.items():
            click.echo(f"{name}: {value}")


if __name__ == "__main__":
    main()
