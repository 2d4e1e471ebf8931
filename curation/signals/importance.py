"""Importance of a text for a target: how much likelier its words and word pairs are in a target corpus than in a pool (DSIR, arXiv 2302.03169).

Features are the words (the definition of `curation.text.words`) and pairs of neighbouring words, each hashed into one of `buckets`. Target and pool are bags of features with add-one smoothing,

    log w = sum over the text's features f of  log((c_target(f) + 1) / (N_target + B)) - log((c_pool(f) + 1) / (N_pool + B))

with counts c of a bucket, N of all features and B buckets, so that a bucket that one of the two never showed is weighed by how much was read. The authors' code splits words with NLTK,
adds 1e-8 to probabilities and hashes otherwise; the rest is the same. Three float64 per text, null for a text without words:

| value       | meaning                                                                                                                  |
|-------------|--------------------------------------------------------------------------------------------------------------------------|
| `log_ratio` | log w: grows with the length of a text, in both directions                                                                |
| `mean`      | log w / features: to compare texts of different lengths, and for thresholds                                                |
| `sampled`   | log w + Gumbel noise drawn from the text's hash under the recipe's seed: the `top` k by it are a sample of k texts without replacement in proportion to w (Gumbel top-k; arXiv 1903.06059), the paper's own selection |

Equal texts get equal noise: remove copies first. Against perplexity it has the contrast: what is common everywhere says nothing.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.reference import Reference
from mixing import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from curation.signals.bags import Floats

FIELDS = ("log_ratio", "mean", "sampled")
RATIOS, HEADER = "ratios.npy", "model.json"


class ImportanceConfig(BaseModel):
    """What to look for, and what it is looked for in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["importance"]
    target: Reference
    pool: Reference
    buckets: int = Field(default=10_000, ge=2, le=1 << 24)


class Model(NamedTuple):
    ratios: Floats  # per bucket, log(P of the target / P of the pool)
    seed: int


def version(config: ImportanceConfig) -> str:
    from curation.text.words import WORDS_VERSION

    return f"importance add-one 1, words {WORDS_VERSION}"


def fields(config: ImportanceConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.struct([pa.field(name, pa.float64()) for name in FIELDS])


def references(config: ImportanceConfig) -> dict[str, Reference]:
    return {"target": config.target, "pool": config.pool}


def train(config: ImportanceConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """Writes the log ratio of every bucket into `folder`, and the seed of the noise. A UserError where a reference has no word."""
    import numpy as np

    from curation.signals import bags
    from curation.text.words import word_hashes

    logs = {}
    for role in ("target", "pool"):
        words, offsets = word_hashes(texts[role])
        if not words.size:
            raise UserError(f"{role}: no word in its {len(texts[role])} texts; name files or a source with text")
        counts = bags.count(words, offsets, config.buckets)
        logs[role] = np.log((counts + 1) / (counts.sum() + config.buckets))
    np.save(folder / RATIOS, logs["target"] - logs["pool"], allow_pickle=False)
    (folder / HEADER).write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")


def compute(config: ImportanceConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.StructArray:
    """The three values of every text."""
    import numpy as np
    import pyarrow as pa

    from curation.signals import bags
    from curation.text.words import word_hashes

    assert model is not None
    ratios, seed = _loaded(str(model))
    words, offsets = word_hashes(texts)
    lengths = np.diff(offsets)
    sums = bags.sums(words, offsets, ratios)
    features = np.maximum(2 * lengths - 1, 1)
    columns = [sums, sums / features, sums + bags.gumbel(texts, seed)]
    return pa.StructArray.from_arrays([pa.array(column, mask=lengths == 0) for column in columns], fields=list(fields(config)))


@lru_cache(maxsize=4)
def _loaded(folder: str) -> Model:
    import numpy as np

    ratios = np.load(Path(folder) / RATIOS, allow_pickle=False)
    return Model(ratios, json.loads((Path(folder) / HEADER).read_text(encoding="utf-8"))["seed"])
