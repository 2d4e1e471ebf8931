"""Rows against the order of records in the files, whatever the cutting; sidecars against a dict that remembers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import json_lines, text_of, write_file, write_records

from curation.corpus import sources
from curation.corpus.shards import Corpus, fill_sidecar, read_corpus, read_sidecar
from curation.corpus.sources import SourceConfig, cut, resolve
from curation.engine.local import Engine
from curation.engine.work_directory import Digests, Work
from mixing import UserError, validated


def read(folder: Path, work: Path, configs: dict[str, dict[str, Any]], clean: tuple[str, ...] = ()) -> Corpus:
    with Engine(1) as engine:
        found = [
            resolve(name, validated(SourceConfig, config, name), folder, {}, Digests(Work(work)), engine)
            for name, config in configs.items()
        ]
        return read_corpus(found, clean, Work(work), engine)


def rows_of(corpus: Corpus) -> dict[int, tuple[str, str, str | None]]:
    """Row -> (source, origin, text or the reason why there is none)."""
    found: dict[int, tuple[str, str, str | None]] = {}
    for shard in corpus.shards:
        for row, origin, text in zip(shard.rows().tolist(), shard.origins(), shard.texts().to_pylist(), strict=True):
            assert row not in found
            found[row] = (shard.source, origin, text)
        for record in shard.quarantine().to_pylist():
            row = shard.first_row[record["run"]] + record["ordinal"]
            assert row not in found
            found[row] = (shard.source, f"{shard.paths[record['run']]}#{record['position']}", record["reason"])
    return dict(sorted(found.items()))


def write_mixture(folder: Path) -> list[tuple[str, str, str]]:
    """Files of all formats with unusable records; returns what the rows must be, in order."""
    expected = []
    names = ["a/part-2.jsonl", "a/part-10.jsonl", "a/z.jsonl.gz", "b/x.parquet", "b/y.jsonl.zst"]
    for number, name in enumerate(names):
        records = [{"text": text_of(100 * number + index)} for index in range(25)]
        if name.endswith(".parquet"):
            write_records(folder / name, records, group=4)
            expected += [(name[0], f"{name[2:]}#{index}", record["text"]) for index, record in enumerate(records)]
            continue
        lines = [json_lines([record])[:-1] for record in records]
        lines[3:3] = [b"broken", b"", b"[]"]
        write_file(folder / name, b"\n".join(lines))
        position = 0
        for line in lines:
            text = {b"broken": "broken JSON", b"[]": "not a JSON object"}.get(line) or line[10:-2].decode()
            if line:
                expected.append((name[0], f"{name[2:]}#{position}", text))
            position += len(line) + 1
    return expected


CONFIGS = {"a": {"files": "a/*", "max_quarantine": 0.2}, "b": {"files": "b/*", "max_quarantine": 0.2}}


@pytest.mark.parametrize(("small", "cut_bytes"), [(10**9, 10**9), (0, 10**9), (0, 700), (0, 250), (3000, 2000), (10**9, 900)])
def test_rows_follow_source_path_and_position_whatever_the_cutting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, cut_bytes: int
) -> None:
    expected = write_mixture(tmp_path)
    monkeypatch.setattr(sources, "SMALL", small)
    monkeypatch.setattr("curation.corpus.shards.cut", partial(cut, cut_bytes=cut_bytes))

    corpus = read(tmp_path, tmp_path / "work", CONFIGS)

    assert rows_of(corpus) == dict(enumerate(expected))
    assert corpus.read == {"a": 81, "b": 52}
    assert {name: sum(reasons.values()) for name, reasons in corpus.quarantined.items()} == {"a": 6, "b": 2}


def test_rows_of_sources_in_another_order_follow_that_order(tmp_path: Path) -> None:
    expected = write_mixture(tmp_path)

    corpus = read(tmp_path, tmp_path / "work", dict(reversed(CONFIGS.items())))

    assert list(rows_of(corpus).values()) == [row for row in expected if row[0] == "b"] + [row for row in expected if row[0] == "a"]


@pytest.mark.parametrize("same_place", [True, False])
def test_two_sources_with_the_same_file_have_rows_of_their_own(tmp_path: Path, same_place: bool) -> None:
    for folder in ("one", "two"):
        write_records(tmp_path / folder / "a.jsonl", [{"text": text_of(number)} for number in range(5)])
    configs = {"x": {"files": "one/a.jsonl"}, "y": {"files": "one/a.jsonl" if same_place else "two/a.jsonl"}}

    corpus = read(tmp_path, tmp_path / "work", configs)

    assert [(source, text) for source, _, text in rows_of(corpus).values()] == [(source, text_of(n)) for source in "xy" for n in range(5)]
    assert len({shard.name for shard in corpus.shards}) == len(corpus.shards)


def test_contents_and_texts_of_a_shard_agree_at_any_positions(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [{"text": text_of(number)} for number in range(9)])
    (shard,) = read(tmp_path, tmp_path / "work", {"a": {"files": "a.jsonl"}}).shards

    for high_low, text in zip(shard.contents().tolist(), shard.texts().to_pylist(), strict=True):
        assert high_low[0] << 64 | high_low[1] == xxhash.xxh3_128_intdigest(text.encode())
    chosen = np.array([7, 0, 3])
    assert shard.texts(chosen).to_pylist() == [text_of(7), text_of(0), text_of(3)]
    assert shard.origins(chosen) == [shard.origins()[position] for position in chosen]


def test_a_source_that_loses_more_than_its_limit_is_refused_with_reasons_and_an_example(tmp_path: Path) -> None:
    write_file(tmp_path / "a.jsonl", b'{"text": "x"}\n' * 97 + b"broken\n[]\n[]\n")

    assert read(tmp_path, tmp_path / "work", {"a": {"files": "a.jsonl", "max_quarantine": 0.03}}).read == {"a": 100}
    with pytest.raises(UserError) as caught:
        read(tmp_path, tmp_path / "work", {"a": {"files": "a.jsonl", "max_quarantine": 0.029}})

    message = str(caught.value)
    for part in ("sources.a: 3 of 100 records", "not a JSON object 2, broken JSON 1", f"a.jsonl#{97 * 14 + 7}", "sources.a.max_quarantine"):
        assert part in message


# --- sidecars


@settings(max_examples=80)
@given(calls=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=5), nulls=st.sets(st.integers(0, 6)))
def test_sidecar_computes_only_what_is_missing_and_keeps_values_nulls_and_unknowns_apart(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[bool]], nulls: set[int]
) -> None:
    path = tmp_path_factory.mktemp("sidecar") / "key" / "shard.arrow"
    known: set[int] = set()
    for number, call in enumerate(calls):
        wanted = np.array(call)
        asked: list[int] = []

        def compute(positions: np.ndarray[Any, Any], asked: list[int] = asked) -> pa.Array:
            asked += positions.tolist()
            return pa.array(
                [None if position in nulls else [f"value {position}"] * position for position in positions.tolist()], pa.list_(pa.string())
            )

        sidecar = fill_sidecar(path, wanted, compute)

        missing = set(np.flatnonzero(wanted).tolist()) - known
        assert set(asked) == missing
        assert len(asked) == len(missing) == sidecar.computed
        known |= missing
        stored = read_sidecar(path)
        assert stored is not None
        for one in (sidecar, stored):
            assert set(np.flatnonzero(one.known).tolist()) == known
            for position in known:
                assert one.values[position].as_py() == (None if position in nulls else [f"value {position}"] * position)
        assert number or stored.known.tolist() == call


def test_sidecar_that_is_complete_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "key" / "shard.arrow"
    fill_sidecar(path, np.array([True, False]), lambda positions: pa.array(positions))
    written = path.stat().st_mtime_ns

    fill_sidecar(path, np.array([True, False]), lambda positions: pytest.fail("asked"))
    fill_sidecar(path, np.array([False, False]), lambda positions: pytest.fail("asked"))

    assert path.stat().st_mtime_ns == written
    assert read_sidecar(tmp_path / "nowhere") is None


def test_sidecar_of_a_failed_computation_keeps_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    fill_sidecar(path, np.array([True, False]), lambda positions: pa.array(positions))
    before = path.read_bytes()

    def fail(positions: object) -> pa.Array:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        fill_sidecar(path, np.array([True, True]), fail)

    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["shard.arrow"]
