"""Writes every page that can be derived: docs/reference/, data_manifests/README.md, and the annotated tree in README.md.

`python docs/generate.py` writes them; `--check` changes nothing and fails, naming the pages that are out of date. What stands in a page comes from
the code: the help of the commands, the fields of configuration models, the schemas of tables, the first line of each module. Where code has a
column or a key, `docs/columns.yaml` says in a line what it means, and a missing or superfluous line there is an error.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import pyarrow as pa
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
DERIVED = "<!-- Written by docs/generate.py from the code; change it there and run `make docs`. -->"
FOLDERS = {
    "curation": "text in, decided documents out",
    "mixing": "token budgets in, manifest out; never sees text",
    "train": "manifest in, checkpoints and measurements out",
    "data_manifests": "recipes ready to run, a small golden manifest, and what a manifest is",
    "examples": "the demo, and the corpus it takes from this machine's own Python",
    "tests": "mirrors the packages; test_floors.py holds the architecture",
    "docs": "guides, concepts, reference (generated), LOG.md: what was tried",
}
PACKAGES = ("curation", "mixing", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the generated pages.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page is out of date")
    check = parser.parse_args().check
    sys.path.insert(0, str(ROOT))
    stale = []
    for name, page in PAGES.items():
        path = ROOT / name
        text = page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make docs`")
    print(f"{len(PAGES)} generated pages, {len(stale)} {'out of date' if check else 'written'}")


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", DERIVED, *(part.strip() for part in parts)]) + "\n"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


# The commands


def commands() -> str:
    from curation.cli import main as curate
    from train.__main__ import main as train

    parts = ["Results go to stdout, progress and logs to stderr. What a user can mend ends with exit code 2 and one message."]
    for name, command in (("curate", curate), ("python -m train", train)):
        parts += [f"## {name}\n\n```text\n{help_of(command, name)}\n```"]
        parts += [f"### {path}\n\n```text\n{help_of(sub, path)}\n```" for path, sub in below(command, name)]
    return page("Commands", *parts)


def below(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            sub = command.get_command(click.Context(command), name)
            assert sub is not None
            yield f"{path} {name}", sub
            yield from below(sub, f"{path} {name}")


def help_of(command: click.Command, path: str) -> str:
    return command.get_help(click.Context(command, info_name=path, terminal_width=100, max_content_width=100)).strip()


# The recipe and the training configuration


def recipe() -> str:
    from curation.recipe import Recipe

    parts = [
        contract("curation.recipe"),
        "Unknown keys are refused. `key=value` after the recipe on the command line replaces a value by its dotted path.",
    ]
    return page("The recipe", *parts, *models(Recipe))


def training() -> str:
    from train.config import Config

    return page("The training configuration", contract("train.config"), *models(Config))


def signals() -> str:
    from curation.signals import SIGNALS

    parts = [contract("curation.signals")]
    for kind, signal in sorted(SIGNALS.items()):
        parts += [f"## {kind}", contract(signal.config.__module__), *models(signal.config, level=3)]
    return page("Signals", *parts)


def contract(module: str) -> str:
    return inspect.cleandoc(importlib.import_module(module).__doc__ or "")


def models(root: type[BaseModel], level: int = 2) -> list[str]:
    """A section for a model and, in the order they are met, for every model below it."""
    queue, seen, sections = [root], {root}, []
    while queue:
        model = queue.pop(0)
        rows = [
            (f"`{field.alias or name}`", type_name(field.annotation), default(field), field.description or "")
            for name, field in model.model_fields.items()
        ]
        doc = inspect.cleandoc(model.__doc__ or "")
        sections += [f"{'#' * level} {model.__name__}\n\n{doc}\n\n" + table(("key", "type", "default", "meaning"), rows)]
        for field in model.model_fields.values():
            fresh = [found for found in models_in(field.annotation) if found not in seen]
            queue += fresh
            seen.update(fresh)
    return sections


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in models_in(part)]


def type_name(annotation: object) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(parts[0])
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part) for part in parts))
    if origin is None:
        plain = {"NoneType": "null", "str": "text", "int": "integer", "float": "number", "bool": "true or false", "dict": "mapping"}
        name = getattr(annotation, "__name__", str(annotation))
        return plain.get(name, name)
    if origin is dict:
        return f"name: {type_name(parts[1])}"
    return f"list of {type_name(parts[0])}"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return ""
    return f"`{value!r}`" if not isinstance(value, BaseModel) else "as below"


# Tables on disk


def meanings(name: str) -> dict[str, str]:
    found: dict[str, str] = yaml.safe_load((ROOT / "docs" / "columns.yaml").read_text(encoding="utf-8"))[name]
    return found


def columns(schema: pa.Schema, words: dict[str, str]) -> str:
    return described(words, [field.name for field in schema], {field.name: str(field.type) for field in schema})


def described(words: dict[str, str], names: Iterable[str], kinds: dict[str, str] | None = None) -> str:
    """A table of names with the meaning of each; a name without a meaning, or a meaning without its name, is an error."""
    names = list(names)
    if set(words) != set(names):
        raise SystemExit(
            f"docs/columns.yaml: no line for {sorted(set(names) - set(words))}, a line too many for {sorted(set(words) - set(names))}"
        )
    if kinds is None:
        return table(("key", "meaning"), [(f"`{name}`", words[name]) for name in names])
    return table(("column", "type", "meaning"), [(f"`{name}`", f"`{kinds[name]}`", words[name]) for name in names])


# The annotated tree


def readme() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(?<=<!-- tree -->\n).*?(?=<!-- /tree -->)", lambda _: f"```text\n{tree()}\n```\n", text, flags=re.DOTALL)


def tree() -> str:
    lines = []
    for folder, meaning in FOLDERS.items():
        lines.append((f"{folder}/", meaning))
        if folder in PACKAGES:
            lines += leaves(ROOT / folder, "  ")
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:{width}}{meaning}" for name, meaning in lines)


def leaves(folder: Path, indent: str) -> Iterator[tuple[str, str]]:
    """The modules of a folder and, below them, its sub-folders: every file with the first sentence of its docstring."""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"{indent}{path.name}", first_sentence(path)
    for below in sorted(path for path in folder.iterdir() if (path / "__init__.py").exists()):
        yield f"{indent}{below.name}/", first_sentence(below / "__init__.py")
        yield from leaves(below, indent + "  ")


def first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=[.!?:;])\s", text.partition("\n\n")[0].replace("\n", " "), maxsplit=1)[0]
    return sentence.rstrip(".:;")


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands,
    "docs/reference/recipe.md": recipe,
    "docs/reference/signals.md": signals,
    "docs/reference/training.md": training,
    "README.md": readme,
}


if __name__ == "__main__":
    main()
