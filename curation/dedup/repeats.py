"""Text that several documents have in common: repeated paragraphs, and repeated spans of words.

A *paragraph* lies between blank lines (lines of spaces and tabs alone), or is a line. Paragraphs are equal if their sequences of words are (`curation.text.words`, as for
`exact` with `by: normalized`); those without a word are nobody's and count nowhere. The value of a document is the share of its characters, white space left out, that stands in
paragraphs which at least so many *documents* hold, however often each: a line that one document repeats is no repetition. A *span* is so many consecutive words. Every one is looked at,
none is sampled: whatever run of words of this length or more stands in at least so many documents is counted whole, in each of them, and nothing else is. The value is the share of a
document's words in such spans; 0 for a document that is shorter than one.

Null for a document without a word. Counted are the documents alive, each once. A document that is not among them (one held out) gets the value that it would have if it were: it
counts for itself alone. Paragraphs and spans are told by 64 bits: two different ones fall together with probability 2^-64 per pair.

In: shards, and sizes that bound memory. A first pass writes every document's distinct keys as sorted runs, of a key at most `at_least` times per run; ranges of them on disk are counted one
by one; a second pass over the texts looks the keys up. Disk: 8 bytes a distinct paragraph, or a word. Nothing depends on the order of shards, on processes or on ranges.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from curation.dedup.minhash import sorted_sets
from curation.dedup.runs import END, RANGE_BYTES, Range, Run, gather, open_run, ranges
from curation.engine.atomic_files import save
from curation.text.words import WORDS_VERSION, Bytes, Hashes, Offsets, hash_words, kernel, text_buffers

REPEATS_VERSION = f"1/words-{WORDS_VERSION}"
_CHUNK = 4 << 20  # bytes of text that are looked at at once, at least one document
_FOLD = np.uint64(0xD6E8FEB86659FD93)
_MIX_A = np.uint64(0xFF51AFD7ED558CCD)
_MIX_B = np.uint64(0xC4CEB9FE1A85EC53)
_BASE = np.uint64(0x9E3779B97F4A7C15)

Shares = npt.NDArray[np.float64]


class ParagraphsConfig(BaseModel):
    """The share of a document's characters in paragraphs that several documents hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["repeated_paragraphs"]
    at_least: int = Field(
        3, ge=2, le=1000, description="in how many documents, itself among them, a paragraph must stand to be a repeated one"
    )
    separated_by: Literal["blank_line", "line"] = Field("blank_line", description="`line` takes every line for a paragraph")


class SpansConfig(BaseModel):
    """The share of a document's words in spans of words that several documents hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["repeated_spans"]
    words: int = Field(50, ge=5, le=1000, description="how long a run of equal words must be")
    at_least: int = Field(2, ge=2, le=1000, description="in how many documents, itself among them, it must stand")


RepeatsConfig = ParagraphsConfig | SpansConfig
REPEATS: dict[str, type[ParagraphsConfig] | type[SpansConfig]] = {"repeated_paragraphs": ParagraphsConfig, "repeated_spans": SpansConfig}


class Texts(Protocol):
    """Documents of one shard, at positions 0 to n - 1; picklable. `spans` are the ranges of positions that are read together."""

    @property
    def name(self) -> str: ...

    def spans(self) -> list[tuple[int, int]]: ...

    def texts(self, positions: npt.NDArray[np.int64]) -> pa.LargeStringArray: ...


# --- one document


@kernel
def _cut(data: Bytes, offsets: Offsets, by_line: bool, cuts: Offsets, places: Offsets) -> int:
    """Fills `cuts` with the first byte of every paragraph, from which blank lines before it are not left out, and `places` with the first of each document; returns how many."""
    count = 0
    for document in range(len(offsets) - 1):
        places[document] = count
        at = offsets[document]
        end = offsets[document + 1]
        blank_before = True
        worded = False
        while at < end:
            begin = at
            blank = True
            while at < end and data[at] != 10:
                blank &= data[at] == 32 or data[at] == 9 or data[at] == 13
                at += 1
            at += 1
            if begin == offsets[document] or by_line or (worded and blank_before and not blank):
                cuts[count] = begin
                count += 1
            worded |= not blank
            blank_before = blank
    places[len(offsets) - 1] = count
    return count


@kernel
def _weigh(data: Bytes, cuts: Offsets) -> npt.NDArray[np.int64]:
    """The characters of every piece between `cuts`, without spaces, tabs and line ends."""
    out = np.zeros(len(cuts) - 1, np.int64)
    for piece in range(len(cuts) - 1):
        for at in range(cuts[piece], cuts[piece + 1]):
            byte = data[at]
            out[piece] += (byte & 0xC0) != 0x80 and byte != 32 and byte != 9 and byte != 10 and byte != 13
    return out


@kernel
def _mixed(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> np.uint64(33))) * _MIX_A
    value = (value ^ (value >> np.uint64(33))) * _MIX_B
    return value ^ (value >> np.uint64(33))


@kernel
def _sequence_keys(hashes: Hashes, places: Offsets) -> Hashes:
    """The key of every sequence of words."""
    out = np.empty(len(places) - 1, np.uint64)
    for piece in range(len(out)):
        value = _BASE
        for at in range(places[piece], places[piece + 1]):
            value = (value ^ hashes[at]) * _FOLD
            value ^= value >> np.uint64(32)
        out[piece] = _mixed(value)
    return out


@kernel
def _window_keys(hashes: Hashes, places: Offsets, words: int, out: Hashes, out_places: Offsets) -> int:
    """Fills `out` with the key of every window of so many words, by a rolling polynomial modulo 2^64; returns how many."""
    power = np.uint64(1)
    for _ in range(words - 1):
        power *= _BASE
    count = 0
    for document in range(len(places) - 1):
        out_places[document] = count
        first = places[document]
        value = np.uint64(0)
        for at in range(first, places[document + 1]):
            if at - first >= words:
                value -= hashes[at - words] * power
            value = value * _BASE + hashes[at]
            if at - first >= words - 1:
                out[count] = _mixed(value)
                count += 1
    out_places[len(places) - 1] = count
    return count


class Pieces(NamedTuple):
    """Of documents one after the other: the keys of their paragraphs or spans, the n + 1 offsets into them, and what they are a share of. `weights` are the characters of each
    paragraph, nothing for spans, whose documents have `words`."""

    keys: Hashes
    offsets: Offsets
    weights: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


def pieces(config: RepeatsConfig, texts: pa.LargeStringArray) -> Pieces:
    """What the texts are compared by."""
    data, offsets = text_buffers(texts)
    if isinstance(config, SpansConfig):
        hashes, places = hash_words(data, offsets)
        keys, spans = np.empty(len(hashes), np.uint64), np.empty(len(places), np.int64)
        count = _window_keys(hashes, places, config.words, keys, spans)
        return Pieces(keys[:count], spans, np.empty(0, np.int64), np.diff(places))
    room = int(np.count_nonzero(data[offsets[0] : offsets[-1]] == 10)) + len(offsets)
    cuts, places = np.empty(room, np.int64), np.empty(len(offsets), np.int64)
    count = _cut(data, offsets, config.separated_by == "line", cuts, places)
    cuts[count] = offsets[-1]
    hashes, ends = hash_words(data, cuts[: count + 1])
    worded = np.diff(ends) > 0
    before = np.concatenate([[0], np.cumsum(worded)])
    return Pieces(_sequence_keys(hashes, ends)[worded], before[places], _weigh(data, cuts[: count + 1])[worded], np.empty(0, np.int64))


@kernel
def _covered(repeated: npt.NDArray[np.bool_], offsets: Offsets, words: int) -> npt.NDArray[np.int64]:
    """Per document the words that stand in a repeated window of so many."""
    out = np.zeros(len(offsets) - 1, np.int64)
    for document in range(len(out)):
        done = offsets[document]
        for at in range(offsets[document], offsets[document + 1]):
            if repeated[at]:
                out[document] += at + words - max(done, at)
                done = at + words
    return out


def shares(config: RepeatsConfig, found: Pieces, repeated: npt.NDArray[np.bool_]) -> Shares:
    """The value of every document, NaN where it has none, if these keys are `repeated` ones."""
    if isinstance(config, SpansConfig):
        part, whole = _covered(repeated, found.offsets, config.words), found.words
    else:
        ends = np.concatenate([[0], np.cumsum(np.where(repeated, found.weights, 0))])
        part, whole = np.diff(ends[found.offsets]), np.diff(np.concatenate([[0], np.cumsum(found.weights)])[found.offsets])
    with np.errstate(invalid="ignore"):
        return part / whole


# --- all documents


def _chunks(config: RepeatsConfig, shard: Texts) -> Iterator[Pieces]:
    """The documents of a shard in their order, some MB of text at a time."""
    for first, end in shard.spans():
        texts = shard.texts(np.arange(first, end))
        offsets = text_buffers(texts)[1]
        at = 0
        while at < len(texts):
            more = max(int(np.searchsorted(offsets, offsets[at] + np.int64(_CHUNK), side="right")) - 1, at + 1)
            yield pieces(config, texts.slice(at, more - at))
            at = more


class Repeated(NamedTuple):
    """Keys of one range, sorted: those that enough documents have, and those that one document more would have."""

    range: Range
    enough: Path
    nearly: Path


def find_repeated(
    config: RepeatsConfig, shards: Sequence[Texts], scratch: Path, run: Run, range_bytes: int = RANGE_BYTES
) -> list[Repeated]:
    """The keys that at least `at_least` documents of the shards have, range by range, in files in `scratch`."""
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed build left
    scratch.mkdir(parents=True)
    written = run(_write_keys, [(config, shard, scratch / f"keys-{number}", range_bytes) for number, shard in enumerate(shards)])
    keys = [path for paths in written for path in paths]
    cuts = ranges(keys, range_bytes)
    found: list[Repeated] = run(_count, [(keys, config.at_least, cut, scratch / f"repeated-{number}") for number, cut in enumerate(cuts)])
    for path in keys:
        path.unlink()
    return found


def _write_keys(config: RepeatsConfig, shard: Texts, path: Path, range_bytes: int) -> list[Path]:
    """Task: the runs of one shard, every document's distinct keys; of each key no more than have to be counted."""
    written: list[Path] = []
    held: list[Hashes] = []
    chunks = _chunks(config, shard)
    for found in itertools.chain(chunks, [None]):
        if found is not None:
            held.append(sorted_sets(found.keys, found.offsets)[0])
        if held and (found is None or sum(one.nbytes for one in held) > range_bytes // 4):
            keys = np.sort(np.concatenate(held))
            needed = np.ones(len(keys), bool)
            needed[config.at_least :] = keys[config.at_least :] != keys[: -config.at_least]
            written.append(path.with_name(f"{path.name}-{len(written)}.npy"))
            save(written[-1], keys[needed][None])
            held = []
    return written


def _count(keys: Sequence[Path], at_least: int, cut: Range, path: Path) -> Repeated:
    """Task: one range of keys."""
    found = np.sort(gather(keys, *cut, 1)[0], kind="stable")  # merges the runs, in a half to a fiftieth of the time
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(found), 1), bool), found[1:] != found[:-1]]))
    times = np.diff(np.append(starts, len(found)))
    made = Repeated(cut, path.with_name(f"{path.name}-enough.npy"), path.with_name(f"{path.name}-nearly.npy"))
    save(made.enough, found[starts[times >= at_least]][None])
    save(made.nearly, found[starts[times == at_least - 1]][None])
    return made


def shares_in(config: RepeatsConfig, shard: Texts, repeated: Sequence[Repeated], counted: npt.NDArray[np.bool_]) -> Shares:
    """The value of every document of a shard, NaN for none; `counted` are those that `find_repeated` was given."""
    values, at = [np.empty(0)], 0
    for found in _chunks(config, shard):
        here = counted[at : at + len(found.offsets) - 1]
        at += len(here)
        values.append(shares(config, found, _look_up(found, repeated, np.repeat(here, np.diff(found.offsets)))))
    return np.concatenate(values)


def _look_up(found: Pieces, repeated: Sequence[Repeated], counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which keys are repeated, of documents that were counted and of others."""
    order = np.argsort(found.keys)
    keys = found.keys[order]
    out = np.zeros(len(keys), bool)
    for (low, high), enough, nearly in repeated:
        first = int(np.searchsorted(keys, np.uint64(low)))
        last = len(keys) if high >= END else int(np.searchsorted(keys, np.uint64(high)))
        mine, to = keys[first:last], order[first:last]
        out[to] = _within(mine, enough)
        if not counted.all():
            out[to] |= ~counted[to] & _within(mine, nearly)
    return out


def _within(keys: Hashes, path: Path) -> npt.NDArray[np.bool_]:
    """Which of sorted keys are in a file of sorted keys."""
    there = open_run(path)[0]
    if not len(there):
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(there, keys), len(there) - 1)
    found: npt.NDArray[np.bool_] = there[at] == keys
    return found
