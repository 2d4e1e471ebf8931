"""What every test starts from: one thread, no network, a folder outside the repository for whatever a test writes, and no judgement by the clock."""

from __future__ import annotations

import os
import signal

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell leaves it for what it runs in the background, and every child inherits that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set before any test module imports a library that reads them once.
for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# Properties are tried on the same examples in every run, so that a change is judged by what it changed; `make test-search` draws others each time.
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", BUSY, derandomize=True)
settings.register_profile("search", BUSY, derandomize=False)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
