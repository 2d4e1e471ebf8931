"""Worker processes: order, errors, and deaths. The tasks live in `recipes`, which a worker can import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import recipes
from recipes import dies_until, fails_on, square, threads

from curation.engine.local import Engine, default_workers
from mixing import UserError


@pytest.mark.parametrize("workers", [1, 2])
def test_map_on_any_workers_gives_results_in_task_order(workers: int) -> None:
    with Engine(workers) as engine:
        assert engine.map(square, [(number,) for number in (5, 3, 9, 0, 3)], "square") == [25, 9, 81, 0, 9]
        assert engine.map(square, [], "square") == []
        assert engine.map(square, [(4,)], "square") == [16]


def test_workers_compute_on_one_thread_in_other_processes() -> None:
    with Engine(2) as engine:
        found = engine.map(threads, [(0,), (1,), (2,)], "look")

    assert os.getpid() not in {process for process, _ in found}
    assert {limit for _, limit in found} == {"1"}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_a_task_ends_the_map_with_it(workers: int) -> None:
    with pytest.raises(ValueError, match="7 is bad"), Engine(workers) as engine:
        engine.map(fails_on, [(number, 7) for number in range(10)], "fail")


def test_a_worker_killed_once_is_tried_again_and_all_results_come(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Engine(2) as engine:
        found = engine.map(dies_until, [(tmp_path / name, int(name == "b")) for name in "abcd"], "sign")
        assert engine.map(square, [(1,), (2,)], "square") == [1, 4]

    assert found == ["a", "b", "c", "d"]
    assert capfd.readouterr().err.count("sign: a worker process died; trying its tasks once more") == 1


def test_a_worker_killed_twice_ends_the_build_and_names_phase_and_task(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, Engine(2) as engine:
        engine.map(dies_until, [(tmp_path / name, 99 * (name == "b")) for name in "ab"], "sign")

    message = str(caught.value)
    assert message.startswith("sign: a worker process died twice")
    assert " over b;" in message
    assert "\n" not in message


def test_a_task_apart_has_a_new_process_that_ends_with_it() -> None:
    with Engine(2) as engine:
        among = {process for process, _ in engine.map(threads, [(0,), (1,), (2,)], "look")}
        (one, limit), (other, _) = (engine.apart(threads, (number,), "train") for number in range(2))
        again = {process for process, _ in engine.map(threads, [(0,), (1,), (2,)], "look")}

    assert limit == "1"
    assert len({os.getpid(), one, other} | among) == 3 + len(among)
    assert again <= among  # the others are as they were
    assert not Path("/proc", str(one)).exists()


def test_a_task_apart_that_is_killed_or_fails_says_so(tmp_path: Path) -> None:
    with Engine(2) as engine:
        with pytest.raises(UserError, match=r"^train: its process was killed \(out of memory\?\); what was finished is kept"):
            engine.apart(dies_until, (tmp_path / "a", 1), "train")
        with pytest.raises(ValueError, match="7 is bad"):
            engine.apart(fails_on, (7, 7), "train")
        assert engine.map(square, [(1,), (2,)], "square") == [1, 4]


INTERRUPTED = """
import sys
from pathlib import Path
import polars  # its handler of SIGINT has the system go on with what it interrupted
from recipes import naps
from curation.engine.local import Engine
with Engine(2) as engine:
    engine.map(naps, [(Path(path), 60.0) for path in sys.argv[1:]], "nap")
"""


def test_an_interrupt_is_heard_while_tasks_are_waited_for(tmp_path: Path) -> None:
    begun = [tmp_path / "a", tmp_path / "b"]
    ground = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(recipes.__file__).parent), str(Path(__file__).parents[3])])}
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, *map(str, begun)], env=ground, stderr=subprocess.PIPE, text=True)
    while not all(path.exists() for path in begun):
        time.sleep(0.01)
        assert process.poll() is None
    time.sleep(0.2)  # until it waits
    process.send_signal(signal.SIGINT)

    _, said = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")


def test_default_workers_are_those_this_process_may_use() -> None:
    assert 1 <= default_workers() <= (os.cpu_count() or 1)
