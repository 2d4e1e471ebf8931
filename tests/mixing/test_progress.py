"""Progress as a person sees it: on a terminal of some width, on a dumb one, and in a file. Time goes by a clock that the program under test sets itself."""

from __future__ import annotations

import re
import subprocess
import sys
from time import sleep

import pytest
from terminals import ROOT, Seen, on_terminal

from mixing import progress

PROGRAM = """
import sys, time
from mixing import progress

class Clock:
    now = 0.0
    def monotonic(self): return self.now

clock = progress.time = Clock()
progress.BEAT = 0.05

def look():
    time.sleep(0.7)  # of the screen, several times

with progress.Progress(lambda: 2_100_000_000) as bars:
    bars.begin("hash", 3)
    clock.now += 0.4
    bars.end()
    bars.begin("read", 1000, "documents")
    bars.advance(250)
    clock.now += 10
    look()
    bars.advance(750)
    clock.now += 30
    bars.end()
    for part in (2, 7, 1):
        bars.begin("find copies", part)
        clock.now += 0.5
        bars.end()
    bars.begin("plan", 1)
    clock.now += 3700
    look()
    bars.end()
    bars.begin("ask", 1)
    bars.reach(0.5, "7 asked, 90% usable")
    clock.now += 5
    look()
    END
    bars.end()
    for name in "abcd":
        bars.begin(name, 1)
        clock.now += 0.3
        bars.end()
print("done")
"""
LINES = [
    "read                                               1,000 documents     40.0 s",
    "find copies                                                7 parts      1.5 s",
    "plan                                                              1 h 01 m",
    "ask                                            7 asked, 90% usable      5.0 s",
    "5 shorter phases                                                        1.6 s",
]


def program(end: str = "pass") -> list[str]:
    return [sys.executable, "-c", PROGRAM.replace("END", end)]


@pytest.fixture(scope="module")
def wide() -> Seen:
    return on_terminal(program(), columns=100)


def squeezed(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def test_on_a_terminal_bars_vanish_and_a_line_stays_for_what_took_a_second(wide: Seen) -> None:
    assert wide.code == 0
    assert squeezed(wide.last) == squeezed([*LINES, "", "done"])
    assert {len(line) for line in wide.last if line not in ("", "done")} == {progress.WIDTH}
    assert wide.cursor == (0, len(wide.last))


def test_the_bar_says_share_rate_memory_and_time_left(wide: Seen) -> None:
    bars = {line.split()[0]: line for screen in wide.screens for line in screen if "━" in line}
    assert bars["read"].endswith("━  25%  25 documents/s  2.1 GB  0:30 left")
    assert bars["plan"].endswith("━  2.1 GB  1:01:40 so far")  # nobody knows how much there is
    assert bars["ask"].endswith("━  50%  7 asked, 90% usable  2.1 GB  0:05 left")
    assert "hash" not in bars


@pytest.mark.parametrize("columns", [46, 60, 80])
def test_on_a_narrow_terminal_nothing_wraps(columns: int) -> None:
    seen = on_terminal(program(), columns=columns)

    waiting = [screen[-1] for screen in seen.screens if screen and re.search("left|so far|GB", screen[-1])]
    assert {line.split()[0] for line in waiting} == {"read", "plan", "ask"}
    assert max(len(line) for line in waiting) <= columns - progress.ECHO
    assert [line.split()[0] for line in seen.last if line] == ["read", "find", "plan", "ask", "5", "done"]


def test_without_colour_there_is_no_colour(wide: Seen) -> None:
    assert _colours(wide.raw)
    assert not _colours(on_terminal(program(), columns=100, environment={"NO_COLOR": "1"}).raw)


def _colours(raw: bytes) -> list[bytes]:
    return re.findall(rb"\x1b\[[0-9;]*m", raw)


def plain(text: str) -> None:
    assert not any(ord(character) < 32 and character not in "\r\n" for character in text)
    at_length = ["read: 25%, 25 documents/s, 2.1 GB, 0:30 left", "plan: 2.1 GB, 1:01:40 so far"]
    assert squeezed(text.replace("\r", "").splitlines()) == squeezed([at_length[0], *LINES[:2], at_length[1], *LINES[2:], "done"])


def test_on_a_dumb_terminal_there_are_the_lines_alone() -> None:
    plain(on_terminal(program(), environment={"TERM": "dumb"}).raw.decode())


def test_in_a_file_there_are_the_lines_alone() -> None:
    done = subprocess.run(program(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)

    plain(done.stderr + done.stdout)


@pytest.mark.parametrize("end", ["raise SystemExit('curate: refused')", "print('a worker died', file=sys.stderr); raise SystemExit(1)"])
def test_an_error_leaves_no_bar_behind(end: str) -> None:
    seen = on_terminal(program(end), columns=100)

    assert squeezed(seen.last) == squeezed([*LINES[:3], "curate: refused" if "refused" in end else "a worker died"])
    assert seen.cursor == (0, len(seen.last))


def test_a_warning_stands_above_the_bar() -> None:
    code = "from curation.cli import _warn; from mixing.progress import Progress; import time\n"
    code += "with Progress() as bars: bars.begin('work', 4); bars.advance(); time.sleep(0.7); _warn('beware'); time.sleep(0.3)"

    seen = on_terminal([sys.executable, "-c", code])

    assert any(screen[-1].startswith("work  ") and screen[-2:-1] == ["curate: warning: beware"] for screen in seen.screens if screen)
    assert seen.last == ["curate: warning: beware"]


def test_in_a_file_a_phase_that_goes_on_says_where_it_is_ever_more_seldom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Clock:
        now, asked = 0.0, 0

        def monotonic(self) -> float:
            self.asked += 1
            return self.now

    def lines() -> int:
        """How many are said in some beats: a beat asks for the time once, and one with a line ten times at most."""
        before = clock.asked
        while clock.asked < before + 30:
            sleep(0.001)
        return capsys.readouterr().err.count("count: ")

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "BEAT", 0.001)
    said = []
    with progress.Progress() as bars:
        bars.begin("count", 4000, "documents")
        for second in (9, 10, 12, 19, 20, 39, 40, 79, 80, 641, 1240, 1241, 1841):
            clock.now = second
            bars.reach(second, "")
            said += [second] * lines()

    assert said == [10, 20, 40, 80, 641, 1240, 1841]
