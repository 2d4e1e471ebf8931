"""Token ids as a sidecar: every document is encoded once per tokenizer, when a step or the plan first needs its count."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.corpus.shards import Mask, Positions, Shard, Sidecar, fill_sidecar, read_sidecar, sidecar_path
from curation.engine.work_directory import Work, key_of
from curation.text.tokenizer import Encoder, ResolvedTokenizer

BATCH = 1024


def token_key(tokenizer: ResolvedTokenizer) -> str:
    return key_of("tokens", tokenizer.sha256, tokenizer.bos_id, tokenizer.eos_id, tokenizer.dtype)


def encoded(shard: Shard, wanted: Mask, tokenizer: ResolvedTokenizer, work: Work) -> Sidecar:
    """The sidecar of ids, BOS and EOS included, filled for the `wanted` documents."""

    def compute(positions: Positions) -> pa.Array:
        encoder = Encoder.open(tokenizer)
        texts = shard.texts(positions)
        kind = np.dtype(tokenizer.dtype)
        parts, offsets, total = [np.zeros(0, kind)], [np.zeros(1, np.int64)], 0
        for first in range(0, len(texts), BATCH):
            ids, ends = encoder.encode(texts.slice(first, BATCH).to_pylist())
            parts.append(ids.astype(kind))
            offsets.append(ends[1:] + total)
            total += len(ids)
        return pa.LargeListArray.from_arrays(pa.array(np.concatenate(offsets)), pa.array(np.concatenate(parts)))

    return fill_sidecar(sidecar_path(work, token_key(tokenizer), shard), wanted, compute, shard.spans())


class TokenIds(NamedTuple):
    """The ids of a shard's documents where they lie, mapped: (position of the first document, part) of each part of the sidecar."""

    places: list[tuple[int, pa.LargeListArray]]
    dtype: np.dtype[Any]

    @staticmethod
    def open(shard: Shard, tokenizer: ResolvedTokenizer, work: Work) -> TokenIds:
        sidecar = read_sidecar(sidecar_path(work, token_key(tokenizer), shard))
        assert sidecar is not None
        return TokenIds(sidecar.places(), np.dtype(tokenizer.dtype))

    def take(self, positions: Positions) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """(tokens per document, their ids joined) of the documents at `positions`, which ascend; copies those and no others."""
        counts, ids = [np.zeros(0, np.int64)], [np.zeros(0, self.dtype)]
        for first, part in self.places:
            mine = positions[np.searchsorted(positions, first) : np.searchsorted(positions, first + len(part))]
            if len(mine):
                taken = part.take(pa.array(mine - first))
                counts.append(lengths(taken))
                ids.append(taken.flatten().to_numpy())
        return np.concatenate(counts), np.concatenate(ids)


def lengths(values: pa.Array) -> npt.NDArray[np.int64]:
    """Tokens per document of an ids sidecar; 0 where not computed."""
    counts: npt.NDArray[np.int64] = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return counts


def lengths_of(sidecar: Sidecar) -> npt.NDArray[np.int64]:
    return np.concatenate([lengths(part) for part in sidecar.parts])


def tokenize(shard: Shard, wanted: Mask, tokenizer: ResolvedTokenizer, work: Work) -> npt.NDArray[np.int64]:
    """Tokens per document of a shard, at least those `wanted`; what else is known may show, and is for the caller to leave out."""
    return lengths_of(encoded(shard, wanted, tokenizer, work))
