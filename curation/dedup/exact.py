"""Exact duplicates: documents of equal text, or of equal words; the lowest row of each group survives, or the highest priority.

`text`: equal content hashes, so texts that are equal as they were written into the shards, byte by byte. `normalized`: equal sequences of words (`curation.text.words`: lower-cased one
code point at a time, everything that is no letter, mark or number separates and is dropped), told by the xxh3-128 of their word hashes. Texts without a word have no normalised
key and are nobody's duplicates. No Unicode normalisation besides: `clean: [nfc]` does that before a text is written.

In: shards of live documents. Out: one file of `DUPLICATES` per shard, similarity 1. Keys are sorted in ranges on disk, so memory follows the size of a range; the result depends
on rows (or ranks, see `ranks`) and keys alone.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from curation.dedup.preference import Preference
from curation.dedup.ranks import Ranks, behind, told_apart, write_all
from curation.dedup.runs import RANGE_BYTES, Run, Shard, gather, ranges, write_run
from curation.text.words import WORDS_VERSION, word_hashes

NORMALIZED_VERSION = f"1/words-{WORDS_VERSION}"
By = Literal["text", "normalized"]


class ExactConfig(Preference):
    """Exact duplicates: documents whose text as written is equal, or, with `by: normalized`, whose words are."""

    kind: Literal["exact"]
    by: By = Field(
        "text",
        description="`normalized` compares words alone: case, punctuation and white space do not count, and a text without a word has no duplicates",
    )

    silent: ClassVar[dict[str, object]] = {"priority": None, "against": None, "by": "text"}


def normalized(texts: pa.LargeStringArray) -> pa.FixedSizeBinaryArray:
    """The normalised key of every text, 16 bytes; null for a text without a word."""
    hashes, offsets = word_hashes(texts)
    data = hashes.astype("<u8", copy=False).tobytes()
    ends = (8 * offsets).tolist()
    keys = [xxhash.xxh3_128_digest(data[at:end]) if end > at else None for at, end in itertools.pairwise(ends)]
    return pa.array(keys, pa.binary(16))


def exact_duplicates(
    shards: Sequence[Shard],
    scratch: Path,
    run: Run,
    range_bytes: int = RANGE_BYTES,
    *,
    by: By = "text",
    ranks: Ranks | None = None,
    index: Sequence[Shard] = (),
) -> list[Path]:
    """The documents to remove, one file per shard in the order of `shards`: everything whose key a lower row has too, or with `ranks` one of lower rank, or a member of `index`."""
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)  # what a killed build left
    work.mkdir(parents=True)
    known = sum(len(shard.rows()) for shard in index)
    keyed = [*index, *behind(shards, ranks, known)]
    keys = run(_write_keys, [(shard, by, work / f"keys-{i}.npy") for i, shard in enumerate(keyed)])
    cuts = ranges(keys, range_bytes)
    removed = run(_find_copies, [(keys, low, high, known, work / f"removed-{i}.npy") for i, (low, high) in enumerate(cuts)])
    decisions = write_all(shards, removed, ranks, scratch, work, run)
    shutil.rmtree(work)
    return decisions


def _write_keys(shard: Shard, by: By, path: Path) -> Path:
    rows = shard.rows()
    if by == "text":
        keys = shard.contents()
    else:
        keys, worded = shard.normalized()
        keys, rows = keys[worded], rows[worded]
    return write_run(path, [keys[:, 0], keys[:, 1], rows])


def _find_copies(keys: Sequence[Path], low: int, high: int, known: int, path: Path) -> Path:
    first, second, rows = gather(keys, low, high, 3)
    order = np.lexsort((rows, second, first))
    first, second, rows = first[order], second[order], rows[order]
    opens = np.ones(len(rows), bool)
    opens[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    survivors = rows[opens][np.cumsum(opens) - 1]
    copies = ~opens & (rows >= np.uint64(known))
    return write_run(path, [*told_apart(rows[copies], survivors[copies], known), np.ones(int(copies.sum())).view(np.uint64)])
