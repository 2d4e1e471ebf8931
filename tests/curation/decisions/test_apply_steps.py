"""Steps against an interpreter of the same recipe in plain Python, over random recipes that share one work directory, and thus each other's memory."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import xxhash
from manifests import small_tokenizer
from recipes import built, pool_of, recipe, text_of, write_records
from tokenizers import Tokenizer

from curation.corpus import sources
from curation.corpus.sources import cut
from mixing import UserError
from mixing.canonical import canonical_json

Row = dict[str, Any]
RULES: dict[str, Callable[[Row], bool | None]] = {
    "score >= 3": lambda row: None if row["score"] is None else row["score"] >= 3,
    "score < 8 OR weight > 0": lambda row: _either(None if row["score"] is None else row["score"] < 8, None if row["weight"] is None else row["weight"] > 0),
    "weight IS NULL OR weight < 2": lambda row: row["weight"] is None or row["weight"] < 2,
    "words.words BETWEEN 8 AND 30": lambda row: 8 <= len(row["text"].split()) <= 30,
    "source != 'b' OR bytes > 100": lambda row: row["source"] != "b" or len(row["text"]) > 100,
    "copy_of IS NULL": lambda row: row["copy_of"] is None,
}  # fmt: skip
WHERE: dict[str | None, Callable[[Row], bool | None]] = {None: lambda row: True, "source = 'a'": lambda row: row["source"] == "a", **RULES}


def _either(one: bool | None, other: bool | None) -> bool | None:
    return True if one or other else None if one is None or other is None else False


@lru_cache
def tokens_of(text: str) -> int:
    return len(Tokenizer.from_str(small_tokenizer().decode()).encode(text, add_special_tokens=False).ids) + 1


def write_rows(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for source, count in (("a", 70), ("b", 50)):
        mine = []
        for n in range(count):
            score = None if n % 9 == 4 else n * 7 % 11
            weight = [None, -1.5, float("inf"), float("-inf"), 0.0, 3.25][n % 6]
            mine.append({"text": text_of(n % 45, 5 + n % 45 % 30), "score": score, "weight": weight})
        write_records(folder / f"{source}.parquet", mine, group=9)
        rows += [{"source": source, "row": len(rows) + n, **row} for n, row in enumerate(mine)]
    return rows


def random_steps(seed: int) -> list[dict[str, Any]]:
    choose = random.Random(seed)
    steps: list[dict[str, Any]] = [{"add": {"words": {"kind": "heuristics"}}}, {"add": {"copy_of": {"kind": "exact"}}}]
    choose.shuffle(steps)
    if choose.random() < 0.5:  # what is dropped first is no one's original
        steps.insert(choose.randrange(2), {"keep": "score < 8 OR weight > 0"})
    for _ in range(choose.randint(1, 4)):
        if choose.random() < 0.5:
            steps.append({"keep": choose.choice(sorted(RULES))})
            continue
        top: dict[str, Any] = {
            "by": choose.choice(["score", "weight", "bytes", "words.words"]),
            "order": choose.choice(["ascending", "descending"]),
        }
        where = choose.choice(sorted(WHERE, key=str))
        top |= {} if where is None else {"where": where}
        top |= choose.choice(
            [{"share": choose.choice([0.29, 0.5, 1.0])}, {"documents": choose.randint(1, 60)}, {"tokens": choose.randint(500, 9000)}]
        )
        steps.append({"top": top})
    return steps


def interpreted(rows: list[Row], steps: list[dict[str, Any]]) -> list[tuple[str | None, int | None, bool]]:
    """Per row (reason, copy_of as the pool shows it, whether its words were computed)."""
    state = [{**row, "copy_of": None, "seen": False, "reason": None} for row in rows]
    for step in steps:
        alive = [row for row in state if row["reason"] is None]
        if "keep" in step:
            for row in alive:
                verdict = RULES[step["keep"]](row)
                row["reason"] = None if verdict else step["keep"] + (" (no value)" if verdict is None else "")
        elif "words" in step.get("add", {}):
            for row in alive:
                row["seen"] = True
        elif "add" in step:
            first: dict[str, int] = {}
            for row in alive:
                row["copy_of"] = first.get(row["text"])
                first.setdefault(row["text"], row["row"])
        else:
            _take_top(alive, step["top"])
    return [(row["reason"], row["copy_of"], row["seen"]) for row in state]


def _take_top(alive: list[Row], top: dict[str, Any]) -> None:
    values = {"bytes": lambda row: len(row["text"]), "words.words": lambda row: len(row["text"].split())}
    value = values.get(top["by"], lambda row: row[top["by"]])
    inside = [row for row in alive if WHERE[top.get("where")](row)]
    ranked = [row for row in inside if value(row) is not None]
    ranked.sort(key=lambda row: ((1 if top["order"] == "ascending" else -1) * value(row), row["row"]))
    budget = top.get("tokens") or top.get("documents") or int(Fraction(str(top["share"])) * len(ranked))
    reason = f"top: {canonical_json(top)}"
    spent = 0
    for row in ranked:
        spent += tokens_of(row["text"]) if "tokens" in top else 1
        if spent > budget:
            row["reason"] = reason
    for row in inside:
        if value(row) is None:
            row["reason"] = f"{reason} (no value)"


SOURCES = {name: {"files": f"{name}.parquet", "columns": ["score", "weight"]} for name in "ab"}
MIXTURE = {
    "sequence_length": 64,
    "components": {"all": "source IS NOT NULL"},
    "max_epochs": 1000,
    "stages": [{"name": "s", "tokens": 50, "weights": {"all": 1}}],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("steps")
    return folder, write_rows(folder)


@pytest.mark.parametrize("seed", range(24))
def test_random_steps_decide_as_a_plain_interpreter_does_whatever_is_remembered(
    written: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    folder, rows = written
    if seed % 3 == 0:  # in many shards, with another memory
        monkeypatch.setattr(sources, "SMALL", 0)
        monkeypatch.setattr("curation.corpus.shards.cut", partial(cut, cut_bytes=2000))
    steps = random_steps(seed)
    expected = interpreted(rows, steps)
    assert any(reason is None for reason, _, _ in expected)

    built(folder, recipe(sources=SOURCES, steps=steps, holdout=None, mixture=MIXTURE), tmp_path / "out", folder / f"work {seed % 3 == 0}")

    found = pool_of(tmp_path / "out")
    assert [(row["reason"], row["copy_of"], row["words"] is not None) for row in found] == expected
    for row, given in zip(found, rows, strict=True):
        assert (row["decision"] == "kept") == (row["reason"] is None)
        assert row["words"] is None or row["words"]["words"] == len(given["text"].split())
        assert row["n_tokens"] in (None, tokens_of(given["text"]))
        assert row["n_tokens"] is not None or row["decision"] != "kept"
        assert (row["evidence"] is None) == (row["reason"] is None)
    header = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name, source in header["sources"].items():
        steps_of = [step["step"] for step in source["dropped"]]
        assert steps_of == sorted(set(steps_of))
        for dropped in source["dropped"]:
            reasons = (dropped["rule"], f"{dropped['rule']} (no value)")
            index = dropped["step"] - 1
            assert dropped["rule"] in (steps[index].get("keep"), f"top: {canonical_json(steps[index].get('top'))}")
            same = [one for one in source["dropped"] if one["rule"] == dropped["rule"]]
            assert sum(one["documents"] for one in same) == sum(row["reason"] in reasons for row in found if row["source"] == name)


def kept_by(top: dict[str, Any], written: tuple[Path, list[Row]], out: Path) -> dict[int, Row]:
    built(written[0], recipe(sources=SOURCES, steps=[{"top": top}], holdout=None, mixture=MIXTURE), out)
    return {row["row"]: row for row in pool_of(out)}


def chosen(pool: dict[int, Row]) -> set[int]:
    return {number for number, row in pool.items() if row["decision"] == "kept"}


@pytest.mark.parametrize("order", [{"order": "random"}, {"by": "bytes", "order": "descending"}])
def test_top_with_a_larger_budget_keeps_what_a_smaller_one_kept(written: tuple[Path, list[Row]], tmp_path: Path, order: Row) -> None:
    shares = [chosen(kept_by({**order, "share": share}, written, tmp_path / str(share))) for share in (0.3, 0.5, 0.9)]
    tokens = chosen(kept_by({**order, "tokens": 4000}, written, tmp_path / "tokens"))
    documents = chosen(kept_by({**order, "documents": 60}, written, tmp_path / "documents"))

    assert [len(kept) for kept in shares] == [36, 60, 108]
    assert shares[0] < shares[1] < shares[2]
    assert documents == shares[1]
    assert tokens <= documents or documents <= tokens


def test_top_in_random_order_is_drawn_by_content_and_seed(written: tuple[Path, list[Row]], tmp_path: Path) -> None:
    pool = kept_by({"order": "random", "documents": 40}, written, tmp_path / "one")
    other = kept_by({"order": "random", "documents": 40, "seed": 99}, written, tmp_path / "other")

    def lot(row: Row, seed: int) -> float:
        return float((xxhash.xxh3_64_intdigest(b"top" + seed.to_bytes(8, "little") + bytes.fromhex(row["content"])) >> 11) / 2**53)

    for found, seed in ((pool, recipe()["seed"]), (other, 99)):
        assert chosen(found) == set(sorted(found, key=lambda number: (lot(found[number], seed), number))[:40])
        for row in found.values():
            assert row["decision"] == "kept" or json.loads(row["evidence"]) == {"value": lot(row, seed)}
    assert chosen(pool) != chosen(other)


@pytest.mark.parametrize(("order", "limit"), [("ascending", 60), ("descending", 60)])
def test_top_takes_none_beyond_the_lower_cut_even_if_budget_is_left(
    written: tuple[Path, list[Row]], tmp_path: Path, order: str, limit: int
) -> None:
    pool = kept_by({"by": "bytes", "order": order, "share": 1, "no_worse_than": limit}, written, tmp_path / "all")
    half = kept_by({"by": "bytes", "order": order, "share": 0.5, "no_worse_than": limit}, written, tmp_path / "half")

    good = {number for number, row in pool.items() if (row["bytes"] <= limit if order == "ascending" else row["bytes"] >= limit)}
    assert 0 < len(good) < len(pool)
    assert chosen(pool) == good
    sign = 1 if order == "ascending" else -1
    assert chosen(half) == good & set(sorted(pool, key=lambda number: (sign * pool[number]["bytes"], number))[: len(pool) // 2])


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ({"order": "random", "by": "bytes", "share": 0.5}, "a random order has no `by`"),
        ({"order": "random", "no_worse_than": 3, "share": 0.5}, "a random order has no `by` and no `no_worse_than`"),
        ({"order": "ascending", "share": 0.5}, "give `by`"),
        ({"order": "ascending", "by": "bytes", "seed": 3, "share": 0.5}, "a `seed` only with `order: random`"),
        ({"order": "ascending", "by": "bytes", "no_worse_than": float("nan"), "share": 0.5}, "no_worse_than"),
    ],
)
def test_top_that_contradicts_itself_is_refused(written: tuple[Path, list[Row]], tmp_path: Path, top: Row, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        kept_by(top, written, tmp_path / "out")


def test_tokens_counted_by_a_top_show_in_the_pool_even_of_those_it_drops(written: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, rows = written
    steps = [{"top": {"by": "bytes", "order": "ascending", "where": "source = 'a'", "tokens": 2000}}]

    built(folder, recipe(sources=SOURCES, steps=steps, holdout=None, mixture={**MIXTURE, "components": {"all": "source = 'b' AND bytes > 60"}}), tmp_path / "out")  # fmt: skip

    for row, given in zip(pool_of(tmp_path / "out"), rows, strict=True):
        counted = row["source"] == "a" or len(given["text"]) > 60
        assert row["n_tokens"] == (tokens_of(given["text"]) if counted else None)


def test_a_signal_computed_for_few_is_not_shown_for_more_than_its_step_saw(written: tuple[Path, list[Row]], tmp_path: Path) -> None:
    """The memory knows more after a build that computed more; the pool shows what this recipe's step saw."""
    folder, _ = written
    early = [{"add": {"words": {"kind": "heuristics"}}}, {"keep": "source = 'a'"}]

    built(folder, recipe(sources=SOURCES, steps=early, holdout=None, mixture=MIXTURE), tmp_path / "early", tmp_path / "work")
    late = built(folder, recipe(sources=SOURCES, steps=early[::-1], holdout=None, mixture=MIXTURE), tmp_path / "late", tmp_path / "work")

    assert late.computed["words"] == 0
    assert [row["words"] is not None for row in pool_of(tmp_path / "early")] == [True] * 120
    assert [row["words"] is not None for row in pool_of(tmp_path / "late")] == [True] * 70 + [False] * 50


def test_an_empty_list_of_steps_keeps_everything(written: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, _ = written

    built(folder, recipe(sources=SOURCES, steps=[], holdout=None, mixture=MIXTURE), tmp_path / "out")

    assert {row["decision"] for row in pool_of(tmp_path / "out")} == {"kept"}
