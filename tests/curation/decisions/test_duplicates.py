"""Duplicates in whole builds: declared priority and normalised keys, what the guard says, groups that are gone, and the passage two documents share."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recipes import built, near_copy, pool_of, recipe, text_of, write_records

from curation import terminal
from curation.commands.explain import why
from curation.corpus import sources
from curation.corpus.sources import cut
from curation.dedup import banding
from mixing import UserError
from mixing.manifest import Manifest

Records = list[dict[str, Any]]
MIXTURE = {
    "sequence_length": 64,
    "components": {"all": "source IS NOT NULL"},
    "stages": [{"name": "s", "tokens": 200, "weights": {"all": 1}}],
}


NO_COPIES = [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}]


def build(folder: Path, records: dict[str, Records], steps: list[dict[str, Any]], out: Path, workers: int = 1, **source: Any) -> Manifest:
    """A manifest of sources `records`, one file each, decided by `steps`."""
    for name, mine in records.items():
        if not (folder / f"{name}.jsonl").exists():
            write_records(folder / f"{name}.jsonl", mine)
    named = {name: {"files": f"{name}.jsonl", "columns": ["score"], **source} for name in records}
    made = built(folder, recipe(sources=named, steps=steps, holdout=None, mixture=MIXTURE), out, workers=workers)
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


def test_priority_by_a_signal_whatever_the_shards_and_workers_gives_one_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr("curation.corpus.shards.cut", partial(cut, cut_bytes=3000))
    (tmp_path / "two").mkdir()

    two = build(tmp_path / "two", copies(30), steps, tmp_path / "b", workers=2, max_duplicates=1)

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


# --- sources that come and go


def test_source_of_a_recipe_that_is_removed_and_added_again_restores_the_digest(tmp_path: Path) -> None:
    steps = [*NO_COPIES, {"add": {"twin": {"kind": "minhash"}}}, {"keep": "twin IS NULL"}]
    records = copies(12)
    both = build(tmp_path, records, steps, tmp_path / "both", max_duplicates=1)

    alone = build(tmp_path, {"b": records["b"]}, steps, tmp_path / "alone", max_duplicates=1)
    again = build(tmp_path, records, steps, tmp_path / "again", max_duplicates=1)

    assert again.digest == both.digest != alone.digest
    assert sum(row["decision"] == "kept" for row in pool_of(alone.folder)) == 18  # without `a` in front of it `b` keeps all


def test_source_of_unrelated_texts_changes_no_decision_about_the_others(tmp_path: Path) -> None:
    steps = [*NO_COPIES, {"add": {"twin": {"kind": "minhash", "priority": "score"}}}, {"keep": "twin IS NULL"}]
    records = copies(12)
    strangers = [{"text": text_of(5000 + n // 2) if n % 3 else near_copy(text_of(5000 + n), n), "score": n} for n in range(60)]

    def decisions(manifest: Manifest) -> list[tuple[Any, ...]]:
        pool = pool_of(manifest.folder)
        origin = {row["row"]: (row["source"], row["origin"]) for row in pool}
        return [
            (row["source"], row["origin"], row["decision"], row["reason"], *(origin.get(row[name]) for name in ("copy_of", "twin")))
            for row in pool
            if row["source"] != "strangers"
        ]

    alone = build(tmp_path, records, steps, tmp_path / "alone", max_duplicates=1)
    beside = build(tmp_path, {"strangers": strangers, **records}, steps, tmp_path / "beside", max_duplicates=1)

    assert decisions(beside) == decisions(alone)
    assert any(row["decision"] == "dropped" for row in pool_of(beside.folder) if row["source"] == "strangers")


# --- the guard


def repeated(distinct: int, times: int, first: int = 0) -> Records:
    """`times` more copies of the text `first`, and `distinct` texts."""
    return [{"text": text_of(first + max(n - times, 0)), "score": n} for n in range(distinct + times)]


def test_guard_more_copies_than_accepted_stop_the_build_with_counts_and_an_example(tmp_path: Path) -> None:
    records = {"b": repeated(30, 5), "a": repeated(30, 50, first=100)}

    with pytest.raises(UserError) as caught:
        build(tmp_path, records, NO_COPIES, tmp_path / "out")

    for part in (
        "sources.a: up to step 2, 'copy_of IS NULL', 50 documents (62.5%)",
        "50 of them for a.jsonl#0 (row 35) alone",
        "Accepted are 60%",
        "max_duplicates: 0.63 in the source",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert build(tmp_path, records, NO_COPIES, tmp_path / "out", max_duplicates=0.63).header["sources"]["a"]["kept"] == 30
    with pytest.raises(UserError, match=r"Accepted are 5%"):
        build(tmp_path, records, NO_COPIES, tmp_path / "other", max_duplicates=0.05)


def test_guard_a_third_of_copies_warns_unless_the_source_says_how_much_is_meant(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", repeated(30, 20))
    values = recipe(sources={"a": {"files": "a.jsonl"}}, steps=NO_COPIES, holdout=None, mixture=MIXTURE)

    (warning,) = built(tmp_path, values, tmp_path / "out").warnings

    assert "sources.a: up to step 2, 'copy_of IS NULL', 20 documents (40.0%)" in warning
    assert "write max_duplicates: 0.4 in the source" in warning
    values["sources"]["a"]["max_duplicates"] = 0.4
    assert built(tmp_path, values, tmp_path / "said").warnings == []


def test_guard_counts_over_rules_and_leaves_out_what_other_rules_dropped_before(tmp_path: Path) -> None:
    """20 texts twice, and two near-copies of each: 1/4 and 2/3 of what comes to the rules; the filter before them takes 100 others away."""
    texts = [text for n in range(20) for text in (text_of(n), text_of(n), near_copy(text_of(n), n), near_copy(text_of(n), 50 + n))]
    records = {"a": [*({"text": text, "score": 1} for text in texts), *({"text": text_of(500 + n), "score": 0} for n in range(100))]}
    steps = [
        {"keep": "score > 0"},
        *NO_COPIES,
        {"add": {"twin": {"kind": "minhash"}}},
        {"keep": "twin IS NULL"},
    ]

    with pytest.raises(UserError, match=r"up to step 5, 'twin IS NULL', 60 documents \(75\.0%\)"):
        build(tmp_path, records, steps, tmp_path / "out")


def test_guard_copies_of_another_source_and_rules_without_survivors_do_not_count(tmp_path: Path) -> None:
    records = {"a": [{"text": text_of(n), "score": n} for n in range(40)], "b": [{"text": text_of(n), "score": n} for n in range(40)]}
    steps = [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL AND score >= 30"}]

    manifest = build(tmp_path, records, steps, tmp_path / "out")

    (step,) = terminal.facts(manifest)["duplicates"]
    assert step["sources"] == {
        "a": {"documents": 0, "own": 0, "of": 10, "share": 0.0, "gone": 0},
        "b": {"documents": 40, "own": 0, "of": 0, "share": 0.0, "gone": 30},
    }
    assert step["groups_gone"] == 30


# --- groups that are gone


def test_groups_that_later_rules_dropped_whole_are_counted_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text n stands three times, as written twice and once with a word changed; the survivor of every fourth is dropped by a filter."""
    monkeypatch.setattr(sources, "SMALL", 0)
    monkeypatch.setattr("curation.corpus.shards.cut", partial(cut, cut_bytes=2000))
    texts = [(n, text) for again in range(3) for n in range(12) for text in [text_of(n) if again != 1 else near_copy(text_of(n), n)]]
    records = {"a": [{"text": text, "score": n % 4} for n, text in texts]}
    steps = [*NO_COPIES, {"add": {"twin": {"kind": "minhash"}}}, {"keep": "twin IS NULL"}, {"keep": "score > 0"}]

    manifest = build(tmp_path, records, steps, tmp_path / "out", max_duplicates=1)

    first, second = terminal.facts(manifest)["duplicates"]
    assert (first["step"], first["groups_gone"], first["sources"]["a"]["documents"], first["sources"]["a"]["gone"]) == (2, 3, 12, 3)
    assert (second["step"], second["groups_gone"], second["sources"]["a"]["documents"], second["sources"]["a"]["gone"]) == (4, 3, 12, 3)
    shown = terminal.inspect(manifest)
    assert "step 2: copy_of IS NULL" in shown
    assert "of 3 groups that are gone" in shown
    (lost,), (kept,) = why(manifest, "28", None, None), why(manifest, "25", None, None)
    assert "    row 4 was dropped by: score > 0, found: 0; nothing of the group is left\n" in lost
    assert "    row 1 is kept\n" in kept


def test_groups_whose_survivor_is_a_duplicate_itself_are_followed_to_the_end(tmp_path: Path) -> None:
    """Row 1 is a copy of row 0, which the second signal, preferring high scores, drops for row 2: kept in one group, dropped by a filter in the other."""
    base = [text_of(0), text_of(0), near_copy(text_of(0), 1), text_of(5), text_of(5), near_copy(text_of(5), 6)]
    records = {"a": [{"text": text, "score": score} for text, score in zip(base, [0, 0, 5, 0, 0, 9], strict=True)]}
    records["a"] += [{"text": text_of(100 + n), "score": 1} for n in range(20)]
    steps = [*NO_COPIES, {"add": {"twin": {"kind": "minhash", "priority": "score"}}}, {"keep": "twin IS NULL"}, {"keep": "score < 9"}]

    manifest = build(tmp_path, records, steps, tmp_path / "out")

    assert [(step["groups_gone"], step["sources"]["a"]["gone"]) for step in terminal.facts(manifest)["duplicates"]] == [(1, 1), (1, 1)]
    (followed,) = why(manifest, "4", None, None)
    assert "    row 3 was dropped by: twin IS NULL, the same as row 5, a.jsonl#" in followed
    assert "    row 5 was dropped by: score < 9, found: 9; nothing of the group is left\n" in followed


def test_groups_dropped_for_each_other_by_two_signals_are_gone(tmp_path: Path) -> None:
    texts = [text_of(0), text_of(0), *(text_of(100 + n) for n in range(20))]
    records = {"a": [{"text": text, "score": n} for n, text in enumerate(texts)]}
    steps = [
        {"add": {"copy_of": {"kind": "exact"}}},
        {"add": {"twin": {"kind": "minhash", "priority": "score"}}},
        {"keep": "copy_of IS NULL"},
        {"keep": "twin IS NULL"},
    ]

    manifest = build(tmp_path, records, steps, tmp_path / "out")

    assert [(step["groups_gone"], step["sources"]["a"]["gone"]) for step in terminal.facts(manifest)["duplicates"]] == [(1, 1), (1, 1)]
    assert "they were dropped for each other; nothing of the group is left" in next(why(manifest, "0", None, None))


def test_pairs_given_up_are_a_warning_of_the_build_and_a_line_of_inspect_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 pages of one template, 0.75 of each other, so that all stay: with 8 leaders a bucket, the others of a large one are not compared with each other."""
    template = " ".join(f"t{i}" for i in range(100))
    pages = [{"text": template + "".join(f" p{page}x{i}" for i in range(16)), "score": 0} for page in range(200)]
    write_records(tmp_path / "a.jsonl", pages)
    steps = [{"add": {"twin": {"kind": "minhash"}}}, {"keep": "twin IS NULL"}]
    values = recipe(sources={"a": {"files": "a.jsonl"}}, steps=steps, holdout=None, mixture=MIXTURE)
    assert built(tmp_path, values, tmp_path / "all", tmp_path / "work").warnings == []
    monkeypatch.setattr(banding, "MOST_LEADERS", 8)

    made = built(tmp_path, values, tmp_path / "out")
    again = built(tmp_path, {**values, "seed": 18}, tmp_path / "again")

    (warning,) = made.warnings
    given_up = re.match(r"steps\[0\]\.add\.twin: ([\d,]+) pairs that might be alike were not compared", warning)
    assert given_up is not None
    assert int(given_up[1].replace(",", "")) > 24 * 23 // 2  # a bucket of more than 32, less the 8
    assert again.warnings == made.warnings
    assert f"twin: {given_up[1]} pairs that might be alike were not compared" in terminal.inspect(Manifest.open(again.folder))


def test_priority_by_a_signal_that_is_configured_anew_decides_as_in_a_fresh_work_directory(tmp_path: Path) -> None:
    """Texts and near-copies under models of the one and of the other: what was decided by one model is not taken for what the other says."""
    base = [text for n in range(12) for text in (text_of(n), near_copy(text_of(n), n))]
    write_records(tmp_path / "a.jsonl", [{"text": text, "score": 0} for text in base])

    def steps(reference: str) -> list[dict[str, Any]]:
        added = {"q": {"kind": "ngram", "reference": reference}}
        return [{"add": added}, {"add": {"twin": {"kind": "minhash", "priority": "q", "order": "ascending"}}}, {"keep": "twin IS NULL"}]

    for name, place in (("first", 0), ("second", 1)):
        write_records(tmp_path / f"{name}.jsonl", [{"text": text} for text in base[place::2] * 3])
    kept = {}
    for name, work in (("first", "work"), ("second", "work"), ("second", "fresh")):
        values = recipe(sources={"a": {"files": "a.jsonl"}}, steps=steps(f"{name}.jsonl"), holdout=None, mixture=MIXTURE)
        made = built(tmp_path, values, tmp_path / f"{name}-{work}", tmp_path / work)
        kept[name, work] = [row["row"] for row in pool_of(made.folder) if row["decision"] == "kept"]

    assert kept["second", "work"] == kept["second", "fresh"] != kept["first", "work"]
