"""Row signals: what can be computed about one document from its text alone.

SIGNALS maps the `kind` of a recipe's `add` step to its functions. A row signal sees no other document and no place on disk, so its values are
remembered per row. Adding one: a config class with a `kind`, its functions, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from curation.signals import causal_lm, classifier, contamination, heuristics, importance, language, listed, perplexity, privacy, topic
from curation.signals.reference import Columns, ModelFile, ModelFolder, Reference, Sample

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SIGNALS", "Columns", "ModelFile", "ModelFolder", "Reference", "RowSignal", "Sample"]

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class RowSignal(Generic[Config]):
    """The functions of one kind of row signal. All are pure: equal arguments, equal results, on any worker."""

    config: type[Config]
    version: Callable[[Config], str]  # changes whenever a value or a model's bytes may; part of every key
    fields: Callable[[Config], pa.DataType]  # the type of one value: a scalar, or a struct of several
    references: Callable[
        [Config], Mapping[str, Reference | ModelFile | ModelFolder]
    ]  # what its model is made of, by role; empty: it has no model
    train: Callable[
        [Config, dict[str, pa.LargeStringArray], Path, int], None
    ]  # (config, texts by role or the path of a model file, folder, seed), in a fresh process
    compute: Callable[
        [Config, pa.LargeStringArray, Path | None], pa.Array
    ]  # (config, texts, the trained folder): one value per text, never NaN
    reads: Callable[[Config], str] = lambda config: "text"  # what `compute` is given: the text, or one of key, content and origin
    columns: Callable[[Config], dict[str, Columns]] = lambda config: {}  # by role: records with these, as JSON objects instead of texts
    caveat: Callable[[Path], str | None] = lambda folder: None  # what the user should know of the trained folder
    processes: Callable[[Config], int | None] | None = None  # given where a model is too large for every worker: how many may have it
    mapped: bool = False  # the model is memory-mapped: one copy for all workers, which the kernel may drop
    evidence: tuple[str, ...] = ()  # the parts of a value that say why it made a rule drop a document
    whole: bool = False  # a reference with a record that cannot be used is refused, not read without it


class Family(Protocol):
    """A module of this folder, as every one of them is made."""

    def version(self, config: Any) -> str: ...
    def fields(self, config: Any) -> pa.DataType: ...
    def references(self, config: Any) -> Mapping[str, Any]: ...
    def train(self, config: Any, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None: ...
    def compute(self, config: Any, texts: pa.LargeStringArray, model: Path | None) -> pa.Array: ...


def _of(family: Family, config: type[BaseModel], **more: Any) -> RowSignal[Any]:
    functions = (family.version, family.fields, family.references, family.train, family.compute)
    return RowSignal(config, *functions, **more)


SIGNALS: dict[str, RowSignal[Any]] = {
    "causal_lm": _of(causal_lm, causal_lm.CausalLMConfig, processes=causal_lm.processes),
    "contamination": _of(
        contamination,
        contamination.ContaminationConfig,
        columns=contamination.columns,
        caveat=contamination.caveat,
        mapped=True,
        evidence=contamination.EVIDENCE,
        whole=True,
    ),
    "heuristics": _of(heuristics, heuristics.HeuristicsConfig),
    "fasttext": _of(classifier, classifier.ClassifierConfig),
    "language": _of(language, language.LanguageConfig),
    "listed": _of(listed, listed.ListedConfig, reads=listed.reads, whole=True),
    "ngram": _of(perplexity, perplexity.PerplexityConfig, mapped=True),
    "importance": _of(importance, importance.ImportanceConfig),
    "topic": _of(topic, topic.TopicConfig),
    "privacy": _of(privacy, privacy.PrivacyConfig),
}
