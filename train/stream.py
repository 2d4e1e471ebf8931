"""The stream: a sequence number in, the arrays of a step out. No loader state, no workers, nothing random.

A step that starts at sequence s holds the rows `[s, min(s + batch, end))`; missing rows of a short step are empty and add no token and no loss.
A row is filled with the spans of its sequence one after the other; each span is a piece of its own: positions restart at 0, attention stays inside
(`boundaries`), and its last token predicts nothing, so a span of n tokens holds n - 1 predictions, also one that goes on in a cut document. The rest
of a row is one more piece, of padding. Process r of W takes the micro-batches r, r + W, r + 2W, …: which rows meet in one forward pass does not
depend on W. Rows cost about 5 us per span; one thread works two steps ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mixing import UserError
from mixing.manifest import Manifest

IGNORED = -100
EMPTY_ROW = -1


class Rows(NamedTuple):
    """Rows of one forward pass, m of them, L tokens wide."""

    input_ids: torch.Tensor
    """int64 [m, L], 0 where nothing stands"""
    targets: torch.Tensor
    """int64 [m, L], the token that each position predicts; `IGNORED` at the end of a piece and in padding (already shifted: compare with logits as they are)"""
    position_ids: torch.Tensor
    """int64 [m, L], from 0 in every piece"""
    boundaries: torch.Tensor
    """int32 [pieces + 1], the pieces of all rows laid end to end (the cu_seqlens of variable-length attention)"""
    longest: int
    """tokens of the longest piece"""
    component: torch.Tensor
    """int64 [m], `EMPTY_ROW` for an empty one"""
    tokens: torch.Tensor
    """int64 [m], padding not counted"""

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Rows:
        changed: dict[str, Any] = {name: change(part) for name, part in self._asdict().items() if isinstance(part, torch.Tensor)}
        return self._replace(**changed)

    def to(self, device: torch.device) -> Rows:
        return self.each(lambda part: part.to(device, non_blocking=True))


class Step(NamedTuple):
    """The sequences `[first, last)`: what they hold over all processes, and the micro-batches of this one."""

    first: int
    last: int
    tokens: int
    predictions: int
    micro_batches: list[Rows]


def fill(rows: Sequence[Sequence[npt.NDArray[Any]]], components: Sequence[int], width: int) -> Rows:
    """Rows of `width` tokens, each filled with its pieces in order."""
    ids = np.zeros((len(rows), width), np.int64)
    targets = np.full((len(rows), width), IGNORED, np.int64)
    positions = np.zeros((len(rows), width), np.int64)
    lengths: list[int] = []
    tokens = np.zeros(len(rows), np.int64)
    for row, pieces in enumerate(rows):
        start = 0
        for piece in pieces:
            end = start + len(piece)
            ids[row, start:end] = piece
            targets[row, start : end - 1] = piece[1:]
            positions[row, start:end] = np.arange(len(piece))
            lengths.append(len(piece))
            start = end
        tokens[row] = start
        if start < width:
            positions[row, start:] = np.arange(width - start)
            lengths.append(width - start)
    boundaries = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=boundaries[1:])
    return Rows(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(positions),
        torch.from_numpy(boundaries),
        max(lengths),
        torch.tensor(components, dtype=torch.int64),
        torch.from_numpy(tokens),
    )


def read_rows(manifest: Manifest, first: int, last: int, count: int) -> Rows:
    """The sequences `[first, last)` as `count` rows; those beyond are empty."""
    spans = manifest.spans(first, last)
    pieces = [
        manifest.ids(file, row, start, length) for file, row, start, length in zip(*(column.tolist() for column in spans[1:5]), strict=True)
    ]
    rows = [pieces[low:high] for low, high in pairwise(spans.sequence.tolist())]
    missing = count - len(rows)
    components = manifest.components(first, last).tolist() + [EMPTY_ROW] * missing
    return fill(rows + [[]] * missing, components, manifest.sequence_length)


def read_step(manifest: Manifest, first: int, batch: int, micro_batch: int, rank: int, world: int) -> Step:
    """The step that starts at sequence `first`, as process `rank` of `world` sees it."""
    last = min(first + batch, manifest.sequences)
    micro_batches = [
        read_rows(manifest, min(begin, last), min(begin + micro_batch, last), micro_batch)
        for begin in range(first + rank * micro_batch, first + batch, world * micro_batch)
    ]
    return Step(first, last, int(manifest.tokens(first, last).sum()), manifest.predictions(first, last), micro_batches)


def micro_batch_size(batch: int, micro_batch: int | None, world: int) -> int:
    """Sequences of one forward pass; refused unless every process gets the same number of equal micro-batches."""
    size = micro_batch or max(1, batch // world)
    if batch % (size * world):
        raise UserError(
            f"batch: {batch} sequences cannot be dealt to {world} process(es) in micro-batches of {size}; "
            f"make batch a multiple of {size * world}, or change micro_batch or the number of processes"
        )
    return size


def steps(manifest: Manifest, first: int, batch: int, micro_batch: int, rank: int, world: int, device: torch.device) -> Iterator[Step]:
    """Every step from sequence `first` to the end of the plan, read ahead by one thread (into pinned memory for a GPU)."""

    def read(start: int) -> Step:
        step = read_step(manifest, start, batch, micro_batch, rank, world)
        if device.type == "cuda":
            step = step._replace(micro_batches=[rows.each(torch.Tensor.pin_memory) for rows in step.micro_batches])
        return step

    with ThreadPoolExecutor(1, "stream") as thread:
        ahead: deque[Future[Step]] = deque()
        for start in range(first, manifest.sequences, batch):
            ahead.append(thread.submit(read, start))
            if len(ahead) > 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
