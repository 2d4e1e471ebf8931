"""datatrove does the work of a whole build: reads JSON Lines, filters, deduplicates, decontaminates, counts tokens, writes. The last line it prints is JSON.

    PEER/bin/python benchmarks/build_peers.py FILE OUT TOKENIZER.json REFERENCES EVALS.jsonl

REFERENCES holds `positive.jsonl` and `negative.jsonl`, on which the fastText model is trained, and EVALS `question`s; neither training nor indexing is counted. Runs in one process, under an environment of
its own (`pip install "datatrove[io]" spacy nltk ftfy regex tldextract tokenizers "xxhash<4" orjson fasteners fasttext-numpy2-wheel`). The filters stand in the order of FineWeb's pipeline and have
datatrove's defaults, so that documents dropped early cost nothing later. Left out, to its advantage: language identification and perplexity, whose models it would download; a plan.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


def read(path: str) -> Iterator[dict[str, Any]]:
    for file in sorted(Path(path).glob("*.jsonl")) if Path(path).is_dir() else [Path(path)]:
        with file.open("rb") as lines:
            yield from map(orjson.loads, lines)


def train(references: Path, folder: Path) -> str:
    """A fastText model in the place that datatrove keeps downloads in."""
    import fasttext

    lines = [
        f"__label__{label} " + " ".join(one["text"].split())
        for label in ("positive", "negative")
        for one in read(str(references / f"{label}.jsonl"))
    ]
    random.Random(0).shuffle(lines)
    (folder / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    model = fasttext.train_supervised(str(folder / "lines.txt"), wordNgrams=2, dim=64, epoch=5, bucket=200_000, thread=1, verbose=0)
    model.save_model(str(folder / "model.bin"))
    return str(folder / "model.bin")


def index(evals: str, folder: Path) -> None:
    """Its own hashes of its own n-grams, written as its index does, which asks for another library only to fetch benchmarks."""
    import numpy as np
    from datatrove.pipeline.decont.n_grams import NGramsDecontIndexer

    NGramsDecontIndexer._requires_dependencies = []
    indexer = NGramsDecontIndexer(str(folder / "index"))
    hashes = {found for one in read(evals) for found in indexer.compute_hashes(one["question"])}
    (folder / "index").mkdir(exist_ok=True)
    np.array(sorted(hashes), dtype=np.dtype(indexer.config.hash_config.np_descr)).tofile(folder / "index" / "evals.index.hashes")


def cpu() -> float:
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def main(file: str, out: str, tokenizer: str, references: str, evals: str) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontFilter
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FastTextClassifierFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.tokens import TokensCounter

    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = train(Path(references), folder)
    index(evals, folder)
    quality = FastTextClassifierFilter(model, keep_labels=("positive", 0.05), newline_replacement=" ")
    first = [
        GopherRepetitionFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        GopherQualityFilter(),
        FineWebQualityFilter(),
        quality,
    ]
    last = [NGramsDecontFilter(str(folder / "index")), TokensCounter(tokenizer)]
    began, before = time.monotonic(), cpu()
    documents: Any = (Document(text=one["text"], id=str(one["id"])) for one in read(file))
    for step in first:
        documents = step.run(documents)
    with (folder / "filtered.jsonl").open("wb") as filtered:
        filtered.writelines(orjson.dumps({"id": one.id, "text": one.text}) + b"\n" for one in documents)

    def survivors() -> Iterator[Document]:
        return (Document(text=one["text"], id=str(one["id"])) for one in read(str(folder / "filtered.jsonl")))

    MinhashDedupSignature(str(folder / "signatures")).run(survivors())
    for bucket in range(14):
        MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets")).run(rank=bucket, world_size=14)
    MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove")).run()
    documents = MinhashDedupFilter(str(folder / "remove")).run(survivors())
    for step in last:
        documents = step.run(documents)
    kept = 0
    with (folder / "kept.jsonl").open("wb") as written:
        for one in documents:
            written.write(orjson.dumps({"id": one.id, "text": one.text}) + b"\n")
            kept += 1
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": cpu() - before, "kept": kept}))


if __name__ == "__main__":
    main(*sys.argv[1:])
