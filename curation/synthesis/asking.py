"""What is to be asked, what has been answered, and what is asked again: the same for every back end.

A back end takes requests from a `Desk` with `next`, as many as it likes to have under way, and gives every answer to `settle`, in any order, which writes it down at once. An answer that cannot be
used is asked for again with another seed, up to the attempts of the recipe: `next` gives that request first. What the store has is never asked at all.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import orjson

from curation.synthesis.config import Generation
from curation.synthesis.store import Answer, Store
from curation.synthesis.template import Parsed, Template

Prompt = list[dict[str, str]] | str


class Job(NamedTuple):
    """A prompt, where its answers are stored under which key, and the group whose documents it makes, at most `limit`."""

    key: str
    prompt: Prompt
    template: Template
    store: Store
    group: int = 0
    limit: int = 1

    def documents(self, value: Any) -> list[dict[str, Any]]:
        """The fields of each document of an answer."""
        return self.template.items(value)[: self.limit]


class Request(NamedTuple):
    """One attempt at a job."""

    job: Job
    attempt: int

    @property
    def seed(self) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.job.key}.{self.attempt}".encode()).digest()[:4]) & 0x7FFFFFFF

    @property
    def schema(self) -> dict[str, Any] | None:
        return self.job.template.front.schema_


class Asked(NamedTuple):
    """A request as a model sees it, by a number to know its answer by. It is small and may travel, which a request may not: that has the store."""

    number: int
    prompt: Prompt
    schema: dict[str, Any] | None
    seed: int


class Settled(NamedTuple):
    """What the store has of a job: the value or the reason of its last attempt, the tokens of all, and how many there were; `parsed` is None while an attempt is open."""

    parsed: Parsed | None
    attempts: int
    tokens_in: int
    tokens_out: int


class Backend(Protocol):
    """Something that answers: takes requests from the desk until it has none left."""

    def run(self, desk: Desk, generation: Generation) -> None: ...


def prompt_key(prompt: Prompt, sample: int) -> str:
    """32 hex characters naming a prompt and which of several answers to it is meant."""
    return hashlib.sha256(orjson.dumps([prompt, sample])).hexdigest()[:32]


def attempts_of(generation: Generation) -> int:
    """At temperature 0 the same prompt has the same answer."""
    return generation.attempts if generation.temperature > 0 else 1


def settled(job: Job, attempts: int) -> Settled:
    """What the store has of a job; a fault and a usable answer end it, and so does the last attempt."""
    tokens_in = tokens_out = 0
    parsed: Parsed | None = None
    for attempt in range(attempts):
        answer = job.store.find(job.key, attempt)
        if answer is None:
            return Settled(None, attempt, tokens_in, tokens_out)
        tokens_in, tokens_out = tokens_in + answer.tokens_in, tokens_out + answer.tokens_out
        parsed = job.template.parse(answer.text, cut=answer.cut) if answer.fault is None else Parsed(None, answer.fault)
        if answer.fault is not None or parsed.reason is None:
            return Settled(parsed, attempt + 1, tokens_in, tokens_out)
    return Settled(parsed, attempts, tokens_in, tokens_out)


class Desk:
    """The jobs of one model. `documents` counts, by group, those that the answers make: the iterator of jobs may look there to see when to end. `show` is given the share of
    `goal` that is reached, and words about it, after every answer."""

    def __init__(self, generation: Generation, show: Callable[[float, str], None] = lambda share, told: None) -> None:
        self._attempts = attempts_of(generation)
        self._jobs: Iterator[Job] = iter(())
        self._waiting: list[Request] = []
        self._show = show
        self._began = time.monotonic()
        self.documents: Counter[int] = Counter()
        self.sent = self.usable = self.tokens = 0
        self.faults: Counter[str] = Counter()
        self.goal: Callable[[], float] = lambda: 0.0

    def ask(self, jobs: Iterator[Job], backend: Callable[[], Backend], generation: Generation) -> None:
        """Has every job answered. The back end is made only if one is not."""
        self._jobs = jobs
        first = self.next()
        if first is None:
            return
        self.again(first)
        answering = backend()
        self._began = time.monotonic()
        answering.run(self, generation)

    def next(self) -> Request | None:
        """The next request that has to be sent; None when there is none."""
        if self._waiting:
            return self._waiting.pop()
        for job in self._jobs:
            found = settled(job, self._attempts)
            if found.parsed is None:
                return Request(job, found.attempts)
            self._count(job, found.parsed)
        return None

    def settle(self, request: Request, answer: Answer) -> None:
        """Stores an answer. If it cannot be used and another attempt is allowed, that waits."""
        job = request.job
        job.store.add(job.key, request.attempt, answer)
        self.sent += 1
        self.tokens += answer.tokens_out
        parsed = job.template.parse(answer.text, cut=answer.cut) if answer.fault is None else Parsed(None, answer.fault)
        self.usable += parsed.reason is None
        self._show(self.goal(), self.told())
        if parsed.reason is not None and answer.fault is None and request.attempt + 1 < self._attempts:
            self.again(Request(job, request.attempt + 1))
        else:
            self._count(job, parsed)

    def again(self, request: Request) -> None:
        """Has a request sent once more, before any other."""
        self._waiting.append(request)

    def _count(self, job: Job, parsed: Parsed) -> None:
        if parsed.reason is None:
            self.documents[job.group] += len(job.documents(parsed.value))

    def told(self) -> str:
        """What was asked, what of it can be used, and tokens a second."""
        seconds = max(time.monotonic() - self._began, 0.001)
        faults = "".join(f", {count:,} {name}" for name, count in self.faults.most_common(2))
        return f"{self.sent:,} asked, {self.usable / max(self.sent, 1):.0%} usable, {self.tokens / seconds:,.0f} tokens/s{faults}"


class UnderWay:
    """The requests of a desk that one model has, at most so many at a time."""

    def __init__(self, desk: Desk, most: int) -> None:
        self._desk, self._most = desk, most
        self._requests = dict[int, Request]()
        self._begun = 0

    def __len__(self) -> int:
        return len(self._requests)

    def taken(self) -> list[Asked]:
        """What is to be sent now, so that it has as many as it may."""
        new: list[Asked] = []
        while len(self) < self._most and (request := self._desk.next()) is not None:
            new.append(Asked(self._begun, request.job.prompt, request.schema, request.seed))
            self._requests[self._begun] = request
            self._begun += 1
        return new

    def settle(self, answers: list[tuple[int, Answer]]) -> None:
        for number, answer in answers:
            self._desk.settle(self._requests.pop(number), answer)

    def lose(self) -> None:
        """The model is gone: what it has not answered goes back to the desk."""
        for request in self._requests.values():
            self._desk.again(request)
        self._requests.clear()
