"""Hold-out loss per source: nats a token and bits a byte of the manifest's held-out documents.

A document longer than the manifest's sequences is read in pieces of that length; like a span of the plan, a piece of n tokens holds n - 1
predictions. Bits a byte are all its nats over ln 2 and the UTF-8 length of the texts, which compares across tokenizers; the first token of a piece
costs nothing. Evaluating draws no random number, keeps no gradient and leaves the model in training mode: training goes on as if it had not happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from mixing.manifest import Manifest
from mixing.measurements import Measurement
from train.model import World, evaluating, losses, tally
from train.stream import EMPTY_ROW, Rows, fill


class Score(NamedTuple):
    nats: float
    predictions: int
    bytes: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.predictions if self.predictions else math.nan

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


class Holdouts(NamedTuple):
    """The held-out documents as this process evaluates them; a row's component is the place of its source in `sources`."""

    sources: list[str]
    bytes: list[int]
    rows: list[Rows]


def holdouts(manifest: Manifest, count: int, world: World) -> Holdouts:
    """All held-out documents in rows, `count` of them a forward pass, dealt to the processes in turn, as many to each."""
    held = manifest.holdout()
    rows: list[list[npt.NDArray[Any]]] = []
    sources: list[int] = []
    for number, documents in enumerate(held.values()):
        pieces = [
            documents.ids[begin : min(begin + manifest.sequence_length, end)]
            for start, end in zip(documents.offsets[:-1].tolist(), documents.offsets[1:].tolist(), strict=True)
            for begin in range(start, end, manifest.sequence_length)
        ]
        packed = list(_packed(pieces, manifest.sequence_length))
        rows += packed
        sources += [number] * len(packed)
    missing = -len(rows) % (count * world.size)
    rows += [[]] * missing
    sources += [EMPTY_ROW] * missing
    mine = [
        fill(rows[begin : begin + count], sources[begin : begin + count], manifest.sequence_length)
        for begin in range(world.rank * count, len(rows), world.size * count)
    ]
    return Holdouts(list(held), [int(documents.bytes.sum(dtype=np.int64)) for documents in held.values()], mine)


def _packed(pieces: list[npt.NDArray[Any]], width: int) -> Iterator[list[npt.NDArray[Any]]]:
    """Rows of at most `width` tokens: the longest piece left, then the shortest ones while they fit."""
    order = sorted(pieces, key=len)
    shortest, longest = 0, len(order) - 1
    while shortest <= longest:
        row, room = [order[longest]], width - len(order[longest])
        longest -= 1
        while shortest <= longest and len(order[shortest]) <= room:
            row.append(order[shortest])
            room -= len(order[shortest])
            shortest += 1
        yield row


def evaluate(model: PreTrainedModel, held: Holdouts, precision: str, world: World) -> dict[str, Score]:
    """The score of every source, equal on all processes."""
    sums = torch.zeros(3, len(held.sources), dtype=torch.float64, device=world.device)
    with evaluating(model):
        for rows in held.rows:
            there = rows.to(world.device)
            sums += tally(losses(model, there, precision)[1], there, len(held.sources))
    nats, predictions, _tokens = world.total(sums).tolist()
    return {
        source: Score(nats[number], int(predictions[number]), size)
        for number, (source, size) in enumerate(zip(held.sources, held.bytes, strict=True))
    }


def measurements(scores: dict[str, Score], guards: list[str], blank: Measurement) -> list[Measurement]:
    """Two lines a source, `loss/<source>` (nats a token) and `bits_per_byte/<source>`, put into `blank`, which says all the rest about the run."""
    return [
        blank._replace(metric=f"{metric}/{source}", group="guard" if source in guards else "target", value=value)
        for source, score in scores.items()
        for metric, value in (("loss", score.nats_per_token), ("bits_per_byte", score.bits_per_byte))
    ]
