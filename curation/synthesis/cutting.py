"""Cutting a long document into passages that leave room for an answer.

In: a text and a limit in tokens of the recipe's tokenizer. Out: passages in their order, none longer than the limit, cut between paragraphs, else between sentences, else anywhere between
words or characters. Only white space between passages is lost. A pure function of the text, the limit and the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from curation.text.tokenizer import Encoder

_PARAGRAPHS = re.compile(r"(?:\r?\n[ \t]*){2,}")
_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])|\n+")

_UNSPACED = re.compile(r"(?<=[。！？；]) ")


def passages(text: str, tokens: int, encoder: Encoder, most: int) -> list[str]:
    """At most `most` passages of a text, evenly spread over it."""
    found = _packed(_PARAGRAPHS.split(text.strip()), "\n\n", tokens, encoder)
    if len(found) <= most:
        return found
    return [found[number * len(found) // most] for number in range(most)]


def _packed(pieces: Sequence[str], joint: str, tokens: int, encoder: Encoder) -> list[str]:
    """Neighbouring pieces put together while they fit; a piece that is too long by itself is cut further."""
    pieces = [piece.strip() for piece in pieces if piece.strip()]
    counts = _counted(pieces, encoder)
    between = 2 if joint == "\n\n" else 1
    made: list[str] = []
    open_pieces: list[str] = []
    held = 0
    for piece, count in zip(pieces, counts, strict=True):
        if open_pieces and held + between + count > tokens:
            made.append(_joined(open_pieces, joint))
            open_pieces, held = [], 0
        if count > tokens:
            made += _finer(piece, joint, tokens, encoder)
        else:
            held += count + (between if open_pieces else 0)
            open_pieces.append(piece)
    return [*made, _joined(open_pieces, joint)] if open_pieces else made


def _joined(pieces: Sequence[str], joint: str) -> str:
    return joint.join(pieces) if joint != " " else _UNSPACED.sub("", " ".join(pieces))


def _finer(piece: str, joint: str, tokens: int, encoder: Encoder) -> list[str]:
    if joint == "\n\n":
        return _packed(_SENTENCES.split(piece), " ", tokens, encoder)
    middle = piece.rfind(" ", 1, len(piece) // 2 + 1)
    middle = middle if middle > 0 else len(piece) // 2
    if middle == 0:
        return [piece]
    halves = [half.strip() for half in (piece[:middle], piece[middle:]) if half.strip()]
    return [
        part
        for half, count in zip(halves, _counted(halves, encoder), strict=True)
        for part in ([half] if count <= tokens else _finer(half, joint, tokens, encoder))
    ]


def _counted(pieces: Sequence[str], encoder: Encoder) -> list[int]:
    _, offsets = encoder.encode(pieces)
    counts: list[int] = (offsets[1:] - offsets[:-1]).tolist()
    return counts
