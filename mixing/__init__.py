"""Token budgets in, manifest out. Never sees text.

The package root holds what all three packages share: the one exception a user is meant to read, and the one way to check a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    Checked = TypeVar("Checked", bound=BaseModel)


PATTERNS = {
    r"^[A-Za-z0-9_][A-Za-z0-9_-]*$": "a name of letters, digits, _ and -, not beginning with -",
    r"^[A-Za-z0-9][A-Za-z0-9_-]*$": "a name of letters, digits, _ and -, beginning with a letter or digit",
    r"^[a-z_][a-z0-9_]*$": "a name of small letters, digits and _, not beginning with a digit",
    r"^(embeddings|head|[0-9]+(-[0-9]+)?)$": "embeddings, head, the number of a layer or a range of them, as in 0-11",
    r"^[0-9]*\.?[0-9]+[smh]$": "a number with s, m or h behind it, as in 90m",
}
"""What the patterns of configurations accept, in words."""


class UserError(Exception):
    """What a user asked for cannot be done. The message says where, what was found, what is accepted, and the remedy; the exit code is 2."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show of it: the message, for nothing else is the user's."""
        return [f"UserError: {self}"]


def validated(model: type[Checked], values: Mapping[str, object], where: str = "") -> Checked:
    """`values` as a `model`, or one UserError naming the first place that is wrong, what stands there and what is accepted."""
    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_refusal(model, values, error, where)) from None


def _first_refusal(model: type[BaseModel], values: Mapping[str, object], error: ValidationError, where: str) -> str:
    errors = error.errors(include_url=False)
    unknown = [one for one in errors if one["type"] == "extra_forbidden"]
    told = unknown or errors  # a misspelt key explains the missing one beside it
    places = [_as_written(one["loc"], values, is_missing=one["type"] == "missing") for one in told]
    # Of several kinds that a value may be of, the one that fits furthest.
    written = max((one for one in places if one[: len(places[0])] == places[0]), key=len)
    first = told[places.index(written)]
    place = [str(part) for part in first["loc"]]
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in written)
    path = f"{where}{dotted}".removeprefix(".") or "the configuration"
    if first["type"] == "extra_forbidden":
        accepted = _accepted_keys(model, place[:-1])
        near = get_close_matches(place[-1], accepted, 1)
        meant = f", perhaps '{near[0]}'" if near else ""
        return f"{path}: unknown key '{place[-1]}'{meant}" + (f"; accepted here: {', '.join(accepted)}" if accepted else "")
    if first["type"] == "missing":
        return f"{path}: required, but missing"
    if first["type"] == "string_pattern_mismatch" and first["ctx"]["pattern"] in PATTERNS:
        return f"{path}: found {first['input']!r}; accepted: {PATTERNS[first['ctx']['pattern']]}"
    if first["type"] in ("dict_type", "model_type", "model_attributes_type"):
        keys = _accepted_keys(model, place) if first["type"] != "dict_type" else []
        return f"{path}: found {first['input']!r}; accepted: a mapping" + f" of keys: {', '.join(keys)}" * bool(keys)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{path}: {message}"
    others = [
        one["msg"].removeprefix("Input should be ") for one, at in zip(told, places, strict=True) if at == written and one is not first
    ]
    return f"{path}: found {first['input']!r}; {' or '.join([message[0].lower() + message[1:], *others])}"


def _as_written(place: Sequence[int | str], values: object, *, is_missing: bool) -> list[int | str]:
    """The steps of `place` that lead through what somebody wrote; between them pydantic names the kinds that a value may be of."""
    found: list[int | str] = []
    for number, part in enumerate(place):
        inside = values if isinstance(values, Mapping) else dict(enumerate(values)) if isinstance(values, (list, tuple)) else {}
        if part in inside:
            values = inside[part]
        elif not (is_missing and number == len(place) - 1):
            continue
        found.append(part)
    return found


def _accepted_keys(model: type[BaseModel], place: list[str]) -> list[str]:
    """The keys of the model that stands at `place` below `model`, as far as plain nesting can be followed."""
    from typing import get_args

    from pydantic import BaseModel

    def models(annotation: object) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [found for part in get_args(annotation) for found in models(part)]

    candidates: list[type[BaseModel]] = [model]
    for part in place:
        step = [
            found for candidate in candidates if part in candidate.model_fields for found in models(candidate.model_fields[part].annotation)
        ]
        by_name = [candidate for candidate in candidates if candidate.__name__.lower() == part.lower()]
        candidates = step or by_name or candidates
    return sorted({field.alias or name for candidate in candidates for name, field in candidate.model_fields.items()})
