"""The documents that are shown: what each rule dropped, what stands next to a threshold, what was kept, and pairs of duplicates.

Texts come from the work directory of the build; without it everything but the texts is shown.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from markupsafe import Markup

from curation.commands import explain
from curation.page.sampling import PAIRS, Samples
from curation.page.survey import Survey
from curation.page.thresholds import decisions
from curation.page.untrusted import differences, shortened
from mixing import UserError
from mixing.manifest import Manifest

REASONS = 20
GROUPS = 8
"""Survivors with the most duplicates."""
NO_TEXTS = "The texts are not here: they lie in the work directory of the build, and that is not where it was. Make the page again with --work DIR to see them."
HEAD = 220
"""Characters of a survivor."""


class Shown(NamedTuple):
    """One document: its place, why it is (not) here, and its text where the work directory has it."""

    row: int
    source: str
    origin: str
    decision: str
    value: str | None
    tokens: int | None
    bytes: int | None
    text: Markup | None


class Pair(NamedTuple):
    """A duplicate and the document it was dropped for; the texts around their first difference."""

    dropped: Shown
    survivor: str
    similarity: float
    here: Markup | None
    there: Markup | None


class Group(NamedTuple):
    """A survivor, and how many were dropped for it."""

    documents: int
    survivor: Shown


class Duplicates(NamedTuple):
    """One step that dropped duplicates."""

    step: int
    rule: str
    documents: int
    identical: int
    bars: list[int]
    pairs: list[Pair]
    groups: list[Group]


class Gallery(NamedTuple):
    """`missing` says why there are no texts; None if there are."""

    missing: str | None
    rules: list[tuple[int, str, list[Shown]]]
    beside: dict[tuple[int, int], tuple[list[Shown], list[Shown]]]
    kept: list[tuple[str, list[Shown]]]
    quarantined: list[tuple[str, list[Shown]]]
    duplicates: list[Duplicates]


def gallery(manifest: Manifest, known: Survey, samples: Samples, work: Path | None) -> Gallery:
    largest = {step: _largest(rows) for step, rows in samples.survivors.items()}
    rows = {int(row) for drawn in samples.groups.values() for row in drawn.rows}
    rows |= {row for groups in largest.values() for row, _ in groups}
    records = _records(manifest, rows)
    evidence = {row: json.loads(record["evidence"]) for row, record in records.items() if record["evidence"]}
    survivors = {one["row"] for one in evidence.values() if one.get("survivor") is not None and one.get("row") is not None}
    texts, missing = _texts(manifest, sorted(rows | survivors), work)

    def shown(group: Hashable) -> list[Shown]:
        return [_shown(records[row], evidence.get(row), texts) for row in samples.rows(group)]

    rules = [(0, "like a held-out document"), *decisions(manifest)]
    beside = {
        (group[1], group[2]): (shown(("inside", *group[1:])), shown(("outside", *group[1:])))
        for group in samples.groups
        if isinstance(group, tuple) and group[0] in ("inside", "outside")
    }
    reasons = sorted(str(group[1]) for group in samples.groups if isinstance(group, tuple) and group[0] == "quarantined")[:REASONS]
    return Gallery(
        missing,
        [(step, rule, found) for step, rule in rules if step not in samples.similarities and (found := shown(("dropped", step)))],
        beside,
        [(name, found) for place, name in enumerate(known.sources) if (found := shown(("kept", place)))],
        [(reason, shown(("quarantined", reason))) for reason in reasons],
        [_duplicates(step, dict(rules)[step], samples, largest[step], records, evidence, texts) for step in sorted(samples.similarities)],
    )


def _duplicates(
    step: int,
    rule: str,
    samples: Samples,
    largest: list[tuple[int, int]],
    records: dict[int, dict[str, Any]],
    evidence: dict[int, Any],
    texts: dict[int, str],
) -> Duplicates:
    edge = samples.rows(("edge", step))[: PAIRS // 2]
    rows = list(dict.fromkeys([*edge, *samples.rows(("pair", step))]))[:PAIRS]
    pairs = sorted((_pair(records[row], evidence[row], texts) for row in rows), key=lambda pair: (pair.similarity, pair.dropped.row))
    bars = samples.similarities[step].tolist()
    groups = [Group(count, _shown(records[row], None, texts, HEAD)) for row, count in largest if row in records]
    return Duplicates(step, rule, sum(bars), samples.identical[step], bars, pairs, groups)


def _pair(record: dict[str, Any], told: dict[str, Any], texts: dict[int, str]) -> Pair:
    here, there = texts.get(record["row"]), None if told.get("row") is None else texts.get(told["row"])
    survivor = (
        f"row {told['row']:,}, {told['survivor']}"
        if told.get("row") is not None
        else f"{told['survivor']} of the index under '{told.get('index', '')}'"
    )
    marked = (None, None) if here is None or there is None else differences(here, there)
    return Pair(_shown(record, None, texts), survivor, float(told["similarity"]), *marked)


def _largest(parts: Iterable[np.ndarray[tuple[int], np.dtype[np.uint64]]]) -> list[tuple[int, int]]:
    """(row, duplicates) of the survivors with the most, two at least."""
    rows, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]), return_counts=True)
    order = np.lexsort((rows, -counts))[:GROUPS]
    return [(int(rows[place]), int(counts[place])) for place in order if counts[place] > 1]


def _records(manifest: Manifest, rows: set[int]) -> dict[int, dict[str, Any]]:
    columns = ["row", "source", "origin", "decision", "reason", "evidence", "n_tokens", "bytes"]
    found = manifest.pool().select(columns).filter(pl.col("row").is_in(sorted(rows))).collect()
    return {record["row"]: record for record in found.to_dicts()}


def _texts(manifest: Manifest, rows: list[int], work: Path | None) -> tuple[dict[int, str], str | None]:
    try:
        return explain.texts(explain.shards_of(manifest, work), rows), None
    except UserError:
        if work is not None:
            raise
        return {}, NO_TEXTS


def _shown(record: dict[str, Any], told: dict[str, Any] | None, texts: dict[int, str], limit: int | None = None) -> Shown:
    text = texts.get(record["row"])
    cut = None if text is None else shortened(text) if limit is None else shortened(text, limit)
    place = record["row"], record["source"], record["origin"], record["decision"]
    return Shown(*place, _value(told), record["n_tokens"], record["bytes"], cut)


def _value(told: dict[str, Any] | None) -> str | None:
    """The value that failed a rule, in a few words."""
    if told is None or "survivor" in told:
        return None
    if "benchmark" in told:
        return f"{told['share']:.0%} of {told['benchmark']}/{told['item']}"
    value = told.get("value")
    parts = value.items() if isinstance(value, dict) else [("found", value)]
    return ", ".join(f"{name} {'no value' if one is None else f'{one:.4g}' if isinstance(one, float) else one}" for name, one in parts)
