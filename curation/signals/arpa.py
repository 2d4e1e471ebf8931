"""n-gram models as ARPA files, out and in: log10 P(w | h), the words, log10 of the back-off weight, one n-gram a line.

Out, every probability of ours has its place: the uniform mass of a word never seen is the unigram `<unk>`, and back-off does the rest. What an ARPA file cannot say: that the mass
belongs to each unknown word alone, so that its unigrams sum to less than one; which words there are (`curation.text.words`), so texts have to be split that way before another program
scores them; and more than seven digits. Lines are in the order of their words.

In, words have to be as `curation.text.words` splits texts: lower-case runs of letters and digits. N-grams of other words (capitals, punctuation, pieces of words) can never match and are left out,
`<unk>` inside an n-gram too; a model in which more than half of the words are such is refused. Every n-gram needs its context and its suffix in the file, as SRILM and KenLM write them.
"""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

import numpy as np

from curation.signals import ngram
from curation.text import words as split
from mixing import UserError

if TYPE_CHECKING:
    import pyarrow as pa

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
LONGEST = 5  # n-grams: the kernels' room
_NEVER = "-99"  # log10 P(<s>), as is the custom
_LN10 = math.log(10)


def write(model: ngram.Model, texts: pa.LargeStringArray, path: Path) -> None:
    """The model of `texts` as an ARPA file; holds the distinct n-grams of one length as text."""
    hashes, offsets = split.word_hashes(texts)
    names = _names(texts)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        sections = list(ngram.seen(hashes, offsets, model.order))
        file.write("\\data\\\n")
        for length, (grams, _) in enumerate(sections, 1):
            file.write(f"ngram {length}={len(grams) + 2 * (length == 1)}\n")
        for length, (grams, keys) in enumerate(sections, 1):
            logs, backoffs = (one / _LN10 for one in ngram.values(model, keys))
            spelled = [" ".join(names[hashed] for hashed in row) for row in grams.tolist()]
            lines = [
                f"{log:.7g}\t{name}\t{backoff:.7g}" if length < model.order else f"{log:.7g}\t{name}"
                for name, log, backoff in sorted(zip(spelled, logs.tolist(), backoffs.tolist(), strict=True))
            ]
            if length == 1:
                ((_,), (backoff,)) = ngram.values(model, np.array([ngram.BEGIN]))
                weight = f"\t{backoff / _LN10:.7g}" if model.order > 1 else ""
                lines = [f"{model.floor / _LN10:.7g}\t{UNKNOWN}", f"{_NEVER}\t{BEGIN}{weight}", *lines]
            file.write(f"\n\\{length}-grams:\n" + "".join(f"{line}\n" for line in lines))
        file.write("\n\\end\\\n")


def _names(texts: pa.LargeStringArray) -> dict[int, str]:
    """Every word of the texts by its hash."""
    import pyarrow as pa

    distinct = list(dict.fromkeys(word for text in texts.to_pylist() for word in split.words(text)))
    hashes, _ = split.word_hashes(pa.array(distinct, pa.large_string()))
    return {int(ngram.BEGIN): BEGIN, int(ngram.END): END, **dict(zip(hashes.tolist(), distinct, strict=True))}


def look(path: Path) -> list[int]:
    """The counts of n-grams that an ARPA file announces. A UserError where it is none, or of too high an order."""
    counts = []
    with _open(path) as lines:
        try:
            for line in lines:
                if line.startswith("\\1-grams:"):
                    break
                if line.startswith("ngram "):
                    counts.append(int(line.partition("=")[2]))
        except (UnicodeDecodeError, ValueError) as error:
            raise UserError(f"{path.name}: not an ARPA file: {error}") from None
    if not counts:
        raise UserError(f"{path.name}: not an ARPA file: it announces no n-grams before \\1-grams:")
    if len(counts) > LONGEST:
        raise UserError(f"{path.name}: an order of {len(counts)}; accepted: up to {LONGEST}")
    return counts


def read(path: Path) -> ngram.Model:
    """The model in an ARPA file."""
    sections = _sections(path, look(path))
    hashes = _hashes([gram for (gram,), _, _ in sections[0]])
    keys, logs, backoffs = [], [], []
    floor, known = None, np.zeros(0, np.uint64)
    for length, section in enumerate(sections, 1):
        rows, mine, weights = [], [], []
        for gram, log, backoff in section:
            if gram == (UNKNOWN,):
                floor = log * _LN10
            elif all(word in hashes for word in gram):
                rows.append([hashes[word] for word in gram])
                mine.append(0.0 if gram == (BEGIN,) else log * _LN10)
                weights.append(backoff * _LN10)
        grams = np.array(rows, np.uint64).reshape(-1, length)
        made = ngram.keys_of(grams)
        if length > 1 and not (np.isin(ngram.keys_of(grams[:, 1:]), known).all() and np.isin(ngram.keys_of(grams[:, :-1]), known).all()):
            raise UserError(
                f"{path.name}: some {length}-grams stand there without their suffix or context; accepted: files as KenLM and SRILM write them"
            )
        known = made
        keys.append(made)
        logs.append(np.array(mine))
        backoffs.append(np.array(weights))
    if floor is None:
        raise UserError(f"{path.name}: no {UNKNOWN} among its words; without it a word it does not know has no probability")
    return ngram.model_of(len(sections), len(hashes) - 1, floor, np.concatenate(keys), np.concatenate(logs), np.concatenate(backoffs))


def _hashes(vocabulary: list[str]) -> dict[str, int]:
    """The hashes of those that are words as texts are split here."""
    import pyarrow as pa

    own = [word for word in vocabulary if split.words(word) == [word]]
    others = [word for word in vocabulary if word not in (BEGIN, END, UNKNOWN)]
    if 2 * len(own) < len(others):
        odd = next(word for word in others if split.words(word) != [word])
        raise UserError(
            f"{len(others) - len(own):,} of its {len(others):,} words, {odd!r} among them, are no words here; accepted: models of lower-case words without punctuation"
        )
    hashes, _ = split.word_hashes(pa.array(own, pa.large_string()))
    return {BEGIN: int(ngram.BEGIN), END: int(ngram.END), **dict(zip(own, hashes.tolist(), strict=True))}


def _sections(path: Path, counts: list[int]) -> list[list[tuple[tuple[str, ...], float, float]]]:
    """Per length the n-grams with log10 probability and back-off."""
    sections: list[list[tuple[tuple[str, ...], float, float]]] = [[] for _ in counts]
    length = 0
    with _open(path) as lines:
        try:
            for line in lines:
                parts = line.split()
                if not parts:
                    continue
                if line.startswith("\\"):
                    length = int(parts[0][1:].partition("-")[0]) if parts[0].endswith("-grams:") else 0
                elif length:
                    backoff = float(parts[length + 1]) if len(parts) > length + 1 else 0.0
                    sections[length - 1].append((tuple(parts[1 : length + 1]), float(parts[0]), backoff))
        except (UnicodeDecodeError, ValueError, IndexError) as error:
            raise UserError(f"{path.name}: not an ARPA file: {error}") from None
    if [len(section) for section in sections] != counts:
        raise UserError(
            f"{path.name}: it announces {counts} n-grams and holds {[len(section) for section in sections]}; it may have been cut"
        )
    return sections


def _open(path: Path) -> TextIO:
    raw = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 (the wrapper closes it)
    return io.TextIOWrapper(cast(BinaryIO, raw), encoding="utf-8", newline="\n")
