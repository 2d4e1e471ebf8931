"""How far training moved the weights: the relative update of each layer, a diagnostic beside the stability gap (`mixing.curves`)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


class Updates(NamedTuple):
    """Relative updates |w_t - w_0| / |w_0| by layer, and that of the lowest `k` layers over that of the highest `k`."""

    layers: list[float]
    ratio: float | None


def relative_updates(base: Path, trained: Path, k: int = 5) -> Updates:
    """From two folders of safetensors with the same tensors. Norms are of whole layers, so that weights near 0 do not divide."""
    from train.soup import ingredients

    first, second = ingredients([base, trained])
    squares: dict[int, tuple[float, float]] = {}
    for name in first.files:
        if match := _LAYER.search(name):
            before, after = first.tensor(name).double(), second.tensor(name).double()
            moved, size = squares.get(int(match[1]), (0.0, 0.0))
            squares[int(match[1])] = moved + (after - before).square().sum().item(), size + before.square().sum().item()
    layers = [math.sqrt(moved / size) for _, (moved, size) in sorted(squares.items())]
    k = min(k, len(layers) // 2)
    highest = sum(layers[-k:]) if k else 0.0
    return Updates(layers, sum(layers[:k]) / highest if highest else None)
