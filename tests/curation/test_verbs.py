"""The functions that `import curation` offers: all the commands, typed, light until used, and the guide about them as it stands."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from recipes import built, recipe, write_corpus

import curation
from curation import verbs
from curation.cli import main
from mixing.manifest import Manifest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "from-python.md"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("verbs")
    write_corpus(folder, 30)
    built(folder, recipe(), folder / "out")
    return Manifest.open(folder / "out")


def test_import_of_the_package_imports_nothing_heavy_and_its_functions_stay_functions() -> None:
    code = (
        "import sys, curation, json\nheavy = {'polars', 'numba', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "import curation.build\nprint(json.dumps([sorted(heavy), callable(curation.build), callable(curation.remix)]))"
    )

    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [[], True, True]


def test_stub_and_package_offer_the_same_names_with_the_same_origin() -> None:
    stub = ast.parse((ROOT / "curation" / "__init__.pyi").read_text())
    told = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert sorted(told) == curation.__all__
    assert all(getattr(curation, name) is getattr(__import__(str(module), fromlist=[name]), name) for name, module in told.items())


def test_every_command_is_a_function_and_every_function_is_typed() -> None:
    commands = {name for name, command in main.commands.items() if not hasattr(command, "commands")}
    commands |= {f"index_{name}" for name in main.commands["index"].commands}  # type: ignore[attr-defined]

    assert commands <= set(curation.__all__)
    for name in curation.__all__:
        function = getattr(verbs, name, None)
        if inspect.isfunction(function):
            assert function.__doc__, name
            assert "return" in function.__annotations__, name
            assert set(inspect.signature(function).parameters) <= set(function.__annotations__), name


def test_pool_is_a_lazy_frame_over_all_rows(manifest: Manifest) -> None:
    rows = manifest.pool()

    assert isinstance(rows, pl.LazyFrame)
    assert rows.select("row").collect()["row"].to_list() == list(range(sum(one["read"] for one in manifest.sources.values())))


def test_sequence_holds_the_spans_and_ids_of_the_plan(manifest: Manifest) -> None:
    lengths = manifest.tokens(0, manifest.sequences)
    for number in (0, manifest.sequences // 2, manifest.sequences - 1):
        one = manifest.sequence(number)

        assert one.stage == manifest.stages[manifest.stage_of(number)]["name"]
        assert one.component == manifest.component_names[int(manifest.components(number, number + 1)[0])]
        assert len(one.ids) == lengths[number]
        for excerpt in one.excerpts:
            file = next(n for n in range(manifest.token_files) if excerpt.pool_row in manifest.token_file(n).pool_row)
            stored = manifest.token_file(file)
            at = int(np.searchsorted(stored.pool_row, excerpt.pool_row))
            assert excerpt.ids.tolist() == stored.ids[stored.offsets[at] :][excerpt.start : excerpt.stop].tolist()
    with pytest.raises(IndexError):
        manifest.sequence(manifest.sequences)


def test_recipe_as_a_mapping_builds_what_the_file_builds(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(manifest.folder.parent)

    made = curation.build(recipe(), output=tmp_path / "out", work=tmp_path / "work")

    assert made.manifest.digest == manifest.digest
    assert made.digest in repr(made)
    assert manifest.digest[:16] in repr(made.manifest)
    with pytest.raises(TypeError, match="change the values themselves"):
        curation.build(recipe(), "seed=1", output=tmp_path / "other")
    with pytest.raises(TypeError, match="a folder to write is output="):
        curation.build("recipe.yaml", tmp_path / "other")  # type: ignore[arg-type]


def test_guide_runs_as_it_stands(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL))

    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "('facts', 51)" in done.stdout
    assert "copy_of" in done.stdout
    assert "the recipe" not in done.stderr
