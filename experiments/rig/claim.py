"""One claim: what it says and where, what is run for it, and what decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from experiments.rig.judging import Check
from experiments.rig.recipes import Rig
from experiments.rig.results import Result, Results


@dataclass(frozen=True)
class Claim:
    """`run` gives the arms of one domain and seed; `checks` judges all of them; `arms` says how an arm is called in a table (those it does not name are
    left out); `figures` draws. The first `numbers` checks that decide stand in the summary. `gated` claims are those of `make claims`."""

    name: str
    title: str
    says: str
    source: str
    run: Callable[[Rig], Sequence[Result]]
    checks: Callable[[Results], list[Check]]
    arms: Mapping[str, str]
    gated: bool = False
    numbers: int = 2
    domains: tuple[str, ...] = ("medical", "math")
    figures: Callable[[Results], dict[str, str]] = field(default=lambda results: {})
    columns: Mapping[str, Callable[[Result], float]] = field(default_factory=dict)
