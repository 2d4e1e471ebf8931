"""The commands behind every number: `curate …` and `python -m train …`, each run once for its inputs.

What a command reads and how it is configured is its key; its folder carries the key and the name, so that a finished piece of work is found again, an
interrupted run is resumed, and a changed setting is new work. Every command is shown with what it printed in `commands.log`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.rig.files import alone, missing, write_text

ROOT = Path(__file__).parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"), "1") | {"TOKENIZERS_PARALLELISM": "false"}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Workshop:
    """Runs commands below `folder`."""

    folder: Path

    def manifest(self, name: str, recipe: Settings, roots: Sequence[str] = ()) -> Path:
        """The manifest of a recipe, built unless it is there; `roots` say where something is found, and decide nothing."""
        words: list[str | Path] = ["--work", self.folder / "work", "--workers", "1", *(word for root in roots for word in ("--root", root))]
        return self._planned(f"{name}-{key(recipe, ())}", {"name": name} | dict(recipe), "build", *words)

    def remix(self, parent: Path, name: str, mixture: Settings, consumed: int | None = None) -> Path:
        """Another plan from a manifest's documents."""
        words = ["--consumed", str(consumed)] if consumed else []
        return self._planned(f"{name}-{key(digest(parent), mixture, consumed)}", {"name": name} | dict(mixture), "remix", *words, parent)

    def _planned(self, folder: str, values: Settings, *words: str | Path) -> Path:
        out = self.folder / "manifests" / folder
        with missing(out / "manifest.json", self.folder) as wanted:
            if wanted:
                written = self.write(self.folder / "recipes" / f"{folder}.yaml", values)
                self.run("curate", *words, written, "-o", out, "--replace", *self.roots())
        return out

    def trained(self, name: str, manifest: Path, config: Settings, *options: str) -> Path:
        """The finished run of a configuration on a manifest; one that was interrupted goes on."""
        out = self.folder / "runs" / f"{name}-{key(digest(manifest), portable(config), [Path(option).name for option in options])}"
        with missing(out / "export" / "config.json", self.folder) as wanted:
            if wanted:
                written = self.write(self.folder / "configs" / f"{out.name}.yaml", config)
                begin = ["--start", "resume"] if (out / "config.yaml").exists() else list(options)
                self.run(sys.executable, "-m", "train", "run", manifest, written, "-o", out, *begin)
        return out

    def sweep(self, name: str, settings: Settings, config: Settings) -> Path:
        """The finished sweep; `train` is written from `config`."""
        digests = {one: digest(Path(folder)) for one, folder in settings["manifests"].items()}
        out = self.folder / "sweeps" / f"{name}-{key({**settings, 'manifests': digests}, portable(config))}"
        with missing(out / "sweep.json", self.folder) as wanted:
            if wanted:
                train = self.write(self.folder / "configs" / f"{out.name}-train.yaml", config)
                written = self.write(self.folder / "configs" / f"{out.name}.yaml", {"train": str(train), **settings})
                self.run(sys.executable, "-m", "train", "sweep", written, "-o", out, "--jobs", "1")
        return out

    def soup(self, name: str, models: Mapping[str, Path], steps: int, exam: Path, target: str) -> Path:
        """The soups of a grid, measured on `exam`."""
        out = self.folder / "soups" / f"{name}-{key({one: folder.parent.name for one, folder in models.items()}, steps, digest(exam))}"
        with missing(out / "soup.json", self.folder) as wanted:
            if wanted:
                shutil.rmtree(out, ignore_errors=True)
                named = [f"{one}={folder}" for one, folder in models.items()]
                self.run(sys.executable, "-m", "train", "soup", *named, "--grid", str(steps), "-m", exam, "--target", target, "-o", out)
        return out

    def index(self, name: str, sources: Settings) -> Path:
        """An index of documents, for `against` in a recipe."""
        out = self.folder / "indexes" / f"{name}-{key(sources)}"
        with missing(out, self.folder) as wanted:
            if wanted:
                partial = out.with_name(out.name + ".incomplete")
                shutil.rmtree(partial, ignore_errors=True)
                written = self.write(self.folder / "recipes" / f"index-{out.name}.yaml", sources)
                self.run("curate", "index", "add", partial, written, "--name", name, "--work", self.folder / "work", *self.roots())
                partial.rename(out)
        return out

    def roots(self) -> list[str]:
        return ["--root", f"corpora={self.folder / 'corpora'}", "--root", f"runs={self.folder}"]

    def write(self, file: Path, values: Settings) -> Path:
        return write_text(file, yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False))

    def run(self, *words: str | Path) -> str:
        """Shows a command, runs it with one thread and returns what it printed; its failure ends the experiment."""
        command = [str(word) for word in words]
        shown = shlex.join("python" if word == sys.executable else word for word in command)
        print(f"{time.strftime('%H:%M:%S')} $ {shown}", file=sys.stderr, flush=True)
        beside = Path(sys.executable).parent
        environment = os.environ | ONE_THREAD | {"PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
        began = time.monotonic()
        with alone(self.folder / "building.lock") if command[0] == "curate" else nullcontext():
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        with (self.folder / "commands.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {shown}\n{done.stdout}{done.stderr[-4000:]}({time.monotonic() - began:.0f} s)\n\n")
        if done.returncode:
            sys.exit(f"{shown}\n{done.stdout[-2000:]}{done.stderr[-4000:]}\nended with {done.returncode}")
        return done.stdout


def key(*inputs: object) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:10]


def digest(manifest: Path) -> str:
    return hashlib.sha256((manifest / "manifest.json").read_bytes()).hexdigest()


def portable(config: Settings) -> dict[str, Any]:
    """A configuration in which the folder of a base and that of an exam are replaced by their names, which carry keys: the same work in any folder."""
    return {name: _named(value) for name, value in config.items()}


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _named(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_named(inner) for inner in value]
    if isinstance(value, str) and value.startswith("/"):
        path = Path(value)
        return path.parent.name if path.name == "export" else path.name
    return value
