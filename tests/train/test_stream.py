from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixing import UserError
from mixing.manifest import Manifest
from train.stream import EMPTY_ROW, IGNORED, Step, fill, micro_batch_size, read_ahead, read_step, steps

CPU = torch.device("cpu")


def test_rows_hold_the_spans_of_their_sequences_each_as_a_piece_of_its_own(manifest: Manifest) -> None:
    """Against the plan's columns, read one span at a time."""
    for first in range(0, manifest.sequences, 16):
        last = min(first + 16, manifest.sequences)
        rows = read_step(manifest, first, 16, 16, 0, 1).micro_batches[0]
        bounds = rows.boundaries.tolist()
        for row, sequence in enumerate(range(first, last)):
            spans = manifest.spans(sequence, sequence + 1)
            at = 0
            for file, token_row, start, length in zip(spans.file, spans.token_row, spans.start, spans.length, strict=True):
                document = manifest.token_file(int(file))
                begin = int(document.offsets[token_row]) + int(start)
                ids = document.ids[begin : begin + int(length)].tolist()
                assert rows.input_ids[row, at : at + len(ids)].tolist() == ids
                assert rows.targets[row, at : at + len(ids)].tolist() == [*ids[1:], IGNORED]
                assert rows.position_ids[row, at : at + len(ids)].tolist() == list(range(len(ids)))
                assert row * manifest.sequence_length + at in bounds
                at += len(ids)
            assert rows.tokens[row] == at
            assert (rows.targets[row, at:] == IGNORED).all()
            assert rows.component[row] == manifest.components(sequence, sequence + 1)[0]
        pieces = len(manifest.spans(first, last).length) + int((rows.tokens < manifest.sequence_length).sum())
        assert len(bounds) == pieces + 1
        assert rows.longest == np.diff(bounds).max()


@pytest.mark.parametrize(("batch", "micro_batch", "world"), [(8, 8, 1), (8, 2, 1), (8, 2, 2), (12, 3, 4), (7, 7, 1)])
def test_steps_whatever_the_world_feed_every_sequence_once(batch: int, micro_batch: int, world: int, manifest: Manifest) -> None:
    fed: dict[int, list[list[int]]] = {}
    for rank in range(world):
        for step in steps(manifest, 0, batch, micro_batch, rank, world, CPU):
            rows = fed.setdefault(step.first, [[]] * batch)
            for number, micro in enumerate(step.micro_batches):
                for row in range(micro_batch):
                    rows[(number * world + rank) * micro_batch + row] = micro.input_ids[row, : micro.tokens[row]].tolist()
            assert step.tokens == int(manifest.tokens(step.first, step.last).sum())

    expected = []
    for sequence in range(manifest.sequences):
        spans = manifest.spans(sequence, sequence + 1)
        parts = [manifest.ids(*(int(value) for value in span)) for span in zip(*spans[1:5], strict=True)]
        expected.append(np.concatenate(parts).tolist())
    flat = [row for first in sorted(fed) for row in fed[first]]
    assert flat[: manifest.sequences] == expected
    assert all(row == [] for row in flat[manifest.sequences :])


def test_short_last_step_counts_only_what_is_there(manifest: Manifest) -> None:
    first = manifest.sequences - 3
    step = read_step(manifest, first, 8, 4, 0, 1)

    there, empty = step.micro_batches
    assert (step.first, step.last) == (first, manifest.sequences)
    assert there.component.tolist() == [*manifest.components(first, manifest.sequences).tolist(), EMPTY_ROW]
    assert empty.component.tolist() == [EMPTY_ROW] * 4
    assert (empty.targets == IGNORED).all()
    assert sum(int((micro.targets != IGNORED).sum()) for micro in step.micro_batches) == step.predictions
    assert sum(int(micro.tokens.sum()) for micro in step.micro_batches) == step.tokens


def test_steps_from_any_sequence_are_those_of_the_whole_stream(manifest: Manifest) -> None:
    whole = {step.first: step for step in steps(manifest, 0, 8, 8, 0, 1, CPU)}
    for first in (8, 80, max(whole)):
        for step in steps(manifest, first, 8, 8, 0, 1, CPU):
            for ours, theirs in zip(step.micro_batches, whole[step.first].micro_batches, strict=True):
                assert torch.equal(ours.input_ids, theirs.input_ids)
                assert torch.equal(ours.boundaries, theirs.boundaries)


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=4).filter(lambda row: sum(row) <= 20), min_size=1, max_size=5),
    st.sampled_from([np.uint16, np.uint32]),
)
def test_fill_with_any_pieces_lays_out_every_token(lengths: list[list[int]], dtype: type[np.uint16 | np.uint32]) -> None:
    """Against a loop over single tokens, in all seven columns."""
    width, rows = 20, [[(np.arange(n) + 7).astype(dtype) for n in row] for row in lengths]
    ids, targets, positions, bounds = [], [], [], [0]
    for row in rows:
        for piece in [*row, *([np.zeros(width - total, dtype)] if (total := sum(map(len, row))) < width else [])]:
            padding = not piece[0]
            for place, token in enumerate(piece.tolist()):
                ids.append(token)
                targets.append(IGNORED if padding or place == len(piece) - 1 else token + 1)
                positions.append(place)
            bounds.append(len(ids))

    found = fill(rows, range(len(rows)), width)

    for column, expected in ((found.input_ids, ids), (found.targets, targets), (found.position_ids, positions)):
        assert column.shape == (len(rows), width)
        assert column.flatten().tolist() == expected
    assert found.boundaries.tolist() == bounds
    assert found.longest == np.diff(bounds).max()
    assert found.component.tolist() == list(range(len(rows)))
    assert found.tokens.tolist() == [sum(row) for row in lengths]
    dtypes = [part.dtype for part in found if isinstance(part, torch.Tensor)]
    assert dtypes == [torch.int64] * 3 + [torch.int32] + [torch.int64] * 2


def test_step_that_cannot_be_read_is_an_error_where_it_is_due_and_not_before() -> None:
    def read(start: int) -> Step:
        return Step(start, start + 8 // (start != 24), 0, 0, [])

    feed = read_ahead(read, range(0, 64, 8))

    assert [next(feed).first for _ in range(3)] == [0, 8, 16]
    with pytest.raises(ZeroDivisionError):
        next(feed)
    assert "stream" not in {thread.name for thread in threading.enumerate()}


def test_steps_left_early_leave_no_thread(manifest: Manifest) -> None:
    feed = steps(manifest, 0, 8, 8, 0, 1, CPU)
    next(feed)
    assert "stream" in {thread.name for thread in threading.enumerate()}
    feed.close()  # type: ignore[attr-defined]
    assert "stream" not in {thread.name for thread in threading.enumerate()}


def test_batch_that_cannot_be_dealt_evenly_is_refused() -> None:
    assert micro_batch_size(8, None, 2) == 4
    assert micro_batch_size(8, 2, 2) == 2
    for batch, micro_batch, world in ((8, 3, 1), (8, None, 3), (2, None, 4)):
        with pytest.raises(UserError, match=f"batch: {batch} sequences cannot be dealt to {world}"):
            micro_batch_size(batch, micro_batch, world)
