"""What a process has started and what that has started ends with it, though it is killed; what it starts afterwards does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raylets import has_ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is done")

STARTS = """
import os, subprocess, sys
from pathlib import Path
from curation.engine.orphans import ending_together
nested = "import subprocess, sys; one = subprocess.Popen(['sleep', '600']); print(one.pid, flush=True); one.wait()"
with ending_together():
    inner = subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE, start_new_session=True)
other = subprocess.Popen(["sleep", "600"])
print(inner.pid, int(inner.stdout.readline()), other.pid, flush=True)
sys.stdin.read()
"""


def test_descendants_started_in_the_block_end_with_a_killed_process_and_others_do_not() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        inner, nested, other = map(int, process.stdout.readline().split())
        assert not any(map(has_ended, (inner, nested, other)))
        process.kill()
    try:
        while not has_ended(inner) or not has_ended(nested):  # the test's time limit is the only one
            time.sleep(0.02)
        assert not has_ended(other)
    finally:
        os.kill(other, 9)
