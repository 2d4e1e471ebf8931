"""Weights times budget into an exact plan: what `mixture` in a recipe means, and the ordered sequences it comes to.

In: the mixture, the kept documents by component with their token counts, a seed. Out: for each stage its sequences in run order as spans of
documents, and the numbers the manifest's header reports. Tokens realised equal tokens asked for, per component and stage; a shortage is a
UserError before anything is drawn. The same inputs give the same plan. About 20 bytes a span, and as many again while a stage is put together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixing import UserError
from mixing.budget import Asked, Quota, check_bounds, quota, redistributed
from mixing.order import Order, in_order, window_of
from mixing.strategies import Weights, check_names, named
from mixing.strategies.shares import Budget, Cap, Name, Share, TokenCount, written
from mixing.strategies.sizes import Concatenate

if TYPE_CHECKING:
    from mixing.draws import ComponentDraws, Documents, Drawn
    from mixing.packing import Packed, Pieces


class Stage(BaseModel):
    """A stretch of training with one mixture and one token budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    tokens: Budget = Field(description="the budget; `all` with the strategy concatenate")
    weights: Weights = Field(description="numbers by component, groups `{weight, components}` among them, or `{strategy: NAME, …}`")
    rounds: int = Field(default=1, ge=1)
    draw: Literal["cursor", "fixed", "fresh"] = "cursor"
    order: Order | None = Field(None, description="which documents come first; without it they are shuffled")
    min_tokens: dict[Name, TokenCount] = Field({}, description="the fewest tokens of a component; the others give them up in proportion")
    max_share: dict[Name, Share] = Field({}, description="the largest share of a component; the others take the rest in proportion")

    def asked(self) -> Asked:
        """What it says about its budget."""
        return Asked(self.weights, self.tokens, self.min_tokens, self.max_share)

    @model_validator(mode="after")
    def _all_is_concatenated(self) -> Stage:
        if (self.tokens == "all") != isinstance(self.weights, Concatenate):
            raise ValueError(
                f"found tokens {self.tokens}; the strategy concatenate takes every component once: it and `tokens: all` need each other"
            )
        return self


class Mixture(BaseModel):
    """Components as ordered predicates over the pool, and the stages that mix them. `max_epochs` (default 1) holds over all stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence_length: int = Field(ge=2, lt=2**31)
    fill: float = Field(default=0.99, ge=0, le=1)
    components: dict[Name, str] = Field(min_length=1, max_length=65535)
    first_match: bool = False
    max_epochs: dict[Name, Cap] | Cap = 1.0
    on_shortage: Literal["refuse", "redistribute"] = Field(
        "refuse", description="`redistribute` moves what a component lacks to the others"
    )
    simulate: TokenCount | None = Field(None, description="the tokens of a longer run whose repetition this one shows")
    max_synthetic: Share | None = Field(None, description="the largest share of a stage's tokens from documents that were made from others")
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
            check_names(f"mixture.stages[{number}].weights", stage.weights, list(self.components))
            for name in (stage.order and stage.order.components) or ():
                if name not in named(stage.weights, list(self.components)):
                    raise UserError(f"mixture.stages[{number}].order.components: '{name}' has no weight in this stage")
            check_bounds(f"mixture.stages[{number}]", stage.asked(), list(self.components))
            if stage.name in [earlier.name for earlier in self.stages[:number]]:
                raise UserError(f"mixture.stages[{number}].name: '{stage.name}' names an earlier stage too; stages need names of their own")
        for name in self.max_epochs if isinstance(self.max_epochs, dict) else ():
            if name not in self.components:
                raise UserError(f"mixture.max_epochs: no component '{name}'; {known}")
        self._simulates_more()
        return self

    def simulated_share(self) -> Fraction:
        """The part of each component that the stages may take: all, or with `simulate` their share of the longer run."""
        return Fraction(sum(int(stage.tokens) for stage in self.stages), self.simulate) if self.simulate else Fraction(1)

    def _simulates_more(self) -> None:
        asked = [stage.tokens for stage in self.stages]
        if self.simulate is None:
            return
        if "all" in asked:
            raise UserError("mixture.simulate: a stage with tokens: all has no budget to compare with; write its tokens as a number")
        if (tokens := sum(int(count) for count in asked)) >= self.simulate:
            raise UserError(
                f"mixture.simulate: {self.simulate:,} tokens are not more than the {tokens:,} of the stages; leave it out, or name a longer run"
            )

    def cap(self, component: str) -> Fraction:
        """`max_epochs` of a component, as the decimal number that was written."""
        cap = self.max_epochs.get(component, 1.0) if isinstance(self.max_epochs, dict) else self.max_epochs
        return written(cap)

    def resolved(self) -> dict[str, Any]:
        """As the header's recipe holds it: every default spelled out, components as an array, since their order decides.

        What came later (`_ASKED_FOR`) stands there only where it is asked for, so that recipes that do not use it keep their digest.
        """
        values = _as_asked(self.model_dump(mode="json"))
        components = [{"name": name, "where": where} for name, where in self.components.items()]
        return {**values, "components": components, "stages": [_as_asked(stage) for stage in values["stages"]]}

    def ordered_by(self) -> list[str]:
        """The signals that stages are ordered by."""
        return sorted({stage.order.by for stage in self.stages if stage.order is not None})


_ASKED_FOR: dict[str, object] = {
    "min_tokens": {},
    "max_share": {},
    "on_shortage": "refuse",
    "simulate": None,
    "max_synthetic": None,
    "order": None,
}


def _as_asked(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _ASKED_FOR or value != _ASKED_FOR[key]}


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
    """The whole plan; `header()` is its part of the manifest's header, `warnings` what a person should know of it."""

    sequence_length: int
    components: dict[str, dict[str, int]]
    stages: list[StagePlan]
    warnings: tuple[str, ...] = ()

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


def plan(
    mixture: Mixture,
    documents: Documents,
    seed: int,
    synthetic: npt.NDArray[np.bool_] | None = None,
    draws: Mapping[str, ComponentDraws] | None = None,
) -> Plan:
    """The plan of `mixture` over `documents`, or a UserError naming the component that is short, what is asked, what it has and its cap.

    `synthetic` says of each document whether it was made from others (has `parents`); None if none was. `draws` are those of an earlier plan that
    this one goes on with, one for each component, over `documents` as `simulated` leaves them.
    """
    from mixing.draws import ComponentDraws  # numba: imported where used

    assert len(documents.row) < 2**32
    assert (documents.row[1:] > documents.row[:-1]).all()
    if draws is None:
        documents = simulated(mixture, documents, seed)
        visits = np.zeros(len(documents.row), np.uint16)
        draws = {name: ComponentDraws(name, k, documents, visits, seed, mixture.cap(name)) for k, name in enumerate(mixture.components)}
    sizes, available = ({name: getattr(draw, what) for name, draw in draws.items()} for what in ("tokens", "available"))
    quotas = stage_quotas(mixture, sizes, available)
    for name, draw in draws.items():
        _refuse_shortage(name, sum(one.tokens.get(name, 0) for one in quotas), draw)
    stages: list[StagePlan] = []
    warnings: list[str] = []
    for number, (stage, one) in enumerate(zip(mixture.stages, quotas, strict=True)):
        stages.append(_plan_stage(mixture, stage, one, draws, documents, sum(len(earlier.component) for earlier in stages)))
        if synthetic is not None:
            warnings += _check_synthetic(mixture, number, stages[-1], synthetic)
    components = {name: {"documents": draw.documents, "tokens": draw.tokens} for name, draw in draws.items()}
    return Plan(mixture.sequence_length, components, stages, tuple(warnings))


def stage_quotas(mixture: Mixture, sizes: Mapping[str, int], available: Mapping[str, int] | None = None) -> list[Quota]:
    """What each stage asks of each component, whose tokens `sizes` holds, and what it plans. Stages are served in order: each sees what the caps still allow, of
    `available` tokens if not all of them are."""
    left = dict(available or {name: math.floor(mixture.cap(name) * size) for name, size in sizes.items()})
    quotas = []
    for number, stage in enumerate(mixture.stages):
        one = quota(f"mixture.stages[{number}]", stage.asked(), sizes, left)
        if mixture.on_shortage == "redistribute":
            one = one._replace(tokens=redistributed(f"mixture.stages[{number}]", one.asked, left, stage.max_share))
        quotas.append(one)
        left = {name: max(0, count - one.tokens.get(name, 0)) for name, count in left.items()}
    return quotas


def simulated(mixture: Mixture, documents: Documents, seed: int) -> Documents:
    """So few documents of each component that the stages repeat them as the longer run would repeat all: its share of the component's tokens, to within a document.

    They are chosen by content hash, independently of the other components; a shorter simulation takes some of a longer one's documents. Without `simulate` all stay.
    """
    if mixture.simulate is None:
        return documents
    from mixing.draws import shuffled

    component = np.full(len(documents.row), 65535, np.uint16)
    for index, name in enumerate(mixture.components):
        members = np.flatnonzero((documents.component == index) & (documents.tokens > 0)).astype(np.uint32)
        order = shuffled(members, documents.content, [seed, "simulate", name])
        ends = np.cumsum(documents.tokens[order])
        wanted = math.ceil(mixture.simulated_share() * int(ends[-1])) if len(ends) else 0
        component[order[: int(np.searchsorted(ends, wanted)) + 1]] = index
    return documents._replace(component=component)


SYNTHETIC_WARNING = 0.3
"""Share of synthetic tokens above which a plan warns: 20 % was best and 40 % worse in arXiv 2407.18743, about 30 % in arXiv 2510.01631."""


def _check_synthetic(mixture: Mixture, number: int, stage: StagePlan, synthetic: npt.NDArray[np.bool_]) -> list[str]:
    """Refuses a stage with more synthetic tokens than `max_synthetic`; warns of one with many."""
    made = int(stage.length[synthetic[stage.document]].sum(dtype=np.int64))
    tokens = stage.header["tokens"]
    found = f"{made:,} of {tokens:,} tokens ({made / tokens:.1%}) are of documents made from others"
    if mixture.max_synthetic is not None and made > written(mixture.max_synthetic) * tokens:
        remedy = "lower the weights of their components, or raise it"
        raise UserError(f"mixture.stages[{number}]: {found}; max_synthetic allows {mixture.max_synthetic:.1%}; {remedy}")
    if made > SYNTHETIC_WARNING * tokens:
        return [f"stage '{stage.name}': {found}; beyond about {SYNTHETIC_WARNING:.0%} they were found to hurt"]
    return []


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
    quotas: Quota,
    draws: Mapping[str, ComponentDraws],
    documents: Documents,
    first_sequence: int,
) -> StagePlan:
    """Draw, order, pack and interleave one stage. Its components stand in the order of the mixture."""
    from mixing.draws import round_tokens
    from mixing.packing import interleave, pack

    names = list(mixture.components)
    packed: list[Packed] = []
    components = {}
    waiting = np.zeros(len(documents.tokens), np.uint8)
    mixed = [name for name in names if name in quotas.asked]
    for name in mixed:
        rounds = round_tokens(quotas.tokens[name], stage.rounds)
        drawn, window = draws[name].take(stage.name, stage.draw, rounds), None
        if stage.order is not None and name in (stage.order.components or mixed):
            drawn = drawn._replace(pieces=in_order(drawn.pieces, rounds, documents.values[stage.order.by], stage.order))
            window = window_of(quotas.tokens[name], mixture.sequence_length, stage.order)
        packed.append(pack(drawn.pieces, mixture.sequence_length, mixture.fill, waiting, window))
        numbers = {"weight": quotas.shares[name], "asked_tokens": quotas.asked[name]}
        components[name] = numbers | _component_header(drawn, packed[-1], documents.tokens)
    order = interleave([len(part.first_span) for part in packed])
    columns = _assemble(order, packed)
    realised = int(columns["length"].sum(dtype=np.int64))
    header = {
        "name": stage.name,
        "first_sequence": first_sequence,
        "sequences": len(order),
        "asked_tokens": sum(quotas.asked.values()),
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
