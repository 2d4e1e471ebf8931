"""Any OpenAI-compatible server, with many requests under way.

Every request that the recipe allows in flight has a worker that sends, waits and takes the next one, so prompts are made no faster than they are answered. What goes wrong is counted by its
name in `desk.faults` and told apart by whose fault it is:

- the server is away (no connection, 502, 503, 504) or busy (429): wait, longer each time up to a minute or as long as it says, for as long as the recipe has patience since the last answer;
- the request failed (other 5xx, a time-out, half an answer) or was refused (4xx): try it `TRIES` times, then ask the template's own example. If that is answered, the fault is the prompt's:
  it is stored, and the build goes on without it. If not, it is the server's: a refusal stops the build with what the server said, everything else waits on.

A key that is not accepted and a model that is not there stop the build at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, NamedTuple

import orjson

from curation.engine.local import hear_interrupts
from curation.synthesis.asking import Desk, Job, Request
from curation.synthesis.config import Generation
from curation.synthesis.config import Server as ServerConfig
from curation.synthesis.store import Answer
from mixing import UserError

TRIES = 4
LONGEST_WAIT = 60.0
FIRST_WAIT = 0.5
CONNECT_SECONDS = 10.0
_AWAY = (502, 503, 504)
_REFUSES_ALL = (401, 403, 404)
_SAID = 300  # characters of a server's message


class Trouble(NamedTuple):
    """Why a request has no answer: a name to count it by, what was said, and how long the server wants to be left alone."""

    name: str
    said: str = ""
    wait: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it says nothing about the request."""
        return self.name in ("no connection", "http 429", *(f"http {status}" for status in _AWAY))

    @property
    def refused(self) -> bool:
        return self.name.startswith("http 4") and not self.waits


class Server:
    """A back end behind a URL that ends in `/v1`."""

    def __init__(self, config: ServerConfig, url: str) -> None:
        self._config = config
        self._url = url.rstrip("/")
        self._last_answer = time.monotonic()
        self._healthy_at = float("-inf")

    def run(self, desk: Desk, generation: Generation) -> None:
        """Answers everything at the desk, or raises a UserError that says what the server has to say."""
        try:
            _to_its_end(self._run(desk, generation))
        except* UserError as group:
            raise _first(group) from None

    async def _run(self, desk: Desk, generation: Generation) -> None:
        try:
            import aiohttp
        except ImportError:
            raise UserError("synthesize.backend: the package aiohttp is missing; pip install 'tilth[synthesis]'") from None
        key = os.environ.get("OPENAI_API_KEY")
        times = aiohttp.ClientTimeout(total=self._config.timeout, sock_connect=CONNECT_SECONDS)
        self._last_answer = time.monotonic()
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=times, headers={"Authorization": f"Bearer {key}"} if key else {}
            ) as session,
            asyncio.TaskGroup() as workers,
        ):
            for _ in range(self._config.in_flight):
                workers.create_task(self._work(session, desk, generation))

    async def _work(self, session: Any, desk: Desk, generation: Generation) -> None:
        while (request := desk.next()) is not None:
            desk.settle(request, await self._answer(session, request, desk, generation))

    async def _answer(self, session: Any, request: Request, desk: Desk, generation: Generation) -> Answer:
        """The answer, however long the server is away; a fault once it is known to be the request's own."""
        tries = waits = 0
        while True:
            found = await self._send(session, request, generation)
            if isinstance(found, Answer):
                self._last_answer = time.monotonic()
                return found
            desk.faults[found.name] += 1
            if not found.waits:
                tries += 1
                if tries >= TRIES or found.refused:
                    if await self._is_healthy(session, request, generation):
                        return Answer("", fault=found.name)
                    if found.refused:
                        raise UserError(
                            f"synthesize.backend: {self._url} refuses every request ({found.name}: {found.said}); the template's own example, too"
                        )
            if time.monotonic() - self._last_answer > self._config.patience:
                raise UserError(
                    f"synthesize.backend: no answer from {self._url} for {self._config.patience:g} s ({found.name}{': ' * bool(found.said)}{found.said}); what was answered is kept: "
                    "start the server and run the build again"
                )
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0**waits) * random.uniform(0.5, 1.0) if found.wait is None else found.wait
            waits += 1
            await asyncio.sleep(min(wait, LONGEST_WAIT))

    async def _is_healthy(self, session: Any, request: Request, generation: Generation) -> bool:
        """Whether the server answers the template's own example; asked at most every half minute."""
        if time.monotonic() - self._healthy_at > LONGEST_WAIT / 2:
            example = request.job.template.front.example
            prompt = request.job.template.messages(example["passage"], document="")
            found = await self._send(session, Request(Job("0" * 32, prompt, request.job.template, request.job.store), 0), generation)
            if not isinstance(found, Answer):
                return False
            self._healthy_at = time.monotonic()
        return True

    async def _send(self, session: Any, request: Request, generation: Generation) -> Answer | Trouble:
        import aiohttp

        body = orjson.dumps(payload(request, generation))
        place = "chat/completions" if isinstance(request.job.prompt, list) else "completions"
        try:
            async with session.post(f"{self._url}/{place}", data=body, headers={"Content-Type": "application/json"}) as response:
                content = await response.read()
                if response.status in _REFUSES_ALL:
                    raise UserError(
                        f"synthesize.backend: {self._url} refuses (http {response.status}: {_message(content)}); look at the model's name, the URL and OPENAI_API_KEY"
                    )
                if response.status != 200:
                    return Trouble(f"http {response.status}", _message(content), _retry_after(response.headers.get("Retry-After")))
        except TimeoutError as error:
            return Trouble("no connection" if isinstance(error, aiohttp.ServerTimeoutError) and "onnect" in str(error) else "time-out")
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionResetError):
            return Trouble("half an answer")
        except aiohttp.InvalidURL:
            raise UserError(f"synthesize.backend.url: {self._url!r} is no URL; accepted: http://HOST:PORT/v1") from None
        except aiohttp.ClientError as error:
            return Trouble("no connection", str(error)[:_SAID])
        return _read(content)


def payload(request: Request, generation: Generation) -> dict[str, Any]:
    """The body of a request."""
    prompt = request.job.prompt
    body: dict[str, Any] = {
        "model": generation.model,
        "messages" if isinstance(prompt, list) else "prompt": prompt,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "max_tokens": generation.max_tokens,
        "seed": request.seed,
    }
    if generation.guided and request.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": request.schema, "strict": True}}
    return body


def _read(content: bytes) -> Answer | Trouble:
    try:
        said = orjson.loads(content)
        choice = said["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        usage = said.get("usage") or {}
        return Answer(
            text or "", choice.get("finish_reason") or "stop", usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        )
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return Trouble("half an answer")


def _message(content: bytes) -> str:
    text = content.decode(errors="replace")
    try:
        said = orjson.loads(content)
        error = said.get("error", said)
        text = str(error.get("message", text)) if isinstance(error, dict) else str(error)
    except (orjson.JSONDecodeError, AttributeError):
        pass
    return " ".join(text.split())[:_SAID]


def _retry_after(written: str | None) -> float | None:
    """Seconds; a date is not worth a clock."""
    return float(written) if written is not None and written.isdigit() else None


def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Runs it as `asyncio.run` does; under a loop that is running already, as that of a notebook, on a thread of its own, which an interrupt ends."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    with ThreadPoolExecutor(1) as thread, closing(loop):
        ended = thread.submit(loop.run_until_complete, task)
        hear_interrupts()
        try:
            ended.result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(task.cancel)
            wait([ended])
            raise


def _first(group: BaseExceptionGroup[UserError]) -> UserError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError
