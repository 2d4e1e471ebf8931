"""How many identifiers of persons and secret keys stand in a text: what the clean step `mask_pii` would replace.

One count per kind, never null: `email`, `ip`, `phone`, `card`, `iban`, `key`. What each means is in `curation.text.identifiers`. They go by form, so a text
with two addresses may be an article with its contact line, and one with two hundred is a list: `keep: privacy.email <= 5`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from curation.signals.reference import Reference

if TYPE_CHECKING:
    import pyarrow as pa


class PrivacyConfig(BaseModel):
    """What of a person or a secret stands in a text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["privacy"]


def version(config: PrivacyConfig) -> str:
    from curation.text.identifiers import IDENTIFIERS_VERSION

    return f"privacy {IDENTIFIERS_VERSION}"


def fields(config: PrivacyConfig) -> pa.DataType:
    import pyarrow as pa

    from curation.text.identifiers import KINDS

    return pa.struct([pa.field(kind, pa.int64()) for kind in KINDS])


def references(config: PrivacyConfig) -> dict[str, Reference]:
    return {}


def train(config: PrivacyConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    raise TypeError("privacy has no model to train")


def compute(config: PrivacyConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.StructArray:
    """The counts of every text, as `fields` names them."""
    import numpy as np
    import pyarrow as pa

    from curation.text.identifiers import KINDS, found

    counts = np.zeros((len(KINDS), len(texts)), np.int64)
    for index, places in found(texts.cast(pa.large_binary()).to_pylist()):
        for place in places:
            counts[KINDS.index(place.kind), index] += 1
    return pa.StructArray.from_arrays(list(map(pa.array, counts)), fields=list(fields(config)))
