"""What is known of a build while its documents are decided: where things lie, the columns there are, and the signals added so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from curation.corpus.shards import Shard
from curation.engine.work_directory import Work
from curation.rules import rule_schema
from curation.text.tokenizer import ResolvedTokenizer


class Placed(NamedTuple):
    """A signal that has been added: the step that did it, the key of its sidecars, its type, whether it names survivors, which parts of a value are evidence, and the keys of sources decided before."""

    step: int
    key: str
    type: pa.DataType
    survivors: bool
    evidence: tuple[str, ...] = ()
    earlier: dict[str, str] = {}  # noqa: RUF012 - never changed

    def of(self, shard: Shard) -> str:
        """The key of a shard's sidecar."""
        return self.earlier.get(shard.source, self.key)


@dataclass(frozen=True)
class State:
    """What every task needs to know: where things lie, the columns there are, and the signals added so far. Picklable and small."""

    work: Work
    scratch: Path
    holdout: str | None
    tokenizer: ResolvedTokenizer
    columns: dict[str, pa.DataType]
    signals: dict[str, Placed] = field(default_factory=dict)
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The rows of each source, `[first, end)`."""
    parents: dict[str, Path] = field(default_factory=dict)
    """Per synthesized source the rows of its documents' parents, u64 by record."""
    exams: frozenset[str] = frozenset()
    """The sources of which everything is held out, whatever the rules say."""

    def schema(self) -> pa.Schema:
        """The columns a rule may look at now."""
        return rule_schema(self.columns, {name: placed.type for name, placed in self.signals.items()})

    def keys(self) -> dict[str, dict[str, str]]:
        """Per signal the key of each source's sidecars."""
        return {name: {source: one.earlier.get(source, one.key) for source in self.rows} for name, one in self.signals.items()}

    def fates(self, shard: Shard) -> Path:
        return self.scratch / f"{shard.name}.fates.npy"

    def counted(self, shard: Shard, step: int) -> Path:
        """The documents whose tokens a `top` had to count."""
        return self.scratch / f"{shard.name}.counted-{step}.npy"

    def present(self, shard: Shard) -> Path:  # alive, or held out without having failed a rule
        return self.scratch / f"{shard.name}.present.npy"

    def mask(self, shard: Shard) -> Path:
        return self.scratch / f"{shard.name}.live.npy"
