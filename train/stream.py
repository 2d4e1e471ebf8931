"""The stream: a sequence number in, the arrays of a step out. No loader state, no workers, nothing random.

A step that starts at sequence s holds the rows `[s, min(s + batch, end))`; missing rows of a short step are empty and add no token and no loss.
A row is filled with the spans of its sequence one after the other; each span is a piece of its own: positions restart at 0, attention stays inside
(`boundaries`), and its last token predicts nothing, so a span of n tokens holds n - 1 predictions, also one that goes on in a cut document. The rest
of a row is one more piece, of padding. Process r of W takes the micro-batches r, r + W, r + 2W, …: which rows meet in one forward pass does not
depend on W. One thread reads two steps ahead, and another fetches what further steps read of a manifest in an object store.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, pairwise
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mixing import UserError
from mixing.manifest import Manifest, Spans

IGNORED = -100
EMPTY_ROW = -1
AHEAD = 2
"""Steps that are read before they are asked for."""
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
    """Rows of `width` tokens, each filled with its pieces in order. Per piece only slices are made: what is done to tokens is done to all at once."""
    tokens = [sum(map(len, row)) for row in rows]
    blank = np.zeros(width, np.uint16)
    pieces = [piece for row, filled in zip(rows, tokens, strict=True) for piece in (row if filled == width else (*row, blank[filled:]))]
    sizes = [*map(len, pieces)]
    boundaries = np.array([0, *accumulate(sizes)], np.int32)
    counting = np.arange(max(sizes))
    ids = np.concatenate(pieces, dtype=np.int64).reshape(-1, width)
    targets = np.empty_like(ids)
    targets.reshape(-1)[:-1] = ids.reshape(-1)[1:]
    targets.reshape(-1)[boundaries[1:] - 1] = IGNORED
    for row, filled in enumerate(tokens):
        if filled < width:
            targets[row, filled:] = IGNORED
    return Rows(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(np.concatenate([counting[:size] for size in sizes]).reshape(-1, width)),
        torch.from_numpy(boundaries),
        len(counting),
        torch.from_numpy(np.array(components, np.int64)),
        torch.from_numpy(np.array(tokens, np.int64)),
    )


def read_step(manifest: Manifest, first: int, batch: int, micro_batch: int, rank: int, world: int) -> Step:
    """The step that starts at sequence `first`, as process `rank` of `world` sees it."""
    last = min(first + batch, manifest.sequences)
    spans = manifest.spans(first, last)
    components = manifest.components(first, last).tolist() + [EMPTY_ROW] * (first + batch - last)
    micro_batches = [
        fill(_pieces(manifest, spans, begin, micro_batch), components[begin : begin + micro_batch], manifest.sequence_length)
        for begin in range(rank * micro_batch, batch, world * micro_batch)
    ]
    tokens = int(spans.length.sum(dtype=np.int64))
    return Step(first, last, tokens, tokens - len(spans.length), micro_batches)


def _pieces(manifest: Manifest, spans: Spans, first: int, count: int) -> list[list[npt.NDArray[Any]]]:
    """The token ids of `count` sequences, from the one that `spans` holds at `first`, span by span; those beyond the last have none. Views of the map."""
    bounds = spans.sequence[first : first + count + 1].tolist() or [0]
    file, row, start, length = (column[bounds[0] : bounds[-1]] for column in spans[1:5])
    pieces: list[Any] = [None] * len(file)
    for number in set(file.tolist()):
        here = np.flatnonzero(file == number)
        _, offsets, ids = manifest.token_file(number)
        begins = offsets[row[here]] + start[here]
        ends = begins + length[here]
        assert (ends <= offsets[row[here] + 1]).all()
        manifest.ready(number, begins, ends)
        for place, begin, end in zip(here.tolist(), begins.tolist(), ends.tolist(), strict=True):
            pieces[place] = ids[begin:end]
    rows = [pieces[begin - bounds[0] : end - bounds[0]] for begin, end in pairwise(bounds)]
    return rows + [[]] * (count - len(rows))


def prefetch(manifest: Manifest, first: int, batch: int, micro_batch: int, rank: int, world: int) -> None:
    """Has the token ids of a step, those of this process alone, on this machine."""
    spans = manifest.spans(first, min(first + batch, manifest.sequences))
    for begin in range(rank * micro_batch, batch, world * micro_batch):
        _pieces(manifest, spans, begin, micro_batch)


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
    fetching = ThreadPoolExecutor(1, "prefetch")

    def fetch(start: int) -> None:  # whoever reads it and finds it missing is told what is wrong
        if manifest.is_mirrored and start < manifest.sequences:
            fetching.submit(prefetch, manifest, start, batch, micro_batch, rank, world)

    def read(start: int) -> Step:
        fetch(start + FETCHED * batch)
        step = read_step(manifest, start, batch, micro_batch, rank, world)
        if device.type == "cuda":
            step = step._replace(micro_batches=[rows.each(torch.Tensor.pin_memory) for rows in step.micro_batches])
        return step

    for number in range(AHEAD, FETCHED):
        fetch(first + number * batch)
    try:
        yield from read_ahead(read, range(first, manifest.sequences, batch))
    finally:
        fetching.shutdown(cancel_futures=True)


def read_ahead(read: Callable[[int], Step], starts: Sequence[int]) -> Iterator[Step]:
    """The step of each of `starts`, read by one thread that is `AHEAD` of them ahead; what it cannot read is raised where it is due.

    Queues, because handing a step over and asking for another takes 30 us with them and 70 with futures. A thread that is woken takes the core from the
    one that woke it, and on a busy machine whoever waits comes next: of steps of 30 ms at a load of 13 on two cores, 1.06 ms each were spent so. Batch
    scheduling leaves the core where it is: 0.30 ms, nine in ten below 0.1.
    """
    asked: SimpleQueue[int | None] = SimpleQueue()
    done: SimpleQueue[Step | BaseException] = SimpleQueue()

    def work() -> None:
        if sys.platform == "linux":
            with suppress(OSError):  # where it is not allowed, all is as before
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        while (start := asked.get()) is not None:
            try:
                done.put(read(start))
            except BaseException as error:  # noqa: BLE001  # whoever takes it raises it
                done.put(error)

    thread = Thread(target=work, name="stream", daemon=True)
    thread.start()
    try:
        for start in starts[:AHEAD]:
            asked.put(start)
        for number in range(len(starts)):
            step = done.get()
            if isinstance(step, BaseException):
                raise step
            for start in starts[number + AHEAD : number + AHEAD + 1]:
                asked.put(start)
            yield step
    finally:
        asked.put(None)
        thread.join()
