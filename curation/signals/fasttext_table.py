"""fastText scoring from a table: the same probabilities as the library's, from one float per feature and label instead of a vector.

A supervised model with a softmax averages the input vectors of a text's features (words, word n-grams, character n-grams) and multiplies by the output
matrix. Nothing between the two is not linear, so the product can be taken first, once per feature: `E @ W.T`. Logits count only up to a constant, so label 0's
are subtracted and its column is left out: two labels leave one float a feature, and a model of 2 M buckets and 100 dimensions shrinks from 800 MB to 8 MB. With more
labels than dimensions the vectors themselves are the smaller table, and the output matrix is applied to their average.

What the library does to a text is done here to its bytes: words end at space, tab, newline, vertical tab, form feed, carriage return and NUL; each is hashed by FNV-1a over signed
bytes; unknown words count by their character n-grams and in word n-grams; the line ends with the word `</s>`; labels are passed over. Character n-grams of known words are
summed when the table is made. The library adds 1e-5 to a probability before it takes its logarithm; here it is left away. Everything else is equal to float rounding.

A word `</s>` inside a text would end it for the library and a line break does; here both are passed over: the whole text is read.

On disk: `table.npy` and three small arrays, memory-mapped by every worker, so that a machine holds one copy. Sums run in a fixed order in float64: a table has the same bytes
wherever it is made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.signals.fasttext_file import SOFTMAX, ModelFile
from curation.text.words import Bytes, Hashes, Offsets, kernel, text_buffers

if TYPE_CHECKING:
    import pyarrow as pa

Singles = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]

HEADER, ARRAYS = "table.json", ("table", "counts", "slots", "remap", "weights")
EOS, LABEL = b"</s>", b"__label__"
_FNV_OFFSET, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_NGRAM = np.uint64(116049371)
_SIGN = np.uint32(0xFFFFFF00)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_UPPER = np.uint64(0xFFFFFFFF00000000)
_SPREAD, _MIX = np.uint64(0xD6E8FEB86659FD93), np.uint64(0x9E3779B97F4A7C15)
_EMPTY = np.uint64(0)
_FEW = 1 << 13  # buckets from which on a quotient below 2**64 / buckets is exact to within one in float64
_ROWS_AT_ONCE = 1 << 16
_EOS_HASH = np.uint32(0xD79C9359)  # fnv(EOS)
_EOS_PACKED = np.uint64(int.from_bytes(EOS, "little"))
_LABEL_PACKED = np.uint64(int.from_bytes(LABEL[:8], "little"))
_LABEL_LAST = np.uint8(LABEL[8])


class Table(NamedTuple):
    """A model ready to score. `counts` is empty, or says of how many vectors a word's row is the sum."""

    labels: list[str]
    words: int
    word_ngrams: int
    buckets: int
    minn: int
    maxn: int
    end: int  # the number of the word `</s>`, or -1
    table: Singles  # (rows, width): words, then buckets
    counts: Numbers
    slots: Hashes  # a power of two: half a word's 64-bit key, and below it the word's number plus one; 0: empty
    remap: Numbers  # empty, or per bucket its row less `words`, -1 for none
    weights: Singles  # (labels, width): logits = mean of rows @ weights.T


def is_exact(model: ModelFile) -> bool:
    """Whether a table gives what the library would: only the plain softmax is linear up to its end."""
    return model.settings.loss == SOFTMAX


def make(model: ModelFile) -> Table:
    """The table of a model."""
    assert is_exact(model)
    settings, words = model.settings, model.words
    output = model.output.rows(0, model.output.shape[0])
    labels = len(output)
    if labels - 1 <= settings.dim:
        factor = output[1:].astype(np.float64) - output[0].astype(np.float64)
        weights = np.concatenate([np.zeros((1, labels - 1), np.float32), np.eye(labels - 1, dtype=np.float32)])
    else:
        factor, weights = np.eye(settings.dim), output.astype(np.float32)
    table = np.empty((model.input.shape[0], len(factor)), np.float32)
    for first in range(0, len(table), _ROWS_AT_ONCE):
        end = min(first + _ROWS_AT_ONCE, len(table))
        if labels - 1 <= settings.dim:
            _multiply(np.ascontiguousarray(model.input.rows(first, end)), factor, table[first:end])
        else:
            table[first:end] = model.input.rows(first, end)
    end_of_text = model.entries[:words].index(EOS) if EOS in model.entries[:words] else -1
    made = Table(
        model.labels, words, settings.word_ngrams, settings.bucket, settings.minn, settings.maxn, end_of_text,
        table, np.zeros(0, np.int32), _dictionary(model.entries), _remap(model), weights,
    )  # fmt: skip
    return made if settings.maxn <= 0 else _with_characters(made, model.entries[:words])


def save(table: Table, folder: Path) -> None:
    """Writes HEADER and the arrays into `folder`."""
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(table, name), allow_pickle=False)
    header = {name: value for name, value in table._asdict().items() if name not in ARRAYS}
    (folder / HEADER).write_text(json.dumps(header, sort_keys=True) + "\n", encoding="utf-8")


def load(folder: Path) -> Table:
    """The table in `folder`, memory-mapped."""
    header: dict[str, Any] = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    return Table(**header | {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in ARRAYS})


def probabilities(table: Table, texts: pa.LargeStringArray) -> Floats:
    """f64[texts, labels] in the order of `table.labels`; a text in which nothing is known is a row of NaN."""
    data, offsets = text_buffers(texts)
    means = np.empty((len(offsets) - 1, table.table.shape[1]))
    _mean_rows(
        data, offsets, table.slots, table.table, table.counts, table.remap,
        table.words, table.end, table.word_ngrams, table.buckets, table.minn, table.maxn, means,
    )  # fmt: skip
    logits = np.empty((len(means), len(table.labels)))
    _multiply(means, table.weights.astype(np.float64), logits)  # not by a library, whose sums depend on the number of rows
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def fnv(word: bytes) -> int:
    """fastText's hash of a word: FNV-1a, 32 bits, over bytes taken as signed."""
    value = int(_FNV_OFFSET)
    for byte in word:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * int(_FNV_PRIME)) & 0xFFFFFFFF
    return value


# --- making a table


def _remap(model: ModelFile) -> Numbers:
    if model.pruned is None:
        return np.zeros(0, np.int32)
    remap = np.full(max(1, model.settings.bucket), -1, np.int32)
    remap[model.pruned[:, 0]] = model.pruned[:, 1]
    return remap


def _dictionary(entries: list[bytes]) -> Hashes:
    """The slots of all entries, labels among them."""
    slots = np.zeros(1 << max(4, (2 * len(entries) - 1).bit_length()), np.uint64)
    letters, places = _joined(entries)
    heads = np.array([int.from_bytes(entry[:8], "little") for entry in entries], np.uint64)
    _fill(letters, places, heads, slots)
    return slots


def _joined(words: list[bytes]) -> tuple[Bytes, Integers]:
    places = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(word) for word in words], dtype=np.int64)])
    return np.frombuffer(b"".join(words), np.uint8), places


@kernel
def _hash(data: Bytes, first: int, end: int) -> np.uint32:
    value = _FNV_OFFSET
    for at in range(first, end):
        byte = np.uint32(data[at])
        value = np.uint32((value ^ (byte | _SIGN if byte >= 128 else byte)) * _FNV_PRIME)
    return value


@kernel
def _key(head: np.uint64, value: np.uint32) -> np.uint64:
    """64 bits that stand for a word in the dictionary: of its first eight bytes and its hash. The upper ones say where it is looked for, the lower half that it is found."""
    return (head ^ np.uint64(value) * _SPREAD) * _MIX


@kernel
def _home(key: np.uint64, slots: int) -> np.int64:
    return np.int64(key >> _HALF) & (slots - 1)


@kernel
def _fill(letters: Bytes, places: Integers, heads: Hashes, slots: Hashes) -> None:
    for number in range(places.size - 1):
        key = _key(heads[number], _hash(letters, places[number], places[number + 1]))
        at = _home(key, slots.size)
        while slots[at] != 0:
            at = (at + 1) & (slots.size - 1)
        slots[at] = key << _HALF | np.uint64(number + 1)


@kernel
def _multiply(rows: Singles | Floats, factor: Floats, out: Singles | Floats) -> None:
    """rows @ factor.T, each sum in the order of the columns."""
    for row in range(rows.shape[0]):
        for label in range(factor.shape[0]):
            total = 0.0
            for column in range(rows.shape[1]):
                total += rows[row, column] * factor[label, column]
            out[row, label] = total


def _with_characters(table: Table, entries: list[bytes]) -> Table:
    """The rows of known words become the sums over the word and its character n-grams."""
    letters, places = _joined([b"<" + entry + b">" for entry in entries])
    sums, counts = table.table[: table.words].astype(np.float64), np.ones(table.words, np.int32)
    _add_characters(letters, places, table.table, table.remap, table.words, table.end, table.buckets, table.minn, table.maxn, sums, counts)
    rows = table.table.copy()
    rows[: table.words] = sums
    return table._replace(table=rows, counts=counts)


@kernel
def _add_characters(
    letters: Bytes, places: Integers, table: Singles, remap: Numbers, words: int, end: int, buckets: int, minn: int, maxn: int, sums: Floats, counts: Numbers
) -> None:  # fmt: skip
    for number in range(places.size - 1):
        if number != end:
            counts[number] += _characters(
                letters, places[number], places[number + 1], table, remap, words, buckets, minn, maxn, sums[number]
            )


# --- scoring: a text's words first, then their rows, then the rows of their n-grams, each a loop that does nothing else


@kernel
def _read_words(
    data: Bytes, at: int, stop: int, slots: Hashes, words: int, hashes: npt.NDArray[np.uint32], numbers: Integers, spans: Integers
) -> int:
    """The words of data[at:stop]: their hashes, their numbers (-1: unknown) and where they stand; returns how many. Labels and `</s>` are passed over."""
    found = 0
    while at < stop:
        first, value, head, bits = at, _FNV_OFFSET, np.uint64(0), np.uint64(0)
        while at < stop:
            byte = np.uint32(data[at])
            if byte <= 32 and (byte == 32 or byte == 0 or (byte >= 9 and byte <= 13)):
                break
            value = np.uint32((value ^ (byte | _SIGN if byte >= 128 else byte)) * _FNV_PRIME)
            if bits < 64:
                head |= np.uint64(byte) << bits
                bits += np.uint64(8)
            at += 1
        size = at - first
        at += 1
        if size == 0 or (size == 4 and head == _EOS_PACKED):
            continue
        number = np.int64(-1)
        key = _key(head, value)
        slot, tag = _home(key, slots.size), key << _HALF
        while True:
            there = slots[slot]
            if (there ^ tag) <= _LOW:
                number = np.int64(there & _LOW) - 1
                break
            if there == _EMPTY:
                break
            slot = (slot + 1) & (slots.size - 1)
        if number >= words or (number < 0 and head == _LABEL_PACKED and size > 8 and data[first + 8] == _LABEL_LAST):
            continue
        hashes[found], numbers[found], spans[found] = value, number, first
        found += 1
    return found


@kernel
def _add_rows(rows: Integers, count: int, table: Singles, sums: Floats) -> int:
    """Adds the rows that are not negative; returns how many."""
    found = 0
    if table.shape[1] == 1:
        total = 0.0
        for at in range(count):
            if rows[at] >= 0:
                total += table[rows[at], 0]
                found += 1
        sums[0] += total
        return found
    for at in range(count):
        if rows[at] >= 0:
            found += 1
            for column in range(sums.size):
                sums[column] += table[rows[at], column]
    return found


@kernel
def _ngram_rows(
    hashes: npt.NDArray[np.uint32], count: int, length: int, chain: Hashes, words: int, buckets: int, remap: Numbers, rows: Integers
) -> None:
    """The rows of the n-grams of `length` words that begin at each word but the last ones, from the hashes `chain` of those one word shorter, which they replace."""
    inverse = 1.0 / buckets
    for at in range(count - length + 1):
        word = np.uint64(hashes[at + length - 1])
        word |= _UPPER * (word >> np.uint64(31))  # the library keeps a word's hash as i32
        value = chain[at] * _NGRAM + word
        chain[at] = value
        if buckets < _FEW:
            row = np.int64(value % np.uint64(buckets))
        else:  # the remainder by a multiplication: the quotient is right to within one
            row = np.int64(value - np.uint64(np.float64(value) * inverse) * np.uint64(buckets))
            if row < 0:
                row += buckets
            elif row >= buckets:
                row -= buckets
        rows[at] = row + words
    if remap.size:
        for at in range(count - length + 1):
            row = np.int64(remap[rows[at] - words])
            rows[at] = row + words if row >= 0 else -1


@kernel
def _characters(
    data: Bytes, first: int, end: int, table: Singles, remap: Numbers, words: int, buckets: int, minn: int, maxn: int, sums: Floats
) -> int:
    """Adds the rows of the character n-grams of the bracketed word data[first:end]; returns how many."""
    found = 0
    for start in range(first, end):
        if (data[start] & 0xC0) == 0x80:
            continue
        value = _FNV_OFFSET
        at = start
        for length in range(1, maxn + 1):
            if at >= end:
                break
            while True:
                byte = np.uint32(data[at])
                value = np.uint32((value ^ (byte | _SIGN if byte >= 128 else byte)) * _FNV_PRIME)
                at += 1
                if at >= end or (data[at] & 0xC0) != 0x80:
                    break
            if length < minn or (length == 1 and (start == first or at == end)):
                continue
            bucket = np.int64(value % np.uint32(buckets))
            if remap.size:
                bucket = np.int64(remap[bucket])
                if bucket < 0:
                    continue
            found += 1
            for column in range(sums.size):
                sums[column] += table[words + bucket, column]
    return found


@kernel
def _add_unknown(
    data: Bytes, stop: int, numbers: Integers, spans: Integers, count: int, table: Singles, remap: Numbers, words: int, buckets: int, minn: int, maxn: int, sums: Floats
) -> int:  # fmt: skip
    """Adds the character n-grams of unknown words; returns how many."""
    found = 0
    for at in range(count):
        if numbers[at] < 0:
            end = spans[at]
            while end < stop and not (data[end] <= 32 and (data[end] == 32 or data[end] == 0 or (data[end] >= 9 and data[end] <= 13))):
                end += 1
            bracketed = np.empty(end - spans[at] + 2, np.uint8)
            bracketed[0], bracketed[-1] = 60, 62  # < and >
            bracketed[1:-1] = data[spans[at] : end]
            found += _characters(bracketed, 0, bracketed.size, table, remap, words, buckets, minn, maxn, sums)
    return found


@kernel
def _mean_rows(
    data: Bytes, offsets: Offsets, slots: Hashes, table: Singles, counts: Numbers, remap: Numbers,
    words: int, end_word: int, word_ngrams: int, buckets: int, minn: int, maxn: int, means: Floats,
) -> None:  # fmt: skip
    room = 2 + (np.diff(offsets).max() if offsets.size > 1 else 0) // 2
    hashes, chain = np.empty(room, np.uint32), np.empty(room, np.uint64)
    numbers, spans = np.empty(room, np.int64), np.empty(room, np.int64)
    sums = np.empty(table.shape[1])
    for document in range(offsets.size - 1):
        sums[:] = 0
        stop = offsets[document + 1]
        count = _read_words(data, offsets[document], stop, slots, words, hashes, numbers, spans)
        features = 0
        if maxn > 0:
            features += _add_unknown(data, stop, numbers, spans, count, table, remap, words, buckets, minn, maxn, sums)
        hashes[count], numbers[count] = _EOS_HASH, end_word
        count += 1
        features += _add_rows(numbers, count, table, sums)
        if counts.size:
            for at in range(count):
                if numbers[at] >= 0:
                    features += counts[numbers[at]] - 1
        if word_ngrams > 1 and buckets > 0:
            for at in range(count):
                word = np.uint64(hashes[at])
                chain[at] = word | _UPPER * (word >> np.uint64(31))
            for length in range(2, min(word_ngrams, count) + 1):
                _ngram_rows(hashes, count, length, chain, words, buckets, remap, numbers)
                features += _add_rows(numbers, count - length + 1, table, sums)
        for column in range(sums.size):
            means[document, column] = sums[column] / features if features else np.nan
