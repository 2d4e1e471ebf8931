"""What is known about a row while the rounds go on, and the walk in row order that settles it.

Status per row (u8): 0 kept so far, REMOVED for good, OPEN while it depends on somebody who is not settled. A row may besides be *waiting*: not yet
compared with everyone before it in one of its buckets.
"""

from __future__ import annotations

import numpy as np

from curation.text.words import Bytes, Hashes, kernel

REMOVED = 2
OPEN = 3


@kernel
def settle(upper: Hashes, lower: Hashes, status: Bytes, waiting: Bytes) -> None:
    """Decide each upper row from its lower neighbours: removed by one that is kept, open while one is open, else kept so far.

    Pairs are ordered by upper row and all lower rows are settled as far as they can be, so one pass in row order reaches the fixed point.
    """
    at = 0
    while at < len(upper):
        row = upper[at]
        kept = False
        undecided = False
        while at < len(upper) and upper[at] == row:
            other = lower[at]
            if status[other] == OPEN or (waiting[other] != 0 and status[other] != REMOVED):
                undecided = True
            elif status[other] != REMOVED:
                kept = True
            at += 1
        if status[row] != REMOVED:
            status[row] = REMOVED if kept else OPEN if undecided else 0


def most_similar(pairs: Hashes, status: Bytes) -> Hashes:
    """(removed row, its most similar kept row, bits of their similarity) out of such verified pairs; the lowest row among equals."""
    pairs = pairs[:, (status[pairs[0]] == REMOVED) & (status[pairs[1]] != REMOVED)]
    pairs = pairs[:, np.lexsort((pairs[1], -pairs[2].view(np.float64), pairs[0]))]
    first = np.ones(pairs.shape[1], bool)
    first[1:] = pairs[0, 1:] != pairs[0, :-1]
    best: Hashes = pairs[:, first]
    return best
