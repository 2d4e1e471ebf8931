"""Kill a worker, a raylet or the process that hands out the tasks, in every phase of a build on a Ray cluster of three nodes; cut a node or the object store off; compare the digests.

    python benchmarks/ray_faults.py RECIPE --each 1 --store
    python benchmarks/ray_faults.py RECIPE --kinds cut

Three raylets on this machine, each a node of one processor. The build runs in a process of its own on the head node. A worker, or a raylet other than the head's, is killed with
SIGKILL at a random instant of every phase of a build, and the build must end by itself: workers in every other phase of one, raylets as fast as others
can be started in their place. With `--kinds cut` (root, Linux, `ip`) a fourth node stands behind a link of its own: the link goes down while the node sees the same files as ever, and its workers
are held up until Ray has declared the node dead and the build has gone on for a while; then they finish what they were at, `--late` seconds later the link comes up, and the node begins anew. The building process is killed in one phase after the other, each time resumed from what was left. With `--store` the
sources are copied to an S3 API on loopback, and the way to it is cut for `--outage` seconds while they are read. Prints what was killed in every phase; exits 1 if any digest differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

STORE = 80_000_000
PATIENCE = 0.3  # seconds that a task is waited for on the node that is to be cut off
BUILDS = {"worker": 2, "cut": 5}  # of a round
QUICK = {
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}  # so that a node is given up after 15 s, and a connection to it after 10
BUILD = """
import json, sys, time
from contextlib import contextmanager
from pathlib import Path
from curation.engine import cluster
from curation.build import build
from curation.engine.local import Run
from curation.recipe import load

class Watched(cluster.Cluster):
    @contextmanager
    def phase(self, label, tasks=1):
        began = time.monotonic()
        say("begin", label, 0.0)
        with super().phase(label, tasks):
            yield
        say("end", label, time.monotonic() - began)

def say(event, label, seconds):
    with open(sys.argv[4], "a") as file:
        file.write(json.dumps([event, label, seconds]) + chr(10))

cluster.Cluster = Watched
recipe, folder = Path(sys.argv[1]), Path(sys.argv[2])
build(load(recipe), recipe.parent, folder / "manifest", Run(folder / "work", 0, ray=sys.argv[3] or None))
"""


class Nodes:
    """Three raylets, started anew where they are lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
        )
        self.others = [self._added() for _ in range(2)]
        self.lost: list[Any] = []
        self.apart: Apart | None = None

    def _added(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def kill_raylet(self, chance: random.Random) -> None:
        lost = chance.choice(self.others)
        self.others.remove(lost)
        self.lost.append(lost)
        os.kill(_raylet(lost), signal.SIGKILL)

    def restore(self) -> None:
        while self.lost:
            self.cluster.remove_node(self.lost.pop(), allow_graceful=False)
            self.others.append(self._added())

    def kill_worker(self, chance: random.Random) -> bool:
        """A process that has begun to work on tasks; false if there is none."""
        raylets = {_raylet(node) for node in (self.cluster.head_node, *self.others)}
        found = []
        for path in Path("/proc").iterdir():
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1]) if path.name.isdigit() else 0
                if parent in raylets and (path / "cmdline").read_bytes().startswith(b"ray::call"):
                    found.append(int(path.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        if found:
            os.kill(chance.choice(found), signal.SIGKILL)
        return bool(found)


class Apart:
    """A fourth node, in a network namespace of its own, whose link to the others can be cut. It shares their files."""

    HOST, OWN = "10.77.6.1", "10.77.6.2"

    def __init__(self, nodes: Nodes, late: float) -> None:
        self.nodes, self.late = nodes, late
        self.name, self.link = f"faults{os.getpid()}", f"f{os.getpid()}"
        for command in (
            f"ip netns add {self.name}",
            f"ip link add {self.link} type veth peer name inner netns {self.name}",
            f"ip addr add {self.HOST}/24 dev {self.link}",
            f"ip link set {self.link} up",
            f"ip -n {self.name} addr add {self.OWN}/24 dev inner",
            f"ip -n {self.name} link set inner up",
            f"ip -n {self.name} link set lo up",
            f"ip -n {self.name} route add default via {self.HOST}",
        ):
            subprocess.run(command.split(), check=True)
        self._start()

    def _start(self) -> None:
        start = f"-m ray.scripts.scripts start --address {self.nodes.cluster.address} --node-ip-address {self.OWN} --num-cpus 1 --object-store-memory {STORE} --block"
        command = ["ip", "netns", "exec", self.name, sys.executable, *start.split()]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._until(alive=True)
        self.raylet = next(one for one in self._of_its_own() if b"/raylet/raylet\0" in Path("/proc", str(one), "cmdline").read_bytes())

    def _until(self, *, alive: bool) -> None:
        """Returns when Ray counts it among the living, or no more."""
        while alive != any(
            node["Alive"] and node["NodeManagerAddress"] == self.OWN for node in self.nodes.cluster.global_state.node_table()
        ):
            time.sleep(0.1)

    def _of_its_own(self) -> list[int]:
        return [int(one) for one in subprocess.check_output(["ip", "netns", "pids", self.name], text=True).split()]

    def _signal(self, processes: list[int], number: signal.Signals) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _stopped_at_work(self) -> list[int]:
        """The workers that are at a task, stopped."""
        found = []
        for children in Path("/proc", str(self.raylet), "task").glob("*/children"):
            for worker in map(int, children.read_text().split()):
                line = Path("/proc", str(worker), "cmdline")
                if line.read_bytes().startswith(b"ray::call"):
                    os.kill(worker, signal.SIGSTOP)
                    if line.read_bytes().startswith(b"ray::call"):
                        found.append(worker)
                    else:
                        os.kill(worker, signal.SIGCONT)
        return found

    def cut(self, gone_on: Callable[[], bool]) -> bool:
        """False if no task comes there in a while. The node is cut off until Ray has given it up and the build has gone on."""
        until = time.monotonic() + PATIENCE
        while not (working := self._stopped_at_work()):
            if time.monotonic() > until:
                return False
        subprocess.run(["ip", "link", "set", self.link, "down"], check=True)
        self._until(alive=False)
        while not gone_on():
            time.sleep(0.1)
        time.sleep(self.late)
        self._signal(working, signal.SIGCONT)
        time.sleep(self.late)
        subprocess.run(["ip", "link", "set", self.link, "up"], check=True)
        self._end()
        self._start()
        return True

    def _end(self) -> None:
        self._signal(self._of_its_own(), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self._end()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


class Faults:
    """Watches a build's notes and does what is due, so many seconds into a phase."""

    def __init__(self, notes: Path, nodes: Nodes, victim: str, waits: dict[str, float], chance: random.Random) -> None:
        self.notes, self.nodes, self.victim, self.waits, self.chance = notes, nodes, victim, waits, chance
        self.done: list[str] = []

    def run(self, process: subprocess.Popen[bytes]) -> None:
        seen = 0
        while process.poll() is None:
            lines = self.notes.read_text().splitlines() if self.notes.exists() else []
            for event, label, _ in map(json.loads, lines[seen:]):
                if event == "begin" and label in self.waits and ["end", label] not in [json.loads(line)[:2] for line in lines]:
                    time.sleep(self.waits.pop(label))
                    if self._fault(process):
                        self.done.append(label)
            seen = len(lines)
            time.sleep(0.01)

    def _ended(self) -> int:
        """The phases that have ended."""
        return self.notes.read_text().count('["end"')

    def _fault(self, process: subprocess.Popen[bytes]) -> bool:
        if self.victim == "worker":
            return self.nodes.kill_worker(self.chance)
        if self.victim == "cut":
            assert self.nodes.apart is not None
            phase = self._ended()
            return self.nodes.apart.cut(lambda: self._ended() > phase or process.poll() is not None)
        if self.victim == "raylet":
            self.nodes.kill_raylet(self.chance)
            self.nodes.restore()
        else:
            process.kill()
        return True


def build(recipe: Path, folder: Path, nodes: Nodes | None, faults: Faults | None = None, limit: float = 900) -> int:
    """Builds in a process of its own; its exit code."""
    shutil.rmtree(folder / "manifest", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    notes = folder / "notes"
    notes.unlink(missing_ok=True)
    with (folder / "errors").open("a") as errors:
        address = nodes.cluster.address if nodes else ""
        command = [
            sys.executable,
            "-c",
            BUILD if nodes else BUILD.replace('Run(folder / "work", 0, ray=sys.argv[3] or None)', 'Run(folder / "work", 1)'),
        ]
        process = subprocess.Popen([*command, recipe, folder, address, notes], stderr=errors)
        try:
            if faults:
                faults.run(process)
            code = process.wait(limit)
        finally:
            process.kill()
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"the build failed: {code}\n{(folder / 'errors').read_text()[-4000:]}")
    return code


def _reading(notes: Path) -> None:
    """Returns when the sources are read."""
    while not notes.exists() or '"read"' not in notes.read_text():
        time.sleep(0.01)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "manifest" / "manifest.json").read_bytes()).hexdigest()


class Gate:
    """A way to a port that can be cut: new connections are refused, and those there are end."""

    def __init__(self, target: int) -> None:
        self.target, self.ends = target, list[socket.socket]()
        self.port = self._open(0)

    def _open(self, port: int) -> int:
        self.listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()
        return int(self.listener.getsockname()[1])

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near = listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self.ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()

    def cut(self, seconds: float) -> None:
        for one in (self.listener, *self.ends):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.ends = []
        time.sleep(seconds)
        self._open(self.port)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while some := one.recv(1 << 16):
            other.sendall(some)
        other.shutdown(socket.SHUT_WR)


@contextmanager
def served(recipe: Path) -> Iterator[tuple[Path, Gate]]:
    """(a recipe that reads the same files from an S3 API, the way to it)."""
    import yaml
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    gate = Gate(server.get_host_and_port()[1])
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    store = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], region="us-east-1", allow_bucket_creation=True)
    values = yaml.safe_load(recipe.read_text())
    store.create_dir("sources")
    for source in values["sources"].values():
        patterns = source["files"] if isinstance(source["files"], list) else [source["files"]]
        for path in (path for pattern in patterns for path in recipe.parent.glob(pattern)):
            with store.open_output_stream(f"sources/{path.relative_to(recipe.parent)}", compression=None) as out:
                out.write(path.read_bytes())
        source["files"] = [f"s3://sources/{pattern}" for pattern in patterns]
    far = recipe.with_name(f".far-{recipe.name}")
    far.write_text(json.dumps(values))
    try:
        yield far, gate
    finally:
        far.unlink()
        server.stop()


@click.command()
@click.argument("recipe", type=click.Path(exists=True, path_type=Path))
@click.option("--each", default=1, show_default=True, help="Rounds of faults of every kind.")
@click.option("--kinds", default="worker,raylet,driver", show_default=True, help="What is killed.")
@click.option("--store", is_flag=True, help="Cut the object store, too.")
@click.option("--outage", default=30.0, show_default=True, help="Seconds.")
@click.option(
    "--late",
    default=5.0,
    show_default=True,
    help="Seconds that a node stays cut off after the build has gone on, and its late tasks have again as many.",
)
@click.option("--seed", default=0, show_default=True)
def main(recipe: Path, each: int, kinds: str, store: bool, outage: float, late: float, seed: int) -> None:
    chance = random.Random(seed)
    counts, differing = {kind: Counter[str]() for kind in kinds.split(",") if kind}, 0
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        build(recipe.resolve(), scratch / "alone", None)
        expected = digest(scratch / "alone")
        print(f"one process, no cluster: digest {expected}", flush=True)
        if store:
            with served(recipe.resolve()) as (far, gate):
                nodes = Nodes()
                try:
                    cut = threading.Thread(target=lambda: (_reading(scratch / "cut" / "notes"), gate.cut(outage)))
                    cut.start()
                    began = time.monotonic()
                    build(far, scratch / "cut", nodes)
                    seconds = time.monotonic() - began
                    cut.join()
                    same = digest(scratch / "cut") == expected
                    print(f"store cut for {outage:g} s: {seconds:.1f} s, then {'the same' if same else 'ANOTHER'} digest", flush=True)
                    differing += not same
                finally:
                    nodes.cluster.shutdown()
        os.environ |= QUICK if "cut" in counts else {}
        nodes = Nodes()
        nodes.apart = Apart(nodes, late) if "cut" in counts else None
        try:
            differing += rounds(recipe.resolve(), scratch, nodes, counts, each, expected, chance)
        finally:
            if nodes.apart:
                nodes.apart.close()
            nodes.cluster.shutdown()
    for phase in dict.fromkeys(phase for found in counts.values() for phase in found):
        print(f"  {phase:<32} " + ", ".join(f"{found[phase]:>2} {kind}" for kind, found in counts.items()))
    print(", ".join(f"{found.total()} {kind}" for kind, found in counts.items()) + f" lost; {differing} other digests")
    sys.exit(differing > 0)


def rounds(
    recipe: Path, scratch: Path, nodes: Nodes, counts: dict[str, Counter[str]], each: int, expected: str, chance: random.Random
) -> int:
    """Other digests."""
    build(recipe, scratch / "ray", nodes)
    differing = int(digest(scratch / "ray") != expected)
    lengths: dict[str, float] = {}
    for event, label, seconds in map(json.loads, (scratch / "ray" / "notes").read_text().splitlines()):
        if event == "end":
            lengths[label] = max(lengths.get(label, 0.0), seconds)
    print(f"three nodes, nothing lost: {sum(lengths.values()):.1f} s in {len(lengths)} phases, other digests: {differing}", flush=True)
    for number in range(each):
        for kind, found in counts.items():
            folder = scratch / f"{kind}-{number}"
            if kind == "driver":
                for label, length in lengths.items():
                    faults = Faults(folder / "notes", nodes, kind, {label: chance.uniform(0, 0.8 * length)}, chance)
                    if (
                        build(recipe, folder, nodes, faults) == 0
                    ):  # what was remembered is not done again: from nothing, as the phase begins
                        shutil.rmtree(folder)
                        build(recipe, folder, nodes, faults := Faults(folder / "notes", nodes, kind, {label: 0.0}, chance))
                    found.update(faults.done)
                shutil.rmtree(folder / "manifest", ignore_errors=True)
                build(recipe, folder, nodes)
            else:
                left = list(lengths)
                for tried in range(12):
                    labels = list(lengths)[tried::2] if kind == "worker" else left[:: max(1, len(left) // (4 if kind == "cut" else 8))]
                    if not labels or tried == BUILDS.get(kind, 12):
                        break
                    shutil.rmtree(folder, ignore_errors=True)
                    waits = {label: chance.uniform(0, 0.8 * lengths[label]) for label in labels}
                    faults = Faults(folder / "notes", nodes, kind, waits, chance)
                    build(recipe, folder, nodes, faults)
                    found.update(faults.done)
                    left = [label for label in left if label not in faults.done]
                    differing += digest(folder) != expected
            same = digest(folder) == expected
            differing += not same
            print(f"round {number + 1}: {kind} lost {found.total()} times, then {'the same' if same else 'ANOTHER'} digest", flush=True)
            shutil.rmtree(folder)
    return differing


if __name__ == "__main__":
    main()
