"""Two machines, as two torchrun agents, train from one manifest in an object store; one is lost, comes back, and the parameters are those of one process left alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import small_manifest
from stores import connected, served, upload

from mixing import validated
from train.config import Config
from train.loop import train

CONFIG: dict[str, Any] = {
    "model": {
        "config": {
            "model_type": "llama",
            "hidden_size": 36,
            "intermediate_size": 70,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "vocab_size": 261,
        }
    },
    "batch": 8,
    "exact": {"bins": 4},
    "optimizer": {"learning_rate": 0.01, "clip": 0.5},
    "evaluate": {"every": "1M"},
    "checkpoint": {"every": 4, "keep": 2},
}
SCRIPT = """
import os, sys, time
from pathlib import Path
from train import loop
from train.__main__ import main

worlds, halt, reached = (Path(sys.argv[1] + end) for end in ("", ".halt", ".reached"))

def halting(*arguments, steps=loop.steps):
    for step in steps(*arguments):
        reached.write_text(str(step.first))
        while halt.exists() and step.first >= int(halt.read_text() or 0):
            time.sleep(0.05)
        yield step

with worlds.open("a") as file:
    file.write(os.environ["WORLD_SIZE"] + chr(10))
loop.steps, sys.argv = halting, ["tilth-train", "run", *sys.argv[2:]]
main()
"""
TIMES = "last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=5,read_timeout=180"


class Machine:
    """A torchrun agent in a process group of its own, with a cache of its own."""

    def __init__(self, name: str, port: int, folder: Path, environment: dict[str, str], arguments: list[str]) -> None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=9"]
        host = f"is_host={int(name == 'a')},{TIMES}"
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=run", f"--rdzv-conf={host}"]
        self.worlds, self.errors = folder / f"worlds-{name}", folder / f"errors-{name}"
        self.halt, self.reached = folder / f"worlds-{name}.halt", folder / f"worlds-{name}.reached"
        self._stderr = self.errors.open("ab")
        self.process = subprocess.Popen(
            [*torchrun, *rendezvous, folder / "script.py", self.worlds, *arguments],
            env=environment | {"TILTH_CACHE": str(folder / f"cache-{name}")},
            stderr=self._stderr,
        )

    def kill(self) -> None:
        """All of it at once, as when its power fails."""
        for process in [self.process.pid, *(int(child) for child in self._children())]:
            os.kill(process, signal.SIGKILL)
        self.process.wait()

    def _children(self) -> list[str]:
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._stderr.close()

    def stands_before(self, sequence: int) -> bool:
        """Whether its trainer waits to be let on from the step that begins there."""
        return self.reached.exists() and self.reached.read_text() == str(sequence)

    def world(self) -> int:
        return int(self.worlds.read_text().splitlines()[-1]) if self.worlds.exists() else 0


def told(run: Path) -> tuple[str, float]:
    """The digest of the parameters at the end, and the last loss."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return hashlib.sha256((run / "export/model.safetensors").read_bytes()).hexdigest(), last["loss"]


def wait_for(what: Callable[[], bool], machine: Machine) -> None:
    end = time.monotonic() + 240
    while not what():
        assert time.monotonic() < end, machine.errors.read_text()[-3000:]
        assert machine.process.poll() in (None, 0), machine.errors.read_text()[-3000:]
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_machine_that_is_lost_and_comes_back_leaves_the_parameters_of_one_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = small_manifest(tmp_path / "small", tokens=40_000)
    expected = told(train(manifest, validated(Config, CONFIG), "fresh", tmp_path / "alone"))
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG))
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "worlds-a.halt").write_text("48")
    run = tmp_path / "run"

    with served() as there, socket.socket() as free:
        for name, value in {**there, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "c0ffee-of-the-trainer"}.items():
            monkeypatch.setenv(name, value)  # without credentials the client sends what the server does not take apart
        environment = {
            **os.environ,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        upload(connected(there), manifest, "manifests")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        arguments = ["s3://manifests", str(tmp_path / "config.yaml"), "-o", str(run)]
        a, b = (Machine(name, port, tmp_path, environment, arguments) for name in "ab")
        try:
            wait_for(lambda: a.stands_before(48), a)
            assert a.world() == 2
            b.kill()
            a.halt.write_text("96")
            wait_for(lambda: a.world() == 1 and a.stands_before(96), a)
            b.close()
            b = Machine("b", port, tmp_path, environment, arguments)
            wait_for(lambda: a.world() == 2, a)
            a.halt.write_text("1000000")  # not removed, for it may be looking
            assert a.process.wait(180) == 0, a.errors.read_text()[-3000:]
        finally:
            for machine in (a, b):
                machine.close()

    assert a.worlds.read_text().split()[0] == "2"
    assert told(run) == expected
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if b"c0ffee-of-the-trainer" in path.read_bytes()]
