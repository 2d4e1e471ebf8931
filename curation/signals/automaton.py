"""Naive Bayes scores of byte strings: an automaton's states stand for features, and a feature that occurs n times weighs log(1 + n).

Features are added in the order in which they first occur, in 64-bit floats, one text after the other: one order of rounding wherever it runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from curation.text.words import Bytes, Offsets, kernel

Scores = npt.NDArray[np.float64]


def scores(
    texts: list[bytes],
    rows: npt.NDArray[np.int64],
    following: npt.NDArray[np.uint32],
    features: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    priors: Scores,
) -> Scores:
    """Log posteriors, texts x classes. The automaton: `following[rows[state] + byte]` is the next state, `features[state]` what it stands for or -1."""
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    found = np.empty((len(texts), priors.size))
    _scores(np.frombuffer(b"".join(texts), np.uint8), offsets, rows, following, features, weights, priors, found)
    return found


@kernel
def _scores(
    data: Bytes,
    offsets: Offsets,
    rows: npt.NDArray[np.int64],
    following: npt.NDArray[np.uint32],
    features: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    priors: Scores,
    found: Scores,
) -> None:
    counts = np.zeros(weights.shape[0], np.int64)
    seen = np.empty(weights.shape[0], np.int64)
    for document in range(found.shape[0]):
        distinct = 0
        state = 0
        for position in range(offsets[document], offsets[document + 1]):
            state = following[rows[state] + data[position]]
            feature = features[state]
            if feature >= 0:
                if not counts[feature]:
                    seen[distinct] = feature
                    distinct += 1
                counts[feature] += 1
        row = found[document]
        for column in range(row.size):
            row[column] = priors[column] if distinct else 0.0
        for index in range(distinct):
            factor = np.log1p(counts[seen[index]])
            weight = weights[seen[index]]
            for column in range(row.size):
                row[column] += factor * weight[column]
            counts[seen[index]] = 0
