"""Weights times budget into an exact plan: what `mixture` in a recipe means, and the ordered sequences it comes to.

In: the mixture, the kept documents by component with their token counts, a seed. Out: for each stage its sequences in run order as spans of
documents, and the numbers the manifest's header reports. Tokens realised equal tokens asked for, per component and stage; a shortage is a
UserError before anything is drawn. The same inputs give the same plan. About 20 bytes a span, and as many again while a stage is put together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, model_validator

from mixing import UserError
from mixing.strategies import STRATEGIES, largest_remainder

if TYPE_CHECKING:
    from mixing.draws import ComponentDraws, Documents, Drawn
    from mixing.packing import Packed, Pieces

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def token_count(value: object) -> object:
    """`5B`, `300M`, `1e9` or `20000` as an integer; anything that is no whole positive number of tokens is refused."""
    found = (
        re.fullmatch(r"([0-9][0-9_.]*(?:[eE][+]?[0-9]+)?)\s*([KMBT]?)", str(value).strip())
        if isinstance(value, str | int | float)
        else None
    )
    try:
        count = Decimal(found[1]) * _UNITS[found[2]] if found and not isinstance(value, bool) else Decimal(0)
    except InvalidOperation:
        count = Decimal(0)
    if count < 1 or count != count.to_integral_value():
        raise ValueError(f"{value!r} is not a number of tokens; write 20000, 1e9, 300M or 5B")
    return int(count)


TokenCount = Annotated[int, BeforeValidator(token_count)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]
Cap = Annotated[float, Field(gt=0, le=65535, allow_inf_nan=False)]


class Stage(BaseModel):
    """A stretch of training with one mixture and one token budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    tokens: TokenCount
    weights: dict[Name, Annotated[PositiveFloat, Field(allow_inf_nan=False)]] = Field(min_length=1)
    rounds: int = Field(default=1, ge=1)
    draw: Literal["cursor", "fixed", "fresh"] = "cursor"


class Mixture(BaseModel):
    """Components as ordered predicates over the pool, and the stages that mix them. `max_epochs` (default 1) holds over all stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence_length: int = Field(ge=2, lt=2**31)
    fill: float = Field(default=0.99, ge=0, le=1)
    components: dict[Name, str] = Field(min_length=1, max_length=65535)
    first_match: bool = False
    max_epochs: dict[Name, Cap] | Cap = 1.0
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _components_by_name(cls, values: Any) -> Any:
        """The resolved form writes what has an order as an array of `{name, where}`; it reads back the same."""
        if isinstance(values, Mapping) and isinstance(values.get("components"), list):
            return {**values, "components": {component["name"]: component["where"] for component in values["components"]}}
        return values

    @model_validator(mode="after")
    def _names_agree(self) -> Mixture:
        known = f"the mixture has: {', '.join(self.components)}"
        for number, stage in enumerate(self.stages):
            for name in stage.weights:
                if name not in self.components:
                    raise UserError(f"mixture.stages[{number}].weights: no component '{name}'; {known}")
            if stage.name in [earlier.name for earlier in self.stages[:number]]:
                raise UserError(f"mixture.stages[{number}].name: '{stage.name}' names an earlier stage too; stages need names of their own")
        for name in self.max_epochs if isinstance(self.max_epochs, dict) else ():
            if name not in self.components:
                raise UserError(f"mixture.max_epochs: no component '{name}'; {known}")
        return self

    def cap(self, component: str) -> Fraction:
        """`max_epochs` of a component, as the decimal number that was written."""
        cap = self.max_epochs.get(component, 1.0) if isinstance(self.max_epochs, dict) else self.max_epochs
        return Fraction(str(cap))

    def resolved(self) -> dict[str, Any]:
        """As the header's recipe holds it: every default spelled out, components as an array, since their order decides."""
        values = self.model_dump(mode="json")
        return {**values, "components": [{"name": name, "where": where} for name, where in self.components.items()]}


class StagePlan(NamedTuple):
    """One stage in run order: the spans of sequence i are `[first_span[i], first_span[i + 1])`, the last one's end with the columns."""

    name: str
    component: npt.NDArray[np.uint16]
    first_span: npt.NDArray[np.uint64]
    document: npt.NDArray[np.uint32]  # index into the planned Documents
    start: npt.NDArray[np.uint32]
    length: npt.NDArray[np.uint32]
    epoch: npt.NDArray[np.uint16]
    header: dict[str, Any]


class Plan(NamedTuple):
    """The whole plan; `header()` is its part of the manifest's header."""

    sequence_length: int
    components: dict[str, dict[str, int]]
    stages: list[StagePlan]

    def header(self) -> dict[str, Any]:
        return {
            "component_names": list(self.components),
            "sequence_length": self.sequence_length,
            "sequences": sum(len(stage.component) for stage in self.stages),
            "components": self.components,
            "stages": [stage.header for stage in self.stages],
        }

    def documents(self) -> npt.NDArray[np.uint32]:
        """The planned documents, ascending: those with at least one token in the plan."""
        planned = np.zeros(max((int(stage.document.max()) + 1 for stage in self.stages if len(stage.document)), default=0), np.bool_)
        for stage in self.stages:
            planned[stage.document] = True
        return np.flatnonzero(planned).astype(np.uint32)


def plan(mixture: Mixture, documents: Documents, seed: int, draws: Mapping[str, ComponentDraws] | None = None) -> Plan:
    """The plan of `mixture` over `documents`, or a UserError naming the component that is short, what is asked, what it has and its cap.

    `draws` are those of an earlier plan that this one goes on with, one for each component.
    """
    from mixing.draws import ComponentDraws  # numba: imported where used

    assert len(documents.row) < 2**32
    assert (documents.row[1:] > documents.row[:-1]).all()
    shares = [STRATEGIES["weights"](stage.weights) for stage in mixture.stages]
    # In the mixture's order: spare tokens must not depend on the order in which a stage names its weights.
    shares = [{name: share[name] for name in mixture.components if name in share} for share in shares]
    asked = [largest_remainder(share, stage.tokens) for share, stage in zip(shares, mixture.stages, strict=True)]
    if draws is None:
        visits = np.zeros(len(documents.row), np.uint16)
        draws = {name: ComponentDraws(name, k, documents, visits, seed, mixture.cap(name)) for k, name in enumerate(mixture.components)}
    for name, draw in draws.items():
        _refuse_shortage(name, sum(quotas.get(name, 0) for quotas in asked), draw)
    stages: list[StagePlan] = []
    for stage, share, quotas in zip(mixture.stages, shares, asked, strict=True):
        stages.append(
            _plan_stage(mixture, stage, share, quotas, draws, documents.tokens, sum(len(earlier.component) for earlier in stages))
        )
    sizes = {name: {"documents": draw.documents, "tokens": draw.tokens} for name, draw in draws.items()}
    return Plan(mixture.sequence_length, sizes, stages)


def _refuse_shortage(name: str, asked: int, draw: ComponentDraws) -> None:
    if asked <= draw.available:
        return
    has = f"it has {draw.tokens:,} in {draw.documents:,} documents, and max_epochs {float(draw.cap):g} allows {draw.available:,}"
    wanted = math.floor(draw.cap * draw.tokens) + asked - draw.available  # with what an earlier plan took of the cap
    raises = f", raise max_epochs.{name} to {math.ceil(100 * wanted / draw.tokens) / 100:g}" if draw.tokens else ""
    from mixing.draws import Shortage

    raise Shortage(
        f"mixture: the stages ask {asked:,} tokens of component '{name}'; {has}; lower its weight or tokens{raises}, or add documents"
    )


def _plan_stage(
    mixture: Mixture,
    stage: Stage,
    shares: Mapping[str, float],
    asked: Mapping[str, int],
    draws: Mapping[str, ComponentDraws],
    tokens: npt.NDArray[np.int64],
    first_sequence: int,
) -> StagePlan:
    """Draw, pack and interleave one stage. Its components stand in the order of the mixture."""
    from mixing.draws import round_tokens
    from mixing.packing import interleave, pack

    names = list(mixture.components)
    packed: list[Packed] = []
    components = {}
    waiting = np.zeros(len(tokens), np.uint8)
    mixed = [name for name in names if name in shares]
    for name in mixed:
        drawn = draws[name].take(stage.name, stage.draw, round_tokens(asked[name], stage.rounds))
        packed.append(pack(drawn.pieces, mixture.sequence_length, mixture.fill, waiting))
        numbers = {"weight": shares[name], "asked_tokens": asked[name]}
        components[name] = numbers | _component_header(drawn, packed[-1], tokens)
    order = interleave([len(part.first_span) for part in packed])
    columns = _assemble(order, packed)
    realised = int(columns["length"].sum(dtype=np.int64))
    header = {
        "name": stage.name,
        "first_sequence": first_sequence,
        "sequences": len(order),
        "asked_tokens": stage.tokens,
        "tokens": realised,
        "predictions": realised - len(columns["length"]),
        "padding": len(order) * mixture.sequence_length - realised,
        "components": components,
    }
    component = np.array([names.index(name) for name in mixed], np.uint16)[order]
    return StagePlan(stage.name, component, **columns, header=header)


def _component_header(drawn: Drawn, packed: Packed, tokens: npt.NDArray[np.int64]) -> dict[str, int | float]:
    realised = int(packed.spans.length.sum(dtype=np.int64))
    documents, unique = distinct(drawn.pieces, tokens)
    return {
        "tokens": realised,
        "sequences": len(packed.first_span),
        "documents": documents,
        "unique_tokens": unique,
        "epochs": realised / unique if unique else 0.0,
        "cut_long": packed.cut_long,
        "cut_to_fill": packed.cut_to_fill,
        "cut_to_budget": drawn.cut_to_budget,
    }


def distinct(pieces: Pieces, tokens: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Distinct documents and distinct (document, token) of `pieces`. Nearly all are whole documents; only the others are looked at one by one."""
    whole = pieces.length == tokens[pieces.document]
    read = np.zeros(len(tokens), np.bool_)
    read[pieces.document[whole]] = True
    documents, unique = int(np.count_nonzero(read)), int(tokens[read].sum())
    parts: dict[int, list[tuple[int, int]]] = {}
    for document, start, length in zip(*(column[~whole].tolist() for column in pieces[:3]), strict=True):
        if not read[document]:
            parts.setdefault(document, []).append((start, start + length))
    for ranges in parts.values():
        reach = 0
        for start, end in sorted(ranges):
            unique += max(0, end - max(start, reach))
            reach = max(reach, end)
    return documents + len(parts), unique


def _assemble(order: npt.NDArray[np.uint16], packed: list[Packed]) -> dict[str, Any]:
    """The spans of all components in run order; `order` says whose sequence comes next."""
    spans_of = np.empty(len(order), np.int64)
    positions = [np.flatnonzero(order == k) for k in range(len(packed))]
    for position, part in zip(positions, packed, strict=True):
        spans_of[position] = np.diff(part.first_span, append=len(part.spans.document))
    first_span = np.concatenate([np.zeros(1, np.int64), np.cumsum(spans_of)])
    columns = {name: np.empty(int(first_span[-1]), column.dtype) for name, column in packed[0].spans._asdict().items()}
    for position, part in zip(positions, packed, strict=True):
        # Where each span of the component goes: as far as its sequence moved.
        target = np.repeat(first_span[position] - part.first_span, spans_of[position]) + np.arange(len(part.spans.document))
        for name, column in part.spans._asdict().items():
            columns[name][target] = column
    return {"first_span": first_span[:-1].astype(np.uint64), **columns}
