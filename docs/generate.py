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
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import click
import pyarrow as pa
import yaml
from click.testing import CliRunner
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
DERIVED = "<!-- Written by docs/generate.py from the code; change it there and run `make docs`. -->"
FOLDERS = {
    "curation": "text in, decided documents out",
    "mixing": "token budgets in, manifest out; never sees text",
    "train": "manifest in, checkpoints and measurements out",
    "data_manifests": "recipes ready to run, a small golden manifest, and what a manifest is",
    "benchmarks": "one script and one dated page for each question that was measured",
    "examples": "the demo, and the corpus it takes from this machine's own Python",
    "tests": "mirrors the packages; test_floors.py holds the architecture",
    "docs": "guides, concepts, reference (generated), LOG.md: what was tried",
}
PACKAGES = ("curation", "mixing", "train")
MEANING = 90  # characters beside a file's name in the tree
GOLDEN = "data_manifests/docs-v1"


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
        for path in paths(command):
            title = " ".join([name, *path])
            shown = CliRunner().invoke(command, [*path, "--help"], prog_name=name, terminal_width=100)
            parts.append(f"{'###' if path else '##'} {title}\n\n```text\n{shown.output.strip()}\n```")
    return page("Commands", *parts)


def paths(command: click.Command) -> Iterator[list[str]]:
    """The words that lead to a command and to each one below it."""
    yield []
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from ([name, *path] for path in paths(command.commands[name]))


# The functions of Python

RESULTS = (
    "curation.build.Built",
    "curation.commands.estimate.Estimate",
    "curation.commands.estimate.Sampled",
    "curation.commands.estimate.Wanted",
    "curation.starter.init.Started",
    "curation.commands.remix.Remixed",
    "mixing.export.Exported",
    "mixing.findings.Finding",
    "mixing.manifest.Sequence",
    "mixing.manifest.Excerpt",
    "mixing.manifest.Spans",
    "mixing.manifest.Holdout",
)


def python() -> str:
    import curation

    def named(path: str) -> object:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)

    functions = [name for name in curation.__all__ if inspect.isfunction(getattr(curation, name))]
    parts = [contract("curation.verbs"), *(function(f"curation.{name}", getattr(curation, name)) for name in functions)]
    parts += ["## curation.UserError", doc(curation.UserError), "## curation.Manifest", doc(curation.Manifest), members(curation.Manifest)]
    parts += ["# What they return", *(f"## {path.rpartition('.')[2]}\n\n{doc(named(path))}\n\n{members(named(path))}" for path in RESULTS)]
    return page("Python", *parts)


def doc(thing: object) -> str:
    """The docstring, which everything public has."""
    text = inspect.getdoc(thing)
    if not text or text.startswith(("str(object", f"{getattr(thing, '__name__', '')}(")):
        sys.exit(f"docs/generate.py: {getattr(thing, '__qualname__', thing)} is public and has no docstring")
    return text


def function(name: str, thing: Callable[..., object], level: int = 2) -> str:
    signature = inspect.signature(thing)
    parameters, starred = [], False
    for one in signature.parameters.values():
        starred |= one.kind is one.VAR_POSITIONAL
        if one.kind is one.KEYWORD_ONLY and not starred:
            parameters.append("*")
            starred = True
        annotation = "" if one.annotation is one.empty else f": {one.annotation}"
        value = "" if one.default is one.empty else f" = {one.default!r}"
        parameters.append(f"{'*' * (one.kind is one.VAR_POSITIONAL)}{one.name}{annotation}{value}")
    shown = f"{name.rpartition('.')[2]}({', '.join(parameters)}) -> {signature.return_annotation}"
    if len(shown) > 100:
        listed = "\n".join(f"    {parameter}," for parameter in parameters)
        shown = f"{name.rpartition('.')[2]}(\n{listed}\n) -> {signature.return_annotation}"
    return f"{'#' * level} {name}\n\n```text\n{shown}\n```\n\n{doc(thing)}"


def members(thing: object) -> str:
    """The fields, properties and methods of a class, in the order in which they are written."""
    assert isinstance(thing, type)
    fields = [f"`{name}`: `{kind}`".replace("'", "") for name, kind in inspect.get_annotations(thing).items() if not name.startswith("_")]
    parts = ["Fields: " + ", ".join(fields) + "."] if fields else []
    for name, member in vars(thing).items():
        member = getattr(member, "__func__", member)
        member = property(member.func) if isinstance(member, cached_property) else member
        if name.startswith("_") or name in fields or not (inspect.isfunction(member) or isinstance(member, property)):
            continue
        if name in ("index", "count") or name in getattr(thing, "_fields", ()):
            continue
        if isinstance(member, property):
            kind = str(inspect.signature(member.fget).return_annotation).replace("'", "") if member.fget else ""
            parts.append(f"### {thing.__name__}.{name}\n\n`{kind}`. {inspect.getdoc(member) or ''}".rstrip())
        elif not name.startswith("_") and member.__doc__:
            parts.append(function(f"{thing.__name__}.{name}", member, 3))
    return "\n\n".join(parts)


# The recipe and the training configuration


def recipe() -> str:
    from curation.recipe import Recipe
    from mixing.strategies import STRATEGIES, Group

    parts = [
        contract("curation.recipe"),
        "Unknown keys are refused. `key=value` after the recipe on the command line replaces a value by its dotted path.",
    ]
    parts += [*models(Recipe), "## Weights", contract("mixing.strategies"), *models(Group, level=3)]
    for strategy in STRATEGIES.values():
        parts += models(strategy.config, level=3)
    return page("The recipe", *parts)


def training() -> str:
    from train.config import Config

    return page("The training configuration", contract("train.config"), *models(Config))


def signals() -> str:
    from curation.decisions.duplicates import DEDUP
    from curation.dedup.repeats import REPEATS
    from curation.signals import SIGNALS

    parts = [contract("curation.signals")]
    seen: set[type[BaseModel]] = set()
    for kind, signal in SIGNALS.items():
        parts += [f"## {kind}", contract(signal.config.__module__), *models(signal.config, seen, level=3)]
    parts += [
        "# Duplicates",
        "Signals that depend on the other documents alive at their step. The value is the pool row of the survivor, or null.",
    ]
    for kind, config in DEDUP.items():
        parts += [f"## {kind}", *models(config, seen, level=3)]
    parts += ["# Repeated text", contract("curation.dedup.repeats")]
    for kind, repeats in REPEATS.items():
        parts += [f"## {kind}", *models(repeats, seen, level=3)]
    return page("Signals", *parts)


def contract(module: str) -> str:
    return inspect.cleandoc(importlib.import_module(module).__doc__ or "")


def models(root: type[BaseModel], seen: set[type[BaseModel]] | None = None, level: int = 2) -> list[str]:
    """A section for a model and, in the order they are met, for every model below it that is not in `seen` yet."""
    seen = set() if seen is None else seen
    seen.add(root)
    queue, sections = [root], []
    while queue:
        model = queue.pop(0)
        doc = inspect.cleandoc(model.__doc__ or "")
        sections.append(f"{'#' * level} {model.__name__}\n\n{doc}\n\n{fields(model)}")
        for field in model.model_fields.values():
            fresh = [found for found in models_in(field.annotation) if found not in seen]
            queue += fresh
            seen.update(fresh)
    return sections


def fields(model: type[BaseModel]) -> str:
    rows = [
        (f"`{field.alias or name}`", type_name(field.annotation), default(field), field.description or "")
        for name, field in model.model_fields.items()
    ]
    described = any(meaning for *_, meaning in rows)
    return table(("key", "type", "default", "meaning")[: 3 + described], [row[: 3 + described] for row in rows])


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in models_in(part)]


def type_name(annotation: object) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(parts[0])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part) for part in parts))
    if origin is dict:
        return f"{{name: {type_name(parts[1])}}}"
    if origin is not None:
        return f"list of {type_name(parts[0])}"
    name = getattr(annotation, "__name__", str(annotation))
    return {"NoneType": "null", "str": "text", "int": "integer", "float": "number", "bool": "boolean", "Any": "value"}.get(name, name)


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "as below" if isinstance(value, BaseModel) else "" if value is None else f"`{json.dumps(value)}`"


# What lies on disk


def manifests() -> str:
    from mixing import history, manifest

    words: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "docs" / "columns.yaml").read_text(encoding="utf-8"))
    ids = pa.uint16()
    header = json.loads((ROOT / GOLDEN / "manifest.json").read_text(encoding="utf-8"))
    stage, source = header["stages"][0], next(iter(header["sources"].values()))
    parts = [
        (ROOT / "docs" / "manifests.md").read_text(encoding="utf-8").replace("<!-- recipes -->", recipes()),
        "## manifest.json",
        keys(words["header"], manifest.HEADER_KEYS),
        "### sources.NAME",
        keys(words["header.sources"], source),
        "### stages",
        keys(words["header.stages"], stage),
        "### stages.components.NAME",
        keys(words["header.stages.components"], next(iter(stage["components"].values()))),
    ]
    tables = {
        "plan/STAGE.arrow": ("sequences", manifest.SEQUENCES),
        "plan/STAGE.spans.arrow": ("spans", manifest.SPANS),
        history.VISITS_PATH: ("visits", history.VISITS),
        "tokens/N.arrow": ("tokens", manifest.tokens_schema(ids)),
        "holdout/SOURCE.arrow": ("holdout", manifest.holdout_schema(ids)),
    }
    for name, (key, schema) in tables.items():
        parts += [f"## {name}", columns(schema, words[key])]
    return page("Manifests", *parts)


def recipes() -> str:
    """The recipes of the folder, each with the comment it opens with."""
    rows = []
    for path in sorted((ROOT / "data_manifests").glob("*.yaml")):
        comment = " ".join(
            line.lstrip("# ") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if line.startswith("# ")
        )
        rows.append((f"[{path.name}]({path.name})", re.split(r"(?<=\.)\s", comment)[0]))
    return table(("recipe", "what it is"), rows)


def pool() -> str:
    from mixing import pool

    after = (
        "Then the carried `columns` of the sources, then the recipe's signals under their names; a signal of several values is a struct."
    )
    return page("The pool", contract("mixing.pool"), columns(pool.POOL, pool.DOCUMENTATION), after)


def measurements() -> str:
    from mixing import measurements

    return page("Measurements", contract("mixing.measurements"), columns(measurements.MEASUREMENTS, measurements.DOCUMENTATION))


def columns(schema: pa.Schema, words: Mapping[str, str]) -> str:
    return table(
        ("column", "type", "meaning"), [(f"`{name}`", f"`{schema.field(name).type}`", words[name]) for name in exactly(words, schema.names)]
    )


def keys(words: Mapping[str, str], names: Iterable[str]) -> str:
    return table(("key", "meaning"), [(f"`{name}`", words[name]) for name in exactly(words, names)])


def exactly(words: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """The names, if each has its words and each word its name."""
    names = list(names)
    if set(words) != set(names):
        sys.exit(f"docs/columns.yaml: no line for {sorted(set(names) - set(words))}, a line too many for {sorted(set(words) - set(names))}")
    return [name for name in words if name in names]


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
    """The first sentence of a module's docstring, or as many of its parts as fit beside the tree."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=[.!?])\s", text.partition("\n\n")[0].replace("\n", " "), maxsplit=1)[0].rstrip(".")
    parts = re.split(r"(?=[:;]\s)", sentence)
    while len(parts) > 1 and len("".join(parts)) > MEANING:
        parts.pop()
    return "".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands,
    "docs/reference/python.md": python,
    "docs/reference/recipe.md": recipe,
    "docs/reference/signals.md": signals,
    "docs/reference/training.md": training,
    "docs/reference/pool.md": pool,
    "docs/reference/measurements.md": measurements,
    "data_manifests/README.md": manifests,
    "README.md": readme,
}


if __name__ == "__main__":
    main()
