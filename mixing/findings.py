"""What the checks of a manifest share: a finding, and the columns read once for all of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Finding(NamedTuple):
    """One check and how it came out. `finding` is true and worth a look, but breaks no promise."""

    check: str
    verdict: Literal["ok", "FAIL", "finding"]
    figure: str

    @property
    def ok(self) -> bool:
        return self.verdict != "FAIL"


def check(name: str, holds: object, figure: object = "") -> Finding:
    return Finding(name, "ok" if holds else "FAIL", str(figure))


class Pool(NamedTuple):
    """The pool as the checks need it, one entry per row; sources and decisions as indices, -1 where unknown or null."""

    row: npt.NDArray[np.uint64]
    source: npt.NDArray[np.int32]
    decision: npt.NDArray[np.int32]
    reasoned: npt.NDArray[np.bool_]
    bytes: npt.NDArray[np.int64]
    n_tokens: npt.NDArray[np.int64]
    content: pa.ChunkedArray
    parents: pa.ChunkedArray


class Stored(NamedTuple):
    """The documents of `tokens/` over all its files: pool row and length of each, and the index of each file's first."""

    row: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


class PlannedSpans(NamedTuple):
    """All spans of the plan in run order. `document` is an index into Stored, `component` an index into the component names."""

    document: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    epoch: npt.NDArray[np.int64]
    component: npt.NDArray[np.int64]
