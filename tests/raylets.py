"""A Ray cluster of three nodes, each with a raylet of its own on this machine, and what of it is found among the processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from stores import connected, served

from mixing.remote import filesystem

SECRETS = {"AWS_SECRET_ACCESS_KEY": "c0ffee-secret-of-the-test", "AWS_ACCESS_KEY_ID": "planted-key-id", "HF_TOKEN": "hf_planted_token"}
STORE = 80_000_000
HEALTH = {  # a node that says nothing is dead after 15 s, a connection to it ends after 6
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_grpc_client_keepalive_time_ms": "3000",
    "RAY_grpc_client_keepalive_timeout_ms": "3000",
}
TESTED = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # what the nodes run, and the tasks of `recipes`


class Nodes(NamedTuple):
    """Three nodes of one processor each, two of which say that they have a GPU; `store` is an S3 API that all of them reach."""

    address: str
    cluster: Any
    store: Any
    session: Path

    def raylets(self) -> set[int]:
        return {raylet_of(node) for node in self.cluster.list_all_nodes()}

    def processes(self, name: str) -> list[int]:
        """The workers that run an actor or task of this name."""
        return [one for raylet in self.raylets() for one in children(raylet) if title(one).startswith(f"ray::{name}")]


@contextmanager
def three_nodes() -> Iterator[Nodes]:
    import ray
    from ray.cluster_utils import Cluster

    with served() as there, pytest.MonkeyPatch.context() as patch:
        for name, value in {**SECRETS, **there, **HEALTH, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(TESTED)}.items():
            patch.setenv(name, value)
        filesystem.cache_clear()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE})
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)
        try:
            yield Nodes(cluster.address, cluster, connected(there), Path(cluster.head_node.get_session_dir_path()))
        finally:
            ray.shutdown()
            cluster.shutdown()
            filesystem.cache_clear()


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def title(process: int) -> str:
    try:
        return Path("/proc", str(process), "cmdline").read_bytes().decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def has_ended(process: int) -> bool:
    """Also if nobody has asked how."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
