"""A terminal to run commands on: a pty, and what a person sees on its screen from moment to moment."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyte

ROOT = Path(__file__).parents[1]
ROWS = 200
AS_CONTROLLING = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Seen(NamedTuple):
    """The exit code; the screen after every piece of output, as lines without their blanks on the right; every byte; the cursor's place at the end, None if it is hidden."""

    code: int
    screens: list[list[str]]
    raw: bytes
    cursor: tuple[int, int] | None

    @property
    def last(self) -> list[str]:
        return self.screens[-1]


def on_terminal(
    command: Sequence[str | Path],
    *,
    columns: int = 80,
    environment: Mapping[str, str] | None = None,
    interrupt_at: str | None = None,
    folder: Path = ROOT,
) -> Seen:
    """Runs a command on a terminal of its own to its end. As soon as the screen has `interrupt_at`, Ctrl-C is pressed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", AS_CONTROLLING, *map(str, command)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=folder,
        env=variables | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | dict(environment or {}),
    )
    os.close(theirs)
    screen = pyte.Screen(columns, ROWS)
    stream = pyte.ByteStream(screen)
    raw, screens = b"", [[""]]
    while piece := _read(ours):
        raw += piece
        stream.feed(piece)
        lines = [line.rstrip() for line in screen.display]
        screens.append(lines[: max((number for number, line in enumerate(lines, 1) if line), default=0)])
        if interrupt_at is not None and any(interrupt_at in line for line in lines):
            os.write(ours, b"\x03")
            interrupt_at = None
    os.close(ours)
    cursor = None if screen.cursor.hidden else (screen.cursor.x, screen.cursor.y)
    return Seen(process.wait(timeout=60), screens, raw, cursor)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError as error:
        if error.errno != errno.EIO:  # nobody is there any more
            raise
        return b""
