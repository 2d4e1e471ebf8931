from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mixing import validated
from mixing.chart import lines, short, ticks
from mixing.curves import smoothed, thinned
from mixing.measurements import Measurement, append
from train.__main__ import main
from train.config import Config
from train.loop import train
from train.report import report


class Checked(html.parser.HTMLParser):
    """Every opened element is closed in order; what would be fetched is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)
        self.fetched += [str(value) for name, value in attributes if name in ("src", "href")]
        assert tag != "script"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def written_run(folder: Path, losses: list[tuple[int, float]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"tokens": tokens, "loss": 5.0, "learning_rate": 1e-3, "consumed": {"a": tokens}, "promised": {"a": float(tokens)}})
            + "\n"
            for tokens, _ in losses[1:]
        )
    )
    rows = [Measurement(folder.name, "d", None, "loss/general", "guard", tokens, None, None, 17, value, None) for tokens, value in losses]
    append(folder / "measurements.jsonl", rows)
    return folder


def test_page_shows_the_gap_and_every_run_and_fetches_nothing(tmp_path: Path) -> None:
    first = written_run(tmp_path / "first<b>", [(0, 4.0), (100, 4.5), (200, 3.9)])
    second = written_run(tmp_path / "second", [(0, 4.0), (100, 4.25), (200, 4.1)])

    page = report([first, second])

    checked = Checked()
    checked.feed(page.html)
    text = " ".join(checked.text)
    assert checked.open == []
    assert checked.fetched == []
    assert "0.5000" in text
    assert "0.2500" in text
    assert "not recovered" in text
    assert "first<b>" in text
    assert "<b>" not in page.html.replace("first&lt;b&gt;", "")
    assert set(page.charts) == {"loss-general", "training-loss", "learning-rate"}
    assert page.charts["loss-general"].count("<polyline") == 2


def test_report_command_writes_page_and_figures_of_a_real_run(manifest_folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    run = train(manifest_folder, validated(Config, settings | {"tokens": 2000}), None, tmp_path / "run")

    result = CliRunner().invoke(main, ["report", str(run), "-o", str(tmp_path / "out/report.html"), "--figures", str(tmp_path / "figures")])

    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "out/report.html")
    checked = Checked()
    checked.feed((tmp_path / "out/report.html").read_text())
    assert checked.open == []
    names = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert {"loss-code", "loss-prose", "training-loss", "learning-rate"} <= names


def test_folder_that_is_nothing_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path)])

    assert (result.exit_code, result.stdout) == (2, "")
    assert "neither a run, a sweep nor a soup" in result.stderr


def test_chart_draws_values_where_they_belong() -> None:
    svg = lines("a <title>", {"one": [(0, 1.0), (10, 2.0)], "two": [(0, float("nan")), (10, 1.5)]})

    assert "a &lt;title&gt;" in svg
    assert "nan" not in svg
    assert svg.count("<circle") == 3
    assert lines("empty", {"one": []}) == ""


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 10, [0, 2, 4, 6, 8, 10]), (3.9, 4.6, [4.0, 4.2, 4.4, 4.6]), (5, 5, [5])])
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_counts_are_short() -> None:
    assert [short(value) for value in (0, 950, 250_000, 1_500_000, 2e9)] == ["0", "950", "250K", "1.5M", "2B"]


def test_long_curves_keep_their_ends_and_means() -> None:
    curve = [(float(n), float(n % 2)) for n in range(1000)]

    assert thinned(curve)[0] == curve[0]
    assert thinned(curve)[-1] == curve[-1]
    assert all(value == pytest.approx(0.5, abs=0.06) for _, value in smoothed(curve)[:-1])
