"""A manifest in an object store, read through its mirror: the same rows, no more bytes than they need, and nothing asked twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from manifests import small_manifest
from stores import connected, served, upload

from mixing import UserError, mirror, remote
from mixing.manifest import Manifest
from mixing.remote import filesystem
from train.stream import read_step, steps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_manifest(tmp_path_factory.mktemp("manifest") / "m", tokens=60_000, token_file_ids=1 << 15)


@pytest.fixture
def store(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {
        **environment,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "TILTH_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mirror, "BLOCK", 512)
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    filesystem.cache_clear()
    mirror.of.cache_clear()
    yield connected(environment)
    filesystem.cache_clear()
    mirror.of.cache_clear()


def there(store: Any, folder: Path, bucket: str) -> str:
    upload(store, folder, bucket)
    return f"s3://{bucket}"


def same(one: Any, other: Any) -> bool:
    return all(
        torch.equal(left, right)
        for mine, others in zip(one.micro_batches, other.micro_batches, strict=True)
        for left, right in zip(mine, others, strict=True)
        if isinstance(left, torch.Tensor)
    )


def fetched(manifest: Manifest) -> float:
    """The share of all blocks of token ids that are there."""
    maps = [np.fromfile(path, np.uint8) for path in (manifest.folder / "blocks").rglob("tokens/*")]
    return float(np.concatenate(maps).mean())


def test_every_step_of_a_manifest_in_a_store_is_that_of_the_folder_and_an_early_one_fetches_a_part(store: Any, local: Path) -> None:
    near, far = Manifest.open(local), Manifest.reach(there(store, local, "whole"))

    assert far.digest == near.digest
    assert same(read_step(far, 0, 4, 2, 0, 1), read_step(near, 0, 4, 2, 0, 1))
    assert 0 < fetched(far) < 0.6
    for one, other in zip(steps(far, 4, 16, 4, 1, 2, CPU), steps(near, 4, 16, 4, 1, 2, CPU), strict=True):
        assert same(one, other)
    assert {name: held.ids.tolist() for name, held in far.holdout().items()} == {n: held.ids.tolist() for n, held in near.holdout().items()}
    assert [path.read_bytes() for path in far.pool_files()] == [path.read_bytes() for path in near.pool_files()]


def test_what_one_process_has_fetched_another_reads_without_the_store(store: Any, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = there(store, local, "again")
    list(steps(Manifest.reach(Path(url)), 0, 16, 4, 0, 1, CPU))  # as the command line gives it: s3:/again
    mirror.of.cache_clear()
    monkeypatch.setattr(mirror, "_range", None)

    again = Manifest.reach(f"{url}/manifest.json")

    assert same(read_step(again, 0, 64, 4, 0, 1), read_step(Manifest.open(local), 0, 64, 4, 0, 1))


def test_after_a_crash_of_the_machine_nothing_is_taken_for_fetched(store: Any, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = there(store, local, "boots")
    first = Manifest.reach(url)
    read_step(first, 0, 16, 4, 0, 1)
    for path in (first.folder / "tokens").iterdir():
        path.write_bytes(bytes(path.stat().st_size))  # what a crash may leave
    mirror.of.cache_clear()
    monkeypatch.setattr(mirror, "_boot", lambda: "another")

    assert same(read_step(Manifest.reach(url), 0, 16, 4, 0, 1), read_step(Manifest.open(local), 0, 16, 4, 0, 1))


def test_an_object_that_is_not_what_the_manifest_names_is_refused(store: Any, local: Path, tmp_path: Path) -> None:
    for bucket, inner, content in (("wrong", "tokenizer/tokenizer.json", b"{}"), ("short", "tokens/00000.arrow", b"ARROW1")):
        shutil.copytree(local, tmp_path / bucket)
        (tmp_path / bucket / inner).write_bytes(content)
        there(store, tmp_path / bucket, bucket)

    with pytest.raises(UserError, match=r"s3://wrong/tokenizer/tokenizer.json: not the file that files.json names"):
        Manifest.reach("s3://wrong")
    mirror.of.cache_clear()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"s3://short/tokens/00000.arrow: 6 bytes, files.json says \d+"):
        read_step(Manifest.reach("s3://short"), 0, 4, 4, 0, 1)


def test_paths_that_leave_the_manifest_are_refused_before_anything_is_written(store: Any, local: Path, tmp_path: Path) -> None:
    shutil.copytree(local, tmp_path / "evil")
    listed = json.loads((tmp_path / "evil" / "files.json").read_text())
    listed[0]["path"] = "../../outside"
    (tmp_path / "evil" / "files.json").write_text(json.dumps(listed))

    with pytest.raises(UserError, match="leaves the manifest"):
        Manifest.reach(there(store, tmp_path / "evil", "evil"))
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("place", ["s3://bucket/m", Path("s3://bucket/m"), "hf://datasets/a/b"])
def test_a_url_where_a_folder_is_needed_is_refused(place: str | Path) -> None:
    with pytest.raises(UserError, match=r"^(s3://bucket/m|hf://datasets/a/b): a manifest in an object store is read by the trainer alone"):
        Manifest.open(place)


def test_a_folder_is_reached_as_it_is_opened(local: Path) -> None:
    assert Manifest.reach(local).folder == local
    assert not Manifest.reach(local).is_mirrored
