"""Which component a document belongs to: the mixture's predicates, in their order.

In: rules over a row's columns, one for each component. Out: an index into the mixture's components for each row, or 65535. A document in two components is
refused with an example, unless the mixture says that the first match counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation import rules
from curation.rules import Rule
from mixing import UserError
from mixing.manifest import NO_COMPONENT
from mixing.plan import Mixture


def predicates(mixture: Mixture, schema: pa.Schema) -> dict[str, Rule]:
    """The checked predicate of each component."""
    return {name: rules.parse(where, f"mixture.components.{name}", schema) for name, where in mixture.components.items()}


def assign(
    mixture: Mixture, rows: int, inside: Callable[[str], npt.NDArray[np.int64]], described: Callable[[int], str]
) -> npt.NDArray[np.uint16]:
    """The component of each of `rows` rows. `inside` gives the rows that a component's predicate holds for, `described` a row as a person knows it."""
    component = np.full(rows, NO_COMPONENT, np.uint16)
    names = list(mixture.components)
    for index, name in enumerate(names):
        found = inside(name)
        taken = component[found] != NO_COMPONENT
        if taken.any() and not mixture.first_match:
            row = int(found[np.argmax(taken)])
            raise UserError(
                f"mixture.components: {described(row)} is in '{names[component[row]]}' and in '{name}'; "
                "make the predicates exclude each other, or set mixture.first_match: true"
            )
        component[found[~taken]] = index
    return component
