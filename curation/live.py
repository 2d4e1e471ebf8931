"""The documents alive at a step, as deduplication sees them: their rows, signatures, contents and texts.

MinHash signatures are row signals like any other: 512 bytes a document in a sidecar, computed once for all recipes. What a deduplication found is a corpus signal: it depends
on the set of documents alive, so its key holds a digest of that set, and its values name the surviving document by row, similarity and origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import BaseModel, ConfigDict

from curation.corpus import Mask, Positions, Rows, Shard, Sidecar, fill_sidecar, read_sidecar, sidecar_path, write_sidecar
from curation.dedup import minhash
from curation.dedup.exact import exact_duplicates
from curation.dedup.minhash import MinhashConfig
from curation.dedup.near import near_duplicates
from curation.engine import Engine
from curation.work import Work, key_of

NEAR_VERSION = "1"


class ExactConfig(BaseModel):
    """Exact duplicates: documents whose text as written is equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["exact"]


DEDUP: dict[str, type[ExactConfig] | type[MinhashConfig]] = {"exact": ExactConfig, "minhash": MinhashConfig}
SURVIVOR = pa.struct([("row", pa.uint64()), ("similarity", pa.float64()), ("origin", pa.large_string())])


def signature_key() -> str:
    return key_of("signatures", minhash.SIGNATURE_VERSION)


def sign(shard: Shard, wanted: Mask, work: Work) -> Sidecar:
    """The sidecar of signatures, filled for the `wanted` documents."""

    def compute(positions: Positions) -> pa.Array:
        signed = minhash.signatures(shard.texts(positions))
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(4 * minhash.PERMUTATIONS), len(signed), [None, pa.py_buffer(signed.tobytes())]
        )

    return fill_sidecar(sidecar_path(work, signature_key(), shard), wanted, compute, shard.spans())


def signatures_of(values: pa.Array) -> npt.NDArray[np.uint32]:
    """u32[n, 128] of a signature sidecar's values; a document without one has whatever bytes stand under its null."""
    width = 4 * minhash.PERMUTATIONS
    raw = (
        np.frombuffer(values.buffers()[1], np.uint8, count=len(values) * width, offset=values.offset * width)
        if len(values)
        else np.zeros(0, np.uint8)
    )
    return raw.view(np.uint32).reshape(-1, minhash.PERMUTATIONS)


@dataclass(frozen=True)
class LiveShard:
    """The live documents of one shard; `mask` is a file with one bool a document."""

    shard: Shard
    mask: Path
    work: Work

    @property
    def name(self) -> str:
        return self.shard.name

    def positions(self) -> Positions:
        return np.flatnonzero(np.load(self.mask))

    def rows(self) -> Rows:
        return self.shard.rows()[self.positions()]

    def contents(self) -> npt.NDArray[np.uint64]:
        return self.shard.contents()[self.positions()]

    def signatures(self) -> npt.NDArray[np.uint32]:
        sidecar = read_sidecar(sidecar_path(self.work, signature_key(), self.shard))
        assert sidecar is not None
        mask = np.load(self.mask)
        return np.concatenate([signatures_of(part)[mask[first : first + len(part)]] for first, part in sidecar.places()])

    def texts(self, positions: npt.NDArray[np.integer]) -> pa.LargeStringArray:
        return self.shard.texts(self.positions()[positions])


def digest_of(shards: list[LiveShard]) -> str:
    """A digest of who is alive, and as which row."""
    return key_of(
        [[live.name, live.shard.first_row, xxhash.xxh3_128_hexdigest(np.packbits(np.load(live.mask)).tobytes())] for live in shards]
    )


def find_duplicates(config: ExactConfig | MinhashConfig, shards: list[LiveShard], work: Work, engine: Engine) -> tuple[str, int]:
    """Sidecars of SURVIVOR values for all live documents, null for those with no duplicate kept before them; (their key, documents decided anew)."""
    key = key_of("duplicates", NEAR_VERSION, minhash.SIGNATURE_VERSION, config.model_dump(), digest_of(shards))
    missing = [live for live in shards if not sidecar_path(work, key, live.shard).exists()]
    if not missing:
        return key, 0
    scratch = work.room("scratch") / key
    scratch.mkdir(exist_ok=True)
    run = partial(engine.map, label=f"find {config.kind} duplicates")
    if isinstance(config, MinhashConfig):
        engine.map(_sign_live, [(live,) for live in shards], "sign")
        found = near_duplicates(shards, config, scratch, run, engine.memory.range_bytes())
    else:
        found = exact_duplicates(shards, scratch, run, engine.memory.range_bytes())
    survivors = _with_origins(found, shards, scratch, engine)
    decided = engine.map(
        _write_survivors,
        [(live, path, survivors, key) for live, path in zip(shards, found, strict=True)],
        f"record {config.kind} duplicates",
    )
    return key, sum(decided)


def _sign_live(live: LiveShard) -> None:
    sign(live.shard, np.load(live.mask), live.work)


def _with_origins(found: list[Path], shards: list[LiveShard], scratch: Path, engine: Engine) -> Path:
    """A table of (row, origin) of every survivor, sorted by row."""
    rows = np.unique(np.concatenate([np.load(path, mmap_mode="r")["survivor"] for path in found] or [np.zeros(0, np.uint64)]))
    wanted = scratch / "survivors.npy"
    np.save(wanted, rows)
    parts = engine.map(_origins_in, [(live.shard, wanted) for live in shards], "name survivors")
    table = pa.concat_tables(parts).sort_by("row")
    path = scratch / "survivors.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def _origins_in(shard: Shard, wanted: Path) -> pa.Table:
    rows = shard.rows()
    positions = np.flatnonzero(np.isin(rows, np.load(wanted)))
    return pa.table({"row": pa.array(rows[positions]), "origin": pa.array(shard.origins(positions), pa.large_string())})


def _write_survivors(live: LiveShard, found: Path, survivors: Path, key: str) -> int:
    matches = np.load(found)
    mask = np.load(live.mask)
    with pa.memory_map(str(survivors)) as source:
        named = pa.ipc.open_file(source).read_all()
    place = np.full(len(mask), -1, np.int64)
    place[live.positions()[matches["position"]]] = np.arange(len(matches))
    origin = named["origin"].take(pa.array(np.searchsorted(named["row"].to_numpy(), matches["survivor"]))).combine_chunks()
    values = pa.StructArray.from_arrays(
        [pa.array(matches["survivor"]), pa.array(matches["similarity"]), pc.cast(origin, pa.large_string())], fields=list(SURVIVOR)
    )
    write_sidecar(sidecar_path(live.work, key, live.shard), mask, values.take(pa.array(place, mask=place < 0)))
    return int(mask.sum())
