"""Perplexity of a text under a word n-gram model trained on a reference corpus: low where the text reads like the reference.

A text is one sentence: its words (the definition of `curation.text.words`) and an end symbol, n + 1 predictions, PPL = exp(-(1/(n+1)) Σ log p). The model
(`ngram`) interpolates all orders by Witten and Bell and ends in a uniform distribution over `vocabulary` words, seen or not. So an unknown word is the
least likely of all. (With unseen words counted as one frequent `<unk>`, text of unknown words scored best: AUC .16 to .75 where this model reaches .98.)
Low perplexity also favours short, repetitive text: rank after deduplication and the heuristics, and give `keep` a lower cut.

With `model` it is scored by a model that was trained elsewhere: an ARPA file (`arpa` says which), or a binary of KenLM by its Python package (`pip install tilth[kenlm]`). Either gets the
words as they are split here, a text as one sentence.

One float64 per text, null for a text without words. The order of the reference's texts changes no byte of the model.
"""

from __future__ import annotations

import math
import shutil
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.signals.reference import ModelFile, Reference
from mixing import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from curation.signals.ngram import Model


KENLM, BINARY = b"mmap lm http://kheafield.com/code", "kenlm.bin"


class PerplexityConfig(BaseModel):
    """The reference and the shape of its model, or a model that was trained elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ngram"]
    reference: Reference | None = None
    model: str | None = Field(default=None, description="an ARPA file (.arpa, .arpa.gz) or a KenLM binary, instead of `reference`")
    order: int = Field(default=3, ge=1, le=5)
    vocabulary: int = Field(default=10_000_000, ge=1)  # words the language is taken to have, over which the last back-off is uniform
    arpa: bool = Field(default=False, description="also write `model.arpa` into the model's folder of the work directory")

    @model_validator(mode="after")
    def _trained_or_given(self) -> PerplexityConfig:
        if (self.reference is None) == (self.model is None):
            raise ValueError("give exactly one of reference, model")
        given = sorted(self.model_fields_set - {"kind", "model"})
        if self.model is not None and given:
            raise ValueError(f"{', '.join(given)}: goes with reference; a model that was trained elsewhere has its own")
        return self


def version(config: PerplexityConfig) -> str:
    from curation.text.words import WORDS_VERSION

    return f"ngram witten-bell 1, words {WORDS_VERSION}"


def fields(config: PerplexityConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.float64()


def references(config: PerplexityConfig) -> dict[str, Reference | ModelFile]:
    if config.reference is not None:
        return {"reference": config.reference}
    assert config.model is not None
    return {"model": ModelFile(config.model, look_at, _accept)}


def look_at(path: Path) -> list[int] | None:
    """The counts of n-grams in an ARPA file; None of a KenLM binary, for which its package has to be there. A UserError where it is neither."""
    from curation.signals import arpa

    with path.open("rb") as file:
        head = file.read(len(KENLM))
    if head != KENLM:
        return arpa.look(path)
    if find_spec("kenlm") is None:
        raise UserError(
            f"{path.name}: a KenLM binary, and its package is not installed; run `pip install 'tilth[kenlm]'`, or give the ARPA file"
        )
    return None


def _accept(counts: object) -> None:
    """Whatever `look_at` lets pass can be scored with."""


def train(config: PerplexityConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """Writes the model's files into `folder`. A UserError where the reference has no word, or more distinct words than `vocabulary`."""
    from curation.signals import arpa, ngram
    from curation.text.words import word_hashes

    if config.model is not None:
        _adopt(Path(texts["model"][0].as_py()), folder)
        return
    words, offsets = word_hashes(texts["reference"])
    if not words.size:
        raise UserError(f"reference: no word in its {len(texts['reference'])} texts; name files or a source with text")
    model = ngram.train(words, offsets, config.order, config.vocabulary)
    if model.words > config.vocabulary:
        raise UserError(f"vocabulary: {config.vocabulary}, but the reference has {model.words} distinct words; give a greater number")
    ngram.save(model, folder)
    if config.arpa:
        arpa.write(model, texts["reference"], folder / "model.arpa")


def _adopt(path: Path, folder: Path) -> None:
    """Puts what scoring needs of someone else's model into `folder`."""
    from curation.signals import arpa, ngram

    if look_at(path) is None:
        shutil.copyfile(path, folder / BINARY)
    else:
        ngram.save(arpa.read(path), folder)


def compute(config: PerplexityConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.DoubleArray:
    """The perplexity of every text."""
    import numpy as np
    import pyarrow as pa

    from curation.signals import ngram
    from curation.text.words import word_hashes
    from curation.text.words import words as split

    assert model is not None
    words, offsets = word_hashes(texts)
    if (model / BINARY).exists():
        log_likelihoods = np.array(
            [_by_kenlm(str(model / BINARY)).score(" ".join(split(text))) * math.log(10) for text in texts.to_pylist()]
        )
    else:
        log_likelihoods = ngram.log_likelihoods(_loaded(str(model)), words, offsets)
    lengths = np.diff(offsets)
    return pa.array(np.exp(-log_likelihoods / (lengths + 1)), mask=lengths == 0)


@lru_cache(maxsize=4)
def _loaded(folder: str) -> Model:
    from curation.signals import ngram

    return ngram.load(Path(folder))


@lru_cache(maxsize=4)
def _by_kenlm(path: str) -> Any:
    import kenlm

    return kenlm.Model(path)
