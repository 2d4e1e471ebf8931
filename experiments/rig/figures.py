"""The charts of the pages, drawn with the product's own (`train.chart`), from results alone. Values are means over the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from experiments.rig.judging import mean
from experiments.rig.results import Result, Results
from mixing import chart

MAIN = "medical"


def curves(results: Results, arms: Mapping[str, str], loss: Callable[..., float], title: str, domain: str = MAIN) -> str:
    """A loss over tokens."""
    series = {
        label: averaged(results.of(arm, domain), lambda row, mark: (row.curve[mark][0], loss(row, mark))) for arm, label in arms.items()
    }
    return chart.lines(title, {label: curve for label, curve in series.items() if curve}, from_start=True)


def averaged(rows: Sequence[Result], place: Callable[[Result, int], tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean place at each mark of the runs of one arm."""
    marks = min((len(row.curve) for row in rows), default=0)
    points = [[place(row, mark) for row in rows] for mark in range(marks)]
    return [(mean([x for x, _ in there]), mean([y for _, y in there])) for there in points]


def ends(results: Results, arms: Sequence[str], domain: str = MAIN) -> list[tuple[float, float]]:
    """(domain, guard) at the end of each arm."""
    found = [results.of(arm, domain) for arm in arms]
    return [(mean([row.domain_loss() for row in rows]), mean([row.guard_loss() for row in rows])) for rows in found if rows]


def trade(
    results: Results,
    series: Mapping[str, Sequence[str]],
    labels: Mapping[str, str],
    title: str = "What is learned against what is forgotten",
) -> str:
    """Ends of arms as a line in the plane of domain and general loss: left is more of the domain, low is less forgotten."""
    drawn = {name: ends(results, arms) for name, arms in series.items()}
    return chart.lines(title, {name: curve for name, curve in drawn.items() if curve}, "loss of the domain (across), of general text (up)")


def paths(results: Results, arms: Mapping[str, str], beside: Mapping[str, Sequence[str]]) -> str:
    """Each run's way through the plane of domain and general loss, and series of ends beside them."""
    series = {
        label: averaged(results.of(arm, MAIN), lambda row, mark: (row.domain_loss(mark), row.guard_loss(mark)))
        for arm, label in arms.items()
    }
    series |= {label: ends(results, names) for label, names in beside.items()}
    title = "From the base (right): learned to the left, forgotten upwards"
    return chart.lines(
        title, {label: curve for label, curve in series.items() if curve}, "loss of the domain (across), of general text (up)"
    )


def scatter(results: Results, values: Mapping[str, float], x_label: str) -> str:
    """Domain and general loss over the logarithm of a setting."""
    series: dict[str, list[tuple[float, float]]] = {"domain": [], "general text": []}
    for arm, value in values.items():
        for domain_loss, guard_loss in ends(results, [arm]):
            series["domain"].append((math.log10(value), domain_loss))
            series["general text"].append((math.log10(value), guard_loss))
    return chart.lines("Loss at the end", {name: curve for name, curve in series.items() if curve}, x_label)
