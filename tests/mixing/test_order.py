"""The order of a stage against plain Python sorting, and through whole plans."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import check_plan, documents_of, mixture_of

from mixing import UserError
from mixing.order import Order, in_order
from mixing.packing import Pieces
from mixing.plan import plan


def pieces_of(lengths: list[int]) -> Pieces:
    """One piece a document, in the order of the documents."""
    count = len(lengths)
    return Pieces(np.arange(count, dtype=np.uint32), np.zeros(count, np.uint32), np.array(lengths, np.uint32), np.zeros(count, np.uint16))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([None, -1.5, 0.0, 2.0, 7.0])), max_size=30),
    st.integers(1, 4),
    st.sampled_from([None, 1, 2, 5]),
    st.sampled_from(["ascending", "descending"]),
)
def test_order_within_rounds_is_that_of_plain_sorting(
    documents: list[tuple[int, float | None]], rounds: int, buckets: int | None, direction: Any
) -> None:
    lengths, values = [length for length, _ in documents], [value for _, value in documents]
    total = sum(lengths)
    split = [(r + 1) * total // rounds - r * total // rounds for r in range(rounds)]

    found = in_order(
        pieces_of(lengths),
        split,
        np.array([np.nan if value is None else value for value in values]),
        Order(by="x", direction=direction, buckets=buckets),
    )

    ends = list(accumulate(split))
    begins = list(accumulate(lengths, initial=0))
    expected: list[int] = []
    for number in range(rounds):
        first = ends[number - 1] if number else 0
        mine = [place for place in range(len(lengths)) if first <= begins[place] < ends[number]]
        sign = 1 if direction == "ascending" else -1
        mine.sort(key=lambda place: (values[place] is None, sign * (values[place] or 0.0)))
        if buckets is not None:
            size, before, bucket = sum(lengths[place] for place in mine), 0, {}
            for place in mine:
                bucket[place] = before * buckets // size
                before += lengths[place]
            mine.sort(key=lambda place: (bucket[place], place))
        expected += mine
    assert found.document.tolist() == expected


def test_ordered_component_runs_by_value_and_the_other_one_stays_as_it_was() -> None:
    documents = documents_of([[20] * 400, [20] * 400])
    value = np.random.default_rng(1).permutation(len(documents.row)).astype(np.float64)
    value[:5] = np.nan
    stage = {"name": "a", "tokens": 14_000, "weights": {"c0": 1, "c1": 1}}
    shuffled = mixture_of(2, [stage])
    ordered = mixture_of(2, [stage | {"order": {"by": "x", "components": ["c1"]}}])

    (one,), (other,) = (plan(mixture, documents._replace(values={"x": value}), 3).stages for mixture in (shuffled, ordered))

    check_plan(ordered, documents, plan(ordered, documents._replace(values={"x": value}), 3))
    for component, monotone in ((0, False), (1, True)):
        before, after = (
            stage.document[np.repeat(stage.component, np.diff(stage.first_span.astype(np.int64), append=len(stage.document))) == component]
            for stage in (one, other)
        )
        if component == 0:
            assert before.tolist() == after.tolist()
        seen = np.nan_to_num(value[after], nan=1e9)
        late = np.abs(np.argsort(np.argsort(seen, kind="stable"), kind="stable") - np.arange(len(seen)))
        assert bool(late.max() <= 64) is monotone
    assert set(one.document.tolist()) == set(other.document.tolist())


def test_several_rounds_are_ordered_each_and_visits_keep_their_order() -> None:
    documents = documents_of([[7] * 60])
    value = np.arange(60, dtype=np.float64)
    stage = {"name": "a", "tokens": 840, "weights": {"c0": 1}, "rounds": 4, "order": {"by": "x", "direction": "descending"}}
    mixture = mixture_of(1, [stage], max_epochs=2)

    planned = plan(mixture, documents._replace(values={"x": value}), 5)

    check_plan(mixture, documents, planned)
    quarters = np.array_split(planned.stages[0].document, 4)
    assert all(value[quarter[:5]].mean() > value[quarter[-5:]].mean() + 20 for quarter in quarters)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"by": "x", "components": ["c9"]}, r"mixture.stages\[0\].order.components: 'c9' has no weight in this stage"),
        ({"by": "x", "buckets": 0}, "buckets"),
        ({"by": "x", "direction": "up"}, "direction"),
        ({"direction": "ascending"}, "by"),
    ],
)
def test_order_that_means_nothing_is_refused(order: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixture_of(2, [{"name": "a", "tokens": 10, "weights": {"c0": 1}, "order": order}])
