"""What the header and the pool say together: the funnel, the mixture, what was checked, and what a reader should look at before training.

The funnel is counted anew from the pool and compared with the header, so the page shows no number that it only believes. Planned tokens are summed from the plan's spans.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.page.drawing import share
from curation.page.survey import Survey
from curation.page.thresholds import decisions
from curation.page.windows import Floats, Integers
from curation.terminal import effective_tokens
from mixing import UserError
from mixing.manifest import Manifest

SPANS = 1 << 20
EPOCHS = 4
"""Visits up to which repeated tokens are worth nearly as much as fresh ones (arXiv 2305.16264)."""
SYNTHETIC = 0.3
"""The share of synthetic tokens that was best at most (arXiv 2510.01631)."""
STRETCH = 16
"""Sequences over which shares are taken: fewer would show how single sequences alternate."""
FEW = 100
"""Documents below which a share of a source means little."""
BROKEN = 0.01
WEAK, UNCALIBRATED = 0.8, 0.1
"""The area under its curve below which, and the calibration error above which, a classifier is told of."""
MOST = 0.5
"""A step that takes more of a source than this is worth a look."""


class Line(NamedTuple):
    """A line of the funnel: a count for each source; `left` is what is left of all records after it, `kind` how it is drawn."""

    label: str
    kind: str
    counts: list[int]
    left: int | None = None
    step: int | None = None

    @property
    def total(self) -> int:
        return sum(self.counts)


class Check(NamedTuple):
    """Something that was proved while the page was made, or was not."""

    holds: bool
    what: str
    figure: str


class Remark(NamedTuple):
    """Something a reader should look at, and where on the page."""

    text: str
    where: str


def counted(manifest: Manifest) -> dict[str, Any]:
    """What the build counted besides the header; empty if the manifest came without it."""
    path = manifest.folder / "provenance.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def funnel(manifest: Manifest, known: Survey, planned: Integers) -> list[Line]:
    """From records to planned tokens, step by step."""
    read = [int(sum(counts[place] for counts in known.decisions.values())) for place in range(len(known.sources))]
    left = sum(read)
    lines = [Line("records read", "total", read, left)]

    def lost(label: str, counts: Integers, step: int | None = None) -> None:
        nonlocal left
        left -= int(counts.sum())
        lines.append(Line(label, "lost", [int(count) for count in counts], left, step))

    if known.decisions["quarantined"].any():
        lost("quarantined: unreadable or empty", known.decisions["quarantined"])
    lost("held out for measuring", known.decisions["held_out"])
    if 0 in known.dropped:
        lost("like a held-out document", known.dropped[0], 0)
    for step, rule in decisions(manifest):
        lost(rule, known.dropped.get(step, np.zeros(len(known.sources), np.int64)), step)
    header = manifest.sources
    lines.append(Line("documents kept", "total", [int(count) for count in known.decisions["kept"]], left))
    for key, label in (("used", "planned"), ("unused", "kept, not needed by the budget"), ("unassigned", "kept, in no component")):
        counts = [header[name][key] for name in known.sources]
        if key == "used" or any(counts):
            lines.append(Line(label, "part", counts))
    lines.append(Line("tokens of kept documents in a component", "tokens", [int(count) for count in known.kept_tokens]))
    lines.append(Line("tokens planned, all visits", "tokens", [int(count) for count in planned]))
    return lines


def planned_tokens(manifest: Manifest, known: Survey) -> Integers:
    """The tokens that the plan takes from each source, every visit counted."""
    order = np.argsort(known.rows[:, 0])
    firsts, found = known.rows[order, 0], np.zeros(len(known.sources), np.int64)
    for stage in manifest.stage_arrays:
        file, token_row, _, length, _ = stage.columns
        for begin in range(0, len(file), SPANS):
            part = slice(begin, begin + SPANS)
            for number in np.unique(file[part]).tolist():
                mine = file[part] == number
                rows = _pool_rows(manifest, number, token_row[part][mine])
                source = order[np.searchsorted(firsts, rows, side="right") - 1]
                found += np.bincount(source, length[part][mine], len(found)).astype(np.int64)
    return found


def _pool_rows(manifest: Manifest, file: int, token_rows: npt.NDArray[np.uint32]) -> Integers:
    """The pool rows of documents of a token file; a plan that points beyond it is refused."""
    there = manifest.token_file(file).pool_row if file < manifest.token_files else np.zeros(0, np.uint64)
    if len(token_rows) and int(token_rows.max()) >= len(there):
        raise UserError(
            f"{manifest.folder}: the plan names documents that tokens/ does not hold; see `curate verify`, and copy the manifest again"
        )
    return there[token_rows].astype(np.int64)


def budget(manifest: Manifest) -> list[dict[str, Any]]:
    """Every stage with its components: shares asked and realised, epochs, effective tokens, cuts."""
    stages = []
    for stage in manifest.stages:
        components = []
        for name, one in stage["components"].items():
            cuts = one["cut_long"] + one["cut_to_fill"] + one["cut_to_budget"]
            components.append(
                {
                    **one,
                    "name": name,
                    "asked_share": one["asked_tokens"] / max(stage["asked_tokens"], 1),
                    "share": one["tokens"] / max(stage["tokens"], 1),
                    "effective": effective_tokens(one["tokens"], one["unique_tokens"]),
                    "cuts": cuts,
                    "colour": manifest.component_names.index(name) % 8,
                }
            )
        full = stage["tokens"] / max(stage["sequences"] * manifest.sequence_length, 1)
        asked = [(f"c{one['colour']}", one["asked_share"]) for one in components]
        realised = [(f"c{one['colour']}", one["share"]) for one in components]
        stages.append(
            {
                **stage,
                "parts": components,
                "asked": asked,
                "realised": realised,
                "full": full,
                "effective": sum(one["effective"] for one in components),
            }
        )
    return stages


def checks(manifest: Manifest, known: Survey, planned: Integers) -> Iterator[Check]:
    """What making the page proved of promises 1, 4 and 5; `curate verify` proves more."""
    header = manifest.sources
    total = sum(one["read"] for one in header.values())
    wrong = [name for place, name in enumerate(known.sources) if not _same(header[name], known, place)]
    if wrong:
        yield Check(False, "The pool, counted anew, does not say what the header says", f"differs: {', '.join(wrong)}")
    else:
        yield Check(
            True,
            "Every record is accounted for: the pool, counted anew, says what the header says",
            f"{total:,} records in {_sources(known)}",
        )
    tokens = sum(stage["tokens"] for stage in manifest.stages)
    holds = int(planned.sum()) == tokens
    what = "The plan holds the tokens it claims" if holds else f"The plan claims {tokens:,} tokens and does not hold them"
    yield Check(holds, what, f"{int(planned.sum()):,} tokens in {manifest.sequences:,} sequences")
    moved = [
        (stage["name"], name)
        for stage in manifest.stages
        for name, one in stage["components"].items()
        if one["tokens"] != one["asked_tokens"]
    ]
    if moved:
        yield Check(
            False, "Some components have other tokens than were asked for", ", ".join(f"{name} in {stage}" for stage, name in moved)
        )
    else:
        yield Check(True, "Realised tokens are the tokens asked for", "every component of every stage, to the token")
    given_up = sum(one["pairs_given_up"] for one in counted(manifest).get("compared", {}).values())
    if given_up:
        yield Check(False, "Some pairs that might be alike were not compared", f"{given_up:,} pairs given up")
    elif counted(manifest).get("compared"):
        yield Check(True, "Every pair that might be alike was compared, and every duplicate names its survivor", "no pair given up")
    yield Check(True, "All files are there, at their sizes", f"{len(manifest.header['files']):,} files")


def _sources(known: Survey) -> str:
    return f"{len(known.sources)} source{'' if len(known.sources) == 1 else 's'}"


def _same(source: dict[str, Any], known: Survey, place: int) -> bool:
    """Whether a source's counts in the header are those of the pool."""
    by_step: dict[int, int] = {}
    for one in source["dropped"]:
        by_step[one["step"]] = by_step.get(one["step"], 0) + one["documents"]
    found = {step: int(counts[place]) for step, counts in known.dropped.items() if counts[place]}
    decided = {name: int(counts[place]) for name, counts in known.decisions.items()}
    return (
        {step: count for step, count in by_step.items() if count} == found
        and decided["dropped"] == sum(found.values())
        and [decided[name] for name in ("kept", "held_out", "quarantined")]
        == [source[name] for name in ("kept", "held_out", "quarantined")]
        and sum(decided.values()) == source["read"]
        and source["kept"] == source["used"] + source["unused"] + source["unassigned"]
    )


def remarks(manifest: Manifest, known: Survey) -> Iterator[Remark]:
    """What is not wrong but should be known, the weightiest first."""
    sources = manifest.sources
    exams = (manifest.header["recipe"].get("holdout") or {}).get("files", [])
    if idle := [name for name in known.sources if sources[name]["read"] and not sources[name]["used"] and name not in exams]:
        yield Remark(f"Nothing is planned of {_some(idle)}.", "funnel")
    yield from _losses(manifest, known)
    broken = [name for name in known.sources if sources[name]["quarantined"] > BROKEN * sources[name]["read"]]
    if broken:
        shares = [f"'{name}' ({share(sources[name]['quarantined'], sources[name]['read'])})" for name in broken]
        yield Remark(f"Records could not be used: of {_listed(shares)}.", "examples")
    yield from _of_the_mixture(manifest)
    told = counted(manifest)
    gone = sum(step["groups_gone"] for step in told.get("duplicates", []))
    if gone:
        yield Remark(f"{gone:,} groups of duplicates lost their survivor to a later rule: none of those texts is left.", "duplicates")
    for name, model in told.get("models", {}).items():
        if model["auc"] < WEAK or model["calibration_error"] > UNCALIBRATED:
            yield Remark(
                f"The classifier '{name}' is a weak judge: AUC {model['auc']:.3f}, calibration error {model['calibration_error']:.3f}.",
                "models",
            )
    if not manifest.header["holdout"]:
        yield Remark("There is no hold-out, so what training does to these texts cannot be measured on unseen ones.", "holdout")
    if unknown := [name for name in known.sources if not sources[name]["licence"]]:
        yield Remark(f"No licence is stated for {_some(unknown)}.", "sources")


def _losses(manifest: Manifest, known: Survey) -> Iterator[Remark]:
    """Steps that took most of what reached them of a source."""
    left = known.decisions["kept"] + sum(known.dropped.values(), np.zeros(len(known.sources), np.int64))
    for step, rule in [(0, "Likeness to the hold-out"), *decisions(manifest)]:
        lost = known.dropped.get(step, np.zeros(len(known.sources), np.int64))
        most = [place for place in range(len(known.sources)) if left[place] >= FEW and lost[place] > MOST * left[place]]
        if most and not rule.startswith("top: "):
            shares = [f"{share(int(lost[place]), int(left[place]))} of '{known.sources[place]}'" for place in most]
            yield Remark(f"{rule} took, of what had come so far, {_listed(shares)}.", "funnel")
        left = left - lost


def _of_the_mixture(manifest: Manifest) -> Iterator[Remark]:
    made = {source["name"] for source in manifest.header["recipe"].get("sources", []) if source.get("synthesize")}
    for stage in manifest.stages:
        for name, one in stage["components"].items():
            missing = one["asked_tokens"] - one["tokens"]
            if missing > 0:
                yield Remark(
                    f"'{name}' is short of {missing:,} of its {one['asked_tokens']:,} tokens in stage '{stage['name']}'; the others give them.",
                    "mixture",
                )
            if one["epochs"] > EPOCHS:
                yield Remark(
                    f"'{name}' is read {one['epochs']:.3g} times in stage '{stage['name']}'; beyond {EPOCHS} a repeated token is worth clearly less than a new one (arXiv 2305.16264).",
                    "mixture",
                )
    if made:
        yield Remark(
            f"{_some(sorted(made))} {'was' if len(made) == 1 else 'were'} written by a model; up to {SYNTHETIC:.0%} of the tokens was best in arXiv 2510.01631.",
            "synthesis",
        )


def _some(names: list[str]) -> str:
    return _listed([f"'{name}'" for name in names])


def _listed(parts: list[str], most: int = 6) -> str:
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more sources" if len(parts) > most else "")


def order(manifest: Manifest, parts: int = 120) -> tuple[Floats, list[int], list[tuple[str, int]]]:
    """(shares of the components by stretch of the run, where the stretches end, where the stages begin): about `parts` stretches, none across two stages, none shorter than STRETCH sequences unless its stage is."""
    size = len(manifest.component_names)
    ends, columns = [0], []
    for stage in manifest.stages:
        first, length = stage["first_sequence"], stage["sequences"]
        here = max(1, min(round(parts * length / max(manifest.sequences, 1)), length // STRETCH))
        for part in range(here):
            ends.append(first + length * (part + 1) // here)
            there = manifest.components(ends[-2], ends[-1])
            columns.append(np.bincount(there, minlength=size) / max(len(there), 1))
    return np.array(columns).T, ends, [(stage["name"], stage["first_sequence"]) for stage in manifest.stages]
