"""The plan's part of `verify`: promise 5 (exact tokens, even prefixes), promise 6 (packing), epochs and caps, and every number the header says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from mixing.budget import redistributed
from mixing.findings import Finding, PlannedSpans, Stored, check
from mixing.history import History, before, remembers
from mixing.manifest import Manifest, StageArrays
from mixing.strategies.shares import PARTS, largest_remainder

DEFAULT_FILL = 0.99
DEFAULT_CAP = 1


def check_plan(manifest: Manifest, stored: Stored) -> Iterator[Finding]:
    parts, first = [], 0
    for stage, arrays in zip(manifest.stages, manifest.stage_arrays, strict=True):
        numbered, placed = _check_numbering(manifest, stage, arrays, first), _check_places(stage, arrays, stored)
        yield numbered
        yield placed
        if not (numbered.ok and placed.ok):
            return  # nothing below can be looked up
        first += stage["sequences"]
        spans = _spans(arrays, stored)
        parts.append(spans)
        yield from _check_sequences(manifest, stage, arrays, spans)
        yield _check_budget(manifest, stage)
        for name in stage["components"]:
            yield _check_component(manifest, stage, name, arrays, spans, stored)
    yield check("sequences in all", manifest.sequences == first, f"{first:,}")
    whole = PlannedSpans(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    yield from _check_visits(manifest, whole, stored)
    yield from _check_components(manifest, whole, stored)
    # What a run that goes on may still read of a component depends on documents that its plan no longer names.
    if manifest.header["recipe"]["mixture"].get("on_shortage") == "redistribute" and not remembers(manifest):
        yield from _check_moved(manifest)


def _check_numbering(manifest: Manifest, stage: dict[str, Any], arrays: StageArrays, first: int) -> Finding:
    sequences, spans, first_span = len(arrays.component), len(arrays.columns[0]), arrays.first_span.astype(np.int64)
    counted = stage["first_sequence"] == first and stage["sequences"] == sequences > 0
    divided = counted and first_span[0] == 0 and (np.diff(first_span) > 0).all() and first_span[-1] < spans
    names = manifest.component_names
    mixed = [names.index(name) for name in stage["components"] if name in names]
    known = len(mixed) == len(stage["components"]) and np.isin(arrays.component, mixed).all()
    return check(
        f"stage {stage['name']}: sequences and spans are numbered without a gap",
        divided and known,
        f"{sequences:,} sequences, {spans:,} spans",
    )


def _check_places(stage: dict[str, Any], arrays: StageArrays, stored: Stored) -> Finding:
    file, token_row, start, length, _ = (column.astype(np.int64) for column in arrays.columns)
    documents = np.diff(stored.first, append=len(stored.row))
    inside = file < len(documents)
    inside[inside] &= token_row[inside] < documents[file[inside]]
    document = stored.first[file[inside]] + token_row[inside]
    inside[inside] &= (length[inside] > 0) & (start[inside] + length[inside] <= stored.length[document])
    return check(
        f"stage {stage['name']}: spans lie in their documents", inside.all(), f"{int((~inside).sum()):,} of {len(inside):,} outside"
    )


def _spans(arrays: StageArrays, stored: Stored) -> PlannedSpans:
    file, token_row, start, length, epoch = (column.astype(np.int64) for column in arrays.columns)
    first_span = arrays.first_span.astype(np.int64)
    per_sequence = np.append(first_span[1:], len(start)) - first_span
    component = np.repeat(arrays.component.astype(np.int64), per_sequence)
    return PlannedSpans(stored.first[file] + token_row, start, start + length, epoch, component)


def _check_sequences(manifest: Manifest, stage: dict[str, Any], arrays: StageArrays, spans: PlannedSpans) -> Iterator[Finding]:
    tag, size, n = f"stage {stage['name']}", manifest.sequence_length, len(arrays.component)
    tokens = np.add.reduceat(spans.end - spans.start, arrays.first_span.astype(np.int64))
    yield check(f"{tag}: no sequence is over full", tokens.max() <= size, f"at most {tokens.max()} of {size}")
    component = arrays.component
    farthest, last = 0.0, np.zeros(n, np.bool_)
    for k in np.unique(component):
        mine = component == k
        even = np.arange(1, n + 1) * np.count_nonzero(mine) / n
        farthest = max(farthest, float(np.abs(np.cumsum(mine) - even).max()))
        last[np.flatnonzero(mine)[-1]] = True
    yield check(f"{tag}: every prefix holds its shares to within one sequence", farthest < 1, f"{farthest:.4f}")
    floor = manifest.header["recipe"]["mixture"].get("fill", DEFAULT_FILL)
    full = tokens[~last]
    fill = f"lowest {full.min(initial=size) / size:.4f}, all {tokens.sum() / (n * size):.4f}"
    yield check(f"{tag}: sequences are filled to {floor}, but for the last of each component", full.min(initial=size) >= floor * size, fill)
    total = int(tokens.sum())
    said = (stage["tokens"], stage["predictions"], stage["padding"])
    found = (total, total - len(spans.start), n * size - total)
    yield check(f"{tag}: tokens, predictions and padding are the header's", said == found, f"header {said}, plan {found}")


def _check_budget(manifest: Manifest, stage: dict[str, Any]) -> Finding:
    components = stage["components"]
    weights = {name: components[name]["weight"] for name in manifest.component_names if name in components}
    asked = {name: components[name]["asked_tokens"] for name in weights}
    share = largest_remainder(weights, stage["asked_tokens"])
    if any(one["name"] == stage["name"] and one["tokens"] == "all" for one in manifest.header["recipe"]["mixture"]["stages"]):
        share = {name: manifest.header["components"][name]["tokens"] for name in weights}  # each once, not through rounded shares
    # The rest of a stage that was begun has weights in billionths of what is left, which may be more tokens than that.
    begun = manifest.header["parent"] is not None and manifest.header["parent"]["consumed_sequences"] > 0
    room = stage["asked_tokens"] // PARTS + 1 if begun else 0
    exact = sum(asked.values()) == stage["asked_tokens"] and all(abs(asked[name] - share[name]) <= room for name in asked)
    return check(f"stage {stage['name']}: asked tokens are the weights' share of the budget", exact, f"{asked}, by weight {share}")


def _check_moved(manifest: Manifest) -> Iterator[Finding]:
    """What a redistribution moved is what the caps make necessary, and no more; stages are served in order."""
    mixture = manifest.header["recipe"]["mixture"]
    left = {name: math.floor(_cap(mixture, name) * manifest.header["components"][name]["tokens"]) for name in manifest.component_names}
    bounds = {one["name"]: one.get("max_share", {}) for one in mixture["stages"]}
    for stage in manifest.stages:
        said = {name: stage["components"][name] for name in manifest.component_names if name in stage["components"]}
        asked, planned = ({name: one[key] for name, one in said.items()} for key in ("asked_tokens", "tokens"))
        moved = redistributed(f"stage {stage['name']}", asked, left, bounds[stage["name"]])
        yield check(f"stage {stage['name']}: only what is short was moved", planned == moved, f"planned {planned}, needed {moved}")
        left |= {name: left[name] - count for name, count in planned.items()}


def _cap(mixture: dict[str, Any], name: str) -> Fraction:
    caps = mixture.get("max_epochs", DEFAULT_CAP)
    return Fraction(str(caps.get(name, DEFAULT_CAP) if isinstance(caps, dict) else caps))


def _check_component(
    manifest: Manifest, stage: dict[str, Any], name: str, arrays: StageArrays, spans: PlannedSpans, stored: Stored
) -> Finding:
    said, index = stage["components"][name], manifest.component_names.index(name)
    mine = spans.component == index
    document, start, end = spans.document[mine], spans.start[mine], spans.end[mine]
    tokens, unique = int((end - start).sum()), _unique_tokens(document, start, end)
    found = {
        "tokens": tokens,
        "sequences": int(np.count_nonzero(arrays.component == index)),
        "documents": len(np.unique(document)),
        "unique_tokens": unique,
        "epochs": tokens / unique if unique else 0,
    }
    # A cut is where a span ends before its document does.
    cuts = int(np.count_nonzero(end < stored.length[document]))
    exact = tokens == said["asked_tokens"] or manifest.header["recipe"]["mixture"].get("on_shortage") == "redistribute"
    true = (
        exact
        and all(said[key] == value for key, value in found.items())
        and said["cut_long"] + said["cut_to_fill"] + said["cut_to_budget"] == cuts
    )
    return check(
        f"stage {stage['name']}, {name}: realised is asked, and every count is true",
        true,
        f"asked {said['asked_tokens']}, plan {found}, {cuts} cuts",
    )


def _unique_tokens(document: npt.NDArray[np.int64], start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> int:
    """Distinct (document, token) of the spans: the measure of the union of their ranges, document by document."""
    order = np.lexsort((start, document))
    document, start, end = document[order], start[order], end[order]
    # Each document gets a stretch of the number line of its own, so one running maximum serves all.
    low, high = (document << 33) + start, (document << 33) + end
    reach = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int64), high]))[:-1]
    return int(np.maximum(high - np.maximum(low, reach), 0).sum())


def _check_visits(manifest: Manifest, spans: PlannedSpans, stored: Stored) -> Iterator[Finding]:
    """Epochs count the visits of a document as training meets them, and the pieces of one visit follow one another."""
    order = np.argsort(spans.document, kind="stable")
    document, epoch, start, end = (column[order] for column in (spans.document, spans.epoch, spans.start, spans.end))
    same = document[1:] == document[:-1]
    step = np.diff(epoch)
    gaps = int(np.count_nonzero(same & ((step < 0) | (step > 1))))
    first = np.flatnonzero(np.concatenate([[True], ~same]))
    if manifest.header["parent"] is None:
        gaps += int(np.count_nonzero(epoch[first]))
    yield check("epochs count a document's visits in the order of the run", gaps == 0, f"{gaps} out of order")
    if manifest.header["parent"] is not None:
        yield _check_history(before(manifest, stored), document[first], epoch[first], start[first])
    back = int(np.count_nonzero(same & (step == 0) & (start[1:] < end[:-1])))
    yield check("the pieces of one visit keep their order, no token twice", back == 0, f"{back} out of order")


def _check_history(
    history: History, document: npt.NDArray[np.int64], epoch: npt.NDArray[np.int64], start: npt.NDArray[np.int64]
) -> Finding:
    """The first span of each document begins a visit of its own, or goes on in its last one behind what was read of it."""
    visits, read = history.visits.astype(np.int64)[document], history.read[document]
    again = int(np.count_nonzero((epoch != visits) & ((epoch != visits - 1) | (start < read))))
    figure = f"{again} of {len(document):,} documents; {int(np.count_nonzero(history.visits)):,} were read before"
    return check("nothing that was read before the plan is planned again", again == 0, figure)


def _check_components(manifest: Manifest, spans: PlannedSpans, stored: Stored) -> Iterator[Finding]:
    order = np.argsort(spans.document, kind="stable")
    mixed = int(np.count_nonzero((np.diff(spans.document[order]) == 0) & (np.diff(spans.component[order]) != 0)))
    yield check("no document is in two components", mixed == 0, f"{mixed}")
    planned = np.bincount(spans.document, minlength=len(stored.row)) > 0
    all_planned = manifest.header["parent"] is not None or planned.all()  # a remix stores what its parent planned
    yield check("every stored document is planned", all_planned, f"{int((~planned).sum())} of {len(planned):,} are not")
    for index, name in enumerate(manifest.component_names):
        cap = _cap(manifest.header["recipe"]["mixture"], name)
        mine = spans.component == index
        tokens, most = int((spans.end - spans.start)[mine].sum()), int(spans.epoch[mine].max(initial=-1)) + 1
        documents = np.unique(spans.document[mine])
        whole = manifest.header["components"][name]
        fits = len(documents) <= whole["documents"] and int(stored.length[documents].sum()) <= whole["tokens"]
        within = tokens <= cap * whole["tokens"] and most <= math.ceil(cap)
        yield check(
            f"{name}: within max_epochs {float(cap):g}", fits and within, f"{tokens:,} of {whole['tokens']:,} tokens, at most {most} visits"
        )
