"""Builds on a Ray cluster of three nodes, each with a raylet of its own on this machine: the digest is that of one process, whatever is lost, and no secret leaves the environment."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from raylets import SECRETS, STORE, Nodes, has_ended, raylet_of
from recipes import dies_until, fails_on, fells, parents, place, recipe, square, stalls, write_corpus, write_recipe
from stores import upload

from curation.build import build
from curation.engine.cluster import Cluster
from curation.engine.local import Run
from curation.engine.nodes import Ground, call, program
from curation.recipe import load
from mixing import UserError
from mixing.manifest import Manifest

pytest.importorskip("ray", reason="Ray is not installed: nothing of `--engine ray` is tested; install tilth[ray]")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


def test_digests_on_three_nodes_from_files_and_from_s3_are_the_local_one_and_no_secret_is_written(nodes: Nodes, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_corpus(corpus)
    upload(nodes.store, corpus, "corpora")
    far = recipe()
    for source in far["sources"].values():
        files = source["files"] if isinstance(source["files"], list) else [source["files"]]
        source["files"] = [f"s3://corpora/{one}" for one in files]

    digests = {}
    for name, values, address in [("local", recipe(), None), ("ray", recipe(), nodes.address), ("s3", far, nodes.address)]:
        run = Run(tmp_path / f"work-{name}", 1 if address is None else 0, ray=address)
        path = write_recipe(corpus, values, f"{name}.yaml")
        digests[name] = build(load(path), corpus, tmp_path / name, run).digest

    assert digests["ray"] == digests["s3"] == digests["local"]
    assert Manifest.open(tmp_path / "s3").digest == digests["local"]
    written = [path for root in (tmp_path, nodes.session) for path in root.rglob("*") if path.is_file()]
    assert any(path.name == "provenance.json" for path in written)
    assert any(path.suffix == ".log" for path in written)
    for path in written:
        content = path.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], path


def test_results_come_in_task_order_from_several_nodes_and_an_exception_is_the_tasks_own(nodes: Nodes, tmp_path: Path) -> None:
    with Cluster(nodes.address, 0, None, tmp_path) as engine:
        assert engine.memory.workers == 3
        assert engine.map(square, [(number,) for number in (5, 3, 9, 0, 3)], "square") == [25, 9, 81, 0, 9]
        assert engine.map(square, [], "square") == []
        assert len({parent for parent, _ in engine.map(parents, [(0.3,)] * 9, "look")}) == 3  # raylets
        with pytest.raises(ValueError, match=r"^7 is bad$"):
            engine.map(fails_on, [(number, 7) for number in range(10)], "fail")
    assert not list(tmp_path.iterdir())


def test_a_worker_killed_once_is_tried_again_and_one_killed_twice_names_its_task(
    nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Cluster(nodes.address, 0, None, tmp_path) as engine:
        assert engine.map(dies_until, [(tmp_path / name, int(name == "b")) for name in "abcd"], "sign") == ["a", "b", "c", "d"]
        assert capfd.readouterr().err.count("sign: a worker or a node was lost; trying its task once more") == 1
        with pytest.raises(UserError, match=r"^sign: f lost its worker 2 and its node 0 times"):
            engine.map(dies_until, [(tmp_path / name, 99 * (name == "f")) for name in "ef"], "sign")


def test_a_lost_node_costs_its_tasks_alone_and_its_workers_end_with_it(
    nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    added = nodes.cluster.add_node(num_cpus=1, object_store_memory=STORE)
    raylet = raylet_of(added)
    with Cluster(nodes.address, 0, None, tmp_path) as engine:
        found = engine.map(fells, [(tmp_path / "felled", raylet)] * 8, "look")
    nodes.cluster.remove_node(added, allow_graceful=False)

    assert raylet not in found
    assert (
        1 <= capfd.readouterr().err.count("look: a worker or a node was lost; trying its task once more") <= 2
    )  # one at work, one perhaps sent
    assert has_ended(int((tmp_path / "felled").read_text()))


def test_a_node_that_is_given_up_and_comes_back_late_does_no_harm(nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    added = nodes.cluster.add_node(num_cpus=1, object_store_memory=STORE)
    raylet, names = raylet_of(added), list("abcdefgh")
    with Cluster(nodes.address, 0, None, tmp_path) as engine:
        found = engine.map(stalls, [(tmp_path, name, raylet) for name in names], "look")
    late = int((tmp_path / "stalled").read_text())
    assert not has_ended(late)
    os.kill(late, signal.SIGCONT)
    while not (tmp_path / "late").exists():  # the test's time limit is the only one
        time.sleep(0.05)
    os.kill(raylet, signal.SIGCONT)
    while not has_ended(late):
        time.sleep(0.05)
    nodes.cluster.remove_node(added, allow_graceful=False)

    assert raylet not in found
    assert 1 <= capfd.readouterr().err.count("look: a worker or a node was lost; trying its task once more") <= 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.name not in ("stalled", "late")} == {
        name: name * 1000 for name in names
    }


def test_tasks_with_a_model_run_in_one_process_a_gpu_that_keeps_it(nodes: Nodes, tmp_path: Path) -> None:
    with Cluster(nodes.address, 0, None, tmp_path) as engine:
        assert engine.places(lambda: None) == 2
        found = engine.map(place, [(number,) for number in range(8)], "score", 2)
        again = engine.map(place, [(number,) for number in range(2)], "score", 2)

    assert len({process for process, _ in found}) <= 2
    assert {gpus for _, gpus in found} == {"0"}  # of each node's one
    assert {process for process, _ in found}.isdisjoint(
        process for process, _ in again
    )  # the processes end with the phase, and give the GPUs back


def test_a_node_with_other_files_or_another_program_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--work {tmp_path}: the node {socket.gethostname()} sees no such folder"):
        call(Ground(str(tmp_path / ".cluster-1"), program()), square, (2,))
    (tmp_path / ".cluster-2").touch()
    with pytest.raises(UserError, match=r"^--engine ray: the node \S+ has another version of this program"):
        call(Ground(str(tmp_path / ".cluster-2"), "0"), square, (2,))
    assert call(Ground(str(tmp_path / ".cluster-2"), program()), square, (2,)) == 4


def test_an_address_of_a_client_or_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--ray-address ray://somewhere:10001: accepted: host:port"):
        Cluster("ray://somewhere:10001", 0, None, tmp_path)
