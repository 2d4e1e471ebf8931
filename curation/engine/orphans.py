"""Ends what a library has started when the process that uses it ends, however it ends.

vLLM's engine and its workers are processes of their own that do not notice when the one that started them is killed (vLLM 0.32): they would keep the GPU's memory until somebody ends them by hand.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MARK = "TILTH_ENDS_WITH"
GUARD = """
import os, signal, sys, time
if os.fork():
    os._exit(0)  # so that it is nobody's child and nobody has to end it
os.read(0, 1)  # returns when the last process that holds the other end is gone
mark, found = sys.argv[1].encode(), True
while found:
    found = False
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(bytes(1)):
                    found = True
                    os.kill(int(name), signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.05)
"""


@contextmanager
def ending_together() -> Iterator[None]:
    """What this process starts in the block, and what that starts, is killed when this process has ended (Linux; elsewhere nothing is done). They are known by a variable of their environment,
    and a small process watches, which ends then, too."""
    if sys.platform != "linux":
        yield
        return
    mark = f"{os.getpid()}.{secrets.token_hex(8)}"
    held_by_it, _held_by_us = os.pipe()  # neither is inherited; ours is closed by the end of this process
    command = [sys.executable, "-I", "-S", "-c", GUARD, f"{MARK}={mark}"]
    subprocess.run(command, stdin=held_by_it, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, check=True)
    os.close(held_by_it)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]
