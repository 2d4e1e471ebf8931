"""A persistent index as a user sees it: made by a command, named by a recipe, and what is in it is removed from new data alone."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import datasketch
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from recipes import built, near_copy, pool_of, recipe, text_of, write_recipe, write_records

from curation.cli import main
from curation.commands.explain import why
from curation.corpus import sources
from curation.corpus.sources import cut
from curation.dedup.index import Index
from curation.dedup.minhash import shingle_set
from curation.recipe import load
from mixing import UserError
from mixing.audit import verify
from mixing.manifest import Manifest

MIXTURE = {
    "sequence_length": 64,
    "components": {"all": "source IS NOT NULL"},
    "stages": [{"name": "s", "tokens": 200, "weights": {"all": 1}}],
}
STEPS = [
    {"add": {"copy_of": {"kind": "exact", "by": "normalized", "against": "../index"}}},
    {"keep": "copy_of IS NULL"},
    {"add": {"twin": {"kind": "minhash", "against": "../index"}}},
    {"keep": "twin IS NULL"},
]
OLD_STEPS = [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}]


def curate(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def done(*arguments: Any) -> str:
    result = curate(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def values(steps: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return recipe(
        sources={"a": {"files": "a/*.jsonl", "key": "id", "max_duplicates": 1}}, steps=steps, holdout=None, mixture=MIXTURE, **changes
    )


def old_manifest(folder: Path, first: int = 0, name: str = "old", texts: int = 30) -> Path:
    """A manifest of texts from `first` on, one of them twice, in a folder of its own with a work directory of its own."""
    made = [text_of(first + n) for n in range(texts)] + [text_of(first)]
    write_records(folder / name / "a/one.jsonl", [{"id": f"{name}{n}", "text": text} for n, text in enumerate(made)])
    return built(folder / name, values(OLD_STEPS, name=name), folder / name / "out").folder


NEW = [
    *(text_of(n).upper() for n in range(5)),  # copies by words
    *(near_copy(text_of(n), n) for n in range(5, 12)),
    *(text_of(500 + n) for n in range(20)),
    near_copy(text_of(500), 1),  # of a document of its own
    text_of(501),
]


def write_new(folder: Path, texts: list[str] = NEW) -> None:
    write_records(folder / "new/a/part-1.jsonl", [{"id": f"n{n}", "text": text} for n, text in enumerate(texts)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An old manifest, an index of it, and new data."""
    done("index", "add", tmp_path / "index", old_manifest(tmp_path))
    write_new(tmp_path)
    return tmp_path


def rows_dropped(manifest: Path) -> dict[int, dict[str, Any]]:
    return {row["row"]: json.loads(row["evidence"]) for row in pool_of(manifest) if row["decision"] == "dropped"}


def test_index_removes_from_the_new_what_the_old_manifest_kept_and_names_it(folder: Path) -> None:
    shutil.rmtree(folder / "old")  # nothing of it is needed again

    out = built(folder / "new", values(STEPS), folder / "out").folder

    pool = pool_of(out)
    dropped = rows_dropped(out)
    assert sorted(dropped) == [*range(12), 32, 33]
    for n in range(12):
        similarity = 1 if n < 5 else 51 / 61
        assert dropped[n] == {
            "survivor": dropped[n]["survivor"],
            "row": None,
            "similarity": similarity,
            "index": "old-v1",
            "source": "a",
            "key": f"old{n}",
        }
        shown = pool[n]["copy_of" if n < 5 else "twin"]
        assert shown == {"row": None, "index": "old-v1", "similarity": similarity}
    assert dropped[32] == {"survivor": pool[12]["origin"], "row": 12, "similarity": 51 / 61}
    assert dropped[33] == {"survivor": pool[13]["origin"], "row": 13, "similarity": 1}
    assert [row["twin"] for row in pool[12:32]] == [None] * 20
    assert all(finding.ok for finding in verify(out))
    (told,) = why(Manifest.open(out), "6", None, None)
    assert f"the same as {dropped[6]['survivor']} of 'a', key old6, in the index under 'old-v1', similarity 0.8361" in told
    assert [step["documents"] for step in Manifest.open(out).header["sources"]["a"]["dropped"]] == [6, 8]


def test_index_of_the_same_content_elsewhere_gives_one_digest_and_of_other_content_another(folder: Path) -> None:
    first = built(folder / "new", values(STEPS), folder / "out")
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "index", folder / "elsewhere/kept")
    moved = json.loads(json.dumps(STEPS).replace("../index", "../elsewhere/kept"))

    second = built(folder / "new", values(moved), folder / "second")
    done("index", "add", folder / "elsewhere/kept", old_manifest(folder, 900, "more"))
    third = built(folder / "new", values(moved), folder / "third")

    assert first.digest == second.digest != third.digest
    assert rows_dropped(folder / "third") == rows_dropped(folder / "out")  # what was added resembles nothing here
    against = Manifest.open(folder / "out").header["recipe"]["steps"][0]["add"]["against"]
    assert (against["root"], against["pattern"]) == ("against", "index.json")


def test_index_removing_a_source_and_adding_it_again_restores_both_digests(folder: Path) -> None:
    more = old_manifest(folder, 500, "aaa", texts=10)  # has new documents 12 to 21
    only = Index.open(folder / "index").digest
    done("index", "add", folder / "index", more)
    both, first = Index.open(folder / "index").digest, built(folder / "new", values(STEPS), folder / "one")

    assert f"digest {only}" in done("index", "remove", folder / "index", "aaa-v1")
    assert not (folder / "index/aaa-v1").exists()
    without = built(folder / "new", values(STEPS), folder / "two")
    done("index", "add", folder / "index", more)
    again = built(folder / "new", values(STEPS), folder / "three", folder / "another-work", workers=2)

    assert Index.open(folder / "index").digest == both != only
    assert first.digest == again.digest != without.digest
    assert set(rows_dropped(folder / "one")) - set(rows_dropped(folder / "two")) == set(range(12, 22))


def test_index_and_build_whatever_workers_memory_and_shards_are_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built(folder / "new", values(STEPS), folder / "one")
    done("index", "add", folder / "parallel", folder / "old/out", "--workers", 2)
    monkeypatch.setattr(sources, "SMALL", 0)
    monkeypatch.setattr("curation.corpus.shards.cut", partial(cut, cut_bytes=1500))
    monkeypatch.setattr("curation.engine.memory.RANGE_BYTES", 4000)

    second = built(folder / "new", values(STEPS), folder / "two", folder / "work", workers=2)

    assert Index.open(folder / "parallel").digest == Index.open(folder / "index").digest
    assert len(list((folder / "work/shards").iterdir())) > 3
    assert first.digest == second.digest


def test_index_of_plain_files_holds_every_usable_document_as_cleaned(tmp_path: Path) -> None:
    texts = [f"{text_of(n)} write to someone{n}@example.org" for n in range(8)]
    write_records(tmp_path / "benchmark.jsonl", [{"text": text} for text in texts])
    named = {"clean": ["mask_pii"], "sources": {"bench": {"files": "benchmark.jsonl"}}}
    (tmp_path / "bench.yaml").write_text(json.dumps(named))
    done("index", "add", tmp_path / "index", tmp_path / "bench.yaml", "--name", "benchmark")
    write_new(tmp_path, [text.replace("@example", "@elsewhere") for text in texts] + NEW[12:32])

    steps = [{"add": {"twin": {"kind": "exact", "against": "../index"}}}, {"keep": "twin IS NULL OR twin.index <> 'benchmark'"}]
    out = built(tmp_path / "new", values(steps, clean=["mask_pii"]), tmp_path / "out").folder

    assert sorted(rows_dropped(out)) == list(range(8))
    assert "benchmark" in done("index", "show", tmp_path / "index")
    refused = curate("index", "add", tmp_path / "index", tmp_path / "bench.yaml", "--name", "benchmark")
    assert (refused.exit_code, "has a source 'benchmark' already" in refused.output) == (2, True)
    (tmp_path / "bench.yaml").write_text(json.dumps({**named, "clean": []}))
    refused = curate("index", "add", tmp_path / "index", tmp_path / "bench.yaml", "--name", "other")
    assert "has clean ['mask_pii']; found clean []" in refused.output


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("format", 2),
        ("signatures", "0/other"),
        ("permutations", 64),
        ("seed", 7),
        ("scheme", "affine64"),
        ("words", 99),
        ("normalized", "x"),
    ],
)
def test_index_made_otherwise_is_refused_by_the_name_of_the_field_before_data_is_read(folder: Path, name: str, found: object) -> None:
    header = json.loads((folder / "index/index.json").read_text())
    (folder / "index/index.json").write_text(json.dumps(header | {name: found}))

    with pytest.raises(
        UserError, match=rf"steps\[0\]\.add\.copy_of\.against: the index .* has {name} {found!r}; this program compares with {name} "
    ):
        built(folder / "new", values(STEPS), folder / "out")

    assert not (folder / "new/.tilth/shards").exists()


def test_index_that_is_none_or_incomplete_or_cleaned_otherwise_is_refused(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"steps\[0\]\.add\.copy_of\.against: the index .* has clean \[\]; found clean \['nfc'\]; .* write clean: \[\]"
    ):
        built(folder / "new", values(STEPS, clean=["nfc"]), folder / "out")
    (part,) = (folder / "index/old-v1").iterdir()
    part.unlink()
    with pytest.raises(UserError, match=r"has lost old-v1/00000.arrow; remove the source 'old-v1' and add it again"):
        built(folder / "new", values(STEPS), folder / "out")
    shutil.rmtree(folder / "index")
    with pytest.raises(UserError, match=r"copy_of\.against: no file matches .*; an index is made with `curate index add`"):
        built(folder / "new", values(STEPS), folder / "out")
    assert "is no index" in curate("index", "show", folder / "index").output


def test_index_verify_names_the_file_that_was_changed(folder: Path) -> None:
    assert "every file is what was written" in done("index", "verify", folder / "index")
    (part,) = (folder / "index/old-v1").iterdir()
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)

    result = curate("index", "verify", folder / "index")

    assert (result.exit_code, "damaged: old-v1/00000.arrow" in result.output) == (1, True)


def test_index_add_that_was_killed_before_its_end_leaves_the_index_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Index.open(folder / "index").digest
    more = old_manifest(folder, 900, "more")

    def killed(index: Index) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("curation.commands.indexing.save", killed)
        assert curate("index", "add", folder / "index", more).exit_code == 130
    assert Index.open(folder / "index").digest == before
    done("index", "add", folder / "index", more)
    done("index", "remove", folder / "index", "more-v1")

    assert Index.open(folder / "index").digest == before


def test_index_members_as_signatures_for_other_programs_are_what_datasketch_makes(folder: Path) -> None:
    done("signatures", folder / "index", "-o", folder / "sketches.parquet")

    rows = pq.read_table(folder / "sketches.parquet").to_pylist()
    assert [row["row"] for row in rows] == list(range(30))
    for row in rows:
        sketch = datasketch.MinHash(num_perm=128, scheme="affine32", hashfunc=lambda shingle: shingle >> 32)
        sketch.update_batch(shingle_set(text_of(row["row"])))
        assert datasketch.LeanMinHash.deserialize(row["lean"], "<") == datasketch.LeanMinHash(sketch)


def test_index_groups_whose_survivor_is_a_member_are_never_gone(folder: Path) -> None:
    out = built(
        folder / "new",
        values(STEPS),
        folder / "out",
    ).folder

    told = json.loads((out / "provenance.json").read_text())["duplicates"]

    assert [(step["groups_gone"], step["sources"]["a"]["documents"], step["sources"]["a"]["own"]) for step in told] == [
        (0, 6, 1),
        (0, 8, 1),
    ]


def test_index_in_a_recipe_that_names_none_changes_nothing(folder: Path) -> None:
    config = load(write_recipe(folder / "new", values(OLD_STEPS))).steps[0].add
    assert config == {"copy_of": {"kind": "exact"}}
    built(folder / "new", values(OLD_STEPS), folder / "out")
    (step, _) = Manifest.open(folder / "out").header["recipe"]["steps"]
    assert step == {"add": {"kind": "exact", "name": "copy_of"}}
    assert pool_of(folder / "out")[33]["copy_of"] == 13
