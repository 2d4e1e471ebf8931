"""What a killed run goes on from, and what other programs load.

`Saver.save` writes `checkpoints/step-N/`: named tensors as torch's distributed checkpoint in safetensors (one file a process, no pickle), and
`state.json` with the size and the xxh3-128 of every file. Training waits for a copy in main memory only; a thread of each process writes it, one
checkpoint at a time: as `step-N.incomplete`, synced, renamed. A folder without that suffix is whole, whatever killed the run, and `read_state` proves
it. `restore` reads one into the tensors of a run, in place, on any number of processes; on the same number, or in exact mode on any, the run goes on
bit for bit. `export` writes a folder that transformers loads: safetensors, configuration, the manifest's tokenizer files.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
import xxhash
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY  # what the reader looks for
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as distributed_load
from torch.distributed.checkpoint.state_dict_saver import save as distributed_save
from torch.distributed.checkpoint.storage import WriteResult
from transformers import AutoConfig, PreTrainedModel

from mixing import UserError
from mixing.manifest import Manifest
from train.model import World, new_model, prepare_transformers

INCOMPLETE = ".incomplete"

Tensors = dict[str, torch.Tensor]


class State(NamedTuple):
    """Where a run stands: `step` steps done, `sequence` of the manifest the next one to read, `tokens` seen."""

    step: int
    sequence: int
    tokens: int
    manifest: str
    config: str


def model_tensors(model: nn.Module) -> Tensors:
    """Everything of the model that a checkpoint holds, by name; what is shared is named once."""
    kept = model.state_dict().keys()
    named = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    return named | {f"model/{name}": buffer for name, buffer in model.named_buffers() if name in kept}


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


class Saver:
    """Writes the checkpoints of a run, the newest `keep` of which stay; an error of a write comes out of the next call."""

    def __init__(self, run: Path, keep: int, world: World) -> None:
        self.folder, self.keep, self.world = run / "checkpoints", keep, world
        self.group = dist.new_group(backend="gloo") if world.sharded else None  # its collectives run beside those of training
        gpu = world.device.type == "cuda"
        self.stager = DefaultStager(StagingOptions(gpu, False, gpu, gpu))  # pinned memory, on a stream of its own
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.copied: Future[Tensors] | None = None
        self.written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.shutdown()
        self.stager.close()

    def save(self, state: State, tensors: Tensors) -> None:
        """Begins to write `tensors`; they may change as soon as `wait_for_copy` has returned."""
        self.wait()
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)  # the stager's stream does not wait for the update that ours is still computing
        staged = self.stager.stage(dict(tensors))
        self.copied = staged if isinstance(staged, Future) else None
        self.written = self.thread.submit(self._write, state, staged)

    def wait_for_copy(self) -> None:
        if self.copied is not None:
            self.copied.result()
            self.copied = None

    def wait(self) -> None:
        """Until nothing is being written, on any process."""
        self.wait_for_copy()
        if self.written is not None:
            written, self.written = self.written, None
            try:
                written.result()
            except (OSError, CheckpointException) as error:
                shutil.rmtree(next(self.folder.glob(f"*{INCOMPLETE}"), self.folder / INCOMPLETE), ignore_errors=True)
                causes = [str(cause[0]) for cause in error.failures.values()] if isinstance(error, CheckpointException) else [str(error)]
                raise UserError(
                    f"{self.folder}: the checkpoint cannot be written: {causes[0]}; make room, then go on from the one before it with --start resume"
                ) from None

    def _write(self, state: State, staged: Tensors | Future[Tensors]) -> None:
        tensors = staged.result() if isinstance(staged, Future) else staged
        done = self.folder / f"step-{state.step}"
        folder = done.with_name(done.name + INCOMPLETE)
        if self.world.rank == 0:
            for left in self.folder.glob(f"*{INCOMPLETE}"):
                shutil.rmtree(left)
            folder.mkdir(parents=True)
        if self.group is not None:
            dist.barrier(self.group)
        with _known_warnings():
            distributed_save(tensors, storage_writer=_Writer(folder), process_group=self.group, no_dist=not self.world.sharded)
        if self.world.rank == 0:
            files = {path.name: [path.stat().st_size, _checksum(path)] for path in sorted(folder.iterdir())}
            write_text(folder / "state.json", json.dumps(state._asdict() | {"files": files}, indent=1))
            folder.rename(done)
            _sync(done.parent)
            for old in checkpoints(self.folder.parent)[: -self.keep]:
                shutil.rmtree(old)
        if self.group is not None:
            dist.barrier(self.group)


class _Writer(HuggingFaceStorageWriter):
    """Writes tensors from where they lie. torch's own makes the file in memory first, and a copy of it, with the interpreter locked all the while: of
    0.9 GB, 1.3 to 2.7 s in which no step goes on, and three times their memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder = folder

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        if plan.items:
            tensors: dict[str, Any] = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            parts: dict[str, Any] = {item.index.fqn: item.tensor_data for item in plan.items}
            offsets = {name: {SAVED_OFFSETS_KEY: list(part.chunk.offsets)} for name, part in parts.items()}
            file = self.folder / f"shard-{plan.storage_data['shard_index']:05d}.safetensors"
            save_file(tensors, file, metadata={CUSTOM_METADATA_KEY: json.dumps(offsets), "format": "pt"})
            _sync(file)
        written: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        written.set_result([])  # only an index over whole tensors is made of it, which this checkpoint has none of
        return written


def read_state(folder: Path, world: World | None = None) -> State:
    """The state of a complete checkpoint whose files are all there, byte for byte; each process of a world reads its share of them."""
    older = [path.name for path in checkpoints(folder.parents[1]) if step_of(path) < step_of(folder)]
    remedy = f"remove {folder.name} to go on from {older[-1] if older else 'the start'}"
    try:
        stored = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = sorted(stored.pop("files").items())
        state = State(**stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/state.json: cannot be read: {error}; {remedy}") from None
    damage: list[str | None] = [None]
    for name, (size, checksum) in files[world.rank :: world.size] if world else files:
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            damage = [f"{folder / name}: {found} bytes, state.json says {size}; {remedy}"]
        elif _checksum(folder / name) != checksum:
            damage = [f"{folder / name}: its bytes are not those that were written; {remedy}"]
    if world is not None and world.sharded:
        damage = damage * world.size
        dist.all_gather_object(damage, damage[0])
    if found_damage := next(filter(None, damage), None):
        raise UserError(found_damage)
    return state


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def restore(folder: Path, tensors: Tensors, sharded: bool) -> None:
    """The values of a checkpoint into `tensors`, in place; it may hold others too."""
    reader = HuggingFaceStorageReader(str(folder))
    if missing := sorted(tensors.keys() - reader.read_metadata().state_dict_metadata.keys()):
        raise UserError(
            f"{folder}: holds no {missing[0]}; it was saved with another optimizer, or without ema: keep both, or start with --start weights"
        )
    with _known_warnings():
        distributed_load(tensors, storage_reader=reader, no_dist=not sharded)


def write_blueprint(run: Path, model: PreTrainedModel, manifest: Manifest) -> None:
    """`RUN/model/`: everything of an export but the weights, so that a run folder stands on its own."""
    folder = run / "model"
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    for file in sorted((manifest.folder / "tokenizer").iterdir()):
        shutil.copyfile(file, folder / file.name)


def export(run: Path, folder: Path, checkpoint: Path, kind: str = "model") -> None:
    """The `model` of `checkpoint`, or its `ema`, as a Hugging Face folder, in one process, in fp32; written beside, then renamed."""
    model = new_model(AutoConfig.from_pretrained(run / "model"), seed=0)
    tensors = model_tensors(model)
    restore(checkpoint, tensors, sharded=False)
    if kind != "model":
        held = HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
        averaged = {f"{kind}/{name.removeprefix('model/')}": tensor for name, tensor in tensors.items()}
        averaged = {name: tensor for name, tensor in averaged.items() if name in held}  # what is frozen is its own average
        if not averaged:
            raise UserError(f"{checkpoint}: holds no average of the weights; train with ema: HALF_LIFE, or export without --ema")
        restore(checkpoint, averaged, sharded=False)
    partial = folder.with_name(folder.name + INCOMPLETE)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run / "model", partial)
    model.config.use_cache = True
    model.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def chosen(run: Path, step: int | None) -> Path:
    """The checkpoint of `step`, by default the newest."""
    found = {step_of(path): path for path in checkpoints(run)}
    if not found:
        raise UserError(f"{run}: no checkpoint of a training run here; give the folder that `train run` wrote to")
    if step is not None and step not in found:
        raise UserError(f"--step {step}: no such checkpoint in {run}; it has {', '.join(map(str, found))}")
    return found[max(found) if step is None else step]


def export_checkpoint(run: Path, folder: Path, step: int | None, kind: str = "model") -> Path:
    """A checkpoint of a run, by default the newest, as the folder `folder`, which must not exist yet."""
    source = chosen(run, step)
    if folder.exists():
        raise UserError(f"{folder}: exists; name a folder that does not")
    read_state(source)
    prepare_transformers()
    folder.parent.mkdir(parents=True, exist_ok=True)
    export(run, folder, source, kind)
    return folder


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """`text` at `path`, whole or not at all."""
    partial = path.with_name(path.name + INCOMPLETE)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Has a file or a folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _known_warnings() -> Iterator[None]:
    """In one process torch warns that it assumes one process, which is what `no_dist` asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
