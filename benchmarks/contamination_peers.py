"""One peer says which documents it takes for contaminated; the last line it prints is JSON: `flagged` ids and `seconds` of CPU time over the documents.

    PEER/bin/python benchmarks/contamination_peers.py lm-eval|datatrove|datatrove-default ITEMS.jsonl DOCUMENTS.jsonl

ITEMS has `question` and `answer`, DOCUMENTS `id` and `text`. `lm-eval` is the Janitor of lm-evaluation-harness in Python, with its defaults (13-grams, punctuation deleted, ASCII
lower-cased; the file `janitor.py` of the installed package, read on its own because the package imports torch): a document is flagged when one of its n-grams is dirty, from where on it would be cut. `datatrove` hashes 12-grams as its
NGramsDecontIndexer does, of questions too (`find_query_ngrams`), `datatrove-default` without them, and filters with NGramsDecontFilter; loading indices from disk is left out, since its indexer asks for lighteval.

    pip install datatrove spacy regex orjson "xxhash<4"; pip install --no-deps lm-eval
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import importlib.util
import json
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson


def read(path: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]


def lm_eval(items: list[dict[str, Any]]) -> Callable[[str], bool]:
    path = Path(sysconfig.get_paths()["purelib"]) / "lm_eval/decontamination/janitor.py"
    spec = importlib.util.spec_from_file_location("janitor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    janitor = module.Janitor()
    for item in items:
        janitor.register_contaminant_python(item["question"])

    def is_dirty(text: str) -> bool:
        grams = module.word_ngrams_indices(text, janitor.ngram_n)
        return any(janitor.normalize_string(gram) in janitor.dirt_ngrams for gram, _ in grams)

    return is_dirty


def datatrove(items: list[dict[str, Any]], *, questions: bool) -> Callable[[str], bool]:
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter, NGramsDecontIndexer

    config = NGramsDecontConfig(find_query_ngrams=questions)
    NGramsDecontIndexer._requires_dependencies = []
    indexer = NGramsDecontIndexer("memory://index", config=config)
    found = NGramsDecontFilter("memory://index", config=config)
    found._index_hashes = {key: "all" for item in items for key in indexer.compute_hashes(item["answer"], item["question"])}
    return lambda text: found.filter(Document(text=text, id="")) is not True


def main(peer: str, items_path: str, documents_path: str) -> None:
    items, documents = read(items_path), read(documents_path)
    flags = lm_eval(items) if peer == "lm-eval" else datatrove(items, questions=peer == "datatrove")
    flags(documents[0]["text"])
    began = time.process_time()
    flagged = [one["id"] for one in documents if flags(one["text"])]
    print(json.dumps({"flagged": flagged, "seconds": time.process_time() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
