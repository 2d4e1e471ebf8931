"""The cut against a plain sort of all documents."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation.decisions.ranking import Ranked, find_cut, order_key

VALUES = [float("-inf"), -1e300, -2.5, -1.0, -1e-320, -0.0, 0.0, 5e-324, 1e-300, 1.0, 1.0000000000000002, 3.0, 1e300, float("inf")]


def plain(keys: list[float], rows: list[int], costs: list[int], budget: int) -> set[int]:
    """Rows in order of (key, row) while their costs fit."""
    taken, spent = set(), 0
    for key, row, cost in sorted(zip(keys, rows, costs, strict=True)):
        assert key == key
        spent += cost
        if spent > budget:
            break
        taken.add(row)
    return taken


def by_cut(folder: Path, shards: list[tuple[list[float], list[int], list[int]]], **budget: float) -> set[int]:
    arrays = [(np.array(keys, np.float64), np.array(rows, np.uint64), np.array(costs, np.int64)) for keys, rows, costs in shards]
    ranked = [Ranked.save(folder / f"{number}.npz", *one) for number, one in enumerate(arrays)]
    options = {"tokens": None, "documents": None, "share": None, **budget}
    cut = find_cut(ranked, **options)  # type: ignore[arg-type]
    return {int(row) for keys, rows, _ in arrays for row in rows[cut.keeps(keys, rows)]}


documents = st.lists(st.tuples(st.sampled_from(VALUES), st.integers(0, 9), st.integers(0, 2)), max_size=40)


@settings(max_examples=300)
@given(found=documents, seed=st.integers(0, 100), budget=st.integers(0, 120), shards=st.integers(1, 4))
def test_cut_of_tied_negative_and_infinite_values_is_that_of_a_plain_sort(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[float, int, int]], seed: int, budget: int, shards: int
) -> None:
    rows = np.random.default_rng(seed).permutation(1000)[: len(found)].tolist()
    parts: list[tuple[list[float], list[int], list[int]]] = [([], [], []) for _ in range(shards)]
    for (key, cost, place), row in zip(found, rows, strict=True):
        for part, value in zip(parts[place % shards], (key, row, cost), strict=True):
            part.append(value)
    keys, costs = [key for key, _, _ in found], [cost for _, cost, _ in found]
    folder = tmp_path_factory.getbasetemp()

    assert by_cut(folder, parts, tokens=budget) == plain(keys, rows, costs, budget)
    ones = [(part[0], part[1], [1] * len(part[0])) for part in parts]
    assert by_cut(folder, ones, documents=budget) == plain(keys, rows, [1] * len(rows), budget)


@settings(max_examples=100)
@example(count=100, percent=29)
@given(count=st.integers(0, 300), percent=st.integers(1, 100))
def test_share_takes_exactly_that_part_of_the_documents_rounded_down(
    tmp_path_factory: pytest.TempPathFactory, count: int, percent: int
) -> None:
    shards = [
        ([float(row % 7) for row in range(first, count, 3)], list(range(first, count, 3)), [1] * len(range(first, count, 3)))
        for first in range(3)
    ]

    taken = by_cut(tmp_path_factory.getbasetemp(), shards, share=percent / 100)

    assert len(taken) == Fraction(percent, 100) * count // 1


def test_cut_of_random_values_over_many_shards_is_that_of_a_plain_sort(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    keys = np.where(random.random(3000) < 0.5, random.integers(-3, 3, 3000), random.normal(size=3000))
    rows, costs = random.permutation(3000), random.integers(1, 500, 3000)
    shards = [(keys[i::7].tolist(), rows[i::7].tolist(), costs[i::7].tolist()) for i in range(7)]
    for budget in (0, 1, int(costs.sum()) // 3, int(costs.sum()) - 1, int(costs.sum()), 10**12):
        assert by_cut(tmp_path, shards, tokens=budget) == plain(keys.tolist(), rows.tolist(), costs.tolist(), budget)


def test_a_document_too_large_for_the_budget_stops_the_taking_even_if_smaller_ones_follow(tmp_path: Path) -> None:
    assert by_cut(tmp_path, [([1.0, 2.0, 3.0], [0, 1, 2], [5, 100, 1])], tokens=50) == {0}


def test_nothing_fits_leaves_nothing_even_among_infinite_keys(tmp_path: Path) -> None:
    assert by_cut(tmp_path, [([-np.inf, -np.inf, 0.0], [0, 1, 2], [5, 5, 5])], tokens=4) == set()


def test_order_descending_is_ascending_of_the_negatives_and_ignores_the_sign_of_zero() -> None:
    values = np.array([-0.0, 0.0, -3.0, np.inf])

    assert order_key(values, "ascending").tolist() == [0.0, 0.0, -3.0, np.inf]
    assert order_key(values, "descending").tolist() == [0.0, 0.0, 3.0, -np.inf]
    assert not np.signbit(order_key(values, "ascending")[:2]).any()
    assert not np.signbit(order_key(values, "descending")[:2]).any()


def test_empty_shards_rank_nothing(tmp_path: Path) -> None:
    assert by_cut(tmp_path, [([], [], []), ([], [], [])], documents=3) == set()
