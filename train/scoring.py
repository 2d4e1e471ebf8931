"""Nats of given pieces of text, independent of batch size and number of processes.

In: pieces (ids, and the first of them that is predicted), a model. Out: per piece the negative log-likelihood of its predicted ids, fp64, equal on all
processes. Every piece stands alone: attention does not leave it. Which pieces share a row and which rows a forward pass follows from the pieces and
the width alone; passes are dealt to the processes in turn, and what a pass gives is summed exactly (`math.fsum`), so results agree bit for bit
wherever a forward pass of the same shape does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from train.model import World, evaluating, losses
from train.stream import EMPTY_ROW, IGNORED, Rows, fill

TOKENS_A_PASS = 8192
"""A forward pass holds as many rows as fit into so many tokens, at least one: its logits are what memory is needed for."""


class Piece(NamedTuple):
    """`ids` of one text; those from `first` on (1 or later) are predicted."""

    ids: npt.NDArray[Any]
    first: int


class Scored(NamedTuple):
    """Where a forward pass predicts piece `piece`: positions `[begin, end)` of its rows laid end to end."""

    piece: int
    begin: int
    end: int


class Passes(NamedTuple):
    """The forward passes of this process over `pieces` pieces."""

    rows: list[Rows]
    scored: list[list[Scored]]
    pieces: int


def dealt(pieces: Sequence[Piece], width: int, world: World) -> Passes:
    """The passes of this process, as many to each. The last id of a piece is only predicted, so one of n ids takes n - 1 of the `width` of a row."""
    assert all(piece.first >= 1 and len(piece.ids) <= width + 1 for piece in pieces)
    packed = _packed([len(piece.ids) - 1 for piece in pieces], width)
    count = max(1, TOKENS_A_PASS // width)
    passes = -(-len(packed) // count)
    passes += -passes % world.size
    packed += [[]] * (passes * count - len(packed))
    mine = [_filled(pieces, packed[number * count : (number + 1) * count], width) for number in range(world.rank, passes, world.size)]
    return Passes([rows for rows, _ in mine], [scored for _, scored in mine], len(pieces))


def _packed(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of pieces of at most `width` together: the longest one left, then the shortest ones while they fit. Empty pieces are in none."""
    order = [number for number in sorted(range(len(lengths)), key=lengths.__getitem__) if lengths[number] > 0]
    shortest, longest, rows = 0, len(order) - 1, []
    while shortest <= longest:
        row, room = [order[longest]], width - lengths[order[longest]]
        longest -= 1
        while shortest <= longest and lengths[order[shortest]] <= room:
            row.append(order[shortest])
            room -= lengths[order[shortest]]
            shortest += 1
        rows.append(row)
    return rows


def _filled(pieces: Sequence[Piece], packed: Sequence[Sequence[int]], width: int) -> tuple[Rows, list[Scored]]:
    rows = fill([[pieces[number].ids[:-1] for number in row] for row in packed], [0 if row else EMPTY_ROW for row in packed], width)
    rows.targets.fill_(IGNORED)
    flat = rows.targets.view(-1)
    scored = []
    for line, row in enumerate(packed):
        begin = line * width
        for number in row:
            ids, first = pieces[number]
            end = begin + len(ids) - 1
            flat[begin + first - 1 : end] = torch.from_numpy(ids[first:].astype(np.int64))
            scored.append(Scored(number, begin + first - 1, end))
            begin = end
    return rows, scored


def nats(model: PreTrainedModel, passes: Passes, precision: str, world: World) -> npt.NDArray[np.float64]:
    """The nats of every piece, 0 for one that predicts nothing. Draws no random number, keeps no gradient, leaves the model in training mode."""
    found = np.zeros(passes.pieces)
    with evaluating(model):
        for rows, scored in zip(passes.rows, passes.scored, strict=True):
            flat = losses(model, rows.to(world.device), precision)[1].flatten().cpu().tolist()
            for one in scored:
                found[one.piece] = math.fsum(flat[one.begin : one.end])
    together: npt.NDArray[np.float64] = world.total(torch.from_numpy(found).to(world.device)).cpu().numpy()
    return together
