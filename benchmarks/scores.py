"""How fast are the trained scores, beside the libraries that people use for them, and do they agree?

    python benchmarks/scores.py fasttext POSITIVE NEGATIVE      # files of texts: Parquet or JSON Lines with a `text` column
    python benchmarks/scores.py ngram REFERENCE TEXTS           # with `pip install kenlm` KenLM is measured on the same ARPA file
    python benchmarks/scores.py importance REFERENCE TEXTS

fasttext: models of several shapes are trained by the library on half of the texts; the other half is scored by the table (from Arrow) and by the library (from lists of Python strings that
lie ready, so that nothing but its own work is counted), in turns. ngram: the model is trained on REFERENCE and written as ARPA; TEXTS are scored from raw text here, and by KenLM from
words that were split and joined beforehand. One thread; time is processor time; MB is a million bytes of UTF-8; medians of RUNS interleaved runs, ratios within a run.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from curation.formats import FORMATS, format_of
from curation.formats.records import Fields, records_of
from curation.signals import SIGNALS, arpa, fasttext_scoring, ngram
from curation.signals.fasttext_training import _zeroed_memory
from curation.text.words import word_hashes, words

RUNS = 5
MODELS = {
    "bigrams, 200,000 buckets, 32 dimensions (our default)": {"wordNgrams": 2, "bucket": 200_000, "dim": 32},
    "bigrams, 2 M buckets, 100 dimensions": {"wordNgrams": 2, "bucket": 2_000_000, "dim": 100},
    "words, 100 dimensions": {"wordNgrams": 1, "dim": 100},
    "trigrams and 2 to 4 characters, 200,000 buckets, 32 dimensions": {"wordNgrams": 3, "bucket": 200_000, "dim": 32, "minn": 2, "maxn": 4},
    "the first, quantized (.ftz)": {"wordNgrams": 2, "bucket": 200_000, "dim": 32, "quantize": True},
}


def read(path: Path) -> pa.LargeStringArray:
    kind = format_of(path.name)
    assert kind is not None, path
    texts = [record.text for record in records_of(FORMATS[kind].read(path, Fields("text", None, {}), 0, None)) if record.text]
    return pa.array(texts, pa.large_string())


def megabytes(texts: pa.LargeStringArray) -> float:
    return sum(len(text.encode()) for text in texts.to_pylist()) / 1e6


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def interleaved(*work: Callable[[], object]) -> list[list[float]]:
    """Per run the processor seconds of each; a first run, in which kernels are compiled and pages are read, does not count."""
    for one in work:
        one()
    return [[seconds(one) for one in work] for _ in range(RUNS)]


# --- fastText


def train_by_library(path: Path, positive: list[str], negative: list[str], settings: dict[str, int]) -> None:
    import fasttext

    shape = dict(settings)
    quantize = shape.pop("quantize", False)
    lines = path.with_suffix(".txt")
    mixed = [line for pair in zip(positive, negative, strict=False) for line in zip(("positive", "negative"), pair, strict=True)]
    lines.write_text("".join(f"__label__{label} {fasttext_scoring.clean(text)}\n" for label, text in mixed), encoding="utf-8")
    with _zeroed_memory():
        model = fasttext.train_supervised(str(lines), epoch=3, minCount=2, thread=1, seed=1, verbose=0, **shape)
        if quantize:
            model.quantize(str(lines), qnorm=True, cutoff=50_000, retrain=False, thread=1, verbose=0)
    model.save_model(str(path))


def fasttext_speed(positive: Path, negative: Path) -> None:
    import fasttext

    sides = [read(path) for path in (positive, negative)]
    train = [side.slice(0, len(side) // 2).to_pylist() for side in sides]
    texts = pa.concat_arrays([side.slice(len(side) // 2) for side in sides])
    lines, size = [fasttext_scoring.clean(text) for text in texts.to_pylist()], megabytes(texts)
    print(f"{len(texts):,} texts, {size:.1f} MB\n")
    print(
        "| model | file MB | table MB | library MB/s | table MB/s | ratio (least to greatest) | greatest difference |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    with TemporaryDirectory() as room:
        for number, (name, settings) in enumerate(MODELS.items()):
            path, folder = Path(room) / f"{number}.bin", Path(room) / str(number)
            folder.mkdir()
            train_by_library(path, *train, settings)
            fasttext_scoring.prepare(path, folder)
            model, names = fasttext.load_model(str(path)), fasttext_scoring.labels(folder)
            labels, values = model.predict(lines, k=-1)
            theirs = np.array(
                [[float(found[list(given).index(label)]) for label in names] for given, found in zip(labels, values, strict=True)]
            )
            difference = np.abs(fasttext_scoring.probabilities(folder, texts) - theirs).max()
            times = interleaved(
                lambda folder=folder: fasttext_scoring.probabilities(folder, texts), lambda model=model: model.predict(lines, k=1)
            )  # type: ignore[misc]
            ours, library = (size / median(run[which] for run in times) for which in (0, 1))
            ratios = sorted(run[1] / run[0] for run in times)
            table = sum(one.stat().st_size for one in folder.iterdir()) / 1e6
            print(
                f"| {name} | {path.stat().st_size / 1e6:.1f} | {table:.1f} | {library:.0f} | {ours:.0f} | "
                f"{median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) | {difference:.1e} |",
                flush=True,
            )


# --- n-grams


def ngram_speed(reference: Path, texts: Path) -> None:
    learned, scored = read(reference), read(texts)
    sizes = {"reference": megabytes(learned), "texts": megabytes(scored)}
    hashes, offsets = word_hashes(learned)
    ngram.train(*word_hashes(learned.slice(0, 20)), 3, 10_000_000)
    training = [seconds(lambda: ngram.train(*word_hashes(learned), 3, 10_000_000)) for _ in range(3)]
    model = ngram.train(hashes, offsets, 3, 10_000_000)
    print(f"reference {len(learned):,} texts, {sizes['reference']:.1f} MB, {len(hashes):,} words; model {model.table.nbytes / 1e6:.0f} MB")
    print(f"training, from raw text: {sizes['reference'] / median(training):.1f} MB/s")
    print(f"memory while training: {grown(reference) / len(hashes):.0f} bytes a word")

    def score(some: pa.LargeStringArray) -> np.ndarray:
        counted, ends = word_hashes(some)
        return ngram.log_likelihoods(model, counted, ends) / math.log(10)

    own = median(run[0] for run in interleaved(lambda: score(learned)))
    print(f"scoring the reference itself (every n-gram is found), from raw text: {sizes['reference'] / own:.0f} MB/s")
    with TemporaryDirectory() as room:
        path = Path(room) / "model.arpa"
        written = seconds(lambda: arpa.write(model, learned, path))
        print(f"ARPA: {path.stat().st_size / 1e6:.0f} MB written in {written:.0f} s, read back in {seconds(lambda: arpa.read(path)):.0f} s")
        beside_kenlm(path, scored, sizes["texts"], score)


def beside_kenlm(path: Path, texts: pa.LargeStringArray, size: float, score: Callable[[pa.LargeStringArray], np.ndarray]) -> None:
    import kenlm
    from scipy.stats import spearmanr

    theirs = kenlm.Model(str(path))
    joined = [" ".join(words(text)) for text in texts.to_pylist()]
    found = np.array([theirs.score(text) for text in joined])
    ours = score(texts)
    lengths = np.array([len(text.split()) + 1 for text in joined])
    rank = spearmanr(ours / lengths, found / lengths).statistic
    print(
        f"texts: {len(texts):,}, {size:.1f} MB; greatest difference of log10 P per word {np.abs((ours - found) / lengths).max():.1e}, rank correlation of perplexities {rank:.6f}"
    )
    times = interleaved(lambda: score(texts), lambda: [theirs.score(text) for text in joined])
    ratios = sorted(run[1] / run[0] for run in times)
    rates = [size / median(run[which] for run in times) for which in (0, 1)]
    print(
        f"scoring: ours, from raw text {rates[0]:.0f} MB/s; KenLM (probing), from split and joined words {rates[1]:.0f} MB/s; ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def grown(reference: Path) -> float:
    """Bytes by which a fresh process's peak grows while it trains."""
    done = subprocess.run([sys.executable, __file__, "memory", str(reference), "-"], capture_output=True, text=True, check=True)
    return float(done.stdout)


def memory(reference: Path) -> None:
    texts = read(reference)
    ngram.train(*word_hashes(texts.slice(0, 20)), 3, 10_000_000)
    hashes, offsets = word_hashes(texts)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    ngram.train(hashes, offsets, 3, 10_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def importance_speed(reference: Path, texts: Path) -> None:
    signal = SIGNALS["importance"]
    config = signal.config.model_validate({"kind": "importance", "target": "-", "pool": "-"})
    learned, scored = read(reference), read(texts)
    with TemporaryDirectory() as room:
        roles = {"target": learned, "pool": scored}
        training = [seconds(lambda: signal.train(config, roles, Path(room), 17)) for _ in range(4)][1:]
        scoring = [run[0] for run in interleaved(lambda: signal.compute(config, scored, Path(room)))]
    both = megabytes(learned) + megabytes(scored)
    print(f"training {both / median(training):.0f} MB/s, scoring {megabytes(scored) / median(scoring):.0f} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fasttext", "ngram", "importance", "memory"])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    given = parser.parse_args()
    if given.what == "memory":
        memory(given.first)
    else:
        {"fasttext": fasttext_speed, "ngram": ngram_speed, "importance": importance_speed}[given.what](given.first, given.second)


if __name__ == "__main__":
    main()
