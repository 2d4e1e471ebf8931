"""A small manifest and a model of 20,000 parameters that the trainer's tests share; one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from manifests import small_manifest

from mixing.manifest import Manifest
from train import model as models
from train import weights
from train.config import Config, resolved
from train.model import World
from train.start import Run

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session", autouse=True)
def prepared() -> None:
    torch.set_num_threads(1)
    models.prepare_transformers()


@pytest.fixture(scope="session")
def manifest_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_manifest(tmp_path_factory.mktemp("manifest") / "small", tokens=12_000)


@pytest.fixture(scope="session")
def manifest(manifest_folder: Path) -> Manifest:
    return Manifest.open(manifest_folder)


@pytest.fixture
def settings() -> dict[str, Any]:
    """A configuration as a user writes it."""
    return {
        "model": {"config": dict(LLAMA)},
        "batch": 8,
        "optimizer": {"learning_rate": 0.01},
        "evaluate": {"every": 5000},
        "checkpoint": {"every": 2000},
    }


@pytest.fixture
def config_file(tmp_path: Path, settings: dict[str, Any]) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def config(settings: dict[str, Any], manifest: Manifest) -> Config:
    return resolved(Config.model_validate(settings), manifest, "fresh")


@pytest.fixture
def world() -> World:
    return World(0, 1, torch.device("cpu"), sharded=False)


@pytest.fixture
def run(tmp_path: Path, manifest: Manifest, config: Config, world: World) -> Run:
    return Run(tmp_path / "run", manifest, config, world)


@pytest.fixture
def model(run: Run) -> Any:
    placed = models.place(weights.skeleton(models.architecture(run.config)), run.config, run.world)
    weights.draw(placed, run.config.seed)
    return placed
