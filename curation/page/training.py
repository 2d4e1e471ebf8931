"""What training made of the manifest: curves of the runs, and the stability gap of every guard. Read from files; nothing of the trainer is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from mixing import UserError, chart
from mixing.curves import Gap, RunRecord, gaps, label, measured_series, read_run, retention, run_names, smoothed, thinned
from mixing.manifest import Manifest


class Training(NamedTuple):
    """`gaps` per run and guard, `kept` the mean change of each run's guards, `other` the runs that were trained on another manifest."""

    runs: list[str]
    gaps: list[tuple[str, str, Gap]]
    kept: list[tuple[str, float]]
    measured: list[Markup]
    curves: list[Markup]
    other: list[str]


def training(manifest: Manifest, folders: Sequence[Path]) -> Training | None:
    """The runs in the order given; None without any."""
    if not folders:
        return None
    for folder in folders:
        if not (folder / "metrics.jsonl").is_file():
            raise UserError(f"{folder}: no metrics.jsonl, so not a run; give folders that `python -m train run` wrote")
    runs = [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
    found, kept = [], []
    for run in runs:
        mine = gaps(run.measured)
        found += [(run.name, label(*key), gap) for key, gap in mine.items() if not key[0].startswith("bits_per_byte")]
        if (retained := retention(mine)) is not None:
            kept.append((run.name, retained))
    other = [run.name for run in runs if {line["manifest"] for line in run.metrics if "manifest" in line} - {manifest.digest}]
    return Training([run.name for run in runs], found, kept, _measured(runs), _curves(runs), other)


def _measured(runs: list[RunRecord]) -> list[Markup]:
    """A chart for each metric."""
    return [_drawn(f"{name} ({group})", series, from_start=True) for name, group, series in measured_series(runs)]


def _curves(runs: list[RunRecord]) -> list[Markup]:
    losses = {run.name: smoothed([(line["tokens"], line["loss"]) for line in run.metrics if line["loss"] is not None]) for run in runs}
    rates = {run.name: thinned([(line["tokens"], line["learning_rate"]) for line in run.metrics]) for run in runs}
    return [_drawn("training loss (mean of neighbouring steps)", losses), _drawn("learning rate", rates)]


def _drawn(title: str, series: dict[str, list[tuple[float, float]]], from_start: bool = False) -> Markup:
    return Markup(chart.lines(title, series, from_start=from_start, style=""))
