"""Measuring a finished model: any checkpoint of a run, or any Hugging Face folder, on any manifests.

In: a run or a folder, manifests, what to measure. Out: the lines that training would have written (`mixing.measurements`). Also under torchrun, with
equal results. Where lm-evaluation-harness is installed (extra `eval`), its tasks are measured on a folder too and come back as the same lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from transformers import PreTrainedModel

from mixing import UserError, validated
from mixing.manifest import Manifest
from mixing.measurements import Measurement
from mixing.progress import watched
from train import checkpoint, evaluate, weights
from train import config as settings
from train import model as models
from train.config import Config, Evaluate
from train.model import World


class Subject(NamedTuple):
    """A model to measure, and what a measurement says of where it comes from."""

    model: PreTrainedModel
    name: str
    config: Config
    tokens: int
    guards: list[str]


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and (path / "model").is_dir()


def subject(path: Path, step: int | None, precision: str | None, manifest: Manifest, world: World) -> Subject:
    """The model in a run (of its newest checkpoint, or that of `step`) or in a Hugging Face folder, on this process' device."""
    described = path / "model" if is_run(path) else path
    tokens, guards, seed, chosen, kept = 0, list[str](), 0, None, "fp32"
    if is_run(path):
        stored = settings.load(path / "config.yaml")
        chosen = checkpoint.chosen(path, step)
        tokens, guards, seed = checkpoint.read_state(chosen, world).tokens, stored.evaluate.guards, stored.seed
        kept = stored.precision
    elif step is not None:
        raise UserError(f"--step {step}: {path} is no run, so it has no steps; name a run, or leave --step out")
    config = Config.model_validate({"model": {"path": str(described)}, "batch": 1, "precision": precision or kept, "seed": seed})
    model = weights.skeleton(models.architecture(config))
    models.refuse_mismatch(model, str(described), manifest)
    model = models.place(model, config, world)
    if chosen is None:
        weights.read(model, str(path))
    else:
        checkpoint.restore(chosen, checkpoint.model_tensors(model), world.sharded)
    models.check_isolation(model, config, manifest, world)
    return Subject(model, path.name, config, tokens, guards)


def read_settings(path: Path | None, run: Path, manifests: Sequence[Path]) -> Evaluate:
    """What to measure: the file's keys (those of `evaluate` in a training configuration), else what the run measured; further manifests are hold-outs."""
    if path is not None:
        try:
            written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            found = validated(Evaluate, written.get("evaluate", written) if isinstance(written, dict) else written)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    else:
        found = settings.load(run / "config.yaml").evaluate if is_run(run) else Evaluate()
    return found.model_copy(update={"holdouts": [*found.holdouts, *map(str, manifests)]})


def measure(path: Path, manifests: Sequence[Path], config: Path | None, step: int | None, precision: str | None) -> list[Measurement]:
    """The measurements of one model, on the first manifest's hold-out as its own and on those of the others."""
    models.prepare_transformers()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name a run, or a folder as transformers writes it")
    asked = read_settings(config, path, manifests[1:])
    with models.joined_world() as world, nullcontext() if world.rank else watched("evaluate"):
        manifest = Manifest.reach(manifests[0])
        found = subject(path, step, precision, manifest, world)
        context = getattr(found.model.config, "max_position_embeddings", None)
        examination = evaluate.prepared(asked, manifest, world, context)
        results = evaluate.evaluate(found.model, examination, found.config.precision, world)
    blank = Measurement(found.name, manifest.digest, None, "", "target", found.tokens, None, None, found.config.seed, None, None)
    return evaluate.measurements(results, asked.guards, blank)


def harnessed(folder: Path, tasks: Sequence[str], include: Path | None, manifest_path: Path) -> list[Measurement]:
    """What lm-evaluation-harness measures of a Hugging Face folder, its own tasks or those in the folder `include`: a line for each numeric result."""
    manifest = Manifest.reach(manifest_path)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("--harness: lm-evaluation-harness is not installed; install tilth[eval]") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the harness itself takes "cuda" where none is
    arguments = {"pretrained": str(folder), "dtype": "float32", "device": device, "add_bos_token": manifest.tokenizer["bos_id"] is not None}
    manager = TaskManager(include_path=str(include) if include else None)
    given: Any = simple_evaluate(model="hf", model_args=arguments, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)
    blank = Measurement(folder.name, manifest.digest, None, "", "target", 0, None, None, 0, None, None)
    return [
        blank._replace(metric=f"{metric.removesuffix(',none')}/{task}", value=float(value))
        for task, values in given["results"].items()
        for metric, value in values.items()
        if isinstance(value, int | float) and "stderr" not in metric and metric != "sample_len"
    ]


def shown(measurements: Sequence[Measurement]) -> str:
    """A line a metric, aligned."""
    rows = [
        (one.metric + (f" of {one.component}" if one.component else ""), "n/a" if one.value is None else f"{one.value:.4f}", one.group)
        for one in measurements
    ]
    width = max((len(name) for name, _, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {value:>10}  {group}" for name, value, group in rows)


def as_json(measurements: Sequence[Measurement]) -> str:
    return "\n".join(json.dumps(one._asdict(), ensure_ascii=False) for one in measurements)
