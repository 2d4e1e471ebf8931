"""The documents that no model of this project ever trains on, chosen right after reading and before any step.

Among distinct contents, the first document of each standing for it, those with the lowest xxh3(seed, content) of each source are held out: recipes with the same seed and
the same clean steps reserve the same texts. Every other document that equals one of them, or is verified at least `similarity` similar to one, is dropped with the reason
`holdout`. Drawing by the hash of the content rather than by position makes the choice independent of order, sharding and everything else a recipe says.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from curation.corpus.shards import Corpus, Mask, Shard, read_sidecar, sidecar_path, write_sidecar
from curation.decisions.duplicates import sign, signature_key, signatures_of
from curation.dedup.holdout import match_holdout, open_holdout_index, write_holdout_index
from curation.dedup.runs import DUPLICATES
from curation.engine.local import Engine
from curation.engine.work_directory import Work, key_of

HOLDOUT_VERSION = "2"
PAIRS_AT_ONCE = 1 << 22  # bytes
LARGEST_SHARE = 10  # one in so many distinct contents
FATE = pa.struct([("held", pa.bool_()), ("row", pa.uint64()), ("similarity", pa.float64()), ("origin", pa.large_string())])


class HoldoutConfig(BaseModel):
    """How many documents of each source are kept for measuring, and how similar another document may be to one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int = Field(gt=0, description="per source; never more than a tenth of its distinct texts")
    similarity: float = Field(0.8, gt=0, le=1, description="verified Jaccard similarity at which another document counts as the same")


class Drawn(NamedTuple):
    """A document by the place of its content in the draw: ordered by `draw`, then by row."""

    draw: int
    row: int
    content: bytes
    shard: str
    position: int


def draw_of(content: bytes, seed: int) -> int:
    """The place of a content (16 bytes) in the draw of `seed`: xxh3-64 over seed (u64, little-endian) and content."""
    return xxhash.xxh3_64_intdigest(seed.to_bytes(8, "little") + content)


def lowest(shard: Shard, seed: int, documents: int, passed_over: Mask | None) -> list[Drawn]:
    """The first `documents` of a shard in the draw, each content once, without the documents `passed_over`."""
    rows = shard.rows()
    contents = shard.contents().astype(">u8").tobytes()
    taken: dict[bytes, Drawn] = {}
    for position in range(shard.documents) if passed_over is None else np.flatnonzero(~passed_over).tolist():
        content = contents[16 * position : 16 * position + 16]
        row = int(rows[position])
        if content not in taken or row < taken[content].row:
            taken[content] = Drawn(draw_of(content, seed), row, content, shard.name, position)
    return sorted(taken.values())[:documents]


def draw(shards: list[Shard], seed: int, documents: int, holdout: str | None, work: Work, engine: Engine) -> list[Drawn]:
    """The first `documents` over several shards in the draw, each content once; with `holdout`, only what is neither held out nor equal to what is."""
    found = engine.map(_lowest_of, [(shard, seed, documents, holdout, work) for shard in shards], "draw samples")
    distinct: dict[bytes, Drawn] = {}
    for drawn in sorted(document for part in found for document in part):
        distinct.setdefault(drawn.content, drawn)
    return list(distinct.values())[:documents]


def _lowest_of(shard: Shard, seed: int, documents: int, holdout: str | None, work: Work) -> list[Drawn]:
    return lowest(shard, seed, documents, None if holdout is None else _reserved(shard, holdout, work))


def _reserved(shard: Shard, holdout: str, work: Work) -> Mask:
    held, copies = holdout_of(shard, holdout, work)
    return held | copies


def texts_of(drawn: list[Drawn], shards: list[Shard], engine: Engine) -> pa.LargeStringArray:
    """The texts of drawn documents, in their order."""
    by_name = {shard.name: shard for shard in shards}
    positions: dict[str, list[int]] = {}
    for document in drawn:
        positions.setdefault(document.shard, []).append(document.position)
    names = list(positions)
    texts = engine.map(_texts_at, [(by_name[name], positions[name]) for name in names], "collect texts")
    place = {(name, position): (index, offset) for index, name in enumerate(names) for offset, position in enumerate(positions[name])}
    base = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(part) for part in texts], dtype=np.int64)])
    order = [base[place[document.shard, document.position][0]] + place[document.shard, document.position][1] for document in drawn]
    both = pa.concat_arrays(texts) if texts else pa.array([], pa.large_string())
    return both.take(pa.array(order, pa.int64()))


def _texts_at(shard: Shard, positions: list[int]) -> pa.LargeStringArray:
    return shard.texts(np.array(positions, np.int64))


# --- choosing, and finding what equals a chosen one


class Reserved(NamedTuple):
    """The key under which the sidecars say what is held out, and per source whether fewer were held out than asked."""

    key: str
    capped: dict[str, int]


def reserve(config: HoldoutConfig, seed: int, corpus: Corpus, work: Work, engine: Engine) -> Reserved:
    """Holds out. Every document read is signed for it, so that near-duplicates of the held-out ones are found even by a recipe that removes no others."""
    asked = {source.name: _documents(config, corpus.of(source.name), engine) for source in corpus.sources}
    capped = {name: count for name, count in asked.items() if count < config.documents}
    key = key_of(
        "holdout", HOLDOUT_VERSION, signature_key(), config.model_dump(), seed, [[shard.name, shard.first_row] for shard in corpus.shards]
    )
    missing = [shard for shard in corpus.shards if not sidecar_path(work, key, shard).exists()]
    if not missing:
        return Reserved(key, capped)
    chosen = [document for name, count in asked.items() for document in _choose(corpus, name, count, seed, engine)]
    _mark_against(chosen, corpus, missing, key, config.similarity, work, engine)
    return Reserved(key, capped)


def drop_resembling(key: str, similarity: float, corpus: Corpus, later: list[Shard], work: Work, engine: Engine) -> None:
    """Marks in shards made after `corpus` what equals or resembles a document held out of it; none of theirs is held out."""
    missing = [shard for shard in later if not sidecar_path(work, key, shard).exists()]
    if missing:
        parts = engine.map(_held_in, [(shard, key, work) for shard in corpus.shards], "look up the hold-out")
        _mark_against([document for part in parts for document in part], corpus, missing, key, similarity, work, engine)


def _held_in(shard: Shard, key: str, work: Work) -> list[Drawn]:
    positions = np.flatnonzero(holdout_of(shard, key, work)[0])
    rows, contents = shard.rows(), shard.contents().astype(">u8")
    return [Drawn(0, int(rows[position]), contents[position].tobytes(), shard.name, position) for position in positions.tolist()]


def _mark_against(
    chosen: list[Drawn], corpus: Corpus, shards: list[Shard], key: str, similarity: float, work: Work, engine: Engine
) -> None:
    """Writes for each of `shards` which documents are the `chosen` ones of `corpus`, and which resemble one."""
    chosen.sort(key=lambda document: document.row)
    index = work.room("scratch") / f"{key}.npz"
    texts = texts_of(chosen, corpus.shards, engine)
    rows = np.array([document.row for document in chosen], np.uint64)
    contents = np.frombuffer(b"".join(document.content for document in chosen), ">u8").astype(np.uint64).reshape(-1, 2)
    write_holdout_index(index, texts, contents, rows)
    engine.memory.require("hold out", worker=index.stat().st_size)
    by_name = {shard.name: shard for shard in corpus.shards}
    origins = {document.row: by_name[document.shard].origins(np.array([document.position]))[0] for document in chosen}
    engine.map(_mark, [(shard, key, similarity, index, origins, work) for shard in shards], "hold out")


def _documents(config: HoldoutConfig, shards: list[Shard], engine: Engine) -> int:
    """How many to hold out. Whether there are ten times as many distinct contents shows in the lowest of each shard; with fewer, those are all there are."""
    enough = LARGEST_SHARE * config.documents
    parts = engine.map(_lowest_contents, [(shard, enough) for shard in shards], "count contents")
    distinct = len(np.unique(np.concatenate([np.zeros(0, np.uint64), *parts])))
    return min(config.documents, distinct // LARGEST_SHARE)


def _lowest_contents(shard: Shard, count: int) -> npt.NDArray[np.uint64]:
    """The upper halves of the `count` lowest distinct contents."""
    return np.unique(shard.contents()[:, 0])[:count]


def _choose(corpus: Corpus, source: str, documents: int, seed: int, engine: Engine) -> list[Drawn]:
    """The first of the source in the draw whose content does not first appear in an earlier source, which then stands for it."""
    names = [one.name for one in corpus.sources]
    earlier = [shard for name in names[: names.index(source)] for shard in corpus.of(name)]
    mine = corpus.of(source)
    wanted = documents + 64
    while True:
        found = engine.map(lowest, [(shard, seed, wanted, None) for shard in mine], f"draw {source}")
        distinct: dict[bytes, Drawn] = {}
        for drawn in sorted(document for part in found for document in part):
            distinct.setdefault(drawn.content, drawn)
        candidates = list(distinct.values())[:wanted]
        contents = sorted(document.content for document in candidates)
        elsewhere = (
            set().union(*engine.map(_present, [(shard, contents) for shard in earlier], f"draw {source}"))
            if earlier and contents
            else set()
        )
        free = [document for document in candidates if document.content not in elsewhere]
        if len(free) >= documents or len(candidates) < wanted:
            return free[:documents]
        wanted *= 2


def _present(shard: Shard, contents: list[bytes]) -> set[bytes]:
    return set(contents) & {pair.tobytes() for pair in shard.contents().astype(">u8")}


def _mark(shard: Shard, key: str, similarity: float, index: Path, origins: dict[int, str], work: Work) -> None:
    everything = np.ones(shard.documents, np.bool_)
    signed, contents, reserved = sign(shard, everything, work), shard.contents(), open_holdout_index(index)
    found = [np.empty(0, DUPLICATES)]
    for first, end in shard.spans():
        texts = shard.texts(np.arange(first, end))
        part = match_holdout(texts, contents[first:end], signatures_of(signed.between(first, end)), reserved, similarity, PAIRS_AT_ONCE)
        part["position"] += first
        found.append(part)
    matches = np.concatenate(found)
    held = np.isin(shard.rows(), np.array(sorted(origins), np.uint64))
    matches = matches[~held[matches["position"]]]
    row, share = np.zeros(shard.documents, np.uint64), np.zeros(shard.documents)
    row[matches["position"]], share[matches["position"]] = matches["survivor"], matches["similarity"]
    copy = np.zeros(shard.documents, np.bool_)
    copy[matches["position"]] = True
    origin = pa.array([origins[int(one)] if is_copy else None for one, is_copy in zip(row, copy, strict=True)], pa.large_string())
    values = pa.StructArray.from_arrays([pa.array(held), pa.array(row, mask=~copy), pa.array(share, mask=~copy), origin], fields=list(FATE))
    write_sidecar(sidecar_path(work, key, shard), everything, values)


def held_contents(shards: list[Shard], holdout: str | None, work: Work, engine: Engine) -> set[bytes]:
    """The content hashes (16 bytes) of all held-out documents."""
    if holdout is None:
        return set()
    return set().union(*engine.map(_held_contents_of, [(shard, holdout, work) for shard in shards], "look up the hold-out"))


def _held_contents_of(shard: Shard, holdout: str, work: Work) -> set[bytes]:
    return {pair.tobytes() for pair in shard.contents()[holdout_of(shard, holdout, work)[0]].astype(">u8")}


def holdout_of(shard: Shard, key: str, work: Work) -> tuple[Mask, Mask]:
    """Per document of a shard: whether it is held out, and whether it is dropped for equalling or resembling one that is."""
    sidecar = read_sidecar(sidecar_path(work, key, shard))
    assert sidecar is not None, shard.name
    held, row = sidecar.values.field("held"), sidecar.values.field("row")
    return held.to_numpy(zero_copy_only=False), row.is_valid().to_numpy(zero_copy_only=False)
