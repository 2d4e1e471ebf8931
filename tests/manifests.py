"""A small real manifest for tests: planned by `mixing.plan`, written by `mixing.write`, nothing faked.

`small_manifest(folder)` makes two sources of random documents (`prose`, `code`), three components (`domain`, `replay`, `extra`), two stages,
dropped, quarantined and held-out rows, and a byte-level tokenizer trained on a few sentences. Ids are drawn so that a model can learn
something: each component walks its own cycle through the vocabulary with a little noise, so losses fall and differ between components.
The same arguments give the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mixing import validated
from mixing.canonical import canonical_json
from mixing.draws import Documents
from mixing.files import TOKEN_FILE_IDS, first_of_files, write_plan, write_pool, write_tokens
from mixing.findings import Stored
from mixing.manifest import NO_COMPONENT, Holdout
from mixing.plan import Mixture, Plan, plan
from mixing.pool import POOL
from mixing.write import ManifestWriter

EOS = 0
SOURCES = ("prose", "code")
COMPONENTS = ("domain", "replay", "extra")


class Corpus(NamedTuple):
    """One entry per record: its source, decision, component (or NO_COMPONENT), ids (EOS last) and content hash (high, low)."""

    source: npt.NDArray[np.int64]
    decision: list[str]
    component: npt.NDArray[np.uint16]
    ids: list[npt.NDArray[np.uint16]]
    content: npt.NDArray[np.uint64]


def small_manifest(
    folder: Path,
    *,
    vocabulary: int = 256,
    sequence_length: int = 64,
    tokens: int = 20_000,
    seed: int = 17,
    mixture: Mapping[str, Any] | None = None,
    token_file_ids: int = 4096,
    lengths: tuple[float, float, int] = (3.2, 1.0, 400),
    replace: bool = False,
) -> Path:
    """Write a manifest of about `tokens` planned tokens into `folder` and return it; `mixture` overrides keys of the default one. The lengths of
    documents are log-normal: mean and deviation of the logarithm, and the longest."""
    default = {
        "sequence_length": sequence_length,
        "fill": 0.98,
        "components": {"domain": "source = 'code'", "replay": "source = 'prose'", "extra": "key = 'extra'"},
        "max_epochs": {"domain": 3, "extra": 2.5},
        "stages": [
            {"name": "adapt", "tokens": tokens * 3 // 4, "weights": {"domain": 0.6, "replay": 0.4}, "rounds": 2, "draw": "fresh"},
            {"name": "enhance", "tokens": tokens - tokens * 3 // 4, "weights": {"domain": 0.45, "replay": 0.25, "extra": 0.3}},
        ],
    }
    config = validated(Mixture, {**default, **(mixture or {})}, "mixture")
    corpus = random_corpus(vocabulary, tokens, seed, lengths)
    kept = np.flatnonzero([decision == "kept" for decision in corpus.decision])
    lengths = np.array([len(corpus.ids[row]) for row in kept], np.int64)
    documents = Documents(kept.astype(np.uint64), corpus.content[kept], corpus.component[kept], lengths)
    return write_manifest(folder, config, corpus, plan(config, documents, seed), kept, seed, vocabulary, token_file_ids, replace)


def random_corpus(vocabulary: int, tokens: int, seed: int, lengths: tuple[float, float, int] = (3.2, 1.0, 400)) -> Corpus:
    """Documents of 2 to some hundreds of ids, about enough of each component for the default mixture; some of them not kept."""
    random = np.random.default_rng(seed)
    source, decision, component, ids = [], [], [], []
    seen: set[bytes] = set()
    for index, share in enumerate((0.45, 0.75, 0.15)):  # replay is visited once, the others more often
        made = 0
        while made < share * tokens:
            length = int(min(2 + random.lognormal(*lengths[:2]), lengths[2]))
            steps = np.where(random.random(length) < 0.9, 2 * index + 1, random.integers(1, vocabulary, length))
            walk = 1 + (random.integers(vocabulary) + np.cumsum(steps)) % (vocabulary - 1)
            text = np.append(walk[:-1], EOS).astype(np.uint16)
            if text.tobytes() in seen:
                continue  # copies would put held-out texts among the kept ones
            seen.add(text.tobytes())
            ids.append(text)
            fate = random.choice(["kept", "dropped", "held_out"], p=[0.9, 0.06, 0.04])
            source.append(int(index == 0))
            decision.append(str(fate))
            component.append(index if random.random() > 0.02 else NO_COMPONENT)
            made += length if fate == "kept" else 0
    quarantined = 3
    source += [0] * quarantined
    decision += ["quarantined"] * quarantined
    component += [NO_COMPONENT] * quarantined
    ids += [np.zeros(0, np.uint16)] * quarantined
    order = np.argsort(source, kind="stable")  # the pool lists one source after the other
    ids = [ids[i] for i in order]
    digests = [xxhash.xxh3_128_intdigest(values.tobytes()) for values in ids]
    content = np.array([(digest >> 64, digest & (2**64 - 1)) for digest in digests], np.uint64)
    return Corpus(np.array(source)[order], [decision[i] for i in order], np.array(component, np.uint16)[order], ids, content)


def store(
    writer: ManifestWriter,
    rows: npt.NDArray[Any],
    lengths: npt.NDArray[np.int64],
    documents: Callable[[int, int], Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[np.int64]]]],
    token_file_ids: int = TOKEN_FILE_IDS,
) -> Stored:
    """Writes `tokens/` of a manifest, a file at a time; `documents` gives those from one index to another."""
    first = first_of_files(lengths, token_file_ids)
    for number, (low, high) in enumerate(pairwise([*first.tolist(), len(rows)])):
        writer.take(write_tokens(writer.folder, number, "uint16", documents(low, high)))
    return Stored(rows.astype(np.int64), lengths, first)


def write_manifest(
    folder: Path,
    config: Mixture,
    corpus: Corpus,
    planned: Plan,
    kept: npt.NDArray[np.int64],
    seed: int,
    vocabulary: int,
    token_file_ids: int,
    replace: bool,
) -> Path:
    used = kept[planned.documents()]
    tokenizer = small_tokenizer()
    with ManifestWriter(folder, "uint16", replace=replace) as writer:

        def documents(first: int, end: int) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint16], npt.NDArray[np.int64]]]:
            for chunk in np.array_split(used[first:end], max(1, (end - first) // 50)):
                yield chunk.astype(np.uint64), *_joined([corpus.ids[row] for row in chunk])

        stored = store(writer, used, np.array([len(corpus.ids[row]) for row in used], np.int64), documents, token_file_ids)
        for stage in planned.stages:
            writer.take(*write_plan(writer.folder, stage, kept, stored))
        for number, source in enumerate(SOURCES):
            rows = np.array([r for r, d in enumerate(corpus.decision) if d == "held_out" and corpus.source[r] == number], np.int64)
            ids, offsets = _joined([corpus.ids[row] for row in rows])
            sizes = 3 * np.diff(offsets).astype(np.uint32)  # as if each id were three bytes of text
            writer.holdout(source, Holdout(rows.astype(np.uint64), corpus.component[rows], sizes, offsets, ids))
        writer.take(write_pool(writer.folder, 0, _pool(corpus)))
        writer.tokenizer({"tokenizer.json": tokenizer, "tokenizer_config.json": b'{"eos_token": "<|end|>"}'})
        header = {
            "name": "small",
            "version": 1,
            "seed": seed,
            "recipe": {"name": "small", "seed": seed, "sources": [{"name": source} for source in SOURCES], "mixture": config.resolved()},
            "parent": None,
            "tokenizer": {
                "name": "small",
                "sha256": hashlib.sha256(tokenizer).hexdigest(),
                "vocab_size": vocabulary,
                "bos_id": None,
                "eos_id": EOS,
                "dtype": "uint16",
            },
            "sources": {source: _accounting(corpus, number, used) for number, source in enumerate(SOURCES)},
            "models": {},
            **planned.header(),
        }
        writer.finish(header, {"made_by": "tests"})
    return folder


def _joined(lists: list[npt.NDArray[np.uint16]]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return np.concatenate([np.zeros(0, np.uint16), *lists]), offsets


def _pool(corpus: Corpus) -> pa.Table:
    rows = range(len(corpus.ids))
    quarantined = [decision == "quarantined" for decision in corpus.decision]
    reasons = {"kept": None, "held_out": None, "dropped": "quality >= 0.6", "quarantined": "broken JSON"}
    content = [f"{int(high):016x}{int(low):016x}" for high, low in corpus.content]
    columns = {
        "row": list(rows),
        "source": [SOURCES[number] for number in corpus.source],
        "origin": [f"{SOURCES[corpus.source[row]]}.jsonl#{row}" for row in rows],
        "key": [None for _ in rows],
        "content": [None if gone else text for gone, text in zip(quarantined, content, strict=True)],
        "bytes": [3 * len(values) for values in corpus.ids],
        "parents": [None for _ in rows],
        "decision": corpus.decision,
        "reason": [reasons[decision] for decision in corpus.decision],
        "evidence": [canonical_json({"value": 0.5}) if decision == "dropped" else None for decision in corpus.decision],
        "n_tokens": [None if gone else len(values) for gone, values in zip(quarantined, corpus.ids, strict=True)],
    }
    return pa.table(columns, schema=POOL)


def _accounting(corpus: Corpus, number: int, used: npt.NDArray[np.int64]) -> dict[str, Any]:
    rows = np.flatnonzero(corpus.source == number)
    count = {name: [corpus.decision[row] for row in rows].count(name) for name in ("kept", "dropped", "held_out", "quarantined")}
    planned = len(np.intersect1d(rows, used))
    unassigned = sum(int(corpus.decision[row] == "kept" and corpus.component[row] == NO_COMPONENT) for row in rows)
    return {
        "read": len(rows),
        "quarantined": count["quarantined"],
        "dropped": [{"step": 0, "rule": "quality >= 0.6", "documents": count["dropped"]}],
        "held_out": count["held_out"],
        "kept": count["kept"],
        "used": planned,
        "unused": count["kept"] - planned - unassigned,
        "unassigned": unassigned,
        "licence": None,
        "inputs": [],
    }


@lru_cache
def small_tokenizer() -> bytes:
    """A byte-level BPE tokenizer of 300 ids with `<|end|>` at id 0, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the soil is ready to grow something", "what is planned is what is seen"], trainer)
    return (json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)).encode()
