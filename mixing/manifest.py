"""The manifest as its readers see it: canonical JSON, the content digest of a table, and memory-mapped look-ups for the trainer.

In: a folder as `mixing.write` leaves it (`docs/concepts` has the layout). Out: numpy views of the memory map; nothing here copies token ids.
`Manifest.open` refuses by name what is missing, cut short, newer than this code or outside the folder; it reads sizes, not contents (that is
`mixing.audit`). Standard library, numpy and pyarrow only: the trainer imports this module. A look-up costs about 2 us per span.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mixing import UserError

SCHEMA_VERSION = 1
NO_COMPONENT = 65535
"""What stands in a `component` column where a document belongs to none."""

HEADER_KEYS = (
    "schema_version",
    "name",
    "version",
    "seed",
    "recipe",
    "recipe_sha256",
    "parent",
    "tokenizer",
    "component_names",
    "sequence_length",
    "sequences",
    "sources",
    "components",
    "stages",
    "holdout",
    "models",
    "files",
)

SEQUENCES = pa.schema([("component", pa.uint16()), ("first_span", pa.uint64())])
SPANS = pa.schema(
    [("file", pa.uint32()), ("token_row", pa.uint32()), ("start", pa.uint32()), ("length", pa.uint32()), ("epoch", pa.uint16())]
)


def tokens_schema(ids: pa.DataType) -> pa.Schema:
    return pa.schema([("pool_row", pa.uint64()), ("ids", pa.large_list(ids))])


def holdout_schema(ids: pa.DataType) -> pa.Schema:
    return pa.schema([("pool_row", pa.uint64()), ("component", pa.uint16()), ("bytes", pa.uint32()), ("ids", pa.large_list(ids))])


# A double holds every integer up to here; beyond it RFC 8785 readers would disagree about the value.
_LARGEST_INTEGER = 2**53


def canonical_json(value: object) -> str:
    """`value` as RFC 8785 writes it: keys by UTF-16 code units, numbers as ECMAScript prints them, no white space.

    Refuses what JSON cannot hold: NaN and infinities, integers beyond 2**53, lone surrogates, and any other type by its name.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        value.encode()  # a lone surrogate has no UTF-8 form: UnicodeEncodeError is a ValueError
        return json.dumps(value, ensure_ascii=False)
    if type(value) is int:
        if abs(value) > _LARGEST_INTEGER:
            raise ValueError(f"canonical JSON cannot hold the integer {value}: beyond 2**53 it is not the same number everywhere")
        return str(value)
    if type(value) is float:
        return _ecmascript(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"canonical JSON has text as keys, not {type(key).__name__}")
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{canonical_json(key)}:{canonical_json(value[key])}" for key in keys) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    raise TypeError(f"canonical JSON cannot hold a {type(value).__name__}")


def _ecmascript(number: float) -> str:
    """ECMA-262 Number::toString: the shortest digits that read back, plain from 1e-6 up to 1e21, with an exponent outside."""
    if not math.isfinite(number):
        raise ValueError(f"canonical JSON cannot hold {number!r}")
    if number == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    text = "".join(map(str, digits))
    point = len(text) + int(exponent)  # where the decimal point stands, counted from the first digit
    if len(text) <= point <= 21:
        plain = text + "0" * (point - len(text))
    elif 0 < point <= 21:
        plain = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        plain = f"0.{'0' * -point}{text}"
    else:
        plain = f"{text[0]}{'.' if len(text) > 1 else ''}{text[1:]}e{point - 1:+d}"
    return "-" + plain if sign else plain


_VALIDITY = 1 << 22


def content_digest(table: pa.Table) -> str:
    """sha256 over the values of `table`, whatever the chunks, the compression and the encoding they arrived in.

    Per column in schema order: `name NUL type NUL`, the row count (u64 LE), a validity byte a row, then the non-null values: bool as bytes;
    numbers little-endian, -0.0 as 0.0; strings and binary as u64 lengths, then the bytes joined; lists as u64 lengths, then the child as the
    column `item`; structs field by field. Values are hashed where they lie; only a column with nulls is copied, chunk by chunk.
    """
    sha = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        _feed(sha, name, column.type, column.chunks)
    return sha.hexdigest()


def _feed(sha: hashlib._Hash, name: str, kind: pa.DataType, chunks: Sequence[pa.Array]) -> None:
    while pa.types.is_dictionary(kind):
        kind = kind.value_type
        chunks = [chunk.dictionary_decode() for chunk in chunks]
    sha.update(f"{name}\0{digest_type(kind)}\0".encode())
    sha.update(np.array(sum(map(len, chunks)), "<u8").tobytes())
    for chunk in chunks:
        for first in range(0, len(chunk), _VALIDITY):  # a byte a row: 0.3 GB for a file of token ids at once
            sha.update(chunk.slice(first, _VALIDITY).is_valid().cast(pa.uint8()).to_numpy())
    if digest_type(kind) in ("string", "binary"):
        chunks = [chunk.cast(pa.large_binary()) for chunk in chunks]
    chunks = [chunk.drop_null() if chunk.null_count else chunk for chunk in chunks]
    if pa.types.is_null(kind):
        return
    if digest_type(kind) in ("string", "binary"):
        for chunk in chunks:
            sha.update(np.diff(_offsets(chunk)).astype("<u8").data)
        for chunk in chunks:
            offsets = _offsets(chunk)
            if offsets[-1] > offsets[0]:
                sha.update(memoryview(chunk.buffers()[2])[offsets[0] : offsets[-1]])
    elif _is_list(kind):
        for chunk in chunks:
            sha.update(pc.list_value_length(chunk).to_numpy(zero_copy_only=False).astype("<u8").data)
        _feed(sha, "item", kind.value_type, [chunk.flatten() for chunk in chunks])
    elif pa.types.is_struct(kind):
        children = [chunk.flatten() for chunk in chunks]
        for position, field in enumerate(kind):
            _feed(sha, field.name, field.type, [child[position] for child in children])
    else:
        for chunk in chunks:
            sha.update(_numbers(chunk).data)


def digest_type(kind: pa.DataType) -> str:
    """The type as the digest spells it: encodings of the same values share a name. Types whose bytes are not defined here are refused."""
    if pa.types.is_dictionary(kind):
        return digest_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return "string"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or kind == pa.binary_view():
        return "binary"
    if _is_list(kind):
        return f"list<{digest_type(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return "struct<" + ",".join(f"{field.name}:{digest_type(field.type)}" for field in kind) + ">"
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_time(kind):
        return str(kind)
    raise TypeError(f"no content digest is defined for the Arrow type {kind}")


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


def _offsets(chunk: pa.Array) -> npt.NDArray[np.int64]:
    """The n+1 offsets of a large list or large binary array, a slice taken into account."""
    if len(chunk) == 0:
        return np.zeros(1, np.int64)
    offsets = np.frombuffer(chunk.buffers()[1], np.int64)
    return offsets[chunk.offset : chunk.offset + len(chunk) + 1]


def _numbers(chunk: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_boolean(chunk.type):
        chunk = chunk.cast(pa.uint8())
    elif pa.types.is_temporal(chunk.type):
        chunk = chunk.view(pa.int32() if chunk.type.bit_width == 32 else pa.int64())
    values: npt.NDArray[Any] = chunk.to_numpy()
    if values.dtype.kind == "f":
        values = values + values.dtype.type(0)
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


class Spans(NamedTuple):
    """The spans of some consecutive sequences: those of the i-th are `[sequence[i], sequence[i + 1])` of the other columns."""

    sequence: npt.NDArray[np.int64]
    file: npt.NDArray[np.uint32]
    token_row: npt.NDArray[np.uint32]
    start: npt.NDArray[np.uint32]
    length: npt.NDArray[np.uint32]
    epoch: npt.NDArray[np.uint16]


class Holdout(NamedTuple):
    """The held-out documents of one source: the ids of the i-th are `ids[offsets[i]:offsets[i + 1]]`; `bytes` is the UTF-8 length of its text."""

    pool_row: npt.NDArray[np.uint64]
    component: npt.NDArray[np.uint16]
    bytes: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[Any]


class TokenFile(NamedTuple):
    """One mapped file of `tokens/`: the ids of row r are `ids[offsets[r]:offsets[r + 1]]`."""

    pool_row: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[Any]


class StageArrays(NamedTuple):
    """One stage as mapped: the spans of its sequence i are `[first_span[i], first_span[i + 1])` of the columns, the last one's end with them."""

    first_sequence: int
    component: npt.NDArray[np.uint16]
    first_span: npt.NDArray[np.uint64]
    columns: tuple[npt.NDArray[Any], ...]  # file, token_row, start, length, epoch


class Manifest:
    """An opened manifest. Sequences are numbered once over all stages; every range below is half open and may cross stages."""

    def __init__(self, folder: Path, header: dict[str, Any], digest: str) -> None:
        self.folder = folder
        self.header = header
        self.digest = digest
        self._token_files: dict[int, TokenFile] = {}

    @classmethod
    def open(cls, path: Path | str) -> Manifest:
        """The manifest at `path` (its folder or the `manifest.json` in it), or a UserError that names what is wrong with it."""
        folder = Path(path)
        folder = folder.parent if folder.name == "manifest.json" else folder
        header, digest = read_header(folder)
        sizes = {entry["path"]: entry["bytes"] for entry in _json(folder / "files.json")}
        for listed in [*(entry["path"] for entry in header["files"]), *sizes]:
            file = folder / inner_path(listed, folder)
            if not file.is_file():
                raise UserError(f"{folder}: the file {listed} is missing; copy the manifest again or rebuild it")
            if listed not in sizes:
                raise UserError(f"{folder}/files.json: does not list {listed}; copy the manifest again or rebuild it")
            if (found := file.stat().st_size) != sizes[listed]:
                raise UserError(f"{file}: {found} bytes, files.json says {sizes[listed]}; copy the manifest again or rebuild it")
        return cls(folder, header, digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest.open, (self.folder,)  # a memory map does not travel: a loader's worker process maps the files itself

    @property
    def sequence_length(self) -> int:
        return int(self.header["sequence_length"])

    @property
    def sequences(self) -> int:
        return int(self.header["sequences"])

    @property
    def component_names(self) -> list[str]:
        return list(self.header["component_names"])

    @property
    def stages(self) -> list[dict[str, Any]]:
        return list(self.header["stages"])

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        return dict(self.header["sources"])

    @property
    def tokenizer(self) -> dict[str, Any]:
        return dict(self.header["tokenizer"])

    def stage_of(self, sequence: int) -> int:
        """The index in `stages` of the stage that holds `sequence`."""
        if not 0 <= sequence < self.sequences:
            raise IndexError(f"sequence {sequence} of {self.sequences}")
        return int(np.searchsorted(self._first_sequences, sequence, side="right")) - 1

    def components(self, first: int, last: int) -> npt.NDArray[np.uint16]:
        """The component of each sequence in `[first, last)`, an index into `component_names`."""
        parts = [plan.component[low:high] for plan, low, high in self._slices(first, last)]
        return np.concatenate([np.zeros(0, np.uint16), *parts])

    def spans(self, first: int, last: int) -> Spans:
        """The spans of the sequences in `[first, last)`, in the order in which they stand in them."""
        counts, columns = [np.zeros(1, np.int64)], []
        for plan, low, high in self._slices(first, last):
            begin = int(plan.first_span[low])
            end = int(plan.first_span[high]) if high < len(plan.first_span) else len(plan.columns[0])
            firsts = plan.first_span[low:high].astype(np.int64)
            counts.append(np.append(firsts[1:], end) - firsts)
            columns.append([column[begin:end] for column in plan.columns])
        joined = (
            [np.concatenate(parts) for parts in zip(*columns, strict=True)]
            if columns
            else [np.zeros(0, field.type.to_pandas_dtype()) for field in SPANS]
        )
        return Spans(np.cumsum(np.concatenate(counts)), *joined)

    def tokens(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Tokens of each sequence in `[first, last)`, padding not counted."""
        spans = self.spans(first, last)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(spans.length, dtype=np.int64)])
        return np.diff(ends[spans.sequence])

    def predictions(self, first: int, last: int) -> int:
        """Predictions of the sequences in `[first, last)`: a span of n tokens holds n - 1."""
        length = self.spans(first, last).length
        return int(length.sum(dtype=np.int64)) - len(length)

    def ids(self, file: int, token_row: int, start: int, length: int) -> npt.NDArray[Any]:
        """The token ids of one span: a read-only view of the memory map, uint16 or uint32 as `tokenizer["dtype"]` says."""
        tokens = self.token_file(file)
        begin = int(tokens.offsets[token_row]) + int(start)
        end = begin + int(length)
        if end > tokens.offsets[token_row + 1]:
            raise IndexError(f"tokens {start} to {start + length} of row {token_row} of tokens file {file}")
        return tokens.ids[begin:end]

    @cached_property
    def token_files(self) -> int:
        return sum(entry["path"].startswith("tokens/") for entry in self.header["files"])

    def token_file(self, file: int) -> TokenFile:
        """The memory map of `tokens/<file>.arrow`, opened at its first use."""
        mapped = self._token_files.get(file)
        if mapped is None:
            batch = self._arrow(f"tokens/{file:05d}.arrow", tokens_schema(self._ids_type))
            mapped = self._token_files[file] = TokenFile(batch["pool_row"].to_numpy(), *_lists(batch["ids"]))
        return mapped

    def holdout(self) -> dict[str, Holdout]:
        """The held-out documents by source, in the order of the header's sources."""
        held = {}
        for source in (source for source in self.header["sources"] if source in self.header["holdout"]):
            batch = self._arrow(f"holdout/{source}.arrow", holdout_schema(self._ids_type))
            offsets, ids = _lists(batch["ids"])
            held[source] = Holdout(batch["pool_row"].to_numpy(), batch["component"].to_numpy(), batch["bytes"].to_numpy(), offsets, ids)
        return held

    def pool_files(self) -> list[Path]:
        """The files of the pool, in row order."""
        return [self.folder / path for path in sorted(entry["path"] for entry in self.header["files"]) if path.startswith("pool/")]

    @property
    def _ids_type(self) -> pa.DataType:
        return {"uint16": pa.uint16(), "uint32": pa.uint32()}[self.header["tokenizer"]["dtype"]]

    @cached_property
    def _first_sequences(self) -> npt.NDArray[np.int64]:
        return np.array([stage["first_sequence"] for stage in self.header["stages"]], np.int64)

    @cached_property
    def stage_arrays(self) -> list[StageArrays]:
        plans = []
        for stage in self.header["stages"]:
            sequences = self._arrow(f"plan/{stage['name']}.arrow", SEQUENCES)
            spans = self._arrow(f"plan/{stage['name']}.spans.arrow", SPANS)
            columns = tuple(column.to_numpy() for column in spans.columns)
            plans.append(
                StageArrays(stage["first_sequence"], sequences["component"].to_numpy(), sequences["first_span"].to_numpy(), columns)
            )
        return plans

    def _slices(self, first: int, last: int) -> Iterator[tuple[StageArrays, int, int]]:
        if not 0 <= first <= last <= self.sequences:
            raise IndexError(f"sequences {first} to {last} of {self.sequences}")
        for plan in self.stage_arrays:
            low = max(first - plan.first_sequence, 0)
            high = min(last - plan.first_sequence, len(plan.component))
            if low < high:
                yield plan, low, high

    def _arrow(self, path: str, schema: pa.Schema) -> pa.RecordBatch:
        """The one record batch of an Arrow file of this manifest, memory-mapped."""
        file = self.folder / inner_path(path, self.folder)
        with pa.memory_map(str(file)) as mapped:
            reader = pa.ipc.open_file(mapped)
            if reader.schema != schema or reader.num_record_batches != 1:
                raise UserError(
                    f"{file}: {reader.num_record_batches} record batches of {reader.schema}; a manifest has one of {schema}".replace(
                        "\n", ", "
                    )
                )
            return reader.get_batch(0)


def read_header(folder: Path) -> tuple[dict[str, Any], str]:
    """The header and the digest of the manifest in `folder`: the one place that refuses a schema version it does not know."""
    path = folder / "manifest.json"
    header = _json(path)
    version = header.get("schema_version") if isinstance(header, dict) else None
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path}: not the header of a manifest: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version}; this Tilth reads up to {SCHEMA_VERSION}; install a newer one")
    if missing := [key for key in HEADER_KEYS if key not in header]:
        raise UserError(f"{path}: the header has no {', '.join(missing)}; rebuild the manifest")
    return header, hashlib.sha256(path.read_bytes()).hexdigest()


def inner_path(path: str, folder: Path) -> PurePosixPath:
    """`path` as a path below `folder`, or a UserError if it would lead out of it."""
    inner = PurePosixPath(path)
    if inner.is_absolute() or not inner.parts or ".." in inner.parts or "\\" in path or ":" in path:
        raise UserError(f"{folder}: the path {path!r} leaves the manifest; paths of a manifest stay below its folder")
    return inner


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a manifest is a folder with manifest.json and files.json") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None


def _lists(column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    return _offsets(column), column.values.to_numpy()
