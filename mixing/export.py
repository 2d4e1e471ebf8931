"""The same plan for other trainers: Megatron-LM's `.bin`/`.idx`, or MosaicML Streaming's MDS.

In: a manifest. Out: a folder that holds the same sequences in the same order, each as one row of `sequence_length` ids, filled up with `pad_id`
(the EOS id, or 0 without one). Both formats also say where the pieces of a row begin, because ids alone cannot: a document that was cut
has no EOS at its cut. `export.json` names the manifest and counts, per stage, the rows, tokens, padding, pieces and the boundaries that no EOS marks.

`megatron`: per stage `S.bin` and `S.idx` (index version 1), in which every sequence and every document is one row; `S.pieces.idx` over the same bytes
(`S.pieces.bin` is a hard link), in which a sequence is one piece, without padding, and a document is one row; and `S.components.npy`, the
component of each row as an index into `components` of `export.json`.
`mds`: per stage a folder with its `index.json` and shards, and one `index.json` over all stages. A sample has `tokens` (`sequence_length` ids), `cu_seqlens`
(uint32: where its pieces begin, and where the last one ends), `component` (its name) and `sequence` (its number in the plan).

The folder appears whole or not at all. Rows are made about four million ids at a time, indices 64 million; memory follows that and one MDS shard
(64 MiB), not the plan.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mixing import UserError
from mixing.canonical import canonical_json
from mixing.files import file_sha256
from mixing.manifest import Manifest, Spans
from mixing.write import fsync_tree, link, partial_folder

BATCH_IDS = 1 << 22
INDEX_IDS = 1 << 26
Format = Literal["megatron", "mds"]
Compression = Literal["zstd"]


class Rows(NamedTuple):
    """Consecutive sequences as rows: their ids with padding behind, the spans they are made of, and their components."""

    first: int
    ids: npt.NDArray[Any]
    spans: Spans
    component: npt.NDArray[np.uint16]


class Exported(NamedTuple):
    """What was written: the folder, and what its `export.json` says."""

    folder: Path
    facts: dict[str, Any]


def export(
    manifest: Manifest,
    to: Format,
    target: Path,
    *,
    compression: Compression | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Exported:
    """Write the plan of `manifest` for another trainer into the folder `target`, which must not exist or be empty; `advance` hears of rows written."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"-o {target}: exists; choose another folder or remove it")
    if compression and to != "mds":
        raise UserError(f"--compression {compression}: only mds has compressed shards; leave it out for {to}")
    partial, lock = partial_folder(target.absolute())
    try:
        _refuse_full_disk(manifest, partial, target)
        if to == "megatron":
            stages = [_megatron(manifest, number, partial, advance) for number in range(len(manifest.stages))]
        else:
            stages = _mds(manifest, partial, compression, advance)
        facts = _facts(manifest, to, stages, partial)
        (partial / "export.json").write_text(canonical_json(facts))
        fsync_tree(partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)
    return Exported(target, facts)


def _refuse_full_disk(manifest: Manifest, partial: Path, target: Path) -> None:
    needed = manifest.sequences * manifest.sequence_length * np.dtype(manifest.tokenizer["dtype"]).itemsize
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise UserError(
            f"-o {target}: the export needs {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free; make room or choose another"
        )


def pad_id(manifest: Manifest) -> int:
    """What fills a row up: the EOS id, which other trainers already leave out of the loss, or 0."""
    eos = manifest.tokenizer["eos_id"]
    return 0 if eos is None else int(eos)


def rows(manifest: Manifest, first: int, last: int) -> Iterator[Rows]:
    """The sequences `[first, last)` some millions of ids at a time."""
    size = manifest.sequence_length
    step = max(1, BATCH_IDS // size)
    for low in range(first, last, step):
        high = min(low + step, last)
        spans = manifest.spans(low, high)
        ids = np.full(((high - low) * size), pad_id(manifest), manifest.tokenizer["dtype"])
        place = _places(spans, size)
        for file, row, start, length, at in zip(*(column.tolist() for column in (*spans[1:5], place)), strict=True):
            ids[at : at + length] = manifest.ids(file, row, start, length)
        yield Rows(low, ids.reshape(high - low, size), spans, manifest.components(low, high))


def _places(spans: Spans, size: int) -> npt.NDArray[np.int64]:
    """Where each span begins when the rows, `size` ids each, are laid end to end."""
    begin = np.cumsum(spans.length, dtype=np.int64) - spans.length
    counts = np.diff(spans.sequence)
    filled = begin[spans.sequence[:-1]]  # what the rows before hold, without their padding
    places: npt.NDArray[np.int64] = begin + np.repeat(np.arange(len(counts)) * size - filled, counts)
    return places


def _unmarked(made: Rows, eos: int | None) -> int:
    """Pieces that end before their row does, and not with EOS: what a trainer that looks for EOS takes for one piece with what follows."""
    end = _places(made.spans, made.ids.shape[1]) + made.spans.length
    inside = end % made.ids.shape[1] != 0
    return int(np.count_nonzero(inside if eos is None else inside & (made.ids.reshape(-1)[end - 1] != eos)))


def _facts(manifest: Manifest, to: Format, stages: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tokenizer = manifest.tokenizer
    return {
        "manifest": manifest.digest,
        "name": manifest.header["name"],
        "version": manifest.header["version"],
        "format": to,
        "sequence_length": manifest.sequence_length,
        "sequences": manifest.sequences,
        "components": manifest.component_names,
        "tokenizer": {name: tokenizer[name] for name in ("name", "sha256", "vocab_size", "bos_id", "eos_id")},
        "pad_id": pad_id(manifest),
        "stages": stages,
        "files": [
            {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files
        ],
    }


def _stage_facts(stage: dict[str, Any], pieces: int, unmarked: int) -> dict[str, Any]:
    same = {key: stage[key] for key in ("name", "first_sequence", "sequences", "tokens", "predictions", "padding")}
    return {**same, "pieces": pieces, "boundaries_without_eos": unmarked}


# --- Megatron-LM

_MEGATRON_MAGIC, _MEGATRON_VERSION = b"MMIDIDX\x00\x00", 1
_MEGATRON_CODES = {"uint16": (8, "<u2"), "uint32": (4, "<i4")}
"""The format has no uint32: ids of large vocabularies are stored as int32, code 4."""


def _megatron(manifest: Manifest, number: int, folder: Path, advance: Callable[[int], None]) -> dict[str, Any]:
    """One stage as a prefix of its own."""
    stage = manifest.stages[number]
    name, first, count, size = stage["name"], stage["first_sequence"], stage["sequences"], manifest.sequence_length
    code, stored = _MEGATRON_CODES[manifest.tokenizer["dtype"]]
    if manifest.tokenizer["vocab_size"] > 2**31:
        raise UserError(f"export: the vocabulary has {manifest.tokenizer['vocab_size']:,} ids; Megatron's index holds up to {2**31:,}")
    unmarked = pieces = 0
    with (folder / f"{name}.bin").open("wb") as file:
        for made in rows(manifest, first, first + count):
            file.write(made.ids.astype(stored, copy=False).data)
            unmarked += _unmarked(made, manifest.tokenizer["eos_id"])
            pieces += len(made.spans.length)
            advance(len(made.ids))
    link(folder / f"{name}.bin", folder / f"{name}.pieces.bin")
    width = np.dtype(stored).itemsize

    def blocks() -> Iterator[tuple[int, int]]:
        step = max(1, INDEX_IDS // size)
        return ((low, min(low + step, count)) for low in range(0, count, step))

    def spans() -> Iterator[tuple[int, Spans]]:
        return ((low, manifest.spans(first + low, first + high)) for low, high in blocks())

    with (folder / f"{name}.idx").open("wb") as file:
        lengths = (np.full(high - low, size) for low, high in blocks())
        pointers = (np.arange(low, high) * (size * width) for low, high in blocks())
        _write_index(file, code, (count, count), lengths, pointers, (np.arange(low, high) + 1 for low, high in blocks()))
    with (folder / f"{name}.pieces.idx").open("wb") as file:
        lengths = (part.length for _, part in spans())
        pointers = ((_places(part, size) + low * size) * width for low, part in spans())
        _write_index(file, code, (pieces, count), lengths, pointers, _running(part.sequence[1:] for _, part in spans()))
    np.save(folder / f"{name}.components.npy", manifest.components(first, first + count))
    return _stage_facts(stage, pieces, unmarked)


def _running(ends: Iterable[npt.NDArray[np.int64]]) -> Iterator[npt.NDArray[np.int64]]:
    """Ends counted in each block, counted over all blocks."""
    before = 0
    for part in ends:
        yield part + before
        before += int(part[-1])


def _write_index(
    file: BinaryIO,
    code: int,
    counts: tuple[int, int],
    lengths: Iterable[npt.NDArray[Any]],
    pointers: Iterable[npt.NDArray[Any]],
    ends: Iterable[npt.NDArray[Any]],
) -> None:
    """An index of version 1: magic, version u64, type u8, numbers of sequences and of document boundaries u64 each; then the sequences' lengths in
    ids (i32), their places in the `.bin` in bytes (i64), and the document boundaries, 0 first (i64)."""
    sequences, documents = counts
    file.write(_MEGATRON_MAGIC + struct.pack("<QBQQ", _MEGATRON_VERSION, code, sequences, documents + 1))
    for columns, kind in ((lengths, "<i4"), (pointers, "<i8")):
        for part in columns:
            file.write(np.ascontiguousarray(part, kind).data)
    file.write(struct.pack("<q", 0))
    for part in ends:
        file.write(np.ascontiguousarray(part, "<i8").data)


# --- MosaicML Streaming

SHARD_BYTES = 1 << 26
_MDS_VERSION, _MDS_COLUMNS = 2, ("component", "cu_seqlens", "sequence", "tokens")
_HASH = "sha256"


def _mds(manifest: Manifest, folder: Path, compression: Compression | None, advance: Callable[[int], None]) -> list[dict[str, Any]]:
    """A folder of shards for each stage, and an index over all of them."""
    ids = np.dtype(manifest.tokenizer["dtype"])
    encodings = ["str", "ndarray:uint32", "uint64", f"ndarray:{ids.name}:{manifest.sequence_length}"]
    config = {
        "column_encodings": encodings,
        "column_names": list(_MDS_COLUMNS),
        "column_sizes": [None, None, 8, ids.itemsize * manifest.sequence_length],
        "compression": compression,
        "format": "mds",
        "hashes": [_HASH],
        "size_limit": SHARD_BYTES,
        "version": _MDS_VERSION,
    }
    names = [name.encode() for name in manifest.component_names]
    stages, every = [], []
    for stage in manifest.stages:
        first, unmarked, pieces = stage["first_sequence"], 0, 0
        shards = _Shards(folder / stage["name"], config)
        for made in rows(manifest, first, first + stage["sequences"]):
            for sample in _samples(made, names):
                shards.add(sample)
            unmarked += _unmarked(made, manifest.tokenizer["eos_id"])
            pieces += len(made.spans.length)
            advance(len(made.ids))
        shards.close()
        _write_mds_index(folder / stage["name"], shards.written)
        every += [_below(stage["name"], shard) for shard in shards.written]
        stages.append(_stage_facts(stage, pieces, unmarked))
    _write_mds_index(folder, every)
    return stages


def _samples(made: Rows, names: list[bytes]) -> Iterator[bytes]:
    """Each row as a sample: the sizes (u32) of its two columns of no fixed size, then the columns in order."""
    ends = np.cumsum(made.spans.length, dtype=np.int64)
    for number, ids in enumerate(made.ids):
        low, high = made.spans.sequence[number : number + 2]
        before = ends[low] - made.spans.length[low]
        starts = _array(np.concatenate([np.zeros(1, np.int64), ends[low:high] - before]).astype("<u4"))
        name = names[made.component[number]]
        head = struct.pack("<II", len(name), len(starts))
        yield b"".join([head, name, starts, struct.pack("<Q", made.first + number), ids.tobytes()])


def _array(values: npt.NDArray[Any]) -> bytes:
    """One axis without a fixed length: a byte with the number of axes (above 2 bits) and the size of a length, the length, the values."""
    kind = next(k for k, size in enumerate((1, 2, 4, 8)) if len(values) < 1 << 8 * size)
    return bytes([1 << 2 | kind]) + len(values).to_bytes(1 << kind, "little") + values.tobytes()


class _Shards:
    """The shards of one folder as they fill up. A shard: the number of samples (u32), where each begins and the last one ends (u32), the
    columns' configuration as JSON, the samples."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.written: list[dict[str, Any]] = []
        self._json = json.dumps(config, sort_keys=True).encode()
        self._samples: list[bytes] = []
        self._bytes = 0
        folder.mkdir()

    def add(self, sample: bytes) -> None:
        if self._samples and 8 + len(self._json) + self._bytes + 4 + len(sample) > SHARD_BYTES:
            self.close()
        self._samples.append(sample)
        self._bytes += 4 + len(sample)

    def close(self) -> None:
        """Write the samples that wait as a shard."""
        sizes = np.array([len(sample) for sample in self._samples], np.int64)
        begin = 4 + 4 * (len(sizes) + 1) + len(self._json)
        offsets = (begin + np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])).astype("<u4")
        content = b"".join([struct.pack("<I", len(sizes)), offsets.tobytes(), self._json, *self._samples])
        name = f"shard.{len(self.written):05d}.mds"
        raw, packed = _described(name, content), None
        if self.config["compression"]:
            import zstandard

            name, content = f"{name}.zstd", zstandard.compress(content)
            packed = _described(name, content)
        (self.folder / name).write_bytes(content)
        self.written.append({**self.config, "raw_data": raw, "samples": len(sizes), "zip_data": packed})
        self._samples, self._bytes = [], 0


def _described(name: str, content: bytes) -> dict[str, Any]:
    return {"basename": name, "bytes": len(content), "hashes": {_HASH: hashlib.new(_HASH, content).hexdigest()}}


def _below(folder: str, shard: dict[str, Any]) -> dict[str, Any]:
    """A shard as an index one folder up names it."""
    moved = {key: {**shard[key], "basename": f"{folder}/{shard[key]['basename']}"} for key in ("raw_data", "zip_data") if shard[key]}
    return {**shard, **moved}


def _write_mds_index(folder: Path, shards: list[dict[str, Any]]) -> None:
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": _MDS_VERSION}, sort_keys=True))
