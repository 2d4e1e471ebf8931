"""`curate clean`: what no recent build refers to goes, and nothing that one refers to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from recipes import built, recipe, write_corpus

from curation.cli import main
from curation.commands.cleanup import survey, sweep
from curation.commands.explain import why
from curation.engine.work_directory import Work
from mixing import UserError
from mixing.manifest import Manifest


@pytest.fixture
def two_builds(tmp_path: Path) -> tuple[Path, str]:
    """A work directory with an old build of `words` and a new one without; and the new one's digest."""
    write_corpus(tmp_path, size=15)
    values = recipe(holdout={"documents": 1})
    values["mixture"]["stages"][0]["tokens"] = 2000
    values["sources"]["web"]["max_quarantine"] = 0.5
    built(tmp_path, values, tmp_path / "old")
    work = tmp_path / ".tilth"
    for path in (work / "builds").iterdir():
        os.utime(path, (time.time() - 40 * 86400,) * 2)
    values["steps"] = values["steps"][:4]
    return work, built(tmp_path, values, tmp_path / "new").digest


def names(work: Path) -> set[str]:
    return {
        path.relative_to(work).as_posix() for room in ("shards", "sidecars", "models", "builds", "log") for path in (work / room).glob("*")
    }


def test_sweep_removes_what_only_an_old_build_refers_to(two_builds: tuple[Path, str], tmp_path: Path) -> None:
    work, digest = two_builds
    (work / "shards" / ".left.part").mkdir()
    found = survey(work, 30)
    gone = {entry.path.relative_to(work).as_posix() for entries in found.values() for entry in entries if not entry.used}
    before = names(work)
    assert sweep(work, 30) == sum(entry.bytes for entries in found.values() for entry in entries if not entry.used) > 0

    assert before - names(work) == gone & before
    assert [path.split("/")[0] for path in sorted(gone)] == ["builds", "log", "shards", "sidecars"]  # of `words`, and what a kill left
    assert next(iter(why(Manifest.open(tmp_path / "new"), "0", None, work)))
    assert not [entry for entries in survey(work, 30).values() for entry in entries if not entry.used]
    values = recipe(holdout={"documents": 1})
    values["mixture"]["stages"][0]["tokens"] = 2000
    values["sources"]["web"]["max_quarantine"] = 0.5
    values["steps"] = values["steps"][:4]
    again = built(tmp_path, values, tmp_path / "again")
    assert again.digest == digest
    assert sum(again.computed.values()) == 0


def test_sweep_while_a_build_holds_the_lock_is_refused(two_builds: tuple[Path, str]) -> None:
    work, _ = two_builds
    before = names(work)
    with Work(work).locked(), pytest.raises(UserError, match="another build holds it"):
        sweep(work, 0)
    assert names(work) == before


def test_clean_shows_rooms_and_asks_before_it_removes(two_builds: tuple[Path, str], tmp_path: Path) -> None:
    work, _ = two_builds
    before = names(work)
    shown = CliRunner().invoke(main, ["clean", "--work", str(work), "--dry-run"])
    assert shown.exit_code == 0
    assert [line.split()[:2] for line in shown.output.splitlines()][:2] == [
        ["room", "entries"],
        ["shards", str(len(list((work / "shards").iterdir())))],
    ]
    refused = CliRunner().invoke(main, ["clean", "--work", str(work)])
    assert refused.exit_code == 2
    assert names(work) == before
    assert CliRunner().invoke(main, ["clean", "--work", str(work), "--yes"]).exit_code == 0
    assert names(work) < before
    assert CliRunner().invoke(main, ["clean", "--work", str(tmp_path / "nowhere"), "--yes"]).exit_code == 2
    assert CliRunner().invoke(main, ["clean", "--work", str(tmp_path / "new"), "--yes"]).exit_code == 2
