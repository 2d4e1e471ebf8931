"""Promise 6 (packing) and the prefix half of promise 5, over random documents and quotas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixing.packing import Packed, Pieces, interleave, pack

SIZES = st.one_of(st.integers(1, 8), st.integers(1, 100), st.integers(100, 2500))


def pieces_of(lengths: list[int], documents: list[int] | None = None) -> Pieces:
    count = len(lengths)
    document = np.arange(count) if documents is None else np.array(documents)
    epoch = np.array([list(document[:i]).count(d) for i, d in enumerate(document)], np.uint16)
    return Pieces(document.astype(np.uint32), np.zeros(count, np.uint32), np.array(lengths, np.uint32), epoch)


def sequences_of(packed: Packed) -> list[list[tuple[int, int, int, int]]]:
    """Every sequence as a list of (document, epoch, start, length)."""
    ends = [*packed.first_span[1:].tolist(), len(packed.spans.document)]
    spans = list(zip(*(packed.spans[i].tolist() for i in (0, 3, 1, 2)), strict=True))
    return [spans[low:high] for low, high in zip(packed.first_span.tolist(), ends, strict=True)]


def check_packing(pieces: Pieces, length: int, fill: float) -> list[list[tuple[int, int, int, int]]]:
    scratch = np.zeros(int(pieces.document.max()) + 1, np.uint8)
    packed = pack(pieces, length, fill, scratch)
    assert not scratch.any()
    sequences = sequences_of(packed)
    sums = [sum(span[3] for span in sequence) for sequence in sequences]
    assert max(sums) <= length
    assert all(total >= fill * length for total in sums[:-1])
    # Spans of one piece, in run order, join to exactly the piece: no token dropped, repeated or out of order.
    joined: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for document, epoch, start, size in (span for sequence in sequences for span in sequence):
        joined.setdefault((document, epoch), []).append((start, size))
    assert len(joined) == len(pieces.document)
    cuts = 0
    for document, epoch, whole in zip(pieces.document.tolist(), pieces.epoch.tolist(), pieces.length.tolist(), strict=True):
        spans = joined[document, epoch]
        assert [start for start, _ in spans] == [sum(size for _, size in spans[:i]) for i in range(len(spans))]
        assert sum(size for _, size in spans) == whole
        cuts += len(spans) - 1
    assert packed.cut_long + packed.cut_to_fill == cuts
    return sequences


@settings(max_examples=150)
@given(st.lists(SIZES, min_size=1, max_size=120), st.sampled_from([2, 7, 50, 64, 1000]), st.sampled_from([0, 0.5, 0.9, 0.99, 1]))
def test_pack_random_documents_keeps_every_token_and_fills_to_the_floor(lengths: list[int], length: int, fill: float) -> None:
    check_packing(pieces_of(lengths), length, fill)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 90)), min_size=1, max_size=60), st.sampled_from([0.5, 0.99]))
def test_pack_repeated_documents_keeps_their_visits_in_order(visits: list[tuple[int, int]], fill: float) -> None:
    pieces = pieces_of([length for _, length in visits], [document for document, _ in visits])
    seen: dict[int, int] = {}
    for document, epoch, _, _ in (span for sequence in check_packing(pieces, 64, fill) for span in sequence):
        assert epoch >= seen.get(document, 0)
        seen[document] = epoch


def test_pack_documents_that_fit_together_cuts_none() -> None:
    random = np.random.default_rng(5)
    lengths: list[int] = []
    for _ in range(200):
        cuts = np.sort(random.choice(np.arange(1, 64), 3, replace=False))
        lengths += np.diff(cuts, prepend=0, append=64).tolist()
    packed = pack(pieces_of(random.permutation(lengths).tolist()), 64, 0.9, np.zeros(len(lengths), np.uint8))
    assert packed.cut_long == packed.cut_to_fill == 0


def test_pack_long_document_is_cut_before_a_short_one() -> None:
    # 40 does not fit beside 40; the document of 300 must be cut anyway and fills the holes.
    packed = pack(pieces_of([40, 40, 40, 300]), 64, 1, np.zeros(4, np.uint8))
    assert packed.cut_to_fill == 0
    assert packed.cut_long == 6
    assert len(packed.first_span) == math.ceil(420 / 64)


def test_pack_cut_serves_two_sequences_where_it_can() -> None:
    # 40 + 40 + 48 fill two sequences of 64 if one piece is cut so that its rest meets its match; any other cut makes a third sequence.
    packed = pack(pieces_of([40, 40, 48]), 64, 1, np.zeros(3, np.uint8))
    assert (packed.cut_to_fill, len(packed.first_span)) == (1, 2)


def test_pack_piece_that_leaves_a_hole_gives_way_to_two_that_fill_it() -> None:
    # After 10 the longest that fits is 60, and nothing fits the 30 left; 50 and 40 do, and leave 60 and 40 for the next sequence.
    packed = pack(pieces_of([10, 60, 50, 40, 40]), 100, 1, np.zeros(5, np.uint8))
    assert (packed.cut_to_fill, len(packed.first_span)) == (0, 2)


def test_pack_pieces_that_leave_a_hole_give_way_to_more_of_equal_lengths() -> None:
    packed = pack(pieces_of([10, 60, 25, 30, 30, 30, 15]), 100, 1, np.zeros(7, np.uint8))
    assert (packed.cut_to_fill, len(packed.first_span)) == (0, 2)


def test_pack_hole_takes_the_long_document_that_needs_no_further_cut_for_it() -> None:
    # 152 = 24 + 64 + 64 fills the hole beside 40 and is cut twice, as it must be; 178 would be cut three times.
    packed = pack(pieces_of([40, 178, 152, 14]), 64, 1, np.zeros(4, np.uint8))
    assert sequences_of(packed)[0] == [(0, 0, 0, 40), (2, 0, 0, 24)]
    assert packed.cut_long + packed.cut_to_fill == 2 + 2


def test_pack_real_like_lengths_at_full_sequences_cuts_little_more_than_it_must() -> None:
    random = np.random.default_rng(1)
    lengths = np.maximum(1, random.lognormal(6.5, 1.0, 5000)).astype(np.int64)
    packed = pack(pieces_of_many(lengths), 2048, 0.99, np.zeros(5000, np.uint8))
    chunk_cuts = len(np.setdiff1d(np.arange(2048, int(lengths.sum()), 2048), np.cumsum(lengths)))
    avoidable = packed.cut_long + packed.cut_to_fill - int(((lengths - 1) // 2048).sum())
    assert avoidable < 0.05 * chunk_cuts


def test_pack_one_document_of_fifty_sequences_is_cut_forty_nine_times() -> None:
    packed = pack(pieces_of([50 * 64]), 64, 0.99, np.zeros(1, np.uint8))
    assert (packed.cut_long, packed.cut_to_fill, len(packed.first_span)) == (49, 0, 50)


def test_pack_real_like_lengths_cuts_less_than_half_of_concat_and_chunk() -> None:
    random = np.random.default_rng(1)
    lengths = np.maximum(1, random.lognormal(6.5, 1.0, 5000)).astype(np.int64)
    packed = pack(pieces_of_many(lengths), 8192, 0.99, np.zeros(5000, np.uint8))
    chunk_cuts = len(np.setdiff1d(np.arange(8192, int(lengths.sum()), 8192), np.cumsum(lengths)))
    assert 2 * (packed.cut_long + packed.cut_to_fill) < chunk_cuts


def pieces_of_many(lengths: np.ndarray) -> Pieces:
    zeros = np.zeros(len(lengths), np.uint32)
    return Pieces(np.arange(len(lengths), dtype=np.uint32), zeros, lengths.astype(np.uint32), zeros.astype(np.uint16))


@pytest.mark.parametrize("most", [20, 60, 150])
def test_pack_more_documents_than_the_window_none_waits_longer_than_it(most: int) -> None:
    lengths = np.random.default_rng(2).integers(1, most, 3000)
    packed = pack(pieces_of_many(lengths), 64, 0.9, np.zeros(3000, np.uint8), window=16)
    sequence = np.repeat(np.arange(len(packed.first_span)), np.diff(packed.first_span, append=len(packed.spans.document)))
    first = np.full(3000, len(packed.first_span))
    np.minimum.at(first, packed.spans.document, sequence)
    # A document that waits holds one of 16 places; every other sequence at least opens with the oldest,
    # so nothing can be overtaken for more than 32 sequences.
    latest_before = np.maximum.accumulate(first)
    assert (latest_before - first <= 32).all()


@pytest.mark.parametrize("documents", [2000, 8000])
def test_pack_few_documents_length_says_little_about_when_a_document_comes(documents: int) -> None:
    """In a window that holds a whole component the longest go first."""
    lengths = np.maximum(1, np.random.default_rng(4).lognormal(5.0, 1.0, documents)).astype(np.int64)

    def correlation(window: int | None) -> float:
        packed = pack(pieces_of_many(lengths), 1024, 0.9, np.zeros(documents, np.uint8), window)
        sequence = np.repeat(np.arange(len(packed.first_span)), np.diff(packed.first_span, append=len(packed.spans.document)))
        return float(np.corrcoef(np.log(lengths[packed.spans.document]), sequence)[0, 1])

    assert abs(correlation(None)) < 0.1
    assert correlation(4096) < -0.3


@settings(max_examples=200)
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(1, 400)), min_size=1, max_size=40).filter(any))
def test_interleave_random_quotas_every_prefix_within_one_sequence(quotas: list[int]) -> None:
    order = interleave(quotas)
    total = sum(quotas)
    assert np.bincount(order, minlength=len(quotas)).tolist() == quotas
    for k, quota in enumerate(quotas):
        # In integers, so that "less than one" is exact: |count * N - t * n_k| < N.
        deviation = np.cumsum(order == k) * total - np.arange(1, total + 1) * quota
        assert np.abs(deviation).max() < total


def test_interleave_where_largest_deficit_fails_stays_within_one_sequence() -> None:
    quotas = [575, 575, 230, 2874, 2874, 2874]  # the smallest mixture found that drives "largest deficit next" to 1.05
    order = interleave(quotas)
    total = sum(quotas)
    worst = max(np.abs(np.cumsum(order == k) * total - np.arange(1, total + 1) * n).max() for k, n in enumerate(quotas))
    assert worst < total
