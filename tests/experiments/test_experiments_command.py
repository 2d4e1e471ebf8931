"""`python -m experiments` with what a tired person gives it: one sentence each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.rig import corpora

ROOT = Path(__file__).parents[2]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder for each corpus, with nothing in it."""
    for kind in corpora.kinds():
        (tmp_path / "given" / kind).mkdir(parents=True)
    return tmp_path / "given"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["claims"], "--corpora: found None; give the folder"),
        (["claims", "--corpora", "nowhere"], "--corpora: found nowhere; give the folder"),
        (["run", "replayy"], "replayy: no such claim; there are: flagship, "),
        (["run"], "run: name one claim or more of: flagship, "),
        (["claims", "--domains", "medical,chemistry"], "--domains: found 'chemistry'; there are medical, math"),
        (["claims", "--seeds", "11,b"], "--seeds: found '11,b'; whole numbers with commas between"),
        (["claims", "--jobs", "0"], "--jobs: found '0'; a whole number from 1"),
    ],
)
def test_wrong_word_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_empty_corpus_is_one_sentence(given: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="books_en: no text in its folder"):
        main(["claims", "--corpora", str(given), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")])


def test_interrupt_is_one_sentence(given: Path, tmp_path: Path) -> None:
    held = given / corpora.kinds()[0] / "part.jsonl.zst"
    os.mkfifo(held)
    places = ["--corpora", str(given), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    process = subprocess.Popen([sys.executable, "-m", "experiments", "claims", *places], cwd=ROOT, stderr=subprocess.PIPE, text=True)

    with held.open("wb"):  # opens when it is read
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert errors == "interrupted; what was finished is kept, and the same command goes on from there\n"
