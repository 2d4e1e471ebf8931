"""What a training run is told: one YAML file, `key=value` overrides, unknown keys refused by path.

In: the file and the overrides. Out: a frozen `Config`, and by `resolved` one with every amount in tokens and what the manifest decides filled in;
that one is written to the run folder as `config.yaml` and can be given back as a configuration. What decides the result is in `identity`; how
often, how fast and where is not. No torch here: a wrong key is answered at once.

An amount is a count of tokens (`20000`, `5M`, `1e9`) or a share of all tokens of the manifest (`0.02`, anything below 1).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mixing import UserError, validated
from mixing.manifest import Manifest, canonical_json

Begin = Literal["fresh", "weights", "weights-optimizer", "continue"]
Start = Literal["fresh", "weights", "weights-optimizer", "continue", "resume"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_COUNT = re.compile(r"([0-9]*\.?[0-9]+(?:[eE]\+?[0-9]+)?)\s*([kKmMbBtT]?)")


def amount_of(value: object) -> int | float:
    """Tokens as an int, a share as a float below 1."""
    number = value
    if isinstance(value, str) and (match := _COUNT.fullmatch(value.strip())):
        number = float(match[1]) * _UNITS[match[2].lower()]
    if isinstance(number, int | float) and not isinstance(number, bool):
        if 0 <= number < 1:
            return float(number) if number else 0
        if number >= 1 and float(number).is_integer():
            return int(number)
    raise ValueError(f"found {value!r}; an amount is a count of tokens (20000, 5M, 1e9) or a share of the run below 1")


def _cadence(value: object) -> int | float:
    if not (amount := amount_of(value)):
        raise ValueError(f"found {value!r}; it must be more than 0 tokens")
    return amount


Amount = Annotated[int | float, BeforeValidator(amount_of)]
Cadence = Annotated[int | float, BeforeValidator(_cadence)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Settings):
    """The decoder: a local folder or hub name with weights (`path`), or the architecture of a new one (`config`, with its `model_type`)."""

    path: str | None = None
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Model:
        if (self.path is None) == (self.config is None):
            raise ValueError("give either path (a folder or hub name with weights) or config (the architecture of a new model)")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as llama")
        return self


class Optimizer(_Settings):
    """AdamW (arXiv 1711.05101). Norms and biases are never decayed; the gradient is clipped to the norm `clip` (null: never).

    `muon` orthogonalises the update of the matrices inside the blocks and leaves AdamW the rest; its rates are scaled to AdamW's, so that one
    `learning_rate` and one `weight_decay` serve both (arXiv 2502.16982). `moments: bf16` halves the memory of the optimizer's state.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=3e-4, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    epsilon: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    decay_embeddings: bool = True
    clip: float | None = Field(default=1.0, gt=0)
    moments: Literal["fp32", "bf16"] = "fp32"


class Schedule(_Settings):
    """The learning rate over tokens: linear warm-up from `warmup_from` times the peak, then `kind`, never below `floor` times the peak.

    `decay`: how long the last decay of wsd, wsds and infinite takes. `periods` of wsds: the lengths of its periods, each ending in a decay; what is
    left of the run is one more. infinite falls to `plateau` times the peak over `cooldown`, stays there, and decays. `train.schedule` has the formulas.
    """

    kind: Literal["constant", "cosine", "linear", "wsd", "wsds", "inverse_square_root", "infinite"] = "cosine"
    warmup: Amount = 0.02
    warmup_from: float = Field(default=0.0, ge=0, le=1)
    decay: Amount = 0.1
    floor: float = Field(default=0.1, ge=0, le=1)
    periods: list[Cadence] = []
    cooldown: Amount = 0.3
    plateau: float = Field(default=0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _defined(self) -> Schedule:
        if self.kind == "inverse_square_root" and not self.warmup:
            raise ValueError("found warmup 0; inverse_square_root falls as the root of warmup / tokens, so it needs a warmup")
        if self.kind == "infinite" and not 0 < self.floor <= self.plateau:
            raise ValueError(f"found floor {self.floor}; infinite decays exponentially from plateau ({self.plateau}) to a floor above 0")
        return self

    def in_tokens(self, total: int) -> Schedule:
        """This schedule with every amount in tokens of `total`."""
        amounts = {name: tokens(getattr(self, name), total) for name in ("warmup", "decay", "cooldown")}
        return self.model_copy(update=amounts | {"periods": [tokens(length, total) for length in self.periods]})


class Stage(_Settings):
    """What is different in one stage of the manifest: its peak, and a schedule of its own, counted in the stage's tokens from its start."""

    learning_rate: float | None = Field(default=None, gt=0)
    schedule: Schedule | None = None


class Guard(_Settings):
    """Steps that change nothing: those whose loss or gradient is not finite, or whose loss stands more than `sigma` standard deviations above the mean of
    the last `window` steps (null: never), or the gradient's norm more than `norm_sigma`. `patience` of them in a row stop the run."""

    sigma: float | None = Field(default=6.0, gt=0)
    norm_sigma: float | None = Field(default=None, gt=0)
    window: int = Field(default=128, ge=4)
    patience: int = Field(default=8, ge=1)


class Exact(_Settings):
    """Parameters equal bit for bit on any number of processes that divides `bins` and is a power of two. A step is `bins` equal parts, each one
    forward pass."""

    bins: int = Field(ge=1)


class Task(_Settings):
    """A multiple-choice test in a .jsonl or .parquet `file`, one question a row: of the texts in the column `choices` one is right, and `answer` is the
    column with its number (from 0) or its text. `prompt` is what stands before an option, with `{column}` for what a column holds; `where` takes
    only rows whose columns have these values."""

    file: str
    prompt: str = "Question: {question}\nAnswer:"
    choices: str = "choices"
    answer: str = "answer_idx"
    where: dict[str, str | int] = {}


class Evaluate(_Settings):
    """What is measured beside training: at token 0, after `first` tokens, twice, four times, … as many, after every `every` tokens, and at the end.

    Hold-out loss per source and component, per value of the pool columns in `by`, and of other manifests (`holdouts`, folders); the tests in `tasks`,
    and of those in `core` (by category) one average. `means` gives names to means of several losses: `{domain: [papers, exams]}` is `loss/domain`, in which each
    counts the same however long it is. `guards` is what is not to be forgotten: sources, components, tasks, `core_average`,
    `<column>=<value>`, `<name>-v<version>/<source>` of another manifest, means. `items` also records what each document and question gave.
    """

    first: Cadence | None = 0.005
    every: Cadence = 0.1
    guards: list[str] = []
    by: list[str] = []
    holdouts: list[str] = []
    tasks: dict[str, Task] = {}
    core: dict[str, list[str]] = {}
    means: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    items: bool = False

    @model_validator(mode="after")
    def _core_of_tasks(self) -> Evaluate:
        if missing := sorted({task for tasks in self.core.values() for task in tasks} - self.tasks.keys()):
            raise ValueError(f"core has '{missing[0]}', which is not among tasks: {', '.join(self.tasks) or 'none'}")
        if empty := [category for category, tasks in self.core.items() if not tasks]:
            raise ValueError(f"core.{empty[0]} has no tasks; name some, or leave the category out")
        return self


class Checkpoint(_Settings):
    """A checkpoint after every `every` tokens and at the end; the newest `keep` stay."""

    every: Cadence = 0.1
    keep: int = Field(default=2, ge=1)


class Origin(_Settings):
    """Where a run that is not new took its model and optimizer from, and how far that one had come if it is continued."""

    checkpoint: str
    sequences: int = 0
    tokens: int = 0


class Parallel(_Settings):
    """Under torchrun: `replicate` copies of the model, each sharded over the other processes (HSDP); 1: sharded over all of them (FSDP)."""

    replicate: int = Field(default=1, ge=1)


class ManifestName(_Settings):
    """The manifest that a resolved configuration belongs to."""

    name: str
    version: int | str
    digest: str


class Config(_Settings):
    """`batch`: sequences of one step over all processes. `micro_batch`: sequences of one forward pass (null: all that a process holds of a step).
    `tokens`: how much of the plan is trained on, to whole steps (null: all). `simulate`: the length of a run whose repetition this shorter one imitates.

    `freeze`: what stays as it is: `embeddings`, `head`, layers (`3`, `0-11`). `ema`: the half-life, in tokens, of an average of the weights that is
    kept beside them. `time_limit`: a checkpoint is saved and the run stops after so long (`90m`, `11.5h`). `peak_flops`: floating-point operations a
    second of one device, for the utilisation, where the trainer does not know it.

    How fast, never what: `recompute` drops a block's activations after its forward pass, all of them (`full`) or all but those of matrix products
    and attention (`selective`), and computes them again in the backward pass; `compile` compiles each block.
    """

    model: Model
    seed: int = Field(default=17, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    batch: int = Field(ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    recompute: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    parallel: Parallel = Parallel()
    exact: Exact | None = None
    freeze: list[Annotated[str, BeforeValidator(str), Field(pattern=r"^(embeddings|head|[0-9]+(-[0-9]+)?)$")]] = []
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    stages: dict[str, Stage] = {}
    guard: Guard = Guard()
    ema: Cadence | None = None
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    tokens: Cadence | None = None
    simulate: Annotated[int | None, BeforeValidator(lambda value: value if value is None else amount_of(value))] = None
    time_limit: Annotated[str, Field(pattern=r"^[0-9]*\.?[0-9]+[smh]$")] | None = None
    peak_flops: float | None = Field(default=None, gt=0)
    tensorboard: bool = False
    start: Begin | None = None
    origin: Origin | None = None
    manifest: ManifestName | None = None

    @model_validator(mode="after")
    def _whole_bins(self) -> Config:
        if self.exact and (self.batch % self.exact.bins or self.micro_batch not in (None, self.batch // self.exact.bins)):
            raise ValueError(
                f"exact.bins: a batch of {self.batch} in micro-batches of {self.micro_batch or 'any size'} is not {self.exact.bins} equal bins; "
                "make batch a multiple of exact.bins and leave micro_batch out"
            )
        return self

    @property
    def rows(self) -> int | None:
        """Sequences of one forward pass, where the configuration decides it."""
        return self.batch // self.exact.bins if self.exact else self.micro_batch

    @property
    def seconds(self) -> float | None:
        """The time limit."""
        return float(self.time_limit[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.time_limit[-1]] if self.time_limit else None


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file at `path`, with each `key.key=value` (the value read as YAML) put over it."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); accepted: a YAML file with the training configuration") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: found {type(settings).__name__}; a configuration is a mapping with at least model and batch")
    for override in overrides:
        _put(settings, override)
    try:
        return validated(Config, settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _put(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    place, inner = key.split("."), settings
    if not equals or not all(place):
        raise UserError(f"{override}: not an override; write key=value or key.key=value, such as optimizer.learning_rate=1e-4")
    for part in place[:-1]:
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            raise UserError(f"{override}: {part} holds {inner!r}, not keys of its own")
    try:
        inner[place[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{override}: the value is not YAML: {' '.join(str(error).split())}") from None


def tokens(amount: int | float, total: int) -> int:
    return amount if isinstance(amount, int) else max(1, round(amount * total))


def resolved(config: Config, manifest: Manifest, start: Begin, origin: Origin | None = None) -> Config:
    """`config` for this manifest: amounts in tokens, the vocabulary of a new model from the tokenizer, names checked, the digest noted."""
    header = manifest.header
    if config.manifest is not None and config.manifest.digest != manifest.digest:
        raise UserError(
            f"manifest.digest: the configuration belongs to {config.manifest.digest}, {manifest.folder} is {manifest.digest}; "
            "give the manifest it was made for, or remove the key manifest"
        )
    lengths = {stage["name"]: stage["tokens"] for stage in manifest.stages}
    if unknown := sorted(set(config.stages) - set(lengths)):
        raise UserError(f"stages.{unknown[0]}: no such stage; the manifest has: {', '.join(lengths)}")
    total = (origin.tokens if origin else 0) + sum(lengths.values())
    stages = {
        name: stage.model_copy(update={"schedule": stage.schedule and stage.schedule.in_tokens(lengths[name])})
        for name, stage in config.stages.items()
    }
    evaluate = config.evaluate
    return config.model_copy(
        update={
            "model": _with_vocabulary(config.model, manifest),
            "schedule": config.schedule.in_tokens(total),
            "stages": stages,
            "ema": config.ema and tokens(config.ema, total),
            "evaluate": evaluate.model_copy(
                update={"first": evaluate.first and tokens(evaluate.first, total), "every": tokens(evaluate.every, total)}
            ),
            "checkpoint": config.checkpoint.model_copy(update={"every": tokens(config.checkpoint.every, total)}),
            "start": start,
            "origin": origin,
            "manifest": ManifestName(name=header["name"], version=header["version"], digest=manifest.digest),
        }
    )


def _with_vocabulary(model: Model, manifest: Manifest) -> Model:
    """What a new model takes from the manifest unless its config says otherwise: vocabulary, control tokens, context."""
    if model.config is None:
        return model
    tokenizer = manifest.tokenizer
    defaults = {
        "vocab_size": tokenizer["vocab_size"],
        "bos_token_id": tokenizer["bos_id"],
        "eos_token_id": tokenizer["eos_id"],
        "max_position_embeddings": manifest.sequence_length,
    }
    return model.model_copy(update={"config": defaults | model.config})


HOW_ONLY = {"micro_batch", "recompute", "compile", "parallel", "evaluate", "checkpoint", "time_limit", "peak_flops", "tensorboard"}


def identity(config: Config) -> dict[str, Any]:
    """What decides the result of a resolved configuration. The micro-batch, like the number of processes, only decides how sums are rounded."""
    decisive = config.model_dump(mode="json", exclude=HOW_ONLY)
    del decisive["model"]["path"]  # a folder that moved is the same model; the architecture and the weights are in the run
    del decisive["guard"]["patience"]  # when to give up, not what to do
    if decisive["origin"]:
        del decisive["origin"]["checkpoint"]
    return decisive


def config_digest(config: Config) -> str:
    return hashlib.sha256(canonical_json(identity(config)).encode()).hexdigest()


def as_yaml(config: Config) -> str:
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
