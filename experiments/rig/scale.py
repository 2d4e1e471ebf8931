"""How large everything is. A scale is fixed before a run and stands in every result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """`base_tokens`, `tokens`, `pool_tokens`: of pre-training, of an arm of continual pre-training, of the noisy pool. `exam_documents`: passages held out
    of each source. `vocabulary`: entries of the tokenizer. `rate`: the peak learning rate of an arm, `base_rate` of the base."""

    name: str
    base_tokens: int
    tokens: int
    pool_tokens: int
    exam_documents: int
    vocabulary: int
    sequence_length: int
    base_batch: int
    batch: int
    base_rate: float
    rate: float
    compile: bool
    model: dict[str, Any] = field(hash=False)

    def described(self) -> dict[str, Any]:
        return asdict(self)


def llama(width: int, layers: int, heads: int, inner: int, context: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
    }


SMALL = Scale("small", 2_500_000, 160_000, 400_000, 12, 4096, 128, 16, 8, 3e-3, 1.5e-3, False, llama(96, 3, 4, 256, 128))
LARGE = Scale("large", 9_000_000, 2_000_000, 5_000_000, 48, 8192, 256, 32, 16, 2e-3, 1e-3, True, llama(384, 8, 6, 1024, 256))
SCALES = {scale.name: scale for scale in (SMALL, LARGE)}
