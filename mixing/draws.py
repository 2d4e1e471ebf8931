"""Which documents a stage takes from a component, and in which order: the draws `cursor`, `fixed` and `fresh`.

In: the documents of one component and how many tokens a stage asks of it. Out: pieces in draw order, whole documents but for the last one of a
draw, which is cut where the budget ends. A *visit* of a document is one reading of it from a start to an end; the pieces of one visit have the
same epoch, the number of earlier visits. A cut document is still open: whichever draw meets it next reads its tail first, as the same visit,
so no token is lost to a cut. No document is visited more often than the cap, rounded up, allows.

The order is a shuffle: the key of a document is xxh3-64 of its content hash, seeded by (seed, component, pass) or (seed, component, stage,
round); equal keys keep pool order. It depends on nothing else, so a document's place does not change when others come or go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import xxhash

from mixing import UserError
from mixing.canonical import canonical_json
from mixing.packing import Pieces

_BLOCK = 1 << 20
"""Documents looked at in one go: temporaries stay at some tens of megabytes."""


class Documents(NamedTuple):
    """The kept documents, in pool-row order. A `component` that is no index into the mixture's (65535) means none."""

    row: npt.NDArray[np.uint64]
    content: npt.NDArray[np.uint64]  # n x 2: the high and the low half of the content hash
    component: npt.NDArray[np.uint16]
    tokens: npt.NDArray[np.int64]
    values: Mapping[str, npt.NDArray[np.float64]] = {}  # of the signals that a stage is ordered by; NaN is no value


class Drawn(NamedTuple):
    """What a stage takes of one component. `cut_to_budget` counts the draws that ended inside a document."""

    pieces: Pieces
    cut_to_budget: int


def round_tokens(tokens: int, rounds: int) -> list[int]:
    """`tokens` split into `rounds` parts that differ by one at most and sum to it."""
    return [(r + 1) * tokens // rounds - r * tokens // rounds for r in range(rounds)]


def shuffled(members: npt.NDArray[np.uint32], content: npt.NDArray[np.uint64], key: Sequence[object]) -> npt.NDArray[np.uint32]:
    """`members` (ascending indices into `content`) in the order of their keys under `key`, equal ones as they came."""
    seed = xxhash.xxh3_64_intdigest(canonical_json(list(key)).encode())
    keys = np.empty(len(members), np.uint64)
    _keys(members, content, np.uint64(seed), keys)
    order = np.argsort(keys)  # not stable, but three times as fast as the stable sort; copies of one text are put right below
    keys = keys[order]
    equal = np.flatnonzero(keys[1:] == keys[:-1])
    for run in np.split(equal, np.flatnonzero(np.diff(equal) > 1) + 1) if len(equal) else []:
        order[run[0] : run[-1] + 2].sort()
    return members[order]


@numba.njit(cache=True, nogil=True)
def _keys(members: Any, content: Any, seed: np.uint64, keys: Any) -> None:
    """xxh3-64 of the 16 bytes of each member's content (two little-endian words) under `seed`: the 9-to-16-byte branch of the specification."""
    low_word, high_word = np.uint64(0xFFFFFFFF), np.uint64(32)
    # Words 3 ^ 4 and 5 ^ 6 of the specification's default secret.
    flip_low = np.uint64(0x6782737BEA4239B9) + seed
    flip_high = np.uint64(0xAF56BC3B0996523A) - seed
    for i in range(len(members)):
        first = content[members[i], 0] ^ flip_low
        second = content[members[i], 1] ^ flip_high
        swapped = np.uint64(0)
        for byte in range(8):
            swapped = (swapped << np.uint64(8)) | ((first >> np.uint64(8 * byte)) & np.uint64(0xFF))
        a, b, c, d = first & low_word, first >> high_word, second & low_word, second >> high_word
        low = a * c
        cross = (low >> high_word) + ((b * c) & low_word) + a * d  # at most 2**64 - 1
        high = b * d + ((b * c) >> high_word) + (cross >> high_word)
        product = high ^ ((cross << high_word) | (low & low_word))
        mixed = np.uint64(16) + swapped + second + product
        mixed = (mixed ^ (mixed >> np.uint64(37))) * np.uint64(0x165667919E3779F9)
        keys[i] = mixed ^ (mixed >> np.uint64(32))


class Shortage(UserError):
    """A component has fewer tokens than the stages ask of it."""


class _Exhausted(Exception):
    """A component has no more documents that may be visited; `found` tokens of the stage were."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


class ComponentDraws:
    """One component's documents over all stages: where the cursor stands, how often each was visited, which are open."""

    def __init__(self, name: str, index: int, documents: Documents, visits: npt.NDArray[np.uint16], seed: int, cap: Fraction) -> None:
        """`visits` has an entry for every document, shared by all components: each document belongs to one."""
        belongs = documents.component == index
        members = np.flatnonzero(belongs & (documents.tokens > 0))
        self.name, self.seed, self.cap = name, seed, cap
        self.members = members.astype(np.uint32)
        self.documents = int(np.count_nonzero(belongs))
        self.tokens = int(documents.tokens[members].sum())
        self._documents, self._visits, self._most = documents, visits, math.ceil(cap)
        self._open: dict[int, int] = {}  # document: tokens read in its last visit
        self._pass, self._place, self._tail = -1, 0, -1
        self._order = np.zeros(0, np.uint32)

    @property
    def available(self) -> int:
        """Tokens the cap allows over all stages."""
        return math.floor(self.cap * self.tokens)

    def take(self, stage: str, draw: str, rounds: Sequence[int]) -> Drawn:
        """The pieces of one stage, whose rounds ask for so many tokens each."""
        try:
            if draw == "fresh":
                drawn = self._fresh(stage, rounds)
            elif draw == "fixed" and len(rounds) > 1:
                drawn = self._fixed(stage, rounds)
            else:
                # The end of a round is no reason to cut a document that goes on right after it.
                drawn = [self._cursor(sum(rounds))]
        except _Exhausted as short:
            most = f"max_epochs {float(self.cap):g} lets no document be visited more than {self._most} times"
            remedy = f"lower its weight, tokens or rounds there, raise max_epochs.{self.name}, or add documents"
            found = f"component '{self.name}' and finds {short.found:,}"
            raise Shortage(f"mixture: stage '{stage}' asks {sum(rounds):,} tokens of {found}: {most}; {remedy}") from None
        cuts = sum(self._ends_inside(pieces) for pieces in drawn)
        return Drawn(joined(drawn), cuts)

    def _cursor(self, asked: int, repeats: int = 0) -> Pieces:
        """Go on where the component's last draw by cursor stopped, its open tail first; reshuffle at the end of each pass.

        Only documents that may be visited `repeats` times more than this once are taken.
        """
        parts: list[Pieces] = []
        left = asked
        if self._tail in self._open:
            parts, _ = self._walk(np.array([self._tail], np.uint32), 0, left, repeats)
            left -= _tokens(parts)
        while left:
            if self._place == len(self._order):
                self._pass += 1
                self._order, self._place = shuffled(self.members, self._documents.content, [self.seed, self.name, self._pass]), 0
            from_start = self._place == 0
            more, self._place = self._walk(self._order, self._place, left, repeats)
            if from_start and not more:
                raise _Exhausted((asked - left) * (repeats + 1))
            parts += more
            left -= _tokens(more)
        pieces = joined(parts)
        if asked:
            self._tail = int(pieces.document[-1])
        return pieces

    def _fresh(self, stage: str, rounds: Sequence[int]) -> list[Pieces]:
        """Each round drawn anew from the whole component; a round larger than the component shuffles it again."""
        drawn = []
        for number, asked in enumerate(rounds):
            parts: list[Pieces] = []
            left, sweep = asked, 0
            while left:
                key = [self.seed, self.name, stage, number, *([sweep] if sweep else [])]
                more, _ = self._walk(shuffled(self.members, self._documents.content, key), 0, left)
                if not more:
                    raise _Exhausted(sum(rounds[:number]) + asked - left)
                parts += more
                left -= _tokens(more)
                sweep += 1
            drawn.append(joined(parts))
        return drawn

    def _fixed(self, stage: str, rounds: Sequence[int]) -> list[Pieces]:
        """The first round by cursor, then its documents again, shuffled anew. Rounds may differ by a token: all read the longest one's stretch."""
        longest = max(rounds)
        stretch = self._cursor(longest, len(rounds) - 1)
        shorter = stretch if rounds[0] == longest else self._give_back(stretch)
        drawn = [shorter]
        for number, asked in enumerate(rounds[1:], 1):
            pieces = self._repeat(stretch if asked == longest else shorter, [self.seed, self.name, stage, number])
            if pieces is None:
                raise _Exhausted(sum(rounds[:number]))
            drawn.append(pieces)
        return drawn

    def _give_back(self, stretch: Pieces) -> Pieces:
        """`stretch`, just drawn, without its last token."""
        document, start, length = int(stretch.document[-1]), int(stretch.start[-1]), int(stretch.length[-1])
        self._open[document] = start + length - 1
        if length > 1:
            return stretch._replace(length=np.append(stretch.length[:-1], np.uint32(length - 1)))
        if start == 0:
            self._visits[document] -= 1
            del self._open[document]
        return Pieces(stretch.document[:-1], stretch.start[:-1], stretch.length[:-1], stretch.epoch[:-1])

    def _repeat(self, stretch: Pieces, key: Sequence[object]) -> Pieces | None:
        """The same pieces as new visits, in the order of `key`; those of one document keep theirs. None if one was visited too often already."""
        members, member, count = np.unique(stretch.document, return_inverse=True, return_counts=True)
        earlier = self._visits[members]
        if (earlier + count > self._most).any():
            return None
        rank = np.empty(len(members), np.int64)
        rank[np.searchsorted(members, shuffled(members, self._documents.content, key))] = np.arange(len(members))
        order = np.argsort(rank[member], kind="stable")
        document, start, length = stretch.document[order], stretch.start[order], stretch.length[order]
        first = np.flatnonzero(np.diff(document, prepend=document[:1] + np.uint32(1)))
        occurrence = np.arange(len(document)) - np.repeat(first, np.diff(first, append=len(document)))
        self._visits[members] += count.astype(np.uint16)
        self._note_open(document, start, length)
        return Pieces(document, start, length, (earlier[member[order]] + occurrence).astype(np.uint16))

    def _walk(self, order: npt.NDArray[np.uint32], place: int, asked: int, repeats: int = 0) -> tuple[list[Pieces], int]:
        """Up to `asked` tokens of the documents from `place` on, no document twice in `order`; and the place after the last one taken."""
        parts = []
        while asked and place < len(order):
            document = order[place : place + _BLOCK]
            start = np.zeros(len(document), np.int64)
            for open_document, read in self._open.items():
                start[document == open_document] = read
            visits = self._visits[document]
            allowed = visits.astype(np.int64) + (start == 0) + repeats <= self._most  # to go on with an open visit is no new one
            length = np.where(allowed, self._documents.tokens[document] - start, 0)
            ends = np.cumsum(length)
            needed = int(np.searchsorted(ends, asked)) + 1
            document, start, length, visits = document[:needed], start[:needed], length[:needed], visits[:needed]
            length[-1] -= max(0, int(ends[len(document) - 1]) - asked)
            place += len(document)
            asked -= int(length.sum())
            some = length > 0
            document, start, length, visits = document[some], start[some], length[some], visits[some]
            self._visits[document] += start == 0
            self._note_open(document, start, length)
            if len(document):
                epoch = visits - (start > 0).astype(np.uint16)
                parts.append(Pieces(document, start.astype(np.uint32), length.astype(np.uint32), epoch))
        return parts, place

    def _note_open(self, document: npt.NDArray[np.uint32], start: npt.NDArray[Any], length: npt.NDArray[Any]) -> None:
        for read in [read for read in self._open if read in document]:
            del self._open[read]
        end = start.astype(np.int64) + length
        for inside in np.flatnonzero(end < self._documents.tokens[document]):
            self._open[int(document[inside])] = int(end[inside])

    def _ends_inside(self, pieces: Pieces) -> int:
        """How many pieces end inside their document: the last one of the draw, or none."""
        end = pieces.start.astype(np.int64) + pieces.length
        return int((end < self._documents.tokens[pieces.document]).sum())


def _tokens(parts: Sequence[Pieces]) -> int:
    return sum(int(part.length.sum(dtype=np.int64)) for part in parts)


def joined(parts: Sequence[Pieces]) -> Pieces:
    if len(parts) == 1:
        return parts[0]
    nothing = Pieces(np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.uint16))
    return Pieces(*(np.concatenate(columns) for columns in zip(nothing, *parts, strict=True)))
