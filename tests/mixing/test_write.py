"""A manifest is written whole or not at all, and its bytes depend on what is in it alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from manifests import small_manifest, store

from mixing import UserError
from mixing.canonical import canonical_json
from mixing.draws import Documents
from mixing.files import first_of_files, write_plan, write_pool, write_tokens
from mixing.manifest import Holdout, Manifest
from mixing.plan import Mixture, plan
from mixing.pool import POOL
from mixing.write import ManifestWriter

LENGTHS = np.array([5, 40, 1, 17, 64, 9, 130, 3], np.int64)
ROWS = np.array([0, 2, 3, 5, 8, 9, 11, 12], np.uint64)


def chunks(size: int, first: int = 0, end: int = len(ROWS)) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of eight documents of counting ids, those from `first` to `end`, `size` at a time."""
    for low in range(first, end, size):
        lengths = LENGTHS[low : min(low + size, end)]
        offsets = np.cumsum([0, *lengths], dtype=np.int64)
        ids = np.concatenate([np.arange(length) % 50 + number for number, length in enumerate(lengths, low)]).astype(np.uint16)
        yield ROWS[low : min(low + size, end)], ids, offsets


def write_tiny(folder: Path, chunk: int = 3, token_file_ids: int = 100, **keys: Any) -> str:
    """A manifest of eight documents, every byte of which follows from arithmetic."""
    mixture = Mixture(
        sequence_length=32, components={"all": "TRUE"}, stages=[{"name": "only", "tokens": int(LENGTHS.sum()), "weights": {"all": 1}}]
    )
    content = np.stack([ROWS * np.uint64(0x9E3779B97F4A7C15), ROWS], axis=1)
    documents = Documents(ROWS, content, np.zeros(8, np.uint16), LENGTHS)
    planned = plan(mixture, documents, 17)
    pool = {name: [None] * 14 for name in POOL.names}
    pool |= {"row": range(14), "source": ["one"] * 14, "origin": [f"a#{row}" for row in range(14)], "bytes": [3] * 14}
    pool |= {"content": [f"{row:032x}" for row in range(14)], "decision": ["kept" if row in ROWS else "held_out" for row in range(14)]}
    pool |= {"n_tokens": [int(LENGTHS[row == ROWS][0]) if row in ROWS else None for row in range(14)]}
    held = np.setdiff1d(np.arange(14), ROWS).astype(np.uint64)
    counts = {"read": 14, "quarantined": 0, "dropped": [], "held_out": len(held), "kept": 8, "used": 8, "unused": 0, "unassigned": 0}
    with ManifestWriter(folder, "uint16", **keys) as writer:
        stored = store(writer, ROWS, LENGTHS, lambda low, high: chunks(chunk, low, high), token_file_ids)
        for stage in planned.stages:
            writer.take(*write_plan(writer.folder, stage, ROWS.astype(np.int64), stored))
        offsets = np.arange(0, 2 * len(held) + 1, 2)
        writer.holdout(
            "one",
            Holdout(
                held, np.zeros(len(held), np.uint16), np.full(len(held), 3, np.uint32), offsets, np.arange(2 * len(held), dtype=np.uint16)
            ),
        )
        writer.take(write_pool(writer.folder, 0, pa.table(pool, schema=POOL)))
        writer.tokenizer({"tokenizer.json": b"{}"})
        header = {
            "name": "tiny",
            "version": 1,
            "seed": 17,
            "recipe": {"sources": [{"name": "one"}], "mixture": mixture.resolved()},
            "parent": None,
            "tokenizer": {
                "name": "none",
                "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
                "vocab_size": 60,
                "bos_id": None,
                "eos_id": None,
                "dtype": "uint16",
            },
            "sources": {"one": {**counts, "licence": None, "inputs": []}},
            "models": {},
        }
        return writer.finish({**header, **planned.header()}, {"pid": os.getpid()})


def test_writer_tiny_manifest_reproduces_its_golden_digest(tmp_path: Path) -> None:
    assert write_tiny(tmp_path / "tiny") == "66c5a61444584dc8ba85098787787c24b0626b4c96c4a793a2bb2b533f36d515"


def test_writer_other_chunks_of_documents_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (write_tiny(tmp_path / name, chunk) for name, chunk in (("one", 1), ("other", 8)))
    assert one == other
    for path in sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()):
        if path.name not in ("provenance.json", "files.json"):
            assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "other" / path).read_bytes()


def test_writer_token_files_are_cut_before_they_hold_too_many_ids(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", token_file_ids=100)
    files = [pa.ipc.open_file(str(path)).read_all() for path in sorted((tmp_path / "tiny" / "tokens").iterdir())]
    # 5 + 40 + 1 + 17 and 64 + 9; the document of 130 has a file to itself.
    assert [[len(ids) for ids in file["ids"].to_pylist()] for file in files] == [[5, 40, 1, 17], [64, 9], [130], [3]]
    assert [row for file in files for row in file["pool_row"].to_pylist()] == ROWS.tolist()


def test_token_files_take_what_fits_and_at_least_one_document() -> None:
    assert first_of_files(LENGTHS, 100).tolist() == [0, 4, 6, 7]
    assert first_of_files(LENGTHS, 63).tolist() == [0, 4, 5, 6, 7]
    assert first_of_files(LENGTHS, 1).tolist() == list(range(8))
    assert first_of_files(LENGTHS).tolist() == [0]
    assert first_of_files(LENGTHS[:0]).tolist() == [0]  # a manifest has one, if it is empty


def test_writer_takes_files_from_elsewhere_with_their_sums(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with ManifestWriter(tmp_path / "one", "uint16") as writer:
        piece = write_tokens(elsewhere, 0, "uint16", chunks(3))
        writer.take(piece)
        there = writer.folder / "tokens" / "00000.arrow"
        assert hashlib.sha256(there.read_bytes()).hexdigest() == piece.sha256
    assert not [path for path in elsewhere.rglob("*") if path.is_file()]


def test_writer_same_manifest_again_leaves_the_folder_untouched(tmp_path: Path) -> None:
    digest = write_tiny(tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").rglob("*")}
    assert write_tiny(tmp_path / "tiny") == digest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_writer_another_manifest_in_the_way_is_refused_with_both_digests(tmp_path: Path) -> None:
    old = write_tiny(tmp_path / "tiny")
    new = write_tiny(tmp_path / "other", token_file_ids=1000)
    with pytest.raises(
        UserError, match=f"holds another manifest, digest {old}; .*curate diff.*--replace; the new one has the digest {new}"
    ):
        write_tiny(tmp_path / "tiny", token_file_ids=1000)
    assert Manifest.open(tmp_path / "tiny").digest == old
    assert write_tiny(tmp_path / "tiny", token_file_ids=1000, replace=True) == new
    assert Manifest.open(tmp_path / "tiny").digest == new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "tiny"]


def test_writer_folder_that_is_no_manifest_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a manifest"):
        write_tiny(tmp_path / "tiny", replace=True)
    assert (tmp_path / "tiny" / "thesis.tex").read_text() == "precious"


def test_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        yield from list(chunks(3))[:2]
        raise RuntimeError("disk full")

    def build() -> None:
        with ManifestWriter(tmp_path / "tiny", "uint16") as writer:
            writer.take(write_tokens(writer.folder, 0, "uint16", failing()))

    with pytest.raises(RuntimeError, match="disk full"):
        build()
    assert not list(tmp_path.iterdir())


def test_writer_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".tiny.partial" / "tokens"
    left.mkdir(parents=True)
    (left / "00099.arrow").write_bytes(b"half")
    write_tiny(tmp_path / "tiny")
    assert not (tmp_path / "tiny" / "tokens" / "00099.arrow").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_writer_two_builds_of_one_target_the_second_is_refused(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "tiny", "uint16"), pytest.raises(UserError, match="another process is writing it"):
        write_tiny(tmp_path / "tiny")


def test_writer_files_json_holds_size_and_sha256_of_every_file(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    written = {entry["path"] for entry in json.loads((tmp_path / "tiny" / "files.json").read_text())}
    present = {path.relative_to(tmp_path / "tiny").as_posix() for path in (tmp_path / "tiny").rglob("*") if path.is_file()}
    assert written == present - {"files.json"}
    header = json.loads((tmp_path / "tiny" / "manifest.json").read_text())
    assert (tmp_path / "tiny" / "manifest.json").read_text() == canonical_json(header)
    assert header["holdout"] == {"one": {"documents": 6, "tokens": 12}}


def test_small_manifest_same_arguments_give_the_same_digest(tmp_path: Path) -> None:
    one, same, other = (
        Manifest.open(small_manifest(tmp_path / str(number), tokens=2000, seed=seed)) for number, seed in enumerate((1, 1, 2))
    )
    assert one.digest == same.digest != other.digest
