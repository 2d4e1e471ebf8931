"""Attention that stays inside a piece, and the test that proves it on the model at hand.

`attend` is registered with transformers under the name `NAME`. A name that transformers has no mask builder for gets no mask at all, so nothing is
inferred: the boundaries arrive as `cu_seq_lens_q`. (transformers' own packing sees other documents, silently, as soon as `use_cache` keeps its
default or a mask of ones is given: logits differ by up to 0.91 on a small Llama.) On CUDA in half precision it is one variable-length flash kernel;
elsewhere scaled_dot_product_attention per piece. Grouped queries and sliding windows are honoured.

`check_isolation` runs the actual model on three short documents in one row: changing one must change no bit of the logits of the others, and each
must agree with itself alone under transformers' plain attention, to rounding. What fails is refused: a model whose layers carry state over
positions (linear attention), ignores the boundaries, or scales its scores in a way this function does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from mixing import UserError
from train.stream import Rows, fill

NAME = "document_attention"

Forward = Callable[[Rows], torch.Tensor]
"""Rows in, logits [m, L, vocabulary] out."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each piece. query [m, heads, L, d]; key and value [m, groups, L, d]; result [m, L, heads, d]."""
    if cu_seq_lens_q is None or max_length_q is None:
        raise UserError(
            f"model: {type(module).__name__} does not hand the document boundaries on to its attention; it cannot be trained on packed rows"
        )
    if softcap is not None or s_aux is not None:  # too little to be seen in a new model's logits, and not in a trained one's
        raise UserError(
            f"model: {type(module).__name__} has a soft cap or sinks in its attention, which is causal attention with a scale and a window here; "
            "set attn_logit_softcapping to null in config.json if the model was trained so, or take another"
        )
    rows, _heads, width, _size = query.shape
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    if query.is_cuda and value.dtype in (torch.bfloat16, torch.float16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        pieces = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        mixed = varlen_attn(
            query.to(value.dtype),  # under autocast the rotary embedding leaves queries and keys in fp32
            key.to(value.dtype),
            value,
            *pieces,
            scale=scaling,
            window_size=window,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        assert isinstance(mixed, torch.Tensor)
    else:
        mixed = _per_piece(query, key, value, cu_seq_lens_q, scaling, dropout, sliding_window)
    return mixed.view(rows, width, *mixed.shape[1:]), None


def bucketed(rows: Rows) -> tuple[torch.Tensor, int]:
    """The boundaries with empty pieces at the end, and the longest piece, each up to a power of two: compiled blocks see few sizes."""
    count, longest = len(rows.boundaries), min(1 << (rows.longest - 1).bit_length(), rows.input_ids.shape[1])
    missing = max(64, 1 << (count - 1).bit_length()) - count
    return F.pad(rows.boundaries, (0, missing), value=rows.input_ids.numel()), longest


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _per_piece(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """One call per piece; [tokens, heads, d] each.

    Measured on 2 CPU cores, forward and backward, 16 rows of 512 tokens with 91 pieces: 29 ms, against 64 ms for one call with a block mask and
    56 ms for pieces of like length padded together; 12 against 23 and 14 ms with 101 pieces in 8 rows. `split`, not slices: the backward of a slice
    fills a whole zero tensor, 92 ms.
    """
    parts = []
    lengths = [length for length in boundaries.diff().tolist() if length]
    for q, k, v in zip(*(part.transpose(0, 1).unsqueeze(0).split_with_sizes(lengths, 2) for part in (query, key, value)), strict=True):
        n = q.shape[2]
        mask = None
        if sliding_window is not None and n > sliding_window:
            ones = torch.ones(n, n, dtype=torch.bool, device=q.device)
            mask = ones.tril().triu(1 - sliding_window)
        parts.append(F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=True))
    return torch.cat(parts, 2).squeeze(0).transpose(0, 1)


def refuse_unknown_layers(config: PretrainedConfig) -> None:
    """Layers that reach `attend` only as masks it never sees (chunked attention), or not at all (linear attention)."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if unknown := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise UserError(
            f"model: layers of the kind {', '.join(unknown)} cannot be kept inside a document; full_attention and sliding_attention can"
        )


def check_isolation(packed: Forward, alone: Forward, vocabulary: int, context: int, tolerance: float) -> None:
    """Refuses a model whose logits of a document depend on another one in its row.

    `packed` is the forward pass of training; `alone` one under transformers' plain causal attention, given a row that holds a single document.
    `tolerance` is relative to the largest logit.
    """
    random = np.random.default_rng(0)
    lengths = [min(n, max(2, context // 4)) for n in (13, 21, 8)]
    documents = [random.integers(0, vocabulary, n) for n in lengths]
    width = sum(lengths) + 3
    ends = np.cumsum([0, *lengths])
    with torch.no_grad():
        before = packed(fill([documents, documents[::-1]], [0, 0], width))
        for changed in range(3):
            others = list(documents)
            others[changed] = random.integers(0, vocabulary, lengths[changed])
            after = packed(fill([others, documents[::-1]], [0, 0], width))
            leaks = (after != before).flatten(2).any(2)
            leaks[0, ends[changed] : ends[changed + 1]] = False
            if leaks[:, : ends[-1]].any():
                difference = (after - before)[leaks].abs().max().item()
                raise UserError(
                    f"model: its logits of a document change by {difference:.3g} when another document of the same row changes; "
                    "a model that cannot be isolated cannot be trained on packed rows"
                )
        for position, document in enumerate(documents):
            reference = alone(fill([[document]], [0], len(document)))[0]
            difference = (before[0, ends[position] : ends[position + 1]] - reference).abs().max().item()
            if not difference <= tolerance * reference.abs().max().item():
                raise UserError(
                    f"model: its logits of a packed document differ by {difference:.3g} from those of the document alone; "
                    "its attention does more than causal attention with a scale and a window"
                )
