"""Why a document was kept or dropped, and the texts behind the decisions.

The pool answers for every document; texts are read from the work directory of the build, which the manifest's provenance names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from curation.corpus.shards import Shard
from curation.signals.contamination import text_of
from curation.text.clean import cleaned
from curation.text.shared_passages import excerpt, first_character, first_difference, longest_shared, words_of
from mixing import UserError
from mixing.canonical import canonical_json
from mixing.history import before, remembers, stored
from mixing.manifest import Manifest

SHOWN = 2000
PASSAGE = 300  # characters of a shared passage
PARTING = 12  # words from where two texts part
FIXED = ("row", "source", "origin", "key", "content", "bytes", "parents", "decision", "reason", "evidence", "n_tokens")


# --- texts


def work_of(manifest: Manifest, work: Path | None) -> Path:
    """The work directory of the build that made the manifest, if it has not moved to `work`."""
    return work or Path(_provenance(manifest)["work"])


def _provenance(manifest: Manifest) -> dict[str, Any]:
    path = manifest.folder / "provenance.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "build" not in found:
        raise UserError(f"{manifest.folder}: no provenance.json that says where its texts are; build the recipe again")
    return found


def shards_of(manifest: Manifest, work: Path | None) -> list[Shard]:
    """The shards of the build that made the manifest, or a UserError that says where they were."""
    folder, build = _remembered(manifest, work)
    return [Shard(**{**shard, "path": folder / shard["path"]}) for shard in build["shards"]]


def _remembered(manifest: Manifest, work: Path | None) -> tuple[Path, dict[str, Any]]:
    """The work directory of the build that made the manifest, and what it remembers of it."""
    folder = work_of(manifest, work)
    remembered = folder / "builds" / f"{_provenance(manifest)['build']}.json"
    if not remembered.exists():
        raise UserError(
            f"{folder}: not the work directory of {manifest.folder}, or it has been cleaned; name it with --work, or build the recipe again"
        )
    build: dict[str, Any] = json.loads(remembered.read_text())
    return folder, build


def texts(shards: list[Shard], rows: list[int]) -> dict[int, str]:
    """The texts of documents and the excerpts of quarantined records, by pool row."""
    found: dict[int, str] = {}
    wanted = np.array(rows, np.uint64)
    for shard in shards:
        there = shard.rows()
        positions = np.flatnonzero(np.isin(there, wanted))
        if len(positions):
            found |= dict(zip(there[positions].tolist(), shard.texts(positions).to_pylist(), strict=True))
        quarantine = shard.quarantine() if shard.quarantined else pa.table({})
        for record in quarantine.to_pylist():
            row = shard.first_row[record["run"]] + record["ordinal"]
            if row in rows:
                found[row] = record["excerpt"]
    return found


def show(
    manifest: Manifest, reason: str | None, decision: str | None, source: str | None, documents: int, work: Path | None
) -> Iterator[str]:
    """Documents with their decision and text, in pool order, evenly spread over those that match."""
    rows = manifest.pool()
    if reason is not None:
        rows = rows.filter(pl.col("reason").str.contains(reason, literal=True))
    if decision is not None:
        rows = rows.filter(pl.col("decision") == decision)
    if source is not None:
        if source not in manifest.sources:
            raise UserError(f"--source {source}: the manifest has: {', '.join(manifest.sources)}")
        rows = rows.filter(pl.col("source") == source)
    matching = rows.select("row").collect()["row"]
    if matching.is_empty():
        reasons = manifest.pool().select(pl.col("reason").drop_nulls().unique()).collect()["reason"].sort().to_list()
        raise UserError(f"no document matches; reasons in {manifest.folder}: {'; '.join(map(repr, reasons[:20])) or 'none'}")
    step = max(1, len(matching) // documents)
    chosen = matching.gather_every(step).head(documents).to_list()
    records = {record["row"]: record for record in manifest.pool().filter(pl.col("row").is_in(chosen)).collect().to_dicts()}
    found = texts(shards_of(manifest, work), chosen)
    for row in chosen:
        yield f"{_heading(records[row])}\n{_shown(found.get(row, ''))}\n"


def _heading(record: dict[str, Any]) -> str:
    why = f": {record['reason']}" if record["reason"] else ""
    evidence = f"  {record['evidence']}" if record["evidence"] else ""
    return f"[{record['row']}] {record['source']} {record['origin']}  {record['decision']}{why}{evidence}"


def _shown(text: str) -> str:
    """Untrusted text for a terminal: control characters as escapes, cut at some length."""
    safe = "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text[:SHOWN]
    )
    return safe + (f" … ({len(text):,} characters)" if len(text) > SHOWN else "")


# --- one document


def why(manifest: Manifest, document: str | None, text: str | None, work: Path | None) -> Iterator[str]:
    """Everything known about the documents that a row, key, origin or text names."""
    records = _by_text(manifest, text) if text is not None else _by_name(manifest, document or "")
    for record in records:
        yield "\n".join(_explained(manifest, record, work))


def _by_name(manifest: Manifest, name: str) -> list[dict[str, Any]]:
    """All that go by the name: a number may be a row and, of other documents, a key."""
    records = sum(one["read"] for one in manifest.sources.values())
    named = (pl.col("key") == name) | (pl.col("origin") == name)
    if name.isascii() and name.isdigit() and int(name) < records:
        named |= pl.col("row") == int(name)
    found = manifest.pool().filter(named).collect().to_dicts()
    if not found:
        raise UserError(f"{name!r}: no row, key or origin of {manifest.folder}; rows run from 0 to {records - 1}")
    return found


def _by_text(manifest: Manifest, text: str) -> list[dict[str, Any]]:
    if text.startswith("@"):
        path = Path(text[1:])
        if not path.is_file():
            raise UserError(f"--text {text}: no such file")
        text = path.read_text(encoding="utf-8")
    content = xxhash.xxh3_128_hexdigest(cleaned(text, manifest.header["recipe"]["clean"])[0].encode())
    found = manifest.pool().filter(pl.col("content") == content).collect().to_dicts()
    if not found:
        raise UserError(
            f"--text: no document of {manifest.folder} has this text (content {content} after {manifest.header['recipe']['clean'] or 'no'} clean steps)"
        )
    return found


def _explained(manifest: Manifest, record: dict[str, Any], work: Path | None) -> Iterator[str]:
    yield f"row {record['row']}  {record['source']}  {record['origin']}" + (f"  key {record['key']}" if record["key"] is not None else "")
    yield f"  {record['decision']}" + (f" by: {record['reason']}" if record["reason"] else "")
    if record["evidence"]:
        evidence = json.loads(record["evidence"])
        if "benchmark" in evidence:
            yield f"  {evidence['share']:.0%} of an item of {evidence['benchmark']}, {evidence['item']}, stands in it from character {evidence['start']:,} on"
        elif "survivor" in evidence:
            yield f"  {_same_as(evidence)}"
            yield from _fate_of_survivor(manifest, record["row"], evidence)
        else:
            yield f"  found: {json.dumps(evidence.get('value', evidence), ensure_ascii=False)}"
    if record["content"] is not None:
        counted = "" if record["n_tokens"] is None else f", {record['n_tokens']:,} tokens"
        yield f"  content {record['content']}, {record['bytes']:,} bytes{counted}"
    yield from _made_from(manifest, record)
    later = _added_later(manifest, record["reason"])
    for name, value in record.items():
        if name in later:
            yield f"  {name}: not computed, the document was gone by then"
        elif name not in FIXED:
            for part, one in value.items() if isinstance(value, dict) else [("", value)]:
                yield f"  {name}{'.' if part else ''}{part} = {'null' if one is None else one}"
    yield from _in_plan(manifest, record)
    evidence = json.loads(record["evidence"] or "{}")
    survivor = evidence.get("row")
    try:
        found = texts(shards_of(manifest, work), [record["row"]] if survivor is None else [record["row"], survivor])
    except UserError:
        return
    if survivor is not None:
        yield from compared(found[record["row"]], found[survivor], survivor)
    if "benchmark" in evidence:
        yield from _leaked(manifest, record, evidence, found[record["row"]], work)
    yield from ("  | " + line for line in _shown(found.get(record["row"], "")[:400]).splitlines())


def _same_as(evidence: dict[str, Any]) -> str:
    """The document, or the member of an index, that a duplicate was dropped for."""
    key = f", key {evidence['key']}" if "key" in evidence else ""
    where = f"row {evidence['row']}, {evidence['survivor']}"
    if "index" in evidence:
        where = f"{evidence['survivor']} of '{evidence['source']}'{key}, in the index under '{evidence['index']}'"
    return f"the same as {where}, similarity {evidence['similarity']:.4f}"


def _leaked(manifest: Manifest, record: dict[str, Any], evidence: dict[str, Any], text: str, work: Path | None) -> Iterator[str]:
    """The passage of a document that is an item of a benchmark, and the item as the benchmark has it, if the work directory still knows."""
    begin = evidence["start"]
    yield f"    here   {_quoted(text[begin : begin + evidence['length']])}"
    named = {key: evidence[key] for key in ("benchmark", "item")}
    part = next(value["part"] for value in record.values() if isinstance(value, dict) and named.items() <= value.items())
    folder, build = _remembered(manifest, work)
    for model in build["models"]:
        item = text_of(folder / "models" / model, evidence["benchmark"], evidence["item"], part)
        if item is not None:
            yield f"    {part:<6} {_quoted(item)}"
            return


def _made_from(manifest: Manifest, record: dict[str, Any]) -> Iterator[str]:
    """Of a synthetic document: its parents, and what was asked of which model."""
    if record["parents"] is None:
        return
    recipe = next(source["synthesize"] for source in manifest.header["recipe"]["sources"] if source["name"] == record["source"])
    for parent in manifest.pool().filter(pl.col("row").is_in(record["parents"])).collect().to_dicts():
        yield f"  made from row {parent['row']}, {parent['source']} {parent['origin']}, {parent['decision']}"
    digest = next(one["digest"] for one in recipe["templates"] if one["name"] == record["template"])
    revision = f" at revision {recipe['revision']}" if recipe["revision"] else ""
    yield f"  by template {record['template']} ({digest[:16]}) and model {recipe['model']}{revision}, prompt {record['key'].split('.')[0]}"


def _fate_of_survivor(manifest: Manifest, row: int, evidence: dict[str, Any]) -> Iterator[str]:
    """What became of the document that a duplicate was dropped for, and of the one that it was dropped for itself, until one is kept or the group is gone."""
    seen = {row}
    while evidence["row"] not in seen:
        if "index" in evidence:
            return
        seen.add(evidence["row"])
        survivor = manifest.pool().filter(pl.col("row") == evidence["row"]).collect().to_dicts()[0]
        if survivor["decision"] == "held_out":
            yield f"    row {survivor['row']} is held out"
            return
        if survivor["decision"] == "kept":
            yield f"    row {survivor['row']} is kept"
            return
        evidence = json.loads(survivor["evidence"] or "{}")
        if "survivor" not in evidence:
            value = f", found: {json.dumps(evidence['value'], ensure_ascii=False)}" if "value" in evidence else ""
            yield f"    row {survivor['row']} was {survivor['decision']} by: {survivor['reason']}{value}; nothing of the group is left"
            return
        yield f"    row {survivor['row']} was dropped by: {survivor['reason']}, {_same_as(evidence)}"
    yield "    they were dropped for each other; nothing of the group is left"


def compared(here: str, there: str, row: int) -> Iterator[str]:
    """What a document has in common with the one it was dropped for, and where they part."""
    mine, theirs = words_of(here), words_of(there)
    if here == there:
        yield f"  the text of row {row}, character by character"
        return
    shared, at = longest_shared(mine, theirs), first_difference(mine, theirs)
    if at == len(mine) == len(theirs):
        character = first_character(here, there)
        begin = max(character - 30, 0)
        yield f"  the {len(mine):,} words of row {row}; as written they part at character {character:,}:"
        yield f"    here   {_quoted(here[begin : character + 60])}"
        yield f"    there  {_quoted(there[begin : character + 60])}"
        return
    yield (
        f"  the longest passage in both: {shared.words:,} words, from word {shared.here + 1:,} of {len(mine):,} here and word {shared.there + 1:,} of {len(theirs):,} in row {row}:"
    )
    yield f"    {_quoted(excerpt(here, shared.here, shared.words))}"
    yield f"  they part at word {at + 1:,}:"
    yield f"    here   {_quoted(excerpt(here, at, PARTING))}"
    yield f"    there  {_quoted(excerpt(there, at, PARTING))}"


def _quoted(text: str) -> str:
    """Untrusted text on one line, its middle left out if it is long."""
    if len(text) > PASSAGE:
        text = f"{text[: PASSAGE // 2]} … {text[-PASSAGE // 2 :]}"
    return f"“{_shown(' '.join(text.split()))}”" if text else "(the text ends here)"


def _added_later(manifest: Manifest, reason: str | None) -> set[str]:
    """The signals that were added after the step that dropped a document."""
    if reason is None:
        return set()
    later: set[str] = set()
    passed = reason == "holdout"
    for step in manifest.header["recipe"]["steps"]:
        if passed and "add" in step:
            later.add(step["add"]["name"])
        rule = step.get("keep") or (f"top: {canonical_json(step['top'])}" if "top" in step else None)
        passed = passed or rule in (reason, reason.removesuffix(" (no value)"))
    return later


def _in_plan(manifest: Manifest, record: dict[str, Any]) -> Iterator[str]:
    place = _stored_at(manifest, record["row"])
    if place is None:
        if record["decision"] == "kept":
            yield "  not planned"
        return
    if remembers(manifest):
        yield from _read_before(manifest, place)
    planned = False
    for stage in manifest.stages:
        first = stage["first_sequence"]
        spans = manifest.spans(first, first + stage["sequences"])
        mine = np.flatnonzero((spans.file == place[0]) & (spans.token_row == place[1]))
        planned |= len(mine) > 0
        for span in mine[:20].tolist():
            sequence = first + int(np.searchsorted(spans.sequence, span, side="right")) - 1
            component = manifest.component_names[int(manifest.components(sequence, sequence + 1)[0])]
            begin, length = int(spans.start[span]), int(spans.length[span])
            yield f"  planned in stage {stage['name']}, sequence {sequence:,} ({component}): tokens {begin:,} to {begin + length:,}, visit {int(spans.epoch[span]) + 1}"
        if len(mine) > 20:
            yield f"  … and {len(mine) - 20:,} more spans in stage {stage['name']}"
    if not planned:
        yield "  not planned"


def _read_before(manifest: Manifest, place: tuple[int, int]) -> Iterator[str]:
    """What was read of a stored document before a remix goes on."""
    documents = stored(manifest)
    history, at = before(manifest, documents), int(documents.first[place[0]]) + place[1]
    if visits := int(history.visits[at]):
        is_open = history.read[at] < documents.length[at]
        last = f", the last one up to token {int(history.read[at]):,}" if is_open else ""
        yield f"  visits before this plan begins: {visits}{last}"


def _stored_at(manifest: Manifest, row: int) -> tuple[int, int] | None:
    for file in range(manifest.token_files):
        rows = manifest.token_file(file).pool_row
        at = int(np.searchsorted(rows, np.uint64(row)))
        if at < len(rows) and rows[at] == row:
            return file, at
    return None
