"""A real HTTP server on loopback that speaks as much of the OpenAI API as synthesis uses, with faults on demand, for tests and benchmarks.

What it answers follows from the passage in the prompt alone: question-answer pairs made of the passage's own words. `python tests/answering.py PORT LOG` runs it as a process; every prompt is a
line in LOG, written before it is answered.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Fault = Callable[[int, dict[str, Any]], "str | bytes | int | None"]


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


def passage_of(body: dict[str, Any]) -> str:
    found = re.search(r"<passage>\n(.*)\n</passage>", prompt_of(body), re.DOTALL)
    return found[1] if found else prompt_of(body)


def pairs_about(passage: str, count: int) -> list[dict[str, str]]:
    words = passage.split()
    return [
        {
            "question": f"What is said of {' '.join(words[number : number + 6])}?",
            "answer": f"{' '.join(words[number * 7 : number * 7 + 12])}.",
        }
        for number in range(count)
    ]


def answer_to(body: dict[str, Any]) -> str:
    """What the model says: pairs, a rating, or a continuation, by what the prompt asks for."""
    prompt = prompt_of(body)
    if "messages" not in body:
        return " and so on" * 5
    if "Rate the document" in prompt:
        return json.dumps({"reason": "measured by its length", "rating": 1 + len(passage_of(body)) % 5})
    asked = re.search(r"Write (\d+) ", prompt)
    return json.dumps({"pairs": pairs_about(passage_of(body), int(asked[1]) if asked else 1)})


class Answering:
    """The server. `fault(number, body)` may give a status, `"drop"` (close half-way), `"half"` (half a body), `"slow"` (for longer than anybody here waits), other text as the model's answer, or None for none."""

    def __init__(self, fault: Fault | None = None, port: int = 0, log: Path | None = None, pause: float = 0.0) -> None:
        self.fault, self.prompts, self.bodies = fault, list[str](), list[dict[str, Any]]()
        self._lock, self._log, self._pause = threading.Lock(), log, pause
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                outer._answer(self)

        class Quiet(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

            def handle_error(self, *_: Any) -> None:
                pass

        self._http = Quiet(("127.0.0.1", port), Handler)
        self.port = int(self._http.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.prompts)
            self.prompts.append(prompt_of(body) if "messages" not in body else json.dumps(body["messages"]))
            self.bodies.append(body)
            if self._log is not None:
                with self._log.open("a") as log:
                    log.write(hashlib.sha256(self.prompts[-1].encode()).hexdigest() + "\n")
        time.sleep(self._pause)
        fault = self.fault(number, body) if self.fault else None
        if fault == "slow":
            time.sleep(60)
        if isinstance(fault, int):
            return self._send(handler, fault, b'{"error": {"message": "planted"}}', {"Retry-After": "0"} if fault == 429 else {})
        text = answer_to(body) if fault in (None, "drop", "half", "slow") else str(fault)
        place = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        reply = {
            "choices": [{**place, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(prompt_of(body).split()), "completion_tokens": len(text.split())},
        }
        content = json.dumps(reply).encode()
        if fault == "drop":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2])
            handler.close_connection = True
            return None
        return self._send(handler, 200, content[: len(content) // 2] if fault == "half" else content, {})

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    @contextmanager
    def running(self) -> Iterator[Answering]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


if __name__ == "__main__":
    with Answering(port=int(sys.argv[1]), log=Path(sys.argv[2]), pause=0.05).running():
        threading.Event().wait()
