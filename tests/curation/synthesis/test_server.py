"""The server back end against a real HTTP server with planted faults: each is counted, none is fatal, none is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import Answering, passage_of

from curation.engine.work_directory import Work
from curation.synthesis import server
from curation.synthesis.asking import Desk, Job, prompt_key, settled
from curation.synthesis.config import Generation, Server
from curation.synthesis.store import Store
from curation.synthesis.template import load
from mixing import UserError

PASSAGES = [f"Passage number {number} tells of things that have the number {number} and of nothing else at all." for number in range(30)]
QA = load("qa")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(Work(tmp_path), {"model": "m"}) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_WAIT", 0.01)


def jobs(store: Store, passages: list[str] = PASSAGES) -> list[Job]:
    prompts = [QA.messages(passage, count=1) for passage in passages]
    return [Job(prompt_key(prompt, 0), prompt, QA, store) for prompt in prompts]


def generation(**changes: Any) -> Generation:
    return Generation.model_validate({"model": "m", **changes})


def ask(
    url: str, store: Store, passages: list[str] = PASSAGES, *, settings: Generation | None = None, desk: Desk | None = None, **changes: Any
) -> Desk:
    settings = settings or generation()
    config = Server.model_validate({"in_flight": 8, "patience": 30, **changes})
    desk = desk or Desk(settings)
    desk.ask(iter(jobs(store, passages)), lambda: server.Server(config, url), settings)
    return desk


def reasons(store: Store, passages: list[str] = PASSAGES) -> list[str | None]:
    found = [settled(job, 3).parsed for job in jobs(store, passages)]
    assert None not in found
    return [one.reason for one in found if one is not None]


@pytest.mark.parametrize(
    ("fault", "name"),
    [(429, "http 429"), (500, "http 500"), (503, "http 503"), ("drop", "half an answer"), ("half", "half an answer"), ("slow", "time-out")],
)
def test_fault_that_passes_is_counted_and_costs_nothing(fault: str | int, name: str, store: Store) -> None:
    with Answering(lambda number, _: fault if number in (3, 10, 11) else None).running() as answering:
        desk = ask(answering.url, store, timeout=3.0 if fault == "slow" else 60.0)

    assert desk.faults == {name: 3}
    assert reasons(store) == [None] * 30
    assert len(answering.prompts) == 33


@pytest.mark.parametrize(("fault", "name"), [(500, "http 500"), (400, "http 400"), ("half", "half an answer")])
def test_prompt_that_always_fails_is_one_fault_and_the_rest_goes_on(fault: str | int, name: str, store: Store) -> None:
    with Answering(lambda _, body: fault if passage_of(body) == PASSAGES[7] else None).running() as answering:
        ask(answering.url, store)
        sent = len(answering.prompts)
        again = ask(answering.url, store)

        assert reasons(store) == [name if number == 7 else None for number in range(30)]
        assert (again.sent, len(answering.prompts)) == (0, sent)


@pytest.mark.parametrize(("said", "reason"), [("", "empty answer"), ("{", "not JSON"), ("[]", "not by the schema")])
def test_answer_that_cannot_be_used_is_asked_again_with_another_seed_and_then_counted(said: str, reason: str, store: Store) -> None:
    with Answering(lambda _, body: said if passage_of(body) == PASSAGES[7] else None).running() as answering:
        ask(answering.url, store)

    mine = [body for body in answering.bodies if passage_of(body) == PASSAGES[7]]
    assert len({body["seed"] for body in mine}) == len(mine) == 3
    assert reasons(store) == [reason if number == 7 else None for number in range(30)]


def test_at_temperature_0_an_answer_that_cannot_be_used_is_not_asked_again(store: Store) -> None:
    with Answering(lambda *_: "{").running() as answering:
        ask(answering.url, store, PASSAGES[:4], settings=generation(temperature=0))

    assert len(answering.prompts) == 4


def test_server_that_is_away_at_first_is_waited_for(store: Store) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
    desk = Desk(generation())
    asking = threading.Thread(target=lambda: ask(f"http://127.0.0.1:{port}/v1", store, desk=desk))
    asking.start()
    while asking.is_alive() and not desk.faults["no connection"]:
        time.sleep(0.01)
    with Answering(port=port).running():
        asking.join()

    assert desk.faults["no connection"] > 0
    assert reasons(store) == [None] * 30


def in_a_cell(work: Callable[[], object]) -> None:
    """Calls it as a cell of a notebook does, under a loop that is running."""

    async def cell() -> None:
        work()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(cell())
    finally:
        loop.close()


def test_under_a_running_loop_all_is_answered_and_refused_as_elsewhere(store: Store) -> None:
    with Answering(lambda number, _: "half" if number == 3 else None).running() as answering:
        in_a_cell(lambda: ask(answering.url, store, PASSAGES[:20]))
        url = answering.url

    assert len(store) == len(answering.prompts) - 1 == 20
    with pytest.raises(UserError, match=r"no answer from .* for 0.2 s .*what was answered is kept"):
        in_a_cell(lambda: ask(url, store, patience=0.2))


def test_under_a_running_loop_an_interrupt_ends_the_asking(store: Store) -> None:
    ended = threading.Event()

    def interrupts(number: int, _: dict[str, Any]) -> None:
        if number == 12:
            os.kill(os.getpid(), signal.SIGINT)
            ended.wait(30)  # the interrupt has all the time that a busy machine makes it take

    with Answering(interrupts).running() as answering:
        with pytest.raises(KeyboardInterrupt):
            in_a_cell(lambda: ask(answering.url, store, in_flight=1))
        ended.set()

    assert len(store) < 30


def test_server_that_stays_away_stops_the_build_and_loses_nothing(store: Store) -> None:
    with Answering().running() as answering:
        ask(answering.url, store, PASSAGES[:10])
        url = answering.url

    with pytest.raises(UserError, match=r"no answer from .* for 0.2 s .*what was answered is kept"):
        ask(url, store, patience=0.2)

    with Answering().running() as answering:
        ask(answering.url, store)
        assert len(answering.prompts) == 20


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_server_that_refuses_everything_stops_the_build_with_what_it_says(status: int, store: Store) -> None:
    with Answering(lambda *_: status).running() as answering, pytest.raises(UserError, match=rf"refuses.*http {status}: planted"):
        ask(answering.url, store)

    assert len(store) == 0


def test_no_more_than_in_flight_are_under_way_and_as_many_are(store: Store) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def watch(_: int, __: dict[str, Any]) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1

    with Answering(watch).running() as answering:
        ask(answering.url, store, in_flight=5)

    assert most[0] == 5


def test_request_carries_the_schema_when_guided_and_not_otherwise(store: Store, tmp_path: Path) -> None:
    with Answering().running() as answering, Store(Work(tmp_path), {"model": "other"}) as other:
        ask(answering.url, store, PASSAGES[:1])
        ask(answering.url, other, PASSAGES[:1], settings=generation(guided=False))

    guided, free = answering.bodies
    assert guided["response_format"]["json_schema"]["schema"] == QA.front.schema_
    assert "response_format" not in free
    assert json.dumps(guided["messages"]) == json.dumps(free["messages"])
