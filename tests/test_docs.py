"""Pages that are derived are up to date, links lead somewhere, and the README's tree is what lies on the disk."""

from __future__ import annotations

import inspect
import json
import re
from functools import cached_property
from pathlib import Path

import generate
import pytest
import yaml
from pydantic import BaseModel
from test_floors import EVERY_MODULE

import curation
from curation.cli import main as curate
from curation.commands.remix import Remix
from curation.recipe import Recipe
from curation.recipe import load as load_recipe
from mixing import PATTERNS, validated
from train.__main__ import main as train
from train.config import Config
from train.config import load as load_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "data_manifests").glob("*.md")])


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_generated_page_is_what_the_code_says_today(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == generate.PAGES[name](), "run `make docs`"


def test_reference_has_every_command_and_every_public_function() -> None:
    commands = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    python = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    words = [["curate", *path] for path in generate.paths(curate)] + [["python -m train", *path] for path in generate.paths(train)]
    methods = [
        name
        for name, one in vars(curation.Manifest).items()
        if name[0] != "_" and (inspect.isroutine(one) or isinstance(one, property | cached_property))
    ]

    assert [path for path in words if not re.search(rf"^##+ {' '.join(path)}$", commands, re.MULTILINE)] == []
    assert [name for name in curation.__all__ if name not in ("Recipe",) and f"## curation.{name}\n" not in python] == []
    assert [name for name in methods if f"### Manifest.{name}\n" not in python] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_of_a_page_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))

    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]

    assert missing == []


def blocks(first_key: str) -> list[str]:
    """The YAML blocks of all pages that begin with a key."""
    found = [block for path in PAGES for block in re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)]
    return [block for block in found if re.match(rf"(#.*\n)*{first_key}:", block)]


@pytest.mark.parametrize(
    "text", [*blocks("name"), *(path.read_text(encoding="utf-8") for path in (ROOT / "data_manifests").glob("*.yaml"))]
)
def test_recipe_shown_to_a_reader_is_one_the_engine_accepts(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")

    assert load_recipe(tmp_path / "recipe.yaml").mixture.stages


@pytest.mark.parametrize("text", blocks("mixture"))
def test_mixture_shown_to_a_reader_is_one_a_remix_accepts(text: str) -> None:
    assert validated(Remix, yaml.safe_load(text)).mixture.stages


@pytest.mark.parametrize(
    "text", [*blocks("model"), *(path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.train.yaml"))]
)
def test_training_configuration_shown_to_a_reader_is_one_the_trainer_accepts(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.yaml").write_text(text, encoding="utf-8")

    assert load_config(tmp_path / "train.yaml").batch


def test_annotated_tree_of_the_readme_lists_every_module_with_a_meaning() -> None:
    tree = re.search(r"<!-- tree -->\n```text\n(.*?)```\n<!-- /tree -->", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert tree is not None
    folders: list[str] = []
    listed, silent = set(), []
    for line in tree[1].splitlines():
        indent, name, meaning = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()  # type: ignore[union-attr]
        folders = folders[: len(indent) // 2]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        if name.endswith(".py"):
            listed.add("/".join([*folders, name]))
        if not meaning:
            silent.append(line)

    on_disk = {path.relative_to(ROOT).as_posix() for path in EVERY_MODULE.values() if path.name != "__init__.py"}
    assert listed == on_disk
    assert silent == []


@pytest.mark.parametrize("model", [Recipe, Remix, Config])
def test_what_a_pattern_accepts_is_said_in_words(model: type[BaseModel]) -> None:
    patterns = set(re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(model.model_json_schema())))

    assert patterns
    assert {json.loads(pattern) for pattern in patterns} <= PATTERNS.keys()
