"""Requests and tokens a second of the server back end, beside vLLM's own benchmark client: the same server, prompts and requests in flight, turn by turn.

    python benchmarks/synthesis.py MODEL_FOLDER [--prompts 512] [--in-flight 64] [--rounds 3] [--max-tokens 64] [--eager]

Runs in an environment that has vLLM (`make test-vllm` makes one, `pip install pandas` adds what its client wants; `tests/with_vllm/tiny_model.py` makes a model) and starts the server itself, without prefix caching, so that no run profits from the one before.
Both clients send chats of one message at temperature 0. vLLM's client streams and keeps nothing; ours takes whole answers and has each on disk before it counts. With `--stub` the server is one of
this script that answers at once, so that what is measured is the most that our client alone can do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curation.engine.work_directory import Work
from curation.synthesis.asking import Desk, Job, prompt_key
from curation.synthesis.config import Generation, Server
from curation.synthesis.server import Server as Backend
from curation.synthesis.store import Store
from curation.synthesis.template import read

PLAIN = read(
    "plain", "---\nexample: {passage: A passage., answer: An answer.}\n---\n=== prompt\n{{ passage }}\n\n=== document\n{{ text }}\n"
)
WORDS = [f"word{number}" for number in range(200)]
PEER = """
import argparse, sys
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""


def prompts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=30)) for _ in range(count)]


def ours(url: str, texts: list[str], in_flight: int, max_tokens: int, folder: Path) -> dict[str, float]:
    generation = Generation.model_validate({"model": "tiny", "temperature": 0, "max_tokens": max_tokens})
    with Store(Work(folder), {"model": "tiny"}) as store:
        jobs = [Job(prompt_key(prompt, 0), prompt, PLAIN, store) for prompt in map(PLAIN.messages, texts)]
        desk = Desk(generation)
        began, busy = time.perf_counter(), time.process_time()
        desk.ask(iter(jobs), lambda: Backend(Server.model_validate({"in_flight": in_flight}), url), generation)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    assert desk.sent == len(texts)
    return {"requests": desk.sent / seconds, "tokens": desk.tokens / seconds, "cpu_ms": 1000 * busy / desk.sent}


def theirs(url: str, texts: list[str], in_flight: int, max_tokens: int, folder: Path, model: str) -> dict[str, float]:
    data, result = folder / "prompts.jsonl", folder / "result.json"
    data.write_text("".join(json.dumps({"prompt": text, "output_tokens": max_tokens}) + "\n" for text in texts))
    options = {
        "backend": "openai-chat",
        "base-url": url.removesuffix("/v1"),
        "endpoint": "/v1/chat/completions",
        "model": "tiny",
        "tokenizer": model,
        "dataset-name": "custom",
        "dataset-path": str(data),
        "custom-output-len": str(max_tokens),
        "num-prompts": str(len(texts)),
        "max-concurrency": str(in_flight),
        "temperature": "0",
        "result-dir": str(folder),
        "result-filename": result.name,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-c", PEER, *flags, "--disable-shuffle", "--skip-chat-template", "--save-result"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(result.read_text())
    assert found["completed"] == len(texts), found
    return {"requests": found["request_throughput"], "tokens": found["output_throughput"]}


@contextlib.contextmanager
def vllm_server(model: str, eager: bool) -> Iterator[str]:
    port = _free_port()
    options = [
        "--served-model-name",
        "tiny",
        "--max-model-len",
        "512",
        "--no-enable-prefix-caching",
        "--generation-config",
        "vllm",
        "--host",
        "127.0.0.1",
    ]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        *options,
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--disable-log-stats",
    ]
    command += ["--enforce-eager"] * eager
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as server:
        try:
            while True:
                if server.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode(errors="replace")[-3000:])
                with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


STUB = """
import asyncio, json, sys
BODY = json.dumps({"choices": [{"message": {"content": "word " * 64}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 60, "completion_tokens": 64}}).encode()
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(BODY)
async def serve(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        length = next(int(line.split(b":")[1]) for line in head.split(b"\\r\\n") if line.lower().startswith(b"content-length"))
        await reader.readexactly(length)
        writer.write(HEAD + BODY)
async def quiet(reader, writer):
    try:
        await serve(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    async with await asyncio.start_server(quiet, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


@contextlib.contextmanager
def stub_server() -> Iterator[str]:
    port = _free_port()
    with subprocess.Popen([sys.executable, "-c", STUB, str(port)]) as server:
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def _free_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--eager", action="store_true", help="start vLLM without compiling")
    given = parser.parse_args()
    if given.stub == bool(given.model):
        parser.error("give a model's folder, or --stub")
    ratios = []
    with stub_server() if given.stub else vllm_server(given.model, given.eager) as url, tempfile.TemporaryDirectory() as room:
        for number in range(given.rounds + (not given.stub)):  # the first round warms the server up
            folder = Path(room) / str(number)
            folder.mkdir()
            texts = prompts(given.prompts, number)
            mine = ours(url, texts, given.in_flight, given.max_tokens, folder)
            line = f"ours {mine['requests']:8.1f} requests/s {mine['tokens']:9.1f} tokens/s, {mine['cpu_ms']:.2f} ms of CPU a request"
            if given.stub:
                print(line, flush=True)
                continue
            peer = theirs(url, texts, given.in_flight, given.max_tokens, folder, given.model)
            print(
                f"{line}   vllm {peer['requests']:8.1f} {peer['tokens']:9.1f}   ratio {mine['tokens'] / peer['tokens']:.3f}{'  (warm-up)' * (number == 0)}",
                flush=True,
            )
            ratios += [mine["tokens"] / peer["tokens"]] * (number > 0)
    if ratios:
        print(f"median ratio of tokens/s: {statistics.median(ratios):.3f} of {len(ratios)} rounds")


if __name__ == "__main__":
    main()
