"""Processes on the nodes of a Ray cluster, each of which makes a function once, one with a model for example, and answers calls of it until they are all told to end.

There is one for every so many GPUs of a node; on a cluster without GPUs one a node, with as many threads as that has processors. Each is heard of when its function is made, so that nobody waits for
one whose model still loads or whose GPU still belongs to somebody else. One that is lost is heard of, too, and another takes its place, on what is left of the cluster or joins it. A place where one
after the other dies and answers nothing in between is given up; when none is left the build ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from curation.engine.local import Lost, News
from curation.engine.nodes import Ground, cause, stand_on
from mixing import UserError

TRIES = 2  # of a task whose worker dies, and of a place whose processes answer nothing
LOOK = 10.0  # seconds until it is asked again which nodes there are
PATIENCE = 60.0  # seconds until it is said that no process is ready yet


@dataclass
class Place:
    """Room for one process; `deaths` counts them since the last answer."""

    node: str
    host: str
    actor: Any = None
    deaths: int = 0


class Residents:
    """The processes, over a connected `ray`; `label` names the phase to the person who waits."""

    def __init__(
        self, ray: Any, ground: Ground, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...], gpus: int, label: str
    ) -> None:
        self._ray, self._begin, self._label = ray, (ground, make, arguments), label
        self._gpus = gpus if ray.cluster_resources().get("GPU") else 0
        self._made = ray.remote(_Resident)
        self._places = dict[str, list[Place]]()
        self._there = dict[int, Place]()
        self._calls = dict[Any, int]()
        self._begun = 0
        self._due: float | None = time.monotonic() + PATIENCE
        self._fill()

    def send(self, number: int, *arguments: Any) -> None:
        self._calls[self._there[number].actor.call.remote(*arguments)] = number

    def wait(self) -> News:
        errors = self._ray.exceptions
        while not (ended := self._ray.wait(list(self._calls), timeout=LOOK)[0]):
            self._fill()
            self._tell_once()
        number = self._calls.pop(ended[0])
        try:
            result = self._ray.get(ended[0])
        except errors.RayTaskError as error:
            if not isinstance(error.cause, Lost):
                raise cause(error, errors) from None
        except errors.RayError:
            pass
        else:
            self._due = None
            if result:
                self._there[number].deaths = 0
            return News(number, result)
        self._lost(self._there.pop(number))
        return News(number, is_lost=True)

    def close(self) -> None:
        for place in self._there.values():
            self._ray.kill(place.actor)
        self._there.clear()
        self._calls.clear()

    def _tell_once(self) -> None:
        """That it takes long until a first process is ready: Ray queues what asks for a GPU without a word."""
        if self._due is not None and time.monotonic() >= self._due:
            self._due = None
            waits = "waits for GPUs that others on the cluster have (`ray status` shows them), or " if self._gpus else ""
            print(f"{self._label}: no process has its model after {PATIENCE:.0f} s; each {waits}still loads it", file=sys.stderr)

    def _lost(self, place: Place) -> None:
        self._ray.kill(place.actor)
        place.actor, place.deaths = None, place.deaths + 1
        if place.deaths == TRIES and place.node in self._nodes():
            print(
                f"{self._label}: the process with the model on {place.host} died {TRIES} times without an answer in between: going on without it",
                file=sys.stderr,
            )
        else:
            print(f"{self._label}: a process with the model, or its node, was lost; what it was asked goes to another", file=sys.stderr)
        self._fill()

    def _fill(self) -> None:
        """Has a process begin in every place that has none."""
        for name, node in self._nodes().items():
            if name not in self._places:
                self._places[name] = [Place(name, node["NodeManagerHostname"]) for _ in range(self._room(node["Resources"]))]
            for place in self._places[name]:
                if place.actor is None and place.deaths < TRIES:
                    place.actor = self._started(name, int(node["Resources"]["CPU"]))
                    self._there[self._begun] = place
                    self._calls[place.actor.begin.remote(*self._begin)] = self._begun
                    self._begun += 1
        if not self._there:
            given_up = sorted({place.host for places in self._places.values() for place in places if place.deaths >= TRIES})
            what = f"on {', '.join(given_up)} it died {TRIES} times without an answer in between (killed, or out of memory)"
            what = what if given_up else f"no node of the cluster has {self._gpus} GPUs" if self._gpus else "no node has a processor for it"
            raise UserError(
                f"{self._label}: no process with the model is left, {what}; what was answered is kept: run it again when there is room for one"
            )

    def _room(self, resources: dict[str, float]) -> int:
        processors = int(resources.get("CPU", 0))
        return min(processors, int(resources.get("GPU", 0)) // self._gpus if self._gpus else 1)

    def _started(self, node: str, processors: int) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        threads = {"env_vars": {"OMP_NUM_THREADS": str(processors)}}
        most: dict[str, Any] = {"num_gpus": self._gpus} if self._gpus else {"runtime_env": threads}
        return self._made.options(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), **most).remote()

    def _nodes(self) -> dict[str, Any]:
        return {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}


class _Resident:
    """What an actor is: a process with the function that it has made."""

    def begin(self, ground: Ground, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
        stand_on(ground)
        self._function = make(*arguments)

    def call(self, *arguments: Any) -> Any:
        return self._function(*arguments)
