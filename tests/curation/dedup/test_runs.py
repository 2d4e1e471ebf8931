"""Runs on disk: ranges and what lies in them, however many files there are."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from duplicates import Listed, serial

from curation.dedup.ranks import rank
from curation.dedup.runs import END, gather, ranges, write_run

FILES = 300


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """A process that may open fewer files than there are runs, as one over 33 million documents would at the usual limit of 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES - 50, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_gather_from_more_runs_than_files_may_be_open_holds_all_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 1 << 63, (FILES, 20), dtype=np.uint64)
    rows = np.arange(keys.size, dtype=np.uint64).reshape(keys.shape)
    paths = [write_run(tmp_path / f"{i}.npy", [keys[i], rows[i]]) for i in range(FILES)]
    cuts = ranges(paths, keys.nbytes // 4)
    assert len(cuts) > 4
    assert (cuts[0][0], cuts[-1][1]) == (0, END)
    parts = [gather(paths, low, high, 2) for low, high in cuts]
    for (low, high), part in zip(cuts, parts, strict=True):
        assert all(low <= key < high for key in part[0].tolist())
    found = np.concatenate(parts, axis=1)
    expected = np.stack([keys.ravel(), rows.ravel()])
    assert np.array_equal(found[:, np.argsort(found[1])], expected)


@pytest.mark.usefixtures("few_descriptors")
@pytest.mark.parametrize("range_bytes", [200, 1 << 20])
def test_rank_of_more_shards_than_files_may_be_open_is_that_of_all(tmp_path: Path, range_bytes: int) -> None:
    shards = [Listed(f"shard-{row}", ((row, ""),)) for row in range(FILES)]
    ranks = rank(shards, [0] * FILES, last_row_first, tmp_path / "ranks", serial, range_bytes)
    assert [int(np.load(path)[0]) for path in ranks.shards] == list(range(FILES))[::-1]
    assert (len(ranks.parts) > 4) == (range_bytes == 200)


def last_row_first(shard: Listed) -> npt.NDArray[np.float64]:
    return -shard.rows().astype(np.float64)


def test_gather_from_no_runs_or_an_empty_range_is_empty(tmp_path: Path) -> None:
    assert gather([], 0, END, 3).shape == (3, 0)
    path = write_run(tmp_path / "one.npy", [np.array([5, 3], np.uint64), np.array([0, 1], np.uint64)])
    assert gather([path], 6, END, 2).shape == (2, 0)
    assert gather([path], 3, 5, 2).tolist() == [[3], [1]]
