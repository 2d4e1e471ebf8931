"""What a build of so many tokens would take on so many nodes, calibrated on small ones, and how far the arithmetic is off on one it has not seen. `scale.md` has the answers.

    python benchmarks/scale.py measure OUT RECIPE 0.06 0.12 0.25
    python benchmarks/scale.py predict OUT --gb 0.48
    python benchmarks/scale.py measure OUT RECIPE 0.48
    python benchmarks/scale.py compare OUT --gb 0.48
    python benchmarks/scale.py table OUT

`measure` builds the first so many GB of RECIPE's sources with two workers and writes, phase by phase, the CPU seconds of the workers and of the process that hands out the tasks (seconds of
a clock would measure who else is on the machine), the tasks, and the most memory and scratch room. A prediction is a straight line in bytes for each of them, through the calibrations, never
below zero; it is written down before the build it is about. `table` goes on along the same lines to 1e9, 1e11 and 1e13 tokens and adds what no line shows: files opened, names in
a task's arguments, the plan's memory. What a small build's own process does of the manifest's files (`FILES`: one of each, so one task, done where it is) are tasks of a large one; what it
spends waiting follows the clock and is left out; what stays its own is handing out tasks, at `DISPATCH` each, and `ALONE`, which no second process can share.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from typing import Any

import click
import numpy as np
import yaml
from memory import tree

from curation.corpus.sources import CUT
from curation.dedup.banding import banding
from curation.dedup.runs import RANGE_BYTES
from curation.engine.local import Engine, Run
from curation.engine.memory import DOCUMENT
from curation.recipe import load
from mixing.manifest import Manifest

TICK = os.sysconf("SC_CLK_TCK")
CORES, BANDWIDTH, DISPATCH, OPEN = (
    64,
    2e9,
    0.002,
    0.0002,
)  # of a node: processors, bytes a second; seconds to hand out a task, to open a file
PATH_BYTES = 90  # of a run's name in a task's arguments
FILES, ALONE = ("write tokens", "write the pool"), ("plan", "finish")  # phases, see above


def cpu_of(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


def own_memory() -> int:
    """Bytes of this process without pages of files."""
    return 1024 * int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")).split()[1])


class Measured(Engine):
    """Writes down what every phase takes."""

    found: dict[str, dict[str, float]] = {}  # noqa: RUF012

    @contextmanager
    def phase(self, label: str, tasks: int = 1) -> Iterator[None]:
        before = {process: cpu_of(process) for process in self.journal.processes}
        stop, most = Event(), [0]
        watcher = Thread(target=self._watch, args=(stop, most))
        watcher.start()
        began = time.monotonic()
        with super().phase(label, tasks):
            yield
        stop.set()
        watcher.join()
        spent = {process: cpu_of(process) - before.get(process, 0.0) for process in self.journal.processes}
        one = self.found.setdefault(label, {"tasks": 0, "driver": 0.0, "workers": 0.0, "seconds": 0.0, "memory": 0})
        one["tasks"] += tasks
        one["driver"] += spent.pop(os.getpid(), 0.0)
        one["workers"] += sum(spent.values())
        one["seconds"] += time.monotonic() - began
        one["memory"] = max(one["memory"], most[0])

    def _watch(self, stop: Event, most: list[int]) -> None:
        while True:
            most[0] = max(most[0], own_memory())
            if stop.wait(0.25):
                return


class Room(Thread):
    """The most bytes that lay in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most, self.ended = folder, 0, Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.most = max(self.most, room_of(self.folder))


def room_of(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += 512 * os.stat(os.path.join(root, name)).st_blocks
            except FileNotFoundError:
                continue
    return total


def part_of(recipe: Path, folder: Path, size: int) -> tuple[Path, int]:
    """(a recipe over the first `size` bytes of RECIPE's sources, the bytes there are)."""
    values: dict[str, Any] = yaml.safe_load(recipe.read_text())
    whole = {name: sorted(recipe.parent.glob(source["files"])) for name, source in values["sources"].items()}
    share = size / sum(path.stat().st_size for paths in whole.values() for path in paths)
    total = 0
    for name, paths in whole.items():
        left = int(share * sum(path.stat().st_size for path in paths))
        for path in paths:
            target = folder / "corpus" / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, target.open("wb") as out:
                for line in source:
                    if left <= 0:
                        break
                    left -= out.write(line)
            total += target.stat().st_size
        values["sources"][name]["files"] = f"corpus/{name}/*"
    for step in values["steps"]:
        for config in step.get("add", {}).values():
            for role, place in config.get("train", {}).items():
                config["train"][role] = str(recipe.parent / place)
            if "reference" in config:
                config["reference"] = str(recipe.parent / config["reference"])
    values["mixture"]["stages"][0]["tokens"] = total // 30  # less than what the filters of the benchmark leave
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path, total


@click.group()
def main() -> None:
    """Arithmetic of large builds."""


OUT = click.argument("out", type=click.Path(path_type=Path))


@main.command()
@OUT
@click.argument("recipe", type=click.Path(exists=True, path_type=Path))
@click.argument("sizes", nargs=-1, type=float, required=True)
def measure(out: Path, recipe: Path, sizes: tuple[float, ...]) -> None:
    """Build the first SIZES GB, each in a process of its own."""
    for size in sizes:
        process = get_context("spawn").Process(target=measured, args=(out, recipe.resolve(), size))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)


def measured(out: Path, recipe: Path, size: float) -> None:
    build_module = import_module("curation.build")
    build_module.Engine = Measured  # type: ignore[attr-defined]
    folder = out / f"part-{size:g}"
    shutil.rmtree(folder, ignore_errors=True)
    path, total = part_of(recipe, folder, int(size * 1e9))
    room = Room(folder / "work" / "scratch")
    room.start()
    built = build_module.build(load(path), folder, folder / "manifest", Run(folder / "work", 2))
    room.ended.set()
    header = Manifest.open(folder / "manifest").header
    found = {
        "bytes": total,
        "documents": sum(source["read"] for source in header["sources"].values()),
        "kept": sum(source["kept"] for source in header["sources"].values()),
        "kept_tokens": sum(one["tokens"] for one in header["components"].values()),
        "planned_tokens": sum(stage["tokens"] for stage in header["stages"]),
        "seconds": built.seconds,
        "scratch": room.most,
        "work": room_of(folder / "work"),
        "manifest": room_of(folder / "manifest"),
        "phases": Measured.found,
    }
    (out / f"{size:g}.json").write_text(json.dumps(found))
    shutil.rmtree(folder)
    spent = total_of(found)
    print(
        f"{size:g} GB: {found['documents']:,} documents, {built.seconds:.0f} s, workers {spent['workers']:.1f} s, driver {spent['driver']:.1f} s",
        flush=True,
    )


def total_of(one: dict[str, Any]) -> dict[str, float]:
    phases = one["phases"].values()
    return {
        "workers": sum(phase["workers"] for phase in phases),
        "driver": sum(phase["driver"] for phase in phases),
        "tasks": sum(phase["tasks"] for phase in phases),
        "memory": max(phase["memory"] for phase in phases),
        "scratch": one["scratch"],
        "work": one["work"],
        "manifest": one["manifest"],
    }


def line(sizes: list[float], values: list[float], size: float) -> float:
    """A straight line through the calibrations, by the largest where it would fall."""
    if len(sizes) == 1:
        return values[0] * size / sizes[0]
    slope, base = np.polyfit(sizes, values, 1)
    if slope <= 0:
        return float(np.mean(values))
    return float(max(slope * size + max(base, 0.0), values[-1])) if base > 0 else float(values[-1] * size / sizes[-1])


def expected(calibrations: list[dict[str, Any]], size: float) -> dict[str, Any]:
    """What a build of `size` bytes takes: each phase on a line of its own, and the totals."""
    sizes = [one["bytes"] for one in calibrations]
    labels = dict.fromkeys(label for one in calibrations for label in one["phases"])
    phases = {
        label: {
            kind: line(sizes, [one["phases"].get(label, {}).get(kind, 0.0) for one in calibrations], size)
            for kind in ("workers", "driver", "memory", "tasks")
        }
        for label in labels
    }
    return {"bytes": size, "phases": phases} | {
        kind: line(sizes, [one[kind] for one in calibrations], size) for kind in ("documents", "scratch", "work", "manifest", "kept_tokens")
    }


def calibrated(out: Path, below: float) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in out.glob("[0-9]*.json")]
    return sorted((one for one in found if one["bytes"] < 0.9 * below), key=lambda one: int(one["bytes"]))


@main.command()
@OUT
@click.option("--gb", required=True, type=float)
def predict(out: Path, gb: float) -> None:
    """Write down what a build of so many GB will take."""
    if (out / f"{gb:g}.json").exists():
        sys.exit(f"{gb:g} GB has been measured: that would be no prediction")
    found = expected(calibrated(out, gb * 1e9), gb * 1e9)
    (out / f"prediction-{gb:g}.json").write_text(json.dumps(found))
    print(f"prediction for {gb:g} GB, {time.strftime('%H:%M:%S')}: {told(total_of(found))}")


@main.command()
@OUT
@click.option("--gb", required=True, type=float)
def compare(out: Path, gb: float) -> None:
    """The errors of a prediction."""
    found, real = json.loads((out / f"prediction-{gb:g}.json").read_text()), json.loads((out / f"{gb:g}.json").read_text())
    scale = real["bytes"] / found["bytes"]
    print(f"{'':<34}{'predicted':>12}{'measured':>12}{'error':>9}")
    for name, value in total_of(real).items():
        ahead = total_of(found)[name] * (scale if name != "memory" else 1)
        print(f"{name:<34}{ahead:>12,.1f}{value:>12,.1f}{ahead / max(value, 1e-9) - 1:>+9.1%}")
    for label, phase in sorted(real["phases"].items(), key=lambda one: -one[1]["workers"] - one[1]["driver"])[:12]:
        one, ahead = (
            phase["workers"] + phase["driver"],
            sum(found["phases"].get(label, {}).get(kind, 0.0) for kind in ("workers", "driver")),
        )
        print(f"  {label[:32]:<32}{ahead:>12,.1f}{one:>12,.1f}{ahead / max(one, 1e-9) - 1:>+9.1%}")


BUILD = """
import sys
from pathlib import Path
from curation.build import build
from curation.engine.local import Run
from curation.recipe import load
folder, engine = Path(sys.argv[1]), sys.argv[2]
print(build(load(folder / "recipe.yaml"), folder, folder / engine, Run(folder / f"work-{engine}", 2, ray="local" if engine == "ray" else None)).digest)
"""


@main.command()
@OUT
@click.argument("recipe", type=click.Path(exists=True, path_type=Path))
@click.option("--gb", required=True, type=float)
@click.option("--python", "interpreter", default=sys.executable, help="One that has Ray.")
def overhead(out: Path, recipe: Path, gb: float, interpreter: str) -> None:
    """One build on two processes, and one on Ray on this machine with two processors: seconds of the clock and of all their processes."""
    folder = out / "overhead"
    shutil.rmtree(folder, ignore_errors=True)
    _, total = part_of(recipe.resolve(), folder, int(gb * 1e9))
    digests = set()
    for engine in ("local", "ray"):
        began, spent = time.monotonic(), dict[int, float]()
        with subprocess.Popen([interpreter, "-c", BUILD, folder, engine], stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                spent |= {one: cpu for one in tree(process.pid) if (cpu := cpu_of(one))}
                time.sleep(0.2)
            assert process.stdout is not None
            digests.add(process.stdout.read().strip())
        print(
            f"{engine}: {total / 1e9:.2f} GB, {time.monotonic() - began:.0f} s, {sum(spent.values()):.0f} CPU s in {len(spent)} processes",
            flush=True,
        )
    print(f"{len(digests)} digest")
    shutil.rmtree(folder)


def told(total: dict[str, float]) -> str:
    return (
        f"workers {total['workers']:,.0f} CPU s, driver {total['driver']:,.0f} CPU s and {total['memory'] / 1e9:.2f} GB, scratch {total['scratch'] / 1e9:.2f} GB, "
        f"work {total['work'] / 1e9:.2f} GB, manifest {total['manifest'] / 1e9:.2f} GB"
    )


def _hours(hours: float) -> str:
    return f"{hours:,.2g}" if hours < 100 else f"{hours:,.0f}"


@main.command()
@OUT
@click.option("--tokens", multiple=True, type=float, default=(1e9, 1e11, 1e13), show_default=True)
@click.option("--nodes", multiple=True, type=int, default=(16, 128, 1000), show_default=True)
def table(out: Path, tokens: tuple[float, ...], nodes: tuple[int, ...]) -> None:
    """Large builds, `tokens` being those kept."""
    calibrations = calibrated(out, 1e18)
    last = calibrations[-1]
    print(
        f"{last['bytes'] / last['kept_tokens']:.2f} bytes read for a token kept, {last['bytes'] / last['documents']:,.0f} bytes a document; {CORES} cores a node\n"
    )
    bands = banding(0.8).bands
    rows = []
    for count in tokens:
        size = count * last["bytes"] / last["kept_tokens"]
        found = expected(calibrations, size)
        total, documents = total_of(found), size * last["documents"] / last["bytes"]
        shards, keys = size / CUT, 16 * bands * documents
        ranges = max(keys / RANGE_BYTES, 1)
        tasks = shards * len(found["phases"]) + 2 * ranges
        opens = ranges * shards * 4
        spent = {label: phase["workers"] + phase["driver"] for label, phase in found["phases"].items()}
        work = total["workers"] + sum(spent[label] for label in FILES)
        alone = sum(spent[label] for label in ALONE) + DISPATCH * tasks
        hours = [((work + OPEN * opens) / (one * CORES) + 2 * total["scratch"] / (one * BANDWIDTH) + alone) / 3600 for one in nodes]
        rows.append(
            [
                f"{count:.0e}", f"{size / 1e12:,.3g}", f"{documents:.1e}", f"{shards:,.0f}", f"{tasks:,.0f}", f"{keys / 1e12:,.3g}", f"{total['scratch'] / 1e12:,.3g}",
                f"{opens:.1e}", f"{shards * PATH_BYTES / 1e6:,.1f}", f"{(0.4e9 + DOCUMENT * documents * last['kept'] / last['documents']) / 1e9:,.1f}",
                _hours(alone / 3600), f"{work / 3600:,.0f}", *map(_hours, hours),
            ]
        )  # fmt: skip
    names = [
        "tokens kept",
        "TB read",
        "documents",
        "shards",
        "tasks",
        "TB of band keys",
        "TB of scratch",
        "files opened for ranges",
        "MB of names a range task is given",
    ]
    names += [
        "GB of the node that plans",
        "hours of one process alone",
        "core hours of tasks",
        *(f"hours on {one:,} nodes" for one in nodes),
    ]
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        print(f"| {name} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
