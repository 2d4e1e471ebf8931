"""A persistent index: what deduplication has to know of documents that were read before, so that new ones can be compared with them and their texts need not be read again.

    index.json             canonical JSON: HEADER, the `clean` steps, and per source its parts, each with its documents and content digest
    <source>/<n>.arrow     the documents of one shard, `MEMBERS`: names for people, content hash, normalised key (`exact`), signature and sorted shingle hashes (`minhash`)

The digest of an index is the sha256 of index.json: it follows from the documents and their cutting into shards alone, not from when and how they were added, so a source that is removed and
added again restores it. Sources are ordered by name. A member's *number* runs over all parts in that order; numbers are no part of any result, they only decide between members
that are equally similar to a document.

Signatures and shingles compare with those of equal versions alone, and texts with texts that were cleaned alike. So an index that differs in any of these is refused by name.
Disk: some 560 bytes a member and 8 a distinct shingle, about 1.6 times the text. Memory: one row group of a shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.dedup.exact import NORMALIZED_VERSION, normalized
from curation.dedup.minhash import PERMUTATIONS, SHINGLE_WORDS, SIGNATURE_VERSION, Signatures, shingles, signatures
from curation.text.words import WORDS_VERSION, Hashes, Offsets
from mixing import UserError
from mixing.canonical import canonical_json, content_digest

HEADER: dict[str, Any] = {
    "format": 1,
    "scheme": "affine32",
    "seed": 1,
    "permutations": PERMUTATIONS,
    "shingle_words": SHINGLE_WORDS,
    "words": WORDS_VERSION,
    "signatures": SIGNATURE_VERSION,
    "normalized": NORMALIZED_VERSION,
}
MEMBERS = pa.schema(
    {
        "source": pa.large_string(),
        "origin": pa.large_string(),
        "key": pa.large_string(),
        "content": pa.binary(16),
        "normalized": pa.binary(16),
        "signature": pa.binary(4 * PERMUTATIONS),
        "shingles": pa.large_list(pa.uint64()),
    }
)
FILE = "index.json"


class Part(NamedTuple):
    """A file of members, below the index's folder."""

    path: str
    documents: int
    digest: str


class Source(NamedTuple):
    """What was added under one name."""

    name: str
    documents: int
    parts: list[Part]


@dataclass(frozen=True)
class Members:
    """The members in one file, numbered from `first`; what `runs.Shard` asks for."""

    path: Path
    first: int
    documents: int

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    def column(self, name: str, positions: npt.NDArray[np.int64] | None = None) -> pa.Array:
        table = _opened(self.path)
        column = table[name] if positions is None else table[name].take(pa.array(positions))
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)

    def rows(self) -> Hashes:
        return np.arange(self.first, self.first + self.documents, dtype=np.uint64)

    def signatures(self) -> Signatures:
        return _fixed(self.column("signature"), "<u4", PERMUTATIONS)

    def contents(self) -> Hashes:
        return _fixed(self.column("content"), ">u8", 2).astype(np.uint64)

    def normalized(self) -> tuple[Hashes, npt.NDArray[np.bool_]]:
        keys = self.column("normalized")
        return _fixed(keys.fill_null(bytes(16)), ">u8", 2).astype(np.uint64), keys.is_valid().to_numpy(zero_copy_only=False)

    def shingles(self, positions: npt.NDArray[np.int64]) -> tuple[Hashes, Offsets]:
        lists = self.column("shingles", positions)
        offsets = lists.offsets.to_numpy()
        return lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _opened(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path}: cannot be read as a part of an index ({str(error).splitlines()[0]}); remove its source and add it again"
        ) from None


def _fixed(column: pa.Array, kind: str, width: int) -> npt.NDArray[Any]:
    """`width` numbers a value of a column of fixed width."""
    if not len(column):
        return np.empty((0, width), kind)
    size = column.type.byte_width
    return np.frombuffer(column.buffers()[1], kind, len(column) * width, column.offset * size).reshape(-1, width)


@dataclass(frozen=True)
class Index:
    """An index that is there and can be used by this program."""

    folder: Path
    clean: list[str]
    sources: list[Source]

    @staticmethod
    def open(folder: Path, where: str = "") -> Index:
        """The index in `folder`; refused with the name of the field that differs from HEADER, or of a file that is missing."""
        where = f"{where}: " if where else ""
        if not (folder / FILE).is_file():
            raise UserError(f"{where}{folder} is no index: it has no {FILE}; make one with `curate index add {folder} MANIFEST`")
        header = _header(folder, where)
        for name, expected in HEADER.items():
            if header.get(name) != expected:
                raise UserError(
                    f"{where}the index {folder} has {name} {header.get(name)!r}; this program compares with {name} {expected!r}; add its sources to a new index"
                )
        sources = [Source(one["name"], one["documents"], [Part(**part) for part in one["parts"]]) for one in header["sources"]]
        for path in (folder / part.path for source in sources for part in source.parts):
            if not path.is_file():
                raise UserError(
                    f"{where}the index {folder} has lost {path.relative_to(folder)}; remove the source '{path.parent.name}' and add it again"
                )
        return Index(folder, list(header["clean"]), sources)

    def require_clean(self, clean: Sequence[str], where: str) -> None:
        """Refuses texts that were cleaned otherwise than those of the index."""
        if self.clean != list(clean):
            raise UserError(
                f"{where}: the index {self.folder} has clean {self.clean}; found clean {list(clean)}; texts compare only if they were cleaned alike: "
                f"write clean: [{', '.join(self.clean)}], or make another index"
            )

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(_spelled(self).encode()).hexdigest()

    @property
    def documents(self) -> int:
        return sum(source.documents for source in self.sources)

    def members(self) -> list[Members]:
        """All parts, in order of their members' numbers."""
        found, first = [], 0
        for source in self.sources:
            for part in source.parts:
                found.append(Members(self.folder / part.path, first, part.documents))
                first += part.documents
        return found


def _header(folder: Path, where: str) -> dict[str, Any]:
    try:
        header = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except ValueError:
        header = None
    if not isinstance(header, dict) or not {"format", "clean", "sources"} <= set(header):
        raise UserError(f"{where}{folder / FILE} is not the header of an index; make a new one with `curate index add`")
    return header


def _spelled(index: Index) -> str:
    sources = [{"name": one.name, "documents": one.documents, "parts": [part._asdict() for part in one.parts]} for one in index.sources]
    return canonical_json(HEADER | {"clean": index.clean, "sources": sources})


# --- writing


def batch(source: str, origins: list[str], keys: pa.Array, contents: pa.Array, texts: pa.LargeStringArray) -> pa.RecordBatch:
    """Documents as members."""
    signed = signatures(texts)
    sets, offsets = shingles(texts)
    width = 4 * PERMUTATIONS
    columns = [
        pa.array([source] * len(texts), pa.large_string()),
        pa.array(origins, pa.large_string()),
        keys.cast(pa.large_string()),
        contents.cast(pa.binary(16)),
        normalized(texts),
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(texts), [None, pa.py_buffer(signed.astype("<u4", copy=False).tobytes())]
        ),
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(sets)),
    ]
    return pa.record_batch(columns, schema=MEMBERS)


def write_members(path: Path, batches: Iterator[pa.RecordBatch]) -> Part:
    """One file of members, held a batch at a time. Its digest is over the content digests of its batches."""
    sha, documents = hashlib.sha256(), 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, MEMBERS) as writer:
        for one in batches:
            writer.write_batch(one)
            sha.update(content_digest(pa.Table.from_batches([one])).encode())
            documents += one.num_rows
    return Part(path.name, documents, sha.hexdigest())


def damaged(index: Index, part: Part) -> bool:
    """Whether a file of members holds something else than what was written."""
    sha, documents = hashlib.sha256(), 0
    try:
        with pa.memory_map(str(index.folder / part.path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                one = reader.get_batch(number)
                sha.update(content_digest(pa.Table.from_batches([one])).encode())
                documents += one.num_rows
    except (OSError, pa.ArrowInvalid):
        return True
    return (documents, sha.hexdigest()) != (part.documents, part.digest)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Holds the folder for one program that changes it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another program changes this index; wait for it") from None
        yield


def save(index: Index) -> None:
    """Writes index.json, by which a source is there or not; what lies in other folders was left by something killed, or removed, and goes."""
    temporary = index.folder / f".{FILE}"
    temporary.write_text(_spelled(index), encoding="utf-8")
    temporary.replace(index.folder / FILE)
    names = {source.name for source in index.sources}
    for folder in index.folder.iterdir():
        if folder.is_dir() and folder.name not in names:
            shutil.rmtree(folder)
