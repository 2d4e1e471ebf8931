"""Histograms and areas as SVG: shapes and classes only, so that the page's own colours, light or dark, apply. Lines are `mixing.chart`'s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from curation.page.axes import Axis
from curation.page.windows import Floats, Integers
from mixing.chart import short, ticks

WIDTH, HEAD, ROOM = 480, 14, 100
TORN = 2.2
"""A bar that is so many times as high as the next one is cut, and its share written on it."""
FATES = ("kept", "own", "other")


class Mark(NamedTuple):
    """A threshold: where it stands, and whether what fails it lies to the left."""

    at: float
    fails_left: bool


def number(value: float) -> str:
    """A value as one would write it on an axis or in a sentence."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return short(value) if abs(value) >= 1e5 else f"{value:.1e}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"


def share(part: float, whole: float) -> str:
    """A percentage with as many digits as it deserves; nothing is rounded to none or to all."""
    if not whole:
        return "–"
    if part and part / whole < 0.0005:
        return "< 0.1\u202f%"
    if part != whole and part / whole > 0.9995:
        return "> 99.9\u202f%"
    return f"{100 * part / whole:.1f}\u202f%" if part not in (0, whole) else f"{100 * part / whole:.0f}\u202f%"


def histogram(axis: Axis, bars: Integers, label: str, mark: Mark | None = None, foot: int = 18) -> Markup:
    """Stacked bars: kept at the bottom, dropped by a rule on this value, dropped by another. `foot` is the room for the numbers below."""
    totals = bars.sum(axis=0)
    ranked = np.sort(totals)[::-1]
    top = float(ranked[0])
    if len(ranked) > 1 and ranked[1] and ranked[0] > TORN * ranked[1]:
        top = float(ranked[1]) * 1.35
    width, floor = WIDTH / axis.bars, HEAD + ROOM
    gap = min(1.0, width * 0.12)
    shapes = []
    for place in np.flatnonzero(totals).tolist():
        height = min(totals[place] / top, 1.0) * ROOM
        y, x = float(floor), place * width
        for fate, count in zip(FATES, bars[:, place].tolist(), strict=True):
            if count:
                part = max(height * count / totals[place], 0.6)
                y -= part
                shapes.append(f'<rect class="{fate}" x="{x + gap / 2:.1f}" y="{y:.1f}" width="{width - gap:.1f}" height="{part:.1f}"/>')
        if totals[place] > top:
            shapes.append(_torn(x, width, share(int(totals[place]), int(totals.sum()))))
    line = "" if mark is None else _mark(axis, mark)
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {floor + foot}" role="img" aria-label="{escape(label)}">{"".join(shapes)}'
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>{_ticks(axis, floor + foot - 4)}{line}</svg>'
    )


def _torn(x: float, width: float, text: str) -> str:
    """The head of a bar that is cut, with its share beside it."""
    right = x > WIDTH * 0.7
    place = f'x="{x - 4:.1f}" text-anchor="end"' if right else f'x="{x + width + 4:.1f}"'
    return (
        f'<path class="tear" d="M{x - 1:.1f} {HEAD + 9} l{width / 2 + 1:.1f} -4 l{width / 2 + 1:.1f} 4"/>'
        f'<text class="label" {place} y="{HEAD + 9}">{escape(text)}</text>'
    )


def _mark(axis: Axis, mark: Mark) -> str:
    x = axis.place(mark.at) * WIDTH
    left, wide = (0.0, x) if mark.fails_left else (x, WIDTH - x)
    return (
        f'<rect class="fails" x="{left:.1f}" y="0" width="{wide:.1f}" height="{HEAD + ROOM}"/>'
        f'<line class="recipe" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEAD + ROOM}"/>'
        f'<line class="chosen" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEAD + ROOM}"/>'
    )


def _ticks(axis: Axis, y: int) -> str:
    drawn, last, wide = [], -1e9, 44 if y < HEAD + ROOM + 20 else 74
    for value in _places(axis):
        x = axis.place(value) * WIDTH
        if x - last < wide:
            continue
        last = x
        anchor = "start" if x < 14 else "end" if x > WIDTH - 14 else "middle"
        drawn.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(number(value))}</text>')
    return "".join(drawn)


def _places(axis: Axis) -> list[float]:
    if axis.shift is None:
        found = ticks(axis.low, axis.high, 6)
        return [value for value in found if value == int(value)] if axis.bars < 44 else found
    powers = range(math.floor(math.log10(max(axis.low, 0.1))), math.ceil(math.log10(axis.high)) + 1)
    decades = [factor * 10.0**power for power in powers for factor in ((1,) if len(powers) > 4 else (1, 2, 5))]
    return [value for value in ([0.0] if axis.low == 0 else []) + decades if axis.low <= value <= axis.high]


def areas(names: Sequence[str], shares: Floats, ends: Sequence[int], stages: Sequence[tuple[str, int]], label: str) -> Markup:
    """Components stacked over the run: `shares[i, b]` of component i in the sequences `[ends[b], ends[b + 1])`; `stages` are names with the sequence where each begins."""
    height, foot, head = 190, 20, 20
    room = height - foot - head
    parts, last = shares.shape[1], max(ends[-1], 1)
    x = [WIDTH * 2 * end / last for end in ends]
    shapes, base = [], np.zeros(parts)
    for place, name in enumerate(names):
        upper = base + shares[place]
        points = [f"{x[b + side]:.1f},{head + room * (1 - upper[b]):.1f}" for b in range(parts) for side in (0, 1)]
        points += [f"{x[b + side]:.1f},{head + room * (1 - base[b]):.1f}" for b in reversed(range(parts)) for side in (1, 0)]
        shapes.append(f'<polygon class="c{place % 8}" points="{" ".join(points)}"><title>{escape(name)}</title></polygon>')
        base = upper
    for name, start in stages:
        at = WIDTH * 2 * start / last
        shapes.append(
            f'<line class="recipe" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{height - foot}"/><text class="label" x="{at + 5:.1f}" y="13">{escape(name)}</text>'
        )
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        text = f"{round(part * ends[-1]):,}" if part else "sequence 0"
        shapes.append(f'<text class="tick" x="{WIDTH * 2 * part:.1f}" y="{height - 5}" text-anchor="{anchor}">{text}</text>')
    return Markup(f'<svg class="areas" viewBox="0 0 {WIDTH * 2} {height}" role="img" aria-label="{escape(label)}">{"".join(shapes)}</svg>')


def bar(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """One bar of several classes, as shares of its whole length."""
    x, shapes = 0.0, []
    for name, part in parts:
        if part > 0:
            shapes.append(f'<rect class="{name}" x="{x:.3f}" y="0" width="{100 * part:.3f}" height="10"/>')
            x += 100 * part
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">{"".join(shapes)}</svg>'
    )
