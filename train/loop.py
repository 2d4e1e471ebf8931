"""A training run from its manifest to its last checkpoint, as a list of phases.

In: a manifest, a configuration, how to start, a run folder. Out, in that folder: `config.yaml`, `metrics.jsonl` (one line a step),
`measurements.jsonl` (hold-out losses), `checkpoints/step-N/`, `model/` (configuration and tokenizer of the exports), `export/`. Everything a step
does follows from (manifest, configuration, sequence number): a run killed at any instant and resumed on as many processes, in exact mode on any
number, ends with the same parameters bit for bit, and its records hold every step once.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, PreTrainedModel

from mixing import UserError
from mixing.manifest import Manifest
from train import checkpoint, exact, optim, weights
from train import config as settings
from train import evaluate as evaluation
from train import model as models
from train.checkpoint import State, Tensors
from train.config import Config
from train.evaluate import Examination, evaluate
from train.guard import Guard
from train.optim import Optimizer
from train.record import Outcome, Record, Taken, progress_bar
from train.schedule import learning_rate
from train.start import Run, decided_start, opened
from train.stream import Step, micro_batch_size, steps
from train.window import windowed


class Stopped(Exception):
    """A signal or the time limit ended the run early, with a checkpoint."""


def train(manifest_path: Path, config: Config, start: settings.Start | None, folder: Path | None, source: Path | None = None) -> Path:
    """Trains `config` on the manifest and returns the run's folder."""
    models.prepare_transformers()
    with models.joined_world() as world, clear_memory_errors():
        manifest = windowed(Manifest.reach(manifest_path), config.batch, config.tokens, config.simulate)
        folder = folder or Path("runs") / f"{manifest.header['name']}-v{manifest.header['version']}"
        mode = decided_start(start, config, folder, source)
        if config.exact:
            exact.refuse(config, world)
        with opened(folder, mode, config, manifest, world, source) as (run, newest):
            learner, state = prepared(run, newest)
            context = getattr(learner.model.config, "max_position_embeddings", None)
            follow_plan(run, learner, evaluation.prepared(run.config.evaluate, manifest, world, context), state)
            if world.rank == 0:
                checkpoint.export(folder, folder / "export", checkpoint.checkpoints(folder)[-1])
            world.meet()
    return folder


class Learner:
    """What changes from step to step."""

    def __init__(self, model: PreTrainedModel, config: Config, device: torch.device) -> None:
        self.model = model
        self.optimizer = Optimizer(model, config)
        self.guard = Guard(config.guard, device)

    def tensors(self) -> Tensors:
        return checkpoint.model_tensors(self.model) | self.optimizer.tensors() | self.guard.tensors()


def prepared(run: Run, newest: Path | None) -> tuple[Learner, State]:
    """The model, proven to keep documents apart, its optimizer, and where to go on."""
    folder, manifest, config, world = run
    source = newest or (Path(config.origin.checkpoint) if config.origin else None)
    loaded = config.model.path if source is None and config.start == "weights" else None
    model = weights.skeleton(models.architecture(config) if source is None else AutoConfig.from_pretrained(source.parents[1] / "model"))
    models.refuse_mismatch(model, loaded, manifest)
    if newest is None and world.rank == 0:
        checkpoint.write_blueprint(folder, model, manifest)
    optim.freeze(model, config.freeze)
    model = models.place(model, config, world)
    if config.exact:
        exact.prepare(model, world)
    if loaded is not None:
        weights.read(model, loaded)
    elif source is None:
        weights.draw(model, models.derived_seed(config.seed, "weights"))
    learner = Learner(model, config, world.device)
    state = State(0, 0, 0, manifest.digest, settings.config_digest(config))
    if source is not None:
        stored = checkpoint.read_state(source, world)
        wanted = learner.tensors()
        if config.start == "weights-optimizer" and newest is None:
            wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(("guard/", "ema/"))}
        else:
            state = stored if newest else state._replace(step=stored.step, tokens=stored.tokens)
        checkpoint.restore(source, wanted, world.sharded)
        learner.optimizer.begin_average(wanted)
    models.check_isolation(model, config, manifest, world)
    return learner, state


def follow_plan(run: Run, learner: Learner, examination: Examination, state: State) -> None:
    """Every step from `state` to the end of the plan, with its record, and the evaluations and checkpoints that fall due."""
    folder, manifest, config, world = run
    size = micro_batch_size(config.batch, config.rows, world.size)
    with (
        asked_to_stop(config.seconds) as stopping,  # first: who sees the run's record may stop it
        progress_bar(run, state.tokens) as show,
        Record(run, state, learner.model, show) as record,
        checkpoint.Saver(folder, config.checkpoint.keep, world) as saver,
    ):
        if state.sequence == 0:
            record.measured(evaluate(learner.model, examination, config.precision, world), state, None)
        feed = steps(manifest, state.sequence, config.batch, size, world.rank, world.size, world.device)
        while (began := time.perf_counter()) and (step := next(feed, None)) is not None:
            stall = time.perf_counter() - began
            rate = rate_of(run, step, state)
            outcome = take_step(run, learner, step, rate, saver.wait_for_copy, stopping())
            before, state = state, state._replace(step=state.step + 1, sequence=step.last, tokens=state.tokens + step.tokens)
            stop = record.stepped(Taken(state, step, outcome, rate, time.perf_counter() - began, stall))
            at_end = step.last == manifest.sequences
            measure = at_end or evaluation.is_due(config.evaluate, before.tokens, state.tokens)
            save = at_end or stop or due(config.checkpoint.every, before.tokens, state.tokens)
            if measure or save:
                stop = record.flush() or stop
            if measure:
                record.measured(evaluate(learner.model, examination, config.precision, world), state, rate)
            if save or stop:
                record.sync()
                saver.save(state, learner.tensors())
            if stop and not at_end:
                saver.wait()
                raise Stopped(f"stopped after step {state.step}, {state.tokens:,} of {run.total:,} tokens; go on with --start resume")
        saver.wait()


def rate_of(run: Run, step: Step, state: State) -> float:
    """The learning rate of a step, by the tokens in its middle: exact on average for every linear piece of a schedule, whatever the batch."""
    stages = run.manifest.stages
    number = run.manifest.stage_of(step.first)
    middle = state.tokens + step.tokens / 2
    begun = run.origin.tokens + sum(stage["tokens"] for stage in stages[:number])
    return learning_rate(run.config, stages[number]["name"], middle, run.total, middle - begun, stages[number]["tokens"])


def take_step(
    run: Run, learner: Learner, step: Step, rate: float, before_update: Callable[[], None] = lambda: None, stop: bool = False
) -> Outcome:
    """One update from one step's rows, the loss divided by its predictions over all processes; nothing changes if it has none."""
    config, world, model = run.config, run.world, learner.model
    slots = len(run.manifest.component_names)
    sums = torch.zeros(len(step.micro_batches) * world.size, 3, slots, dtype=torch.float64, device=world.device)
    tree = exact.Tree()
    for number, rows in enumerate(step.micro_batches):
        bin_number = number * world.size + world.rank  # of the step, whatever the world
        torch.manual_seed(models.derived_seed(config.seed, "step", step.first, bin_number))
        there = rows.to(world.device)
        reduce = config.exact is not None or number == len(step.micro_batches) - 1
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(reduce)
        nats = torch.zeros(there.targets.shape, device=world.device)
        if step.predictions:
            total, nats = models.losses(model, there, config.precision)
            (total / step.predictions).backward()  # type: ignore[no-untyped-call]
            if reduce:
                tree.push(optim.taken_gradients(model))
        sums[bin_number] = models.tally(nats, there, slots)
    told = world.total(torch.cat([sums.flatten(), sums.new_tensor([stop])]))
    sums = told[:-1].view(sums.shape).sum(0)
    unknown = told.new_zeros(())
    if not step.predictions:
        return Outcome(sums, [told[-1], unknown / 0, unknown, unknown, unknown])
    gradients = tree.total()
    shares = list(gradients.values())
    norm = exact.norm(shares, world) if config.exact else optim.gradient_norm(shares, world, config.parallel.replicate)
    skip, above = learner.guard.judge(sums[0].sum() / step.predictions, norm)
    limit = config.optimizer.clip
    scale = torch.ones_like(skip) if limit is None else (norm / limit).clamp(min=1.0).float()
    before_update()
    learner.optimizer.step(gradients, rate, scale, skip, step.tokens)
    return Outcome(sums, [told[-1], norm, skip, *above])


def due(every: int | float, before: int, after: int) -> bool:
    """Whether a multiple of `every` tokens was reached on the way."""
    return after // every > before // every


@contextmanager
def asked_to_stop(limit: float | None) -> Iterator[Callable[[], bool]]:
    """Whether this process was sent SIGTERM, or has run for `limit` seconds."""
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        told = True

    began = time.monotonic()
    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield lambda: told or (limit is not None and time.monotonic() - began > limit)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def clear_memory_errors() -> Iterator[None]:
    """What to change when the memory does not hold a step."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the allocator of the CPU raises no other
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory: {str(error).splitlines()[0]}; use a smaller micro_batch (in exact mode more exact.bins), recompute: full, "
            "precision: bf16, optimizer.moments: bf16, or more processes"
        ) from None
