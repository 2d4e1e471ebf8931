"""The documents that no model of this project ever trains on, chosen right after reading and before any step.

Among distinct contents, the first document of each standing for it, those with the lowest xxh3(seed, content) of each source are held out: recipes with the same seed and
the same clean steps reserve the same texts. `from` takes what another manifest holds out instead, wherever the sources have it, so that models trained from both can be compared
though the corpus has grown. `files` are texts of the user's own: a source each, the last in rank, of which every distinct text is held out and no rule drops one. Every other document that equals one of them, or is verified at least `similarity` similar to one, is dropped with the reason
`holdout`. Drawing by the hash of the content rather than by position makes the choice independent of order, sharding and everything else a recipe says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.corpus.input_files import locate_folder
from curation.corpus.shards import Corpus, Mask, Shard, read_sidecar, sidecar_path, write_sidecar
from curation.corpus.sources import SourceConfig, SourceName
from curation.decisions.duplicates import sign, signature_key, signatures_of
from curation.dedup.holdout_index import match_holdout, open_holdout_index, write_holdout_index
from curation.dedup.runs import DUPLICATES
from curation.engine.local import Engine
from curation.engine.work_directory import Work, key_of
from mixing import UserError
from mixing.manifest import Manifest

HOLDOUT_VERSION = "2"
PAIRS_AT_ONCE = 1 << 22  # bytes
LARGEST_SHARE = 10  # one in so many distinct contents
FATE = pa.struct([("held", pa.bool_()), ("row", pa.uint64()), ("similarity", pa.float64()), ("origin", pa.large_string())])


class HoldoutConfig(BaseModel):
    """What is kept for measuring: so many `documents` of each source, or those that another manifest holds out; and `files` of your own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int | None = Field(None, gt=0, description="per source; never more than a tenth of its distinct texts")
    from_: str | None = Field(
        None,
        alias="from",
        min_length=1,
        description="instead of `documents`, a manifest: what it holds out is held out here, wherever these sources have it",
    )
    files: dict[SourceName, SourceConfig] = Field(
        {}, description="by name, texts that are there to be measured: sources of which everything is held out, whatever the rules say"
    )
    similarity: float = Field(0.8, gt=0, le=1, description="verified Jaccard similarity at which another document counts as the same")

    @model_validator(mode="after")
    def _something(self) -> HoldoutConfig:
        if self.documents is not None and self.from_ is not None:
            raise ValueError("give one of documents, from")
        if self.documents is None and self.from_ is None and not self.files:
            raise ValueError("give documents, from or files")
        if made := [name for name, config in self.files.items() if config.synthesize is not None]:
            raise ValueError(f"`files` of '{made[0]}' are read; a synthesized source stands in `sources`")
        return self


class Earlier(NamedTuple):
    """A manifest whose hold-out is this one's: its folder, and what a recipe keeps of it."""

    folder: Path
    values: dict[str, Any]


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
    """The key under which the sidecars say what is held out, and where less was held out than asked."""

    key: str
    warnings: list[str]


def spelled(config: HoldoutConfig, earlier: Earlier | None) -> dict[str, Any]:
    """The hold-out as a manifest's recipe has it; files stand among the sources."""
    values: dict[str, Any] = {"similarity": config.similarity}
    if config.documents is not None:
        values["documents"] = config.documents
    if earlier is not None:
        values["from"] = earlier.values
    return values | ({"files": list(config.files)} if config.files else {})


def find_earlier(pattern: str, clean: Sequence[str], folder: Path, roots: dict[str, str]) -> Earlier:
    """The manifest that `from` names; refused where its texts were cleaned in another way, so that equal ones would not be known."""
    found, place = locate_folder("holdout.from", pattern, "manifest.json", "manifest", folder, roots)
    manifest = Manifest.open(found)
    cleaned = manifest.header["recipe"]["clean"]
    if cleaned != list(clean):
        raise UserError(
            f"holdout.from: the texts of {manifest.folder} were cleaned by [{', '.join(cleaned)}] and these are by [{', '.join(clean)}]; "
            "equal texts are known by what is left of them, so write the same `clean`"
        )
    if not manifest.header["holdout"]:
        raise UserError(f"holdout.from: {manifest.folder} holds nothing out; name a manifest that does, or ask for `documents`")
    return Earlier(manifest.folder, place | {"digest": manifest.digest})


def reserve(config: HoldoutConfig, earlier: Earlier | None, seed: int, corpus: Corpus, work: Work, engine: Engine) -> Reserved:
    """Holds out. Every document read is signed for it, so that near-duplicates of the held-out ones are found even by a recipe that removes no others."""
    values = spelled(config, earlier)
    key = key_of("holdout", HOLDOUT_VERSION, signature_key(), values, seed, [[shard.name, shard.first_row] for shard in corpus.shards])
    missing = [shard for shard in corpus.shards if not sidecar_path(work, key, shard).exists()]
    exam = [shard for shard in corpus.shards if shard.source in config.files]
    drawn_from = [source.name for source in corpus.sources if source.name not in config.files]
    asked, chosen = dict[str, int](), _firsts(exam, None, engine)
    warnings = [_empty(name) for name in config.files if not any(shard.source == name and shard.documents for shard in exam)]
    if earlier is not None:
        contents = _contents_held_by(earlier)
        others = _firsts([shard for shard in corpus.shards if shard.source not in config.files], contents - set(chosen), engine)
        warnings += _not_here(earlier, len(contents), len(contents - {*chosen, *others}))
        chosen |= others
    if config.documents is not None:
        asked = {name: _documents(config.documents, corpus.of(name), engine) for name in drawn_from}
        warnings += [_capped(name, count, config.documents) for name, count in asked.items() if count < config.documents]
    if missing:
        found = [document for name, count in asked.items() for document in _choose(corpus, name, count, seed, exam, engine)]
        _mark_against([*chosen.values(), *found], corpus, missing, key, config.similarity, work, engine)
    return Reserved(key, warnings)


def _empty(name: str) -> str:
    return f"hold-out '{name}': its files have no documents, so nothing is held out of them"


def _capped(source: str, count: int, asked: int) -> str:
    return f"hold-out of '{source}': {count:,} documents, a tenth of its distinct texts, instead of the {asked:,} asked"


def _not_here(earlier: Earlier, held: int, gone: int) -> list[str]:
    said = f"hold-out from {earlier.folder}: {gone:,} of its {held:,} texts are not among these sources; nothing is compared with those"
    return [said] if gone else []


def _contents_held_by(earlier: Earlier) -> set[bytes]:
    """The content hashes (16 bytes) of a manifest's held-out documents, those that failed a rule there too."""
    import polars as pl

    pool = Manifest.open(earlier.folder).pool()
    held = pool.filter(pl.col("decision") == "held_out").select(pl.col("content").drop_nulls()).collect()
    return {bytes.fromhex(content) for content in held["content"]}


def _firsts(shards: list[Shard], contents: set[bytes] | None, engine: Engine) -> dict[bytes, Drawn]:
    """By content the first document that has it; with `contents`, of those alone."""
    wanted = None if contents is None else sorted(contents)
    found = engine.map(_firsts_of, [(shard, wanted) for shard in shards if wanted != []], "look up the hold-out") if shards else []
    first: dict[bytes, Drawn] = {}
    for document in sorted((document for part in found for document in part), key=lambda document: document.row):
        first.setdefault(document.content, document)
    return first


def _firsts_of(shard: Shard, wanted: list[bytes] | None) -> list[Drawn]:
    rows, contents = shard.rows(), shard.contents()
    likely = np.arange(shard.documents)
    if wanted is not None:
        likely = np.flatnonzero(np.isin(contents[:, 0], np.frombuffer(b"".join(wanted), ">u8")[::2].astype(np.uint64)))
    those, found = set(wanted or ()), dict[bytes, Drawn]()
    for position in likely.tolist():
        content = contents[position].astype(">u8").tobytes()
        if wanted is None or content in those:
            found.setdefault(content, Drawn(0, int(rows[position]), content, shard.name, position))
    return list(found.values())


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


def _documents(asked: int, shards: list[Shard], engine: Engine) -> int:
    """How many to hold out. Whether there are ten times as many distinct contents shows in the lowest of each shard; with fewer, those are all there are."""
    enough = LARGEST_SHARE * asked
    parts = engine.map(_lowest_contents, [(shard, enough) for shard in shards], "count contents")
    distinct = len(np.unique(np.concatenate([np.zeros(0, np.uint64), *parts])))
    return min(asked, distinct // LARGEST_SHARE)


def _lowest_contents(shard: Shard, count: int) -> npt.NDArray[np.uint64]:
    """The upper halves of the `count` lowest distinct contents."""
    return np.unique(shard.contents()[:, 0])[:count]


def _choose(corpus: Corpus, source: str, documents: int, seed: int, exam: list[Shard], engine: Engine) -> list[Drawn]:
    """The first of the source in the draw whose content neither first appears in an earlier source, which then stands for it, nor is held out as a text of the user's own."""
    names = [one.name for one in corpus.sources]
    earlier = [*(shard for name in names[: names.index(source)] for shard in corpus.of(name)), *exam]
    mine = corpus.of(source)
    wanted = documents + 64
    while True:
        found = engine.map(lowest, [(shard, seed, wanted, None) for shard in mine], f"draw {source}")
        distinct: dict[bytes, Drawn] = {}
        for drawn in sorted(document for part in found for document in part):
            distinct.setdefault(drawn.content, drawn)
        candidates = list(distinct.values())[:wanted]
        elsewhere = _firsts(earlier, {document.content for document in candidates}, engine)
        free = [document for document in candidates if document.content not in elsewhere]
        if len(free) >= documents or len(candidates) < wanted:
            return free[:documents]
        wanted *= 2


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
