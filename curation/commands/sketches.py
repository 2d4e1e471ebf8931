"""MinHash signatures for other programs: a Parquet file with one row per kept document of a manifest, or per member of an index, from which datasketch reads `LeanMinHash`.

Columns: `row` (of a member its number in the index), `source`, `origin`, `content` (32 hex characters) as in the pool, and `lean`, 525 bytes: what `datasketch.LeanMinHash.serialize(buffer, "<")` writes since its
version 2.0, that is the seed (i64, 1), the negated number of values (i32, -128), the scheme (u8, 1 for affine32), and 128 values (u32), all little-endian. The shingles are ours
(`curation.dedup.minhash`), so sketches compare with sketches of the same words and versions alone; the file's metadata names them under `tilth.signatures`.

Signatures come from the work directory's sidecars, and from the texts for documents that no step has signed. Memory: one row group of a shard. The same manifest gives the same rows
in the same order. A text without a word has the empty signature, all bits set, which datasketch takes for equal to others like it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.commands.explain import shards_of, work_of
from curation.corpus.shards import Positions, Shard, Sidecar, read_sidecar, sidecar_path
from curation.decisions.duplicates import signature_key, signatures_of
from curation.dedup.index import FILE, Index
from curation.dedup.minhash import PERMUTATIONS, SIGNATURE_VERSION, Signatures, signatures
from curation.engine.work_directory import Work, write_atomic
from mixing.manifest import Manifest

LEAN = np.dtype([("seed", "<i8"), ("count", "<i4"), ("scheme", "u1"), ("values", "<u4", (PERMUTATIONS,))])
SEED, AFFINE32 = 1, 1
SKETCHES = pa.schema(
    {
        "row": pa.uint64(),
        "source": pa.large_string(),
        "origin": pa.large_string(),
        "content": pa.large_string(),
        "lean": pa.binary(LEAN.itemsize),
    },
    metadata={"tilth.signatures": SIGNATURE_VERSION},
)


def lean(signed: Signatures) -> pa.FixedSizeBinaryArray:
    """Signatures u32[n, 128] as datasketch serializes them, 525 bytes each."""
    records = np.zeros(len(signed), LEAN)
    records["seed"], records["count"], records["scheme"], records["values"] = SEED, -PERMUTATIONS, AFFINE32, signed
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(LEAN.itemsize), len(signed), [None, pa.py_buffer(records.tobytes())])


def write_sketches(folder: Path, path: Path, work: Path | None) -> int:
    """Writes the sketches of all kept documents of a manifest, or of all members of an index, to `path`; how many there are. A manifest needs the work directory."""
    if (folder / FILE).is_file():
        index = Index.open(folder)
        write_atomic(path, partial(_write_members, index))
        return index.documents
    manifest = Manifest.open(folder)
    shards = shards_of(manifest, work)
    kept = manifest.pool().filter(pl.col("decision") == "kept").select("row").collect()["row"].to_numpy()
    write_atomic(path, partial(_write, shards, kept, Work(work_of(manifest, work))))
    return len(kept)


def _write_members(index: Index, path: Path) -> None:
    with pq.ParquetWriter(path, SKETCHES, compression="zstd") as writer:
        for part in index.members():
            contents = pa.array([one.hex() for one in part.column("content").to_pylist()], pa.large_string())
            columns = [pa.array(part.rows()), part.column("source"), part.column("origin"), contents, lean(part.signatures())]
            writer.write_table(pa.table(columns, schema=SKETCHES))


def _write(shards: list[Shard], kept: npt.NDArray[np.uint64], work: Work, path: Path) -> None:
    with pq.ParquetWriter(path, SKETCHES, compression="zstd") as writer:
        for shard in shards:
            rows, sidecar = shard.rows(), read_sidecar(sidecar_path(work, signature_key(), shard))
            chosen = np.flatnonzero(np.isin(rows, kept))
            contents = shard.read(["content"])["content"]
            for first, end in shard.spans():
                positions = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, end)]
                if not len(positions):
                    continue
                columns = [
                    pa.array(rows[positions]),
                    pa.array([shard.source] * len(positions), pa.large_string()),
                    pa.array(shard.origins(positions), pa.large_string()),
                    pa.array([one.hex() for one in contents.take(pa.array(positions)).to_pylist()], pa.large_string()),
                    lean(_signed(shard, positions, sidecar, first, end)),
                ]
                writer.write_table(pa.table(columns, schema=SKETCHES))


def _signed(shard: Shard, positions: Positions, sidecar: Sidecar | None, first: int, end: int) -> Signatures:
    """The signatures of documents at `positions`, which lie in `[first, end)`."""
    signed = np.empty((len(positions), PERMUTATIONS), np.uint32)
    known = np.zeros(len(positions), np.bool_) if sidecar is None else sidecar.known[positions]
    if sidecar is not None and known.any():
        signed[known] = signatures_of(sidecar.between(first, end))[positions[known] - first]
    if not known.all():
        signed[~known] = signatures(shard.texts(positions[~known]))
    return signed
