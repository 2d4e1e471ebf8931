"""Runs the same tasks on a Ray cluster: functions over shards as Ray Core tasks, those that have a model on a GPU as actors, one a GPU. What asks a model all the time talks to processes
that have one (`residents`).

What a task is given and returns are names of files, so nothing of a corpus passes through the process that hands out the tasks, or through Ray's object store. The work directory, the
sources named by paths and the models must lie where every node finds them under the same name (see `nodes`).

A task whose node is lost is given to another one. A task whose worker dies, while the node stays, is tried once more; one that kills its worker again ends the build and is named, as on
one machine. A worker ends with its node's raylet, so that nothing it does comes after what is done in its stead. What a build leaves when its own process or the
head node dies is what any killed build leaves: the same command goes on from there.

Credentials are those of the environment in which each node was started. Nothing of the environment of this process is sent to the cluster.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from curation.engine.local import ONE_THREAD, Engine, Result, default_workers, task_name
from curation.engine.nodes import Ground, call, cause, program
from curation.engine.residents import TRIES, Residents
from mixing import UserError

NODES = 5  # that a task may lose
SILENCE = {"RAY_grpc_client_keepalive_time_ms": "20000", "RAY_grpc_client_keepalive_timeout_ms": "20000"}
"""After how long a connection that says nothing is tried out and given up: a node that is cut off ends none of its connections, and Ray would wait 7 minutes for a task there."""
STORE = 100_000_000  # bytes of the object store of a cluster of this machine alone: what passes through it are names


class Cluster(Engine):
    """An engine over a Ray cluster at `address`, or over one that is started on this machine (`local`) and ends with the block."""

    def __init__(self, address: str, workers: int, memory: float | None, work: Path) -> None:
        self._ray = _connected(address, workers or default_workers())
        super().__init__(workers or int(self._ray.cluster_resources().get("CPU", 1)), memory)
        self._call = self._ray.remote(num_cpus=1, max_retries=0)(call)
        self._mark = work.resolve() / f".cluster-{secrets.token_hex(4)}"

    def __enter__(self) -> Cluster:
        for left in self._mark.parent.glob(".cluster-*"):  # by killed builds
            left.unlink()
        self._mark.touch()
        self._ground = Ground(str(self._mark), program())
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ray.shutdown()
        self._mark.unlink(missing_ok=True)
        super().__exit__(kind, error, trace)

    def places(self, processes: Callable[[], int | None]) -> int | None:
        """The GPUs of the cluster; the process that hands out the tasks may have none. Without any, what it says of itself."""
        return self._gpus() or processes()

    def residents(self, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...], gpus: int) -> Residents:
        return Residents(self._ray, self._ground, make, arguments, gpus, self.journal.phase)

    def _gpus(self) -> int:
        return int(self._ray.cluster_resources().get("GPU", 0))

    def map(
        self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], label: str, at_most: int | None = None
    ) -> list[Result]:
        """As `Engine.map`. With `at_most`, on so many actors, with a GPU each where the cluster has any."""
        with self.phase(label, len(tasks)):
            most = 2 * self.memory.workers
            places = _Tasks(self._call, self._ground, most) if at_most is None else _Actors(self, at_most)
            try:
                return self._collected(self._ended(places, function, tasks, label), tasks)
            finally:
                places.close()

    def apart(self, function: Callable[..., Result], task: tuple[Any, ...], label: str) -> Result:
        """As `Engine.apart`, on any node."""
        with self.phase(label):
            once = self._ray.remote(num_cpus=1, max_retries=0, max_calls=1)(call)
            return next(self._ended(_Tasks(once, self._ground, 1), function, [task], label))[1]

    def _ended(
        self, places: _Tasks | _Actors, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], label: str
    ) -> Iterator[tuple[int, Result]]:
        """(index, result) as the tasks end. Only a few are under way at a time."""
        errors = self._ray.exceptions
        waiting, running = deque(range(len(tasks))), dict[Any, int]()
        workers, nodes = Counter[int](), Counter[int]()
        while waiting or running:
            while waiting and len(running) < places.room():
                index = waiting.popleft()
                running[places.submit(function, tasks[index])] = index
            (ended, *_), _ = self._ray.wait(list(running))
            index = running.pop(ended)
            try:
                result = self._ray.get(ended)
            except errors.RayTaskError as error:
                raise cause(error, errors) from None
            except (errors.WorkerCrashedError, errors.OutOfMemoryError):
                workers[index] += 1
            except (errors.NodeDiedError, errors.ObjectLostError, errors.RayActorError):
                nodes[index] += 1
            else:
                places.done(ended)
                yield index, result
                continue
            places.lost(ended)
            if workers[index] == TRIES or nodes[index] == NODES:
                raise UserError(
                    f"{label}: {task_name(tasks[index])} lost its worker {workers[index]} and its node {nodes[index]} times (killed, or out of memory); "
                    "what was finished is kept: run it again, with fewer --workers if memory was short"
                )
            print(f"{label}: a worker or a node was lost; trying its task once more", file=sys.stderr)
            waiting.append(index)


class _Tasks:
    """Ray tasks: as many under way as there is work for, on whatever nodes there are."""

    def __init__(self, call: Any, ground: Ground, most: int) -> None:
        self._call, self._ground, self._most = call, ground, most

    def room(self) -> int:
        return self._most

    def submit(self, function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
        return self._call.remote(self._ground, function, task)

    def done(self, ended: Any) -> None: ...

    def lost(self, ended: Any) -> None: ...

    def close(self) -> None: ...


class _Actors:
    """Processes that keep the model they have loaded, one a GPU; one that is lost is replaced while a GPU is left for it."""

    def __init__(self, cluster: Cluster, most: int) -> None:
        self._ray, self._ground, self._most = cluster._ray, cluster._ground, most
        self._gpus = cluster._gpus if cluster._gpus() else lambda: most
        self._made = self._ray.remote(num_cpus=1, num_gpus=int(cluster._gpus() > 0))(_Place)
        self._idle, self._busy = list[Any](), dict[Any, Any]()

    def room(self) -> int:
        if not self._idle and not self._busy:
            self._most = min(self._most, self._gpus())
            if not self._most:
                raise UserError("no GPU is left in the cluster; what was finished is kept: run it again when there is one")
        return self._most

    def submit(self, function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
        actor = self._idle.pop() if self._idle else self._made.remote()
        running = actor.run.remote(self._ground, function, task)
        self._busy[running] = actor
        return running

    def done(self, ended: Any) -> None:
        self._idle.append(self._busy.pop(ended))

    def lost(self, ended: Any) -> None:
        self._ray.kill(self._busy.pop(ended))
        self._most = min(self._most, max(1, self._gpus()))

    def close(self) -> None:
        for actor in [*self._idle, *self._busy.values()]:
            self._ray.kill(actor)


class _Place:
    """What an actor is: a process."""

    def run(self, ground: Ground, function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
        return call(ground, function, task)


def _connected(address: str, processors: int) -> Any:
    """Ray, connected to the cluster at `address`. A cluster of this machine alone has so many processors, no dashboard, and sends nobody word of its use."""
    for name, value in SILENCE.items():  # which Ray reads when it is imported
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--engine ray: Ray is not installed; install `tilth[ray]` on every node, or leave --engine out") from None
    if address.startswith("ray://"):
        raise UserError(
            f"--ray-address {address}: accepted: host:port of the cluster, or auto; from outside a cluster, `ray job submit` sends it the command"
        )
    alone: dict[str, Any] = {"num_cpus": processors, "include_dashboard": False, "object_store_memory": STORE} if address == "local" else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU looks for none
    try:
        ray.init(
            address=address, runtime_env={"env_vars": dict.fromkeys(ONE_THREAD, "1")}, log_to_driver=False, logging_level="ERROR", **alone
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--ray-address {address}: no cluster answers there ({reason}); start one with `ray start`, or leave the address out"
        ) from None
    return ray
