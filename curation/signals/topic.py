"""A topic for every text: a fastText classifier over topics that the recipe names, each with files or a sample of a source as examples.

Trained and scored as `fasttext` is (`fasttext_training`, `fasttext_table`): a tenth of each topic's texts held out, AUC, accuracy and calibration in `metrics.json`. All topics share one model and one pass over a text.

| value         | meaning                                                                                          |
|---------------|--------------------------------------------------------------------------------------------------|
| `topic`       | the likeliest topic                                                                              |
| `probability` | its probability; a text of no topic at all is still given one, seldom a sure one                 |

Both stay, so a rule or a component decides from when on a topic counts: `topic.topic = 'medicine' AND topic.probability >= 0.6`. Null for a text in which the model finds nothing to read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.signals.reference import Reference

if TYPE_CHECKING:
    import pyarrow as pa

Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]


class TopicConfig(BaseModel):
    """The topics with their examples, and fastText's own settings under plain names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["topic"]
    examples: dict[Topic, Reference] = Field(alias="train", min_length=2, description="topic: files or a sample")
    dimensions: int = Field(default=32, gt=0, le=1024)
    buckets: int = Field(default=200_000, gt=0, le=50_000_000)
    word_ngrams: int = Field(default=2, ge=1, le=5)
    epochs: int = Field(default=10, gt=0)
    learning_rate: float = Field(default=0.5, gt=0, le=5)
    min_count: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _no_key(self) -> TopicConfig:
        keys = {field.alias or name for name, field in type(self).model_fields.items()}
        if taken := sorted(keys & self.examples.keys()):
            raise ValueError(f"train: a topic cannot be called '{taken[0]}', which is a key of this step")
        return self


def version(config: TopicConfig) -> str:
    return "topic fasttext 2"


def fields(config: TopicConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.struct([pa.field("topic", pa.large_string()), pa.field("probability", pa.float64())])


def references(config: TopicConfig) -> dict[str, Reference]:
    return dict(config.examples)


def train(config: TopicConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """Writes the model and its held-out figures into `folder`. A UserError where a topic has fewer than 10 distinct texts of its own."""
    from curation.signals import fasttext_training

    settings = fasttext_training.Settings(**{name: getattr(config, name) for name in fasttext_training.Settings.model_fields})
    fasttext_training.train(settings, {topic: texts[topic] for topic in sorted(texts)}, folder, seed)


def compute(config: TopicConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.StructArray:
    """The likeliest topic of every text and its probability."""
    import numpy as np
    import pyarrow as pa

    from curation.signals import fasttext_scoring

    assert model is not None
    found = fasttext_scoring.probabilities(model, texts)
    none = np.isnan(found).any(axis=1)
    best = np.nan_to_num(found).argmax(axis=1)
    names = pa.array([fasttext_scoring.plain(label) for label in fasttext_scoring.labels(model)], pa.large_string())
    topics = names.take(pa.array(best, mask=none))
    probability = pa.array(found[np.arange(len(found)), best], mask=none)
    return pa.StructArray.from_arrays([topics, probability], fields=list(fields(config)))
