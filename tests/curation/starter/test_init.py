"""`curate init`: what it finds in files of every kind, and that the recipe it writes builds without an edit."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from recipes import near_copy, text_of, write_file, write_records, write_tokenizer

from curation.cli import main
from curation.starter.prospect import prospect
from mixing.manifest import Manifest


def curate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def records(seed: int, count: int = 60, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"{seed}-{index}", "text": text_of(1000 * seed + index), **more} for index in range(count)]


def lines(some: list[Any]) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in some)


def write_mixed(folder: Path) -> None:
    """Texts in six formats, a benchmark, evaluation texts, a damaged file with duplicates, and files that are no records."""
    write_file(folder / "wiki" / "part-0.jsonl.gz", lines(records(1)))
    write_file(folder / "wiki" / "part-1.jsonl.zst", lines(records(2)))
    write_records(
        folder / "papers" / "2023" / "a.parquet",
        [{"title": "On soil", "abstract": text_of(3000 + n), "year": 2023, "pmid": n} for n in range(60)],
    )
    write_records(
        folder / "papers" / "2024" / "b.parquet",
        [{"title": "On rain", "abstract": text_of(3100 + n), "year": 2024, "pmid": 100 + n} for n in range(60)],
    )
    (folder / "forum").mkdir()
    with (folder / "forum" / "posts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user", "posting"])
        table.writerows([f"u{n}", text_of(4000 + n)] for n in range(60))
    for number in range(30):
        write_file(folder / "notes" / f"{number}.md", text_of(5000 + number).encode())
    broken = [b'{"id": 1, "text": "cut', b"[1]", b'{"id": 2}', b'{"text": 3}', b'{"text": "\xff"}'] * 2
    copies = [{**one, "id": f"again {index}"} for index, one in enumerate(records(6)[:10])]
    near = [{"id": f"near {index}", "text": near_copy(one["text"], index)} for index, one in enumerate(records(6)[10:20])]
    write_file(folder / "messy" / "all.jsonl", lines([*records(6), *copies, *near, *broken]))
    items = [{"id": n, "question": text_of(7000 + n, 12), "choices": ["a", "b"], "answer_idx": 1} for n in range(20)]
    write_records(folder / "exam" / "items.parquet", items)
    write_file(folder / "evals" / "set.jsonl", lines(records(8)))
    write_file(folder / "probe" / "found.jsonl", lines(records(9, task="mmlu", question_id="mmlu/1")))
    write_file(folder / "files.json", b'[{"text": "x"}]')
    write_file(folder / "meta.json", json.dumps({"rows": 3}, indent=1).encode())
    write_file(folder / "README.md", b"# About this corpus")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("init")
    write_mixed(made / "corpus")
    result = curate("init", made / "corpus", "-o", made / "recipe.yaml")
    assert result.exit_code == 0, result.output
    (made / "stdout.txt").write_text(result.stdout)
    return made


@pytest.fixture(scope="module")
def values(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((folder / "recipe.yaml").read_text())
    return loaded


def built(recipe: Path, out: Path, *more: str) -> Manifest:
    result = curate("build", recipe, "-o", out, "--work", out.parent / "work", "--workers", "1", *more)
    assert result.exit_code == 0, result.output
    return Manifest.open(out)


def test_recipe_of_mixed_files_builds_without_an_edit_and_trains_on_no_evaluation_text(folder: Path, tmp_path: Path) -> None:
    manifest = built(folder / "recipe.yaml", tmp_path / "out")

    assert set(manifest.sources) == {"forum", "notes", "papers", "wiki", "messy"}
    assert {name: one["read"] for name, one in manifest.sources.items()} == {
        "forum": 60,
        "notes": 30,
        "papers": 120,
        "wiki": 120,
        "messy": 90,
    }
    assert manifest.sources["messy"]["quarantined"] == 10
    assert manifest.header["recipe"]["steps"][4]["add"]["kind"] == "contamination"
    paths = [one["path"] for source in manifest.sources.values() for one in source["inputs"]]
    assert not any("set.jsonl" in path or "items" in path or "found" in path for path in paths)


def test_weighted_stage_in_the_comments_builds_too(folder: Path, tmp_path: Path) -> None:
    text = (folder / "recipe.yaml").read_text()
    weighted = re.search(r"# (- \{name: main, tokens: \d+, weights: .*)", text)
    assert weighted is not None
    text = re.sub(r"- \{name: main, tokens: all.*", lambda _: weighted[1], text, count=1)
    (folder / "weighted.yaml").write_text(text)

    manifest = built(folder / "weighted.yaml", tmp_path / "out")

    stage = manifest.stages[0]
    assert stage["tokens"] == stage["asked_tokens"] > 0
    assert stage["components"]["wiki"]["weight"] == pytest.approx(0.25, abs=0.01)  # the replay


def test_text_and_key_are_told_by_what_the_columns_hold(values: dict[str, Any]) -> None:
    sources = values["sources"]

    assert (sources["papers"]["text"], sources["papers"]["key"]) == ("abstract", "pmid")
    assert sources["forum"]["text"] == "posting"
    assert "key" not in sources["forum"]
    assert [file.rpartition("/")[2] for file in sources["wiki"]["files"]] == ["*.jsonl.gz", "*.jsonl.zst"]
    assert sources["messy"]["max_quarantine"] > 10 / 90


def test_what_is_no_source_is_said_with_its_reason(folder: Path) -> None:
    for text in ((folder / "recipe.yaml").read_text(), (folder / "stdout.txt").read_text()):
        for file, why in (
            ("exam/items.parquet", "enchmark"),
            ("evals/set.jsonl", "evaluation by its folder"),
            ("probe/found.jsonl", "evaluation by its columns"),
            ("files.json", "one JSON array"),
            ("meta.json", "one JSON document"),
            ("README.md", "a page about the data"),
        ):
            assert re.search(rf"{file}.*{why}|{why}[^\n]*(\n#[^\n]*)?{file}", text), (file, why)


def test_same_files_written_in_another_order_give_the_same_recipe(folder: Path, tmp_path: Path) -> None:
    for path in sorted((folder / "corpus").rglob("*"), reverse=True):
        if path.is_file():
            write = tmp_path / path.relative_to(folder)
            write.parent.mkdir(parents=True, exist_ok=True)
            write.write_bytes(path.read_bytes())

    assert curate("init", tmp_path / "corpus", "-o", tmp_path / "recipe.yaml").exit_code == 0

    ours, theirs = ((one / "recipe.yaml").read_text().replace(str(one), "") for one in (tmp_path, folder))
    assert ours == theirs


def test_base_model_gives_tokenizer_sequence_length_and_advice(tmp_path: Path) -> None:
    write_file(tmp_path / "law" / "a.jsonl", lines(records(1)))
    write_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 128}')

    result = curate("init", tmp_path / "law", "-o", tmp_path / "recipe.yaml", "--base", tmp_path / "model")

    text = (tmp_path / "recipe.yaml").read_text()
    loaded = yaml.safe_load(text)
    assert result.exit_code == 0
    assert loaded["tokenizer"] == {"path": str(tmp_path / "model"), "eos": True}
    assert loaded["mixture"]["sequence_length"] == 128
    assert "docs/guides/synthesize.md" in text
    built(tmp_path / "recipe.yaml", tmp_path / "out")


def test_tokenizer_among_the_files_is_taken_and_no_byte_tokenizer_written(tmp_path: Path) -> None:
    write_file(tmp_path / "law" / "a.jsonl", lines(records(1)))
    write_tokenizer(tmp_path / "law" / "tokenizer")

    assert curate("init", tmp_path / "law", "-o", tmp_path / "recipe.yaml").exit_code == 0

    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["tokenizer"]["path"].endswith("law/tokenizer/tokenizer.json")
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/x.jsonl", "b/y.jsonl"], ["a", "b"]),
        (["2023/x.jsonl", "2024/y.jsonl", "year=2025/z.jsonl"], ["data_set"]),
        (["part-00000.jsonl", "part-00001.jsonl"], ["data_set"]),
        (["code-0.jsonl", "code-1.jsonl", "prose.jsonl.gz"], ["code", "prose"]),
        (["a/1/x.jsonl", "a/2/y.jsonl.gz"], ["a"]),
    ],
)  # fmt: skip
def test_files_are_sources_by_their_folders_or_their_stems(tmp_path: Path, files: list[str], names: list[str]) -> None:
    for number, name in enumerate(files):
        write_file(tmp_path / "data set" / name, lines(records(number, 5)))

    found = prospect([str(tmp_path / "data set")], tmp_path)

    assert [one.name for one in found.sources] == names
    assert sum(len(one.files) for one in found.sources) == len(files)


def test_each_of_several_paths_is_a_source(tmp_path: Path) -> None:
    for name in ("one/a/x.jsonl", "one/b/y.jsonl", "two/z.jsonl"):
        write_file(tmp_path / name, lines(records(len(name), 5)))

    found = prospect([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path)

    assert [(one.name, len(one.files)) for one in found.sources] == [("one", 2), ("two", 1)]


def test_question_and_answer_become_one_text(tmp_path: Path) -> None:
    write_file(tmp_path / "qa" / "a.jsonl", lines([{"question": f"What is {text_of(n, 8)}", "answer": text_of(n, 30)} for n in range(40)]))

    assert curate("init", tmp_path / "qa", "-o", tmp_path / "recipe.yaml").exit_code == 0

    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["sources"]["qa"]["text"] == "question || '\n' || answer"
    assert built(tmp_path / "recipe.yaml", tmp_path / "out").sources["qa"]["kept"] == 38


def test_awkward_names_copies_and_optional_columns_give_a_recipe_that_builds(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_records(corpus / "paren" / "a.parquet", [{"text (en)": text_of(n), "n": n} for n in range(40)])
    write_file(corpus / "spa ce [x]" / "a b.jsonl", lines([{"Full Text": text_of(100 + n), "meta": {"k": [1]}} for n in range(40)]))
    write_file(corpus / "spa ce [x]" / "c*d.jsonl", lines([{"Full Text": text_of(200 + n)} for n in range(40)]))
    write_file(corpus / "true" / "a.jsonl", lines(records(3, 30)).decode().encode("utf-16"))
    write_file(corpus / "mirror" / "a.jsonl", lines(records(4, 30)))
    write_file(corpus / "zz_mirror" / "b.jsonl", lines(records(4, 30)[::-1]))  # every text is in `mirror`
    write_file(corpus / "same" / "a.jsonl", lines([{"text": "one and the same", "n": n} for n in range(40)]))
    for number in range(100):
        write_file(corpus / "many" / str(number % 7) / f"{number}.txt", text_of(1000 + number).encode())

    result = curate("init", corpus, "-o", tmp_path / "recipe.yaml")

    assert result.exit_code == 0, result.output
    assert "zz_mirror/b.jsonl: every text of it stands in an earlier source" in result.stdout
    assert "same/a.jsonl: of its 40 texts hardly any is left without copies" in result.stdout
    read = {name: one["read"] for name, one in built(tmp_path / "recipe.yaml", tmp_path / "out").sources.items()}
    assert read == {"many": 100, "mirror": 30, "paren": 40, "spa_ce_x": 80, "true": 30}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere"], "nowhere: no such file or folder; name what holds your texts"),
        (["nothing"], "nothing: a folder without files"),
        (["*.nothing"], "no file matches '*.nothing'"),
        (["empty"], "found no texts in empty; empty/a.json: one JSON array"),
        (["pages"], "pages/a.pdf: its text has to be extracted first"),
        (["packed"], "packed/a.tar.gz: an archive"),
        (["same"], "hardly any is left without copies; accepted: files with texts of their own"),
        (["ok", "-o", "recipe.yaml"], "exists; choose another name, or pass --replace"),
        (["ok", "-o", "no/folder.yaml"], "no folder"),
        (["ok", "-o", "new.yaml", "--base", "/no/such/model"], "does not exist"),
    ],
)  # fmt: skip
def test_refusal_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "ok" / "a.jsonl", lines(records(1, 5)))
    write_file(tmp_path / "empty" / "a.json", b'[{"text": "x"}]')
    (tmp_path / "nothing" / "below").mkdir(parents=True)
    write_file(tmp_path / "pages" / "a.pdf", b"%PDF-1.7")
    write_file(tmp_path / "packed" / "a.tar.gz", gzip.compress(b"a.txt"))
    write_file(tmp_path / "same" / "a.jsonl", lines([{"text": "one and the same", "n": n} for n in range(40)]))
    if part.startswith("exists"):
        (tmp_path / "recipe.yaml").write_text("mine")

    result = curate("init", *arguments)

    assert result.exit_code == 2
    assert result.stderr.startswith("curate: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr
    written = [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert written == (["recipe.yaml"] if part.startswith("exists") else [])
