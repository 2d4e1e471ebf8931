"""Exports read back by small readers written from the formats' descriptions, and by the peers' own where they are installed."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zstandard
from manifests import EOS, small_manifest

from mixing import UserError
from mixing import export as export_module
from mixing.export import export
from mixing.manifest import Manifest

TYPES = {4: "<i4", 8: "<u2"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest.open(small_manifest(tmp_path_factory.mktemp("export") / "m", tokens=6000))


def planned(manifest: Manifest, stage: dict[str, Any]) -> Iterator[tuple[list[list[int]], str]]:
    """The pieces of each sequence of a stage, and its component: look-ups of one span at a time."""
    for number in range(stage["first_sequence"], stage["first_sequence"] + stage["sequences"]):
        spans = manifest.spans(number, number + 1)
        columns = zip(spans.file, spans.token_row, spans.start, spans.length, strict=True)
        yield (
            [manifest.ids(int(f), int(r), int(s), int(n)).tolist() for f, r, s, n in columns],
            manifest.component_names[int(manifest.components(number, number + 1)[0])],
        )


def padded(pieces: list[list[int]], size: int) -> list[int]:
    joined = [one for piece in pieces for one in piece]
    return joined + [EOS] * (size - len(joined))


# --- Megatron: magic, version, type, counts; lengths i4, pointers i8, document boundaries i8


def megatron_sequences(prefix: Path) -> tuple[list[list[int]], list[int]]:
    """The sequences of a prefix and its document boundaries."""
    index = Path(f"{prefix}.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    version, code, sequences, boundaries = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    place = 9 + 25
    lengths = np.frombuffer(index, "<i4", sequences, place)
    pointers = np.frombuffer(index, "<i8", sequences, place + 4 * sequences)
    documents = np.frombuffer(index, "<i8", boundaries, place + 12 * sequences)
    assert len(index) == place + 12 * sequences + 8 * boundaries
    ids = Path(f"{prefix}.bin").read_bytes()
    return [np.frombuffer(ids, TYPES[code], n, at).tolist() for n, at in zip(lengths, pointers, strict=True)], documents.tolist()


def test_megatron_export_read_back_is_the_plan_row_by_row_and_piece_by_piece(manifest: Manifest, tmp_path: Path) -> None:
    facts = export(manifest, "megatron", tmp_path / "out").facts

    for stage in manifest.stages:
        wanted = list(planned(manifest, stage))
        rows, documents = megatron_sequences(tmp_path / "out" / stage["name"])
        pieces, bounds = megatron_sequences(tmp_path / "out" / f"{stage['name']}.pieces")
        components = np.load(tmp_path / "out" / f"{stage['name']}.components.npy")
        assert rows == [padded(parts, manifest.sequence_length) for parts, _ in wanted]
        assert documents == list(range(stage["sequences"] + 1))
        assert [pieces[low:high] for low, high in pairwise(bounds)] == [parts for parts, _ in wanted]
        assert bounds[0] == 0
        assert bounds[-1] == len(pieces)
        assert [facts["components"][number] for number in components] == [component for _, component in wanted]


def test_megatron_export_across_many_batches_and_index_blocks_is_the_same(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(manifest, "megatron", tmp_path / "whole").facts
    monkeypatch.setattr(export_module, "BATCH_IDS", 5 * manifest.sequence_length)
    monkeypatch.setattr(export_module, "INDEX_IDS", 7 * manifest.sequence_length)

    assert export(manifest, "megatron", tmp_path / "parts").facts == whole


def test_megatron_export_of_a_large_vocabulary_is_int32(tmp_path: Path) -> None:
    manifest = Manifest.open(small_manifest(tmp_path / "m", tokens=3000))
    # the same ids as another tokenizer would have stored them
    manifest.header["tokenizer"]["dtype"] = "uint32"
    manifest._token_files.update(
        {
            n: f._replace(ids=f.ids.astype(np.uint32))
            for n, f in enumerate(Manifest.open(tmp_path / "m").token_file(n) for n in range(manifest.token_files))
        }
    )

    export(manifest, "megatron", tmp_path / "out")

    stage = manifest.stages[0]
    index = (tmp_path / "out" / f"{stage['name']}.idx").read_bytes()
    assert struct.unpack_from("<B", index, 17) == (4,)
    assert megatron_sequences(tmp_path / "out" / stage["name"])[0] == [
        padded(parts, manifest.sequence_length) for parts, _ in planned(manifest, stage)
    ]


# --- MDS: number of samples, offsets, configuration, samples; a sample is the sizes of its columns of no fixed size, then the columns


def mds_samples(folder: Path) -> Iterator[dict[str, Any]]:
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        packed = shard["zip_data"] or shard["raw_data"]
        content = (folder / packed["basename"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (packed["bytes"], packed["hashes"]["sha256"])
        if shard["zip_data"]:
            content = zstandard.decompress(content)
        assert hashlib.sha256(content).hexdigest() == shard["raw_data"]["hashes"]["sha256"]
        assert len(content) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", content)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", content, 4)
        assert offsets[-1] == len(content)
        assert json.loads(content[4 * (count + 2) : offsets[0]])["column_names"] == shard["column_names"]
        for low, high in pairwise(offsets):
            yield mds_sample(content[low:high], shard)


def mds_sample(content: bytes, shard: dict[str, Any]) -> dict[str, Any]:
    place, sizes, found = 0, [], {}
    for size in shard["column_sizes"]:
        if size is None:
            (size,) = struct.unpack_from("<I", content, place)
            place += 4
        sizes.append(size)
    for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
        found[name] = mds_value(encoding, content[place : place + size])
        place += size
    assert place == len(content)
    return found


def mds_value(encoding: str, value: bytes) -> Any:
    kind, _, rest = encoding.partition(":")
    if kind == "str":
        return value.decode()
    if kind == "uint64":
        return int.from_bytes(value, "little")
    assert kind == "ndarray"
    dtype, _, shape = rest.partition(":")
    if not shape:
        axes, size = value[0] >> 2, 1 << (value[0] & 3)
        assert axes == 1
        shape, value = str(int.from_bytes(value[1 : 1 + size], "little")), value[1 + size :]
    array = np.frombuffer(value, np.dtype(dtype).newbyteorder("<"))
    assert len(array) == int(shape)
    return array.tolist()


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_mds_export_read_back_is_the_plan_sample_by_sample(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: Any
) -> None:
    monkeypatch.setattr(export_module, "SHARD_BYTES", 4000)  # some twenty rows a shard

    export(manifest, "mds", tmp_path / "out", compression=compression)

    whole = []
    for stage in manifest.stages:
        wanted = [
            {
                "tokens": padded(parts, manifest.sequence_length),
                "cu_seqlens": np.cumsum([0, *map(len, parts)]).tolist(),
                "component": component,
                "sequence": stage["first_sequence"] + number,
            }
            for number, (parts, component) in enumerate(planned(manifest, stage))
        ]
        assert list(mds_samples(tmp_path / "out" / stage["name"])) == wanted
        whole += wanted
    assert list(mds_samples(tmp_path / "out")) == whole
    shards = json.loads((tmp_path / "out" / "index.json").read_text())["shards"]
    assert len(shards) > 3
    assert max(shard["raw_data"]["bytes"] for shard in shards) <= 4000


# --- what is said about an export


def test_export_facts_count_padding_pieces_and_boundaries_that_no_eos_marks(manifest: Manifest, tmp_path: Path) -> None:
    facts = export(manifest, "mds", tmp_path / "out").facts

    for stage, said in zip(manifest.stages, facts["stages"], strict=True):
        rows = [parts for parts, _ in planned(manifest, stage)]
        unmarked = 0
        for parts in rows:
            for number, piece in enumerate(parts):
                filled = sum(map(len, parts[: number + 1]))
                unmarked += piece[-1] != EOS and filled < manifest.sequence_length
        assert unmarked > 0
        assert (said["pieces"], said["boundaries_without_eos"]) == (sum(map(len, rows)), unmarked)
        assert (said["tokens"], said["padding"]) == (stage["tokens"], stage["padding"])
    assert facts["manifest"] == manifest.digest
    assert facts == json.loads((tmp_path / "out" / "export.json").read_text())
    for file in facts["files"]:
        assert hashlib.sha256((tmp_path / "out" / file["path"]).read_bytes()).hexdigest() == file["sha256"]


def test_export_into_a_folder_with_files_is_refused_and_leaves_them(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(UserError, match="exists; choose another folder"):
        export(manifest, "megatron", tmp_path / "out")

    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_export_that_fails_half_way_leaves_no_folder(manifest: Manifest, tmp_path: Path) -> None:
    def fails(rows: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        export(manifest, "megatron", tmp_path / "out", advance=fails)

    assert list(tmp_path.iterdir()) == []


def test_export_while_another_writes_the_same_folder_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    def meanwhile(rows: int) -> None:
        with pytest.raises(UserError, match="another process is writing it"):
            export(manifest, "mds", tmp_path / "out")

    export(manifest, "megatron", tmp_path / "out", advance=meanwhile)

    assert (tmp_path / "out" / "export.json").exists()


def test_export_that_does_not_fit_on_the_disk_is_refused_with_both_numbers(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))

    with pytest.raises(UserError, match="the export needs 0 MB and the disk has 0 MB free; make room"):
        export(manifest, "megatron", tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_export_of_compressed_megatron_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only mds has compressed shards"):
        export(manifest, "megatron", tmp_path / "out", compression="zstd")


# --- the peers' own readers, where they are installed


def test_megatron_export_by_megatrons_own_reader_is_the_plan(manifest: Manifest, tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    export(manifest, "megatron", tmp_path / "out")

    for stage in manifest.stages:
        rows = indexed.IndexedDataset(str(tmp_path / "out" / stage["name"]))
        wanted = [padded(parts, manifest.sequence_length) for parts, _ in planned(manifest, stage)]
        assert [rows[number].tolist() for number in range(len(rows))] == wanted


def test_mds_export_by_streamings_own_reader_is_the_plan(manifest: Manifest, tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming")
    export(manifest, "mds", tmp_path / "out")

    dataset = streaming.StreamingDataset(local=str(tmp_path / "out"), shuffle=False, batch_size=1, validate_hash="sha256")

    wanted = [padded(parts, manifest.sequence_length) for stage in manifest.stages for parts, _ in planned(manifest, stage)]
    assert [sample["tokens"].tolist() for sample in dataset] == wanted
