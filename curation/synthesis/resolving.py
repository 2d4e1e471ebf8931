"""Everything about a synthesized source that can be refused before any data is read: its sources, templates, model, shares and back end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.corpus.input_files import hash_files, locate
from curation.corpus.sources import SourceConfig
from curation.engine.local import Engine, Run
from curation.engine.work_directory import Digests, key_of
from curation.synthesis.config import Generation, Server, SynthesizeConfig
from curation.synthesis.template import Template, load, read
from mixing import UserError
from mixing.remote import Place


@dataclass(frozen=True)
class Model:
    """A model as answers know it (`name`, `revision`) and as this machine finds it (`location`: a folder, a hub name or a URL)."""

    name: str
    revision: str | None
    location: str


@dataclass(frozen=True)
class Synthesis:
    """A source that is to be synthesized: `parents` are the sources it is made from, `wave` says after which of the others. `groups` names the value of `by` behind each template."""

    name: str
    source: SourceConfig
    config: SynthesizeConfig
    parents: list[str]
    wave: int
    groups: list[str]
    templates: list[Template]
    model: Model
    judge: tuple[Template, Model] | None

    def about(self, template: Template, generation: Generation, model: Model) -> dict[str, Any]:
        """What answers are stored under, besides the prompt."""
        sampling = generation.model_dump(include={"temperature", "top_p", "max_tokens", "guided"})
        return {"model": model.name, "revision": model.revision, "template": template.asked, **sampling}

    @property
    def values(self) -> dict[str, Any]:
        """The resolved recipe's form: everything that decides which documents there are."""
        config = self.config
        given = config.model_dump(by_alias=True, exclude={"backend", "judge", "template", "sources"})
        spelled = [{"value": value, "name": one.name, "digest": one.digest} for value, one in zip(self.groups, self.templates, strict=True)]
        judge = None
        if self.judge is not None and config.judge is not None:
            judge = config.judge.model_dump(exclude={"backend"}) | {
                "model": self.judge[1].name,
                "revision": self.judge[1].revision,
                "digest": self.judge[0].digest,
            }
        return given | {
            "sources": self.parents,
            "templates": spelled,
            "model": self.model.name,
            "revision": self.model.revision,
            "judge": judge,
        }


def resolve_syntheses(sources: Mapping[str, SourceConfig], folder: Path, run: Run, digests: Digests, engine: Engine) -> list[Synthesis]:
    """The synthesized sources of a recipe, in its order: every one below all that are read and below those it is made from."""
    found: list[Synthesis] = []
    read_sources = [name for name, config in sources.items() if config.synthesize is None]
    for name, source in sources.items():
        if source.synthesize is None:
            if found:
                raise UserError(
                    f"sources.{name}: stands below '{found[0].name}', which is synthesized; put what is read first, for it is decided first"
                )
            continue
        found.append(_resolve(name, source, source.synthesize, read_sources, found, folder, run, digests, engine))
    return found


def _resolve(
    name: str,
    source: SourceConfig,
    config: SynthesizeConfig,
    read_sources: list[str],
    above: list[Synthesis],
    folder: Path,
    run: Run,
    digests: Digests,
    engine: Engine,
) -> Synthesis:
    where = f"sources.{name}.synthesize"
    waves = {one.name: one.wave for one in above}
    parents = read_sources if config.sources is None else config.sources
    for parent in parents:
        if parent not in read_sources and parent not in waves:
            raise UserError(f"{where}.sources: no source '{parent}' above '{name}'; accepted: {', '.join([*read_sources, *waves])}")
    wave = 1 + max((waves.get(parent, 0) for parent in parents), default=0)
    if above and wave < above[-1].wave:
        raise UserError(
            f"sources.{name}: stands below '{above[-1].name}', which is made from synthesized documents; put '{name}' above it, for it is decided first"
        )
    named = config.template if isinstance(config.template, dict) else {"": config.template}
    if isinstance(config.template, dict) != (config.by is not None):
        raise UserError(
            f"{where}: `by` and a template for each of its values go together; found {'by' if config.by else 'templates'} alone"
        )
    if config.shares is not None and (set(config.shares) != set(named) or min(config.shares.values()) <= 0 or config.max_documents is None):
        raise UserError(f"{where}.shares: accepted: a positive share for each of {', '.join(named)}, with max_documents")
    templates = [_template(f"{where}.template", one, folder, run) for one in named.values()]
    _check_templates(where, config, templates)
    judge = None
    if config.judge is not None:
        judge = (
            _template(f"{where}.judge.template", config.judge.template, folder, run),
            _model(f"{where}.judge", name, config.judge, folder, run, digests, engine),
        )
    model = _model(where, name, config, folder, run, digests, engine)
    return Synthesis(name, source, config, list(parents), wave, list(named), templates, model, judge)


def _check_templates(where: str, config: SynthesizeConfig, templates: list[Template]) -> None:
    for template in templates:
        if "document" not in template.parts:
            raise UserError(f"{where}.template: '{template.name}' has no part 'document', so nothing can be made of its answers")
        if config.per_document > 1 and template.front.each is None and config.temperature == 0:
            raise UserError(
                f"{where}.per_document: at temperature 0 every answer of '{template.name}' is the same; set a temperature or ask for one"
            )
        if config.corrupt and template.front.answer is None:
            raise UserError(f"{where}.corrupt: '{template.name}' names no answer that could be another's")


def _template(where: str, name: str, folder: Path, run: Run) -> Template:
    """A built-in template by its name, or one of the user's by a path."""
    if not name.endswith(".md"):
        return load(name)
    root, _, _, paths = locate(where, name, "template", folder, run.roots)
    return read(Path(paths[0]).stem, _text_of(root / paths[0]))


def _text_of(path: Place) -> str:
    with path.open("rb") as file:
        return bytes(file.read()).decode("utf-8", errors="replace")


def _model(where: str, source: str, generation: Generation, folder: Path, run: Run, digests: Digests, engine: Engine) -> Model:
    backend, name = generation.backend, generation.model
    if isinstance(backend, Server):
        url = run.roots.get(source) or backend.url
        if url is None:
            raise UserError(
                f"{where}.backend: where is the server? Write backend: {{kind: server, url: http://HOST:PORT/v1}}, or give --root {source}=URL"
            )
        return Model(name, generation.revision, url)
    path = folder / Path(name).expanduser()
    if not path.is_dir():
        return Model(name, generation.revision, name)
    files = sorted(one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file())
    inputs = hash_files(path, files, digests, engine, "hash the model")
    return Model(path.name, key_of([[one.path, one.digest] for one in inputs]), str(path.absolute()))
