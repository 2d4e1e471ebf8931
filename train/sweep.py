"""Learning rates by durations by data sets: which rate, and how long, is best for each data set.

In: a YAML file (`Sweep`). Out, in a folder: a run per cell, `measurements.jsonl` (a cell's metrics at its end, and before training) that strategy
`optimal_durations` reads, `sweep.json` with the choices. The durations of one rate and data set branch off one trunk: it trains at the constant peak,
and each duration D leaves it after (1 - decay) D for a linear decay of its own. Trunk and branch together are, bit for bit, a separate run of schedule
wsd, and all of them cost (1 - decay) D_max + decay * sum D instead of sum D. A cell is finished when its export is there and is never run again;
one that was killed goes on from its last checkpoint, so a sweep resumes at any point and ends with equal measurements.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from itertools import product
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mixing import UserError, validated
from mixing.curves import gain
from mixing.manifest import Manifest
from mixing.measurements import Measurement, append, measured
from mixing.progress import watched
from train import checkpoint, goal, loop
from train import config as settings
from train import model as models
from train.config import Config
from train.goal import Candidate
from train.model import World
from train.start import locked
from train.window import step_ends, windowed

TARGET = "target"


def _tokens(value: object) -> int:
    amount = settings.amount_of(value)
    if not isinstance(amount, int) or not amount:
        raise ValueError(f"found {value!r}; a duration is a count of tokens, such as 20000 or 5M")
    return amount


class Sweep(BaseModel):
    """`train`: the training configuration of every cell. `target`: the metric to improve, one or one per data set; `guards`: metrics and how much
    worse each may become, in its own unit. `decay`: the share of a duration that its decay takes. `runs: separate` trains each cell alone, with the
    configuration's own schedule. `simulate`: the length of the run whose repetition every (separate) cell imitates. Several seeds give noise bands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str
    manifests: dict[str, str] = Field(min_length=1)
    learning_rates: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    durations: list[Annotated[int, BeforeValidator(_tokens)]] = Field(min_length=1)
    target: str | dict[str, str]
    guards: dict[str, Annotated[float, Field(ge=0)]] = {}
    decay: float = Field(default=0.1, gt=0, lt=1)
    runs: Literal["trunk", "separate"] = "trunk"
    simulate: Annotated[int, BeforeValidator(_tokens)] | None = None
    seeds: list[int] = Field(default=[17], min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> Sweep:
        if self.simulate and self.runs == "trunk":
            raise ValueError("simulate: cells of other lengths then read other documents and share no trunk; write runs: separate")
        if isinstance(self.target, dict) and (missing := sorted(self.manifests.keys() - self.target.keys())):
            raise ValueError(f"target has nothing for {missing[0]}; give one metric, or one for each of: {', '.join(self.manifests)}")
        return self

    def target_of(self, name: str) -> str:
        return self.target if isinstance(self.target, str) else self.target[name]


class Lane(NamedTuple):
    """All durations of one data set, learning rate and seed."""

    name: str
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.name}-lr{self.rate:g}-seed{self.seed}"


class Cell(NamedTuple):
    """One duration of a lane, as it is trained: to whole steps."""

    lane: Lane
    duration: int
    tokens: int
    decay_from: int
    """the last step end before its decay: what the trunk trains for it; 0 without a trunk"""
    config: Config

    @property
    def name(self) -> str:
        return f"{self.lane.folder}-{self.duration}"


def read_sweep(path: Path) -> Sweep:
    try:
        return validated(Sweep, yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def lanes(sweep: Sweep) -> list[Lane]:
    return [Lane(*place) for place in product(sweep.manifests, sorted(sweep.learning_rates), sweep.seeds)]


def cells(sweep: Sweep, lane: Lane) -> list[Cell]:
    """The cells of a lane, shortest first, with their configurations. Warm-up, where it is a share, is that share of the shortest."""
    written = settings.load(Path(sweep.train))
    manifest = Manifest.reach(sweep.manifests[lane.name])
    warmup = written.schedule.warmup
    found = []
    for duration in sorted(sweep.durations):
        part = windowed(manifest, written.batch, duration, sweep.simulate)
        total = sum(stage["tokens"] for stage in part.stages)
        decay = max(1, round(sweep.decay * total))
        mark = max([0, *(end for end in step_ends(part, written.batch) if end <= total - decay)]) if sweep.runs == "trunk" else 0
        schedule = written.schedule
        if sweep.runs == "trunk":
            short = warmup if isinstance(warmup, int) else max(1, round(warmup * min(sweep.durations)))
            schedule = schedule.model_copy(update={"kind": "wsd", "decay": decay, "warmup": short})
        config = written.model_copy(
            update={
                "seed": lane.seed,
                "tokens": duration,
                "simulate": sweep.simulate,
                "optimizer": written.optimizer.model_copy(update={"learning_rate": lane.rate}),
                "schedule": schedule,
                "evaluate": written.evaluate.model_copy(update={"first": None, "every": 10**15, "items": True}),
                "checkpoint": written.checkpoint.model_copy(update={"keep": 1}),
            }
        )
        found.append(Cell(lane, duration, total, mark, config))
    return found


def run_lane(sweep: Sweep, lane: Lane, folder: Path, world: World) -> None:
    """Every cell of the lane that is not finished, and of its trunk what they need. The trunk goes when all are."""
    manifest = Path(sweep.manifests[lane.name])
    trunk: Path | None = None
    for cell in cells(sweep, lane):
        target = folder / "cells" / cell.name
        if cell.decay_from:
            trunk = grown(cell, trunk, folder / "trunks" / lane.folder / str(cell.decay_from), target, manifest, world)
        if not finished(target):
            train(target, manifest, cell.config)
        world.meet()
        if world.rank == 0:
            shutil.rmtree(target / "checkpoints", ignore_errors=True)
    if world.rank == 0:
        shutil.rmtree(folder / "trunks" / lane.folder, ignore_errors=True)
    world.meet()


def finished(run: Path) -> bool:
    return (run / "export" / "config.json").is_file()


def grown(cell: Cell, before: Path | None, trunk: Path, target: Path, manifest: Path, world: World) -> Path | None:
    """The trunk up to where `cell` leaves it, and the cell's run begun as its branch; `before` is the trunk of the shorter duration."""
    if finished(target) and not trunk.exists() and before is None:
        return None  # a later cell that still needs a trunk grows it from the start
    config = cell.config.model_copy(
        update={"tokens": cell.decay_from, "schedule": cell.config.schedule.model_copy(update={"kind": "constant"})}
    )
    opened = windowed(Manifest.reach(manifest), config.batch, cell.decay_from, None)
    if not finished(trunk):
        if before is not None and before != trunk:
            fork(before, trunk, config, opened, world)
        train(trunk, manifest, config)
    if not finished(target):
        fork(trunk, target, cell.config, windowed(Manifest.reach(manifest), config.batch, cell.duration, None), world)
    return trunk


def train(run: Path, manifest: Path, config: Config) -> None:
    """The run to its end, from the beginning or from where it stands."""
    loop.train(manifest, config, "resume" if (run / "config.yaml").is_file() else None, run)


def fork(source: Path, target: Path, config: Config, manifest: Manifest, world: World) -> None:
    """A run at `target` that stands where `source` ended and goes on as `config` says; nothing if there is one already."""
    if world.rank == 0 and not target.exists():
        partial = target.with_name(target.name + checkpoint.INCOMPLETE)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        begun = settings.load(source / "config.yaml").start
        assert begun is not None
        resolved = settings.resolved(config, manifest, begun)
        newest = checkpoint.checkpoints(source)[-1]
        copied = partial / "checkpoints" / newest.name
        shutil.copytree(newest, copied, copy_function=os.link)
        state = json.loads((copied / "state.json").read_text()) | {"config": settings.config_digest(resolved)}
        (copied / "state.json").unlink()
        checkpoint.write_text(copied / "state.json", json.dumps(state, indent=1))
        shutil.copytree(source / "model", partial / "model")
        shutil.copytree(source / "items", partial / "items", ignore=lambda _, names: [name for name in names if name != "0.parquet"])
        shutil.copyfile(source / "metrics.jsonl", partial / "metrics.jsonl")
        lines = (source / "measurements.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (partial / "measurements.jsonl").write_text("".join(line for line in lines if json.loads(line)["tokens"] == 0), encoding="utf-8")
        checkpoint.write_text(partial / "config.yaml", settings.as_yaml(resolved))
        partial.rename(target)
    world.meet()


def run_sweep(path: Path, folder: Path, jobs: int | None) -> dict[str, Any]:
    """The whole sweep, what of it is not yet done; returns what `sweep.json` says. `jobs` lanes at once, by default one per GPU."""
    sweep = read_sweep(path)
    models.prepare_transformers()
    folder.mkdir(parents=True, exist_ok=True)
    with models.joined_world() as world, locked(folder) if world.rank == 0 else nullcontext():
        refuse_other_sweep(sweep, folder, world)
        waiting = [lane for lane in lanes(sweep) if not all(finished(folder / "cells" / cell.name) for cell in cells(sweep, lane))]
        devices = visible_devices(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        workers = min(jobs or max(1, len(devices)), max(1, len(waiting))) if world.size == 1 else 1
        if workers > 1:
            with watched("sweep", len(waiting) * len(sweep.durations), "cells") as progress:
                for _ in _trained(sweep, waiting, folder, workers, devices):
                    progress.advance(len(sweep.durations))
        else:
            for lane in waiting:
                run_lane(sweep, lane, folder, world)
        result = outcome(sweep, folder)
        if world.rank == 0:
            record(sweep, folder)
            checkpoint.write_text(folder / "sweep.json", json.dumps(result, indent=1) + "\n")
        world.meet()
    return result


def _trained(sweep: Sweep, waiting: Sequence[Lane], folder: Path, workers: int, devices: Sequence[str]) -> Iterator[None]:
    """Trains lanes in processes of their own, one of which ends with each step of the iterator. They leave Ctrl-C, which a terminal sends to all, to this one, and end with
    it, or when a lane fails: what is finished stays, and the others go on from their checkpoints when the sweep is run again."""
    context = get_context("spawn")
    free = context.SimpleQueue()
    for number in range(workers):
        free.put(devices[number % len(devices)] if devices else None)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=take_device, initargs=(free,)) as pool:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what is born now is deaf to it
        work = [pool.submit(_lane_on, sweep, lane, folder) for lane in waiting]
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for done in as_completed(work):
                yield done.result()
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise


def visible_devices(count: int, shown: str | None) -> list[str]:
    """The GPUs that lanes may have, as CUDA_VISIBLE_DEVICES names them: `count` of those that are shown to this process already."""
    return shown.split(",")[:count] if shown else [str(number) for number in range(count)]


def take_device(free: SimpleQueue[str | None]) -> None:
    """A process that trains lanes keeps one GPU for all of them, if there are any; it is told before it looks for one."""
    device = free.get()
    if device is None:
        torch.set_num_threads(1)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def _lane_on(sweep: Sweep, lane: Lane, folder: Path) -> None:
    """A lane in a process of its own."""
    models.prepare_transformers()
    with models.joined_world() as world:
        run_lane(sweep, lane, folder, world)


def refuse_other_sweep(sweep: Sweep, folder: Path, world: World) -> None:
    """A folder holds one sweep; rates, durations, data sets and seeds may be added to it, what a cell does may not change."""
    file = folder / "sweep.yaml"
    written = {
        "sweep": sweep.model_dump(mode="json"),
        "train": settings.load(Path(sweep.train)).model_dump(mode="json"),
        "manifests": {name: Manifest.reach(path).digest for name, path in sweep.manifests.items()},
    }
    if file.exists():
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        fixed: list[tuple[str, Any, Any]] = [("train", before["train"], written["train"])]
        fixed += [(f"manifests.{name}", before["manifests"].get(name, digest), digest) for name, digest in written["manifests"].items()]
        fixed += [(key, before["sweep"][key], written["sweep"][key]) for key in ("decay", "runs", "simulate")]
        if isinstance(settings.load(Path(sweep.train)).schedule.warmup, float) and sweep.runs == "trunk":
            fixed.append(
                ("durations (the shortest, of which schedule.warmup is a share)", min(before["sweep"]["durations"]), min(sweep.durations))
            )
        for key, old, new in fixed:
            if old != new:
                raise UserError(f"{key}: changed since the sweep in {folder} was begun; put it back, or name another folder with -o")
    world.meet()
    if world.rank == 0:
        checkpoint.write_text(file, yaml.safe_dump(written, sort_keys=False))


def lines_of(sweep: Sweep, cell: Cell, folder: Path) -> Iterator[Measurement]:
    """What a finished cell measured before training and at its end, under its data set's name and peak rate; the target under its own name too,
    without a value if the cell breaks a guard, so that a recipe's durations keep the guards."""
    rows = measured(folder / "cells" / cell.name / "measurements.jsonl")
    before, after = goal.at(rows, 0), goal.at(rows, cell.tokens)
    kept = goal.holds(Candidate(cell.name, (), after), before, sweep.guards)
    for row in rows:
        if row.tokens in (0, cell.tokens) and row.component is None:
            group = "guard" if row.metric in sweep.guards else row.group
            here = row._replace(run=cell.name, component=cell.lane.name, learning_rate=cell.lane.rate, group=group)
            yield here
            if row.metric == sweep.target_of(cell.lane.name):
                yield here._replace(metric=TARGET, value=row.value if kept or not row.tokens else None)


def record(sweep: Sweep, folder: Path) -> None:
    """Appends the lines of every finished cell that `measurements.jsonl` does not have yet."""
    file = folder / "measurements.jsonl"
    if file.exists():  # a line that a kill cut short goes
        checkpoint.write_text(
            file, "".join(line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n"))
        )
    there = set(measured(file)) if file.exists() else set()
    for lane in lanes(sweep):
        for cell in cells(sweep, lane):
            append(file, [line for line in lines_of(sweep, cell, folder) if line not in there])


def outcome(sweep: Sweep, folder: Path) -> dict[str, Any]:
    """The choice for each data set, with its warnings, all cells, and what the sweep cost against separate runs."""
    chosen, trained, separate = {}, 0, 0
    for name in sweep.manifests:
        table: dict[tuple[float, int], list[dict[str, float]]] = {}
        before: list[dict[str, float]] = []
        for lane in (lane for lane in lanes(sweep) if lane.name == name):
            mark = 0
            for cell in cells(sweep, lane):
                rows = measured(folder / "cells" / cell.name / "measurements.jsonl")
                before.append(goal.at(rows, 0))
                table.setdefault((lane.rate, cell.duration), []).append(goal.at(rows, cell.tokens))
                separate += cell.tokens
                trained += cell.tokens - cell.decay_from
                mark = max(mark, cell.decay_from)
            trained += mark
        means = {place: mean(values) for place, values in table.items()}
        chosen[name] = choice(sweep, name, mean(before), means)
    return {"data_sets": chosen, "tokens_trained": trained, "tokens_of_separate_runs": separate}


def mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metric by metric over the seeds."""
    return {metric: math.fsum(one[metric] for one in values) / len(values) for metric in values[0]}


def choice(sweep: Sweep, name: str, before: dict[str, float], means: Mapping[tuple[float, int], dict[str, float]]) -> dict[str, Any]:
    """The best rate and duration under the guards, the lower rate and then the shorter duration among equals; and what the grid does not settle."""
    target = sweep.target_of(name)
    candidates = [Candidate(f"{rate:g}/{duration}", (rate, duration), values) for (rate, duration), values in means.items()]
    best = goal.best(candidates, before, target, sweep.guards)
    rates, durations = sorted(sweep.learning_rates), sorted(sweep.durations)
    found: dict[str, Any] = {"target": target, "before": finite(before), "best": None, "warnings": []}
    if best is None:
        found["warnings"].append("no cell keeps every guard: allow more, or add lower rates and shorter durations")
    else:
        rate, duration = best.rank
        found["best"] = {
            "learning_rate": rate,
            "duration": int(duration),
            **{metric: best.values[metric] for metric in [target, *sweep.guards]},
        }
        found["edge"] = len(rates) > 1 and rate in (rates[0], rates[-1])
        found["censored"] = len(durations) > 1 and duration == durations[-1]
        if found["edge"]:
            found["warnings"].append(f"learning rate {rate:g} is at the edge of the grid: the best one may lie beyond")
        if found["censored"]:
            found["warnings"].append(f"still improving at {int(duration):,} tokens: the best duration is at least that")
        if gain(target, before[target], best.values[target]) <= 0:
            found["warnings"].append(f"nothing is better in {target} than before training")
    found["cells"] = [
        {"learning_rate": rate, "duration": duration, "keeps_guards": goal.holds(one, before, sweep.guards), "values": finite(one.values)}
        for (rate, duration), one in zip(means, candidates, strict=True)
    ]
    return found


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {metric: value if math.isfinite(value) else None for metric, value in values.items()}


def shown(result: Mapping[str, Any]) -> str:
    """A table of the target per data set, rates down, durations across; the choice is marked, cells that break a guard are in brackets."""
    parts = []
    for name, found in result["data_sets"].items():
        rates, durations = ([*dict.fromkeys(cell[key] for cell in found["cells"])] for key in ("learning_rate", "duration"))
        by_place = {(cell["learning_rate"], cell["duration"]): cell for cell in found["cells"]}
        rows = [[f"{name}: {found['target']}", *(f"{duration:,}" for duration in durations)]]
        for rate in rates:
            rows.append([f"{rate:g}", *(_cell(by_place[rate, duration], found) for duration in durations)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        parts.append("\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows))
        parts[-1] += "".join(f"\nwarning: {warning}" for warning in found["warnings"])
    ratio = result["tokens_trained"] / result["tokens_of_separate_runs"]
    parts.append(f"{result['tokens_trained']:,} tokens trained, {ratio:.2f} of the {result['tokens_of_separate_runs']:,} of separate runs")
    return "\n\n".join(parts)


def _cell(cell: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    value = cell["values"][found["target"]]
    text = "diverged" if value is None else f"{value:.4f}"
    text = text if cell["keeps_guards"] else f"({text})"
    best: Iterable[Any] = [found["best"]] if found["best"] else []
    chosen = any((one["learning_rate"], one["duration"]) == (cell["learning_rate"], cell["duration"]) for one in best)
    return f"*{text}" if chosen else text
