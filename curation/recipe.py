"""Recipe: everything that decides the result, nothing about how fast.

A recipe is read, checked and resolved before any data is read: unknown keys, missing files, unknown columns, rules that look beyond a row are refused with one message. The
resolved recipe, which the manifest holds, is a new value: every default spelled out, every path as `{root, pattern}` with the digest of what was found there, everything
that has an order as an array.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field

from curation import rules
from curation.corpus.input_files import hash_files, locate, locate_folder
from curation.corpus.sources import ARROW_TYPES, SHARD_VERSION, Source, SourceConfig, SourceName, resolve
from curation.decisions.duplicates import DEDUP, NEAR_VERSION
from curation.decisions.holdout import HOLDOUT_VERSION, Earlier, HoldoutConfig, find_earlier, spelled
from curation.decisions.ranking import TopConfig
from curation.decisions.resolved_steps import Add, Keep, Step, Top
from curation.decisions.signal_models import Referenced, resolve_references, spelled_config
from curation.dedup import index as dedup_index
from curation.dedup.exact import NORMALIZED_VERSION
from curation.dedup.minhash import SIGNATURE_VERSION
from curation.dedup.preference import Preference
from curation.dedup.repeats import REPEATS, REPEATS_VERSION
from curation.engine.local import Engine, Run
from curation.engine.work_directory import Digests, key_of
from curation.rules import rule_schema
from curation.signals import SIGNALS
from curation.synthesis.filters import COLUMNS as SYNTHETIC
from curation.synthesis.resolving import Synthesis, resolve_syntheses
from curation.text.tokenizer import ResolvedTokenizer, TokenizerConfig
from curation.text.tokenizer import resolve as resolve_tokenizer
from mixing import UserError, validated
from mixing.learned import learn
from mixing.plan import Mixture
from mixing.pool import FORBIDDEN, POOL
from mixing.remote import on_disk
from mixing.strategies.measured import Found

Identifier = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$")]
POOL_COLUMNS = (*POOL.names, *FORBIDDEN)


class StepConfig(BaseModel):
    """One line of the recipe: `add` a signal, `keep` by a rule, or take the `top` by rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    add: dict[Identifier, dict[str, Any]] | None = Field(None, description="`{name: {kind: …}}`: one signal, by its name and configuration")
    keep: str | None = Field(None, description="a rule; documents that fail it, or for which it has no value, are dropped")
    top: TopConfig | None = Field(None, description="keep the best by a signal until a budget is reached")


class Recipe(BaseModel):
    """What to read, how to decide, and what to mix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: SourceName
    version: int = Field(1, ge=0)
    seed: int = Field(0, ge=0, le=2**53)
    tokenizer: TokenizerConfig
    clean: list[Literal["nfc", "control_characters", "line_endings", "mask_pii"]] = []
    sources: dict[SourceName, SourceConfig] = Field(min_length=1, description="their order is their rank when duplicates meet")
    steps: list[StepConfig] = []
    holdout: HoldoutConfig | None = None
    mixture: Mixture


@dataclass(frozen=True)
class Resolved:
    """A recipe of which everything has been found: what a build needs, and `values`, the form that the manifest holds."""

    recipe: Recipe
    values: dict[str, Any]
    sources: list[Source]
    columns: dict[str, pa.DataType]
    tokenizer: ResolvedTokenizer
    steps: list[Step]
    syntheses: list[Synthesis] = field(default_factory=list)
    earlier: Earlier | None = None

    @property
    def key(self) -> str:
        """Names what this recipe, these inputs and this code lead to."""
        versions = {
            step.name: SIGNALS[step.kind].version(step.config) for step in self.steps if isinstance(step, Add) and step.kind in SIGNALS
        }
        versions |= {step.name: REPEATS_VERSION for step in self.steps if isinstance(step, Add) and step.kind in REPEATS}
        readers = [self.readers] if self.readers else []
        return key_of(
            "build", self.values, versions, SHARD_VERSION, HOLDOUT_VERSION, NEAR_VERSION, SIGNATURE_VERSION, NORMALIZED_VERSION, *readers
        )

    @property
    def readers(self) -> dict[str, str]:
        """The versions of the packages that read a format for us: part of every key, and of no recipe."""
        steps = [reference.readers for step in self.steps if isinstance(step, Add) for reference in step.references]
        return dict(sorted(item for readers in [*(source.readers for source in self.sources), *steps] for item in readers.items()))


# --- reading


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML that refuses a key written twice, which would silently lose the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise UserError(f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: a key is a word; found {key!r}")
            if key in seen:
                raise UserError(f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: '{key}' is written twice")
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key=value` overrides of its leaves (`mixture.stages.0.tokens=2M`)."""
    values = read_yaml(path, "a recipe")
    for override in overrides:
        _override(values, override)
    return validated(Recipe, values)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file; `what` it is to a person."""
    if not path.is_file():
        raise UserError(f"{path}: no such {what.removeprefix('a ')} file")
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: {what} is a mapping of keys; found {type(values).__name__}")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"{override!r} is no override; write key=value, as in mixture.stages.0.tokens=2M")
    *parents, last = path.split(".")
    place: Any = values
    for depth, part in enumerate(parents):
        inside = (
            place[int(part)]
            if isinstance(place, list) and part.isdigit() and int(part) < len(place)
            else place.get(part)
            if isinstance(place, dict)
            else None
        )
        if inside is None and isinstance(place, dict):
            inside = place[part] = {}
        if not isinstance(inside, dict | list):
            raise UserError(f"{override!r}: the recipe has no '{'.'.join(parents[: depth + 1])}' to set a value in")
        place = inside
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: not YAML: {' '.join(str(error).split())}") from None
    if isinstance(place, list):
        if not last.isdigit() or int(last) >= len(place):
            raise UserError(f"{override!r}: '{'.'.join(parents)}' has {len(place)} entries, numbered from 0")
        place[int(last)] = value
    else:
        place[last] = value


# --- resolving


def resolve_recipe(recipe: Recipe, folder: Path, run: Run, digests: Digests, engine: Engine) -> Resolved:
    """Finds and checks everything a recipe names; `folder` is where its relative paths start."""
    syntheses = resolve_syntheses(recipe.sources, folder, run, digests, engine)
    read = {name: config for name, config in recipe.sources.items() if config.synthesize is None}
    sources = [resolve(name, config, folder, run.roots, digests, engine) for name, config in read.items()]
    sources += _held_out(recipe, folder, run, digests, engine)
    columns = _carried({one.name: one.columns for one in sources} | {one.name: SYNTHETIC for one in syntheses})
    steps = _steps(recipe, columns, folder, run, digests, engine)
    signals = {step.name: step.type for step in steps if isinstance(step, Add)}
    for name, predicate in recipe.mixture.components.items():
        rules.parse(predicate, f"mixture.components.{name}", rule_schema(columns, signals))
    check_order(recipe.mixture, rule_schema(columns, signals))
    for one in syntheses:
        _check_synthesis(one, rule_schema(columns, signals))
    recipe = recipe.model_copy(update={"mixture": learned_mixture(recipe.mixture, folder, run, digests, engine)})
    tokenizer = resolve_tokenizer(recipe.tokenizer, _tokenizer_at(recipe.tokenizer.path, folder, run.roots))
    named = recipe.holdout.from_ if recipe.holdout else None
    earlier = find_earlier(named, recipe.clean, folder, run.roots) if named is not None else None
    values = _values(recipe, sources, syntheses, steps, tokenizer, earlier)
    return Resolved(recipe, values, sources, columns, tokenizer, steps, syntheses, earlier)


def _held_out(recipe: Recipe, folder: Path, run: Run, digests: Digests, engine: Engine) -> list[Source]:
    """The sources of which everything is held out."""
    files = recipe.holdout.files if recipe.holdout else {}
    if twice := [name for name in files if name in recipe.sources]:
        raise UserError(f"holdout.files: '{twice[0]}' is the name of a source; the two are told apart by their names, so give it another")
    return [resolve(name, config, folder, run.roots, digests, engine, "holdout.files") for name, config in files.items()]


def learned_mixture(mixture: Mixture, folder: Path, run: Run, digests: Digests, engine: Engine) -> Mixture:
    """The mixture with what its strategies learn from files."""
    with TemporaryDirectory() as room:

        def find(where: str, pattern: str) -> tuple[Found, list[Path]]:
            root, name, patterns, paths = locate(where, pattern, where.rpartition(".")[2], folder, run.roots)
            inputs = hash_files(root, paths, digests, engine, "hash measurements")
            found = Found(root=name, pattern=patterns[0], digest=key_of([one.digest for one in inputs]))
            return found, [on_disk(root / path, Path(room)) for path in paths]

        stages = [
            stage.model_copy(update={"weights": learn(f"mixture.stages[{number}].weights", stage.weights, list(mixture.components), find)})
            for number, stage in enumerate(mixture.stages)
        ]
    return mixture.model_copy(update={"stages": stages})


def _tokenizer_at(path: str, folder: Path, roots: dict[str, str]) -> Path | None:
    """Where the tokenizer lies on this machine: below a named root, or beside the recipe; None if `path` can only be a hub name."""
    named = re.match(r"([A-Za-z_][\w-]*):(.+)", path)
    if named is None:
        local = folder / Path(path).expanduser()
        return local if local.exists() else None
    if named[1] not in roots:
        known = ", ".join(sorted(roots)) or "none"
        raise UserError(f"tokenizer.path: no root named '{named[1]}' (given: {known}); name it with --root {named[1]}=PATH")
    return Path(roots[named[1]]).expanduser() / named[2]


def _check_synthesis(synthesis: Synthesis, schema: pa.Schema) -> None:
    where, by = f"sources.{synthesis.name}.synthesize", synthesis.config.by
    rules.parse(synthesis.config.from_, f"{where}.from", schema)
    if by is not None and rules.parse(f"{by} IS NOT NULL", f"{where}.by", schema).reads != [by]:
        raise UserError(f"{where}.by: found {by!r}; accepted: the name of a column or signal, or of one of its values")


def _carried(sources: dict[str, dict[str, str]]) -> dict[str, pa.DataType]:
    """The columns that the sources carry together, with their types."""
    types: dict[str, str] = {}
    for source, columns in sources.items():
        for name, kind in columns.items():
            where = f"sources.{source}.columns"
            if name in POOL_COLUMNS or not name.isidentifier():
                raise UserError(
                    f"{where}: '{name}' cannot be carried under its name; accepted: SQL identifiers other than {', '.join(POOL_COLUMNS)}"
                )
            if types.setdefault(name, kind) != kind:
                raise UserError(
                    f"{where}: '{name}' is {kind} here and {types[name]} in an earlier source; columns of one name need one type"
                )
    return {name: ARROW_TYPES[kind] for name, kind in types.items()}


def _steps(recipe: Recipe, columns: dict[str, pa.DataType], folder: Path, run: Run, digests: Digests, engine: Engine) -> list[Step]:
    steps: list[Step] = []
    signals: dict[str, pa.DataType] = {}
    for index, config in enumerate(recipe.steps, 1):
        where = f"steps[{index - 1}]"
        given = [name for name in ("add", "keep", "top") if getattr(config, name) is not None]
        if len(given) != 1:
            raise UserError(f"{where}: a step is one of add, keep, top; found {' and '.join(given) or 'none of them'}")
        if config.add is not None:
            schema = rule_schema(columns, signals)
            step = _add(index, f"{where}.add", config.add, recipe, folder, run, digests, engine)
            if step.name in signals or step.name in columns or step.name in POOL_COLUMNS:
                raise UserError(f"{where}.add: '{step.name}' is taken; a signal needs a name of its own")
            if isinstance(step.config, Preference) and step.config.priority is not None:
                _check_by(f"{where}.add.{step.name}.priority", step.config.priority, schema)
            _check_samples(f"{where}.add.{step.name}", step, steps, columns)
            signals[step.name] = step.type
            steps.append(step)
        elif config.keep is not None:
            rules.parse(config.keep, f"{where}.keep", rule_schema(columns, signals))
            steps.append(Keep(index, config.keep))
        elif config.top is not None:
            schema = rule_schema(columns, signals)
            if config.top.where is not None:
                rules.parse(config.top.where, f"{where}.top.where", schema)
            if config.top.by is not None:
                _check_by(f"{where}.top.by", config.top.by, schema)
            steps.append(Top(index, config.top, recipe.seed if config.top.seed is None else config.top.seed))
    return steps


def _check_samples(where: str, step: Add, earlier: list[Step], columns: dict[str, pa.DataType]) -> None:
    """Refuses the rule of a sample that cannot be decided of one document as it was read."""
    row_signals = {one.name: one.type for one in earlier if isinstance(one, Add) and one.kind in SIGNALS}
    for reference in step.references:
        if reference.sample is not None and reference.sample.where is not None:
            rules.parse(reference.sample.where, f"{where}.{reference.role}.where", rule_schema(columns, row_signals))


def _add(
    index: int, where: str, add: dict[str, dict[str, Any]], recipe: Recipe, folder: Path, run: Run, digests: Digests, engine: Engine
) -> Add:
    if len(add) != 1:
        raise UserError(f"{where}: one signal a step; found {', '.join(add) or 'none'}")
    ((name, values),) = add.items()
    kind = values.get("kind")
    kinds = {**{name: signal.config for name, signal in SIGNALS.items()}, **DEDUP, **REPEATS}
    if kind not in kinds:
        raise UserError(f"{where}.{name}.kind: found {kind!r}; accepted: {', '.join(sorted(kinds))}")
    config = validated(kinds[kind], values, f"{where}.{name}")
    references = []
    if isinstance(config, Preference):
        references = _index(f"{where}.{name}.against", config.against, recipe.clean, folder, run) if config.against is not None else []
    elif kind in SIGNALS:
        read = [one for one, source in recipe.sources.items() if source.synthesize is None]
        references = resolve_references(f"{where}.{name}", kind, config, read, folder, run, digests, engine)
    return Add(index, name, kind, config, references)


def _index(where: str, against: str, clean: Sequence[str], folder: Path, run: Run) -> list[Referenced]:
    """The index that documents are compared with, found; refused where it does not fit."""
    try:
        at, place = locate_folder(where, against, dedup_index.FILE, "index", folder, run.roots)
    except UserError as error:
        raise UserError(f"{error}; an index is made with `curate index add`") from None
    found = dedup_index.Index.open(at, where)
    found.require_clean(clean, where)
    return [Referenced("against", found.folder, [dedup_index.FILE], None, place | {"digest": found.digest})]


def check_order(mixture: Mixture, schema: pa.Schema) -> None:
    """Refuses a stage that is ordered by what is no number."""
    for number, stage in enumerate(mixture.stages):
        if stage.order is not None:
            _check_by(f"mixture.stages[{number}].order.by", stage.order.by, schema)


def _check_by(where: str, by: str, schema: pa.Schema) -> None:
    """`by` must be a number, so that ranking it means something."""
    try:
        reads = rules.parse(f"{by} IS NOT NULL", where, schema).reads
    except UserError as error:
        raise UserError(str(error).replace(f"{by} IS NOT NULL", by)) from None
    if reads != [by]:
        raise UserError(
            f"{where}: found {by!r}; accepted: the name of a column or signal, or of one of its values, as in words.mean_length"
        )
    column, _, part = by.partition(".")
    kind = schema.field(column).type
    kind = kind.field(part).type if part else kind
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(f"{where}: '{by}' is {kind}; accepted: a number")


def _values(
    recipe: Recipe,
    sources: list[Source],
    syntheses: list[Synthesis],
    steps: list[Step],
    tokenizer: ResolvedTokenizer,
    earlier: Earlier | None,
) -> dict[str, Any]:
    """The resolved recipe as JSON."""
    read = [_as_read(source) for source in sources]
    made = [
        {
            "name": one.name,
            "synthesize": one.values,
            **({} if one.source.max_duplicates is None else {"max_duplicates": one.source.max_duplicates}),
            "licence": one.source.licence,
            "max_quarantine": one.source.max_quarantine,
        }
        for one in syntheses
    ]
    return {
        "name": recipe.name,
        "version": recipe.version,
        "seed": recipe.seed,
        "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id},
        "clean": list(recipe.clean),
        "sources": read + made,
        "steps": [_step_values(step) for step in steps],
        "holdout": spelled(recipe.holdout, earlier) if recipe.holdout else None,
        "mixture": recipe.mixture.resolved(),
    }


def _as_read(source: Source) -> dict[str, Any]:
    files = {
        "root": source.root_name,
        "pattern": source.pattern,
        "digest": key_of([[one.path, one.digest] for one in source.inputs]),
    }
    return {
        "name": source.name,
        "files": files,
        "text": source.config.text,
        "key": source.config.key,
        **{name: value for name in ("where", "limit", "max_duplicates") if (value := getattr(source.config, name)) is not None},
        "columns": [{"name": name, "type": kind} for name, kind in source.columns.items()],
        "licence": source.config.licence,
        "max_quarantine": source.config.max_quarantine,
    }


def _step_values(step: Step) -> dict[str, Any]:
    if isinstance(step, Add):
        return {"add": {"name": step.name, **spelled_config(step.config, step.references)}}
    if isinstance(step, Keep):
        return {"keep": step.rule}
    return {"top": step.config.model_dump(exclude_none=True)}
