"""Row signals: what can be computed about one document from its text alone.

SIGNALS maps the `kind` of a recipe's `add` step to its functions. A row signal sees no other document and no place on disk, so its values are
remembered per row. Adding one: a config class with a `kind`, its functions, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from curation.signals import classifier, heuristics, importance, listed, perplexity, topic
from curation.signals.reference import ModelFile, Reference, Sample

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SIGNALS", "ModelFile", "Reference", "RowSignal", "Sample"]

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class RowSignal(Generic[Config]):
    """The functions of one kind of row signal. All are pure: equal arguments, equal results, on any worker."""

    config: type[Config]
    version: Callable[[Config], str]  # changes whenever a value or a model's bytes may; part of every key
    fields: Callable[[Config], pa.DataType]  # the type of one value: a scalar, or a struct of several
    references: Callable[[Config], Mapping[str, Reference | ModelFile]]  # what its model is made of, by role; empty: it has no model
    train: Callable[
        [Config, dict[str, pa.LargeStringArray], Path, int], None
    ]  # (config, texts by role or the path of a model file, folder, seed), in a fresh process
    compute: Callable[
        [Config, pa.LargeStringArray, Path | None], pa.Array
    ]  # (config, texts, the trained folder): one value per text, never NaN
    reads: Callable[[Config], str] = lambda config: "text"  # what `compute` is given: the text, or one of key, content and origin
    whole: bool = False  # a reference with a record that cannot be used is refused, not read without it


SIGNALS: dict[str, RowSignal[Any]] = {
    "heuristics": RowSignal(
        config=heuristics.HeuristicsConfig,
        version=heuristics.version,
        fields=heuristics.fields,
        references=heuristics.references,
        train=heuristics.train,
        compute=heuristics.compute,
    ),
    "fasttext": RowSignal(
        config=classifier.ClassifierConfig,
        version=classifier.version,
        fields=classifier.fields,
        references=classifier.references,
        train=classifier.train,
        compute=classifier.compute,
    ),
    "listed": RowSignal(
        config=listed.ListedConfig,
        version=listed.version,
        fields=listed.fields,
        references=listed.references,
        train=listed.train,
        compute=listed.compute,
        reads=listed.reads,
        whole=True,
    ),
    "ngram": RowSignal(
        config=perplexity.PerplexityConfig,
        version=perplexity.version,
        fields=perplexity.fields,
        references=perplexity.references,
        train=perplexity.train,
        compute=perplexity.compute,
    ),
    "importance": RowSignal(
        config=importance.ImportanceConfig,
        version=importance.version,
        fields=importance.fields,
        references=importance.references,
        train=importance.train,
        compute=importance.compute,
    ),
    "topic": RowSignal(
        config=topic.TopicConfig,
        version=topic.version,
        fields=topic.fields,
        references=topic.references,
        train=topic.train,
        compute=topic.compute,
    ),
}
