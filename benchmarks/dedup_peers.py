"""One peer signs or deduplicates a JSON Lines file of `id` and `text`; the last line it prints is JSON.

    PEER/bin/python benchmarks/dedup_peers.py sign datasketch|rensa|daft|datatrove FILE
    PEER/bin/python benchmarks/dedup_peers.py keep datasketch|rensa|rensa-words|text-dedup|datatrove|datatrove-zh FILE OUT THRESHOLD

`sign` answers `seconds` of CPU time and `bytes` for text to 128 permutations (datatrove: 16 x 8) in one process on one core, with texts in memory and after a small first run; `keep`
answers `seconds` from the file to the written survivors (wall and CPU), the imports of rensa and datasketch not counted, and writes OUT, JSON Lines of the survivors. Each runs under an environment of its own
(`pip install rensa datasketch orjson`; `"datatrove[io]" spacy jieba regex nltk ftfy tldextract tokenizers "xxhash<4" orjson`; `text-dedup "xxhash<4" orjson`; `daft orjson`), which `dedup.py` is given as a path.
rensa and datasketch take tokens: they get five-word shingles of the lower-cased text's words (`rensa-words`: the blank-separated words of rensa's own description), made here in Python.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

import orjson

WORD = re.compile(r"\w+")
CHINESE = re.compile("[\u3400-\u9fff]")


def read(file: str) -> Iterator[dict[str, Any]]:
    for path in sorted(glob(file)):
        with open(path, "rb") as lines:
            yield from map(orjson.loads, lines)


def shingles(text: str) -> list[str]:
    """Five-word shingles as anyone would write them; of characters where a text is mostly Chinese."""
    lowered = text.lower()
    words = CHINESE.findall(lowered) if 2 * len(CHINESE.findall(lowered)) > len(lowered) else WORD.findall(lowered)
    return [" ".join(words[i : i + 5]) for i in range(max(len(words) - 4, 1))]


def sign(peer: str, file: str) -> dict[str, float]:
    texts = [one["text"] for one in read(file)]
    signing = {"datasketch": sign_datasketch, "rensa": sign_rensa, "daft": sign_daft, "datatrove": sign_datatrove}[peer]
    work = signing(texts)
    work(texts[:20])
    began = time.process_time()
    work(texts)
    return {"seconds": time.process_time() - began, "bytes": sum(len(text.encode()) for text in texts)}


def sign_datasketch(texts: list[str]) -> Callable[[list[str]], object]:
    from datasketch import MinHash

    return lambda some: [MinHash.bulk([[one.encode() for one in shingles(text)]], num_perm=128) for text in some]


def sign_rensa(texts: list[str]) -> Callable[[list[str]], object]:
    from rensa import RMinHash

    return lambda some: RMinHash.digest_matrix_from_token_sets([shingles(text) for text in some], num_perm=128, seed=42)


def sign_daft(texts: list[str]) -> Callable[[list[str]], object]:
    import daft

    daft.set_runner_native()
    frames = {len(some): daft.from_pydict({"text": some}).collect() for some in (texts[:20], texts)}
    column = daft.functions.normalize(daft.col("text"), lowercase=True)
    signature = daft.functions.minhash(column, num_hashes=128, ngram_size=5, hash_function="xxhash")
    return lambda some: frames[len(some)].select(signature).collect()


def sign_datatrove(texts: list[str]) -> Callable[[list[str]], object]:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    step = MinhashDedupSignature("/nowhere", MinhashConfig(num_buckets=16, hashes_per_bucket=8))
    return lambda some: [step.get_signature(found) for found in map(step.get_shingles, some) if found.size]


def keep(peer: str, file: str, out: str, threshold: str) -> dict[str, float]:
    deduplicate = KEEP[peer]
    if peer in ("rensa", "rensa-words", "datasketch"):
        importlib.import_module(peer.partition("-")[0])  # which the others do in processes of their own, or while they begin
    began, before = time.monotonic(), _cpu()
    kept = deduplicate(file, out, float(threshold))
    return {"seconds": time.monotonic() - began, "cpu": _cpu() - before, "kept": kept}


def _cpu() -> float:
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def keep_rensa(file: str, out: str, threshold: float, tokens: Callable[[str], list[str]] = shingles) -> int:
    from rensa import RMinHashDeduplicator

    found = RMinHashDeduplicator(threshold=threshold, num_perm=128, use_lsh=True)
    kept = 0
    with open(out, "wb") as survivors:
        batch: list[dict[str, Any]] = []
        for one in read(file):
            batch.append(one)
            if len(batch) == 10_000:
                kept += _write_rensa(found, batch, survivors, tokens)
                batch = []
        return kept + _write_rensa(found, batch, survivors, tokens)


def _write_rensa(found: Any, batch: list[dict[str, Any]], survivors: Any, tokens: Callable[[str], list[str]]) -> int:
    stays = found.add_pairs([(str(one["id"]), tokens(one["text"])) for one in batch])
    lines = [orjson.dumps(one) + b"\n" for one, stay in zip(batch, stays, strict=True) if stay]
    survivors.writelines(lines)
    return len(lines)


def keep_rensa_words(file: str, out: str, threshold: float) -> int:
    return keep_rensa(file, out, threshold, str.split)


def keep_datasketch(file: str, out: str, threshold: float) -> int:
    """A document stays if no document that stayed shares a band with it; what shares one is not compared further, which is what a query answers."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=128)
    kept = 0
    with open(out, "wb") as survivors:
        for one in read(file):
            signature = MinHash(num_perm=128)
            signature.update_batch([shingle.encode() for shingle in shingles(one["text"])])
            if not index.query(signature):
                index.insert(one["id"], signature, check_duplication=False)
                survivors.write(orjson.dumps(one) + b"\n")
                kept += 1
    return kept


def keep_text_dedup(file: str, out: str, threshold: float) -> int:
    """Its own command with its own defaults (250 permutations, five-word n-grams, documents under five words removed) at this threshold."""
    folder = Path(f"{out}.text-dedup")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "text_dedup.minhash", "--path", "json", "--data_files", file, "--split", "train", "--column", "text"]
    command += ["--cache_dir", str(folder / "cache"), "--output", str(folder / "kept"), "--threshold", str(threshold), "--num_proc", "1"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    from datasets import load_from_disk

    kept = load_from_disk(str(folder / "kept"))
    with open(out, "wb") as survivors:
        for one in kept:
            survivors.write(orjson.dumps({"id": one["id"], "text": one["text"]}) + b"\n")
    shutil.rmtree(folder)
    return len(kept)


def keep_datatrove(file: str, out: str, threshold: float, language: str = "en") -> int:
    """Its four stages with its defaults (14 x 8, half of the pairs at 0.72); it has no threshold to set."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature

    folder = f"{out}.datatrove"
    shutil.rmtree(folder, ignore_errors=True)

    def documents() -> Iterator[Document]:
        return (Document(text=one["text"], id=str(one["id"])) for one in read(file))

    MinhashDedupSignature(f"{folder}/signatures", language=_language(language)).run(documents())
    for bucket in range(14):
        MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets").run(rank=bucket, world_size=14)
    MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove").run()
    kept = 0
    with open(out, "wb") as survivors:
        for one in MinhashDedupFilter(f"{folder}/remove").run(documents()):
            survivors.write(orjson.dumps({"id": int(one.id), "text": one.text}) + b"\n")
            kept += 1
    shutil.rmtree(folder)
    return kept


def keep_datatrove_zh(file: str, out: str, threshold: float) -> int:
    return keep_datatrove(file, out, threshold, "zh")


def _language(code: str) -> str:
    from datatrove.utils.typeshelper import Languages

    return str({"en": Languages.english, "zh": Languages.chinese__hani}[code])


KEEP: dict[str, Callable[[str, str, float], int]] = {
    "rensa": keep_rensa,
    "rensa-words": keep_rensa_words,
    "datasketch": keep_datasketch,
    "text-dedup": keep_text_dedup,
    "datatrove": keep_datatrove,
    "datatrove-zh": keep_datatrove_zh,
}

if __name__ == "__main__":
    os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(sign(*sys.argv[2:]) if sys.argv[1] == "sign" else keep(*sys.argv[2:])))
