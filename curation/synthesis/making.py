"""From parents to a source: ask the model what is not known yet, then make documents of what it answered.

Asking fills the store and may end, die and go on at any point; making is a pure function of the parents, the recipe and the store, so the same recorded answers give the same documents. Parents are
asked in their own order (see `parents`), group by group as their shares demand, until `max_documents` are there: the documents are the first so many in that order, and what was under way beyond
them stays in the store for a larger build.

Out: a file of JSON Lines (`key`, `text` and the columns of `filters`) in the scratch room, which is read like any other source; and the parent's row of each of its records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from curation.corpus.shards import Shard
from curation.corpus.sources import Source
from curation.decisions.apply_steps import State
from curation.engine.local import Engine
from curation.engine.work_directory import Input, sha256_file
from curation.synthesis.asking import Backend, Desk, Job, attempts_of, prompt_key, settled
from curation.synthesis.config import Generation, Server, Vllm
from curation.synthesis.corruption import swapped
from curation.synthesis.cutting import passages
from curation.synthesis.filters import COLUMNS, Questions, code_parses, grounded, in_language
from curation.synthesis.parents import find_parents, texts_in_turn
from curation.synthesis.resolving import Model, Synthesis
from curation.synthesis.store import Store
from curation.synthesis.template import Template, defused
from curation.text.tokenizer import Encoder
from mixing.canonical import canonical_json


class Made(NamedTuple):
    """A source that has been synthesized, where the rows of its documents' parents lie (u64, by record), and what people are told of it."""

    source: Source
    parents: Path
    told: dict[str, Any]
    warning: str | None


class Planned(NamedTuple):
    """A job with what becomes of its answer: the passage it shows the model, and the row of the document this stands in."""

    job: Job
    row: int
    passage: str


class Document(NamedTuple):
    """One document of an answer."""

    key: str
    planned: Planned
    fields: dict[str, Any]


@dataclass
class Yield:
    """What became of the prompts that the documents are made of."""

    requested: int = 0
    parsed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    made: Counter[int] = field(default_factory=Counter)

    def told(self) -> dict[str, Any]:
        return {
            "requested": self.requested,
            "parsed": self.parsed,
            "rejected": dict(sorted(self.rejected.items())),
            "attempts": self.attempts,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "documents": sum(self.documents.values()),
            "by_template": dict(self.documents),
        }


def synthesize(synthesis: Synthesis, shards: Sequence[Shard], state: State, seed: int, engine: Engine) -> Made:
    """Makes the source from the documents in `shards`, those of the sources it names."""
    by, values = synthesis.config.by, synthesis.groups
    label = f"synthesize {synthesis.name}"
    parents = find_parents(shards, synthesis.config.from_, by, values, seed, state, engine, f"choose parents of {synthesis.name}")
    with engine.phase(label), ExitStack() as opened:
        maker = _Maker(synthesis, shards, parents, state, seed, opened)
        told = maker.ask(engine)
        source, rows, counts = maker.write()
    return Made(source, rows, {"parents": len(parents), **counts.told(), **told}, maker.shortage(counts))


class _Maker:
    """The jobs of one synthesized source."""

    def __init__(
        self, synthesis: Synthesis, shards: Sequence[Shard], parents: npt.NDArray[np.void], state: State, seed: int, opened: ExitStack
    ) -> None:
        self._synthesis, self._config, self._shards, self._parents = synthesis, synthesis.config, shards, parents
        self._state, self._seed = state, seed
        self._encoder = Encoder.open(state.tokenizer)
        self._targets = targets(self._config.max_documents, self._config.shares, synthesis.groups)
        self._opened: dict[str, Store] = {}
        self._stores = [self._store(template, self._config, synthesis.model, opened) for template in synthesis.templates]
        self._judging = None if synthesis.judge is None or self._config.judge is None else (*synthesis.judge, self._config.judge)
        self._judge_store = None if self._judging is None else self._store(self._judging[0], self._judging[2], self._judging[1], opened)

    def _store(self, template: Template, generation: Generation, model: Model, opened: ExitStack) -> Store:
        """The one store of these answers: templates that differ in what they show of themselves share it."""
        about = self._synthesis.about(template, generation, model)
        key = canonical_json(about)
        if key not in self._opened:
            self._opened[key] = opened.enter_context(Store(self._state.work, about))
        return self._opened[key]

    # --- asking

    def ask(self, engine: Engine) -> dict[str, Any]:
        """Has everything answered that the documents need, the judge's part too; what this build had to send for it."""
        desk = Desk(self._config, engine.progress.reach)
        total = sum(self._targets) if math.isfinite(sum(self._targets)) else None
        begun = Counter[int]()
        desk.goal = lambda: sum(desk.documents.values()) / total if total else begun[0] / max(len(self._parents), 1)
        desk.ask(
            (one.job for one in self._in_turn(desk, begun)), lambda: backend(self._config, self._synthesis.model, engine), self._config
        )
        told = {"sent": desk.sent, "faults": dict(sorted(desk.faults.items()))}
        if self._judging is not None:
            _, model, generation = self._judging
            judge = Desk(generation, lambda share, told: engine.progress.reach(share, f"judging: {told}"))
            judge.ask((self._judged(one) for one in self._documents(Yield())), lambda: backend(generation, model, engine), generation)
            told |= {"judged": judge.sent}
        return told

    def _in_turn(self, desk: Desk, begun: Counter[int]) -> Iterator[Planned]:
        """The jobs, always of the group that is furthest from its target, until every group has reached it or has no parents left."""
        waiting = {group: self._jobs(group, begun) for group in range(len(self._targets))}
        while waiting:
            group = min(waiting, key=lambda one: (desk.documents[one] / self._targets[one], one))
            one = next(waiting[group], None) if desk.documents[group] < self._targets[group] else None
            if one is None:
                del waiting[group]
            else:
                yield one

    def _jobs(self, group: int, begun: Counter[int] | None = None) -> Iterator[Planned]:
        """All jobs of a group, in the order of its parents."""
        config, template, store = self._config, self._synthesis.templates[group], self._stores[group]
        count = config.per_document if template.front.each else 1
        for row, text in texts_in_turn(self._parents[self._parents["group"] == group], self._shards):
            if begun is not None:
                begun[0] += 1
            for passage in passages(text, config.passage_tokens, self._encoder, config.passages):
                prompt = template.messages(passage, count=count)
                for sample in range(1 if template.front.each else config.per_document):
                    yield Planned(Job(prompt_key(prompt, sample), prompt, template, store, group, count), row, passage)

    def _judged(self, document: Document) -> Job:
        assert self._judging is not None
        assert self._judge_store is not None
        template = self._judging[0]
        text = document.planned.job.template.document(document.planned.passage, document.fields)
        prompt = template.messages(document.planned.passage, document=defused(text))
        return Job(prompt_key(prompt, 0), prompt, template, self._judge_store)

    # --- making

    def _documents(self, counts: Yield) -> Iterator[Document]:
        """What the answers make, group by group and up to its target, as the store has them."""
        attempts = attempts_of(self._config)
        seen: set[str] = set()
        for group, target in enumerate(self._targets):
            name = self._synthesis.templates[group].name
            made = 0
            for planned in self._jobs(group):
                if made >= target:
                    break
                found = settled(planned.job, attempts)
                assert found.parsed is not None, planned.job.key
                counts.requested += 1
                counts.attempts += found.attempts
                counts.tokens_in, counts.tokens_out = counts.tokens_in + found.tokens_in, counts.tokens_out + found.tokens_out
                if found.parsed.reason is not None:
                    counts.rejected[found.parsed.reason] += 1
                    continue
                counts.parsed += 1
                for number, fields in enumerate(
                    islice(planned.job.documents(found.parsed.value), None if target == math.inf else int(target) - made)
                ):
                    made += 1
                    counts.documents[name] += 1
                    counts.made[group] += 1
                    key = f"{planned.job.key}.{number}"
                    if key in seen:  # parents of one text have one answer, which makes documents of each
                        key += f".{planned.row}"
                    seen.add(key)
                    yield Document(key, planned, fields)

    def write(self) -> tuple[Source, Path, Yield]:
        """The documents as a file, and the rows of their parents; the same bytes for the same answers."""
        wrong = self._wrong_answers()
        folder = self._state.scratch / "synthesized" / self._synthesis.name
        folder.mkdir(parents=True, exist_ok=True)
        path, counts, rows, questions = folder / f"{self._synthesis.name}.jsonl", Yield(), [], Questions()
        with path.open("wb") as file:
            for document in self._documents(counts):
                rows.append(document.planned.row)
                file.write(orjson.dumps(self._record(document, wrong, questions)) + b"\n")
        np.save(folder / "parents.npy", np.array(rows, np.uint64))
        columns = {name: kind for name, kind in COLUMNS.items() if name != "judged" or self._judging is not None}
        config = self._synthesis.source.model_copy(update={"key": "key", "columns": list(columns)})
        inputs = [Input(path.name, path.stat().st_size, sha256_file(path))]
        source = Source(self._synthesis.name, config, folder, self._synthesis.name, [path.name], inputs, columns, {path.name: "lines"})
        return source, folder / "parents.npy", counts

    def shortage(self, counts: Yield) -> str | None:
        """What a person should know of a source that has fewer documents than were asked for, or none."""
        templates = [template.name for template in self._synthesis.templates]
        short = [
            f"{counts.made[group]:,} of {int(target):,} by {templates[group]}"
            for group, target in enumerate(self._targets)
            if target < math.inf and counts.made[group] < target
        ]
        if not len(self._parents):
            return f"sources.{self._synthesis.name}: no document was kept for which {self._config.from_!r} holds; nothing was synthesized"
        return f"sources.{self._synthesis.name}: the parents gave fewer documents than asked: {', '.join(short)}" if short else None

    def _record(self, document: Document, wrong: dict[str, str], questions: Questions) -> dict[str, Any]:
        planned, fields = document.planned, dict(document.fields)
        template = planned.job.template
        front = template.front
        if document.key in wrong and front.answer is not None:
            fields[front.answer] = wrong[document.key]
        text = template.document(planned.passage, fields)
        judged = {} if self._judging is None else {"judged": self._rating(document)}
        return {
            "key": document.key,
            "text": text,
            "template": template.name,
            "grounded": grounded(str(fields[front.answer]) if front.answer else text, planned.passage),
            "in_language": in_language(text, front.language),
            "question_like": questions.like(document.key, str(fields[front.question])) if front.question else None,
            "code_parses": code_parses(str(fields[front.code])) if front.code else None,
            **judged,
        }

    def _rating(self, document: Document) -> float | None:
        """The judge's rating; None if it gave none that can be used."""
        assert self._judging is not None
        parsed = settled(self._judged(document), attempts_of(self._judging[2])).parsed
        return float(parsed.value["rating"]) if parsed is not None and parsed.reason is None else None

    def _wrong_answers(self) -> dict[str, str]:
        if not self._config.corrupt:
            return {}
        answers = {one.key: str(one.fields[one.planned.job.template.front.answer or ""]) for one in self._documents(Yield())}
        return swapped(list(answers), list(answers.values()), self._config.corrupt, self._seed)


def targets(documents: int | None, shares: dict[str, float] | None, groups: Sequence[str]) -> list[float]:
    """The documents of each group, by largest remainder; without `documents` there is no end but that of the parents."""
    if documents is None:
        return [math.inf] * len(groups)
    weights = [1.0 if shares is None else shares[name] for name in groups]
    exact = [documents * weight / sum(weights) for weight in weights]
    whole = [math.floor(one) for one in exact]
    by_remainder = sorted(range(len(groups)), key=lambda one: (whole[one] - exact[one], one))
    for one in by_remainder[: documents - sum(whole)]:
        whole[one] += 1
    return [float(one) for one in whole]


def backend(generation: Generation, model: Model, engine: Engine) -> Backend:
    """What answers, ready to; a model is loaded here and not before."""
    from curation.synthesis import local, server, spread

    config = generation.backend
    if isinstance(config, Server):
        return server.Server(config, model.location)
    gpus = config.tensor_parallel if isinstance(config, Vllm) else int(config.device != "cpu")
    in_flight = config.in_flight if isinstance(config, Vllm) else config.batch
    residents = engine.residents(local.exchange, (generation, model.location), gpus)
    if residents is None:
        return spread.Here(local.exchange(generation, model.location), in_flight)
    return spread.Spread(residents, in_flight)
