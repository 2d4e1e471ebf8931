"""Documents into full sequences, cut as rarely as possible; and the sequences of several components into one even order.

In: the pieces of one component and stage in draw order. Out: sequences of at most `sequence_length` tokens in run order, as spans in CSR form.

Packing is best fit over a sliding window. A sequence opens with the oldest waiting piece (or the rest of one just cut), so that none waits for more than
two sequences for each place of the window, and then takes the longest waiting piece that fits, again and again. Where nothing fits and the gap is larger than `1 - fill`,
the pieces taken last are given back and others looked for that close the sequence together: two for the last one, else one more than there were, of about equal
lengths. Only where that fails is a piece cut to fill the gap: one longer than a sequence if there is one, since it must be cut anyway, and best one
whose length beyond whole sequences is about the gap, since it then needs no further cut; else one whose rest and another piece are the next
sequence, else the longest. So every sequence but the last reaches the floor, no token is dropped, and every cut is counted. Whole documents alone fill only 76 to
94 % on real text. `benchmarks/mixture.md` has the cuts that are left.

Pieces of one document keep their order: a piece enters the window only after the document's previous piece has left it.

Deterministic, one thread, O(1) per span whatever the window: waiting pieces lie in lists by length under a bitmap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

WINDOW = 4096
"""Pieces that wait at a time. 1,024 to 16,384 places cut the same to within 2 % on streams of a million real lengths; larger windows let the lengths drift
further from the draw order, and leave the cache."""
LEAST_WINDOW = 32
PART = 32
"""Of few pieces a thirty-second part waits at a time. In a window that holds them all the longest that fits goes first, and a run would see long documents early and short
ones late: 8,000 questions of 115 tokens in sequences of 2,048 come 4.9 to 13.8 a sequence from the first fifth to the last with a quarter of them waiting, 7.3 to 8.5 with
this, for as many cuts."""


class Pieces(NamedTuple):
    """Parts of documents to pack, in draw order."""

    document: npt.NDArray[np.uint32]
    start: npt.NDArray[np.uint32]
    length: npt.NDArray[np.uint32]
    epoch: npt.NDArray[np.uint16]


class Packed(NamedTuple):
    """Sequences: the spans of the i-th are `[first_span[i], first_span[i + 1])`, the last one's end with the columns."""

    first_span: npt.NDArray[np.int64]
    spans: Pieces
    cut_long: int
    cut_to_fill: int


def pack(pieces: Pieces, sequence_length: int, fill: float, waiting: npt.NDArray[np.uint8], window: int | None = None) -> Packed:
    """`pieces` in sequences of at most `sequence_length` tokens, each but the last of at least `fill` times as many.

    `waiting` is scratch: a zero for every document an index in `pieces` can mean; it is left as it was. `cut_long` counts cuts of pieces
    longer than a sequence, `cut_to_fill` the other ones. `window` pieces wait at a time; without it a PART-th of them, from LEAST_WINDOW to WINDOW.
    """
    floor = math.ceil(fill * sequence_length)
    # Each cut and each full sequence of a long piece fills a sequence to the brim.
    room = len(pieces.document) + int(pieces.length.sum(dtype=np.int64)) // sequence_length + 1
    out = (np.empty(room, np.int64), np.empty(room, np.uint32), np.empty(room, np.uint32), np.empty(room, np.int64))
    drawn = (pieces.document, pieces.start, pieces.length)
    window = window or max(LEAST_WINDOW, min(WINDOW, len(pieces.document) // PART))
    sequences, spans, cut_long, cut_to_fill = _pack(*drawn, sequence_length, floor, window, waiting, *out)
    piece, start, length, first_span = out
    piece = piece[:spans]
    packed = Pieces(pieces.document[piece], start[:spans].copy(), length[:spans].copy(), pieces.epoch[piece])
    return Packed(first_span[:sequences].copy(), packed, int(cut_long), int(cut_to_fill))


# The window's state, in three arrays because numba counts a reference for each array it passes on (a tuple of thirteen made it twice as slow):
# `ends` int32[2, buckets]: the first and last slot of each bucket's list, -1 for none. Bucket b up to a sequence lists the pieces with b tokens
#   left, bucket S + r the longer ones with r tokens left beyond whole sequences of S, 0 < r <= S; list 0 is that of all slots by age.
# `bits` uint64[2, words]: a bit for each bucket that is not empty; a bit for each word that is not zero.
# `slots` int64[8, window]: for each slot its neighbours in its bucket and by age, the piece, where it goes on, the tokens left; and free slots.
_NEXT, _BEFORE, _YOUNGER, _OLDER, _PIECE, _START, _LEFT, _FREE = range(8)
_TRIES = 64  # lengths looked at for two pieces that close a sequence, or for a cut that serves two: about 1 us
_HELD = 8  # pieces that can be given back
_ONE, _ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def _highest_bit(word: Any) -> int:
    position = 0
    for step in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(position + step):
            position += step
    return position


@numba.njit(cache=True, nogil=True)
def _longest(bits: Any, at_most: int) -> int:
    """The highest bucket up to `at_most` that is not empty; 0 if there is none."""
    word = at_most >> 6
    found = bits[0, word] & (_ALL >> np.uint64(63 - (at_most & 63)))
    if found:
        return (word << 6) + _highest_bit(found)
    block = word >> 6
    inner = bits[1, block] & ((_ONE << np.uint64(word & 63)) - _ONE)
    while not inner:
        block -= 1
        if block < 0:
            return 0
        inner = bits[1, block]
    word = (block << 6) + _highest_bit(inner)
    return (word << 6) + _highest_bit(bits[0, word])


@numba.njit(cache=True, nogil=True)
def _append(ends: Any, slots: Any, one: int, slot: int, after: int, before: int) -> bool:
    """Put a slot at the end of a list; True if the list was empty. `after` and `before` are the rows of its links."""
    last = ends[1, one]
    slots[before, slot], slots[after, slot], ends[1, one] = last, -1, slot
    if last >= 0:
        slots[after, last] = slot
    else:
        ends[0, one] = slot
    return bool(last < 0)


@numba.njit(cache=True, nogil=True)
def _remove(ends: Any, slots: Any, one: int, slot: int, after: int, before: int) -> bool:
    """Take a slot out of a list; True if the list is empty now."""
    left, right = slots[before, slot], slots[after, slot]
    if right >= 0:
        slots[before, right] = left
    else:
        ends[1, one] = left
    if left >= 0:
        slots[after, left] = right
    else:
        ends[0, one] = right
    return bool(left < 0 and right < 0)


@numba.njit(cache=True, nogil=True)
def _join(ends: Any, bits: Any, slots: Any, bucket: int, slot: int) -> None:
    """Into a bucket, at its end: of equal lengths the one that came first goes first."""
    if _append(ends, slots, bucket, slot, _NEXT, _BEFORE):
        bits[0, bucket >> 6] |= _ONE << np.uint64(bucket & 63)
        bits[1, bucket >> 12] |= _ONE << np.uint64((bucket >> 6) & 63)


@numba.njit(cache=True, nogil=True)
def _return(ends: Any, bits: Any, slots: Any, bucket: int, slot: int) -> None:
    """Into a bucket again, at its start: it was there before the others."""
    first = ends[0, bucket]
    if first < 0:
        _join(ends, bits, slots, bucket, slot)
        return
    slots[_BEFORE, slot], slots[_NEXT, slot], slots[_BEFORE, first], ends[0, bucket] = -1, first, slot, slot


@numba.njit(cache=True, nogil=True)
def _leave(ends: Any, bits: Any, slots: Any, bucket: int, slot: int) -> None:
    if _remove(ends, slots, bucket, slot, _NEXT, _BEFORE):
        bits[0, bucket >> 6] &= ~(_ONE << np.uint64(bucket & 63))
        if not bits[0, bucket >> 6]:
            bits[1, bucket >> 12] &= ~(_ONE << np.uint64((bucket >> 6) & 63))


@numba.njit(cache=True, nogil=True)
def _bucket(left: int, sequence_length: int) -> int:
    return left if left <= sequence_length else sequence_length + 1 + (left - 1) % sequence_length


@numba.njit(cache=True, nogil=True)
def _leaves(ends: Any, slots: Any, waiting: Any, document: Any, slot: int, waits: int) -> int:
    """A piece that has left its bucket leaves the window too; how many wait now."""
    _remove(ends, slots, 0, slot, _YOUNGER, _OLDER)
    waiting[document[slots[_PIECE, slot]]] = 0
    slots[_FREE, waits - 1] = slot
    return waits - 1


@numba.njit(cache=True, nogil=True)
def _closing(ends: Any, bits: Any, gap: int, slack: int, sequence_length: int) -> int:
    """The bucket of a piece after which another one closes `gap` to within `slack`, whole or by the cut that a long one needs anyway; 0 if none is found."""
    bucket = _longest(bits, gap)
    for _ in range(_TRIES):
        if not bucket:
            break
        room = gap - bucket
        other = _longest(bits, room)
        if other and other >= room - slack and (other != bucket or ends[0, bucket] != ends[1, bucket]):
            return bucket
        other = _longest(bits, sequence_length + room)
        if room and other > sequence_length and other >= sequence_length + room - slack:
            return bucket
        bucket = _longest(bits, bucket - 1)
    return 0


@numba.njit(cache=True, nogil=True)
def _to_cut(ends: Any, bits: Any, gap: int, sequence_length: int, floor: int) -> tuple[int, bool]:
    """The bucket of the piece to cut where nothing waiting fits `gap`, and whether its rest fills the next sequence without a cut.

    A long piece if there is one. Of the others one whose rest and another waiting piece are a full sequence, so that the cut serves two; else
    the longest.
    """
    for at_most in (sequence_length + gap, 2 * sequence_length):
        bucket = _longest(bits, at_most)
        if bucket > sequence_length:
            return bucket, False
    longest = bucket
    for _ in range(_TRIES):
        room = sequence_length - (bucket - gap)
        other = _longest(bits, room)
        if other >= floor - (bucket - gap) and (other != bucket or ends[0, bucket] != ends[1, bucket]):
            return bucket, True
        bucket = _longest(bits, bucket - 1)
        if bucket <= gap:
            break
    return longest, False


@numba.njit(cache=True, nogil=True)
def _in_draw_order(piece: Any, start: Any, length: Any) -> None:
    """Sort the spans of one sequence by piece."""
    order = np.argsort(piece)
    piece[:], start[:], length[:] = piece[order], start[order], length[order]


@numba.njit(cache=True, nogil=True)
def _pack(
    document: Any,
    drawn_start: Any,
    drawn_length: Any,
    sequence_length: int,
    floor: int,
    window: int,
    waiting: Any,
    piece: Any,
    start: Any,
    length: Any,
    first_span: Any,
) -> tuple[int, int, int, int]:
    slack = sequence_length - floor
    ends = np.full((2, 2 * sequence_length + 1), -1, np.int32)
    bits = np.zeros((2, (2 * sequence_length >> 6) + 1), np.uint64)
    slots = np.zeros((8, window), np.int64)
    slots[_FREE] = np.arange(window)
    waits, entered, spans, sequences, cut_long, cut_to_fill = 0, 0, 0, 0, 0, 0
    opening = -1  # the slot that opens the next sequence, if it need not be the oldest
    # The pieces that this sequence took last, all whole: they have left their buckets but not the window, so that they can be given back.
    held = np.zeros(_HELD, np.int64)
    first_held, last_held = 0, 0
    while waits or entered < len(document):
        gap = sequence_length
        chosen_anew = False
        to_choose = 0  # how many pieces of about equal lengths are to close the sequence; 0 for the longest that fits
        first_span[sequences] = spans
        while gap:
            while waits < window and entered < len(document) and not waiting[document[entered]]:
                slot = slots[_FREE, waits]
                waits += 1
                waiting[document[entered]] = 1
                slots[_PIECE, slot], slots[_START, slot], slots[_LEFT, slot] = entered, drawn_start[entered], drawn_length[entered]
                _append(ends, slots, 0, slot, _YOUNGER, _OLDER)
                _join(ends, bits, slots, _bucket(drawn_length[entered], sequence_length), slot)
                entered += 1
            if waits == last_held - first_held:
                if not waits:
                    break
                while first_held < last_held:  # make room for others
                    waits = _leaves(ends, slots, waiting, document, held[first_held % _HELD], waits)
                    first_held += 1
                continue
            fitting = _longest(bits, gap)
            cutting = _longest(bits, sequence_length + gap)
            opens = gap == sequence_length
            if opens:
                slot = ends[0, 0] if opening < 0 else opening
                opening = -1
                bucket = _bucket(slots[_LEFT, slot], sequence_length)
            else:
                if to_choose and fitting:
                    bucket = _closing(ends, bits, gap, slack, sequence_length) if to_choose == 2 else _longest(bits, gap // to_choose)
                    if not bucket:
                        bucket = fitting
                    to_choose = to_choose - 1 if to_choose > 2 else 0
                elif fitting and fitting >= gap - slack:
                    bucket = fitting
                elif not fitting and gap <= slack:
                    break
                elif cutting > sequence_length and cutting >= sequence_length + gap - slack:
                    bucket = cutting
                elif fitting:
                    bucket = fitting
                elif not chosen_anew and first_held < last_held:
                    chosen_anew = True
                    bucket, count = 0, 0
                    while first_held < last_held and not bucket:
                        last_held -= 1
                        spans -= 1
                        count += 1
                        slot = held[last_held % _HELD]
                        gap += slots[_LEFT, slot]
                        _return(ends, bits, slots, slots[_LEFT, slot], slot)
                        if count == 1:
                            bucket = _closing(ends, bits, gap, slack, sequence_length)
                    if not bucket:
                        to_choose = count + 1
                        continue
                else:
                    bucket, serves_two = _to_cut(ends, bits, gap, sequence_length, floor)
                    if serves_two:
                        opening = ends[0, bucket]
                slot = ends[0, bucket]
            left = slots[_LEFT, slot]
            taken = min(left, gap)
            cut_long += left > sequence_length
            cut_to_fill += taken < left <= sequence_length
            piece[spans], start[spans], length[spans] = slots[_PIECE, slot], slots[_START, slot], taken
            spans += 1
            gap -= taken
            _leave(ends, bits, slots, bucket, slot)
            if left > taken:
                slots[_START, slot] += taken
                slots[_LEFT, slot] -= taken
                _join(ends, bits, slots, _bucket(left - taken, sequence_length), slot)
            elif opens:
                waits = _leaves(ends, slots, waiting, document, slot, waits)
            else:
                if last_held - first_held == _HELD:
                    waits = _leaves(ends, slots, waiting, document, held[first_held % _HELD], waits)
                    first_held += 1
                held[last_held % _HELD] = slot
                last_held += 1
        while first_held < last_held:
            waits = _leaves(ends, slots, waiting, document, held[first_held % _HELD], waits)
            first_held += 1
        low = first_span[sequences]
        _in_draw_order(piece[low:spans], start[low:spans], length[low:spans])
        sequences += 1
    return sequences, spans, cut_long, cut_to_fill


def interleave(quotas: Sequence[int]) -> npt.NDArray[np.uint16]:
    """The order of N = sum(quotas) sequences of several components such that every prefix of t holds t * n_k / N of each, to within one.

    Unit j of component k is released at floor(j N / n_k) and due by ceil((j + 1) N / n_k); the earliest deadline among the released goes next
    (Steiner and Yeomans 1993). "Largest deficit next" exceeds one sequence in 17 % of random mixtures.
    """
    assert sum(quotas) < 2**31
    order = np.empty(sum(quotas), np.uint16)
    _interleave(np.array(quotas, np.int64), order)
    return order


@numba.njit(cache=True, nogil=True)
def _interleave(quotas: Any, order: Any) -> None:
    total = len(order)
    given = np.zeros(len(quotas), np.int64)
    release = np.zeros(len(quotas), np.int64)
    due = np.full(len(quotas), total + 1, np.int64)
    for k in range(len(quotas)):
        if quotas[k]:
            due[k] = (total + quotas[k] - 1) // quotas[k]
    for t in range(total):
        best, earliest = 0, total + 1
        for k in range(len(quotas)):
            if release[k] <= t and due[k] < earliest:
                best, earliest = k, due[k]
        order[t] = best
        given[best] += 1
        release[best] = given[best] * total // quotas[best]
        due[best] = ((given[best] + 1) * total + quotas[best] - 1) // quotas[best]
        if given[best] == quotas[best]:
            due[best] = total + 1
