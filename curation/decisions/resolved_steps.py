"""The steps of a recipe with everything they name found: `add` a signal, `keep` by a rule, take the `top` by rank; and what each does to a document that it drops."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel

from curation.decisions.duplicates import DEDUP, SHOWN
from curation.decisions.ranking import Cut, TopConfig
from curation.decisions.signal_models import Referenced
from curation.dedup.index import Index
from curation.dedup.repeats import REPEATS
from curation.signals import SIGNALS
from mixing.canonical import canonical_json


@dataclass(frozen=True)
class Add:
    """`add: {name: {kind: …}}`, with the references of its model found."""

    index: int
    name: str
    kind: str
    config: BaseModel
    references: list[Referenced] = field(default_factory=list)

    @property
    def type(self) -> pa.DataType:
        """What the pool shows: for duplicates, the survivor's row, or where it may lie in an index, SHOWN; a share for repeated text."""
        if self.kind in DEDUP:
            return SHOWN if self.references else pa.uint64()
        return pa.float64() if self.kind in REPEATS else SIGNALS[self.kind].fields(self.config)

    def compared_with(self) -> Index | None:
        """The index in which duplicates are looked for besides the corpus."""
        root = self.references[0].root if self.kind in DEDUP and self.references else None
        return Index.open(root) if isinstance(root, Path) else None


@dataclass(frozen=True)
class Keep:
    """`keep: rule`."""

    index: int
    rule: str


@dataclass(frozen=True)
class Top:
    """`top: {…}`; `cut` is set once the whole corpus has been ranked. `seed` is that of a random order."""

    index: int
    config: TopConfig
    seed: int = 0
    cut: Cut | None = None

    @property
    def rule(self) -> str:
        return f"top: {canonical_json(self.config.model_dump(exclude_none=True))}"


Step = Add | Keep | Top


def fate_of(index: int, *, no_value: bool = False) -> int:
    """The fate of a document that step `index` (from 1; the hold-out is 0) drops; a rule without a value is told apart."""
    return 2 * index + no_value
