"""What a build does a second time: nothing where nothing changed, and the work of one file where one was added."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipes import built, text_of

from curation.build import Built

STEPS = [
    {"add": {"copy_of": {"kind": "exact"}}},
    {"keep": "copy_of IS NULL"},
    {"add": {"words": {"kind": "heuristics", "set": "gopher"}}},
    {"keep": "words.words >= 10"},
]


def values() -> dict[str, Any]:
    stage = {"name": "adapt", "tokens": 3000, "weights": {"all": 1}}
    mixture = {"sequence_length": 128, "components": {"all": "true"}, "stages": [stage]}
    return {
        "name": "many",
        "tokenizer": {"path": "tokenizer"},
        "sources": {"a": {"files": "corpus/*.jsonl"}},
        "steps": STEPS,
        "mixture": mixture,
    }


def write(folder: Path, number: int) -> Path:
    """Three documents of their own."""
    path = folder / "corpus" / f"part-{number}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text_of(10 * number + place)}) + "\n" for place in range(3)))
    os.utime(path, (time.time() - 60,) * 2)
    return path


def phases(work: Path) -> dict[str, dict[str, Any]]:
    """The last log's phases by label, the first of each."""
    found: dict[str, dict[str, Any]] = {}
    for line in max((work / "log").iterdir()).read_text().splitlines()[1:-1]:
        entry = json.loads(line)
        found.setdefault(entry["phase"], entry)
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """A build of 200 files, each a shard of its own."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(200):
        write(folder, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curation.corpus.sources.SMALL", 0)
        made = built(folder, values(), folder / "one")
        assert phases(folder / ".tilth")["hash a"]["tasks"] == 200
        assert made.computed == {"copy_of": 600, "words": 600}
        yield made


def test_build_of_unchanged_files_opens_none_of_them(first: Built) -> None:
    folder = first.folder.parent
    opened: list[str] = []
    inside = os.fspath(folder / "corpus")
    watching = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).startswith(inside):
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    try:
        again = built(folder, values(), folder / "one")
    finally:
        watching.clear()

    assert again.unchanged
    assert again.digest == first.digest
    assert opened == []


def test_build_with_one_file_added_among_200_does_the_work_of_that_file(first: Built) -> None:
    folder = first.folder.parent
    work = folder / ".tilth"
    before = {path.name for path in (work / "shards").iterdir()}
    write(folder, 77_000)
    again = built(folder, values(), folder / "two")

    assert not again.unchanged
    assert len({path.name for path in (work / "shards").iterdir()} - before) == 1  # one file read
    done = phases(work)
    assert done["hash a"]["tasks"] == 1  # and hashed
    assert (again.computed["words"], again.remembered["words"]) == (3, 600)  # its documents measured
    assert (done["words"]["computed"], done["words"]["remembered"]) == (3, 600)
    assert again.computed["copy_of"] == 603  # duplicates are a matter of all documents
    tokens = sorted((work / "sidecars").glob("*/*.arrow"), key=lambda path: path.stat().st_mtime_ns)
    newest = [path for path in tokens if path.stem.removesuffix("-00000") not in before]
    assert len(newest) == 3  # its ids, its words, its duplicates
