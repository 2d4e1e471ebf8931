"""How a run begins: what may be started, resumed or continued in a folder, from what, under which resolved configuration.

Every mode is named and none is guessed from what lies about (but under torchrun with --max-restarts, see `decided_start`): fresh (random weights), weights (those of `model.path`), weights-optimizer (a run's
weights and optimizer under this configuration's rates, from token 0), continue (that run on a manifest remixed from its own, from the sequence it
stood at), resume (this run, unchanged). Rates and schedules always come from the configuration, never from a checkpoint.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mixing import UserError
from mixing.manifest import Manifest
from train import checkpoint
from train import config as settings
from train.config import Begin, Config, Origin, Start
from train.model import World


class Run(NamedTuple):
    """What a run is from its start to its end."""

    folder: Path
    manifest: Manifest
    config: Config
    world: World

    @property
    def origin(self) -> Origin:
        """Where the run's counts begin: at 0, unless it continues another one."""
        return self.config.origin or Origin(checkpoint="")

    @property
    def total(self) -> int:
        """Tokens at the end of the plan."""
        return self.origin.tokens + sum(int(stage["tokens"]) for stage in self.manifest.stages)


def decided_start(asked: Start | None, config: Config, folder: Path, source: Path | None) -> Start:
    """How to start: as asked, else from the weights of model.path, else afresh. A run that has a checkpoint is only ever resumed; torchrun with --max-restarts, which starts the same
    command again when a machine is lost or comes back, need not ask for it."""
    existing = checkpoint.checkpoints(folder)
    is_run = (folder / "config.yaml").is_file()
    if (source is not None) != (asked in ("weights-optimizer", "continue")):
        raise UserError(
            f"--start {asked}: needs --from, the folder of a run or of one of its checkpoints"
            if source is None
            else f"--from {source}: only --start weights-optimizer and --start continue take a checkpoint"
        )
    if asked is None and existing and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        return "resume"
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


def origin(mode: Begin, source: Path, manifest: Manifest, world: World) -> Origin:
    """The checkpoint to begin from: the one named, else the newest of a run; to continue, the one at which the manifest was remixed."""
    found = [source] if (source / "state.json").is_file() else checkpoint.checkpoints(source)
    if not found:
        raise UserError(f"--from {source}: no checkpoint here; give the folder of a run or of one of its checkpoints")
    if mode == "weights-optimizer":
        checkpoint.read_state(found[-1], world)
        return Origin(checkpoint=str(found[-1].resolve()))
    parent = manifest.header["parent"]
    if parent is None:
        raise UserError(f"--start continue: {manifest.folder} is no remix; make one with `curate remix`, or use --start weights-optimizer")
    states = {path: checkpoint.read_state(path, world) for path in found}
    if trained := next((state.manifest for state in states.values() if state.manifest != parent["digest"]), None):
        raise UserError(
            f"--start continue: {manifest.folder} is a remix of {parent['digest']}, {source} trained on {trained}; remix that one"
        )
    at = [path for path, state in states.items() if state.sequence == parent["consumed_sequences"]]
    if not at:
        raise UserError(
            f"--start continue: {manifest.folder} was remixed at sequence {parent['consumed_sequences']}, the checkpoints in {source} stand at "
            f"{', '.join(str(state.sequence) for state in states.values())}; remix with --consumed at one of these"
        )
    before = settings.load(at[0].parents[1] / "config.yaml").origin or Origin(checkpoint="")
    stands = states[at[0]]
    return Origin(checkpoint=str(at[0].resolve()), sequences=before.sequences + stands.sequence, tokens=stands.tokens)


@contextmanager
def opened(
    folder: Path, mode: Start, config: Config, manifest: Manifest, world: World, source: Path | None
) -> Iterator[tuple[Run, Path | None]]:
    """The run's folder, locked, with its resolved configuration; and the checkpoint of its own to go on from."""
    if mode == "resume":
        stored = settings.load(folder / "config.yaml")
        config = settings.resolved(
            config.model_copy(update={"manifest": stored.manifest}), manifest, stored.start or "fresh", stored.origin
        )
        refuse_changes(stored, config)
    else:
        config = settings.resolved(config, manifest, mode, origin(mode, source, manifest, world) if source else None)
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
            + "; put it back, or begin a new run with --start weights-optimizer --from this one, or with --start weights from its export"
        )


def flat(nested: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    pairs: dict[str, Any] = {}
    for key, value in nested.items():
        pairs |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return pairs
