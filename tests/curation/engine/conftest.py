"""One cluster for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from raylets import Nodes, three_nodes


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with three_nodes() as there:
        yield there
