"""Files that take their name when they are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation.engine.atomic_files import beside, save, save_all, whole


def test_what_is_saved_lies_under_its_name_alone(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", np.arange(3))
    save_all(tmp_path / "b.npz", x=np.arange(2), y=np.ones(1))

    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
    with np.load(tmp_path / "b.npz") as stored:
        assert {name: stored[name].tolist() for name in stored} == {"x": [0, 1], "y": [1.0]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npz"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def half() -> None:
        with whole(tmp_path / "a") as path:
            path.write_text("ne")
            raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        half()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_objects_are_never_pickled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        save(tmp_path / "a.npy", np.array([object()]))
    assert not list(tmp_path.iterdir())


def test_two_attempts_have_names_of_their_own(tmp_path: Path) -> None:
    assert len({beside(tmp_path / "a") for _ in range(100)}) == 100
