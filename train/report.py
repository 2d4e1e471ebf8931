"""The curves of several runs in one self-contained page: HTML with inline SVG, no script, nothing fetched; and each chart as a file.

In: run folders (`metrics.jsonl`, `measurements.jsonl`), sweep folders (`sweep.json`), soup folders (`soup.json`). Out: what was lost and what came back
(the stability gap of every guard), every measured metric over tokens with the height it began at, training loss and learning rate, tokens per
component against the plan, the sweep's choices, the soups against the straight line between their models. Needs no torch.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixing import UserError, chart
from mixing.curves import RunRecord, chord, gain, gaps, label, measured_series, read_run, retention, run_names, smoothed, thinned

PAGE_STYLE = (
    ":root{--ink:#1a202c;--soft:#5a6574;--line:#d5dbe3;--paper:#fff;--wash:#f5f7fa;--good:#2f855a;--bad:#b83232}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e8ecf1;--soft:#9aa7b5;--line:#39434f;--paper:#161b22;--wash:#1d242d;--good:#68c38f;--bad:#f08a8a}}"
    "*{box-sizing:border-box}body{margin:0 auto;padding:28px 24px 60px;max-width:1240px;background:var(--paper);color:var(--ink);"
    "font:15px/1.55 system-ui,sans-serif}h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:38px 0 6px}p{max-width:75ch}"
    ".soft{color:var(--soft)}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:18px;margin-top:12px}"
    ".charts svg{border:1px solid var(--line);border-radius:8px;width:100%}.scroll{overflow-x:auto}"
    "table{border-collapse:collapse;margin:10px 0;font-variant-numeric:tabular-nums}th,td{padding:5px 12px;border-bottom:1px solid var(--line);text-align:right}"
    ".text{text-align:left}thead th{background:var(--wash);font-weight:600}.good{color:var(--good)}.bad{color:var(--bad)}"
    "mark{background:none;font-weight:700;color:inherit}"
)


class Page(NamedTuple):
    html: str
    charts: dict[str, str]
    """SVG by a name that may be a file's"""


def report(folders: Sequence[Path]) -> Page:
    """The page of runs, sweeps and soups, in the order given."""
    runs, sweeps, soups = [], [], []
    names = run_names(folders)
    for folder, name in zip(folders, names, strict=True):
        if (folder / "sweep.json").is_file():
            sweeps.append((name, json.loads((folder / "sweep.json").read_text(encoding="utf-8"))))
        elif (folder / "soup.json").is_file():
            soups.append((name, json.loads((folder / "soup.json").read_text(encoding="utf-8"))))
        elif (folder / "metrics.jsonl").is_file():
            runs.append(read_run(folder, name))
        else:
            raise UserError(f"{folder}: neither a run, a sweep nor a soup; give folders that train run, sweep or soup wrote to")
    charts: dict[str, str] = {}
    parts = [_gaps(runs), _curves(runs, charts), _training(runs, charts)]
    parts += [_sweep(name, found, charts) for name, found in sweeps]
    parts += [_soup(name, found, charts) for name, found in soups]
    title = "Training report: " + ", ".join(names)
    body = f"<h1>Training report</h1><p class=soft>{html.escape(', '.join(names))}</p>" + "".join(parts)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{html.escape(title)}</title>'
    return Page(f"{head}<style>{PAGE_STYLE}</style><body>{body}</body></html>\n", charts)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> str:
    """Cells are HTML already; the first `text` columns are words, the others numbers."""
    kind = [" class=text" if column < text else "" for column in range(len(heading))]
    head = "".join(f"<th{one}>{html.escape(cell)}</th>" for one, cell in zip(kind, heading, strict=True))
    body = "".join("<tr>" + "".join(f"<td{one}>{cell}</td>" for one, cell in zip(kind, row, strict=True)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def signed(value: float) -> str:
    return f'<span class="{"good" if value > 0 else "bad" if value < 0 else "soft"}">{value:+.4f}</span>'


def _gaps(runs: Sequence[RunRecord]) -> str:
    """The stability gap of every guard in every run."""
    rows, kept = [], []
    for run in runs:
        found = gaps(run.measured)
        if (retained := retention(found)) is not None:
            kept.append(f"{html.escape(run.name)} {signed(retained)}")
        for (metric, component), gap in found.items():
            back = "not recovered" if gap.recovered is None else "never fell" if not gap.depth else chart.short(gap.recovered)
            cells = [f"{gap.depth:.4f}", chart.short(gap.at), back, f"{gap.area:,.0f}", signed(gap.end)]
            if not metric.startswith("bits_per_byte"):  # the same documents as the loss
                rows.append([html.escape(run.name), html.escape(label(metric, component)), *cells])
    if not rows:
        return ""
    heading = ["run", "guard", "depth", "lowest at", "recovered at", "area", "kept at the end"]
    return (
        "<h2>What was lost, and what came back</h2><p>Depth is how far a guard fell below its value before training, area the fall summed over "
        "tokens, the last column what is left of it at the end (negative: forgotten). Losses are turned over, so that a fall is always a loss of "
        f"ability.</p>{table(heading, rows, text=2)}<p>Mean change of the guards' loss: {'; '.join(kept)}</p>"
    )


def _curves(runs: Sequence[RunRecord], charts: dict[str, str]) -> str:
    """A chart for each metric."""
    drawn = {name: chart.lines(f"{name} ({group})", series, from_start=True) for name, group, series in measured_series(runs)}
    if not drawn:
        return ""
    charts |= {_file_name(name): svg for name, svg in drawn.items()}
    return (
        f"<h2>What was measured</h2><p>The dashed line is where the first run began. Point at a mark for its value.</p>"
        f'<div class="charts">{"".join(drawn.values())}</div>'
    )


def _training(runs: Sequence[RunRecord], charts: dict[str, str]) -> str:
    if not runs:
        return ""
    losses = {run.name: smoothed([(line["tokens"], line["loss"]) for line in run.metrics if line["loss"] is not None]) for run in runs}
    rates = {run.name: thinned([(line["tokens"], line["learning_rate"]) for line in run.metrics]) for run in runs}
    drawn = {
        "training-loss": chart.lines("training loss (mean of neighbouring steps)", losses),
        "learning-rate": chart.lines("learning rate", rates),
    }
    charts |= drawn
    rows = []
    for run in runs:
        last = run.metrics[-1] if run.metrics else None
        for name, tokens in (last["consumed"] if last else {}).items():
            promised = last["promised"][name] if last else 0
            rows.append([html.escape(run.name), html.escape(name), f"{tokens:,}", f"{promised:,.0f}", f"{tokens - promised:+,.0f}"])
    return f'<h2>Training</h2><div class="charts">{"".join(drawn.values())}</div>' + table(
        ["run", "component", "tokens read", "tokens planned by then", "difference"], rows
    )


def _sweep(name: str, found: Mapping[str, Any], charts: dict[str, str]) -> str:
    parts = [f"<h2>Sweep {html.escape(name)}</h2>"]
    drawn = []
    for data_set, one in found["data_sets"].items():
        target, best = one["target"], one["best"]
        series: dict[str, list[tuple[float, float]]] = {}
        for cell in one["cells"]:
            if cell["values"][target] is not None:
                series.setdefault(f"learning rate {cell['learning_rate']:g}", []).append((cell["duration"], cell["values"][target]))
        svg = chart.lines(f"{data_set}: {target} by duration", {key: sorted(curve) for key, curve in series.items()})
        charts[_file_name(f"{name}-{data_set}")] = svg
        drawn.append(svg)
        chosen = (
            f"best at {best['learning_rate']:g} for {best['duration']:,} tokens: {best[target]:.4f}, from {one['before'][target]:.4f}"
            if best
            else "no choice"
        )
        parts.append(f"<p><b>{html.escape(data_set)}</b>: {chosen}. {html.escape('; '.join(one['warnings']))}</p>")
    ratio = found["tokens_trained"] / found["tokens_of_separate_runs"]
    parts.append(f"<p class=soft>{found['tokens_trained']:,} tokens were trained, {ratio:.2f} of what separate runs take.</p>")
    return "".join(parts) + f'<div class="charts">{"".join(drawn)}</div>'


def _soup(name: str, found: Mapping[str, Any], charts: dict[str, str]) -> str:
    """The table of a grid against its chord; of two models a chart too."""
    models, metrics = list(found["models"]), [found["target"], *found["guards"]]
    soups = {tuple(one["weights"]): one["values"] for one in found["soups"]}
    usable = [metric for metric in metrics if all(values[metric] is not None for values in soups.values())]
    rows, drawn = [], []
    for weights, values in soups.items():
        cells = [f"{weight:.3g}" for weight in weights]
        for metric in usable:
            line = chord({corner: one[metric] for corner, one in soups.items()}, weights)
            cells += [f"{values[metric]:.4f}", signed(gain(metric, line, values[metric]))]
        rows.append([f"<mark>{cell}</mark>" if list(weights) == found["best"] else cell for cell in cells])
    if len(models) == 2:
        for metric in usable:
            curve = sorted((weights[1], values[metric]) for weights, values in soups.items())
            svg = chart.lines(f"{metric} along the soup", {"soup": curve, "chord": [curve[0], curve[-1]]}, f"share of {models[1]}")
            charts[_file_name(f"{name}-{metric}")] = svg
            drawn.append(svg)
    heading = [*models, *(cell for metric in usable for cell in (metric, "better than chord"))]
    return (
        f"<h2>Soup {html.escape(name)}</h2><p>Weights of the models, and what their average measures. The chord is the straight line between the "
        f'models themselves; the chosen soup is in bold.</p>{table(heading, rows)}<div class="charts">{"".join(drawn)}</div>'
    )


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=-]+", "-", label).strip("-")


def write(page: Page, output: Path, figures: Path | None) -> None:
    """The page at `output`; each chart in the folder `figures` as SVG, and as PNG where resvg is installed (extra `report`)."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page.html, encoding="utf-8")
    if figures is None:
        return
    figures.mkdir(parents=True, exist_ok=True)
    for name, svg in page.charts.items():
        (figures / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")
        if draw := _resvg():
            (figures / f"{name}.png").write_bytes(bytes(draw(svg_string=svg, zoom=2)))


def _resvg() -> Any:
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        return None
    return svg_to_bytes
