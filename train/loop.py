"""A training run from its manifest to its last checkpoint, as a list of phases.

In: a manifest, a configuration, how to start, a run folder. Out, in that folder: `config.yaml`, `metrics.jsonl` (one line a step),
`measurements.jsonl` (hold-out losses), `checkpoints/step-N/`, `model/` (configuration and tokenizer of the exports), `export/`. Everything a step
does follows from (manifest, configuration, sequence number): a run killed at any instant and resumed on as many processes ends with the same
parameters bit for bit, and its records hold every step once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, PreTrainedModel

from mixing import UserError
from mixing.manifest import Manifest
from mixing.measurements import Measurement, append
from train import checkpoint, optim, weights
from train import config as settings
from train import model as models
from train.config import Config
from train.evaluate import Holdouts, Score, evaluate, holdouts, measurements
from train.model import World
from train.stream import Step, micro_batch_size, steps


class Run(NamedTuple):
    """What a run is from its start to its end."""

    folder: Path
    manifest: Manifest
    config: Config
    world: World

    @property
    def total(self) -> int:
        """Tokens of the whole plan."""
        return sum(stage["tokens"] for stage in self.manifest.stages)


class Outcome(NamedTuple):
    """What a step did: fp64 [3, components] of nats, predictions and tokens; no norm if nothing was predicted."""

    sums: torch.Tensor
    norm: float | None


def train(manifest_path: Path, config: Config, start: settings.Start | None, folder: Path | None) -> Path:
    """Trains `config` on the manifest and returns the run's folder."""
    models.prepare_transformers()
    with models.joined_world() as world:
        manifest = Manifest.open(manifest_path)
        folder = folder or Path("runs") / f"{manifest.header['name']}-v{manifest.header['version']}"
        mode = decided_start(start, config, folder)
        with opened(folder, mode, config, manifest, world) as (run, newest):
            model, optimizer, state = prepared(run, newest)
            held = holdouts(manifest, micro_batch_size(run.config.batch, run.config.micro_batch, world.size), world)
            follow_plan(run, model, optimizer, held, state)
            if world.rank == 0:
                checkpoint.export(folder, folder / "export", checkpoint.checkpoints(folder)[-1])
            world.meet()
    return folder


def decided_start(asked: settings.Start | None, config: Config, folder: Path) -> settings.Start:
    """How to start: as asked, else from the weights of model.path, else afresh. A run that has a checkpoint is only ever resumed."""
    existing = checkpoint.checkpoints(folder)
    is_run = (folder / "config.yaml").is_file()
    if asked == "resume":
        if not is_run:
            raise UserError(f"{folder}: no run to resume (no config.yaml); start one with --start fresh or --start weights")
        return asked
    if existing:
        raise UserError(f"{folder}: holds a run with {existing[-1].name}; go on with --start resume, or name another folder with -o")
    if folder.exists() and not is_run and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty and not a run; name another folder with -o")
    if asked == "weights" and config.model.path is None:
        raise UserError("--start weights: model.config has no weights; give model.path, or --start fresh")
    return asked or ("weights" if config.model.path is not None else "fresh")


@contextmanager
def opened(folder: Path, mode: settings.Start, config: Config, manifest: Manifest, world: World) -> Iterator[tuple[Run, Path | None]]:
    """The run's folder, locked, with its resolved configuration; and the checkpoint to go on from."""
    if mode == "resume":
        stored = settings.load(folder / "config.yaml")
        config = settings.resolved(config.model_copy(update={"manifest": stored.manifest}), manifest, stored.start or "fresh")
        refuse_changes(stored, config)
    else:
        config = settings.resolved(config, manifest, mode)
    newest = next(iter(reversed(checkpoint.checkpoints(folder))), None)
    world.meet()  # every process has looked before the first one writes
    if world.rank > 0:
        yield Run(folder, manifest, config, world), newest
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        checkpoint.write_text(folder / "config.yaml", settings.as_yaml(config))
        yield Run(folder, manifest, config, world), newest


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run at a time in a folder; the lock ends with the process, however it ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another training run is writing here; wait for it, or name another folder with -o") from None
        yield
    finally:
        os.close(lock)


def refuse_changes(stored: Config, config: Config) -> None:
    """A resumed run is the same run: what decides its result may not have changed."""
    before, after = flat(settings.identity(stored)), flat(settings.identity(config))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{key}: {after.get(key)!r}, but the run to resume has {before.get(key)!r}"
            + (f" (also changed: {', '.join(changed[1:])})" if changed[1:] else "")
            + "; put it back, or start a new run from an export with --start weights"
        )


def flat(nested: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    pairs: dict[str, Any] = {}
    for key, value in nested.items():
        pairs |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return pairs


def prepared(run: Run, newest: Path | None) -> tuple[PreTrainedModel, torch.optim.Optimizer, checkpoint.State]:
    """The model, proven to keep documents apart, its optimizer, and where to go on."""
    folder, manifest, config, world = run
    loaded = config.model.path if newest is None and config.start == "weights" else None
    model = weights.skeleton(models.architecture(config) if newest is None else AutoConfig.from_pretrained(folder / "model"))
    models.refuse_mismatch(model, loaded, manifest)
    if newest is None and world.rank == 0:
        checkpoint.write_blueprint(folder, model, manifest)
    model = models.place(model, config, world)
    if loaded is not None:
        weights.read(model, loaded)
    elif newest is None:
        weights.draw(model, models.derived_seed(config.seed, "weights"))
    optimizer = optim.adamw(model, config.optimizer)
    state = checkpoint.State(0, 0, 0, manifest.digest, settings.config_digest(config))
    if newest is not None:
        checkpoint.restore(newest, model, optimizer, world)
        state = checkpoint.read_state(newest)
    models.check_isolation(model, config, manifest, world)
    return model, optimizer, state


def follow_plan(run: Run, model: PreTrainedModel, optimizer: torch.optim.Optimizer, held: Holdouts, state: checkpoint.State) -> None:
    """Every step from `state` to the end of the plan, with its record, and the evaluations and checkpoints that fall due."""
    folder, manifest, config, world = run
    size = micro_batch_size(config.batch, config.micro_batch, world.size)
    with Record(run, state) as record, progress_bar(run, state.tokens) as show:
        if state.sequence == 0:
            record.measured(evaluate(model, held, config.precision, world), state, None)
        for step in steps(manifest, state.sequence, config.batch, size, world.rank, world.size, world.device):
            began = time.perf_counter()
            middle = state.tokens + step.tokens / 2  # exact on average for every linear piece of the schedule, whatever the batch
            rate = optim.learning_rate(config.optimizer, config.schedule, middle, run.total)
            outcome = take_step(run, model, optimizer, step, rate)
            before, state = state, state._replace(step=state.step + 1, sequence=step.last, tokens=state.tokens + step.tokens)
            loss = record.stepped(state, outcome, rate, step.tokens / (time.perf_counter() - began))
            show(state.tokens, loss)
            at_end = step.last == manifest.sequences
            if at_end or due(config.evaluate.every, before.tokens, state.tokens):
                record.measured(evaluate(model, held, config.precision, world), state, rate)
            if at_end or due(config.checkpoint.every, before.tokens, state.tokens):
                record.sync()
                checkpoint.save(folder, state, model, optimizer, config.checkpoint.keep, world)


def take_step(run: Run, model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: Step, rate: float) -> Outcome:
    """One update from one step's rows, the loss divided by its predictions over all processes; nothing changes if it has none."""
    config, world = run.config, run.world
    sums = torch.zeros(3, len(run.manifest.component_names), dtype=torch.float64, device=world.device)
    torch.manual_seed(models.derived_seed(config.seed, "step", step.first, world.rank))
    for number, rows in enumerate(step.micro_batches):
        there = rows.to(world.device)
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(number == len(step.micro_batches) - 1)
        nats = torch.zeros(there.targets.shape, device=world.device)
        if step.predictions:
            total, nats = models.losses(model, there, config.precision)
            (total / step.predictions).backward()  # type: ignore[no-untyped-call]
        sums += models.tally(nats, there, sums.shape[1])
    sums = world.total(sums).cpu()
    fed = sums[1:].sum(1).long().tolist()
    assert fed == [step.predictions, step.tokens], f"fed {fed} predictions and tokens, planned {step.predictions} and {step.tokens}"
    if not step.predictions:
        return Outcome(sums, None)
    shares = optim.gradients(model)
    norm = optim.gradient_norm(shares, world)
    if not np.isfinite(norm):
        raise UserError(
            f"sequences {step.first} to {step.last}: the gradient is not finite (loss {sums[0].sum().item() / step.predictions}); "
            "resume from the last checkpoint with a lower learning rate in a new run, or with precision fp32"
        )
    optim.clip(shares, norm, config.optimizer.clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Outcome(sums, norm)


def due(every: int | float, before: int, after: int) -> bool:
    """Whether a multiple of `every` tokens was reached on the way."""
    return after // every > before // every


class Record:
    """The run's two files of lines. Lines beyond the state it goes on from are cut off: those steps are computed, and recorded, again."""

    def __init__(self, run: Run, state: checkpoint.State) -> None:
        self.run = run
        self.names = run.manifest.component_names
        fed = run.manifest.tokens(0, state.sequence)
        self.consumed = np.bincount(run.manifest.components(0, state.sequence), fed, len(self.names)).astype(np.int64)
        self.metrics = run.folder / "metrics.jsonl"
        self.measurements = run.folder / "measurements.jsonl"
        self.commit = current_commit()
        if run.world.rank == 0:
            for path in (self.metrics, self.measurements):
                cut_after(path, state.tokens if state.step else -1)
            self.file = self.metrics.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.run.world.rank == 0:
            self.file.close()

    def stepped(self, state: checkpoint.State, outcome: Outcome, rate: float, speed: float) -> float | None:
        """One line of metrics.jsonl; the loss of the step."""
        nats, predictions, tokens = outcome.sums.tolist()
        self.consumed += np.array(tokens, np.int64)
        loss = sum(nats) / sum(predictions) if sum(predictions) else None
        line = {
            "step": state.step,
            "sequence": state.sequence,
            "tokens": state.tokens,
            "stage": self.run.manifest.stages[self.run.manifest.stage_of(state.sequence - 1)]["name"],
            "loss": loss,
            "loss_per_component": {name: total / count for name, total, count in zip(self.names, nats, predictions, strict=True) if count},
            "consumed": dict(zip(self.names, self.consumed.tolist(), strict=True)),
            "promised": promised(self.run.manifest, state.tokens),
            "gradient_norm": outcome.norm,
            "learning_rate": rate,
            "tokens_per_second": round(speed, 1),
        }
        if self.run.world.rank == 0:
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return loss

    def measured(self, scores: dict[str, Score], state: checkpoint.State, rate: float | None) -> None:
        """The lines of measurements.jsonl for one evaluation, after a step at the learning rate `rate`."""
        folder, manifest, config, world = self.run
        if world.rank == 0:
            blank = Measurement(
                run=folder.name,
                manifest=manifest.digest,
                component=None,
                metric="",
                group="target",
                tokens=state.tokens,
                epochs=epochs(manifest, state.sequence),
                learning_rate=rate,
                seed=config.seed,
                value=None,
                commit=self.commit,
            )
            append(self.measurements, measurements(scores, config.evaluate.guards, blank))

    def sync(self) -> None:
        """The lines so far on disk, before a checkpoint lets them count as done."""
        if self.run.world.rank == 0:
            os.fsync(self.file.fileno())


def cut_after(path: Path, tokens: int) -> None:
    """Keeps the lines up to `tokens`; a last line that a kill cut short goes too."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    checkpoint.write_text(path, "".join(line for line in lines if json.loads(line)["tokens"] <= tokens))


def promised(manifest: Manifest, tokens: int) -> dict[str, float]:
    """Tokens of each component that the stages promise by the time `tokens` have been seen: whole stages, then a share of the one under way."""
    promise = dict.fromkeys(manifest.component_names, 0.0)
    for stage in manifest.stages:
        share = min(1.0, max(0, tokens) / stage["tokens"])
        for name, component in stage["components"].items():
            promise[name] += component["tokens"] * share
        tokens -= stage["tokens"]
    return promise


def epochs(manifest: Manifest, sequence: int) -> float | None:
    """Tokens before `sequence` over those of them that belong to a document's first visit."""
    spans = manifest.spans(0, sequence)
    first = int(spans.length[spans.epoch == 0].sum(dtype=np.int64))
    return int(spans.length.sum(dtype=np.int64)) / first if first else None


def current_commit() -> str | None:
    """The commit of this code, if it runs from a checkout."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    answer = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


@contextmanager
def progress_bar(run: Run, tokens: int) -> Iterator[Callable[[int, float | None], None]]:
    """A bar on stderr for a person who watches; nothing otherwise."""
    if run.world.rank or not sys.stderr.isatty():
        yield lambda _tokens, _loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %  {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("train", total=run.total, completed=tokens, note="")
        began, first = time.perf_counter(), tokens

        def show(now: int, loss: float | None) -> None:
            speed = (now - first) / (time.perf_counter() - began)
            bar.update(task, completed=now, note=f"{now:,} tokens  {speed:,.0f}/s" + (f"  loss {loss:.3f}" if loss is not None else ""))

        yield show
