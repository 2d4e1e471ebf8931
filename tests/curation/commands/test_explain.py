"""`why`, `show` and `diff` against the pool and the texts that were written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from recipes import Planted, built, pool_of, recipe, write_corpus, write_file

from curation.commands.differences import diff, facts
from curation.commands.explain import compared, show, why
from mixing import UserError
from mixing.manifest import Manifest


class Example:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.planted: Planted = write_corpus(folder, 30)
        built(folder, recipe(), folder / "out")
        self.manifest = Manifest.open(folder / "out")
        self.pool = pool_of(folder / "out")

    def one(self, decision: str, reason: str | None = None) -> dict[str, Any]:
        return next(
            row for row in self.pool if row["decision"] == decision and (reason is None or (row["reason"] or "").startswith(reason))
        )


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return Example(tmp_path_factory.mktemp("explain"))


def test_why_by_row_key_origin_and_text_finds_the_same_document(example: Example) -> None:
    row = example.one("dropped", "duplicate_of")
    text = example.planted.text[row["key"]]
    (example.folder / "text.txt").write_text(text)

    answers = [list(why(example.manifest, name, None, None)) for name in (str(row["row"]), row["key"], row["origin"])]
    answers += [list(why(example.manifest, None, given, None)) for given in (text, f"@{example.folder / 'text.txt'}")]

    assert answers == [answers[0]] * 5
    (answer,) = answers[0]
    evidence = json.loads(row["evidence"])
    assert answer.startswith(f"row {row['row']}  {row['source']}  {row['origin']}  key {row['key']}\n  dropped by: duplicate_of IS NULL\n")
    assert f"the same as row {evidence['row']}, {evidence['survivor']}, similarity {evidence['similarity']:.4f}" in answer
    assert f"  duplicate_of = {evidence['row']}\n" in answer
    assert "  words: not computed, the document was gone by then\n" in answer
    assert text[:100] in answer


def test_why_of_a_planned_document_names_the_sequences_that_hold_it(example: Example) -> None:
    manifest = example.manifest
    spans = manifest.spans(0, manifest.sequences)
    row = int(manifest.token_file(0).pool_row[3])
    mine = [index for index in range(len(spans.file)) if (spans.file[index], spans.token_row[index]) == (0, 3)]

    (answer,) = why(manifest, str(row), None, None)

    found = re.findall(r"planned in stage adapt, sequence ([\d,]+) \((\w+)\): tokens ([\d,]+) to ([\d,]+), visit (\d+)", answer)
    expected = []
    for index in mine:
        sequence = next(s for s in range(manifest.sequences) if spans.sequence[s] <= index < spans.sequence[s + 1])
        name = manifest.component_names[int(manifest.components(sequence, sequence + 1)[0])]
        start, length = int(spans.start[index]), int(spans.length[index])
        expected.append((f"{sequence:,}", name, f"{start:,}", f"{start + length:,}", str(int(spans.epoch[index]) + 1)))
    assert found == expected
    assert found
    assert "  kept\n" in answer


def test_why_of_a_kept_but_unplanned_held_out_or_quarantined_document_says_so(example: Example) -> None:
    planned = {int(row) for file in range(example.manifest.token_files) for row in example.manifest.token_file(file).pool_row}
    spare = next(row for row in example.pool if row["decision"] == "kept" and row["row"] not in planned)
    assert "  not planned" in next(why(example.manifest, str(spare["row"]), None, None))
    assert "  held_out\n" in next(why(example.manifest, str(example.one("held_out")["row"]), None, None))
    (broken,) = why(example.manifest, str(example.one("quarantined", "broken JSON")["row"]), None, None)
    assert "  quarantined by: broken JSON\n" in broken
    assert '{"text": "cut' in broken


def test_why_of_a_number_that_is_a_row_and_a_key_shows_both(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"text number {n} of twenty", "id": 19 - n}).encode() + b"\n" for n in range(20))
    write_file(tmp_path / "a.jsonl", lines)
    mixture = {"sequence_length": 16, "components": {"all": "source = 'a'"}, "stages": [{"name": "s", "tokens": 50, "weights": {"all": 1}}]}
    made = built(
        tmp_path, recipe(sources={"a": {"files": "a.jsonl", "key": "id"}}, steps=[], holdout=None, mixture=mixture), tmp_path / "out"
    )

    found = list(why(Manifest.open(made.folder), "3", None, None))

    assert [answer.split()[1] for answer in found] == ["3", "16"]


def test_why_without_the_work_directory_says_all_but_the_text(example: Example, tmp_path: Path) -> None:
    row = example.one("dropped", "words")

    (answer,) = why(example.manifest, str(row["row"]), None, tmp_path)

    assert f"  found: {row['words']['words']}\n" in answer
    assert "  | " not in answer


def test_show_gives_texts_of_a_reason_spread_over_the_pool(example: Example) -> None:
    shown = list(show(example.manifest, "words.words >= 10", None, None, 100, None))

    expected = [row for row in example.pool if row["reason"] == "words.words >= 10"]
    assert len(shown) == len(expected) > 3
    for one, row in zip(shown, expected, strict=True):
        assert one.startswith(f"[{row['row']}] {row['source']} {row['origin']}  dropped: words.words >= 10")
        assert example.planted.text[row["key"]] in one
    two = list(show(example.manifest, "words.words >= 10", None, None, 2, None))
    assert len(two) == 2
    assert set(two) <= set(shown)


def test_show_by_decision_and_source_shows_excerpts_of_quarantine(example: Example) -> None:
    shown = list(show(example.manifest, None, "quarantined", "web", 10, None))

    assert len(shown) == example.planted.broken["web"]
    assert any("\\xff" in one for one in shown)
    assert any("\\x00" in one for one in shown)
    for one in shown:
        assert all(character.isprintable() or character == "\n" for character in one)


def test_show_escapes_control_sequences_of_a_text(tmp_path: Path) -> None:
    write_file(tmp_path / "a.jsonl", b'{"text": "\\u001b[31mred\\u0007 \\u202eback and some more words"}\n' * 20)
    mixture = {"sequence_length": 16, "components": {"all": "source = 'a'"}, "stages": [{"name": "s", "tokens": 50, "weights": {"all": 1}}]}
    made = built(tmp_path, recipe(sources={"a": {"files": "a.jsonl"}}, steps=[], holdout=None, mixture=mixture), tmp_path / "out")

    (shown,) = show(Manifest.open(made.folder), None, "kept", None, 1, None)

    assert "\x1b" not in shown
    assert "\\x1b[31mred\\x07 \\u202eback" in shown


def test_show_after_the_work_directory_moved_needs_to_be_told(example: Example, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(example.folder / ".tilth", moved)
    shutil.copytree(example.folder / "out", tmp_path / "out")

    assert list(show(Manifest.open(tmp_path / "out"), None, "kept", None, 3, moved)) == list(
        show(example.manifest, None, "kept", None, 3, None)
    )
    with pytest.raises(UserError, match="name it with --work, or build the recipe again"):
        list(show(example.manifest, None, "kept", None, 3, tmp_path))


def test_diff_names_what_changed_and_counts_documents(example: Example, tmp_path: Path) -> None:
    other = recipe(seed=18)
    other["steps"] = [*other["steps"][:5], {"keep": "words.words >= 20"}, *other["steps"][6:]]
    built(example.folder, other, tmp_path / "other")
    a, b = example.manifest, Manifest.open(tmp_path / "other")

    text = diff(a, b)

    assert a.digest in text
    assert b.digest in text
    assert "recipe.seed: 17 -> 18\n" in text
    assert 'recipe.steps[5].keep: "words.words >= 10" -> "words.words >= 20"\n' in text
    contents = [
        {example.pool[int(row)]["content"] for file in range(one.token_files) for row in one.token_file(file).pool_row} for one in (a, b)
    ]
    counts = [len(contents[0]), len(contents[1]), len(contents[0] - contents[1]), len(contents[1] - contents[0])]
    assert "documents planned: {:,} in a, {:,} in b, {:,} lost, {:,} gained".format(*counts) in text
    assert facts(a, b)["order"]["same"] == 0  # another seed
    assert "order: different from the first sequence on" in text
    assert diff(a, a) == f"the same manifest, digest {a.digest}"


def test_diff_of_a_changed_input_names_the_file_and_counts_by_source_rule_and_component(example: Example, tmp_path: Path) -> None:
    for name in ("prose", "web", "code", "tokenizer"):
        if (example.folder / name).exists():
            shutil.copytree(example.folder / name, tmp_path / name)
    lines = (tmp_path / "prose" / "part-2.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "prose" / "part-2.jsonl").write_bytes(b"".join(lines[:-3]))
    (tmp_path / "prose" / "new.jsonl").write_bytes(b"".join(lines[-2:]))
    built(tmp_path, recipe(), tmp_path / "other")
    a, b = example.manifest, Manifest.open(tmp_path / "other")

    found = facts(a, b)

    assert found["inputs"] == {"prose": {"added": ["new.jsonl"], "removed": [], "changed": ["part-2.jsonl"]}}
    before, after = found["sources"]["prose"]
    assert (before["read"] - after["read"], before["read"]) == (1, a.sources["prose"]["read"])
    rules = {one["rule"] for manifest in (a, b) for source in manifest.sources.values() for one in source["dropped"]}
    assert set(found["rules"]) <= rules
    assert all(a.header["stages"][0]["components"][name.split(", ")[1]]["tokens"] == pair[0] for name, pair in found["tokens"].items())
    assert "files of prose: 1 added (new.jsonl), 1 changed (part-2.jsonl)" in diff(a, b)
    same = found["order"]["same"]
    texts = [[(s.start.tolist(), s.length.tolist()) for s in (one.spans(n, n + 1) for n in range(same))] for one in (a, b)]
    assert texts[0] == texts[1]


def test_why_of_a_near_duplicate_shows_the_longest_shared_passage_and_where_they_part(example: Example) -> None:
    row = next(row for row in example.pool if row["reason"] == "duplicate_of IS NULL" and row["key"] in example.planted.near)
    here = example.planted.text[row["key"]]
    there = example.planted.text[example.pool[row["duplicate_of"]]["key"]]
    mine, theirs = here.rstrip(".").split(), there.rstrip(".").split()
    (at,) = [place for place in range(60) if mine[place] != theirs[place]]
    longest = mine[:at] if at >= 30 else mine[at + 1 :]

    (answer,) = why(example.manifest, str(row["row"]), None, None)

    first = longest is not mine[:at] and at < 30
    begin = at + 2 if first else 1
    assert (
        f"the longest passage in both: {len(longest)} words, from word {begin} of 60 here and word {begin} of 60 in row {row['duplicate_of']}:\n"
        in answer
    )
    assert (
        f"  they part at word {at + 1}:\n    here   “{' '.join(mine[at : at + 12])}”\n    there  “{' '.join(theirs[at : at + 12])}”\n"
        in answer
    )
    quoted = re.search(r"in row \d+:\n    “(.*)”", answer)
    assert quoted is not None
    assert " ".join(longest).startswith(quoted[1].split(" … ")[0])
    assert " ".join(longest).endswith(quoted[1].split(" … ")[-1])


def test_why_of_a_copy_of_a_held_out_document_says_that_it_is_held_out(example: Example) -> None:
    row = next((row for row in example.pool if row["reason"] == "holdout"), None)
    assert row is not None

    (answer,) = why(example.manifest, str(row["row"]), None, None)

    assert f"    row {json.loads(row['evidence'])['row']} is held out\n" in answer


@pytest.mark.parametrize(
    ("here", "there", "shown"),
    [
        ("a b", "a b", ["the text of row 7, character by character"]),
        ("A, b c", "a b  c", ["the 3 words of row 7; as written they part at character 0:", "here   “A, b c”", "there  “a b c”"]),
        ("x y z", "x y z w", ["longest passage in both: 3 words, from word 1 of 3 here and word 1 of 4", "part at word 4:", "here   (the text ends here)", "there  “w”"]),
        ("q \x1b[31m r s t", "r s t", ["3 words, from word 3 of 5 here and word 1 of 3", "“r s t”", "here   “q \\x1b[31m r s t”"]),
    ],
)  # fmt: skip
def test_compared_texts_show_what_is_shared_and_where_they_part(here: str, there: str, shown: list[str]) -> None:
    found = "\n".join(compared(here, there, 7))

    for part in shown:
        assert part in found
    assert "\x1b" not in found
