"""Synthesis with vLLM itself, in its own environment (`make test-vllm`): in process and behind its server, guided, killed and resumed.

The model is made and trained on the spot (`tiny_model.py`). The server counts the requests it has finished.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")

from recipes import json_lines, pool_of, write_file, write_recipe
from tiny_model import passage

DOCUMENTS = 60
IN_FLIGHT = 8
BUILD = "import sys; from curation.cli import main; main(sys.argv[1:])"
ENVIRONMENT = os.environ | {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}
TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
PAIR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["question", "answer"],
    "properties": {"question": TEXT, "answer": TEXT},
}
PAIRS = {"type": "array", "minItems": 1, "maxItems": 1, "items": PAIR}
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["pairs"], "properties": {"pairs": PAIRS}}
FRONT = {
    "schema": SCHEMA,
    "each": "pairs",
    "answer": "answer",
    "example": {"passage": "A.", "answer": {"pairs": [{"question": "A?", "answer": "A."}]}},
}
BARE = f"---\n{json.dumps(FRONT)}\n---\n=== prompt\n{{{{ passage }}}}\n=== document\n{{{{ question }}}} {{{{ answer }}}}\n"
pytestmark = pytest.mark.timeout(1500)


class Served(NamedTuple):
    """A running server and the model behind it."""

    url: str
    model: Path

    def finished(self) -> int:
        """The requests that the server has answered so far."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return round(sum(float(line.split()[-1]) for line in lines if re.match(r"vllm:request_success_total\{", line)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("TINY_MODEL")
    folder = Path(given) if given else tmp_path_factory.mktemp("model") / "tiny"
    if not (folder / "config.json").exists():
        subprocess.run([sys.executable, str(Path(__file__).with_name("tiny_model.py")), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
    log = (tmp_path_factory.mktemp("server") / "log").open("wb")
    options = [
        "--dtype",
        "float32",
        "--max-model-len",
        "512",
        "--enforce-eager",
        "--generation-config",
        "vllm",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny", *options]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    try:
        while True:
            assert server.poll() is None, Path(log.name).read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        yield Served(f"http://127.0.0.1:{port}/v1", model)
    finally:
        server.terminate()
        server.wait()
        log.close()


def written(folder: Path, model: str, backend: dict[str, Any], **changes: Any) -> list[str]:
    """A corpus and a recipe with one synthesized source; the command that builds it."""
    write_file(folder / "pages.jsonl", json_lines({"text": f"{passage(random.Random(number))} {number}"} for number in range(DOCUMENTS)))
    (folder / "bare.md").write_text(BARE)
    made = {
        "from": "source = 'pages'",
        "template": "bare.md",
        "model": model,
        "backend": backend,
        "temperature": 0,
        "max_tokens": 160,
        **changes,
    }
    values = {
        "name": "small",
        "tokenizer": {"path": "tokenizer"},
        "sources": {"pages": {"files": "pages.jsonl"}, "qa": {"synthesize": made}},
        "mixture": {
            "sequence_length": 128,
            "components": {"pages": "source = 'pages'", "qa": "source = 'qa'"},
            "stages": [{"name": "adapt", "tokens": 500, "weights": {"pages": 1}}],
        },
    }
    return [sys.executable, "-c", BUILD, "build", str(write_recipe(folder, values)), "-o", str(folder / "out"), "--workers", "1"]


def documents(folder: Path) -> dict[int, tuple[str, ...]]:
    """The contents made from each parent."""
    found: dict[int, list[str]] = {}
    for row in pool_of(folder / "out"):
        if row["parents"]:
            found.setdefault(row["parents"][0], []).append(row["content"])
    return {parent: tuple(contents) for parent, contents in found.items()}


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "provenance.json").read_text())["synthesized"]["qa"]
    return found


def test_in_process_and_behind_its_server_vllm_makes_equal_documents_at_temperature_0(served: Served, tmp_path: Path) -> None:
    here = {"kind": "vllm", "dtype": "float32", "context": 512, "eager": True, "in_flight": IN_FLIGHT}
    there = {"kind": "server", "url": served.url, "in_flight": IN_FLIGHT}
    for name, model, backend in (("here", str(served.model), here), ("there", "tiny", there)):
        (tmp_path / name).mkdir()
        subprocess.run(written(tmp_path / name, model, backend), check=True, env=ENVIRONMENT)

    here_told, there_told = told(tmp_path / "here"), told(tmp_path / "there")
    print(json.dumps({"in process": here_told, "server": there_told}))
    assert here_told["requested"] == DOCUMENTS
    assert here_told["parsed"] > DOCUMENTS / 2  # guided: what is left is cut at max_tokens
    assert set(here_told["rejected"]) <= {"cut at max_tokens"}
    assert documents(tmp_path / "here") == documents(tmp_path / "there")
    assert len(set(documents(tmp_path / "here").values())) > 5
    assert {name: count for name, count in here_told.items() if name != "sent"} == {
        name: count for name, count in there_told.items() if name != "sent"
    }


def test_build_killed_half_way_sends_nothing_again_that_was_answered(served: Served, tmp_path: Path) -> None:
    command = written(tmp_path, "tiny", {"kind": "server", "url": served.url, "in_flight": IN_FLIGHT}, temperature=0.7, attempts=1)
    before = served.finished()
    building = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stored() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob(".tilth/generations/*/answers.jsonl"))

    while stored() < DOCUMENTS // 3 and building.poll() is None:
        time.sleep(0.005)
    os.kill(building.pid, signal.SIGKILL)
    building.wait()
    answered = stored()
    subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)

    assert DOCUMENTS // 3 <= answered < DOCUMENTS
    assert told(tmp_path)["sent"] == DOCUMENTS - answered
    assert DOCUMENTS <= served.finished() - before <= DOCUMENTS + IN_FLIGHT  # what was under way when it died
    print(f"{answered} answered before the kill, {served.finished() - before} requests finished at the server for {DOCUMENTS} prompts")


def test_perplexity_by_vllm_is_that_of_transformers(model: Path, tmp_path: Path) -> None:
    """Texts of one window and of several, in a process of its own: vLLM's engine stays until its process ends."""
    texts = [f"{passage(random.Random(number))} {number}" * (1 + number % 4) for number in range(24)]
    script = f"""
import json, pyarrow as pa
from pathlib import Path
from curation.signals import SIGNALS
signal, texts = SIGNALS["causal_lm"], pa.array({texts!r}, pa.large_string())
for engine in ("transformers", "vllm"):
    config = signal.config.model_validate({{"kind": "causal_lm", "model": {str(model)!r}, "bos": False, "context": 40, "engine": engine}})
    Path({str(tmp_path)!r}, engine).write_text(json.dumps(signal.compute(config, texts, Path({str(model)!r})).to_pylist()))
"""
    (tmp_path / "script.py").write_text("if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in script.splitlines()))

    subprocess.run([sys.executable, str(tmp_path / "script.py")], check=True, env=ENVIRONMENT, timeout=1200)

    ours, theirs = (json.loads((tmp_path / engine).read_text()) for engine in ("transformers", "vllm"))
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert max(row["tokens"] for row in ours) > 40  # more than a window
    differences = [abs(one["perplexity"] / other["perplexity"] - 1) for one, other in zip(ours, theirs, strict=True)]
    print(f"perplexity by vLLM: greatest relative difference {max(differences):.1e} of {len(texts)} texts")
    assert max(differences) < 1e-4
