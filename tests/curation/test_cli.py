"""`curate` as a person meets it: a process, its exit code, what stands on stdout and on stderr."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from recipes import pool_of, recipe, said, write_corpus, write_file, write_recipe, write_records

from curation import terminal
from curation.cli import main
from curation.engine.work_directory import Work
from mixing.manifest import Manifest

ROOT = Path(__file__).parents[2]
VERBS = ("init", "build", "inspect", "verify", "show", "why", "diff", "remix", "export")


def curate(*arguments: str | Path) -> Result:
    """The command in this process, its streams apart."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a recipe, and the manifest `out` that it makes."""
    made = tmp_path_factory.mktemp("cli")
    write_corpus(made, 30)
    write_records(made / "bare.parquet", [{"body": "x"}])
    write_file(made / "half.jsonl", b'{"text": "good"}\nbroken\n')
    path = write_recipe(made, recipe())
    result = curate("build", path, "-o", made / "out", "--workers", "1")
    assert result.exit_code == 0, result.stderr
    return made


# --- refusals


def source(**config: Any) -> dict[str, Any]:
    return {"sources": {"web": {"files": "web/*.jsonl.zst", "key": "id", "columns": ["score"], "max_quarantine": 0.5, **config}}}


def mixture(**changes: Any) -> dict[str, Any]:
    return {"mixture": {**recipe()["mixture"], **changes}}


def step(**values: Any) -> dict[str, Any]:
    return {"steps": [values]}


TOO_MUCH = [{"name": "adapt", "tokens": "9M", "weights": {"domain": 0.5, "replay": 0.5}}]
FEW = {"kind": "fasttext", "train": {"positive": {"sample": "code"}, "negative": "half.jsonl"}}


@pytest.mark.parametrize(
    ("changes", "arguments", "part"),
    [
        ({"sedd": 1}, [], "unknown key 'sedd'"),
        (source(files="nowhere/*.jsonl"), [], "no file matches 'nowhere/*.jsonl'"),
        (source(files="bare.parquet"), [], "no column 'text' in bare.parquet"),
        (source(files="corpora:x.jsonl"), [], "no root named 'corpora'"),
        ({**source(files="half.jsonl", max_quarantine=0.4), "steps": []}, [], "1 of 2 records cannot be used (50.0%, the limit is 40.0%)"),
        (step(keep="qualty > 3"), [], "names 'qualty', which is no column"),
        (step(keep="AVG(score) > 3"), [], "an aggregate"),
        (step(keep="score"), [], "a rule is Boolean"),
        (step(add={"q": {"kind": "bert"}}), [], "accepted: causal_lm, contamination, exact, fasttext, heuristics, importance, language, listed, minhash, ngram, privacy, repeated_paragraphs, repeated_spans, topic"),
        (step(add={"q": FEW}), [], "fasttext: "),
        (mixture(stages=TOO_MUCH), [], "domain"),
        (mixture(stages=[{**TOO_MUCH[0], "weights": {"domian": 1}}]), [], "no component 'domian'"),
        (mixture(components={"domain": "1 = 1", "replay": "source = 'prose'"}), [], "set mixture.first_match: true"),
        ({"tokenizer": {"path": "nowhere"}}, [], "tokenizer"),
        ({}, ["seed"], "is no override"),
        ({}, ["seed=x"], "seed: found 'x'"),
        ({}, ["--root", "x"], "write NAME=PATH"),
    ],
)  # fmt: skip
def test_user_error_is_one_line_on_stderr_exit_code_2_and_nothing_written(
    folder: Path, tmp_path: Path, changes: dict[str, Any], arguments: list[str], part: str
) -> None:
    path = write_recipe(folder, recipe(**changes), "wrong.yaml")

    result = curate("build", path, *arguments, "-o", tmp_path / "out", "--work", tmp_path / "work", "--workers", "1")

    assert result.exit_code == 2, (result.exception, result.output)
    assert result.stdout == ""
    assert said(result.stderr).startswith("curate: ")
    assert said(result.stderr).endswith("\n")
    assert said(result.stderr).count("\n") == 1
    assert part in result.stderr
    assert not (tmp_path / "out").exists()


def test_user_error_of_a_real_process_is_one_line_too(folder: Path, tmp_path: Path) -> None:
    path = write_recipe(folder, recipe(**step(add={"q": FEW})), "few.yaml")
    arguments = ["build", path, "-o", tmp_path / "out", "--work", tmp_path / "work", "--workers", "2"]
    command = [sys.executable, "-c", "from curation.cli import main; main()", *arguments]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert said(done.stderr).count("\n") == 1
    assert said(done.stderr).startswith("curate: fasttext: ")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["inspect", "nowhere"], "nowhere"),
        (["show", "out", "--reason", "nonsense"], "no document matches; reasons in"),
        (["show", "out", "--source", "wiki"], "the manifest has: "),
        (["show", "out", "--work", "nowhere"], "not the work directory of"),
        (["why", "out", "no such key"], "no row, key or origin"),
        (["why", "out", "²"], "no row, key or origin"),
        (["why", "out", "9" * 30], "rows run from 0 to"),
        (["why", "out", "--text", "never written"], "no document of"),
        (["why", "out", "--text", "@nowhere.txt"], "no such file"),
        (["why", "out"], "one of them"),
        (["why", "out", "3", "--text", "x"], "one of them"),
        (["diff", "out", "nowhere"], "nowhere"),
        (["export", "nowhere", "--to", "mds", "-o", "exported"], "nowhere"),
        (["export", "out", "--to", "mds", "-o", "out"], "choose another folder"),
        (["export", "out", "--to", "megatron", "-o", "exported", "--compression", "zstd"], "only mds has compressed shards"),
    ],
)
def test_user_error_of_a_reading_verb_is_one_line_and_exit_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str
) -> None:
    monkeypatch.chdir(folder)

    result = curate(*arguments)

    assert result.exit_code == 2, (result.exception, result.output)
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert part in result.stderr


def test_a_build_while_another_holds_the_work_directory_is_refused(folder: Path) -> None:
    with Work(folder / ".tilth").locked():
        result = curate("build", folder / "recipe.yaml", "-o", folder / "out", "--workers", "1")

    assert result.exit_code == 2
    assert "another build holds it" in result.stderr


def test_an_output_of_another_digest_is_refused_and_the_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    result = curate("build", folder / "recipe.yaml", "seed=18", "-o", folder / "out", "--work", tmp_path / "work", "--workers", "1")
    assert result.exit_code == 2
    assert "curate diff" in result.stderr

    result = curate("build", folder / "recipe.yaml", "--dry-run", "-o", tmp_path / "out", "--work", tmp_path / "dry", "--workers", "1")
    assert result.exit_code == 0
    assert "nothing was written" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


# --- help and answers


def test_help_lists_every_verb_with_a_sentence() -> None:
    result = curate("--help")

    assert result.exit_code == 0
    listed = {
        line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.split("Commands:")[1].strip().splitlines() if line.strip()
    }
    assert set(VERBS) <= set(listed)
    for verb in VERBS:
        assert curate(verb, "--help").exit_code == 0
        assert len(listed[verb]) > 20


def test_inspect_json_is_the_header_with_digest_effective_tokens_and_duplicates(folder: Path) -> None:
    header = json.loads((folder / "out" / "manifest.json").read_text())

    facts = json.loads(curate("inspect", folder / "out", "--json").stdout)

    assert len(facts.pop("digest")) == 64
    for stage, known in zip(facts["stages"], header["stages"], strict=True):
        assert stage.pop("effective_tokens") == sum(one["effective_tokens"] for one in stage["components"].values())
        for name, one in stage["components"].items():
            unique = known["components"][name]["unique_tokens"]
            assert unique <= one.pop("effective_tokens") <= known["components"][name]["tokens"]
    facts.pop("trained")
    for step in facts.pop("duplicates"):
        for name, counted in step["sources"].items():
            dropped = [one["documents"] for one in header["sources"][name]["dropped"] if one["step"] == step["step"]]
            assert [counted["documents"]] == (dropped or [0])
            assert counted["own"] <= counted["documents"]
    assert facts == header


def test_inspect_shows_the_funnel_whose_lines_add_up(folder: Path) -> None:
    result = curate("inspect", folder / "out")

    rows = {line.split("  ")[0].strip(): line.split()[-1] for line in result.stdout.splitlines() if line.strip()}
    count = {name: int(value.replace(",", "")) for name, value in rows.items() if value.replace(",", "").isdigit()}
    parts = [value for name, value in count.items() if name.startswith(("quarantined", "dropped", "held out", "kept"))]
    assert count["read"] == sum(parts) == len(pool_of(folder / "out"))


def test_build_that_chooses_at_random_names_the_choice_in_its_report(folder: Path) -> None:
    chosen = {"top": {"order": "random", "where": "source = 'code'", "documents": 12}}
    path = write_recipe(folder, recipe(name="drawn", steps=[chosen]), "drawn.yaml")

    result = curate("build", path, "-o", folder / "drawn", "--workers", "1")

    assert result.exit_code == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if "top 12 documents, random" in line)
    assert int(line.split()[-1]) == sum(
        row["reason"] is not None and row["reason"].startswith("top: ") for row in pool_of(folder / "drawn")
    )


def test_verify_says_what_holds_and_exits_1_when_something_does_not(folder: Path, tmp_path: Path) -> None:
    good = curate("verify", folder / "out")
    assert good.exit_code == 0
    assert "FAIL" not in good.stdout

    as_json = json.loads(curate("verify", folder / "out", "--json").stdout)
    assert {entry["verdict"] for entry in as_json} <= {"ok", "finding"}

    shutil.copytree(folder / "out", tmp_path / "bad")
    path = tmp_path / "bad" / "manifest.json"
    path.write_text(path.read_text().replace('"kept":', '"kept":1', 1))
    bad = curate("verify", tmp_path / "bad")
    assert bad.exit_code == 1
    assert "FAIL" in bad.stdout


def test_build_unchanged_says_so_in_one_line(folder: Path) -> None:
    result = curate("build", folder / "recipe.yaml", "-o", folder / "out", "--workers", "1")

    assert result.exit_code == 0
    assert result.stdout.startswith("unchanged: ")
    assert result.stderr == ""


@pytest.mark.parametrize(("word", "meant"), [("inspct", "'inspect'"), ("biuld", "'build'"), ("remx", "'remix'")])
def test_misspelt_command_is_answered_with_the_one_meant(word: str, meant: str) -> None:
    result = curate(word, "x")

    assert result.exit_code == 2
    assert meant in result.stderr


def test_misspelt_key_is_answered_with_the_one_meant(folder: Path) -> None:
    result = curate("build", write_recipe(folder, recipe(sedd=1), "sedd.yaml"))

    assert "unknown key 'sedd', perhaps 'seed'; accepted here: " in result.stderr


def test_build_ends_with_the_budget_and_the_next_command_and_writes_no_control_character_into_a_log(folder: Path, tmp_path: Path) -> None:
    arguments = ["build", folder / "recipe.yaml", "-o", tmp_path / "out", "--work", tmp_path / "work", "--workers", "2"]
    command = [sys.executable, "-c", "from curation.cli import main; main()", *arguments]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 0
    assert not any(ord(character) < 32 and character != "\n" for character in done.stdout + done.stderr)
    assert done.stdout.index("stage adapt") > done.stdout.index("documents ")
    assert (
        done.stdout.splitlines()[-1]
        == f"next: curate verify {tmp_path / 'out'}; curate show {tmp_path / 'out'}; python -m train run {tmp_path / 'out'} CONFIG"
    )


@pytest.mark.parametrize(("sources", "first"), [(2, "read"), (9, "source-0")])
def test_table_by_source_is_turned_round_where_the_sources_are_many(sources: int, first: str) -> None:
    names = [f"source-{number}" for number in range(sources)]
    rows = [
        ["documents", *names, "all"],
        ["read", *(str(number) for number in range(sources)), "99"],
        ["kept", *("7" for _ in names), "88"],
    ]

    lines = terminal.by_source(rows).splitlines()

    assert lines[1].split()[0] == first
    assert max(map(len, lines)) < 80
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert (cells["source-1"] == ["1", "7"]) if sources > 6 else (cells["read"] == ["0", "1", "99"])
    assert sources <= 6 or lines[-2:] == ["  1  read", "  2  kept"]


def test_diff_for_a_program_has_the_digests_and_the_changes(folder: Path) -> None:
    found = json.loads(curate("diff", folder / "out", folder / "out", "--json").stdout)

    assert found["a"] == found["b"] == Manifest.open(folder / "out").digest
    assert (found["changed"], found["sources"], found["tokens"]) == ({}, {}, {})
    assert found["order"]["same"] == Manifest.open(folder / "out").sequences


def test_diff_of_a_manifest_with_itself_is_nothing(folder: Path) -> None:
    assert curate("diff", folder / "out", folder / "out").stdout.startswith("the same manifest, digest ")


@pytest.mark.parametrize("to", ["megatron", "mds"])
def test_export_says_what_it_wrote_per_stage(folder: Path, tmp_path: Path, to: str) -> None:
    result = curate("export", folder / "out", "--to", to, "-o", tmp_path / "exported")

    assert (result.exit_code, said(result.stderr)) == (0, "")
    facts = json.loads((tmp_path / "exported" / "export.json").read_text())
    line = next(line.split() for line in result.stdout.splitlines() if line.startswith("adapt"))
    assert line == [
        "adapt",
        *(f"{facts['stages'][0][key]:,}" for key in ("sequences", "tokens", "padding", "pieces", "boundaries_without_eos")),
    ]


def test_full_disk_during_an_export_is_one_line_and_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(np, "save", full)

    result = curate("export", folder / "out", "--to", "megatron", "-o", tmp_path / "exported")

    assert (result.exit_code, result.stdout, said(result.stderr).count("\n")) == (2, "", 1)
    assert "no room left on the disk for " in result.stderr
    assert list(tmp_path.iterdir()) == []


# --- on a cluster


@pytest.mark.parametrize(("option", "place"), [("--work", "s3://bucket/work"), ("-o", "gs://bucket/m")])
def test_a_folder_that_is_written_to_in_an_object_store_is_refused(folder: Path, option: str, place: str) -> None:
    result = curate("build", folder / "recipe.yaml", option, place)

    assert result.exit_code == 2
    assert result.stderr.startswith(f"curate: {option} {place}: a build writes to a file system")
    assert result.stderr.count("\n") == 1


def test_engine_ray_without_ray_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    result = curate("build", folder / "recipe.yaml", "-o", tmp_path / "out", "--work", tmp_path / "work", "--engine", "ray")

    assert result.exit_code == 2
    assert result.stderr == "curate: --engine ray: Ray is not installed; install `tilth[ray]` on every node, or leave --engine out\n"


def test_an_address_of_ray_without_its_engine_is_refused(folder: Path, tmp_path: Path) -> None:
    result = curate("build", folder / "recipe.yaml", "-o", tmp_path / "out", "--work", tmp_path / "work", "--ray-address", "head:6379")

    assert result.exit_code == 2
    assert result.stderr == "curate: --ray-address head:6379: the engine is local; add --engine ray, or leave the address out\n"
    assert not (tmp_path / "work").exists()
