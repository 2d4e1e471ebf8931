"""A fastText classifier: the probability that a text is like the positive samples rather than the negative ones, or of a label of a model that others trained.

With `train` it is trained in the recipe (`fasttext_training`): 90 % of each sample, the lowest tenth by xxh3(seed, text) held out; the held-out figures in `metrics.json` (AUC, calibration)
are those of the very model that scores. Calibration holds for a mixture like the samples': where positives are rarer, probabilities are too high.

With `model` it is a `.bin` or `.ftz` file, and `label` says whose probability to take. Models with a softmax score by a table (`fasttext_table`), others by the library.

The defaults are made for small samples: 100 medical abstracts against 100 encyclopedia texts rank others of both with AUC .977, 300 with .995 and 1,500
with .9996; fastText's own rate of 0.1 and 5 epochs give .909, .913 and .981. The model file takes about 4 * dimensions * (buckets + words) bytes, 26 MB
for few words; the table that scores 4 bytes per bucket and word.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.signals.reference import ModelFile, Reference
from mixing import UserError

if TYPE_CHECKING:
    import pyarrow as pa

POSITIVE = "positive"


class Samples(BaseModel):
    """What to find, and what to tell it from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive: Reference
    negative: Reference


class ClassifierConfig(BaseModel):
    """The samples and fastText's own settings under plain names; or a model that was trained elsewhere and one of its labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fasttext"]
    samples: Samples | None = Field(default=None, alias="train")
    model: str | None = Field(default=None, description="a .bin or .ftz file, instead of `train`")
    label: str | None = Field(default=None, description="of the `model`, with or without `__label__`")
    dimensions: int = Field(default=32, gt=0, le=1024)
    buckets: int = Field(default=200_000, gt=0, le=50_000_000)
    word_ngrams: int = Field(default=2, ge=1, le=5)
    epochs: int = Field(default=10, gt=0)
    learning_rate: float = Field(default=0.5, gt=0, le=5)
    min_count: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _trained_or_given(self) -> ClassifierConfig:
        if (self.samples is None) == (self.model is None):
            raise ValueError("give exactly one of train, model")
        if (self.model is None) != (self.label is None):
            raise ValueError("label: goes with model, and model with label: the one whose probability is the value")
        given = sorted(self.model_fields_set - {"kind", "samples", "model", "label"})
        if self.model is not None and given:
            raise ValueError(f"{', '.join(given)}: goes with train; a model that was trained elsewhere has its own")
        return self


def version(config: ClassifierConfig) -> str:
    return "fasttext 2"


def fields(config: ClassifierConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.float64()


def references(config: ClassifierConfig) -> dict[str, Reference | ModelFile]:
    if config.samples is not None:
        return {POSITIVE: config.samples.positive, "negative": config.samples.negative}
    assert config.model is not None
    assert config.label is not None
    return {"model": ModelFile(config.model, labels_of, partial(check_label, config.label))}


def labels_of(path: Path) -> list[str]:
    """The labels of a model file."""
    from curation.signals.fasttext_file import read_labels

    return read_labels(path)


def check_label(label: str, names: list[str]) -> None:
    """Refuses a label that a model has not."""
    from curation.signals.fasttext_scoring import column_of, plain

    if column_of(names, label) is None:
        shown = ", ".join(map(plain, names[:20])) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")
        raise UserError(f"no label {label!r}; the model has: {shown}")


def train(config: ClassifierConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """Writes the model and its held-out figures into `folder`, or what scoring needs of a given model. A UserError where a sample has fewer than 10 distinct texts of its own."""
    from curation.signals import fasttext_scoring, fasttext_training

    if config.model is not None:
        fasttext_scoring.prepare(Path(texts["model"][0].as_py()), folder)
        return
    settings = fasttext_training.Settings(**{name: getattr(config, name) for name in fasttext_training.Settings.model_fields})
    fasttext_training.train(settings, texts, folder, seed)


def compute(config: ClassifierConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.DoubleArray:
    """The probability of the label, 0 to 1; null for a text in which the model finds nothing to read."""
    import numpy as np
    import pyarrow as pa

    from curation.signals import fasttext_scoring

    assert model is not None
    column = fasttext_scoring.column_of(fasttext_scoring.labels(model), config.label or POSITIVE)
    assert column is not None
    scores = np.ascontiguousarray(fasttext_scoring.probabilities(model, texts)[:, column])
    return pa.array(scores, mask=np.isnan(scores))
