"""Duplicates in whole builds: declared priority and normalised keys, what the guard says, groups that are gone, and the passage two documents share."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recipes import built, near_copy, pool_of, recipe, text_of, write_records

from curation import corpus as corpus_module
from curation import sources
from curation.sources import cut
from mixing.manifest import Manifest

Records = list[dict[str, Any]]
MIXTURE = {
    "sequence_length": 64,
    "components": {"all": "source IS NOT NULL"},
    "stages": [{"name": "s", "tokens": 200, "weights": {"all": 1}}],
}


def build(folder: Path, records: dict[str, Records], steps: list[dict[str, Any]], out: Path, **source: Any) -> Manifest:
    """A manifest of sources `records`, one file each, decided by `steps`."""
    for name, mine in records.items():
        if not (folder / f"{name}.jsonl").exists():
            write_records(folder / f"{name}.jsonl", mine)
    named = {name: {"files": f"{name}.jsonl", "columns": ["score"], **source} for name in records}
    made = built(folder, recipe(sources=named, steps=steps, holdout=None, mixture=MIXTURE), out)
    return Manifest.open(made.folder)


def copies(count: int) -> dict[str, Records]:
    """Two sources; every text of `a` three times, near-copies of some, with scores that favour the later ones; `b` has some of them again, with higher scores."""
    a: Records = []
    for n in range(count):
        for again in range(3):
            text = text_of(n) if again < 2 else near_copy(text_of(n), n)
            a.append({"text": text.upper() if again == 1 else text, "score": None if n % 5 == 0 else 10 * again + n % 3})
    a += [{"text": text_of(1000 + n), "score": 1} for n in range(count)]
    return {
        "a": a,
        "b": [{"text": text_of(n), "score": 1000} for n in range(count // 2)]
        + [{"text": text_of(2000 + n), "score": 0} for n in range(count)],
    }


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_priority_of_near_duplicates_keeps_the_best_of_the_first_source(tmp_path: Path, order: str) -> None:
    steps = [{"add": {"twin": {"kind": "minhash", "priority": "score", "order": order}}}, {"keep": "twin IS NULL"}]

    manifest = build(tmp_path, copies(20), steps, tmp_path / "out", max_duplicates=1)

    pool = pool_of(manifest.folder)
    for n in range(20):
        group = pool[3 * n : 3 * n + 3] + ([pool[80 + n]] if n < 10 else [])
        best = 0 if n % 5 == 0 or order == "ascending" else 2
        assert [row["decision"] == "kept" for row in group] == [place == best for place in range(len(group))]
        assert {row["twin"] for row in group} == {None, group[best]["row"]}
        for row in group:
            if row["decision"] == "dropped":
                evidence = json.loads(row["evidence"])
                assert (evidence["survivor"], evidence["row"]) == (group[best]["origin"], group[best]["row"])
                assert evidence["similarity"] in (1.0, 51 / 61)
    assert manifest.header["recipe"]["steps"][0]["add"] == {
        "name": "twin",
        "kind": "minhash",
        "threshold": 0.8,
        "priority": "score",
        "order": order,
    }


def test_priority_by_a_signal_whatever_the_shards_gives_one_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [
        {"add": {"words": {"kind": "heuristics"}}},
        {"add": {"copy_of": {"kind": "exact", "by": "normalized", "priority": "words.mean_length"}}},
        {"keep": "copy_of IS NULL"},
        {"add": {"twin": {"kind": "minhash", "priority": "score"}}},
        {"keep": "twin IS NULL"},
    ]
    folder = tmp_path / "one"
    folder.mkdir()
    one = build(folder, copies(30), steps, tmp_path / "a", max_duplicates=1)
    monkeypatch.setattr(sources, "SMALL", 0)
    monkeypatch.setattr(corpus_module, "cut", partial(cut, cut_bytes=3000))
    (tmp_path / "two").mkdir()

    two = build(tmp_path / "two", copies(30), steps, tmp_path / "b", max_duplicates=1)

    assert len(list((tmp_path / "two" / ".tilth" / "shards").iterdir())) > 5
    assert one.digest == two.digest


def test_priority_whose_values_change_decides_anew(tmp_path: Path) -> None:
    records = {"a": [{"text": text_of(n % 20), "score": n} for n in range(40)]}
    steps = [{"add": {"copy_of": {"kind": "exact", "priority": "score"}}}, {"keep": "copy_of IS NULL"}]
    first = build(tmp_path, records, steps, tmp_path / "a", max_duplicates=1)
    (tmp_path / "a.jsonl").unlink()
    second = build(tmp_path, {"a": [{**one, "score": -one["score"]} for one in records["a"]]}, steps, tmp_path / "b", max_duplicates=1)

    assert [row["row"] for row in pool_of(first.folder) if row["decision"] == "kept"] == list(range(20, 40))
    assert [row["row"] for row in pool_of(second.folder) if row["decision"] == "kept"] == list(range(20))


def test_normalised_exact_duplicates_name_the_survivor_and_leave_wordless_texts(tmp_path: Path) -> None:
    texts = ["One, two; three!", "one two three", "???", "!!!", "???", *(text_of(n) for n in range(12))]
    steps = [{"add": {"copy_of": {"kind": "exact", "by": "normalized"}}}, {"keep": "copy_of IS NULL"}]

    manifest = build(tmp_path, {"a": [{"text": text, "score": 0} for text in texts]}, steps, tmp_path / "out")

    pool = pool_of(manifest.folder)
    assert [row["row"] for row in pool if row["decision"] == "dropped"] == [1]
    assert json.loads(pool[1]["evidence"]) == {"survivor": pool[0]["origin"], "row": 0, "similarity": 1}
    assert manifest.header["recipe"]["steps"][0]["add"] == {"name": "copy_of", "kind": "exact", "by": "normalized"}
