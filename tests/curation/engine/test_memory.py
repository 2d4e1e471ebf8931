"""`--memory`: what it allows, what it refuses, and that it changes nothing that is built; and the log beside a build."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from recipes import recipe, text_of, write_corpus, write_file, write_recipe

from curation.build import build
from curation.corpus.shards import fill_sidecar, read_corpus, read_sidecar
from curation.corpus.sources import SourceConfig, resolve
from curation.engine.local import Engine, Run
from curation.engine.memory import LEAST_RANGE, RANGE_BYTES, Memory, held
from curation.engine.work_directory import Digests, Work
from curation.recipe import load
from mixing import UserError, validated


def test_memory_of_more_is_larger_ranges_up_to_the_largest_and_never_more_than_the_budget() -> None:
    ranges = [Memory.of(gigabytes, 2).range_bytes() for gigabytes in (1.2, 1.5, 2, 4)]

    assert ranges == sorted(ranges)
    assert ranges[0] >= LEAST_RANGE
    assert ranges[-1] == RANGE_BYTES == Memory.of(None, 2).range_bytes()
    assert Memory.of(4, 8).range_bytes() < RANGE_BYTES


def test_memory_too_small_for_a_step_is_refused_with_both_numbers_and_what_it_asks_for_is_enough() -> None:
    with pytest.raises(UserError) as caught:
        Memory.of(0.5, 3)
    found = re.fullmatch(
        r"--memory 0\.5: 'find duplicates' needs ([\d.]+) GB with 3 workers; give --memory ([\d.]+), or fewer --workers", str(caught.value)
    )
    assert found is not None
    enough = Memory.of(float(found[2]), 3)
    with pytest.raises(UserError, match="'plan' needs"):
        enough.require("plan", driver=10**9)
    with pytest.raises(UserError, match="'add fluent' needs"):
        enough.require("add fluent", worker=10**9)
    Memory.of(None, 3).require("plan", driver=10**15)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not say what is shared")
def test_held_counts_what_a_process_holds_and_not_the_pages_of_files(tmp_path: Path) -> None:
    before = held([os.getpid()])
    there = np.frombuffer(mmap.mmap(-1, 50 << 20, flags=mmap.MAP_PRIVATE), np.uint8)  # no allocator that has some left from before
    there[:] = 1
    after = held([os.getpid()])
    path = tmp_path / "file"
    path.write_bytes(bytes(50 << 20))
    mapped = np.memmap(path, np.uint8, mode="r")
    assert mapped.sum() == 0
    with_file = held([os.getpid(), 2**22 + 1])

    assert 40 << 20 <= after - before < 60 << 20  # the interpreter may give some back meanwhile
    assert with_file - after < 10 << 20
    assert there[0] == 1


def test_build_with_memory_is_the_build_without_and_its_log_has_every_phase(tmp_path: Path) -> None:
    write_corpus(tmp_path, size=20)
    values = recipe()
    values["mixture"]["stages"][0]["tokens"] = 4000
    values["holdout"]["documents"] = 1
    values["sources"]["web"]["max_quarantine"] = 0.5
    loaded = load(write_recipe(tmp_path, values))
    first = build(loaded, tmp_path, tmp_path / "a", Run(tmp_path / "work a"))
    second = build(loaded, tmp_path, tmp_path / "b", Run(tmp_path / "work b", memory=1.0))
    assert first.digest == second.digest

    (path,) = (tmp_path / "work b" / "log").iterdir()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    (record,) = (tmp_path / "work b" / "builds").iterdir()
    assert path.stem.endswith(record.stem)
    assert entries[0] == {"event": "begin", "build": record.stem, "workers": 1, "memory": 1.0}
    assert (entries[-1]["event"], entries[-1]["outcome"]) == ("end", "built")
    phases = {entry["phase"]: entry for entry in entries[1:-1]}
    assert list(phases)[:4] == ["hash prose", "hash web", "hash code", "read"]
    assert phases["words"]["computed"] == second.computed["words"]
    assert phases["words"]["remembered"] == 0
    assert phases["read"]["computed"] is None
    assert str(tmp_path) not in path.read_text()


def test_texts_of_a_shard_with_many_row_groups_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.corpus.sources.TEXT_GROUP", 2000)
    texts = [text_of(number) for number in range(60)]
    write_file(tmp_path / "a.jsonl", b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))
    with Engine(1) as engine:
        work = Work(tmp_path / "work")
        source = resolve("a", validated(SourceConfig, {"files": "*.jsonl"}, "a"), tmp_path, {}, Digests(work), engine)
        (shard,) = read_corpus([source], (), work, engine).shards

    spans = shard.spans()
    assert len(spans) > 5
    assert spans[0][0] == 0
    assert spans[-1][1] == 60
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    chosen = np.array([59, 0, 31, 30, 2])
    assert shard.texts(chosen).to_pylist() == [texts[place] for place in chosen]
    assert shard.texts(np.array([], np.int64)).to_pylist() == []
    assert [one for first, end in spans for one in shard.texts(np.arange(first, end)).to_pylist()] == texts


def test_sidecar_filled_in_spans_is_the_one_filled_at_once(tmp_path: Path) -> None:
    spans = [(0, 4), (4, 5), (5, 5), (5, 12)]
    chance = np.random.default_rng(3)
    for number in range(20):
        masks = [chance.random(12) < share for share in (0.3, 0.5, 1.0)]
        asked: list[int] = []

        def compute(positions: np.ndarray, asked: list[int] = asked) -> pa.Array:  # type: ignore[type-arg]
            asked += positions.tolist()
            return pa.array([list(range(position)) for position in positions.tolist()], pa.large_list(pa.int64()))

        known = np.zeros(12, bool)
        for mask in masks:
            found = fill_sidecar(tmp_path / f"{number}", mask, compute, spans)
            known |= mask
            assert found.computed + int((found.known & ~known).sum()) <= 12
            stored = read_sidecar(tmp_path / f"{number}")
            assert stored is not None
            assert stored.known.tolist() == known.tolist()
            assert stored.values.to_pylist() == [list(range(place)) if there else None for place, there in enumerate(known)]
            assert stored.between(3, 9).equals(stored.values.slice(3, 6))
        assert sorted(asked) == list(range(12))


def test_memory_of_the_command_line_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe())
    code = "from curation.cli import main; main(prog_name='curate')"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", str(path), "--memory", "0.1", "--workers", "1"],
        capture_output=True, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "curate: --memory 0.1: 'find duplicates' needs 0.66 GB with 1 worker; give --memory 0.67\n"
