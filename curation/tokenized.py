"""Token ids as a sidecar: every document is encoded once per tokenizer, when a step or the plan first needs its count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.corpus import Mask, Positions, Shard, Sidecar, fill_sidecar, sidecar_path
from curation.tokens import Encoder, ResolvedTokenizer
from curation.work import Work, key_of

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

    return fill_sidecar(sidecar_path(work, token_key(tokenizer), shard), wanted, compute)


def lengths(values: pa.Array) -> npt.NDArray[np.int64]:
    """Tokens per document of an ids sidecar; 0 where not computed."""
    counts: npt.NDArray[np.int64] = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return counts


def tokenize(shard: Shard, wanted: Mask, tokenizer: ResolvedTokenizer, work: Work) -> npt.NDArray[np.int64]:
    """Tokens per document of a shard, at least those `wanted`; what else is known may show, and is for the caller to leave out."""
    return lengths(encoded(shard, wanted, tokenizer, work).values)
