"""Read any format into shards; every record that cannot be used goes to quarantine with its reason.

A source's files are cut into units of work by what they are alone (never by workers or memory): Parquet by whole row groups up to 64 MiB; plain JSON Lines by 64 MiB byte
ranges, extended to the next line end; a compressed file as one stream; files under 8 MiB together, in one of 256 buckets by the hash of their path, so that one more
small file touches one bucket. A unit becomes shards of about 64 MiB of decoded bytes and a `unit.json` that says which files' records they hold; it is named by a key over
the files' digests, the fields read and the clean steps, so the same input is read once for all recipes that share a work directory.

A shard is one Parquet file with a row per usable document: `run` (which file of the unit), `ordinal` (running number in that file, unusable records counted),
`position`, `content` (xxh3-128 of the text as written), `key`, `bytes`, `text` and the carried columns; beside it lies the quarantine:
`run, ordinal, position, reason, excerpt`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from curation import reading
from curation.engine import Engine
from curation.reading import CLEAN, Fields, Record
from curation.work import Digests, Work, folder_atomic, key_of, sha256_file, state_of
from mixing import UserError

SHARD_VERSION = "2"
CUT = 64 << 20
SMALL = 8 << 20
BUCKETS = 256
TEXT_GROUP = 4 << 20
JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst", ".json.gz", ".json.zst")
ARROW_TYPES = {"string": pa.large_string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}


class SourceConfig(BaseModel):
    """A named input. `files` is a path or a list of paths with wildcards, relative to the recipe; `name:sub/*.parquet` is below a root given by `--root name=PATH`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: str | list[str] = Field(description="paths with wildcards, relative to the recipe, or `root:below`")
    text: str = Field("text", description="the column that holds the text")
    key: str | None = Field(None, description="a column that identifies a document to its user")
    columns: list[str] = Field([], description="columns carried into the pool")
    licence: str | None = Field(None, description="recorded in the manifest")
    max_quarantine: float = Field(0.01, ge=0, le=1, description="the share of records that may be unreadable before the build stops")


class Input(NamedTuple):
    """A file of a source: its path below the root, its size and its sha256."""

    path: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Source:
    """A source whose files have been found and hashed. `root` is a place on this machine; `root_name` and `pattern` are what a recipe keeps."""

    name: str
    config: SourceConfig
    root: Path
    root_name: str
    pattern: list[str]
    inputs: list[Input]
    columns: dict[str, str]

    @property
    def fields(self) -> Fields:
        return Fields(self.config.text, self.config.key, self.columns)


class Piece(NamedTuple):
    """A part of one file: bytes `[begin, end)` of a plain file, row groups `[begin, end)` of a Parquet file, or all of a stream (`end` is None)."""

    path: str
    digest: str
    parquet: bool
    begin: int
    end: int | None


@dataclass(frozen=True)
class Unit:
    """What one task reads; `name` is its key and the folder of its shards."""

    name: str
    root: Path
    pieces: list[Piece]
    fields: Fields
    clean: tuple[str, ...]
    cut: int


# --- finding files


def natural(path: str) -> tuple[tuple[str | int, ...], str]:
    """Order in which part-2 comes before part-10; equal readings by the path itself."""
    return tuple(int(part) if part.isdigit() and part.isascii() else part for part in re.split(r"([0-9]+)", path)), path


def locate(where: str, files: str | list[str], name: str, folder: Path, roots: dict[str, str]) -> tuple[Path, str, list[str], list[str]]:
    """(root, its name, patterns below it, matching files below it in natural order)."""
    patterns = [files] if isinstance(files, str) else list(files)
    named = [re.match(r"([A-Za-z_][\w-]*):(?!//)(.*)", pattern) for pattern in patterns]
    if any(re.match(r"[a-z0-9]+://", pattern) for pattern in patterns):
        raise UserError(f"{where}: {patterns[0]!r} is a URL; accepted: paths on this machine")
    if all(named) and len({match[1] for match in named if match}) == 1:
        root_name = next(match[1] for match in named if match)
        if root_name not in roots:
            known = ", ".join(sorted(roots)) or "none"
            raise UserError(f"{where}: no root named '{root_name}' (given: {known}); name it with --root {root_name}=PATH")
        root, below = Path(roots[root_name]).expanduser().resolve(), [match[2] for match in named if match]
    else:
        parts = [_fixed_part(folder, pattern) for pattern in patterns]
        root_name, root = name, Path(os.path.commonpath([fixed for fixed, _ in parts]))
        below = [os.path.normpath(os.path.join(escape(os.path.relpath(fixed, root)), rest)) for fixed, rest in parts]
    if any(".." in pattern.split("/") or pattern.startswith("/") for pattern in below):
        raise UserError(f"{where}: a pattern leaves its root {root}; accepted: paths below it")
    found = {path for pattern in below for path in glob(pattern, root_dir=root, recursive=True) if (root / path).is_file()}
    if not found:
        raise UserError(f"{where}: no file matches {', '.join(map(repr, patterns))}; looked below {root}")
    return root, root_name, below, sorted(found, key=natural)


def _fixed_part(folder: Path, pattern: str) -> tuple[str, str]:
    """(the folder before the first wildcard, the rest); a folder alone stands for all files in it. Wildcards in `folder` are part of its name."""
    parts = Path(pattern).expanduser().parts
    first = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
    if first is None and os.path.isdir(folder / Path(*parts)):
        return os.path.abspath(folder / Path(*parts)), os.path.join("**", "*")
    first = len(parts) - 1 if first is None else first
    return os.path.abspath(folder / Path(*parts[:first])), os.path.join(*parts[first:])


def resolve(name: str, config: SourceConfig, folder: Path, roots: dict[str, str], digests: Digests, engine: Engine) -> Source:
    """The source with its files found, hashed and looked at: everything about it that can be refused before a record is read."""
    where = f"sources.{name}"
    root, root_name, below, paths = locate(f"{where}.files", config.files, name, folder, roots)
    unknown = [path for path in paths if not path.endswith((*JSON_LINES, ".parquet"))]
    if unknown:
        raise UserError(f"{where}.files: cannot read {unknown[0]!r}; accepted: {', '.join(JSON_LINES)}, .parquet")
    inputs = hash_files(root, paths, digests, engine, f"hash {name}")
    return Source(name, config, root, root_name, below, inputs, _column_types(where, config, root, paths))


def hash_files(root: Path, paths: list[str], digests: Digests, engine: Engine, label: str) -> list[Input]:
    """The files with size and sha256; only those not remembered are read."""
    known = {path: digests.known(root / path) for path in paths}
    missing = [path for path in paths if known[path] is None]
    before = {path: state_of(root / path) for path in missing}
    for path, digest in zip(missing, engine.map(sha256_file, [(root / path,) for path in missing], label), strict=True):
        known[path] = digest
        digests.remember(root / path, before[path], digest)
    return [Input(path, (root / path).stat().st_size, known[path] or "") for path in paths]


def _column_types(where: str, config: SourceConfig, root: Path, paths: list[str]) -> dict[str, str]:
    """The types of carried columns: as the first file has them; every Parquet file must have the named columns with those types."""
    types: dict[str, str] | None = None
    for path in paths:
        if path.endswith(".parquet"):
            there = parquet_types(where, root, path, [config.text, *([config.key] if config.key else []), *config.columns])
            if there is None:
                continue
            found = {column: there[column] for column in config.columns}
        elif types is None and config.columns:
            found = reading.sniff_columns(root / path, config.columns)
        else:
            continue
        if types is not None and found != types:
            raise UserError(f"{where}.columns: {path} has {found}, the files before it {types}; carry only columns whose types agree")
        types = found
    return types or dict.fromkeys(config.columns, "string")


def parquet_types(where: str, root: Path, path: str, columns: list[str]) -> dict[str, str] | None:
    """The column types of a Parquet file, which must have `columns`; None for a file that cannot be opened."""
    try:
        there = reading.parquet_columns(pq.read_schema(root / path))
    except (OSError, pa.ArrowException):
        return None
    for column in columns:
        if column not in there:
            raise UserError(f"{where}: no column '{column}' in {path}; it has: {', '.join(there)}")
    return there


# --- cutting files into units


def cut(source: Source, clean: tuple[str, ...], cut_bytes: int = CUT) -> list[Unit]:
    """The units of a source, in an order that follows from its files alone."""
    groups: list[list[Piece]] = []
    buckets: dict[int, list[Piece]] = {}
    for path, size, digest in source.inputs:
        parquet = path.endswith(".parquet")
        if size < SMALL:
            groups_of = _row_groups(source.root / path) if parquet else None
            piece = Piece(path, digest, parquet, 0, len(groups_of) if groups_of is not None else None)
            buckets.setdefault(xxhash.xxh3_64_intdigest(path.encode()) % BUCKETS, []).append(piece)
        elif parquet:
            groups += [[Piece(path, digest, True, first, last)] for first, last in _spans_of(_row_groups(source.root / path), cut_bytes)]
        elif reading.is_compressed(source.root / path):
            groups.append([Piece(path, digest, False, 0, None)])
        else:
            groups += [[Piece(path, digest, False, begin, min(begin + cut_bytes, size))] for begin in range(0, size, cut_bytes)]
    groups += [buckets[number] for number in sorted(buckets)]
    return [_unit(source, pieces, clean, cut_bytes) for pieces in groups]


def _unit(source: Source, pieces: list[Piece], clean: tuple[str, ...], cut_bytes: int) -> Unit:
    fields = source.fields
    columns = [[name, kind] for name, kind in fields.columns.items()]
    name = key_of("shard", SHARD_VERSION, fields.text, fields.key, columns, list(clean), cut_bytes, [list(piece) for piece in pieces])
    return Unit(name, source.root, pieces, fields, clean, cut_bytes)


def _row_groups(path: Path) -> list[int]:
    """Uncompressed bytes of each row group; a file whose footer cannot be read counts as one group, which reading then quarantines."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return [0]
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def _spans_of(sizes: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive groups together up to `limit` bytes; a larger group stands alone."""
    first, total = 0, 0
    for index, size in enumerate(sizes):
        if index > first and total + size > limit:
            yield first, index
            first, total = index, 0
        total += size
    if sizes:
        yield first, len(sizes)


# --- reading a unit


class ShardFacts(NamedTuple):
    """What `unit.json` says of one shard: per file of the unit, the ordinal of its first record there and the number of its records."""

    rows: int
    quarantined: dict[str, int]
    runs: list[tuple[int, int, int]]


def read_unit(unit: Unit, work: Work) -> list[ShardFacts]:
    """Reads a unit into `shards/<name>/`, unless it lies there already, and returns what `unit.json` says."""
    folder = work.room("shards") / unit.name
    if not (folder / "unit.json").exists():
        with folder_atomic(folder) as temporary:
            shards = [_write(temporary, number, batch, unit) for number, batch in enumerate(_batches(unit))]
            (temporary / "unit.json").write_text(json.dumps(shards))
    return [
        ShardFacts(facts[0], facts[1], [(run[0], run[1], run[2]) for run in facts[2]])
        for facts in json.loads((folder / "unit.json").read_text())
    ]


class _Batch(NamedTuple):
    """The records of one shard to be: (run, ordinal, record), and the text as it will be written for the usable ones."""

    usable: list[tuple[int, int, Record, bytes]]
    refused: list[tuple[int, int, Record]]
    runs: list[tuple[int, int, int]]


def _batches(unit: Unit) -> Iterator[_Batch]:
    batch, size = _Batch([], [], []), 0
    for run, piece in enumerate(unit.pieces):
        first = ordinal = 0
        for ordinal, record in enumerate(_records(unit, piece)):
            if size >= unit.cut:
                batch.runs.append((run, first, ordinal - first))
                yield batch
                batch, size, first = _Batch([], [], []), 0, ordinal
            size += record.size
            _sort_in(batch, run, ordinal, record, unit.clean)
            ordinal += 1
        batch.runs.append((run, first, ordinal - first))
    yield batch


def _sort_in(batch: _Batch, run: int, ordinal: int, record: Record, clean: tuple[str, ...]) -> None:
    text = record.text
    if text is not None:
        for name in clean:
            text = CLEAN[name](text)
        if reading.has_visible(text):
            batch.usable.append((run, ordinal, record, text.encode()))
            return
        record = record._replace(text=None, reason="empty text", excerpt=ascii(text[: reading.EXCERPT]))
    batch.refused.append((run, ordinal, record))


def _records(unit: Unit, piece: Piece) -> Iterator[Record]:
    path = unit.root / piece.path
    if not piece.parquet:
        return reading.read_json_lines(path, unit.fields, piece.begin, piece.end)
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        return iter([Record(0, 0, None, None, (), "not a Parquet file", str(error)[: reading.EXCERPT])])
    return reading.read_parquet(path, unit.fields, piece.begin, piece.end)


def _write(folder: Path, number: int, batch: _Batch, unit: Unit) -> ShardFacts:
    usable, refused = batch.usable, batch.refused
    contents = b"".join(xxhash.xxh3_128_digest(text) for *_, text in usable)
    lengths = np.array([len(text) for *_, text in usable], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    text = pa.LargeStringArray.from_buffers(len(usable), pa.py_buffer(offsets), pa.py_buffer(b"".join(text for *_, text in usable)))
    columns: dict[str, pa.Array] = {
        "run": pa.array([run for run, *_ in usable], pa.uint32()),
        "ordinal": pa.array([ordinal for _, ordinal, *_ in usable], pa.uint64()),
        "position": pa.array([record.position for _, _, record, _ in usable], pa.uint64()),
        "content": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(usable), [None, pa.py_buffer(contents)]),
        "key": pa.array([record.key for _, _, record, _ in usable], pa.large_string()),
        "bytes": pa.array(lengths, pa.uint64()),
        "text": text,
    }
    for index, (name, kind) in enumerate(unit.fields.columns.items()):
        columns[f"column.{name}"] = pa.array([record.columns[index] for _, _, record, _ in usable], ARROW_TYPES[kind])
    # A pass over the texts holds one row group, so a worker's memory follows TEXT_GROUP and not the shard.
    group = max(1, len(usable) * TEXT_GROUP // max(int(offsets[-1]), TEXT_GROUP))
    pq.write_table(pa.table(columns), folder / f"{number:05}.parquet", compression="zstd", compression_level=1, row_group_size=group)
    quarantine = {
        "run": pa.array([run for run, *_ in refused], pa.uint32()),
        "ordinal": pa.array([ordinal for _, ordinal, _ in refused], pa.uint64()),
        "position": pa.array([record.position for *_, record in refused], pa.uint64()),
        "reason": pa.array([record.reason for *_, record in refused], pa.large_string()),
        "excerpt": pa.array([record.excerpt for *_, record in refused], pa.large_string()),
    }
    pq.write_table(pa.table(quarantine), folder / f"{number:05}.quarantine.parquet")
    reasons: dict[str, int] = {}
    for *_, record in refused:
        reasons[record.reason or ""] = reasons.get(record.reason or "", 0) + 1
    return ShardFacts(len(usable), reasons, batch.runs)
