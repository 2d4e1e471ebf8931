"""The stream: a sequence number in, the arrays of a step out. No loader state, no workers, nothing random.

A step that starts at sequence s holds the rows `[s, min(s + batch, end))`; missing rows of a short step are empty and add no token and no loss.
A row is filled with the spans of its sequence one after the other; each span is a piece of its own: positions restart at 0, attention stays inside
(`boundaries`), and its last token predicts nothing, so a span of n tokens holds n - 1 predictions, also one that goes on in a cut document. The rest
of a row is one more piece, of padding. Process r of W takes the micro-batches r, r + W, r + 2W, …: which rows meet in one forward pass does not
depend on W. One thread works two steps ahead.
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
    pieces = [piece for row in rows for piece in row]
    ends = np.cumsum([0, *map(len, rows)])
    return _laid_out(pieces, np.array([len(piece) for piece in pieces], np.int64), ends, components, width)


def _laid_out(
    pieces: list[npt.NDArray[Any]], lengths: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], components: Sequence[int], width: int
) -> Rows:
    """Those of row i are `pieces[rows[i]:rows[i + 1]]`. Everything but the pieces themselves is computed for all rows at once."""
    count = len(rows) - 1
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])  # tokens before each piece, padding left out
    tokens = np.diff(before[rows])
    padded = np.flatnonzero(tokens < width)
    gaps = np.repeat(np.arange(count) * width - before[rows[:-1]], np.diff(rows))
    starts = np.sort(np.concatenate([before[:-1] + gaps, padded * width + tokens[padded]]))
    sizes = np.diff(starts, append=count * width)
    blank = np.zeros(width, np.uint16)
    parts = [part for row, (low, high) in enumerate(pairwise(rows.tolist())) for part in (*pieces[low:high], blank[tokens[row] :])]
    ids = np.concatenate(parts, dtype=np.int64)
    targets = np.append(ids[1:], IGNORED)
    targets[starts - 1] = IGNORED
    for row in padded:
        targets[row * width + tokens[row] : (row + 1) * width] = IGNORED
    positions = np.ones(count * width, np.int64)
    positions[starts] = 1 - np.concatenate([np.ones(1, np.int64), sizes[:-1]])  # summed up, they begin again at 0
    np.cumsum(positions, out=positions)
    return Rows(
        torch.from_numpy(ids).view(count, width),
        torch.from_numpy(targets).view(count, width),
        torch.from_numpy(positions).view(count, width),
        torch.from_numpy(np.append(starts, count * width).astype(np.int32)),
        int(sizes.max()),
        torch.tensor(components, dtype=torch.int64),
        torch.from_numpy(tokens),
    )


def read_rows(manifest: Manifest, first: int, last: int, count: int) -> Rows:
    """The sequences `[first, last)` as `count` rows; those beyond are empty."""
    spans = manifest.spans(first, last)
    files = {number: manifest.token_file(number) for number in np.unique(spans.file).tolist()}
    begins = np.zeros(len(spans.file), np.int64)
    for number, tokens in files.items():
        here = spans.file == number
        begins[here] = tokens.offsets[spans.token_row[here]] + spans.start[here]
        assert (begins[here] + spans.length[here] <= tokens.offsets[spans.token_row[here] + 1]).all()
    lengths = spans.length.astype(np.int64)
    places = zip(spans.file.tolist(), begins.tolist(), (begins + lengths).tolist(), strict=True)
    pieces = [files[file].ids[begin:end] for file, begin, end in places]
    missing = count - (last - first)
    components = manifest.components(first, last).tolist() + [EMPTY_ROW] * missing
    rows = np.append(spans.sequence, np.full(missing, len(pieces)))
    return _laid_out(pieces, lengths, rows, components, manifest.sequence_length)


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
