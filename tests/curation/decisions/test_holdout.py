"""The hold-out against its definition in plain Python: the lowest xxh3(seed, content) of distinct contents, and exact Jaccard of five-word shingles."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import xxhash
from recipes import built, near_copy, pool_of, recipe, text_of, write_records

from curation.corpus import sources
from curation.corpus.sources import cut
from curation.text.words import words
from mixing import UserError
from mixing.audit import verify
from mixing.manifest import Manifest

MIXTURE = {
    "sequence_length": 64,
    "components": {"all": "source IS NOT NULL"},
    "stages": [{"name": "one", "tokens": 500, "weights": {"all": 1}}],
}


def shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + 5]) for i in range(max(1, len(found) - 4))} if found else set()


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def lowest(texts: Iterable[str], seed: int, count: int) -> list[str]:
    """The texts that a draw of `count` must take."""
    return sorted(
        set(texts), key=lambda text: xxhash.xxh3_64_intdigest(seed.to_bytes(8, "little") + xxhash.xxh3_128_digest(text.encode()))
    )[:count]


def hold_out(folder: Path, given: dict[str, list[str]], documents: int = 5, out: str = "out", **changes: Any) -> list[dict[str, Any]]:
    """Builds sources of these texts, one file each, and returns the pool with the texts."""
    for name, texts in given.items():
        if not (folder / f"{name}.jsonl").exists():
            write_records(folder / f"{name}.jsonl", [{"text": text} for text in texts])
    values = recipe(
        sources={name: {"files": f"{name}.jsonl"} for name in given}, steps=[], holdout={"documents": documents}, mixture=MIXTURE, seed=3
    )
    built(folder, {**values, **changes}, folder / out, folder / f"work {out}")
    rows = pool_of(folder / out)
    for row, text in zip(rows, (text for texts in given.values() for text in texts), strict=True):
        assert row["content"] == xxhash.xxh3_128_hexdigest(text.encode())
        row["text"] = text
    return rows


def held(rows: list[dict[str, Any]], source: str | None = None) -> list[dict[str, Any]]:
    return [row for row in rows if row["decision"] == "held_out" and source in (None, row["source"])]


def test_holdout_of_a_source_is_the_lowest_draws_of_its_distinct_contents(tmp_path: Path) -> None:
    texts = [text_of(number % 80, 12) for number in range(120)]

    rows = hold_out(tmp_path, {"a": texts})

    assert {row["text"] for row in held(rows)} == set(lowest(texts, 3, 5))
    for row in held(rows):  # the first document of its content stands for it
        assert row["row"] == texts.index(row["text"])
        assert row["reason"] is None


def test_holdout_is_at_most_a_tenth_of_the_distinct_contents_and_says_so(tmp_path: Path) -> None:
    texts = [text_of(number % 37, 12) for number in range(400)]
    write_records(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    values = recipe(sources={"a": {"files": "a.jsonl"}}, steps=[], holdout={"documents": 30}, mixture=MIXTURE, seed=3)

    made = built(tmp_path, values, tmp_path / "out")

    assert {row["content"] for row in held(pool_of(tmp_path / "out"))} == {
        xxhash.xxh3_128_hexdigest(t.encode()) for t in lowest(texts, 3, 3)
    }
    assert len(made.warnings) == 1
    assert "'a': 3 documents" in made.warnings[0]
    assert "30 asked" in made.warnings[0]


def test_holdout_of_fewer_than_ten_documents_is_nothing(tmp_path: Path) -> None:
    rows = hold_out(tmp_path, {"a": [text_of(number, 30) for number in range(9)], "b": [text_of(100 + number) for number in range(20)]})

    assert len(held(rows, "a")) == 0
    assert len(held(rows, "b")) == 2


def test_copies_and_near_copies_of_held_out_texts_are_dropped_in_every_source_with_evidence(tmp_path: Path) -> None:
    own = [text_of(number) for number in range(60)]
    chosen = lowest(own, 3, 5)
    planted = [chosen[0], near_copy(chosen[1], 1), near_copy(near_copy(chosen[2], 1).replace(" ", "  "), 2), "unlike " + text_of(999)]
    far = " ".join(near_copy(chosen[3], 1).split()[:35]) + " " + text_of(5000, 25)
    assert jaccard(far, chosen[3]) < 0.8 <= jaccard(planted[1], chosen[1])

    rows = hold_out(tmp_path, {"a": [*own, *planted[:2]], "b": [*planted, far, *(text_of(2000 + number) for number in range(30))]})

    contents = {row["text"]: row for row in held(rows, "a")}
    assert set(contents) == set(chosen)
    dropped = {(row["source"], row["text"]): row for row in rows if row["decision"] == "dropped"}
    assert {row["reason"] for row in dropped.values()} == {"holdout"}
    expected = {
        (row["source"], row["text"])
        for row in rows
        if row["decision"] != "held_out" and any(jaccard(row["text"], one["text"]) >= 0.8 for one in held(rows))
    }
    assert set(dropped) == expected
    assert len(expected) >= 5
    for row in dropped.values():
        evidence = json.loads(row["evidence"])
        survivor = rows[evidence["row"]]
        assert survivor["decision"] == "held_out"
        assert evidence["survivor"] == survivor["origin"]
        assert evidence["similarity"] == pytest.approx(jaccard(row["text"], survivor["text"]), abs=1e-12)


def test_contents_first_seen_in_an_earlier_source_belong_to_it(tmp_path: Path) -> None:
    shared, own = [text_of(number) for number in range(50)], [text_of(1000 + number) for number in range(50)]

    rows = hold_out(tmp_path, {"a": shared, "b": [*shared, *own]})

    assert {row["text"] for row in held(rows, "a")} == set(lowest(shared, 3, 5))
    assert {row["text"] for row in held(rows, "b")} == set(lowest(own, 3, 5))
    copies = [row for row in rows if row["source"] == "b" and row["text"] in {one["text"] for one in held(rows, "a")}]
    assert [row["reason"] for row in copies] == ["holdout"] * 5


def test_recipes_of_one_seed_reserve_the_same_texts_and_of_another_seed_others(tmp_path: Path) -> None:
    given = {"a": [text_of(number) for number in range(80)], "b": [text_of(1000 + number) for number in range(60)]}
    steps = [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}, {"keep": "bytes > 400"}]

    plain = {row["content"] for row in held(hold_out(tmp_path, given))}
    filtered = held(hold_out(tmp_path, given, out="filtered", steps=steps, name="other", version=4))
    other = {row["content"] for row in held(hold_out(tmp_path, given, out="other", seed=4))}

    assert {row["content"] for row in filtered} == plain
    assert {row["reason"] for row in filtered} <= {None, "bytes > 400"}
    assert len(plain) == len(other) == 10
    assert len(plain & other) < 5


def test_holdout_of_a_smaller_number_is_part_of_a_larger_one(tmp_path: Path) -> None:
    given = {"a": [text_of(number) for number in range(100)]}

    few = {row["content"] for row in held(hold_out(tmp_path, given, documents=3))}
    many = {row["content"] for row in held(hold_out(tmp_path, given, documents=8, out="many"))}

    assert few < many


def test_holdout_does_not_depend_on_the_cutting_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"a": [text_of(number % 70) for number in range(90)], "b": [near_copy(text_of(number), 1) for number in range(40)]}
    whole = hold_out(tmp_path, given)
    monkeypatch.setattr(sources, "SMALL", 0)
    monkeypatch.setattr("curation.corpus.shards.cut", partial(cut, cut_bytes=3000))

    assert hold_out(tmp_path, given, out="cut") == whole
    assert len(list((tmp_path / "work cut" / "shards").iterdir())) > 10


def test_held_out_documents_that_fail_a_rule_name_it_and_are_not_written_to_the_holdout(tmp_path: Path) -> None:
    rows = hold_out(
        tmp_path, {"a": [text_of(number, 20 + number % 40) for number in range(100)]}, documents=10, steps=[{"keep": "bytes > 400"}]
    )

    assert len(held(rows)) == 10
    assert {row["reason"] for row in held(rows)} == {None, "bytes > 400"}
    assert all((row["reason"] is None) == (row["bytes"] > 400) for row in held(rows))
    header = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert header["sources"]["a"]["held_out"] == 10
    assert header["holdout"]["a"]["documents"] == sum(row["reason"] is None for row in held(rows))


def test_held_out_documents_take_no_part_in_top_and_duplicates(tmp_path: Path) -> None:
    texts = [text_of(number) for number in range(100)]
    steps = [
        {"add": {"copy_of": {"kind": "exact"}}},
        {"top": {"by": "bytes", "order": "descending", "share": 0.5}},
    ]

    rows = hold_out(tmp_path, {"a": texts}, documents=10, steps=steps)

    reserved = held(rows)
    assert {row["text"] for row in reserved} == set(lowest(texts, 3, 10))
    assert all(row["copy_of"] is None and row["reason"] is None for row in reserved)
    ranked = sorted((row for row in rows if row["decision"] != "held_out"), key=lambda row: (-row["bytes"], row["row"]))
    assert [row["row"] for row in ranked[:45]] == [row["row"] for row in ranked if row["decision"] == "kept"]


@pytest.mark.parametrize("reference", [{"sample": "a", "documents": 1000}, "same.jsonl"], ids=["sample", "file"])
def test_a_model_never_saw_a_held_out_text(tmp_path: Path, reference: object) -> None:
    """Each text has a word of its own, and an n-gram model of order 1 gives an unseen word the least probability of all."""
    texts = [" ".join([f"only{number}"] * 30 + text_of(number, 10).split()) for number in range(60)]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    step = {"add": {"like": {"kind": "ngram", "order": 1, "reference": reference}}}

    rows = hold_out(tmp_path, {"a": texts}, documents=6, steps=[step])

    worst = sorted(rows, key=lambda row: -row["like"])[:6]
    assert {row["row"] for row in worst} == {row["row"] for row in held(rows)}


def test_held_out_documents_of_a_source_that_the_rules_drop_whole_leave_no_file_and_a_sound_manifest(tmp_path: Path) -> None:
    texts = {"long": [text_of(n, 40) for n in range(60)], "short": [text_of(1000 + n, 6) for n in range(60)]}

    rows = hold_out(tmp_path, texts, steps=[{"keep": "bytes > 100"}])

    assert len(held(rows, "short")) == 5
    assert not (tmp_path / "out" / "holdout" / "short.arrow").exists()
    assert (tmp_path / "out" / "holdout" / "long.arrow").exists()
    assert [finding for finding in verify(tmp_path / "out") if finding.verdict == "FAIL"] == []


# --- what another manifest holds out, and texts of the user's own


def test_what_a_manifest_holds_out_is_held_out_again_though_the_corpus_has_grown(tmp_path: Path) -> None:
    old, new = [text_of(number, 20 + number % 40) for number in range(100)], [text_of(1000 + number) for number in range(200)]
    before = hold_out(tmp_path, {"a": old}, documents=10, out="before", steps=[{"keep": "bytes > 400"}])
    again = near_copy(max((row["text"] for row in held(before) if row["text"] in old[:90]), key=len), 1)

    rows = hold_out(tmp_path, {"b": [*new, again], "c": old[:90]}, out="after", holdout={"from": "before", "similarity": 0.7})

    kept_back = {row["text"] for row in held(before)}
    assert {row["reason"] for row in held(before)} == {None, "bytes > 400"}  # one that failed a rule was not trained on either
    assert {row["text"] for row in held(rows)} == kept_back & {*old[:90]}
    (copy,) = [row for row in rows if row["decision"] == "dropped"]
    assert (copy["text"], copy["reason"]) == (again, "holdout")
    assert [finding for finding in verify(tmp_path / "after") if not finding.ok] == []


def test_texts_of_an_earlier_holdout_that_are_not_there_are_counted(tmp_path: Path) -> None:
    old = [text_of(number) for number in range(60)]
    before = hold_out(tmp_path, {"a": old}, documents=6, out="before")
    gone = held(before)[0]["text"]
    write_records(tmp_path / "fewer.jsonl", [{"text": text} for text in old if text != gone])
    values = recipe(sources={"a": {"files": "fewer.jsonl"}}, steps=[], holdout={"from": "before"}, mixture=MIXTURE)

    for out in ("after", "again"):  # said again by a build that finds its hold-out done
        made = built(tmp_path, {**values, "name": out}, tmp_path / out)
        assert made.warnings == [
            f"hold-out from {tmp_path / 'before'}: 1 of its 6 texts are not among these sources; nothing is compared with those"
        ]


def test_texts_of_ones_own_are_measured_as_they_are_and_nothing_like_them_is_trained_on(tmp_path: Path) -> None:
    exam = [text_of(1, 8), text_of(2), text_of(3), text_of(3)]  # the first fails the rule, the last stands twice
    write_records(tmp_path / "exam" / "part.jsonl", [{"body": text} for text in exam])
    texts = [*(text_of(100 + number) for number in range(60)), exam[1], near_copy(exam[2], 1)]
    holdout = {"documents": 4, "files": {"exam": {"files": "exam/*.jsonl", "text": "body"}}}
    write_records(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    values = recipe(sources={"a": {"files": "a.jsonl"}}, steps=[{"keep": "bytes > 300 AND source = 'a'"}], holdout=holdout, mixture=MIXTURE)

    built(tmp_path, values, tmp_path / "out")

    rows = pool_of(tmp_path / "out")
    assert [(row["decision"], row["reason"]) for row in rows if row["source"] == "exam"] == [
        *[("held_out", None)] * 3,
        ("dropped", "holdout"),
    ]
    assert [row["reason"] for row in rows[60:62]] == ["holdout", "holdout"]
    assert [json.loads(row["evidence"])["row"] for row in rows[60:62]] == [63, 64]
    assert len(held(rows, "a")) == 4
    header = Manifest.open(tmp_path / "out").header
    assert header["holdout"]["exam"]["documents"] == 3
    assert header["recipe"]["holdout"] == {"documents": 4, "similarity": 0.8, "files": ["exam"]}
    assert [finding for finding in verify(tmp_path / "out") if not finding.ok] == []


def test_a_text_of_ones_own_that_the_draw_would_take_is_held_out_once(tmp_path: Path) -> None:
    texts = [text_of(number) for number in range(60)]
    chosen = lowest(texts, 3, 5)
    write_records(tmp_path / "exam.jsonl", [{"text": chosen[0]}])

    rows = hold_out(
        tmp_path,
        {"a": texts, "exam": chosen[:1]},
        holdout={"documents": 4, "files": {"exam": {"files": "exam.jsonl"}}},
        sources={"a": {"files": "a.jsonl"}},
    )

    assert {row["text"] for row in held(rows, "a")} == set(chosen[1:5])
    assert [row["text"] for row in held(rows, "exam")] == chosen[:1]


def test_files_of_ones_own_without_a_document_are_told(tmp_path: Path) -> None:
    write_records(tmp_path / "exam.jsonl", [{"text": text_of(1)}])
    write_records(tmp_path / "a.jsonl", [{"text": text_of(number)} for number in range(40)])
    exams = {name: {"files": "exam.jsonl", "where": where} for name, where in (("none", "bytes > 1000000"), ("one", "bytes > 1"))}
    values = recipe(sources={"a": {"files": "a.jsonl"}}, steps=[], holdout={"files": exams}, mixture=MIXTURE)

    made = built(tmp_path, values, tmp_path / "out")

    assert made.warnings == ["hold-out 'none': its files have no documents, so nothing is held out of them"]


@pytest.mark.parametrize(
    ("holdout", "said"),
    [
        ({}, "give documents, from or files"),
        ({"documents": 3, "from": "before"}, "give one of documents, from"),
        ({"from": ""}, "holdout.from: found ''; string should have at least 1 character"),
        ({"from": "nowhere"}, "holdout.from: no file matches 'nowhere/manifest.json'"),
        ({"from": "before"}, "cleaned by [nfc] and these are by []"),
        ({"from": "nothing"}, "holds nothing out"),
        ({"files": {"a": {"files": "a.jsonl"}}}, "holdout.files: 'a' is the name of a source"),
        ({"files": {"exam": {"files": "none.jsonl"}}}, "holdout.files.exam.files: no file matches"),
        ({"files": {"exam": {"synthesize": {"from": "bytes > 1", "template": "qa", "model": "m"}}}}, "stands in `sources`"),
        ({"files": {"exam": "exam.jsonl"}}, "holdout.files.exam: found 'exam.jsonl'; accepted: a mapping of keys: columns, files, key,"),
        ({"files": {"exam": {"files": "bad.jsonl"}}}, "holdout.files.exam: 1 of 2 records cannot be used (50.0%, the limit is 1.0%)"),
        ({"files": {"exam": {"files": "bad.jsonl"}}}, "accept the loss with holdout.files.exam.max_quarantine"),
    ],
)
def test_holdout_that_cannot_be_made_is_refused(tmp_path: Path, holdout: dict[str, Any], said: str) -> None:
    hold_out(tmp_path, {"a": [text_of(number) for number in range(20)]}, documents=1, out="before", clean=["nfc"])
    hold_out(tmp_path, {"a": [text_of(number) for number in range(20)]}, out="nothing", holdout=None)
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text":\n')

    with pytest.raises(UserError) as refused:
        hold_out(tmp_path, {"a": [text_of(number) for number in range(20)]}, out="after", holdout=holdout)

    assert said in str(refused.value)
