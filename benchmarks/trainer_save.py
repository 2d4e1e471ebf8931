"""How long does a checkpoint keep training waiting, beside one that is waited for, and beside torch's own `save` and `async_save`?

    python benchmarks/trainer_save.py MANIFEST FOLDER --rounds 5 --threads 1

A Llama of 79 M parameters with its optimizer, 0.95 GB of state, steps of one row. In every round each kind saves once, below FOLDER, and trains `--steps`
steps from the moment at which it is asked to save: enough of them that what is written in the background is done before the last. `blocked` are the
seconds in which training does nothing but wait, for the call and for the copy before the next update; `longer` are the seconds that save and steps
took more than as many steps without a save in the same round. Every checkpoint is removed at once. Results are JSON lines.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as torch_save
from trainer import ALONE, LLAMA, Ours, configured, documents_as_rows, report, rounded

from mixing.manifest import Manifest
from train.checkpoint import Saver, State, Tensors
from train.stream import Step

LARGE = LLAMA | {"hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 10}
KINDS = ("no save", "ours", "ours, waited for", "torch save", "torch async_save")


def begin(kind: str, saver: Saver, folder: Path, tensors: Tensors, number: int) -> Callable[[], Any]:
    """Asks for a save; returns what waits until it is on disk."""
    if kind.startswith("ours"):
        saver.save(State(number, 0, 0, "", ""), tensors)
        if kind == "ours, waited for":
            saver.wait()
        return saver.wait
    if kind == "torch save":
        torch_save(tensors, checkpoint_id=folder, no_dist=True)
    if kind == "torch async_save":
        return async_save(tensors, checkpoint_id=folder, no_dist=True).result  # type: ignore[union-attr]
    return lambda: None


def one_save(kind: str, trainer: Ours, step: Step, count: int, saver: Saver, number: int) -> tuple[float, float, float]:
    """Seconds blocked, of the save and `count` steps together, and until it was on disk after the last of them."""
    blocked = 0.0

    def copied() -> None:
        nonlocal blocked
        asked = time.perf_counter()
        saver.wait_for_copy()
        blocked += time.perf_counter() - asked

    with tempfile.TemporaryDirectory(dir=saver.folder.parent) as folder:
        os.sync()
        began = time.perf_counter()
        finish = begin(kind, saver, Path(folder), trainer.learner.tensors(), number)
        blocked += time.perf_counter() - began
        for _ in range(count):
            trainer(step, copied)
        trained = time.perf_counter()
        finish()
        return blocked, trained - began, time.perf_counter() - trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    manifest = Manifest.open(given.manifest)
    trainer = Ours(manifest, configured(manifest, LARGE, 1))
    (step,) = documents_as_rows(manifest, 1, 1, given.width)
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(dir=given.folder) as run, Saver(Path(run), 1, ALONE) as saver:
        one_save("ours", trainer, step, 1, saver, 0)  # the first steps and the first save make what the later ones use again
        for number in range(given.rounds * len(KINDS)):
            kind = KINDS[number % len(KINDS)]
            found[kind].append(one_save(kind, trainer, step, given.steps, saver, number + 1))
    plain = [whole for _, whole, _ in found["no save"]]
    for kind in KINDS[1:]:
        blocked = [one for one, _, _ in found[kind]]
        longer = [whole - without for (_, whole, _), without in zip(found[kind], plain, strict=True)]
        ratio = [one / ours for one, (ours, _, _) in zip(blocked, found["ours"], strict=True)]
        late = max(left for _, _, left in found[kind])
        report(
            "save",
            kind=kind,
            blocked=rounded(blocked),
            longer=rounded(longer),
            blocked_times_ours=rounded(ratio),
            still_writing=round(late, 3),
        )
    tensors = trainer.learner.tensors()
    report(
        "save",
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        gigabytes=round(sum(tensor.nbytes for tensor in tensors.values()) / 1e9, 2),
        seconds_a_step=rounded([whole / given.steps for whole in plain]),
    )


if __name__ == "__main__":
    main()
