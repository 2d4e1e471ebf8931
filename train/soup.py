"""Soups: weighted averages of checkpoints (arXiv 2203.05482), written tensor by tensor and chosen by measuring them.

In: two or more Hugging Face folders of one architecture, vocabulary and tying, and weights that add up to 1: base and continued model
((1 - λ) base + λ trained), or one model per data set. Out: a folder that transformers loads; with a grid, every soup's measurements, the ratios
as strategy `regression` reads them, and the best soup under the guards. Merging the models that were trained on one data set each predicts
a mixture of the data sets before it is trained. Sums are in fp32, results in the first model's dtype; what is stored once (tied
weights) stays stored once. Memory: one file of the first folder, and one tensor of each other.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from mixing import UserError

INDEX = "model.safetensors.index.json"
INCOMPLETE = ".incomplete"


class Ingredient(NamedTuple):
    """A folder of weights: where each tensor lies."""

    folder: Path
    files: dict[str, str]
    shapes: dict[str, tuple[list[int], str]]
    config: dict[str, Any]

    def tensor(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / self.files[name], "pt") as file:
            found: torch.Tensor = file.get_tensor(name)
            return found


def ingredients(folders: Sequence[Path]) -> list[Ingredient]:
    """The folders, refused by name unless each has the first one's tensors, shapes, tying and vocabulary."""
    found = [_opened(folder) for folder in folders]
    first = found[0]
    for other in found[1:]:
        ties = [one.config.get("tie_word_embeddings", False) for one in (first, other)]
        if ties[0] != ties[1]:
            tied, untied = (first, other) if ties[0] else (other, first)
            raise UserError(
                f"{untied.folder}: tie_word_embeddings is false, {tied.folder} ties its embeddings; a soup needs models tied alike"
            )
        if alone := sorted(first.files.keys() ^ other.files.keys()):
            owner, lacking = (first, other) if alone[0] in first.files else (other, first)
            raise UserError(
                f"{lacking.folder}: no tensor {alone[0]}, which {owner.folder} has ({len(alone)} differ); a soup needs models of one architecture"
            )
        for name, (shape, _) in first.shapes.items():
            if other.shapes[name][0] != shape:
                raise UserError(
                    f"{other.folder}: {name} is {other.shapes[name][0]}, in {first.folder} {shape}; a soup needs models of one shape"
                )
        _refuse_other_vocabulary(first.folder, other.folder)
    return found


def _opened(folder: Path) -> Ingredient:
    names = sorted(path.name for path in folder.glob("*.safetensors")) if folder.is_dir() else []
    if not names or not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model in safetensors here; give a folder as transformers writes it, such as RUN/export")
    files, shapes = {}, {}
    for file in names:
        with safe_open(folder / file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                part = opened.get_slice(name)
                files[name], shapes[name] = file, (list(part.get_shape()), str(part.get_dtype()))
    return Ingredient(folder, files, shapes, json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _refuse_other_vocabulary(first: Path, other: Path) -> None:
    paths = [folder / "tokenizer.json" for folder in (first, other)]
    if not all(path.is_file() for path in paths):
        return
    if paths[0].read_bytes() == paths[1].read_bytes():
        return
    one, two = (Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True) for path in paths)
    if differing := one.items() ^ two.items():
        token, number = min(differing, key=lambda entry: (entry[1], entry[0]))
        raise UserError(
            f"{other}: another vocabulary than {first}, different in {len({token for token, _ in differing})} tokens such as {token!r} ({number}); "
            "a soup needs models of one tokenizer"
        )


def blended(parts: Sequence[Ingredient], weights: Sequence[float], name: str) -> torch.Tensor:
    """One tensor of the soup, in the first one's dtype; what is not floating-point has to be the same in all."""
    first = parts[0].tensor(name)
    if not first.is_floating_point():
        for part in parts[1:]:
            if not torch.equal(first, part.tensor(name)):
                raise UserError(f"{part.folder}: {name} holds {first.dtype} that differs from {parts[0].folder}; it cannot be averaged")
        return first
    total = torch.zeros(first.shape, dtype=torch.float32)
    for part, weight in zip(parts, weights, strict=True):
        if weight:
            total.add_(part.tensor(name).float(), alpha=weight)
    return total.to(first.dtype)


def refuse_weights(parts: Sequence[object], weights: Sequence[float]) -> None:
    if len(weights) != len(parts) or abs(math.fsum(weights) - 1) > 1e-6:
        raise UserError(
            f"weights {', '.join(f'{weight:g}' for weight in weights)}: {len(parts)} models need as many weights, which add up to 1"
        )


def write(parts: Sequence[Ingredient], weights: Sequence[float], folder: Path) -> Path:
    """The soup as a Hugging Face folder laid out like the first one's; written beside, then renamed."""
    refuse_weights(parts, weights)
    if folder.exists():
        raise UserError(f"{folder}: exists; name a folder that does not")
    first = parts[0]
    partial = folder.with_name(folder.name + INCOMPLETE)
    shutil.rmtree(partial, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        first.folder, partial, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.pt", "measurements.jsonl", "soup.json")
    )
    for file in sorted(set(first.files.values())):
        tensors = {name: blended(parts, weights, name) for name in first.files if first.files[name] == file}
        save_file(tensors, partial / file, metadata={"format": "pt"})
    partial.rename(folder)
    return folder


def into(model: PreTrainedModel, parts: Sequence[Ingredient], weights: Sequence[float]) -> None:
    """The soup's tensors into a model that was loaded from one of the folders."""
    there = model.state_dict()
    for name in parts[0].files:
        there[name].copy_(blended(parts, weights, name))


def simplex(models: int, steps: int) -> Iterator[tuple[float, ...]]:
    """All weights of `models` that are multiples of 1 / steps and add up to 1, the first model's falling."""
    for cuts in itertools.combinations(range(steps + models - 1), models - 1):
        bars = (-1, *cuts, steps + models - 1)
        yield tuple((high - low - 1) / steps for low, high in reversed(list(itertools.pairwise(bars))))


def name_of(weights: Sequence[float]) -> str:
    return "soup-" + "-".join(f"{weight:.4g}" for weight in weights)
