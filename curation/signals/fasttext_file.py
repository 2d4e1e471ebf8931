"""A fastText model file (`.bin`, and quantized `.ftz`) as arrays: read here, so that a table can be made of it without holding its matrices.

The layout is that of fastText 0.9.2 and 0.9.3 (file version 12; 11 is read as they do): settings, dictionary, input matrix, output matrix, all little-endian.
Dense matrices are memory-mapped. A quantized one is a row of codes into centroids (arXiv 1612.03651), put together again a range of rows at a time.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixing import UserError

Singles = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

MAGIC, VERSIONS = 793712314, (11, 12)
SOFTMAX, SUPERVISED = 3, 3
LOSSES = {1: "hierarchical softmax", 2: "negative sampling", SOFTMAX: "softmax", 4: "one-vs-all"}
CENTROIDS = 256


class Settings(NamedTuple):
    """The settings that scoring depends on, under fastText's names for them."""

    dim: int
    word_ngrams: int
    loss: int
    model: int
    bucket: int
    minn: int
    maxn: int


class Quantizer(NamedTuple):
    """`parts` sub-vectors of `width` floats (the last one `last`), each one of CENTROIDS of its own."""

    parts: int
    width: int
    last: int
    centroids: Singles

    def rows(self, codes: Codes) -> Singles:
        """f32[n, floats of a row] of u8[n, parts]."""
        size = CENTROIDS * self.width
        columns = []
        for part in range(self.parts):
            width = self.last if part == self.parts - 1 else self.width
            columns.append(self.centroids[part * size : part * size + CENTROIDS * width].reshape(CENTROIDS, width)[codes[:, part]])
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class Matrix:
    """`shape[0]` rows of `shape[1]` floats: `dense`, or `codes` of a quantizer, with `norms` (codes of another) where the rows' lengths were taken out."""

    shape: tuple[int, int]
    dense: Singles | None = None
    codes: Codes | None = None
    quantizer: Quantizer | None = None
    norms: Codes | None = None
    norm_quantizer: Quantizer | None = None

    def rows(self, first: int, end: int) -> Singles:
        """f32[end - first, floats of a row]."""
        if self.dense is not None:
            return self.dense[first:end]
        assert self.codes is not None
        assert self.quantizer is not None
        found = self.quantizer.rows(self.codes[first:end])
        if self.norms is not None and self.norm_quantizer is not None:
            found *= self.norm_quantizer.rows(self.norms[first:end, None])
        return found


@dataclass(frozen=True)
class ModelFile:
    """`entries` are the dictionary's words in the order of their numbers, the labels last; row i of `input` belongs to word i, the rows after the words to buckets.
    `pruned` is None, or (bucket, row less the number of words) of the buckets that quantizing left."""

    settings: Settings
    entries: list[bytes]
    words: int
    pruned: npt.NDArray[np.int32] | None
    input: Matrix
    output: Matrix

    @property
    def labels(self) -> list[str]:
        return [entry.decode("utf-8", "replace") for entry in self.entries[self.words :]]


class _Cursor:
    """A place in a memory-mapped file; reading past its end is an error like any other damage."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0

    def numbers(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(f"<{form}")
        return struct.unpack(f"<{form}", self.array("u1", size).tobytes())

    def array(self, kind: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
        size = np.dtype(kind).itemsize * count
        if count < 0 or self.at + size > len(self._raw):
            raise ValueError("it ends too early")
        found = np.frombuffer(self._raw, kind, count, self.at)
        self.at += size
        return found

    def entries(self, count: int) -> list[bytes]:
        """Each a word, NUL, its count (i64) and its type (i8)."""
        found, at = [], self.at
        for _ in range(count):
            end = self._raw.find(b"\0", at)
            if end < 0:
                raise ValueError("its dictionary has no end")
            found.append(self._raw[at:end])
            at = end + 10
        self.at = at
        return found


def read_model_file(path: Path) -> ModelFile:
    """The model in a file. A UserError where it is none, is damaged, or is no classifier."""
    try:
        return _read(path)
    except (ValueError, struct.error) as error:
        raise UserError(
            f"{path.name}: cannot be read as a fastText model: {error}; accepted: a .bin or .ftz file of a supervised model"
        ) from None


def read_labels(path: Path) -> list[str]:
    """The labels of the model in a file."""
    return read_model_file(path).labels


def _read(path: Path) -> ModelFile:
    if path.stat().st_size < 8:
        raise ValueError("it is shorter than a header")
    cursor = _Cursor(path)
    magic, version = cursor.numbers("ii")
    if magic != MAGIC or version not in VERSIONS:
        raise ValueError("it does not begin like one" if magic != MAGIC else f"its version is {version}")
    dim, _, _, _, _, word_ngrams, loss, model, bucket, minn, maxn, _, _ = cursor.numbers("12id")
    if model != SUPERVISED:
        raise ValueError("it holds word vectors and has no labels")
    settings = Settings(dim, word_ngrams, loss, model, bucket, minn, 0 if version == 11 else maxn)
    size, words, labels, _, pruned_size = cursor.numbers("3i2q")
    if min(size, words, labels) < 0 or words + labels != size:
        raise ValueError(f"its dictionary counts {words} words and {labels} labels in {size} entries")
    entries = cursor.entries(size)
    pruned = cursor.array("<i4", 2 * pruned_size).reshape(-1, 2).astype(np.int32) if pruned_size >= 0 else None
    quantized = bool(cursor.numbers("B")[0])
    if pruned is not None and not quantized:
        raise ValueError("buckets are left out although it is not quantized")
    inputs = _matrix(cursor, quantized=quantized)
    quantized_output = bool(cursor.numbers("B")[0])
    return ModelFile(settings, entries, words, pruned, inputs, _matrix(cursor, quantized=quantized and quantized_output))


def _matrix(cursor: _Cursor, *, quantized: bool) -> Matrix:
    if not quantized:
        rows, columns = cursor.numbers("2q")
        return Matrix((rows, columns), dense=cursor.array("<f4", rows * columns).reshape(rows, columns).astype(np.float32, copy=False))
    with_norms = bool(cursor.numbers("B")[0])
    rows, columns, size = cursor.numbers("2qi")
    codes = cursor.array("u1", size).astype(np.uint8, copy=False)
    quantizer = _quantizer(cursor)
    norms = cursor.array("u1", rows).astype(np.uint8, copy=False) if with_norms else None
    norm_quantizer = _quantizer(cursor) if with_norms else None
    return Matrix((rows, columns), None, codes.reshape(rows, quantizer.parts), quantizer, norms, norm_quantizer)


def _quantizer(cursor: _Cursor) -> Quantizer:
    dim, parts, width, last = cursor.numbers("4i")
    return Quantizer(parts, width, last, cursor.array("<f4", dim * CENTROIDS).astype(np.float32))
