"""Near-duplicates: candidates by bands of MinHash, every one verified by exact Jaccard, survivors decided in row order.

In: shards of live documents (`runs.Shard`). Out: one file of `DUPLICATES` per shard, and `report.json`.

The rule: documents are taken in row order (with a declared priority, in order of rank: read rank for row below, see `ranks`), and one is removed iff a document of lower row that is itself kept has a verified Jaccard similarity
at or above the threshold. No chain removes anything: what only resembles a removed document stays. The recorded survivor is the most similar
kept document among those it was compared with, the lowest row among equals. Documents with equal sets of shingles have Jaccard 1; documents
without a word are nobody's near-duplicates.

Rounds, so that any number of processes agrees: each round emits pairs from the open buckets (`banding`), drops those whose signatures put them
`MARGIN` standard errors below the threshold (a miss of 1 in 10,000 at a threshold of 0.8 itself), verifies the rest, then walks all verified pairs
in row order. A document is settled when it has been compared with everyone before it in its buckets and none of its verified neighbours is
open; the next round compares only members that are not yet removed. When the bands are done, what is live of their crowded buckets is joined by
rare shingles (`rare`), in rounds again. Nothing depends on the order of shards, the number of processes or of ranges.

Recall is that of the bands (0.995 or more at the threshold, more above it), and 1 between members of crowded buckets, less what lists of more than
10,000 kept documents with one rare shingle give up, which the report counts. Precision is 1: nothing below the threshold is ever removed.

Memory: one range of pairs or buckets and one shard's signatures or candidate texts per process. Disk in `scratch`: 16 bytes per band and
document, some 26 bytes per row in sparse maps, signatures and shingles of candidates.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.dedup.banding import (
    Banding,
    Buckets,
    band_keys,
    banding,
    crowded,
    emit,
    group,
    has_shingles,
    kept,
    least_agreement,
    leave,
    live,
    next_leaders,
    parted,
    reaching,
)
from curation.dedup.minhash import PERMUTATIONS, MinhashConfig, agreements, jaccards
from curation.dedup.ranks import Ranks, behind, told_apart, write_all
from curation.dedup.rare import Counts, count_shingles, lists_of, no_counts, prefix_lengths, rarest, ratio_of
from curation.dedup.runs import RANGE_BYTES, Run, Shard, gather, open_run, ranges, write_run
from curation.dedup.settling import REMOVED, most_similar, settle
from curation.dedup.store import Part, Store, sparse, write_part
from curation.engine.atomic_files import save, save_all
from curation.text.words import Bytes, Hashes

MARGIN = 4.0
_KEYED = 1 << 15  # documents whose bands are held at once
_SHINGLED = 1 << 12  # documents whose shingles are held at once
_CROWDED = 1 << 14  # documents whose rare shingles are found at once
_PAIR_BYTES = 32  # of the size of a range: pairs held at once while emitting


class Work(NamedTuple):
    """What every task of one search needs: where things lie, and the sizes that bound memory but never the result."""

    folder: Path
    threshold: float
    range_bytes: int
    known: int = 0
    """Rows below this are members of an index: they stay, and are compared with the others alone."""

    def map(self, name: str) -> Bytes:
        """A u8 map over rows, to read: `status` and `waiting` (see `decide`), `wanted`."""
        return np.asarray(np.load(self.path(name), mmap_mode="r"))

    def to_write(self, name: str) -> np.memmap[Any, np.dtype[np.uint8]]:
        """The same to write, by the one process that hands out the tasks; it is flushed before they read it, perhaps on other machines."""
        found: np.memmap[Any, np.dtype[np.uint8]] = np.load(self.path(name), mmap_mode="r+")
        return found

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def near_duplicates(
    given: Sequence[Shard],
    config: MinhashConfig,
    scratch: Path,
    run: Run,
    range_bytes: int = RANGE_BYTES,
    ranks: Ranks | None = None,
    index: Sequence[Shard] = (),
) -> list[Path]:
    """The documents to remove, one file per shard in the order of `given`; `scratch/report.json` says what was compared. The members of `index`, rows from 0 on,
    have priority over all and stay."""
    known = sum(len(shard.rows()) for shard in index)
    shards = [*index, *behind(given, ranks, known)]
    work = Work(scratch / "work", config.threshold, range_bytes, known)
    shutil.rmtree(work.folder, ignore_errors=True)  # what a killed build left
    work.folder.mkdir(parents=True)
    bands = banding(config.threshold)
    keyed = run(_write_keys, [(shard, bands, work.path(f"keys-{i}")) for i, shard in enumerate(shards)])
    size = max((found.end for found in keyed), default=0) + 1
    for name in ("status", "waiting", "wanted"):
        sparse(work.path(name), np.uint8, size)
    signatures, sets = Store.create(work.folder / "signatures", size), Store.create(work.folder / "shingles", size)
    keys = [path for each in keyed for path in each.paths]
    found = run(_find_buckets, [(work, keys, low, high, f"{i}") for i, (low, high) in enumerate(ranges(keys, range_bytes))])
    _want(work, [part.members for part in found])
    _fill(work, shards, signatures, _write_signatures, run)

    report = Counter(documents=sum(each.documents for each in keyed) - known, bands=bands.bands, band_rows=bands.rows)
    report.update({"members_of_the_index": known} if known else {})
    search = _Search(work, shards, signatures, sets, report, run)
    similar, crowd = search.compare([part.buckets for part in found], bands=True)
    if crowd:
        similar += search.compare(_join_by_rare_shingles(work, shards, sets, crowd, report, run), bands=False, known=similar)[0]

    removed = _name_survivors(work, similar)
    report["removed"] = sum(open_run(path).shape[1] for path in removed)
    decisions = write_all(given, removed, ranks, scratch, work.folder, run)
    (scratch / "report.json").write_text(json.dumps(dict(sorted(report.items())), indent=2) + "\n")
    shutil.rmtree(work.folder)
    return decisions


class _Search(NamedTuple):
    """What the rounds of one search share."""

    work: Work
    shards: Sequence[Shard]
    signatures: Store
    sets: Store
    report: Counter[str]
    run: Run

    def compare(self, open_buckets: list[Path], *, bands: bool, known: Sequence[Path] = ()) -> tuple[list[Path], list[Path]]:
        """Rounds until no bucket is open: runs of the verified pairs, and of the rows that crowded buckets held. `known` pairs have their say, too."""
        work, report, run = self.work, self.report, self.run
        similar, crowd = list[Path](), list[Path]()
        wave = 0
        while open_buckets:
            name = f"{'band' if bands else 'rare'}-{wave}"
            emitted = run(_emit, [(work, path, wave, bands, f"{name}-{i}") for i, path in enumerate(open_buckets)])
            _take_away(open_buckets)
            likely = _drop_unlikely(work, self.signatures, [path for part in emitted for path in part.pairs], name, report, run)
            _want(work, likely)
            _fill(work, self.shards, self.sets, _write_shingles, run)
            similar += run(_verify, [(work, self.sets, path, f"{name}-{i}") for i, path in enumerate(likely)])
            _take_away(likely)
            crowd += [part.crowd for part in emitted if part.crowd]
            _mark_waiting(work, [part.waiting for part in emitted], crowd)
            _settle(work, [*known, *similar])
            open_buckets = [part.buckets for part in emitted if part.buckets]
            closed, given_up = (sum(getattr(part, name) for part in emitted) for name in ("closed", "given_up"))
            report.update(rounds=1, buckets_closed=closed, pairs_given_up=given_up)
            wave += 1
        return similar, crowd


class Keyed(NamedTuple):
    paths: list[Path]
    documents: int
    end: int


def _write_keys(shard: Shard, bands: Banding, path: Path) -> Keyed:
    """Task: the (bucket, row) records of one shard."""
    rows, signatures = shard.rows(), shard.signatures()
    paths = []
    for first in range(0, len(rows), _KEYED):
        kept = first + np.flatnonzero(has_shingles(signatures[first : first + _KEYED]))
        keys = band_keys(np.ascontiguousarray(signatures[kept]), bands.bands, bands.rows)
        paths.append(write_run(path.with_name(f"{path.stem}-{first}.npy"), [keys.ravel(), np.tile(rows[kept], bands.bands)]))
    return Keyed(paths, len(rows), int(rows.max()) if len(rows) else 0)


class Found(NamedTuple):
    buckets: Path
    members: Path


def _find_buckets(work: Work, keys: Sequence[Path], low: int, high: int, name: str) -> Found:
    """Task: the buckets of one range of keys, and everyone in them."""
    keys_and_rows = gather(keys, low, high, 2)
    buckets = group(keys_and_rows[0], keys_and_rows[1])
    buckets = kept(buckets, reaching(buckets, work.known))
    save(work.path(f"members-{name}"), np.unique(buckets.members)[None])
    return Found(_save_buckets(work, buckets, f"buckets-{name}"), work.path(f"members-{name}"))


def _save_buckets(work: Work, buckets: Buckets, name: str) -> Path:
    return save_all(work.folder / f"{name}.npz", **buckets._asdict())


class Emitted(NamedTuple):
    pairs: list[Path]
    buckets: Path | None
    crowd: Path | None
    waiting: Path
    closed: int
    given_up: int


def _emit(work: Work, path: Path, wave: int, bands: bool, name: str) -> Emitted:
    """Task: one round's pairs (upper row, lower row) of one file of buckets, and what is left of the buckets; crowded buckets of bands are left out."""
    with np.load(path) as stored:
        before = Buckets(stored["members"], stored["offsets"], stored["leaders"], stored["facts"])
    buckets = live(before, work.map("status"))
    out = crowded(before.offsets, buckets, wave) if bands else np.zeros(len(buckets.leaders), np.bool_)
    some = reaching(buckets, work.known)
    out &= some
    buckets, rows = parted(buckets, out)
    buckets = kept(buckets, some[~out])
    crowd = write_run(work.path(f"crowd-{name}"), [rows]) if len(rows) else None
    lead = next_leaders(buckets, wave)
    place = np.zeros(3, np.int64)
    lower, upper = (np.empty(work.range_bytes // _PAIR_BYTES, np.uint64) for _ in range(2))
    pairs: list[Path] = []
    while count := emit(*buckets, ratio_of(work.threshold), lead, place, lower, upper, np.uint64(work.known)):
        pairs.append(write_run(work.path(f"pairs-{name}-{len(pairs)}"), [upper[:count], lower[:count]]))
    left = leave(buckets, lead)
    save(work.path(f"waiting-{name}"), left.waiting[None])
    rest = _save_buckets(work, left.buckets, f"buckets-{name}") if len(left.buckets.leaders) else None
    return Emitted(pairs, rest, crowd, work.path(f"waiting-{name}"), left.closed, left.given_up)


def _join_by_rare_shingles(
    work: Work, shards: Sequence[Shard], sets: Store, crowd: Sequence[Path], report: Counter[str], run: Run
) -> list[Path]:
    """Files of buckets of the live rows of `crowd`: those that share a rare shingle; takes `crowd` away."""
    status = work.map("status")
    _want(work, crowd)
    wanted = work.to_write("wanted")
    wanted[status == REMOVED] = 0
    wanted.flush()
    _fill(work, shards, sets, _write_shingles, run)
    rows = np.flatnonzero(wanted).astype(np.uint64)
    report.update(crowded=len(rows))
    parts = [rows[first : first + _CROWDED] for first in range(0, len(rows), _CROWDED)]
    counts = no_counts()
    for found in run(_count_shingles, [(sets, part) for part in parts]):
        counts += found
    np.save(work.path("counts"), counts)
    keys = run(_write_postings, [(work, sets, part, work.path(f"postings-{i}")) for i, part in enumerate(parts)])
    lists: list[Path] = run(
        _find_lists, [(work, keys, low, high, f"rare-{i}") for i, (low, high) in enumerate(ranges(keys, work.range_bytes))]
    )
    _take_away([*keys, *crowd])
    return lists


def _count_shingles(sets: Store, rows: Hashes) -> Counts:
    """Task: how often each shingle occurs in these documents."""
    counts = no_counts()
    count_shingles(sets.values(), sets.spans(rows), counts)
    return counts


def _write_postings(work: Work, sets: Store, rows: Hashes, path: Path) -> Path:
    """Task: the (rare shingle, row, facts) records of these documents."""
    spans = sets.spans(rows)
    lengths = prefix_lengths(spans[:, 1] - spans[:, 0], work.threshold)
    keys, facts = rarest(sets.values(), spans, lengths, np.load(work.path("counts")))
    return write_run(path, [keys, np.repeat(rows, lengths), facts])


def _find_lists(work: Work, keys: Sequence[Path], low: int, high: int, name: str) -> Path:
    """Task: the lists of one range of rare shingles."""
    shingles_and_rows = gather(keys, low, high, 3)
    lists = lists_of(shingles_and_rows[0], shingles_and_rows[1], shingles_and_rows[2], ratio_of(work.threshold))
    return _save_buckets(work, kept(lists, reaching(lists, work.known)), f"buckets-{name}")


def _drop_unlikely(work: Work, signatures: Store, pairs: Sequence[Path], name: str, report: Counter[str], run: Run) -> list[Path]:
    """Runs of the distinct pairs whose signatures do not rule them out; takes `pairs` away."""
    cuts = ranges(pairs, work.range_bytes)
    filtered = run(_filter, [(work, signatures, pairs, low, high, f"{name}-{i}") for i, (low, high) in enumerate(cuts)])
    report.update(candidates=sum(part.candidates for part in filtered), verified=sum(part.likely for part in filtered))
    _take_away(pairs)
    return [part.path for part in filtered]


class Filtered(NamedTuple):
    path: Path
    candidates: int
    likely: int


def _filter(work: Work, signatures: Store, pairs: Sequence[Path], low: int, high: int, name: str) -> Filtered:
    """Task: the distinct pairs of one range of rows whose signatures do not rule them out."""
    upper, lower = gather(pairs, low, high, 2)
    order = np.lexsort((lower, upper))
    upper, lower = upper[order], lower[order]
    distinct = np.ones(len(upper), bool)
    distinct[1:] = (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])
    upper, lower = upper[distinct], lower[distinct]
    stored = signatures.values().view(np.uint32).reshape(-1, PERMUTATIONS)
    left, right = (signatures.spans(rows)[:, 0] // (PERMUTATIONS // 2) for rows in (upper, lower))
    likely = agreements(stored, left, stored, right) >= least_agreement(work.threshold, MARGIN)
    save(work.path(f"likely-{name}"), np.stack([upper[likely], lower[likely]]))
    return Filtered(work.path(f"likely-{name}"), len(upper), int(likely.sum()))


def _verify(work: Work, sets: Store, path: Path, name: str) -> Path:
    """Task: the pairs of one file that reach the threshold, with their exact similarity."""
    upper, lower = open_run(path)
    values = sets.values()
    similarity = jaccards(values, sets.spans(upper), values, sets.spans(lower))
    reach = similarity >= work.threshold
    return write_run(work.path(f"similar-{name}"), [upper[reach], lower[reach], similarity[reach].view(np.uint64)], by=(0, 1))


def _take_away(paths: Sequence[Path]) -> None:
    """What all tasks of a phase have read; none removes its own input, which another attempt may need."""
    for path in paths:
        path.unlink()


def _want(work: Work, rows: Sequence[Path]) -> None:
    """Mark every row of these runs, for the shards' next task."""
    wanted = work.to_write("wanted")
    wanted[:] = 0
    for path in rows:
        for column in open_run(path):
            wanted[column] = 1
    wanted.flush()


def _fill(work: Work, shards: Sequence[Shard], store: Store, write: Callable[..., Part | None], run: Run) -> None:
    """Bring the values of all wanted rows into the store."""
    tasks = [(work, store, shard, work.folder / f"part-{i}") for i, shard in enumerate(shards)]
    for part in run(write, tasks):
        if part is not None:
            store.append(part)


def _missing(work: Work, store: Store, rows: Hashes) -> npt.NDArray[np.int64]:
    return np.flatnonzero((work.map("wanted")[rows] != 0) & ~store.has(rows))


def _write_signatures(work: Work, store: Store, shard: Shard, path: Path) -> Part | None:
    """Task: the signatures of one shard's wanted documents, as 64 u64 each."""
    rows = shard.rows()
    positions = _missing(work, store, rows)
    if not len(positions):
        return None
    values = np.ascontiguousarray(shard.signatures()[positions]).view(np.uint64)
    return write_part(path, rows[positions], [(np.full(len(positions), values.shape[1]), values)])


def _write_shingles(work: Work, store: Store, shard: Shard, path: Path) -> Part | None:
    """Task: the shingle sets of one shard's wanted documents."""
    rows = shard.rows()
    positions = _missing(work, store, rows)
    if not len(positions):
        return None
    some = (shard.shingles(positions[at : at + _SHINGLED]) for at in range(0, len(positions), _SHINGLED))
    return write_part(path, rows[positions], ((np.diff(offsets), values) for values, offsets in some))


def _mark_waiting(work: Work, paths: Sequence[Path], crowd: Sequence[Path]) -> None:
    """Who waits after a round: the rows of `paths`, which are taken away, and those of crowded buckets, until they are joined."""
    waiting = work.to_write("waiting")
    waiting[:] = 0
    for path in [*paths, *crowd]:
        waiting[open_run(path)[0]] = 1
    waiting[: work.known] = 0
    waiting.flush()
    _take_away(paths)


def _settle(work: Work, similar: Sequence[Path]) -> None:
    """One walk over all verified pairs in row order, from what is known so far."""
    status, waiting = work.to_write("status"), work.map("waiting")
    for low, high in ranges(similar, work.range_bytes):
        upper, lower, _ = gather(similar, low, high, 3)
        order = np.argsort(upper)
        settle(upper[order], lower[order], status, waiting)
    status.flush()


def _name_survivors(work: Work, similar: Sequence[Path]) -> list[Path]:
    """Runs of (removed row, its most similar kept row, bits of their similarity)."""
    status = work.map("status")
    found = []
    for i, (low, high) in enumerate(ranges(similar, work.range_bytes)):
        removed, survivors, similarity = most_similar(gather(similar, low, high, 3), status)
        found.append(write_run(work.path(f"removed-{i}"), [*told_apart(removed, survivors, work.known), similarity]))
    return found
