"""Repeated text in whole builds: the value in the pool, rules over it, the hold-out, and a digest that only recipe and inputs decide."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recipes import built, pool_of, recipe, text_of, write_records

from curation.corpus import sources
from curation.corpus.sources import cut
from mixing import UserError
from mixing.audit import verify
from mixing.manifest import Manifest

FOOTER = "All rights reserved. Subscribe to our newsletter!"
STEPS = [
    {"keep": "score < 9"},
    {"add": {"boilerplate": {"kind": "repeated_paragraphs", "at_least": 4}}},
    {"keep": "boilerplate IS NULL OR boilerplate < 0.5"},
    {"add": {"shared": {"kind": "repeated_spans", "words": 20}}},
]
MIXTURE = {
    "sequence_length": 64,
    "components": {"all": "source IS NOT NULL"},
    "stages": [{"name": "s", "tokens": 200, "weights": {"all": 1}}],
}


def records(count: int = 40) -> list[dict[str, Any]]:
    """Every second document ends in one footer; the last five are hardly more; two share a passage of 30 words; dropped ones have the footer too."""
    made = [f"{text_of(n)}\n\n{FOOTER if n % 2 else text_of(900 + n, 6)}" for n in range(count)]
    made += (
        [f"{FOOTER.upper()}\n \nshort {n}" for n in range(5)] + [f"{text_of(700 + n)} {text_of(800, 30)}" for n in range(2)] + ["!", "?"]
    )
    scored = [{"text": text, "score": 1} for text in made]
    return scored + [{"text": f"{text_of(600 + n)}\n\n{text_of(900, 6)}", "score": 9} for n in range(10)]


def values(**changes: Any) -> dict[str, Any]:
    named = {"a": {"files": "a/*.jsonl", "columns": ["score"]}}
    return recipe(**{"sources": named, "steps": STEPS, "holdout": {"documents": 4}, "mixture": MIXTURE, **changes})


def characters(text: str) -> int:
    return len("".join(text.split()))


def test_repeats_of_live_documents_are_in_the_pool_and_held_out_ones_have_theirs(tmp_path: Path) -> None:
    write_records(tmp_path / "a/one.jsonl", records())

    out = built(tmp_path, values(), tmp_path / "out").folder

    pool, texts = pool_of(out), [record["text"] for record in records()]
    held = [row["row"] for row in pool if row["decision"] == "held_out"]
    assert len(held) == 4
    for row, text in zip(pool[:40], texts, strict=False):
        expected = characters(FOOTER) / characters(text) if row["row"] % 2 else 0.0
        assert row["boilerplate"] == expected, row
    assert {row["boilerplate"] for row in pool[47:49]} == {None}
    assert {row["boilerplate"] for row in pool[49:]} == {None}  # dropped before
    assert all(row["boilerplate"] > 0.5 and row["decision"] == "dropped" for row in pool[40:45] if row["row"] not in held)
    assert json.loads(next(row for row in pool[40:45] if row["row"] not in held)["evidence"]).keys() == {"value"}
    assert [row["shared"] for row in pool[45:47]] == [pytest.approx(30 / 90)] * 2
    assert all(finding.ok for finding in verify(out))


def test_repeats_whatever_workers_memory_and_shards_give_one_digest_and_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "a/one.jsonl", records())
    one = built(tmp_path, values(), tmp_path / "one")
    monkeypatch.setattr(sources, "SMALL", 0)
    monkeypatch.setattr("curation.corpus.shards.cut", partial(cut, cut_bytes=2000))
    monkeypatch.setattr("curation.engine.memory.RANGE_BYTES", 500)

    two = built(tmp_path, values(), tmp_path / "two", tmp_path / "work", workers=2)
    looser = [*STEPS[:2], {"keep": "boilerplate IS NULL OR boilerplate < 0.9"}]
    again = built(tmp_path, values(steps=looser), tmp_path / "three", tmp_path / "work")

    assert len(list((tmp_path / "work/shards").iterdir())) > 3
    assert one.digest == two.digest
    assert (two.computed["boilerplate"], again.computed["boilerplate"]) == (two.computed["boilerplate"], 0)
    assert again.remembered["boilerplate"] == two.computed["boilerplate"] > 30


def test_repeats_of_a_changed_live_set_are_counted_anew(tmp_path: Path) -> None:
    write_records(tmp_path / "a/one.jsonl", records())
    built(tmp_path, values(holdout=None), tmp_path / "one")

    fewer = [{"keep": "score < 9"}, {"keep": f"key IS NULL AND bytes < {len(text_of(0)) * 10}"}, *STEPS[1:]]
    everything = built(tmp_path, values(holdout=None, steps=STEPS[1:]), tmp_path / "two")
    same = built(tmp_path, values(holdout=None, steps=fewer), tmp_path / "three")

    repeated = [row["boilerplate"] > 0 for row in pool_of(everything.folder) if row["row"] % 2 == 0 and row["row"] < 40]
    assert repeated[0]  # those that score 9 hold the last lines of document 0
    assert not any(repeated[1:])
    assert pool_of(tmp_path / "one")[0]["boilerplate"] == pool_of(same.folder)[0]["boilerplate"] == 0
    assert Manifest.open(everything.folder).header["recipe"]["steps"][0]["add"] == {
        "name": "boilerplate",
        "kind": "repeated_paragraphs",
        "at_least": 4,
        "separated_by": "blank_line",
    }


def test_repeats_with_settings_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "a/one.jsonl", records())
    for config, message in (
        ({"kind": "repeated_paragraphs", "at_least": 1}, r"steps\[0\]\.add\.b\.at_least: .*greater than or equal to 2"),
        ({"kind": "repeated_spans", "words": 2}, r"steps\[0\]\.add\.b\.words: .*greater than or equal to 5"),
        ({"kind": "repeated_spans", "separated_by": "line"}, r"separated_by"),
    ):
        with pytest.raises(UserError, match=message):
            built(tmp_path, values(steps=[{"add": {"b": config}}]), tmp_path / "out")
