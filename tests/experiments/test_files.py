"""Work that several claims want at once is done once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.rig.files import missing, write_text


def test_what_many_want_at_once_is_made_once_and_there_for_all(tmp_path: Path) -> None:
    made = tmp_path / "runs" / "base" / "model"
    begun, makers = threading.Barrier(6), []

    def ask(one: int) -> str:
        begun.wait()
        with missing(made, tmp_path) as wanted:
            if wanted:
                makers.append(one)
                made.parent.mkdir(parents=True)
                time.sleep(0.05)  # in which the others come
                made.write_text(str(one))
        return made.read_text()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(6)))

    assert found == [str(makers[0])] * 6
    assert len(makers) == 1


def test_what_failed_is_made_by_the_next(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(OSError, match="planted"), missing(made, tmp_path):
        raise OSError("planted")

    with missing(made, tmp_path) as wanted:
        assert wanted


def test_text_that_a_file_has_already_is_left_alone(tmp_path: Path) -> None:
    file = write_text(tmp_path / "new" / "recipe.yaml", "a: 1\n")
    before = file.stat()

    write_text(file, "a: 1\n")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_text(file, "a: 2\n")
    assert file.read_text() == "a: 2\n"
    assert [path.name for path in file.parent.iterdir()] == ["recipe.yaml"]
