"""What a killed run goes on from, and what other programs load.

`save` writes `checkpoints/step-N/`: the tensors of the model and of AdamW as torch's distributed checkpoint in safetensors (one file a process, no
pickle), and `state.json`. It is written as `step-N.incomplete`, synced, renamed: a folder without that suffix is whole, whatever killed the run.
`restore` reads the newest one into a model and an optimizer, on any number of processes; on the same number the run goes on bit for bit.
`export` writes a folder that transformers loads: safetensors, configuration, the manifest's tokenizer files.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as distributed_load
from torch.distributed.checkpoint.state_dict_saver import save as distributed_save
from transformers import AutoConfig, PreTrainedModel

from mixing import UserError
from mixing.manifest import Manifest
from train.model import World, new_model, prepare_transformers

INCOMPLETE = ".incomplete"


class State(NamedTuple):
    """Where a run stands: `step` steps done, `sequence` the next one to read, `tokens` seen."""

    step: int
    sequence: int
    tokens: int
    manifest: str
    config: str


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds, by name; what is shared is named once."""
    kept = model.state_dict().keys()
    named = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    named |= {f"model/{name}": buffer for name, buffer in model.named_buffers() if name in kept}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            named |= {f"{kind}/{name}": value for kind, value in optimizer.state[parameter].items()}
    return named


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def save(run: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int, world: World) -> None:
    """A complete checkpoint of `state`, and no more than `keep` in all."""
    done = run / "checkpoints" / f"step-{state.step}"
    folder = done.with_name(done.name + INCOMPLETE)
    if world.rank == 0:
        for left in (run / "checkpoints").glob(f"*{INCOMPLETE}"):
            shutil.rmtree(left)
        folder.mkdir(parents=True)
    world.meet()
    with _known_warnings():
        distributed_save(
            tensors(model, optimizer),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            no_dist=not world.sharded,
        )
    if world.rank == 0:
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        write_text(folder / "state.json", json.dumps(state._asdict() | {"files": sizes}, indent=1))
        folder.rename(done)
        _sync(done.parent)
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    world.meet()


def read_state(folder: Path) -> State:
    """The state of a complete checkpoint whose files are all there."""
    try:
        stored = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        sizes = stored.pop("files")
        state = State(**stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/state.json: cannot be read: {error}; remove {folder.name} to go on from an earlier checkpoint") from None
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            raise UserError(
                f"{folder / name}: {found} bytes, state.json says {size}; remove {folder.name} to go on from an earlier checkpoint"
            )
    return state


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, world: World) -> None:
    """The tensors of a checkpoint into `model` and, if given, `optimizer`, in place."""
    with _known_warnings():
        distributed_load(tensors(model, optimizer), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not world.sharded)


def write_blueprint(run: Path, model: PreTrainedModel, manifest: Manifest) -> None:
    """`RUN/model/`: everything of an export but the weights, so that a run folder stands on its own."""
    folder = run / "model"
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    for file in sorted((manifest.folder / "tokenizer").iterdir()):
        shutil.copyfile(file, folder / file.name)


def export(run: Path, folder: Path, checkpoint: Path) -> None:
    """The model of `checkpoint` as a Hugging Face folder, in one process, in fp32; written beside, then renamed."""
    model = new_model(AutoConfig.from_pretrained(run / "model"), seed=0)
    with _known_warnings():
        distributed_load(tensors(model), storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    partial = folder.with_name(folder.name + INCOMPLETE)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run / "model", partial)
    model.config.use_cache = True
    model.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def chosen(run: Path, step: int | None) -> Path:
    """The checkpoint of `step`, by default the newest."""
    found = {int(path.name.removeprefix("step-")): path for path in checkpoints(run)}
    if not found:
        raise UserError(f"{run}: no checkpoint of a training run here; give the folder that `train run` wrote to")
    if step is not None and step not in found:
        raise UserError(f"--step {step}: no such checkpoint in {run}; it has {', '.join(map(str, found))}")
    return found[max(found) if step is None else step]


def export_checkpoint(run: Path, folder: Path, step: int | None) -> Path:
    """A checkpoint of a run, by default the newest, as the folder `folder`, which must not exist yet."""
    source = chosen(run, step)
    if folder.exists():
        raise UserError(f"{folder}: exists; name a folder that does not")
    read_state(source)
    prepare_transformers()
    folder.parent.mkdir(parents=True, exist_ok=True)
    export(run, folder, source)
    return folder


def write_text(path: Path, text: str) -> None:
    """`text` at `path`, whole or not at all."""
    partial = path.with_name(path.name + INCOMPLETE)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
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
