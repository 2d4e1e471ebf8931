"""The manifest as its readers see it: memory-mapped look-ups for the trainer, and the pool and single sequences for a person.

In: a folder as `mixing.write` leaves it (`docs/concepts` has the layout). Out: numpy views of the memory map; nothing here copies token ids.
`Manifest.open` refuses by name what is missing, cut short, newer than this code or outside the folder; it reads sizes, not contents (that is
`mixing.audit`). One in an object store is read through a mirror on this machine. Standard library, numpy and pyarrow only, `pool()` apart: the trainer imports this module. A look-up costs about 2 us per span.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mixing import UserError
from mixing.canonical import canonical_json as canonical_json  # the trainer takes it from here
from mixing.canonical import list_offsets
from mixing.mirror import mirrored, of, present, refuse_url

if TYPE_CHECKING:
    import polars as pl

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


class Spans(NamedTuple):
    """The spans of some consecutive sequences: those of the i-th are `[sequence[i], sequence[i + 1])` of the other columns."""

    sequence: npt.NDArray[np.int64]
    file: npt.NDArray[np.uint32]
    token_row: npt.NDArray[np.uint32]
    start: npt.NDArray[np.uint32]
    length: npt.NDArray[np.uint32]
    epoch: npt.NDArray[np.uint16]


class Excerpt(NamedTuple):
    """A stretch of a document in a sequence: tokens `[start, stop)` of pool row `pool_row`, on its visit number `epoch`, from 0; `ids` are views of the memory map."""

    pool_row: int
    start: int
    stop: int
    epoch: int
    ids: npt.NDArray[Any]

    def __repr__(self) -> str:
        return f"<tokens {self.start:,} to {self.stop:,} of pool row {self.pool_row}, visit {self.epoch}>"


class Sequence(NamedTuple):
    """One training row: the stage it stands in, the component all of it is from, and its excerpts in their order."""

    number: int
    stage: str
    component: str
    excerpts: list[Excerpt]

    @property
    def ids(self) -> npt.NDArray[Any]:
        """The token ids, padding left out."""
        return np.concatenate([excerpt.ids for excerpt in self.excerpts])


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
        refuse_url(path)
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

    @classmethod
    def reach(cls, path: Path | str) -> Manifest:
        """The manifest at `path`, also one in an object store: what of it is read is then kept on this machine (`mixing.mirror`)."""
        return cls.open(mirrored(path))

    def ready(self, file: int, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
        """Has the ids `[begins, ends)` of a file of tokens on this machine; those of a manifest on a file system always are."""
        if (mirror := of(self.folder)) is not None:
            mirror.ids(f"tokens/{file:05d}.arrow", begins, ends, self._ids_type.bit_width // 8)

    @cached_property
    def is_mirrored(self) -> bool:
        return of(self.folder) is not None

    def __repr__(self) -> str:
        tokens = sum(stage["tokens"] for stage in self.stages)
        size = f"{tokens:,} tokens in {self.sequences:,} sequences of {self.sequence_length:,}"
        return f"<Manifest {self.header['name']} v{self.header['version']}: {size}; digest {self.digest[:16]}>"

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
        bounds, columns, before = [np.zeros(1, np.int64)], [], 0
        for plan, low, high in self._slices(first, last):
            edges = plan.first_span[low : high + 1].astype(np.int64)
            if high == len(plan.first_span):
                edges = np.append(edges, len(plan.columns[0]))
            columns.append([column[edges[0] : edges[-1]] for column in plan.columns])
            bounds.append(edges[1:] + (before - edges[0]))
            before += len(columns[-1][0])
        if len(columns) == 1:
            return Spans(np.concatenate(bounds), *columns[0])
        empty = [np.zeros(0, field.type.to_pandas_dtype()) for field in SPANS]
        return Spans(np.concatenate(bounds), *map(np.concatenate, zip(empty, *columns, strict=True)))

    def tokens(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Tokens of each sequence in `[first, last)`, padding not counted."""
        spans = self.spans(first, last)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(spans.length, dtype=np.int64)])
        return np.diff(ends[spans.sequence])

    def predictions(self, first: int, last: int) -> int:
        """Predictions of the sequences in `[first, last)`: a span of n tokens holds n - 1."""
        length = self.spans(first, last).length
        return int(length.sum(dtype=np.int64)) - len(length)

    def sequence(self, number: int) -> Sequence:
        """One sequence with its documents, for a person to look at; a trainer reads many at once with `spans` and `ids`."""
        stage, spans = self.stages[self.stage_of(number)]["name"], self.spans(number, number + 1)
        excerpts = [
            Excerpt(int(self.token_file(file).pool_row[row]), start, start + length, epoch, self.ids(file, row, start, length))
            for file, row, start, length, epoch in zip(*(column.tolist() for column in spans[1:]), strict=True)
        ]
        return Sequence(number, stage, self.component_names[int(self.components(number, number + 1)[0])], excerpts)

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
        return [present(self.folder, path) for path in sorted(entry["path"] for entry in self.header["files"]) if path.startswith("pool/")]

    def pool(self) -> pl.LazyFrame:
        """Every record read, in row order: its signals and the decision (docs/reference/pool.md), no text. Needs polars."""
        import polars as pl

        return pl.scan_parquet([str(path) for path in self.pool_files()])

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
        file = present(self.folder, str(inner_path(path, self.folder)))
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
    return list_offsets(column), column.values.to_numpy()
