"""What is to be asked, what has been answered, and what is asked again: the same for every back end.

A back end takes requests from a `Desk` with `next`, as many as it likes to have under way, and gives every answer to `settle`, in any order; `settle` writes it down at once and may return the
request to send next in its place. An answer that cannot be used is asked for again with another seed, up to the attempts of the recipe; what the store has is never asked at all.
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
        self._waiting.append(first)
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

    def settle(self, request: Request, answer: Answer) -> Request | None:
        """Stores an answer; the same job's next attempt if it cannot be used and another is allowed."""
        job = request.job
        job.store.add(job.key, request.attempt, answer)
        self.sent += 1
        self.tokens += answer.tokens_out
        parsed = job.template.parse(answer.text, cut=answer.cut) if answer.fault is None else Parsed(None, answer.fault)
        self.usable += parsed.reason is None
        self._show(self.goal(), self.told())
        if parsed.reason is not None and answer.fault is None and request.attempt + 1 < self._attempts:
            return Request(job, request.attempt + 1)
        self._count(job, parsed)
        return None

    def _count(self, job: Job, parsed: Parsed) -> None:
        if parsed.reason is None:
            self.documents[job.group] += len(job.documents(parsed.value))

    def told(self) -> str:
        """What was asked, what of it can be used, and tokens a second."""
        seconds = max(time.monotonic() - self._began, 0.001)
        faults = "".join(f", {count:,} {name}" for name, count in self.faults.most_common(2))
        return f"{self.sent:,} asked, {self.usable / max(self.sent, 1):.0%} usable, {self.tokens / seconds:,.0f} tokens/s{faults}"
