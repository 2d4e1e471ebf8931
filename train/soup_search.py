"""The best of a grid of soups, by measuring each.

In: models by name, a grid, manifests, what to measure, a target and guards. Out, in a folder: the best soup as a model, `measurements.jsonl` with every
soup's results (run `soup-<weights>`), `ratios.csv` with its weights by model name, and `soup.json`. With one model per data set, ratios and measurements
are what strategy `regression` fits: mixtures are predicted from merged weights instead of trained proxies (Merge to Mix, arXiv 2505.16066).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mixing import UserError
from mixing.curves import chord, gain
from mixing.manifest import Manifest
from mixing.measurements import Measurement, append
from mixing.progress import watched
from train import evaluate, goal, measure, soup
from train import model as models
from train.goal import Candidate


class Found(NamedTuple):
    """The soups of a grid by their weights, their values, and the chosen one."""

    names: list[str]
    values: dict[tuple[float, ...], dict[str, float]]
    best: tuple[float, ...] | None


def search(
    named: Mapping[str, Path],
    steps: int,
    manifests: Sequence[Path],
    config: Path | None,
    target: str,
    guards: Mapping[str, float],
    folder: Path,
) -> Found:
    """Measures the grid and writes the best soup. Guards are compared with the first model. UserError if no soup keeps them."""
    models.prepare_transformers()
    if folder.exists():
        raise UserError(f"{folder}: exists; name a folder that does not")
    parts = soup.ingredients(list(named.values()))
    manifest = Manifest.reach(manifests[0])
    asked = measure.read_settings(config, parts[-1].folder, manifests[1:])
    grid = list(soup.simplex(len(parts), steps))
    with models.joined_world() as world, watched("measure averages", len(grid), "averages") as progress:
        if world.size > 1:
            raise UserError("soup: a grid is measured by one process; start it without torchrun")
        found = measure.subject(parts[0].folder, None, None, manifest, world)
        context = getattr(found.model.config, "max_position_embeddings", None)
        examination = evaluate.prepared(asked, manifest, world, context)
        rows: list[Measurement] = []
        values: dict[tuple[float, ...], dict[str, float]] = {}
        for weights in grid:
            with torch.no_grad():
                soup.into(found.model, parts, weights)
            results = evaluate.evaluate(found.model, examination, found.config.precision, world)
            blank = Measurement(soup.name_of(weights), manifest.digest, None, "", "target", 0, None, None, 0, None, None)
            rows += [
                row._replace(group="guard") if row.metric in guards else row for row in evaluate.measurements(results, asked.guards, blank)
            ]
            values[weights] = {result.metric: result.value for result in results if result.component is None}
            progress.advance()
    chosen = choose(values, target, guards)
    soup.write(parts, chosen, folder)
    found_soups = Found(list(named), values, chosen)
    append(folder / "measurements.jsonl", rows)
    record(folder, found_soups, named, target, guards)
    return found_soups


def choose(values: Mapping[tuple[float, ...], dict[str, float]], target: str, guards: Mapping[str, float]) -> tuple[float, ...]:
    """The weights of the best soup; among equals the one nearest to the first model."""
    first = next(weights for weights in values if weights[0] == 1)
    best = goal.best((Candidate("", (-weights[0],), one) for weights, one in values.items()), values[first], target, guards)
    for weights, one in values.items():
        if best is not None and one is best.values:
            return weights
    tolerances = ", ".join(f"{metric} within {tolerance:g}" for metric, tolerance in guards.items())
    raise UserError(
        f"no soup with a finite {target} keeps {tolerances or 'its guards'} of the first model; give more tolerance, or other models"
    )


def record(folder: Path, found: Found, named: Mapping[str, Path], target: str, guards: Mapping[str, float]) -> None:
    with (folder / "ratios.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", *found.names])
        table.writerows([soup.name_of(weights), *weights] for weights in found.values)
    described = {
        "models": {name: str(path) for name, path in named.items()},
        "target": target,
        "guards": dict(guards),
        "best": found.best,
        "soups": [
            {"weights": weights, "values": {metric: value if math.isfinite(value) else None for metric, value in values.items()}}
            for weights, values in found.values.items()
        ],
    }
    (folder / "soup.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def shown(found: Found, target: str, guards: Mapping[str, float]) -> str:
    """A line a soup: weights, target and guards, each with how much better it is than the chord."""
    metrics = [target, *guards]
    heading = [*found.names, *(cell for metric in metrics for cell in (metric, "vs chord"))]
    rows = [heading]
    for weights, values in found.values.items():
        cells = [f"{weight:.3g}" for weight in weights]
        for metric in metrics:
            line = chord({corner: one[metric] for corner, one in found.values.items()}, weights)
            cells += [f"{values[metric]:.4f}", f"{gain(metric, line, values[metric]):+.4f}"]
        rows.append([*cells, "  <- best" if weights == found.best else ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) + "".join(row[len(widths) :]) for row in rows
    )
