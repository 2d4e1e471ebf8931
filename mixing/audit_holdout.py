"""The hold-out's part of `verify`: promise 7. No held-out document, copy, or anything made from one is trained on.

Equal content, equal ids and descent (`parents`) fail. Pairs that share at least 0.9 of their 8-grams of token ids (Jaccard) are findings: the
build compares words, so such a pair can be right, but someone should look at it. Candidates come from a prefix filter: a pair at similarity t
shares one of the rarest |H| - ceil(t |H|) + 1 grams of the held-out document, so a tenth of the grams is looked up, and each candidate is
compared exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mixing.findings import Finding, Pool, Stored, check
from mixing.manifest import NO_COMPONENT, Holdout, Manifest
from mixing.pool import DECISIONS

GRAM = 8
SIMILAR = 0.9
_BLOCK = 1 << 22  # ids hashed at a time: about 100 MB of temporaries
_HELD = DECISIONS.index("held_out")
_KEPT = DECISIONS.index("kept")


def check_holdout(manifest: Manifest, pool: Pool, stored: Stored) -> Iterator[Finding]:
    held = manifest.holdout()
    reserved = pool.decision == _HELD
    for number, (source, documents) in enumerate(manifest.sources.items()):
        if source in held:
            yield _check_source(manifest, pool, source, number, held[source])
        else:
            passing = int(((pool.source == number) & reserved & ~pool.reasoned).sum())
            yield check(
                f"hold-out of {source}: no file and no document that the rules pass",
                passing == 0 and source not in manifest.header["holdout"],
                f"{documents['held_out']} held out, {passing} that pass",
            )
    contents = pc.unique(pool.content.filter(pa.array(reserved))).drop_null()
    copies = pc.is_in(pool.content.take(pa.array(stored.row)), contents).to_numpy()
    yield check(
        "no held-out content is planned", not copies.any(), f"{len(contents)} held out; planned rows {stored.row[copies][:3].tolist()}"
    )
    made = _descendants(pool, reserved)
    trained = np.flatnonzero(made & (pool.decision == _KEPT))
    yield check(
        "nothing is made from a held-out document", not len(trained), f"{int(made.sum())} descend, kept rows {trained[:3].tolist()}"
    )
    texts = [ids for documents in held.values() for ids in np.split(documents.ids, documents.offsets[1:-1]) if len(documents.pool_row)]
    rows = [int(row) for documents in held.values() for row in documents.pool_row]
    yield _check_equal(manifest, stored, rows, texts)
    yield _near_pairs(manifest, stored, rows, texts)


def _check_source(manifest: Manifest, pool: Pool, source: str, number: int, held: Holdout) -> Finding:
    """The file holds exactly the held-out documents that pass the recipe's rules (whose reason is null), with true counts."""
    rows = held.pool_row.astype(np.int64)
    expected = np.flatnonzero((pool.source == number) & (pool.decision == _HELD) & ~pool.reasoned)
    lengths = np.diff(held.offsets)
    true = np.array_equal(rows, expected) and np.array_equal(pool.bytes[rows], held.bytes)
    counted = true and ((pool.n_tokens[rows] == lengths) | (pool.n_tokens[rows] < 0)).all()
    component = np.isin(held.component, [NO_COMPONENT, *range(len(manifest.component_names))]).all()
    said = manifest.header["holdout"][source]
    known = said == {"documents": len(rows), "tokens": int(lengths.sum())}
    return check(
        f"hold-out of {source}: rows, bytes, ids and counts agree", counted and component and known, f"header {said}, {len(rows)} rows"
    )


def _descendants(pool: Pool, reserved: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Rows made from a reserved one, directly or through other synthetic documents."""
    parents = pool.parents.combine_chunks() if pool.parents.num_chunks != 1 else pool.parents.chunk(0)
    child = pc.list_parent_indices(parents).to_numpy()
    parent = parents.flatten().to_numpy().astype(np.int64)
    made = np.zeros(len(reserved), np.bool_)
    while True:
        more = child[(reserved | made)[parent]]
        if made[more].all():
            return made
        made[more] = True


def _check_equal(manifest: Manifest, stored: Stored, rows: list[int], texts: list[npt.NDArray[Any]]) -> Finding:
    held = {ids.tobytes(): row for row, ids in zip(rows, texts, strict=True)}
    candidates = np.flatnonzero(np.isin(stored.length, [len(ids) for ids in texts]))
    pairs = []
    for document in candidates:
        if (row := held.get(_ids(manifest, stored, int(document)).tobytes())) is not None:
            pairs.append((row, int(stored.row[document])))
    return check("held-out ids are not among planned ones", not pairs, f"{len(texts)} held out; pairs of rows {pairs[:3]}")


def _ids(manifest: Manifest, stored: Stored, document: int) -> npt.NDArray[Any]:
    file = int(np.searchsorted(stored.first, document, side="right")) - 1
    return manifest.ids(file, document - int(stored.first[file]), 0, int(stored.length[document]))


class _Rare(NamedTuple):
    """The grams looked up, ascending, and the held-out document of each."""

    gram: npt.NDArray[np.uint64]
    held: npt.NDArray[np.int64]


def _near_pairs(manifest: Manifest, stored: Stored, rows: list[int], texts: list[npt.NDArray[Any]]) -> Finding:
    grams = [np.unique(_grams(ids)) for ids in texts]
    rare = _rarest(grams)
    pairs = []
    for document, held in sorted(set(_candidates(manifest, stored, rare))):
        planned = np.unique(_grams(_ids(manifest, stored, document)))
        if not SIMILAR <= len(planned) / len(grams[held]) <= 1 / SIMILAR:
            continue
        shared = len(np.intersect1d(planned, grams[held], assume_unique=True))
        similarity = shared / (len(planned) + len(grams[held]) - shared)
        if similarity >= SIMILAR:
            pairs.append((rows[held], int(stored.row[document]), round(similarity, 3)))
    name = f"held-out and planned documents that share {SIMILAR} of their {GRAM}-grams of ids"
    if not pairs:
        return Finding(name, "ok", "none")
    return Finding(name, "finding", f"{len(pairs)} pairs of rows: {', '.join(f'{a} ~ {b} ({s})' for a, b, s in pairs[:10])}")


def _grams(ids: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each run of GRAM ids; none for a shorter text."""
    count = max(0, len(ids) - GRAM + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(GRAM if count else 0):
        hashes = (hashes ^ (ids[offset : offset + count].astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xFF51AFD7ED558CCD)
        hashes ^= hashes >> np.uint64(32)
    return hashes


def _rarest(grams: list[npt.NDArray[np.uint64]]) -> _Rare:
    every, frequency = np.unique(np.concatenate([np.zeros(0, np.uint64), *grams]), return_counts=True)
    chosen = []
    for own in grams:
        seldom = np.argsort(frequency[np.searchsorted(every, own)], kind="stable")
        chosen.append(own[seldom[: len(own) - math.ceil(SIMILAR * len(own)) + 1 if len(own) else 0]])
    gram = np.concatenate([np.zeros(0, np.uint64), *chosen])
    held = np.repeat(np.arange(len(chosen)), [len(own) for own in chosen])
    order = np.argsort(gram, kind="stable")
    return _Rare(gram[order], held[order])


def _candidates(manifest: Manifest, stored: Stored, rare: _Rare) -> Iterator[tuple[int, int]]:
    """Pairs (stored document, held-out document) that share one of the rare grams; a document on the border of two blocks may come twice."""
    if not len(rare.gram):
        return
    maybe = np.zeros(1 << 20, np.bool_)  # a first look that costs no search: nearly all grams stop here
    maybe[rare.gram & np.uint64(len(maybe) - 1)] = True
    for number in range(manifest.token_files):
        tokens = manifest.token_file(number)
        for low in range(0, len(tokens.ids), _BLOCK):
            hashes = _grams(tokens.ids[low : low + _BLOCK + GRAM - 1])
            at = np.flatnonzero(maybe[hashes & np.uint64(len(maybe) - 1)])
            first, last = np.searchsorted(rare.gram, hashes[at], "left"), np.searchsorted(rare.gram, hashes[at], "right")
            at, first, last = at[last > first], first[last > first], last[last > first]
            row = np.searchsorted(tokens.offsets, low + at, side="right") - 1
            inside = low + at + GRAM <= tokens.offsets[row + 1]
            for r, begin, end in zip(row[inside], first[inside], last[inside], strict=True):
                yield from ((int(stored.first[number] + r), int(held)) for held in rare.held[begin:end])
