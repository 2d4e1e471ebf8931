"""datatrove's side of `heuristics.py`; runs in an environment of its own (datatrove, spacy, orjson) and writes what its filters say.

    python benchmarks/heuristics_peers.py DOCUMENTS.jsonl OUT.jsonl [--timed N]

One line per document: whether each filter keeps it, its words, and the sentences of its lines. With `--timed`, only the processor seconds of each
filter over the first N documents, after one that loads what is loaded once.
"""

from __future__ import annotations

import re
import sys
import time
from importlib.metadata import version

import orjson
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION, split_into_parts, split_into_sentences, split_into_words

FILTERS = {
    "gopher": GopherQualityFilter(),
    "gopher_repetition": GopherRepetitionFilter(),
    "c4": C4QualityFilter(),
    "fineweb": FineWebQualityFilter(),
}
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")


def keeps(name: str, text: str) -> bool:
    if not text.strip():
        return False  # an empty text divides by zero in two of the filters
    verdict = FILTERS[name].filter(Document(text, ""))
    return verdict if isinstance(verdict, bool) else verdict[0]


def sentences(text: str) -> dict[str, int]:
    lines = {CITATION.sub("", line.strip()) for line in text.splitlines()} - {""}
    return {line: len(split_into_sentences(line)) for line in lines}


def main() -> None:
    documents, out, *timed = sys.argv[1:]
    with open(documents, "rb") as file:
        texts = [orjson.loads(line) for line in file]
    with open(out, "wb") as file:
        if timed:
            texts = texts[: int(timed[1])]
            for name in FILTERS:
                keeps(name, "Some words to load the splitter. " * 20)
                split_into_parts.cache_clear()
                start = time.process_time()
                for text in texts:
                    keeps(name, text)
                    split_into_parts.cache_clear()
                file.write(orjson.dumps({"filter": name, "seconds": time.process_time() - start}) + b"\n")
            return
        about = {
            "versions": {name: version(name) for name in ("datatrove", "spacy")},
            "punctuation": sorted(PUNCTUATION_SET),
            "terminal": sorted(TERMINAL_PUNCTUATION),
        }
        file.write(orjson.dumps(about) + b"\n")
        for text in texts:
            kept = {name: keeps(name, text) for name in FILTERS}
            tokens = split_into_words(text) if text.strip() else []
            file.write(orjson.dumps({"kept": kept, "tokens": tokens, "sentences": sentences(text)}) + b"\n")


if __name__ == "__main__":
    main()
