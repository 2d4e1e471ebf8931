"""Commands as a person sees them on a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from recipes import PHASE, recipe, text_of, write_corpus, write_recipe, write_records
from terminals import Seen, on_terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    write_corpus(folder)
    write_recipe(folder, recipe())
    return folder


def curate(*arguments: str | Path, columns: int = 100, interrupt_at: str | None = None) -> Seen:
    code = "from curation.cli import main; from mixing import progress; progress.WORTH_A_BAR = 0; main(prog_name='curate')"
    command = [sys.executable, "-c", code, *arguments]
    return on_terminal(command, columns=columns, interrupt_at=interrupt_at)


def above(seen: Seen, first: str) -> list[str]:
    """The lines above the one that begins so."""
    return seen.last[: next(number for number, line in enumerate(seen.last) if line.startswith(first))]


@pytest.fixture(scope="module")
def building(folder: Path) -> Seen:
    return curate("build", folder / "recipe.yaml", "-o", folder / "out", columns=60)


def test_build_leaves_its_result_and_no_bar(building: Seen) -> None:
    assert building.code == 0
    assert building.cursor is not None
    assert not [line for line in building.last if "━" in line]
    phases = above(building, "small v1")
    assert len(phases) < 12
    assert [line for line in phases if line and not PHASE.fullmatch(line)] == []
    assert any(line.startswith("documents ") for line in building.last)


def test_table_that_is_too_wide_for_the_terminal_is_turned_round(folder: Path, building: Seen) -> None:
    assert {line.split()[0] for line in building.last if line} >= {"weight", "asked", "realised", "sequences", "epochs", "cuts"}
    wide = curate("inspect", folder / "out").last

    assert next(line for line in wide if line.startswith("stage adapt ")).split()[2:4] == ["weight", "asked"]


def test_verify_remix_report_index_and_export_leave_their_results_alone(folder: Path, building: Seen, tmp_path: Path) -> None:
    out = folder / "out"
    (tmp_path / "mixture.yaml").write_text(json.dumps({"mixture": recipe()["mixture"]}))
    for arguments, first in (
        (["verify", out], "ok "),
        (["remix", out, tmp_path / "mixture.yaml", "-o", tmp_path / "remixed"], "small v1"),
        (["report", out, "-o", tmp_path / "page.html"], f"{tmp_path / 'page.html'}: "[:60]),
        (["index", "add", tmp_path / "index", out], f"{tmp_path / 'index'}: "[:60]),
        (["export", out, "--to", "megatron", "-o", tmp_path / "megatron"], "stage "),
    ):
        seen = curate(*arguments, columns=200)

        assert (seen.code, seen.cursor is not None) == (0, True), arguments
        assert [line for line in above(seen, first) if line and not PHASE.fullmatch(line)] == []
        assert not [line for line in seen.last if "━" in line]


def test_interrupt_in_the_middle_of_a_bar_leaves_one_line(tmp_path: Path) -> None:
    texts = [text_of(n) * 4 for n in range(3000)]
    write_records(tmp_path / "corpus" / "a.jsonl", [{"text": text} for text in texts * 12])
    values = recipe() | {"sources": {"web": {"files": "corpus/*.jsonl"}}}
    stage = {"name": "main", "tokens": 1000, "weights": {"web": 1}}
    values["mixture"] = {"sequence_length": 128, "components": {"web": "source = 'web'"}, "stages": [stage]}

    path = write_recipe(tmp_path, values | {"steps": [], "holdout": None})
    seen = curate("build", path, "-o", tmp_path / "out", "--workers", "1", columns=120, interrupt_at="━")

    assert seen.code == 130
    assert b"^C" in seen.raw
    assert seen.last[-1] == "curate: interrupted; what was finished is kept, and the same command goes on from there"
    assert [line for line in seen.last[:-1] if not PHASE.fullmatch(line)] == []
    assert seen.cursor == (0, len(seen.last))
