"""The work directory: names that are keys, files that are whole or absent, one build at a time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curation.corpus.sources import hash_files
from curation.engine.local import Engine
from curation.engine.work_directory import Digests, Work, folder_atomic, key_of, sha256_folder, write_atomic, write_json
from mixing import UserError


def test_key_of_equal_parts_is_equal_and_of_others_is_not() -> None:
    assert key_of("a", {"x": 1, "y": [2.0]}) == key_of("a", {"y": [2], "x": 1})
    parts: list[tuple[object, ...]] = [("a",), ("a", None), ("a", []), (["a"],), ("a", 0), ("a", False), ("a", ""), ("a", "0"), ("a", {})]
    assert len({key_of(*part) for part in parts}) == len(parts)
    assert len(key_of("a")) == 32


@pytest.mark.parametrize("value", [Path("x"), b"x", {1, 2}, float("nan"), object()])
def test_key_of_what_cannot_be_spelled_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        key_of("a", value)


def test_lock_held_by_another_build_is_refused_and_free_again_after_it(tmp_path: Path) -> None:
    work = Work(tmp_path / "work")
    with work.locked(), pytest.raises(UserError, match="another build holds it"), Work(tmp_path / "work").locked():
        pass
    with work.locked():
        pass


def test_lock_of_a_killed_process_is_free_and_names_it_while_it_lives(tmp_path: Path) -> None:
    code = f"from curation.engine.work_directory import Work; from pathlib import Path; import time\nwith Work(Path({str(tmp_path)!r})).locked(): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid}"), Work(tmp_path).locked():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with Work(tmp_path).locked():
        pass


def test_scratch_of_an_earlier_build_is_gone_in_the_next(tmp_path: Path) -> None:
    work = Work(tmp_path)
    (work.room("scratch") / "left").touch()
    (work.room("sidecars") / "kept").touch()
    with work.locked():
        assert not (tmp_path / "scratch" / "left").exists()
    assert (tmp_path / "sidecars" / "kept").exists()


def test_write_atomic_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "a.json", half)

    assert (tmp_path / "a.json").read_text() == '{"x": 1}'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_folder_atomic_that_fails_leaves_no_folder_and_the_next_starts_anew(tmp_path: Path) -> None:
    def half() -> None:
        with folder_atomic(tmp_path / "unit") as folder:
            (folder / "old").touch()
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert not (tmp_path / "unit").exists()

    with folder_atomic(tmp_path / "unit") as folder:
        (folder / "new").touch()

    assert [path.name for path in (tmp_path / "unit").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]


def test_folder_atomic_of_two_attempts_keeps_the_first_that_ends(tmp_path: Path) -> None:
    def attempt(name: str, meanwhile: str | None) -> None:
        with folder_atomic(tmp_path / "unit") as folder:
            (folder / name).touch()
            if meanwhile is not None:
                (tmp_path / "unit").mkdir()  # what another attempt made
                (tmp_path / "unit" / meanwhile).touch()

    attempt("late", "early")
    assert [path.name for path in (tmp_path / "unit").iterdir()] == ["early"]
    attempt("anew", None)  # what lay there before was damaged
    assert [path.name for path in (tmp_path / "unit").iterdir()] == ["anew"]
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]


def test_sha256_folder_depends_on_names_and_bytes_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for name, files in (("one", ["b", "a"]), ("two", ["a", "b"])):
        for file in files:
            (tmp_path / name / "sub" / file).write_text(file)
    first = sha256_folder(tmp_path / "one")
    assert first == sha256_folder(tmp_path / "two")

    (tmp_path / "two" / "sub" / "a").rename(tmp_path / "two" / "a")
    assert sha256_folder(tmp_path / "two") != first


def aged(path: Path, text: str, seconds: float = 60) -> Path:
    path.write_text(text)
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def digest_by_build(path: Path, work: Work) -> str:
    digests = Digests(work)
    with Engine(1) as engine:
        ((_, _, digest),) = hash_files(path.parent, [path.name], digests, engine, "hash")
    digests.save()
    return digest


def test_digests_of_an_unchanged_old_file_are_remembered(tmp_path: Path) -> None:
    path, work = aged(tmp_path / "a", "text"), Work(tmp_path / "work")
    work.room("scratch")

    assert digest_by_build(path, work) == hashlib.sha256(b"text").hexdigest()
    assert Digests(work).known(path) == hashlib.sha256(b"text").hexdigest()


@pytest.mark.parametrize("change", ["bytes", "time", "file"])
def test_digests_of_a_changed_file_are_forgotten(tmp_path: Path, change: str) -> None:
    path, work = aged(tmp_path / "a", "text"), Work(tmp_path / "work")
    work.room("scratch")
    digest_by_build(path, work)
    stat = path.stat()
    if change == "file":
        aged(tmp_path / "b", "next").replace(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        path.write_text("longer" if change == "bytes" else "next")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (change == "time")))

    assert Digests(work).known(path) is None
    assert digest_by_build(path, work) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_digests_of_a_file_changed_just_now_are_not_remembered(tmp_path: Path) -> None:
    path, work = aged(tmp_path / "a", "text", seconds=0.5), Work(tmp_path / "work")
    work.room("scratch")
    digest_by_build(path, work)

    assert Digests(work).known(path) is None


def test_digests_of_a_file_that_changes_while_it_is_hashed_are_not_remembered(tmp_path: Path) -> None:
    """The change comes after the bytes were read and before the digest is noted."""
    path, work = aged(tmp_path / "a", "text"), Work(tmp_path / "work")
    work.room("scratch")
    digests = Digests(work)

    class Slow(Engine):
        def map(self, function, tasks, label, at_most=None):  # type: ignore[no-untyped-def]
            found = super().map(function, tasks, label, at_most)
            aged(path, "next", seconds=30)
            return found

    with Slow(1) as engine:
        hash_files(path.parent, [path.name], digests, engine, "hash")
    digests.save()

    assert Digests(work).known(path) is None
