"""The page: facts, counts and documents put into `page.html` beside this file, with its style and its script inside.

One file that fetches nothing. Its content security policy names the one style and the one script by their hash and forbids everything else, and every text goes through a
template that escapes. The same manifest and runs, with or without texts, give the same bytes: no time, path or machine is written.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from curation.page import drawing, facts
from curation.page.axes import Axis
from curation.page.counting import Counts, Moved, count
from curation.page.gallery import Duplicates, gallery
from curation.page.sampling import SIMILARITY_BARS
from curation.page.survey import SAMPLE, Spread, Survey, survey
from curation.page.thresholds import decisions, thresholds
from curation.page.training import training
from curation.page.untrusted import shortened, visible
from curation.page.windows import Value, schema_of, values_of
from curation.terminal import told
from mixing.audit import verify
from mixing.chart import short
from mixing.manifest import Manifest
from mixing.progress import watched

FOLDER = Path(__file__).parent
SOURCES = 24
"""Sources told apart by the sliders; of more, the smallest are put together."""
SHOWN_LABELS = 12
LABEL = 60
"""Characters of a label."""
FLAT = 0.99


class Signal(NamedTuple):
    """A value without a threshold, in small."""

    name: str
    spread: Spread
    drawn: Markup
    flat: bool
    """Nearly every document is in one bar."""


class Labels(NamedTuple):
    """The most frequent labels of a column with text: (label, kept, dropped); and how many others there are."""

    name: str
    rows: list[tuple[str, int, int]]
    others: int


class Slider(NamedTuple):
    """A threshold with its histogram; what the script needs to move it is in the page's data, under the same number."""

    number: int
    moved: Moved
    axis: Axis
    drawn: Markup
    idle: bool
    """No document failed on it alone."""


def report(
    manifest: Manifest,
    runs: Sequence[Path] = (),
    work: Path | None = None,
    *,
    prove: bool = False,
) -> str:
    """The whole page as HTML. `prove` has everything verified first, as `curate verify` does."""
    values, found = values_of(manifest), thresholds(manifest, schema_of(manifest))
    with watched("read the pool", sum(source["read"] for source in manifest.sources.values()), "records") as bar:
        known = survey(manifest, values, found, lambda records: bar.advance(records / 2))  # each is read twice
        counts = count(manifest, values, found, known, lambda records: bar.advance(records / 2))
    planned = facts.planned_tokens(manifest, known)
    sliders = [_slider(number, moved, counts) for number, moved in enumerate(counts.moved)]
    shares, ends, stages = facts.order(manifest)
    context = {
        "manifest": manifest,
        "header": manifest.header,
        "noted": facts.counted(manifest),
        "known": known,
        "lines": (lines := facts.funnel(manifest, known, planned)),
        "fates": _fates(manifest, lines, known),
        "checks": list(facts.checks(manifest, known, planned)),
        "proved": list(verify(manifest.folder)) if prove else None,
        "remarks": list(facts.remarks(manifest, known)),
        "stages": facts.budget(manifest),
        "order": drawing.areas(manifest.component_names, shares, ends, stages, "components over the run, by sequence"),
        "sliders": sliders,
        "idle": sum(one.idle for one in sliders),
        "component_key": [(f"c{place % 8}", name) for place, name in enumerate(manifest.component_names)],
        "signals": _signals(values, known, counts),
        "labels": _labels(counts),
        "gallery": (shown := gallery(manifest, known, counts.samples, work)),
        "similarity": {one.step: _similarities(one) for one in shown.duplicates},
        "training": training(manifest, runs),
        "recipe": yaml.safe_dump(manifest.header["recipe"], sort_keys=False, allow_unicode=True, width=110),
        "sampled": any(one.known > SAMPLE for one in known.spreads.values()),
        "data": _data(sliders, known),
    }
    return _rendered(context)


def _rendered(context: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "n": lambda value: f"{value:,}",
        "short": short,
        "seen": visible,
        "told": told,
        "brief": lambda text: shortened(text, LABEL),
        "number": drawing.number,
    }
    environment.globals |= {"share": drawing.share, "bar": drawing.bar}
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    page = environment.get_template("page.html").render(context, policy=policy, style=Markup(style), script=Markup(script))
    return page + "\n"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fates(manifest: Manifest, lines: list[facts.Line], known: Survey) -> list[tuple[str, str, int]]:
    """(class, label, records) of the bar that shows what became of all records."""
    like = {one["step"] for one in facts.counted(manifest).get("duplicates", [])}
    by_step = {line.step: line.total for line in lines if line.step is not None}
    tops = {step for step, rule in decisions(manifest) if rule.startswith("top: ")}
    kept = int(known.decisions["kept"].sum())
    used = sum(one["used"] for one in manifest.sources.values())
    return [
        ("planned", "planned", used),
        ("spare", "kept, not planned", kept - used),
        ("held", "held out", int(known.decisions["held_out"].sum())),
        ("ranked", "beyond a ranking's budget", sum(by_step.get(step, 0) for step in tops)),
        ("ruled", "dropped by a rule", sum(count for step, count in by_step.items() if step and step not in like | tops)),
        ("alike", "dropped as duplicates", sum(count for step, count in by_step.items() if step in like | {0})),
        ("broken", "quarantined", int(known.decisions["quarantined"].sum())),
    ]


def _slider(number: int, moved: Moved, counts: Counts) -> Slider:
    threshold = moved.threshold
    assert threshold.at is not None
    axis, bars = counts.axes[threshold.value], counts.bars[threshold.value]
    mark = drawing.Mark(threshold.at, threshold.operator in (">=", ">"))
    name = f"distribution of {threshold.value}, threshold {threshold.operator} {drawing.number(threshold.at)}"
    return Slider(number, moved, axis, drawing.histogram(axis, bars, name, mark), not moved.returns.documents.any())


def _signals(values: list[Value], known: Survey, counts: Counts) -> list[Signal]:
    """The values without a threshold of their own."""
    with_threshold = {moved.threshold.value for moved in counts.moved}
    return [
        Signal(
            value.name,
            known.spreads[value.name],
            drawing.histogram(counts.axes[value.name], counts.bars[value.name], f"distribution of {value.name}", foot=27),
            bool(counts.bars[value.name].sum(axis=0).max() > FLAT * counts.bars[value.name].sum()),
        )
        for value in values
        if value.name in counts.axes and value.name not in with_threshold
    ]


def _labels(counts: Counts) -> list[Labels]:
    found = []
    for name, labels in counts.labels.items():
        rows = [(label, labels[label, True], labels[label, False]) for label in {label for label, _ in labels}]
        rows.sort(key=lambda row: (-row[1] - row[2], row[0]))
        if rows:
            found.append(Labels(name, rows[:SHOWN_LABELS], max(len(rows) - SHOWN_LABELS, 0)))
    return found


def _similarities(duplicates: Duplicates) -> list[tuple[str, int]]:
    """Duplicates by similarity, from the lowest bar that has any."""
    first = next(place for place, documents in enumerate(duplicates.bars) if documents)
    return [(f"{place / SIMILARITY_BARS:.2f}", duplicates.bars[place]) for place in range(first, SIMILARITY_BARS)]


def _data(sliders: list[Slider], known: Survey) -> Markup:
    """What the script moves thresholds with: JSON that ends no element."""
    order = sorted(range(len(known.sources)), key=lambda place: -int(sum(counts[place] for counts in known.decisions.values())))
    apart = sorted(order[:SOURCES])
    others = sorted(order[SOURCES:])
    names = [known.sources[place] for place in apart] + ([f"{len(others)} smaller sources"] if others else [])

    def by_source(table: Any) -> list[list[int]]:
        rows = [table[place] for place in apart] + ([table[others].sum(axis=0)] if others else [])
        return [[int(row[0]), *(int(step) for step in row[1:] - row[:-1])] for row in rows]

    told = [
        {
            "value": slider.moved.threshold.value,
            "operator": slider.moved.threshold.operator,
            "stops": slider.moved.stops,
            "here": slider.moved.here,
            "places": [round(slider.axis.place(stop), 4) for stop in slider.moved.stops],
            "stays": [by_source(slider.moved.stays.documents), by_source(slider.moved.stays.tokens)],
            "returns": [by_source(slider.moved.returns.documents), by_source(slider.moved.returns.tokens)],
            "about": slider.moved.stays.estimated or slider.moved.returns.estimated,
        }
        for slider in sliders
    ]
    text = json.dumps({"sources": names, "thresholds": told}, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
