"""The order of a stage: which of the drawn documents come first, by a signal.

In: the pieces of one component in draw order and the signal's value of every document. Out: the same pieces, within each round by value, documents without a value last. With
`buckets` a round is cut into that many parts of about equal tokens by value, and inside a bucket the draw order stays, as curricula in coarse steps want it
(easy to hard, yet mixed). Equal values keep the draw order, and so do the visits of one document. Pure and deterministic; about 40 bytes a piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mixing.strategies.shares import Name

if TYPE_CHECKING:
    from mixing.packing import Pieces

Integers = npt.NDArray[np.int64]


class Order(BaseModel):
    """Documents by a signal within each round of a stage; those without a value come last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str = Field(description="a number: a column, a signal, or one of a signal's values, as in `words.mean_length`")
    direction: Literal["ascending", "descending"] = "ascending"
    buckets: int | None = Field(
        None, ge=1, description="order in so many steps of equal tokens, shuffled inside each; without it by value alone"
    )
    components: list[Name] | None = Field(
        None, min_length=1, description="only these are ordered, the others stay shuffled; without it all of the stage"
    )


def in_order(pieces: Pieces, rounds: Sequence[int], values: npt.NDArray[np.float64], order: Order) -> Pieces:
    """`pieces` by `values[document]` (NaN is no value) within each of the `rounds`, given by their tokens; a piece belongs to the round it starts in."""
    length = pieces.length.astype(np.int64)
    number = np.searchsorted(np.cumsum(np.array(rounds, np.int64)), np.cumsum(length) - length, side="right")
    value = values[pieces.document]
    ranked: Integers = np.lexsort((-value if order.direction == "descending" else value, np.isnan(value), number))
    if order.buckets is not None:
        ranked = _coarsely(ranked, length, number, order.buckets)
    return type(pieces)(pieces.document[ranked], pieces.start[ranked], pieces.length[ranked], pieces.epoch[ranked])


def _coarsely(ranked: Integers, length: Integers, number: Integers, buckets: int) -> Integers:
    """`ranked` with the draw order inside each bucket; a piece belongs to the bucket that its first token falls into."""
    bucket = np.empty(len(ranked), np.int64)
    first = np.flatnonzero(np.diff(number[ranked], prepend=-1))
    for mine in np.split(ranked, first[1:]):
        before = np.cumsum(length[mine]) - length[mine]
        bucket[mine] = before * buckets // max(int(length[mine].sum()), 1)
    return np.lexsort((bucket, number))


def window_of(tokens: int, sequence_length: int, order: Order) -> int:
    """How many pieces of an ordered component wait for packing at a time. Every sequence opens with the oldest piece, so none is moved by more than about that many
    sequences: a sixty-fourth of the component, or of a bucket, but at least packing's LEAST_WINDOW."""
    from mixing.packing import LEAST_WINDOW, WINDOW

    return max(LEAST_WINDOW, min(WINDOW, tokens // sequence_length // (order.buckets or 1) // 64))
