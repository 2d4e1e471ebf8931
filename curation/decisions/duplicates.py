"""Duplicates and repeated text among the documents alive at a step: which they are, by their rows, signatures, contents and texts.

MinHash signatures are row signals like any other: 512 bytes a document in a sidecar, computed once for all recipes. What a deduplication found is a corpus signal: it depends
on the set of documents alive, so its key holds a digest of that set, and its values name the surviving document by row, similarity and origin. With an index to compare with,
its content digest enters too, and a survivor that is one of its members is named by origin and the source it was added from, without a row.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from curation.corpus.shards import Mask, Positions, Rows, Shard, Sidecar, fill_sidecar, read_sidecar, sidecar_path, write_sidecar
from curation.decisions.ranking import order_key
from curation.dedup import minhash
from curation.dedup.exact import NORMALIZED_VERSION, ExactConfig, exact_duplicates, normalized
from curation.dedup.index import Index, Members
from curation.dedup.minhash import MinhashConfig
from curation.dedup.near import near_duplicates
from curation.dedup.ranks import Ranks, rank
from curation.dedup.repeats import REPEATS_VERSION, Repeated, RepeatsConfig, find_repeated, shares_in
from curation.dedup.runs import END, FOREIGN, Range, gather, ranges, write_run
from curation.engine.atomic_files import save, whole
from curation.engine.local import Engine
from curation.engine.work_directory import Work, key_of, write_json

NEAR_VERSION = "2"
NAME_TIMES = 8  # bytes of a name for a byte of its row


DEDUP: dict[str, type[ExactConfig] | type[MinhashConfig]] = {"exact": ExactConfig, "minhash": MinhashConfig}
SURVIVOR = pa.struct([("row", pa.uint64()), ("similarity", pa.float64()), ("origin", pa.large_string())])
MEMBER = [("index", pa.large_string()), ("source", pa.large_string()), ("key", pa.large_string())]
"""What a survivor that is a member of an index has besides, and no row."""
NAMED = pa.schema([("row", pa.uint64()), ("origin", pa.large_string()), *MEMBER])
SURVIVOR_OR_MEMBER = pa.struct([*SURVIVOR, *MEMBER])
SHOWN = pa.struct([("row", pa.uint64()), ("index", pa.large_string()), ("similarity", pa.float64())])
"""What the pool shows of a survivor or member; of survivors alone it shows the row."""


def signature_key() -> str:
    return key_of("signatures", minhash.SIGNATURE_VERSION)


def normalized_key() -> str:
    return key_of("normalized", NORMALIZED_VERSION)


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

    def normalized(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
        sidecar = read_sidecar(sidecar_path(self.work, normalized_key(), self.shard))
        assert sidecar is not None
        values = sidecar.values.filter(pa.array(np.load(self.mask)))
        raw = values.fill_null(bytes(16)).buffers()[1] if len(values) else b""
        return np.frombuffer(raw, ">u8", 2 * len(values)).astype(np.uint64).reshape(-1, 2), values.is_valid().to_numpy(zero_copy_only=False)

    def signatures(self) -> npt.NDArray[np.uint32]:
        sidecar = read_sidecar(sidecar_path(self.work, signature_key(), self.shard))
        assert sidecar is not None
        mask = np.load(self.mask)
        return np.concatenate([signatures_of(part)[mask[first : first + len(part)]] for first, part in sidecar.places()])

    def texts(self, positions: npt.NDArray[np.integer]) -> pa.LargeStringArray:
        return self.shard.texts(self.positions()[positions])

    def spans(self) -> list[tuple[int, int]]:
        """The live documents of each row group, as ranges of positions."""
        before = np.concatenate([[0], np.cumsum(np.load(self.mask))])
        return [(int(before[first]), int(before[end])) for first, end in self.shard.spans() if before[end] > before[first]]

    def shingles(self, positions: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        return minhash.shingles(self.texts(positions))


def digest_of(shards: list[LiveShard]) -> str:
    """A digest of who is alive, and as which row."""
    return key_of(
        [[live.name, live.shard.first_row, xxhash.xxh3_128_hexdigest(np.packbits(np.load(live.mask)).tobytes())] for live in shards]
    )


class Priority(NamedTuple):
    """The values that a configuration's `priority` names: the key of their sidecars, None for a column, and a picklable function (shard, positions) that gives them as f64,
    NaN for none."""

    key: str | None
    values: Callable[[Shard, Positions], npt.NDArray[np.float64]]


def find_duplicates(
    config: ExactConfig | MinhashConfig,
    shards: list[LiveShard],
    work: Work,
    engine: Engine,
    priority: Priority | None = None,
    index: Index | None = None,
) -> tuple[str, int]:
    """Sidecars of SURVIVOR values, with an index SURVIVOR_OR_MEMBER, for all live documents, null for those with no duplicate kept before them; (their key, documents decided anew)."""
    depends = [] if priority is None else [priority.key]
    if isinstance(config, ExactConfig) and config.by == "normalized":
        depends = [*depends, normalized_key()]
    if index is not None:
        depends = [*depends, f"index {index.digest}"]
    key = key_of("duplicates", NEAR_VERSION, minhash.SIGNATURE_VERSION, config.model_dump(exclude={"against"}), digest_of(shards), *depends)
    missing = [live for live in shards if not sidecar_path(work, key, live.shard).exists()]
    if not missing:
        return key, 0
    scratch = work.room("scratch") / key
    scratch.mkdir(exist_ok=True)
    run = partial(engine.map, label=f"find {config.kind} duplicates")
    ranks = None if priority is None else _rank(shards, priority, config.order, scratch / "ranks", engine)
    members = [] if index is None else index.members()
    if isinstance(config, MinhashConfig):
        engine.map(_sign_live, [(live,) for live in shards], "sign")
        found = near_duplicates(shards, config, scratch, run, engine.memory.range_bytes(), ranks, members)
        write_json(_report_path(work, key), json.loads((scratch / "report.json").read_text()))
    else:
        if config.by == "normalized":
            engine.map(_normalize_live, [(live,) for live in shards], "normalize")
        found = exact_duplicates(shards, scratch, run, engine.memory.range_bytes(), by=config.by, ranks=ranks, index=members)
    shutil.rmtree(scratch / "ranks", ignore_errors=True)
    survivors = _with_origins(found, shards, members, scratch, engine)
    kind = SURVIVOR if index is None else SURVIVOR_OR_MEMBER
    decided = engine.map(
        _write_survivors,
        [(live, path, survivors, key, kind) for live, path in zip(shards, found, strict=True)],
        f"record {config.kind} duplicates",
    )
    return key, sum(decided)


def find_repeats(config: RepeatsConfig, shards: list[LiveShard], present: list[LiveShard], work: Work, engine: Engine) -> tuple[str, int]:
    """Sidecars of the share of every document `present` that it has in common with the live ones of `shards`; (their key, documents decided anew)."""
    key = key_of("repeats", REPEATS_VERSION, config.model_dump(), digest_of(shards), digest_of(present))
    if all(sidecar_path(work, key, live.shard).exists() for live in shards):
        return key, 0
    scratch = work.room("scratch") / key
    run = partial(engine.map, label=f"find {config.kind}")
    repeated = find_repeated(config, shards, scratch, run, engine.memory.range_bytes())
    tasks = [(config, live, one, repeated, key) for live, one in zip(shards, present, strict=True)]
    decided = sum(engine.map(_write_shares, tasks, f"record {config.kind}"))
    shutil.rmtree(scratch)
    return key, decided


def _write_shares(config: RepeatsConfig, live: LiveShard, present: LiveShard, repeated: list[Repeated], key: str) -> int:
    mask, counted = np.load(present.mask), np.load(live.mask)
    shares = np.full(len(mask), np.nan)
    shares[mask] = shares_in(config, present, repeated, counted[mask])
    write_sidecar(sidecar_path(live.work, key, live.shard), mask, pa.array(shares, mask=np.isnan(shares)))
    return int(counted.sum())


def report_of(work: Work, key: str) -> dict[str, int]:
    """What a search for near-duplicates compared and gave up (see `dedup.near`); nothing of another signal."""
    path = _report_path(work, key)
    found: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _report_path(work: Work, key: str) -> Path:
    return work.room("sidecars") / key / "report.json"


def _sign_live(live: LiveShard) -> None:
    sign(live.shard, np.load(live.mask), live.work)


def _normalize_live(live: LiveShard) -> None:
    def compute(positions: Positions) -> pa.Array:
        return normalized(live.shard.texts(positions))

    fill_sidecar(sidecar_path(live.work, normalized_key(), live.shard), np.load(live.mask), compute, live.shard.spans())


def _rank(shards: list[LiveShard], priority: Priority, order: str, folder: Path, engine: Engine) -> Ranks:
    shutil.rmtree(folder, ignore_errors=True)  # what a killed build left
    sources = list(dict.fromkeys(live.shard.source for live in shards))
    keys = partial(_sort_keys, values=priority.values, order=order)
    run = partial(engine.map, label="rank duplicates")
    return rank(shards, [sources.index(live.shard.source) for live in shards], keys, folder, run, engine.memory.range_bytes())


def _sort_keys(live: LiveShard, values: Callable[[Shard, Positions], npt.NDArray[np.float64]], order: str) -> npt.NDArray[np.float64]:
    return order_key(values(live.shard, live.positions()), order)


class Named(NamedTuple):
    """Survivors of one range of rows: a table of (row, origin, what MEMBER names), sorted by row, of which members have a number marked FOREIGN."""

    range: Range
    path: Path


def _with_origins(found: list[Path], shards: list[LiveShard], members: list[Members], scratch: Path, engine: Engine) -> list[Named]:
    """The names of all survivors, range by range of their rows: which are wanted is gathered from the shards that name them, and what they are called from those that hold them."""
    run = partial(engine.map, label="name survivors")
    rows = run(_survivors_in, [(path, scratch / f"rows-{number}.npy") for number, path in enumerate(found)])
    cuts = ranges(rows, engine.memory.range_bytes() // NAME_TIMES)
    wanted = run(_distinct, [(rows, cut, scratch / f"wanted-{number}.npy") for number, cut in enumerate(cuts)])
    asked = list(zip(cuts, wanted, strict=True))
    parts = run(_origins_in, [(live.shard, asked, scratch / f"origins-{number}.arrow") for number, live in enumerate(shards)])
    if members:
        tasks = [(part, asked, scratch / f"members-{number}.arrow") for number, part in enumerate(members)]
        parts += engine.map(_members_in, tasks, "name members of the index")
    return run(_merged, [(parts, cut, scratch / f"survivors-{number}.arrow") for number, cut in enumerate(cuts)])


def _survivors_in(found: Path, path: Path) -> Path:
    return write_run(path, [np.unique(np.load(found)["survivor"])])


def _distinct(rows: list[Path], cut: Range, path: Path) -> Path:
    return save(path, np.unique(gather(rows, *cut, 1)[0]))


def _asked_of(rows: Rows, asked: list[tuple[Range, Path]]) -> Positions:
    """The positions of those rows that are asked for."""
    there = np.zeros(len(rows), np.bool_)
    for (low, high), wanted in asked:
        if len(rows) and int(rows.max()) >= low and int(rows.min()) < high:
            there |= np.isin(rows, np.load(wanted))
    return np.flatnonzero(there)


def _origins_in(shard: Shard, asked: list[tuple[Range, Path]], path: Path) -> Path:
    rows = shard.rows()
    positions = _asked_of(rows, asked)
    return _write_names(path, {"row": pa.array(rows[positions]), "origin": pa.array(shard.origins(positions), pa.large_string())})


def _members_in(members: Members, asked: list[tuple[Range, Path]], path: Path) -> Path:
    rows = members.rows() | FOREIGN
    positions = _asked_of(rows, asked)
    named = {name: members.column(name, positions) for name in ("origin", "source", "key")}
    index = pa.array([members.path.parent.name] * len(positions), pa.large_string())
    return _write_names(path, {"row": pa.array(rows[positions]), "index": index, **named})


def _write_names(path: Path, columns: dict[str, pa.Array]) -> Path:
    """A table of NAMED, sorted by row; a column that is not given is null."""
    table = pa.concat_tables([NAMED.empty_table(), pa.table(columns)], promote_options="default").sort_by("row").combine_chunks()
    with whole(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, NAMED) as writer:
        writer.write_table(table.cast(NAMED))
    return path


def _names(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _merged(parts: list[Path], cut: Range, path: Path) -> Named:
    found = {field.name: [pa.array([], field.type)] for field in NAMED}
    for part in parts:
        table = _names(part)
        rows = table["row"].to_numpy()
        first = int(np.searchsorted(rows, np.uint64(cut[0])))
        last = len(rows) if cut[1] >= END else int(np.searchsorted(rows, np.uint64(cut[1])))
        for name, chunks in found.items():
            chunks += table[name].slice(first, last - first).chunks
    return Named(cut, _write_names(path, {name: pa.concat_arrays(chunks) for name, chunks in found.items()}))


def _write_survivors(live: LiveShard, found: Path, survivors: list[Named], key: str, kind: pa.StructType) -> int:
    matches = np.load(found)
    mask = np.load(live.mask)
    order = np.argsort(matches["survivor"], kind="stable")
    parts = [NAMED.empty_table()]
    for (low, high), path in survivors:
        rows = matches["survivor"][order]
        first = int(np.searchsorted(rows, np.uint64(low)))
        last = len(rows) if high >= END else int(np.searchsorted(rows, np.uint64(high)))
        if last > first:
            table = _names(path)
            parts.append(table.take(pa.array(np.searchsorted(table["row"].to_numpy(), rows[first:last]))))
    named, matches = pa.concat_tables(parts), matches[order]
    place = np.full(len(mask), -1, np.int64)
    place[live.positions()[matches["position"]]] = np.arange(len(matches))
    row = pa.array(matches["survivor"], mask=matches["survivor"] >= FOREIGN)
    columns = [row, pa.array(matches["similarity"]), *(pc.cast(named[field.name].combine_chunks(), field.type) for field in list(kind)[2:])]
    values = pa.StructArray.from_arrays(columns, fields=list(kind))
    write_sidecar(sidecar_path(live.work, key, live.shard), mask, values.take(pa.array(place, mask=place < 0)))
    return int(mask.sum())
