"""A build can be ended at any instant, by anything, and goes on from there to the same manifest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from kills import Killing, Noting, apart
from recipes import built, recipe, said, write_corpus, write_recipe

from curation.engine.local import Engine, Run
from curation.recipe import load
from mixing.manifest import Manifest

ROOT = Path(__file__).parents[2]
INSTANTS = ("begin", "middle", "end")


def small(folder: Path) -> dict[str, Any]:
    write_corpus(folder, size=15)
    values = recipe()
    values["mixture"]["stages"][0]["tokens"] = 3000
    values["holdout"]["documents"] = 1
    values["sources"]["web"]["max_quarantine"] = 0.5
    return values


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """(a recipe, the digest of its manifest, the labels of a build's phases in their order)."""
    folder = tmp_path_factory.mktemp("kills")
    path = write_recipe(folder, small(folder))
    assert apart(path, folder / "alone", folder / "work", Noting, notes=folder / "notes") == 0
    labels = list(dict.fromkeys(map(json.loads, (folder / "notes").read_text().splitlines())))
    return path, Manifest.open(folder / "alone").digest, labels


@pytest.mark.timeout(300)
def test_build_killed_in_every_phase_and_resumed_ends_with_the_same_digest(corpus: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    path, digest, labels = corpus
    out, work = tmp_path / "out", tmp_path / "work"
    killed = []
    for number, label in enumerate(labels):
        code = apart(path, out, work, Killing, label=label, instant=INSTANTS[number % 3])
        assert code in (0, -signal.SIGKILL)
        killed += [label] if code else []
        if label != labels[-1]:
            assert not (out / "manifest.json").exists()

    assert killed == labels
    assert {"read", "hold out", "sign", "count tokens", "plan", "write tokens", "write the pool", "finish"} <= set(labels)
    assert apart(path, out, work, Noting, notes=tmp_path / "notes") == 0
    assert Manifest.open(out).digest == digest


def test_single_workers_killed_during_a_build_change_nothing(
    corpus: tuple[Path, str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest, _ = corpus
    victims: list[int] = []

    class Sniping(Engine):
        def map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], label: str, at_most: int | None = None) -> list[Any]:
            if label in ("sign", "count tokens") and len(self.journal.processes) > 1:
                victims.append(self.journal.processes[-1])
                os.kill(victims[-1], signal.SIGKILL)
            return super().map(function, tasks, label, at_most)

    build_module = import_module("curation.build")
    monkeypatch.setattr(build_module, "Engine", Sniping)
    made = build_module.build(load(path), path.parent, tmp_path / "out", Run(tmp_path / "work", workers=2))

    assert len(victims) == 2
    assert made.digest == digest


def curate(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", "from curation.cli import main; main(prog_name='curate')", *map(str, arguments)]


def test_build_interrupted_says_that_it_resumes_and_does(corpus: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    path, digest, _ = corpus
    command = curate("build", path, "-o", tmp_path / "out", "--work", tmp_path / "work", "--workers", "2")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "work").glob("shards/*/unit.json")):
        time.sleep(0.01)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert said(errors) == "curate: interrupted; what was finished is kept, and the same command goes on from there\n"
    assert not (tmp_path / "out").exists()
    (log,) = (tmp_path / "work" / "log").iterdir()
    assert json.loads(log.read_text().splitlines()[-1])["outcome"] == "interrupted"
    assert built(path.parent, json.loads(path.read_text()), tmp_path / "out", tmp_path / "work").digest == digest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(("size", "workers"), [("60k", 1), ("400k", 1), ("400k", 2)])
def test_build_on_a_full_disk_ends_with_one_message_and_goes_on_when_there_is_room(
    corpus: tuple[Path, str, list[str]], tmp_path: Path, size: str, workers: int
) -> None:
    path, digest, _ = corpus
    with small_disk(tmp_path / "disk", size):
        work = tmp_path / "disk" / "work"
        done = subprocess.run(
            curate("build", path, "-o", tmp_path / "out", "--work", work, "--workers", str(workers)),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert said(done.stderr).count("\n") == 1, done.stderr
        assert said(done.stderr).startswith("curate: no room left on the disk in '")
        assert "MB free); make room, with `curate clean --work" in done.stderr
        assert done.stderr.endswith("what was finished is kept, and the build goes on from there\n")
        subprocess.run(["mount", "-o", "remount,size=64m", tmp_path / "disk"], check=True)
        made = built(path.parent, json.loads(path.read_text()), tmp_path / "out", work)
        assert made.digest == digest


class Twice(Engine):
    """Does all tasks of a phase, and then all of them again, as if every first attempt had been lost with its results."""

    def map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], label: str, at_most: int | None = None) -> list[Any]:
        for task in tasks:
            function(*task)
        return super().map(function, tasks, label, at_most)


def test_a_build_whose_every_task_is_done_twice_gives_the_same_manifest_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = small(tmp_path)
    values["sources"]["prose"]["max_duplicates"] = 0.9
    once = built(tmp_path, values, tmp_path / "once", tmp_path / "work once")
    monkeypatch.setattr(import_module("curation.build"), "Engine", Twice)

    twice = built(tmp_path, values, tmp_path / "twice", tmp_path / "work twice")

    assert twice.digest == once.digest
    told = [json.loads((tmp_path / name / "provenance.json").read_text())["duplicates"] for name in ("once", "twice")]
    assert told[0] == told[1] != []
