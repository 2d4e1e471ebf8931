"""What a run leaves behind: a line a step in `metrics.jsonl`, a line a metric in `measurements.jsonl`, a bar for a person who watches.

A step's numbers are read when the next one has been launched, so that the device never waits for its record. A resumed run cuts the lines beyond the
checkpoint it goes on from, and writes them again. Utilisation counts 6 operations a token and parameter (the input embedding apart, unless it is tied)
plus 12 a layer, width of the heads and position seen, forward and backward: `mfu` as if every token saw its whole row (torchtitan's convention),
`mfu_documents` with the positions of its own document, the sum of squared lengths (neither halved for causality).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from mixing import UserError
from mixing.manifest import Manifest
from mixing.measurements import Measurement, append
from mixing.progress import Progress
from train.checkpoint import State, write_text
from train.evaluate import Result, measurements, write_items
from train.optim import ends
from train.start import Run
from train.stream import Step

PEAK = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bfloat16 operations a second, by what the device's name contains; from NVIDIA's data sheets."""


class Outcome:
    """What a step did, on its way to main memory: sums fp64 [3, components] of nats, predictions and tokens; whether a process wants to stop; the
    gradient's norm (NaN: nothing was predicted), whether the step was skipped, and how many deviations its loss and norm stand above the mean."""

    def __init__(self, sums: torch.Tensor, facts: list[torch.Tensor]) -> None:
        self.shape = sums.shape
        values = torch.cat([sums.flatten(), torch.stack([fact.double() for fact in facts])])
        self.values = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda).copy_(values, non_blocking=True)
        self.event = torch.cuda.Event() if values.is_cuda else None  # type: ignore[no-untyped-call]
        if self.event is not None:
            self.event.record()

    def read(self) -> tuple[list[list[float]], list[float]]:
        if self.event is not None:
            self.event.synchronize()
        size = self.shape.numel()
        return self.values[:size].view(self.shape).tolist(), self.values[size:].tolist()


class Taken(NamedTuple):
    """A step that was launched; seconds of it, and of them waiting for its rows."""

    state: State
    step: Step
    outcome: Outcome
    rate: float
    seconds: float
    stall: float


class Record:
    """The run's two files of lines."""

    def __init__(self, run: Run, state: State, model: PreTrainedModel, show: Callable[[int, float | None], None]) -> None:
        self.run, self.show = run, show
        self.names = run.manifest.component_names
        fed = run.manifest.tokens(0, state.sequence)
        self.consumed = np.bincount(run.manifest.components(0, state.sequence), fed, len(self.names)).astype(np.int64)
        self.metrics = run.folder / "metrics.jsonl"
        self.measurements = run.folder / "measurements.jsonl"
        self.commit = current_commit()
        self.pending: Taken | None = None
        self.in_a_row = self.skipped = 0
        self.work = operations(model)
        name = torch.cuda.get_device_name(run.world.device) if run.world.device.type == "cuda" else ""
        self.peak = run.config.peak_flops or next((peak for part, peak in PEAK.items() if part in name), None)
        if run.world.rank == 0:
            for path in (self.metrics, self.measurements):
                cut_after(path, state.tokens if state.sequence else -1)
            self.file = self.metrics.open("a+", encoding="utf-8", buffering=1)
            self.file.seek(0)
            self.skipped = sum('"skipped": {' in line for line in self.file)
        self.mirror = mirror(run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.run.world.rank == 0:
            self.file.close()

    def stepped(self, taken: Taken) -> bool:
        """Remembers a step, writes the one before; whether a process wanted to stop by then."""
        stop = self.flush()
        self.pending = taken
        return stop

    def flush(self) -> bool:
        """Writes the step that is still remembered; whether a process wanted to stop by then. Refuses to go on after too many skipped in a row."""
        if self.pending is None:
            return False
        taken, self.pending = self.pending, None
        state, step, seconds = taken.state, taken.step, taken.seconds
        (nats, predictions, tokens), (stop, norm, skipped, *above) = taken.outcome.read()
        fed = [int(sum(predictions)), int(sum(tokens))]
        assert fed == [step.predictions, step.tokens], f"fed {fed} predictions and tokens, planned {step.predictions} and {step.tokens}"
        self.consumed += np.array(tokens, np.int64)
        loss = sum(nats) / step.predictions if step.predictions else None
        line = {
            "step": state.step,
            "sequence": self.run.origin.sequences + state.sequence,
            "tokens": state.tokens,
            "stage": self.run.manifest.stages[self.run.manifest.stage_of(step.first)]["name"],
            "loss": _number(loss),
            "loss_per_component": {
                n: _number(total / count) for n, total, count in zip(self.names, nats, predictions, strict=True) if count
            },
            "consumed": dict(zip(self.names, self.consumed.tolist(), strict=True)),
            "promised": promised(self.run.manifest, state.tokens - self.run.origin.tokens),
            "gradient_norm": _number(norm),
            "learning_rate": taken.rate,
            "tokens_per_second": round(step.tokens / seconds, 1),
            **self._utilisation(step, seconds),
            "memory": memory(self.run.world.device),
            "stall": round(taken.stall, 6),
            "manifest": self.run.manifest.digest,
        }
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.skipped += bool(skipped)
        if skipped:
            line["skipped"] = self._skipped(step, loss, norm, above)
        line["skipped_steps"] = self.skipped
        if self.run.world.rank == 0:
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.mirror(line)
            self.show(state.tokens, loss)
        if self.in_a_row >= self.run.config.guard.patience:
            raise UserError(
                f"step {state.step}: {self.in_a_row} steps in a row were skipped ({line['skipped']['reason']}); {self.metrics} names their documents; "
                "resume with a larger guard.patience, or begin again with a lower learning rate"
            )
        return stop > 0

    def _utilisation(self, step: Step, seconds: float) -> dict[str, float | None]:
        if self.peak is None:
            return {"mfu": None, "mfu_documents": None}
        lengths = self.run.manifest.spans(step.first, step.last).length.astype(np.int64)
        per_token, per_position = self.work
        seen = {"mfu": step.tokens * self.run.manifest.sequence_length, "mfu_documents": int((lengths**2).sum())}
        peak = self.peak * self.run.world.size * seconds
        return {name: round((step.tokens * per_token + positions * per_position) / peak, 4) for name, positions in seen.items()}

    def _skipped(self, step: Step, loss: float | None, norm: float, above: list[float]) -> dict[str, object]:
        """Why a step changed nothing, and which documents were in it."""
        manifest = self.run.manifest
        spans = manifest.spans(step.first, step.last)
        rows = {
            int(manifest.token_file(file).pool_row[row]) for file, row in zip(spans.file.tolist(), spans.token_row.tolist(), strict=True)
        }
        reason = f"loss {loss:.4g}, {above[0]:.1f} deviations above the mean; gradient norm {norm:.4g}, {above[1]:.1f}"
        if self.run.world.rank == 0:
            print(
                f"sequences {step.first} to {step.last} skipped: {reason}; documents ({len(rows)}) are named in {self.metrics}",
                file=sys.stderr,
            )
        return {"reason": reason, "sequences": [step.first, step.last], "pool_rows": sorted(rows)}

    def measured(self, results: list[Result], state: State, rate: float | None) -> None:
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
            append(self.measurements, measurements(results, config.evaluate.guards, blank))
            if config.evaluate.items:
                write_items(folder / "items" / f"{state.tokens}.parquet", results)

    def sync(self) -> None:
        """The lines so far on disk, before a checkpoint lets them count as done."""
        if self.run.world.rank == 0:
            os.fsync(self.file.fileno())


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and np.isfinite(value) else None


def cut_after(path: Path, tokens: int) -> None:
    """Keeps the lines up to `tokens`; a last line that a kill cut short goes too."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    write_text(path, "".join(line for line in lines if json.loads(line)["tokens"] <= tokens))


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


def operations(model: PreTrainedModel) -> tuple[int, int]:
    """Floating-point operations of training: those of a token, and those of a token for each position that it attends to."""
    config = model.config.get_text_config()
    embeddings, head = ends(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return 6 * (parameters - (0 if embeddings is head else embeddings.numel())), 12 * config.num_hidden_layers * width


def memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of the GPU, else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def mirror(run: Run) -> Callable[[dict[str, object]], None]:
    """What to do with a line of metrics besides writing it: its numbers go to TensorBoard, if the configuration says so."""
    if not run.config.tensorboard or run.world.rank:
        return lambda _line: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard: the package is not installed; pip install 'tilth[tensorboard]', or remove the key") from None
    writer: Any = SummaryWriter(str(run.folder / "tensorboard"))

    def write(line: dict[str, object]) -> None:
        for name, value in line.items():
            for part, number in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(number, int | float):
                    writer.add_scalar(f"{name}/{part}".rstrip("/"), number, line["tokens"])

    return write


def current_commit() -> str | None:
    """The commit of this code, if it runs from a checkout."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    answer = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


@contextmanager
def progress_bar(run: Run, tokens: int) -> Iterator[Callable[[int, float | None], None]]:
    """What a person sees of a run that stands at `tokens`; a cell of a sweep that trains several at once shows nothing of its own."""
    if run.world.rank or parent_process() is not None:
        yield lambda _tokens, _loss: None
        return
    with Progress(lambda: memory(run.world.device)) as bar:
        bar.begin(f"train {Path(*run.folder.parts[-2:])}", run.total, "tokens", tokens)
        yield lambda now, loss: bar.reach(now, "" if loss is None else f"loss {loss:.3f}")
        bar.end()
