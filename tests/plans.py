"""Documents and mixtures for tests of planning: lengths by component in, what `mixing.plan.plan` takes out."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixing import validated
from mixing.draws import Documents
from mixing.plan import Mixture


def documents_of(components: list[list[int]], gap: int = 1, seed: int = 3) -> Documents:
    """Documents dealt out to components in turn, so that a component's rows are not contiguous; `gap` spreads the pool rows."""
    rows = sorted((position, component, length) for component, lengths in enumerate(components) for position, length in enumerate(lengths))
    content = np.random.default_rng(seed).integers(0, 2**64, (len(rows), 2), np.uint64)
    component = np.array([component for _, component, _ in rows], np.uint16)
    tokens = np.array([length for _, _, length in rows], np.int64)
    return Documents(np.arange(0, gap * len(rows), gap, dtype=np.uint64), content, component, tokens)


def mixture_of(components: int, stages: list[dict[str, Any]], **keys: Any) -> Mixture:
    names = {f"c{number}": f"source = '{number}'" for number in range(components)}
    return validated(Mixture, {"sequence_length": 32, "components": names, "stages": stages, **keys}, "mixture")
