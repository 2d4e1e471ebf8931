"""What is measured of a model: hold-out loss per source, component and column of the pool, and multiple choice.

A document longer than the manifest's sequences is read in pieces of that length; like a span of the plan, a piece of n tokens holds n - 1
predictions. Loss is nats a prediction; bits a byte are all nats over ln 2 and the UTF-8 length of the texts, which compares across tokenizers;
the first token of a piece costs nothing. Results do not depend on batch size or world size (`scoring`), and training goes on as if nothing had
happened. Every result is a ratio of two sums over its documents or questions (`Result`), which is what a bootstrap needs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from mixing import UserError
from mixing.manifest import NO_COMPONENT, Manifest
from mixing.measurements import Measurement
from train import choice, scoring
from train.config import Evaluate
from train.model import World
from train.scoring import Passes, Piece

MOST_LABELS = 200
ITEMS = pa.schema(
    [
        ("metric", pa.string()),
        ("component", pa.string()),
        ("item", pa.int64()),
        ("numerator", pa.float64()),
        ("denominator", pa.float64()),
    ]
)
"""What each document or question gave, in the order of the hold-out or of the file: a metric is the sum of its numerators over that of its denominators."""


class Result(NamedTuple):
    """One measured metric. `subject`: what a guard is called by."""

    metric: str
    component: str | None
    subject: str
    numerators: npt.NDArray[np.float64]
    denominators: npt.NDArray[np.float64]

    @property
    def value(self) -> float:
        whole = math.fsum(self.denominators.tolist())
        return math.fsum(self.numerators.tolist()) / whole if whole else math.nan


class Documents(NamedTuple):
    """The held-out documents of one manifest: the pieces each was cut into, and its groups (subject, component, members)."""

    passes: Passes
    document: npt.NDArray[np.int64]
    """which document a piece belongs to"""
    predictions: npt.NDArray[np.int64]
    """per piece"""
    bytes: npt.NDArray[np.int64]
    """per document"""
    groups: list[tuple[str, str | None, npt.NDArray[np.int64]]]


class Test(NamedTuple):
    name: str
    passes: Passes
    questions: list[choice.Question]


class Examination(NamedTuple):
    """Everything that is measured at a mark, as this process takes part in it."""

    documents: list[Documents]
    tests: list[Test]
    core: dict[str, list[str]]
    means: dict[str, list[str]]

    @property
    def texts(self) -> set[str]:
        """The names of losses of the whole run."""
        return {subject for documents in self.documents for subject, component, _ in documents.groups if component is None}

    @property
    def subjects(self) -> set[str]:
        held = {subject for documents in self.documents for subject, _, _ in documents.groups}
        return held | {test.name for test in self.tests} | ({"core_average"} if self.core else set()) | self.means.keys()


def prepared(settings: Evaluate, manifest: Manifest, world: World, context: int | None = None) -> Examination:
    """The examination of models that were made with the manifest's tokenizer; `context`: their longest text (default: a sequence).

    Refused by name: another manifest made with another tokenizer, a guard that nothing measures, questions that cannot be read.
    """
    documents = [_documents(manifest, "", settings.by, world)]
    seen: set[str] = set()
    for folder in settings.holdouts:
        other = Manifest.reach(folder)
        if other.tokenizer["sha256"] != manifest.tokenizer["sha256"]:
            raise UserError(
                f"evaluate.holdouts: {folder} was made with the tokenizer {other.tokenizer['name']} ({other.tokenizer['sha256'][:12]}), "
                f"the run's manifest with {manifest.tokenizer['name']} ({manifest.tokenizer['sha256'][:12]}); build it with the same one"
            )
        if (label := _label(other)) in seen:
            raise UserError(
                f"evaluate.holdouts: {folder} is a second manifest called {label}; leave one out, or give it another name or version"
            )
        seen.add(label)
        documents.append(_documents(other, f"{label}/", settings.by, world))
    encoder = choice.tokenizer(manifest.folder / "tokenizer" / "tokenizer.json") if settings.tasks else None
    tests = []
    for name, task in settings.tasks.items():
        assert encoder is not None
        asked = choice.questions(name, task)
        pieces = choice.pieces(asked, encoder, manifest.tokenizer["bos_id"], context or manifest.sequence_length)
        tests.append(Test(name, scoring.dealt(pieces, max(len(piece.ids) - 1 for piece in pieces), world), asked))
    examination = Examination(documents, tests, settings.core, settings.means)
    for name, parts in settings.means.items():
        if unknown := [part for part in parts if part not in examination.texts]:
            raise UserError(
                f"evaluate.means.{name}: there is no loss of {unknown[0]}; there is of: {', '.join(sorted(examination.texts)) or 'nothing'}"
            )
        if name in examination.texts:
            raise UserError(f"evaluate.means.{name}: there is a loss of that name already; give the mean another")
    if unknown := sorted(set(settings.guards) - examination.subjects):
        raise UserError(
            f"evaluate.guards: nothing is measured of {', '.join(unknown)}; measured are: {', '.join(sorted(examination.subjects)) or 'none'}"
        )
    return examination


def _label(manifest: Manifest) -> str:
    return f"{manifest.header['name']}-v{manifest.header['version']}"


def _documents(manifest: Manifest, prefix: str, by: Sequence[str], world: World) -> Documents:
    """`prefix` stands before the sources of another manifest, whose components and columns are not this run's."""
    held = manifest.holdout()
    width = manifest.sequence_length
    pieces: list[Piece] = []
    document: list[int] = []
    sources: list[npt.NDArray[np.int64]] = []
    count = 0
    for documents in held.values():
        starts = documents.offsets.tolist()
        for number, (start, end) in enumerate(itertools.pairwise(starts), count):
            cut = [Piece(documents.ids[begin : min(begin + width, end)], 1) for begin in range(start, end, width)]
            pieces += cut
            document += [number] * len(cut)
        sources.append(np.arange(count, count + len(starts) - 1))
        count += len(starts) - 1
    groups: list[tuple[str, str | None, npt.NDArray[np.int64]]] = [
        (prefix + source, None, members) for source, members in zip(held, sources, strict=True)
    ]
    if count and not prefix:
        components = np.concatenate([documents.component for documents in held.values()])
        groups += [
            (manifest.component_names[number], manifest.component_names[number], np.flatnonzero(components == number))
            for number in np.unique(components[components != NO_COMPONENT]).tolist()
        ]
        rows = np.concatenate([documents.pool_row for documents in held.values()])
        groups += [group for column in by for group in _labelled(manifest, column, rows)]
    return Documents(
        scoring.dealt(pieces, width, world),
        np.array(document, np.int64),
        np.array([max(0, len(piece.ids) - 1) for piece in pieces], np.int64),
        np.concatenate([np.zeros(0, np.int64), *(documents.bytes.astype(np.int64) for documents in held.values())]),
        groups,
    )


def _labelled(manifest: Manifest, column: str, rows: npt.NDArray[np.uint64]) -> Iterator[tuple[str, str | None, npt.NDArray[np.int64]]]:
    """The documents of each value of a column of the pool; those without a value are in no group."""
    name, *inner = column.split(".")
    labels: dict[int, str] = {}
    for file in manifest.pool_files():
        schema = pq.read_schema(file)
        if name not in schema.names:
            raise UserError(f"evaluate.by: the pool of {manifest.folder} has no column '{name}'; it has: {', '.join(schema.names)}")
        table = pq.read_table(file, columns=["row", name], filters=[("decision", "=", "held_out")])
        values = table[name]
        for field in inner:
            if not pa.types.is_struct(values.type) or field not in [part.name for part in values.type]:
                raise UserError(f"evaluate.by: '{column}' is no column of the pool; '{name}' is {values.type}")
            values = pc.struct_field(values, field)
        labels |= {row: str(value) for row, value in zip(table["row"].to_pylist(), values.to_pylist(), strict=True) if value is not None}
    there = np.array([labels.get(row, "") for row in rows.tolist()])
    distinct = sorted(set(there.tolist()) - {""})
    if len(distinct) > MOST_LABELS:
        raise UserError(
            f"evaluate.by: '{column}' has {len(distinct)} values in the hold-out; name a column of at most {MOST_LABELS} labels, such as a topic"
        )
    for label in distinct:
        yield f"{column}={label}", None, np.flatnonzero(there == label)


def evaluate(model: PreTrainedModel, examination: Examination, precision: str, world: World) -> list[Result]:
    """Every result, equal on all processes."""
    results: list[Result] = []
    for documents in examination.documents:
        results += _losses(documents, scoring.nats(model, documents.passes, precision, world))
    results += _means({result.metric: result for result in results if result.component is None}, examination.means)
    accuracy, random = {}, {}
    for test in examination.tests:
        given = choice.answers(test.questions, scoring.nats(model, test.passes, precision, world))
        one = np.ones(len(test.questions))
        kinds = {"accuracy": given.raw, "accuracy_normalised": given.normalised, "margin": given.margin}
        results += [Result(f"{kind}/{test.name}", None, test.name, values, one) for kind, values in kinds.items()]
        accuracy[test.name], random[test.name] = float(given.raw.mean()), choice.chance(test.questions)
    if examination.core:
        average = choice.core_average(accuracy, random, examination.core)
        results.append(Result("core_average", None, "core_average", np.array([average]), np.ones(1)))
    return results


def _losses(documents: Documents, nats: npt.NDArray[np.float64]) -> Iterator[Result]:
    of_document = np.zeros(len(documents.bytes))
    np.add.at(of_document, documents.document, nats)
    predictions = np.bincount(documents.document, documents.predictions, len(documents.bytes)).astype(np.float64)
    for subject, component, members in documents.groups:
        name = "" if component else f"/{subject}"
        yield Result(f"loss{name}", component, subject, of_document[members], predictions[members])
        yield Result(f"bits_per_byte{name}", component, subject, of_document[members] / math.log(2), documents.bytes[members].astype(float))


def _means(of_text: dict[str, Result], means: dict[str, list[str]]) -> Iterator[Result]:
    """Weights that make the ratio of sums, by which everything is resampled, the mean of ratios."""
    for name, parts in means.items():
        for kind in ("loss", "bits_per_byte"):
            found = [of_text[f"{kind}/{part}"] for part in parts]
            with np.errstate(divide="ignore", invalid="ignore"):  # nothing predicted: no mean either
                shares = [1 / (len(found) * one.denominators.sum()) for one in found]
            numerators = [share * one.numerators for share, one in zip(shares, found, strict=True)]
            denominators = [share * one.denominators for share, one in zip(shares, found, strict=True)]
            yield Result(f"{kind}/{name}", None, name, np.concatenate(numerators), np.concatenate(denominators))


def measurements(results: Sequence[Result], guards: Sequence[str], blank: Measurement) -> list[Measurement]:
    """A line a result, put into `blank`, which says all the rest about the run."""
    return [
        blank._replace(
            metric=result.metric, component=result.component, group="guard" if result.subject in guards else "target", value=result.value
        )
        for result in results
    ]


def write_items(file: Path, results: Sequence[Result]) -> None:
    """What every document and question gave, as a Parquet file of ITEMS."""
    columns = [
        pa.array([result.metric for result in results for _ in result.numerators], pa.string()),
        pa.array([result.component for result in results for _ in result.numerators], pa.string()),
        np.concatenate([np.zeros(0, np.int64), *(np.arange(len(result.numerators)) for result in results)]),
        np.concatenate([np.zeros(0), *(result.numerators for result in results)]),
        np.concatenate([np.zeros(0), *(result.denominators for result in results)]),
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=ITEMS), file)


def is_due(settings: Evaluate, before: int, after: int) -> bool:
    """Whether a mark was reached on the way from `before` to `after` tokens: `first` doubled as long as it stays below `every`, a multiple of `every`."""
    assert isinstance(settings.every, int)
    if after // settings.every > before // settings.every:
        return True
    mark = settings.first
    while mark and mark < settings.every:
        if before < mark <= after:
            return True
        mark *= 2
    return False
