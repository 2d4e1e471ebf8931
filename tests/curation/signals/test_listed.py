"""Removal lists against plain Python sets, through a whole build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipes import built, pool_of, recipe, write_corpus, write_file

from mixing import UserError
from mixing.audit import verify


def listing(files: str, by: str) -> dict[str, Any]:
    steps = [{"add": {"opted_out": {"kind": "listed", "files": files, "by": by}}}, {"keep": "NOT opted_out"}]
    return recipe(steps=steps)


@pytest.mark.parametrize("by", ["key", "content", "origin"])
def test_listed_documents_are_exactly_those_of_the_lists(tmp_path: Path, by: str) -> None:
    write_corpus(tmp_path)
    built(tmp_path, recipe(steps=[]), tmp_path / "all")
    values = [row[by] for row in pool_of(tmp_path / "all") if row[by] is not None and row["decision"] == "kept"][::7]
    half = len(values) // 2
    write_file(tmp_path / "optout" / "a.txt", "\r\n".join(one.upper() if by == "content" else one for one in values[:half]).encode())
    write_file(tmp_path / "optout" / "b.txt.gz", ("\n\n  " + "\n  ".join([*values[half:], values[0], "nobody"]) + "  \n").encode())

    built(tmp_path, listing("optout/*", by), tmp_path / "out")

    rows = [row for row in pool_of(tmp_path / "out") if row["content"] is not None and row["reason"] != "holdout"]
    assert {row["row"] for row in rows if row["opted_out"]} == {row["row"] for row in rows if row[by] in values}
    assert {row["opted_out"] for row in rows} == {True, False}
    assert {row["decision"] for row in rows if row["opted_out"]} <= {"dropped", "held_out"}
    assert all(finding.ok for finding in verify(tmp_path / "out"))


def test_an_empty_list_lists_nothing_and_a_longer_one_is_read_anew(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    write_file(tmp_path / "optout.txt", b"")
    first = built(tmp_path, listing("optout.txt", "key"), tmp_path / "one")
    kept = [row for row in pool_of(tmp_path / "one") if row["decision"] == "kept"]
    write_file(tmp_path / "optout.txt", kept[0]["key"].encode())

    second = built(tmp_path, listing("optout.txt", "key"), tmp_path / "two")

    assert first.digest != second.digest
    assert sum(row["decision"] == "kept" for row in pool_of(tmp_path / "two")) == len(kept) - 1


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"one\n\xff\n"), ("a.jsonl", b'{"text": "one"}\nbroken\n')])
def test_a_list_of_which_an_entry_would_be_lost_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    write_corpus(tmp_path)
    write_file(tmp_path / name, content)

    with pytest.raises(UserError, match=rf"listed: {name}#\d+ cannot be read: .*; mend the list"):
        built(tmp_path, listing(name, "key"), tmp_path / "out")
