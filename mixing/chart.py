"""Line charts as SVG text: no library, no script, colours from the page or from the file itself. One series is a list of (x, y)."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LONGEST_NAME = 36
MARKED = 40  # points; a curve of more is a line only
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 40
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#97266d", "#b7791f", "#4c51bf", "#00838f", "#718096")
STYLE = (
    "svg{font-size:12px;font-family:system-ui,'DejaVu Sans','Liberation Sans',Arial,sans-serif;max-width:100%;height:auto}.ink{fill:#1a202c}.soft{fill:#5a6574}.grid{stroke:#d5dbe3;stroke-width:1}"
    ".start{stroke:#5a6574;stroke-dasharray:4 4}.paper{fill:#fff}"
    "@media(prefers-color-scheme:dark){.ink{fill:#e8ecf1}.soft{fill:#9aa7b5}.grid{stroke:#39434f}.start{stroke:#9aa7b5}.paper{fill:#161b22}}"
)

Curve = Sequence[tuple[float, float]]


class Frame(NamedTuple):
    """From values to places."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1) * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - self.y0) / ((self.y1 - self.y0) or 1) * (HEIGHT - TOP - BOTTOM), 2)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(number * step, 12) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A count as it is read: 250K, 1.5M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def lines(title: str, series: Mapping[str, Curve], x_label: str = "tokens", from_start: bool = False, style: str = STYLE) -> str:
    """A chart of curves over one pair of axes; `from_start` draws a line at the height at which the first curve began. `style` is the drawing's own: none in a page that has one."""
    points = {name: [(x, y) for x, y in curve if math.isfinite(y)] for name, curve in series.items()}
    every = [point for curve in points.values() for point in curve]
    if not every:
        return ""
    low, high = min(y for _, y in every), max(y for _, y in every)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    frame = Frame(min(x for x, _ in every), max(x for x, _ in every), low - margin, high + margin)
    parts = [_axes(frame, x_label)]
    if from_start and (first := next((curve for curve in points.values() if curve), None)):
        parts.append(f'<line class="start" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{frame.y(first[0][1])}" y2="{frame.y(first[0][1])}"/>')
    for number, (name, curve) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        dash = "" if number < len(COLOURS) else ' stroke-dasharray="6 3"'
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in curve)
        parts.append(
            f'<polyline class="line c{number % len(COLOURS)}" fill="none" stroke="{colour}" stroke-width="2"{dash} points="{path}"/>'
        )
        parts += [
            f'<circle class="c{number % len(COLOURS)}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="2.6" fill="{colour}"><title>{html.escape(name)}: {y:.4g} at {short(x)} {x_label}</title></circle>'
            for x, y in curve
            if len(curve) <= MARKED
        ]
    return _svg(title, "".join(parts), list(points) if len(points) > 1 else [], style)


def _axes(frame: Frame, x_label: str) -> str:
    parts = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{value:.6g}</text>')
    for value in ticks(frame.x0, frame.x1):
        parts.append(f'<text class="soft" x="{frame.x(value)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<text class="soft" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{html.escape(x_label)}</text>')
    return "".join(parts)


def _svg(title: str, inner: str, names: Sequence[str], style: str) -> str:
    """The drawing with its title above and its curves' names below, two a line."""
    height = HEIGHT + 18 * -(-len(names) // 2)
    keys = []
    for number, name in enumerate(names):
        x, y = LEFT + number % 2 * (WIDTH - LEFT) // 2, HEIGHT + 18 * (number // 2) + 8
        shown = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        keys.append(
            f'<rect class="c{number % len(COLOURS)}" x="{x}" y="{y - 8}" width="14" height="4" rx="2" fill="{COLOURS[number % len(COLOURS)]}"/>'
        )
        keys.append(f'<text class="soft" x="{x + 20}" y="{y}">{html.escape(shown)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{html.escape(title)}">{f"<style>{style}</style>" if style else ""}<rect class="paper" width="{WIDTH}" height="{height}"/>'
        f'<text class="ink" x="{LEFT}" y="20" font-weight="600">{html.escape(title)}</text>{inner}{"".join(keys)}</svg>'
    )
