"""Processes that keep a model on a cluster of three nodes, and builds whose documents are synthesized there: killed, refused, and ended."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from raylets import Nodes, has_ended
from recipes import keeps, never_makes, recipe, write_corpus, write_model, write_recipe

from curation.build import Built, build
from curation.engine.cluster import Cluster
from curation.engine.local import News, Run
from curation.recipe import load
from mixing import UserError

pytest.importorskip("ray", reason="Ray is not installed: nothing of `--engine ray` is tested; install tilth[ray]")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


def with_replay(model: str, **backend: Any) -> dict[str, Any]:
    """The small recipe with a source that a model in the build's own hands continues from the documents of `code`."""
    values = recipe()
    settings = {
        "from": "source = 'code'",
        "template": "continuation",
        "model": model,
        "backend": {"kind": "transformers", "batch": 2, "dtype": "float32", **backend},
        "temperature": 0,
        "max_tokens": 24,
    }
    values["sources"]["again"] = {"synthesize": settings}
    values["mixture"]["components"]["again"] = "source = 'again'"
    values["mixture"]["stages"][0] |= {"tokens": 6000, "weights": {"domain": 0.4, "replay": 0.5, "again": 0.1}}
    return values


def made(folder: Path, values: dict[str, Any], name: str, address: str | None = None) -> Built:
    run = Run(folder / f"work-{name}", 1 if address is None else 0, ray=address)
    return build(load(write_recipe(folder, values, f"{name}.yaml")), folder, folder / name, run)


def asked(folder: Path, name: str) -> list[str]:
    """The keys of the answers in the store, as often as they stand there."""
    return [
        json.loads(line)["key"]
        for path in folder.glob(f"work-{name}/generations/*/answers.jsonl")
        for line in path.read_bytes().splitlines()
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    write_model(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def here(corpus: Path) -> Built:
    return made(corpus, with_replay("tiny/model"), "here")


def test_each_gpu_has_a_process_that_makes_its_function_once_and_ends_when_it_is_told(nodes: Nodes, tmp_path: Path) -> None:
    with Cluster(nodes.address, 0, None, tmp_path) as engine, engine.phase("ask"):
        residents = engine.residents(keeps, (tmp_path / "made",), 1)
        answers: dict[int, list[Any]] = {}
        while len(answers) < 2 or min(map(len, answers.values())) < 4:
            number, result, is_lost = residents.wait()
            assert not is_lost
            answers.setdefault(number, []).append(result)
            residents.send(number, len(answers[number]))
        residents.close()

    processes = {result[1] for results in answers.values() for result in results[1:]}
    assert {(tmp_path / f"made.{process}").exists() for process in processes} == {True}
    assert len(list(tmp_path.glob("made.*"))) == len(processes) == 2
    for results in answers.values():
        assert results[0] is None
        assert [(square, gpus) for square, _, gpus in results[1:]] == [(number * number, "0") for number in range(1, len(results))]
    _ended(processes)


def test_a_build_says_that_it_waits_for_gpus_that_another_has(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("curation.engine.residents.LOOK", 0.2)
    monkeypatch.setattr("curation.engine.residents.PATIENCE", 1.0)
    with Cluster(nodes.address, 0, None, tmp_path) as engine, engine.phase("ask"):
        other = engine.residents(keeps, (tmp_path / "other",), 1)
        assert [other.wait()[1:], other.wait()[1:]] == [(None, False)] * 2
        capfd.readouterr()
        ours = engine.residents(keeps, (tmp_path / "ours",), 1)
        end = threading.Timer(5, other.close)
        end.start()
        assert not ours.wait().is_lost
        ours.close()

    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ask: no process has its model after 1 s; each waits")]
    assert len(told) == 1


def test_a_function_that_cannot_be_made_ends_the_build_and_says_where(
    nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Cluster(nodes.address, 0, None, tmp_path) as engine, engine.phase("ask"):
        residents = engine.residents(never_makes, (tmp_path / "died",), 0)
        with pytest.raises(
            UserError, match=r"^ask: no process with the model is left, on \S+ it died 2 times without an answer in between"
        ):
            list(iter(residents.wait, News(0)))
        with pytest.raises(UserError, match=r"^ask: no process with the model is left, no node of the cluster has 2 GPUs"):
            engine.residents(never_makes, (tmp_path / "died",), 2)

    assert len(list(tmp_path.glob("died.*"))) == 6  # twice on each of three nodes
    assert capfd.readouterr().err.count("going on without it") == 3


def test_digest_of_a_build_synthesized_on_three_nodes_is_that_of_one_process(nodes: Nodes, corpus: Path, here: Built) -> None:
    there = made(corpus, with_replay("tiny/model", device="cpu"), "there", nodes.address)

    assert there.digest == here.digest
    assert sorted(asked(corpus, "there")) == sorted(asked(corpus, "here"))
    assert len(set(asked(corpus, "here"))) > 20
    _ended(set(nodes.processes("_Resident")))


def test_a_process_killed_half_way_is_replaced_and_nothing_is_asked_again_that_was_answered(
    nodes: Nodes, corpus: Path, here: Built, capfd: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []

    def kill() -> None:
        while len(asked(corpus, "killed")) < 8:
            time.sleep(0.002)
        killed.append(nodes.processes("_Resident")[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    there = made(corpus, with_replay("tiny/model", batch=1), "killed", nodes.address)
    killer.join()

    assert there.digest == here.digest
    assert capfd.readouterr().err.count("a process with the model, or its node, was lost") == 1
    keys = asked(corpus, "killed")
    assert len(keys) == len(set(keys)) == len(asked(corpus, "here"))
    assert json.loads((there.folder / "provenance.json").read_text())["synthesized"]["again"]["sent"] == len(keys)


def test_a_model_that_is_not_there_is_refused_as_in_one_process(nodes: Nodes, corpus: Path) -> None:
    said = []
    for name, address in (("nobody-here", None), ("nobody-there", nodes.address)):
        with pytest.raises(UserError, match=r"^synthesize\.model: nobody/nothing cannot be loaded on ") as refusal:
            made(corpus, with_replay("nobody/nothing"), name, address)
        said.append(re.sub(r" on \S+:", " on NODE:", str(refusal.value)))

    assert said[0] == said[1]


def _ended(processes: set[int]) -> None:
    """Waits for what has been told to end; the test's time limit is the only one."""
    while not all(map(has_ended, processes)):
        time.sleep(0.05)
