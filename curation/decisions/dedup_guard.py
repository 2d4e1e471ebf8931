"""The guard that stops a build whose deduplication drops too much of a source; and the groups of which later rules leave nothing.

A document is dropped *as a duplicate* by a `keep` rule that looks at a signal of duplicates and fails a document that has a survivor there. What counts against a source are
duplicates whose survivor is in the same source: those of another source's documents are what ranks are for, and their texts stay there. A rule keeps a share of the documents
that come to it and that nothing else drops there, and what several rules keep is the product of their shares. Where they lose more than `WARN` the build warns, where more than
`STOP` it ends, unless the source says with `max_duplicates` how much is meant.

A duplicate's group is *gone* when the survivor it names was dropped by another rule, or was itself a duplicate whose survivor was, and so on: then nothing of the text is left.
What an index has is never gone.
Survivors are followed through maps over rows on disk, 9 bytes a row, one shard at a time; a chain of more than `HOPS` counts as gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curation.corpus.shards import Mask, Positions, Rows, Shard, read_sidecar, sidecar_path
from curation.dedup.runs import gather, open_run, ranges, write_run
from curation.dedup.store import sparse
from curation.engine.atomic_files import save
from curation.engine.local import Engine
from curation.engine.work_directory import Work
from mixing import UserError

WARN, STOP = 0.3, 0.6
HOPS = 64
ALIVE = 65535
ELSEWHERE = (1 << 64) - 1
LEFT, DROPPED, DUPLICATE = 0, 1, 2


class Removal(NamedTuple):
    """A rule that drops duplicates: its step, its text, and the keys of the signals that name survivors."""

    step: int
    rule: str
    keys: list[str]


class Loss(NamedTuple):
    """Of a source: the duplicates that the rule of a step dropped, those among them of documents of the same source, what these are a share of, and the share lost up to it."""

    step: int
    documents: int
    own: int
    of: int
    share: Fraction


class Copies(NamedTuple):
    """Duplicates dropped: all, and those of documents of the same source."""

    all: int
    own: int


def losses(copies: dict[int, Copies], dropped: dict[int, int], alive: int) -> list[Loss]:
    """By step, from the duplicates dropped by each, all documents dropped by fate, and those left at the end."""
    found, kept = [], Fraction(1)
    for step in sorted(copies):
        of = copies[step].own + sum(count for fate, count in dropped.items() if fate // 2 > step) + alive
        kept *= Fraction(of - copies[step].own, of) if of else 1
        found.append(Loss(step, *copies[step], of, 1 - kept))
    return found


def survivors_of(shard: Shard, keys: Sequence[str], positions: Positions, work: Work) -> tuple[Mask, Rows]:
    """Which documents at `positions` have a survivor by one of these signals, the first that names one, and its row, `ELSEWHERE` for a member of an index."""
    named, rows = np.zeros(len(positions), np.bool_), np.zeros(len(positions), np.uint64)
    for key in keys:
        sidecar = read_sidecar(sidecar_path(work, key, shard))
        assert sidecar is not None, shard.name
        found = sidecar.values.take(pa.array(positions))
        here = found.is_valid().to_numpy(zero_copy_only=False) & ~named
        rows[here] = found.field("row").fill_null(ELSEWHERE).to_numpy()[here]
        named |= here
    return named, rows


class Dropped(NamedTuple):
    """Where the fates of a shard lie, and which rows are its source's; picklable."""

    shard: Shard
    fates: Path
    source_rows: tuple[int, int]
    work: Work

    def by(self, removal: Removal) -> tuple[Positions, Rows]:
        """The positions of the duplicates that a rule dropped, and their survivors' rows."""
        positions = np.flatnonzero(np.load(self.fates) // 2 == removal.step)
        named, rows = survivors_of(self.shard, removal.keys, positions, self.work)
        return positions[named], rows[named]

    def own_by(self, removal: Removal) -> tuple[Positions, Rows]:
        """The same, of documents of the same source alone."""
        positions, rows = self.by(removal)
        mine = within(rows, self.source_rows)
        return positions[mine], rows[mine]


def within(rows: Rows, bounds: tuple[int, int]) -> Mask:
    """Which rows lie in `[first, end)`."""
    found: Mask = (rows >= np.uint64(bounds[0])) & (rows < np.uint64(bounds[1]))
    return found


# --- the guard


def guard(
    source: str, accepted: float | None, found: list[Loss], removals: list[Removal], shards: list[Dropped], engine: Engine
) -> str | None:
    """A warning if a source has lost much to duplicates and does not say that it is meant; a UserError if it has lost more than it accepts."""
    if not found or found[-1].share <= _exact(WARN if accepted is None else accepted):
        return None
    most = STOP if accepted is None else accepted
    last = next(loss for loss in found if loss.share == found[-1].share)
    rule = {removal.step: removal for removal in removals}
    count, example = _largest_group(rule[max(found, key=lambda loss: loss.own).step], shards, engine)
    said = (
        f"sources.{source}: up to step {last.step}, {rule[last.step].rule!r}, {sum(loss.own for loss in found):,} documents ({float(last.share):.1%}) were dropped as "
        f"duplicates of others of the source, {count:,} of them for {example} alone"
    )
    remedy = f"write max_duplicates: {math.ceil(100 * last.share) / 100:g} in the source"
    if last.share <= _exact(most):
        return f"{said}; if that is meant, {remedy}"
    raise UserError(f"{said}. Accepted are {most:.0%}; look at the texts, change the threshold or the rule, or, if that is meant, {remedy}")


def _exact(share: float) -> Fraction:
    """A share as it is written."""
    return Fraction(str(share))


def _largest_group(removal: Removal, shards: list[Dropped], engine: Engine) -> tuple[int, str]:
    """The most documents of a source that a rule dropped for one survivor, and that survivor's origin."""
    folder = shards[0].fates.parent
    runs = engine.map(
        _write_survivors, [(one, removal, folder / f"{one.shard.name}.survivors.npy") for one in shards], "look for the largest group"
    )
    cuts = ranges(runs, engine.memory.range_bytes())
    found = engine.map(_most_named, [(runs, low, high) for low, high in cuts], "look for the largest group")
    count, row = max(found, key=lambda one: (one[0], -one[1]))
    names = engine.map(_origin_of, [(one, removal, row) for one in shards], "look for the largest group")
    return count, next(name for name in names if name is not None)


def _write_survivors(dropped: Dropped, removal: Removal, path: Path) -> Path:
    return write_run(path, [dropped.own_by(removal)[1]])


def _most_named(runs: list[Path], low: int, high: int) -> tuple[int, int]:
    """(times, row) of the survivor that is named most often in a range, the lowest row among equals."""
    rows, counts = np.unique(gather(runs, low, high, 1)[0], return_counts=True)
    return (int(counts.max()), int(rows[np.argmax(counts)])) if len(rows) else (0, 0)


def _origin_of(dropped: Dropped, removal: Removal, row: int) -> str | None:
    """The survivor's origin and row, if a document of this shard names it."""
    positions, rows = dropped.own_by(removal)
    if not (rows == row).any():
        return None
    position = positions[np.argmax(rows == row)]
    for key in removal.keys:
        sidecar = read_sidecar(sidecar_path(dropped.work, key, dropped.shard))
        assert sidecar is not None
        named = sidecar.values[int(position)].as_py()
        if named is not None and named["row"] == row:
            return f"{named['origin']} (row {row:,})"
    return None


# --- groups that are gone


class Gone(NamedTuple):
    """By step: duplicates whose group is gone, per shard; and the survivors they name, each once."""

    documents: list[dict[int, int]]
    groups: dict[int, int]


def gone(shards: list[Dropped], removals: list[Removal], records: int, folder: Path, engine: Engine) -> Gone:
    """Follows every dropped duplicate to what became of its survivor; `records` is the number of rows, `folder` a room for maps over them."""
    lost, following, named = folder / "lost.npy", folder / "following.npy", folder / "named.npy"
    for path, kind in ((lost, np.uint8), (following, np.uint64), (named, np.uint8)):
        sparse(path, kind, records + 1)  # the last stands for all that are elsewhere
    marked = engine.map(_mark, [(one, removals, folder / f"{one.shard.name}.marks.npy") for one in shards], "follow duplicates")
    what, survivor = np.load(lost, mmap_mode="r+"), np.load(following, mmap_mode="r+")
    for path in marked:
        rows, fates, survivors = open_run(path)
        what[rows], survivor[rows] = fates, np.minimum(survivors, np.uint64(records))
        path.unlink()
    what.flush()
    survivor.flush()
    found = engine.map(_follow, [(one, removals, lost, following) for one in shards], "follow duplicates")
    groups = {}
    for removal in removals:
        seen = np.load(named, mmap_mode="r+")
        seen[:] = 0
        for one in shards:
            seen[np.load(_gone_path(one, removal))] = 1
        groups[removal.step] = int(np.count_nonzero(seen))
    return Gone(found, groups)


def _mark(dropped: Dropped, removals: list[Removal], path: Path) -> Path:
    """Task: the run (row, what became of it, the survivor of a duplicate) of the documents of a shard."""
    rows = dropped.shard.rows()
    what, survivor = np.where(np.load(dropped.fates) == ALIVE, LEFT, DROPPED).astype(np.uint64), np.zeros(len(rows), np.uint64)
    for removal in removals:
        positions, survivors = dropped.by(removal)
        what[positions], survivor[positions] = DUPLICATE, survivors
    return write_run(path, [rows, what, survivor])


def _follow(dropped: Dropped, removals: list[Removal], lost: Path, following: Path) -> dict[int, int]:
    """Task: per step the duplicates of a shard whose group is gone; their survivors go into a file."""
    what, survivor = np.load(lost, mmap_mode="r"), np.load(following, mmap_mode="r")
    counts = {}
    for removal in removals:
        first = np.minimum(dropped.by(removal)[1], np.uint64(len(what) - 1))
        rows = first.copy()
        for _ in range(HOPS):
            on = what[rows] == DUPLICATE
            if not on.any():
                break
            rows[on] = survivor[rows[on]]
        away = what[rows] != LEFT
        counts[removal.step] = int(away.sum())
        save(_gone_path(dropped, removal), np.unique(first[away]))
    return counts


def _gone_path(dropped: Dropped, removal: Removal) -> Path:
    return dropped.fates.with_name(f"{dropped.shard.name}.gone-{removal.step}.npy")


def told(removals: list[Removal], by_source: dict[str, list[Loss]], shards: list[Dropped], found: Gone) -> list[dict[str, Any]]:
    """For people, by step: its rule, the groups that are gone, and per source the duplicates dropped, those of its own documents, those of groups gone, and the share lost up to then."""
    lines = []
    for removal in removals:
        away = dict.fromkeys(by_source, 0)
        for one, counts in zip(shards, found.documents, strict=True):
            away[one.shard.source] += counts[removal.step]
        sources = {
            name: {"documents": loss.documents, "own": loss.own, "of": loss.of, "share": round(float(loss.share), 6), "gone": away[name]}
            for name, mine in by_source.items()
            for loss in mine
            if loss.step == removal.step
        }
        lines.append({"step": removal.step, "rule": removal.rule, "groups_gone": found.groups[removal.step], "sources": sources})
    return lines
