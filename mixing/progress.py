"""What a person sees on stderr of a command that takes its time.

On a terminal: a bar for the phase under way, with its share done, rate, memory and the time left, which vanishes with it. After every phase of a second or more a line
stays: what was done, how many, how long; phases of one name that follow each other are one. What shorter ones took together is one line at the end, if that is a second.
Elsewhere (a file, CI, a notebook, TERM=dumb) there is no bar and no control character but the same lines, and of a phase that goes on, where it is after 10 s, 20 s, 40 s,
and so on up to every ten minutes. An error leaves no bar behind and says nothing of what was under way.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, RLock, Thread
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

WORTH_A_LINE = 1.0  # seconds
WORTH_A_BAR = 0.3
FIRST_WORD, SELDOM = 10.0, 600.0  # seconds after which a phase without a bar says where it is: doubled each time, and at most
BEAT = 0.5  # seconds between two looks at whether it has something to say
WIDTH, LABEL, BAR = 78, 24, 32  # columns
ECHO = 3  # columns left free for the ^C that a terminal writes behind the bar


@dataclass
class Phase:
    """One stretch of work: `done` of `total`, `first` of it before it began; a total of at most 1 has no rate. Times are in seconds."""

    label: str
    total: float
    unit: str
    done: float
    note: str = ""
    began: float = field(default_factory=lambda: time.monotonic())
    first: float = 0.0
    seconds: float = 0.0

    def age(self) -> float:
        return time.monotonic() - self.began

    def figures(self, memory: int) -> list[str]:
        """What there is to say of it now; `memory` in bytes, 0 if it is not known."""
        age, made = self.age(), self.done - self.first
        share = self.done / self.total if self.total else 0.0
        found = [f"{share:.0%}"] if self.total > 1 or share else []
        if self.total > 1 and made:
            found.append(f"{_number(made / max(age, 0.001))} {self.unit}/s")
        found += [self.note] if self.note else []
        found += [f"{memory / 1e9:.1f} GB"] if memory else []
        return [*found, f"{_clock((self.total - self.done) / made * age)} left" if made else f"{_clock(age)} so far"]

    def amount(self) -> str:
        counted = f"{self.total:,.0f} {self.unit}" if self.total > 1 else ""
        return ", ".join(part for part in (counted, self.note) if part)


class Progress:
    """The phases of one command, in the order in which they begin; a context manager. `memory` says how many bytes are held now."""

    def __init__(self, memory: Callable[[], int] = lambda: 0) -> None:
        self._memory = memory
        self._now: Phase | None = None
        self._ended: Phase | None = None  # its line waits: the next phase may bear the same label
        self._short: list[float] = []
        self._lines = 0
        self._live: Live | None = None
        self._lock, self._stop = RLock(), Event()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            if not console.is_dumb_terminal:
                self._live = Live(
                    get_renderable=lambda: _drawn(self._now, self._memory(), console.width),
                    console=console,
                    transient=True,
                    refresh_per_second=8,
                    redirect_stdout=False,
                )
                self._live.start()
                return self
        Thread(target=self._remind, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        with self._lock:
            self._now = None
            self._tell()
            if kind is None and sum(self._short) >= WORTH_A_LINE:
                self._say(_line(f"{len(self._short)} shorter phase{'s'[: len(self._short) > 1]}", "", sum(self._short), self._width()))
            if self._live is not None:
                if kind is None and self._lines > 1:
                    self._live.console.line()
                self._live.stop()

    def begin(self, label: str, total: float = 0, unit: str = "parts", done: float = 0) -> None:
        """A phase begins; `total` is 0 if nobody knows how much there is, `done` what of it was done before."""
        with self._lock:
            if self._ended is not None and self._ended.label != label:
                self._tell()
            self._now = Phase(label, total, unit, done, first=done)

    def count(self, total: float, unit: str) -> None:
        """What there is to do in the phase, in a better unit than it began with."""
        if self._now is not None:
            self._now.total, self._now.unit = total, unit

    def advance(self, by: float = 1) -> None:
        if self._now is not None:
            self._now.done += by

    def reach(self, done: float, note: str) -> None:
        """How far the phase is now, with something to say about it."""
        if self._now is not None:
            self._now.done, self._now.note = done, note

    def end(self) -> None:
        with self._lock:
            assert self._now is not None
            ended, before = self._now, self._ended
            ended.seconds = ended.age() + (before.seconds if before else 0.0)
            if before is not None and before.total > ended.total:
                ended.total, ended.unit = before.total, before.unit
            self._now, self._ended = None, ended

    def _tell(self) -> None:
        """The line of the phase that has ended, if it took long enough."""
        ended, self._ended = self._ended, None
        if ended is None:
            return
        if ended.seconds < WORTH_A_LINE:
            self._short.append(ended.seconds)
            return
        self._say(_line(ended.label, ended.amount(), ended.seconds, self._width()))

    def _say(self, line: str) -> None:
        self._lines += 1
        if self._live is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _width(self) -> int:
        return WIDTH if self._live is None else min(WIDTH, self._live.console.width)

    def _remind(self) -> None:
        """Says now and then where a phase is that goes on and on."""
        phase, wait = None, FIRST_WORD
        while not self._stop.wait(BEAT):
            with self._lock:
                if self._now is not phase:
                    phase, wait = self._now, FIRST_WORD
                if phase is not None and phase.age() >= wait:
                    print(f"{phase.label}: {', '.join(phase.figures(self._memory()))}", file=sys.stderr, flush=True)
                    while wait <= phase.age():
                        wait += min(wait, SELDOM)


@contextmanager
def watched(label: str, total: float = 0, unit: str = "parts") -> Iterator[Progress]:
    """A command that is one phase: its result says what was done, so no line of it stays."""
    with Progress() as progress:
        progress.begin(label, total, unit)
        yield progress


def _drawn(phase: Phase | None, memory: int, width: int) -> Table | Text:
    """The line of the phase under way; nothing for one that has hardly begun. What does not fit goes in this order: the bar, the end of the label, that of the figures."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if phase is None or phase.age() < WORTH_A_BAR:
        return Text()
    width -= ECHO
    figures = "  ".join(phase.figures(memory))
    bar = min(width - len(figures) - LABEL - 4, BAR)
    if bar < 8:
        label = _shortened(phase.label, max(width - len(figures) - 2, 8))
        return Text(_shortened(f"{label}  {figures}", width))
    known = phase.total > 1 or phase.done > 0
    drawn = ProgressBar(phase.total if known else None, phase.done, width=bar, pulse=not known, animation_time=time.monotonic())
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row(_shortened(phase.label, LABEL).ljust(LABEL), drawn, figures)
    return line


def _line(label: str, amount: str, seconds: float, width: int) -> str:
    """The label to the left; amount and time to the right, as far as there is room."""
    end = f"{_duration(seconds):>9}"
    room = width - len(end) - 2
    amount = amount.rjust(22)
    return f"{_shortened(label, max(room - len(amount), 10)).ljust(room - len(amount))}{amount}  {end}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} m"
