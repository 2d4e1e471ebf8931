"""The store of answers: what was written is found again, by any later process, and a torn end is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.engine.work_directory import Work
from curation.synthesis.store import Answer, Store

ABOUT = {"model": "m", "revision": None}
KEYS = [f"{number:032x}" for number in range(50)]


def filled(folder: Path) -> Store:
    with Store(Work(folder), ABOUT) as store:
        for number, key in enumerate(KEYS):
            store.add(key, 0, Answer(f"answer {number} é 答\n" * number, "length" if number % 2 else "stop", number, 2 * number))
        store.add(KEYS[0], 1, Answer("", fault="http 500"))
    return store


def test_store_opened_again_has_every_answer(tmp_path: Path) -> None:
    filled(tmp_path)

    with Store(Work(tmp_path), ABOUT) as store:
        found = [store.find(key, 0) for key in KEYS]
        fault = store.find(KEYS[0], 1)

    assert found == [
        Answer(f"answer {number} é 答\n" * number, "length" if number % 2 else "stop", number, 2 * number) for number in range(50)
    ]
    assert fault == Answer("", fault="http 500")


def test_store_of_another_model_is_another(tmp_path: Path) -> None:
    filled(tmp_path)

    with Store(Work(tmp_path), {"model": "m", "revision": "abc"}) as store:
        assert store.find(KEYS[0], 0) is None


@pytest.mark.parametrize("torn", [1, 7, 60])
def test_store_cut_off_anywhere_loses_the_last_line_alone(tmp_path: Path, torn: int) -> None:
    path = filled(tmp_path).folder / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])

    with Store(Work(tmp_path), ABOUT) as store:
        assert len(store) == len(KEYS)
        store.add(KEYS[0], 1, Answer("", fault="http 500"))

    assert path.read_bytes() == whole
