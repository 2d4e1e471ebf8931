"""The stream: a sequence number in, the arrays of a step out. No loader state, no workers, nothing random.

A step that starts at sequence s holds the rows `[s, min(s + batch, end))`; missing rows of a short step are empty and add no token and no loss.
A row is filled with the spans of its sequence one after the other; each span is a piece of its own: positions restart at 0, attention stays inside
(`boundaries`), and its last token predicts nothing, so a span of n tokens holds n - 1 predictions, also one that goes on in a cut document. The rest
of a row is one more piece, of padding. Process r of W takes the micro-batches r, r + W, r + 2W, …: which rows meet in one forward pass does not
depend on W. One thread works two steps ahead, and another fetches what further steps read of a manifest in an object store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mixing import UserError
from mixing.manifest import Manifest, Spans

IGNORED = -100
EMPTY_ROW = -1
FETCHED = 8  # steps whose token ids are fetched before they are read, where the manifest lies in an object store


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
    count, size = len(rows) - 1, (len(rows) - 1) * width
    before = np.append(0, lengths.cumsum())  # tokens before each piece, padding left out
    tokens = np.diff(before[rows])
    edges = np.arange(count) * width
    padding = (edges + tokens)[tokens < width]  # where the one more piece of a row begins
    starts = np.append(before[:-1] + np.repeat(edges - before[rows[:-1]], np.diff(rows)), padding)
    starts.sort()
    boundaries = np.append(starts, size)
    blank = np.zeros(width, np.uint16)
    parts = [
        part
        for n, low, high in zip(tokens.tolist(), rows.tolist(), rows[1:].tolist(), strict=False)
        for part in (*pieces[low:high], blank[n:])
    ]
    ids = np.concatenate(parts, dtype=np.int64)
    targets = np.empty_like(ids)
    targets[:-1] = ids[1:]
    targets[boundaries[1:] - 1] = IGNORED
    for begin in padding.tolist():
        targets[begin : begin - begin % width + width] = IGNORED
    sizes = np.diff(boundaries)
    counting = np.arange(sizes.max())
    positions = np.concatenate([counting[:n] for n in sizes.tolist()])
    return Rows(
        torch.from_numpy(ids).view(count, width),
        torch.from_numpy(targets).view(count, width),
        torch.from_numpy(positions).view(count, width),
        torch.from_numpy(boundaries.astype(np.int32)),
        len(counting),
        torch.tensor(components, dtype=torch.int64),
        torch.from_numpy(tokens),
    )


def read_rows(manifest: Manifest, first: int, last: int, count: int) -> Rows:
    """The sequences `[first, last)` as `count` rows; those beyond are empty."""
    return _rows(manifest, manifest.spans(first, last), manifest.components(first, last), 0, last - first, count)


def _rows(manifest: Manifest, spans: Spans, components: npt.NDArray[np.uint16], first: int, last: int, count: int) -> Rows:
    """The sequences `[first, last)` of those that `spans` and `components` hold, counted from their first one."""
    low, high = spans.sequence[[first, last]].tolist()
    file, row, start, length = (column[low:high].astype(np.int64) for column in spans[1:5])
    begins = np.zeros(high - low, np.int64)
    tokens = {number: manifest.token_file(number) for number in np.unique(file).tolist()}
    for number, (_, offsets, _) in tokens.items():
        here = file == number
        begins[here] = offsets[row[here]] + start[here]
        assert (begins[here] + length[here] <= offsets[row[here] + 1]).all()
        manifest.ready(number, begins[here], begins[here] + length[here])
    places = zip(file.tolist(), begins.tolist(), (begins + length).tolist(), strict=True)
    pieces = [tokens[number].ids[begin:end] for number, begin, end in places]
    rows = np.append(spans.sequence[first : last + 1] - low, np.full(count - last + first, len(pieces)))
    return _laid_out(pieces, length, rows, components[first:last].tolist() + [EMPTY_ROW] * (count - last + first), manifest.sequence_length)


def read_step(manifest: Manifest, first: int, batch: int, micro_batch: int, rank: int, world: int) -> Step:
    """The step that starts at sequence `first`, as process `rank` of `world` sees it."""
    last = min(first + batch, manifest.sequences)
    spans, components = manifest.spans(first, last), manifest.components(first, last)
    micro_batches = [
        _rows(manifest, spans, components, min(begin, last - first), min(begin + micro_batch, last - first), micro_batch)
        for begin in range(rank * micro_batch, batch, world * micro_batch)
    ]
    tokens = int(spans.length.sum(dtype=np.int64))
    return Step(first, last, tokens, tokens - len(spans.length), micro_batches)


def prefetch(manifest: Manifest, first: int, batch: int, micro_batch: int, rank: int, world: int) -> None:
    """Has the token ids of a step, those of this process alone, on this machine."""
    for begin in range(first + rank * micro_batch, min(first + batch, manifest.sequences), world * micro_batch):
        _, file, row, start, length, _ = manifest.spans(begin, min(begin + micro_batch, manifest.sequences))
        for number in np.unique(file).tolist():
            here = file == number
            begins = manifest.token_file(number).offsets[row[here]] + start[here]
            manifest.ready(number, begins, begins + length[here])


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

    fetching = ThreadPoolExecutor(1, "prefetch")

    def fetch(start: int) -> None:  # whoever reads it and finds it missing is told what is wrong
        if manifest.is_mirrored and start < manifest.sequences:
            fetching.submit(prefetch, manifest, start, batch, micro_batch, rank, world)

    for number in range(2, FETCHED):
        fetch(first + number * batch)
    with ExitStack() as ending:
        thread = ending.enter_context(ThreadPoolExecutor(1, "stream"))
        ending.callback(fetching.shutdown, cancel_futures=True)
        ahead: deque[Future[Step]] = deque()
        for start in range(first, manifest.sequences, batch):
            ready = (
                ahead.popleft().result() if len(ahead) == 2 else None
            )  # taken before the other thread is woken and wants the interpreter
            ahead.append(thread.submit(read, start))
            fetch(start + FETCHED * batch)
            if ready is not None:
                yield ready
        while ahead:
            yield ahead.popleft().result()
