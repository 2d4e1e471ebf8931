"""Read any format into shards; every record that cannot be used goes to quarantine with its reason.

A source's files are cut into units of work by what they are alone (never by workers or memory): Parquet and Arrow by whole row groups and batches up to 64 MiB; plain JSON Lines by
64 MiB byte ranges, extended to the next line end; any other file as one stream; files under 8 MiB together, in one of 256 buckets by the hash of their path, so that one
more small file touches one bucket. A source with a `limit` is one unit, which reads its files in order until it has that many records. A unit becomes shards of about
64 MiB of decoded bytes and a `unit.json` that says which files' records they hold; it is named by a key over the files' digests, the fields read, what is chosen of
them, the clean steps and, for web pages, the versions of what extracts their text, so the same input is read once for all recipes that share a work directory.

A shard is one Parquet file with a row per usable document: `run` (which file of the unit), `ordinal` (running number in that file, unusable records counted),
`position`, `content` (xxh3-128 of the text as written), `key`, `bytes`, `text` and the carried columns; beside it lies the quarantine:
`run, ordinal, position, reason, excerpt`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation import rules
from curation.corpus.input_files import hash_files, locate, natural
from curation.corpus.record_selection import BUILT_IN, TYPES, Choice, is_expression, names_in, schema_of, select
from curation.engine.local import Engine
from curation.engine.work_directory import Digests, Input, Work, folder_atomic, key_of
from curation.formats import ACCEPTED, FORMATS, OPEN_ENDED, format_of, readers_of, true_format
from curation.formats.records import EXCERPT, Chunk, Fields
from curation.synthesis.config import SynthesizeConfig
from curation.text.clean import has_visible, spelled
from mixing import UserError
from mixing.remote import Place

SHARD_VERSION = "3"
CUT = 64 << 20
SMALL = 8 << 20
BUCKETS = 256
TEXT_GROUP = 4 << 20  # bytes of text in a row group of a shard
ARROW_TYPES = TYPES
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", max_length=100)]
DOCUMENT = pa.schema(
    {
        "run": pa.uint32(),
        "ordinal": pa.uint64(),
        "position": pa.uint64(),
        "content": pa.binary(16),
        "key": pa.large_string(),
        "bytes": pa.uint64(),
        "text": pa.large_string(),
    }
)
QUARANTINE = pa.schema(
    {"run": pa.uint32(), "ordinal": pa.uint64(), "position": pa.uint64(), "reason": pa.large_string(), "excerpt": pa.large_string()}
)


class SourceConfig(BaseModel):
    """A named input. `files` is a path or a URL, or a list of them, with wildcards, relative to the recipe; `name:sub/*.parquet` is below a root given by `--root name=PATH`. With
    `synthesize` it is made from documents of other sources instead."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: str | list[str] | None = Field(None, description="paths or URLs with wildcards, relative to the recipe, or `root:below`")
    synthesize: SynthesizeConfig | None = Field(None, description="instead of `files`: documents that a model makes from others")
    text: str = Field(
        "text", description="the column that holds the text, or an SQL expression of a record's columns: `title || ' ' || body`"
    )
    key: str | None = Field(None, description="a column that identifies a document to its user")
    columns: list[str] = Field([], description="columns carried into the pool")
    where: str | None = Field(None, description="a rule over a record's columns, `key` and `bytes`; other records are not read at all")
    limit: int | None = Field(None, ge=1, description="read no more than the first records, in the order of the files")
    licence: str | None = Field(None, description="recorded in the manifest")
    max_quarantine: float = Field(0.01, ge=0, le=1, description="the share of records that may be unreadable before the build stops")
    max_duplicates: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the share of documents that may be dropped as duplicates of others of the source before the build stops; without it a build warns above 0.3 and stops above 0.6",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if (self.files is None) == (self.synthesize is None):
            raise ValueError("give exactly one of files, synthesize")
        read_only = {"text", "key", "columns", "where", "limit"} & self.model_fields_set
        if self.synthesize is not None and read_only:
            raise ValueError(f"`{min(read_only)}` is of records that are read; a synthesized source has none")
        return self


@dataclass(frozen=True)
class Source:
    """A source whose files have been found and hashed. `root` is a place that only this run knows; `root_name` and `pattern` are what a recipe keeps. `formats` has one entry
    a file; `extras` are columns that `text` and `where` look at and the pool does not hold; `readers` are the versions of the packages that read a format for us. `among` is the key of the
    recipe that it stands below."""

    name: str
    config: SourceConfig
    root: Place
    root_name: str
    pattern: list[str]
    inputs: list[Input]
    columns: dict[str, str]
    formats: dict[str, str] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    readers: dict[str, str] = field(default_factory=dict)
    among: str = "sources"

    @property
    def where(self) -> str:
        """Its key in the recipe."""
        return f"{self.among}.{self.name}"

    @property
    def fields(self) -> Fields:
        """What a reader has to look for in a record."""
        return Fields(None if is_expression(self.config.text) else self.config.text, self.config.key, self.columns | self.extras)

    @property
    def choice(self) -> Choice | None:
        """What is made of the records; None if they are taken as they are."""
        text = self.config.text if is_expression(self.config.text) else None
        if text is None and self.config.where is None:
            return None
        return Choice(self.columns | self.extras, len(self.columns), text, self.config.where)


class Piece(NamedTuple):
    """A part of one file: bytes `[begin, end)` of a plain file of lines, row groups or batches `[begin, end)` of a table, or all of it (`end` is None)."""

    path: str
    digest: str
    format: str
    begin: int
    end: int | None


@dataclass(frozen=True)
class Unit:
    """What one task reads; `name` is its key and the folder of its shards."""

    name: str
    root: Place
    pieces: list[Piece]
    fields: Fields
    clean: tuple[str, ...]
    cut: int
    choice: Choice | None = None
    limit: int | None = None


# --- resolving


def resolve(
    name: str, config: SourceConfig, folder: Path, roots: dict[str, str], digests: Digests, engine: Engine, among: str = "sources"
) -> Source:
    """The source with its files found, hashed and looked at: everything about it that can be refused before a record is read. `among`: the recipe's key it stands below."""
    where = f"{among}.{name}"
    assert config.files is not None, where
    root, root_name, below, paths = locate(f"{where}.files", config.files, name, folder, roots)
    refuse_unknown(f"{where}.files", paths)
    inputs = hash_files(root, paths, digests, engine, f"hash {name}")
    names = _looked_at(where, config)
    looks = {one.path: _look(where, root, one, names, digests) for one in inputs}
    formats = {path: look.format for path, look in looks.items()}
    readers = readers_of(f"{where}.files", formats)
    text = [] if is_expression(config.text) else [config.text]
    for path, look in looks.items():
        if look.columns is not None and look.format not in OPEN_ENDED:
            _require(where, text, path, [column for column, _ in look.columns])
    types = _agreed(where, [name for name in names if name not in text], looks)
    carried = {column: types.get(column, "string") for column in config.columns}
    extras = {column: types.get(column, "string") for column in names if column not in (*config.columns, *BUILT_IN, config.key, *text)}
    source = Source(name, config, root, root_name, below, inputs, carried, formats, extras, readers, among)
    _check_expressions(where, source)
    return source


def refuse_unknown(where: str, paths: list[str]) -> None:
    """Refuses files whose names tell no format."""
    unknown = [path for path in paths if format_of(path) is None]
    if unknown:
        raise UserError(f"{where}: cannot read {unknown[0]!r}; accepted: {ACCEPTED}")


def _looked_at(where: str, config: SourceConfig) -> list[str]:
    """The columns that reading needs: the text or what its expression names, the key, the carried ones, and those of `where`."""
    text = names_in(config.text, f"{where}.text") if is_expression(config.text) else [config.text]
    chosen = [name for name in names_in(config.where, f"{where}.where") if name not in BUILT_IN] if config.where else []
    return list(dict.fromkeys([*text, *([config.key] if config.key else []), *config.columns, *chosen]))


class Look(NamedTuple):
    """What a file is: its format, and (name, type) of its columns; None if they cannot be read, the type None if no value tells it."""

    format: str
    columns: list[tuple[str, str | None]] | None


def _look(where: str, root: Place, file: Input, names: list[str], digests: Digests) -> Look:
    """The format and columns of a file, remembered by its content and the end of its name."""
    named = format_of(file.path) or ""
    key = key_of("look", SHARD_VERSION, file.digest, named, names)
    if (known := digests.fact(key)) is not None:
        return Look(known[0], None if known[1] is None else [(name, kind) for name, kind in known[1]])
    form = true_format(root / file.path, named)
    columns = FORMATS[form].columns(root / file.path, names)
    for name in names if columns is not None else []:
        if [one for one, _ in columns or []].count(name) > 1:
            raise UserError(f"{where}: two columns '{name}' in {file.path}; rename one of them")
    if columns is not None and form not in OPEN_ENDED and set(names) <= {name for name, _ in columns}:
        columns = [(name, kind) for name, kind in columns if name in names]
    digests.note(key, [form, columns])
    return Look(form, columns)


def _require(where: str, names: list[str], path: str, there: list[str]) -> None:
    for name in names:
        if name not in there:
            raise UserError(f"{where}: no column '{name}' in {path}; it has: {', '.join(there)}")


def _agreed(where: str, names: list[str], looks: dict[str, Look]) -> dict[str, str]:
    """One type a column over all files: integers and floats together are floats, a column that some files lack is null there; anything else is refused with both schemas."""
    types: dict[str, str] = {}
    first: dict[str, str] = {}
    for path, look in looks.items():
        for name, kind in look.columns or []:
            if name not in names or kind is None:
                continue
            if types.setdefault(name, kind) != kind:
                if {types[name], kind} != {"int64", "float64"}:
                    one, other = (_spelled(looks[at], names) for at in (first[name], path))
                    raise UserError(
                        f"{where}.columns: '{name}' is {types[name]} in {first[name]} ({one}) and {kind} in {path} ({other}); carry only columns whose types agree"
                    )
                types[name] = "float64"
            first.setdefault(name, path)
    tables = {path: look for path, look in looks.items() if look.columns is not None and look.format not in OPEN_ENDED}
    if tables and len(tables) == sum(look.columns is not None for look in looks.values()):
        everywhere = {name for look in tables.values() for name, _ in look.columns or []}
        missing = [name for name in names if name not in everywhere]
        path = next(iter(tables))
        _require(where, missing, path, [name for name, _ in looks[path].columns or []])
    return types


def _spelled(look: Look, names: list[str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in look.columns or [] if name in names)


def _check_expressions(where: str, source: Source) -> None:
    if source.choice is not None:
        schema = schema_of(source.choice)
        if source.choice.text is not None:
            rules.parse(source.choice.text, f"{where}.text", schema, rules.TEXT)
        if source.choice.where is not None:
            rules.parse(source.choice.where, f"{where}.where", schema)


# --- cutting files into units


def cut(source: Source, clean: tuple[str, ...], cut_bytes: int = CUT) -> list[Unit]:
    """The units of a source, in an order that follows from its files alone."""
    groups: list[list[Piece]] = []
    buckets: dict[int, list[Piece]] = {}
    for path, size, digest in source.inputs:
        form = source.formats[path]
        if size < SMALL or source.config.limit is not None:
            buckets.setdefault(xxhash.xxh3_64_intdigest(path.encode()) % BUCKETS, []).append(Piece(path, digest, form, 0, None))
        else:
            groups += [[Piece(path, digest, form, *span)] for span in FORMATS[form].spans(source.root / path, size, cut_bytes)]
    groups += [buckets[number] for number in sorted(buckets)]
    if source.config.limit is not None:
        groups = [sorted((piece for pieces in groups for piece in pieces), key=lambda piece: natural(piece.path))]
    return [_unit(source, pieces, clean, cut_bytes) for pieces in groups]


def _unit(source: Source, pieces: list[Piece], clean: tuple[str, ...], cut_bytes: int) -> Unit:
    fields, choice, limit = source.fields, source.choice, source.config.limit
    columns = [[name, kind] for name, kind in fields.columns.items()]
    chosen = (
        [] if choice is None and limit is None else [[choice and choice.text, choice and choice.where, choice and choice.carried, limit]]
    )
    readers = {name: source.readers[name] for piece in pieces for name in FORMATS[piece.format].packages}
    parts = [fields.text, fields.key, columns, spelled(clean), cut_bytes, [list(piece) for piece in pieces], *chosen]
    name = key_of("shard", SHARD_VERSION, *parts, *([readers] if readers else []))
    return Unit(name, source.root, pieces, fields, clean, cut_bytes, choice, limit)


# --- reading a unit


class ShardFacts(NamedTuple):
    """What `unit.json` says of one shard: per file of the unit, the ordinal of its first record there and the number of its records; and how many documents lost
    something, by the keys of `Chunk.changed`: to a clean step, or a value that is not of its column's type."""

    rows: int
    quarantined: dict[str, int]
    runs: list[tuple[int, int, int]]
    cleaned: dict[str, int]


def read_unit(unit: Unit, work: Work) -> list[ShardFacts]:
    """Reads a unit into `shards/<name>/`, unless it lies there already, and returns what `unit.json` says."""
    folder = work.room("shards") / unit.name
    if not (folder / "unit.json").exists():
        with folder_atomic(folder) as temporary:
            (temporary / "unit.json").write_text(json.dumps(_write_shards(temporary, unit)))
    return [
        ShardFacts(facts[0], facts[1], [(run[0], run[1], run[2]) for run in facts[2]], facts[3])
        for facts in json.loads((folder / "unit.json").read_text())
    ]


def _write_shards(folder: Path, unit: Unit) -> list[ShardFacts]:
    """The records of a unit as shards; one ends with the record that brings it to `cut` bytes, if another record follows."""
    shards, size, records = [_ShardWriter(folder, 0, unit)], 0, 0
    for run, piece in enumerate(unit.pieces):
        first = ordinal = 0
        for chunk in read_piece(unit, piece) if records != unit.limit else ():
            rest = chunk if unit.limit is None else chunk.cut(0, unit.limit - records)
            while count := len(rest.position):
                if size >= unit.cut:
                    shards[-1].close([(run, first, ordinal - first)])
                    shards.append(_ShardWriter(folder, len(shards), unit))
                    size, first = 0, ordinal
                sizes = np.cumsum(rest.size)
                end = min(count, int(np.searchsorted(sizes, unit.cut - size)) + 1)
                shards[-1].add(run, ordinal, rest.cut(0, end))
                size += int(sizes[end - 1])
                ordinal += end
                records += end
                rest = rest.cut(end, count)
            if records == unit.limit:
                break
        shards[-1].runs.append((run, first, ordinal - first))
    shards[-1].close([])
    return [shard.facts() for shard in shards]


def read_piece(unit: Unit, piece: Piece) -> Iterator[Chunk]:
    """The records of one piece that its source takes."""
    return select(FORMATS[piece.format].read(unit.root / piece.path, unit.fields, piece.begin, piece.end), unit.choice, unit.clean)


class _ShardWriter:
    """A shard as it is written, a row group of about TEXT_GROUP bytes of text at a time: what is held besides is the quarantine."""

    def __init__(self, folder: Path, number: int, unit: Unit) -> None:
        carried = list(unit.fields.columns.items())[: unit.choice.carried if unit.choice else None]
        self._schema = pa.schema([*DOCUMENT, *((f"column.{name}", ARROW_TYPES[kind]) for name, kind in carried)])
        self._path = folder / f"{number:05}.parquet"
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", compression_level=1, use_dictionary=False)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = self._rows = 0
        self._refused: list[tuple[int, int, int, str, str]] = []
        self._cleaned: dict[str, int] = {}
        self.runs: list[tuple[int, int, int]] = []

    def add(self, run: int, ordinal: int, chunk: Chunk) -> None:
        """The records of `chunk`, the first of which is number `ordinal` of file `run`."""
        seen = np.fromiter(map(has_visible, chunk.text), np.bool_, len(chunk.text))
        for name, mask in chunk.changed.items():
            if count := int(np.count_nonzero(mask)):
                self._cleaned[name] = self._cleaned.get(name, 0) + count
        if not seen.all():
            chunk = chunk.refuse(seen, "empty text", [ascii(text[:EXCERPT]) for text in compress(chunk.text, ~seen)])
        for index, reason, excerpt in chunk.refused:
            self._refused.append((run, ordinal + index, int(chunk.position[index]), reason, excerpt))
        raw = chunk.utf8
        lengths = np.fromiter(map(len, raw), np.int64, len(raw))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        contents = b"".join(map(xxhash.xxh3_128_digest, raw))
        columns = [
            pa.array(np.full(len(raw), run, np.uint32)),
            pa.array((ordinal + chunk.usable).astype(np.uint64)),
            pa.array(chunk.position[chunk.usable].astype(np.uint64)),
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(raw), [None, pa.py_buffer(contents)]),
            pa.array(chunk.key, pa.large_string()),
            pa.array(lengths.astype(np.uint64)),
            pa.LargeStringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(b"".join(raw))),
        ]
        columns += [pa.array(values, field.type) for values, field in zip(chunk.columns, list(self._schema)[len(DOCUMENT) :], strict=True)]
        self._waiting.append(pa.record_batch(columns, schema=self._schema))
        self._waiting_bytes += int(offsets[-1])
        self._rows += len(raw)
        if self._waiting_bytes >= TEXT_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        waiting = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()
        group = waiting.num_rows * TEXT_GROUP // max(self._waiting_bytes, 1) if self._waiting_bytes >= 2 * TEXT_GROUP else waiting.num_rows
        self._writer.write_table(waiting, row_group_size=max(1, group))
        self._waiting, self._waiting_bytes = [], 0

    def close(self, runs: list[tuple[int, int, int]]) -> None:
        """Writes what waits, and the quarantine beside it; `runs` are the last ones."""
        self.runs += runs
        self._write_group()
        self._writer.close()
        columns = [list(values) for values in zip(*self._refused, strict=True)] or [[]] * len(QUARANTINE)
        quarantine = pa.table([pa.array(values, field.type) for values, field in zip(columns, QUARANTINE, strict=True)], schema=QUARANTINE)
        pq.write_table(quarantine, self._path.with_suffix(".quarantine.parquet"))

    def facts(self) -> ShardFacts:
        return ShardFacts(self._rows, dict(Counter(reason for *_, reason, _ in self._refused)), self.runs, self._cleaned)
