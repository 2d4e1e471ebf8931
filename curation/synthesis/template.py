"""Templates: what a model is asked about a passage, what its answer must look like, and what text is made of it.

A template is a plain file: front matter in YAML between `---` lines, then parts, each after a line `=== name`. `system` and `prompt` are what the model is sent (`prompt` alone,
without a chat, if the front matter says `completion: true`); `document` is the training text. All three are Jinja2 in its sandbox, where an unknown variable is an error. They
see `passage`, `count`, `discipline`, `language` and `guidance`; `document` sees the fields of the answer too, and `judge` templates the `document` they rate. A passage is a value and
never a template: what stands in it in braces stays as it is.

Front matter: `schema` (JSON Schema of the answer; none: the answer is plain text), `each` (the list of the answer of which every entry is a document), `question`, `answer` and `code`
(the fields that filters look at), `language`, `discipline`, `guidance`, `example` (`passage` and `answer`), and `extends`: a template of this package whose front matter and parts
stand where the file has none of its own.

Parsing is strict: one JSON value, valid by the schema. Around it a code fence is allowed, which models like to write when nothing guides them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict

from mixing import UserError, validated
from mixing.canonical import canonical_json

FOLDER = Path(__file__).parent / "templates"
PARTS = ("system", "prompt", "document")
_PART = re.compile(r"^=== *(\w+) *$", re.MULTILINE)
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
_CONTROL = re.compile(
    r"<[|｜][^<>\n]{1,60}?[|｜]>|</?(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn|passage|document)\b[^<>\n]{0,20}>|\[/?(?:INST|SYS)\]|<</?SYS>>"
)


class FrontMatter(BaseModel):
    """What stands between the `---` lines."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    extends: str | None = None
    language: str = "en"
    discipline: str | None = None
    guidance: str = ""
    schema_: dict[str, Any] | None = None
    each: str | None = None
    question: str | None = None
    answer: str | None = None
    code: str | None = None
    completion: bool = False
    example: dict[str, Any] = {}


class Parsed(NamedTuple):
    """An answer that can be used, or the reason why it cannot."""

    value: Any
    reason: str | None


@dataclass(frozen=True)
class Template:
    """A template whose parts have been put together: `name` as a recipe writes it, without a folder."""

    name: str
    front: FrontMatter
    parts: dict[str, str]
    source: str = field(default="", compare=False)

    @property
    def digest(self) -> str:
        """Everything that decides prompts and documents."""
        front = self.front.model_dump(exclude={"extends", "example"})
        return hashlib.sha256(canonical_json([front, self.parts]).encode()).hexdigest()

    @property
    def asked(self) -> list[object]:
        """What decides answers: a changed `document` part asks nothing anew."""
        return [self.front.completion, self.front.schema_, self.parts.get("system"), self.parts["prompt"]]

    def messages(self, passage: str, **more: object) -> list[dict[str, str]] | str:
        """The chat to send, or the text to continue. Control tokens written in the passage are broken up, for a server would take them for its own."""
        values = self._values(defused(passage), more)
        prompt = self._rendered("prompt", values)
        if self.front.completion:
            return prompt
        system = self._rendered("system", values) if "system" in self.parts else ""
        return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]

    def parse(self, answer: str, *, cut: bool) -> Parsed:
        """The answer's value; `cut`: the model was stopped by the token limit."""
        if not answer.strip():
            return Parsed(None, "empty answer")
        if cut and not self.front.completion:
            return Parsed(None, "cut at max_tokens")
        if self._validator is None:
            return Parsed(answer if self.front.completion else answer.strip(), None)
        fenced = _FENCE.match(answer)
        try:
            value = orjson.loads(fenced[1] if fenced else answer)
        except orjson.JSONDecodeError:
            return Parsed(None, "not JSON")
        if not self._validator.is_valid(value):
            return Parsed(None, "not by the schema")
        return Parsed(value, None)

    def items(self, value: Any) -> list[dict[str, Any]]:
        """The fields of each document that an answer makes."""
        if self._validator is None:
            return [{"text": value}]
        return list(value[self.front.each]) if self.front.each else [value]

    def document(self, passage: str, item: dict[str, Any]) -> str:
        """The training text of one document."""
        return self._rendered("document", self._values(passage, item))

    def _values(self, passage: str, more: dict[str, Any]) -> dict[str, Any]:
        front = self.front
        return {
            "count": 1,
            "discipline": front.discipline or "",
            "language": front.language,
            "guidance": front.guidance,
            "passage": passage,
            **more,
        }

    def _rendered(self, part: str, values: dict[str, Any]) -> str:
        try:
            text: str = self._compiled[part].render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise UserError(f"template '{self.name}', part '{part}': {error}") from None
        return text if self.front.completion else text.strip()

    @cached_property
    def _compiled(self) -> dict[str, Any]:
        sandbox = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
        compiled = {}
        for part, text in self.parts.items():
            try:
                compiled[part] = sandbox.from_string(text)
            except TemplateError as error:
                raise UserError(f"template '{self.name}', part '{part}': {error}") from None
        return compiled

    @cached_property
    def _validator(self) -> Any:
        """None for a template whose answer is plain text."""
        if self.front.schema_ is None:
            return None
        try:
            from jsonschema import Draft202012Validator
            from jsonschema.exceptions import SchemaError
        except ImportError:
            raise UserError("synthesize: the package jsonschema is missing; pip install 'tilth[synthesis]'") from None
        try:
            Draft202012Validator.check_schema(self.front.schema_)
        except SchemaError as error:
            raise UserError(f"template '{self.name}', schema: {error.message}; accepted: JSON Schema, draft 2020-12") from None
        return Draft202012Validator(self.front.schema_)

    def check(self) -> None:
        """Renders the example through every part, so that a mistake is found before a model is asked."""
        front = self.front
        if front.completion and front.schema_:
            raise UserError(f"template '{self.name}': a completion is plain text; leave `schema` or `completion` out")
        if not {"passage", "answer"} <= set(front.example):
            raise UserError(
                f"template '{self.name}': `example` needs `passage` and `answer`; with them it is tried out before a model is asked"
            )
        given = front.example["answer"]
        text = given if self._validator is None else orjson.dumps(given).decode()
        parsed = self.parse(text, cut=False)
        if parsed.reason:
            raise UserError(f"template '{self.name}', example.answer: {parsed.reason}; an answer like it would be thrown away")
        self.messages(front.example["passage"], document="")
        fields = {front.question, front.answer, front.code} - {None}
        for item in self.items(parsed.value):
            if missing := fields - set(item):
                raise UserError(f"template '{self.name}': the answer has no field '{min(map(str, missing))}'; it has: {', '.join(item)}")
            if "document" in self.parts and not self.document(front.example["passage"], item).strip():
                raise UserError(f"template '{self.name}', part 'document': renders to nothing")


def defused(passage: str) -> str:
    """The passage with a space in everything that looks like a control token, or like the end of the passage."""
    return _CONTROL.sub(lambda found: found[0][0] + " " + found[0][1:], passage)


def built_in() -> list[str]:
    """The names of this package's templates."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def load(name: str) -> Template:
    """A template of this package, checked."""
    path = FOLDER / f"{name}.md"
    if not re.fullmatch(r"\w+", name) or not path.is_file():
        raise UserError(
            f"template '{name}': there is none of this name; accepted: a path that ends in .md, or one of {', '.join(built_in())}"
        )
    return read(name, path.read_text(encoding="utf-8"))


def read(name: str, text: str) -> Template:
    """The template in a file's text, checked."""
    template = _put_together(name, text, ())
    template.check()
    return template


def _put_together(name: str, text: str, above: tuple[str, ...]) -> Template:
    found = re.match(r"\A---\n(.*?)\n---\n(.*)\Z", text.replace("\r\n", "\n"), re.DOTALL)
    if found is None:
        raise UserError(f"template '{name}': no front matter; it stands at the top between two lines of ---")
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise UserError(f"template '{name}', front matter: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"template '{name}', front matter: a mapping of keys; found {type(values).__name__}")
    parts = _parts(name, found[2])
    if (base := values.get("extends")) is not None:
        if base in above or not (FOLDER / f"{base}.md").is_file():
            raise UserError(f"template '{name}', extends: found {base!r}; accepted: {', '.join(built_in())}")
        under = _put_together(base, (FOLDER / f"{base}.md").read_text(encoding="utf-8"), (*above, base))
        values = under.front.model_dump(exclude={"schema_", "extends"}, exclude_unset=True) | {"schema": under.front.schema_} | values
        parts = under.parts | parts
    values["schema_"] = values.pop("schema", None)
    front = validated(FrontMatter, values, f"template '{name}'")
    if "prompt" not in parts:
        raise UserError(f"template '{name}': no part 'prompt'; write it after a line `=== prompt`")
    return Template(name, front, parts, text)


def _parts(name: str, body: str) -> dict[str, str]:
    head, *rest = _PART.split(body)
    if head.strip():
        raise UserError(f"template '{name}': {head.strip().splitlines()[0]!r} stands in no part; a part begins with a line `=== prompt`")
    parts = {part: text.strip("\n") for part, text in zip(rest[::2], rest[1::2], strict=True)}
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"template '{name}': unknown part '{min(unknown)}'; accepted: {', '.join(PARTS)}")
    return parts
