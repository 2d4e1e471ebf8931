"""For ablations: a known share of wrong answers, to see how much a training run minds (30 % were found harmless and more than 50 % harmful, arXiv 2407.18743).

Which documents are corrupted follows from the seed and their keys alone: exactly the nearest whole number to the share of all of them, and a smaller share's are among a larger one's. A corrupted
document gets the answer of another, the next in the same order whose answer is different, whatever the share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import xxhash

from mixing import UserError


def swapped(keys: Sequence[str], answers: Sequence[str], share: float, seed: int) -> dict[str, str]:
    """The wrong answers of the documents that get one, by key. Keys are distinct."""
    order = sorted(range(len(keys)), key=lambda index: (xxhash.xxh3_64_intdigest(f"corrupt {seed} {keys[index]}".encode()), keys[index]))
    count = math.floor(Fraction(str(share)) * len(keys) + Fraction(1, 2))
    if count and len(set(answers)) < 2:
        raise UserError(f"synthesize.corrupt: all {len(keys):,} documents have the same answer, so none can get another's; leave it out")
    donor = dict(zip(order, _next_different(order, answers), strict=True)) if count else {}
    return {keys[index]: answers[donor[index]] for index in order[:count]}


def _next_different(order: Sequence[int], answers: Sequence[str]) -> list[int]:
    """For each document in `order`, the next one, round and round, with another answer; linear, from the back over two rounds."""
    found = [0] * len(order)
    following = order[0]
    other: int | None = None
    for place in range(2 * len(order) - 1, -1, -1):
        index = order[place % len(order)]
        if answers[index] != answers[following]:
            other = following
        if place < len(order):
            assert other is not None
            found[place] = other
        following = index
    return found
