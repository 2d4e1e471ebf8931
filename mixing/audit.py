"""What `curate verify` proves: a manifest re-read from its bytes, knowing nothing of the run that wrote it.

In: a manifest folder. Out: findings, one a check, as they are made: `ok`, `FAIL`, or `finding` (true and worth a look, no promise broken).
Covered: every file and digest, the header, promise 1 (accounting), 5 (exact tokens), 6 (packing), 7 (honest hold-out). Cost: each file is read
twice, the token store three times; memory is that of the plan (about 60 bytes a span of it) plus one pool file and one map of tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mixing import UserError
from mixing.audit_holdout import check_holdout
from mixing.audit_plan import check_plan
from mixing.canonical import canonical_json, content_digest
from mixing.files import file_sha256
from mixing.findings import Finding, Pool, Stored, check
from mixing.history import VISITS_PATH
from mixing.history import stored as stored_documents
from mixing.manifest import HEADER_KEYS, Manifest, read_header
from mixing.pool import DECISIONS, FORBIDDEN, POOL

_MACHINE_PATH = re.compile(r"/|~|[A-Za-z]:[\\/]|[A-Za-z0-9+.-]+://")


def verify(path: Path | str) -> Iterator[Finding]:
    """Every check of the manifest at `path`, in turn. What cannot even be read ends the run with a FAIL that says so."""
    folder = Path(path)
    folder = folder.parent if folder.name == "manifest.json" else folder
    try:
        yield from _check_header(folder)
        yield from _check_files(folder)
        manifest = Manifest.open(folder)
        yield from _check_digests(manifest)
        pool = _read_pool(manifest)
        yield from _check_pool(manifest, pool)
        stored = stored_documents(manifest)
        yield from _check_stored(manifest, pool, stored)
        yield from _check_accounting(manifest, pool, stored)
        yield from check_plan(manifest, stored)
        yield from check_holdout(manifest, pool, stored)
    except (UserError, pa.ArrowException, OSError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        yield Finding("the manifest can be read", "FAIL", f"{type(error).__name__}: {error}")


def _check_header(folder: Path) -> Iterator[Finding]:
    raw = (folder / "manifest.json").read_bytes()
    header = json.loads(raw)
    missing = [key for key in HEADER_KEYS if key not in header]
    yield check("the header has its keys", not missing, f"missing: {', '.join(missing)}" if missing else f"{len(HEADER_KEYS)} keys")
    read_header(folder)
    yield check("manifest.json is canonical JSON", raw == canonical_json(header).encode(), f"digest {hashlib.sha256(raw).hexdigest()}")
    recipe, names = header["recipe"], header["component_names"]
    digest = hashlib.sha256(canonical_json(recipe).encode()).hexdigest()
    yield check("recipe_sha256 is the recipe's", digest == header["recipe_sha256"], digest)
    components = recipe["mixture"]["components"]
    ordered = isinstance(recipe["sources"], list) and isinstance(components, list)
    yield check("ordered parts of the recipe are arrays", ordered, "sources, mixture.components")
    in_order = ordered and [component["name"] for component in components] == names and set(header["components"]) == set(names)
    yield check("components are the recipe's, in its order", in_order, ", ".join(names))
    yield _check_parent(header)
    machine = [text for text in _texts([recipe, header["sources"]]) if _MACHINE_PATH.match(text) or ".." in re.split(r"[\\/]", text)]
    yield check("no path of a machine and no URL in the header", not machine, ", ".join(machine[:3]))


def _check_parent(header: dict[str, Any]) -> Finding:
    """A remix names its parent; only one that goes on from trained sequences says what was read before it."""
    parent, remembers = header["parent"], any(entry["path"] == VISITS_PATH for entry in header["files"])
    if parent is None:
        return check("the parent is named", not remembers, f"none, but {VISITS_PATH}" if remembers else "none")
    consumed, digest = parent["consumed_sequences"], parent["digest"]
    sound = re.fullmatch(r"[0-9a-f]{64}", digest) is not None and type(consumed) is int and consumed >= 0 and (remembers or not consumed)
    return check(
        "the parent is named", sound and set(parent) == {"digest", "consumed_sequences"}, f"{digest}, {consumed} sequences consumed"
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _check_files(folder: Path) -> Iterator[Finding]:
    header, _ = read_header(folder)
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {"files.json"}
    listed = {entry["path"] for entry in header["files"]} | {"manifest.json"}
    strange = sorted(listed - present) + sorted(present - listed - {"provenance.json"})
    yield check(
        "every file is listed and there", not strange and len(listed) == len(header["files"]) + 1, _some(strange, f"{len(listed)} files")
    )
    written = {entry["path"]: entry for entry in json.loads((folder / "files.json").read_bytes())}
    unwritten = sorted(present ^ set(written))
    yield check("files.json lists every file", not unwritten, _some(unwritten, f"{len(written)} files"))
    edited = [
        name
        for name in sorted(present & set(written))
        if (folder / name).stat().st_size != written[name]["bytes"] or file_sha256(folder / name) != written[name]["sha256"]
    ]
    yield check(
        "files.json agrees with the bytes", not edited, _some(edited, f"{sum(entry['bytes'] for entry in written.values()):,} bytes")
    )


def _check_digests(manifest: Manifest) -> Iterator[Finding]:
    wrong, rows = [], 0
    for entry in manifest.header["files"]:
        file = manifest.folder / entry["path"]
        if entry["path"].startswith("tokenizer/"):
            if file_sha256(file) != entry["digest"]:
                wrong.append(entry["path"])
            continue
        table = _table(file)
        rows += table.num_rows
        if table.num_rows != entry["rows"] or content_digest(table) != entry["digest"]:
            wrong.append(entry["path"])
    yield check("rows and content digests of the files", not wrong, _some(wrong, f"{rows:,} rows"))
    sha256 = file_sha256(manifest.folder / "tokenizer" / "tokenizer.json")
    yield check("tokenizer.sha256 is that of tokenizer.json", sha256 == manifest.tokenizer["sha256"], sha256)


def _table(file: Path) -> pa.Table:
    if file.suffix == ".parquet":
        return pq.read_table(file)
    with pa.memory_map(str(file)) as mapped:
        return pa.ipc.open_file(mapped).read_all()


def _read_pool(manifest: Manifest) -> Pool:
    """The columns of the pool that the checks need, in arrays; one file at a time."""
    sources = {name: number for number, name in enumerate(manifest.sources)}
    parts: list[tuple[Any, ...]] = []
    contents, parents = [], []
    for file in manifest.pool_files():
        if missing := [name for name in POOL.names if name not in pq.read_schema(file).names]:
            raise UserError(f"{file}: no column {', '.join(missing)}")
        table = pq.read_table(file, columns=POOL.names)
        reason = pc.fill_null(table["reason"], "")
        parts.append(
            (
                table["row"].to_numpy(),
                pc.index_in(table["source"], pa.array(sources)).fill_null(-1).to_numpy(),
                pc.index_in(table["decision"], pa.array(DECISIONS)).fill_null(-1).to_numpy(),
                pc.not_equal(reason, "").to_numpy(),
                table["bytes"].fill_null(0).to_numpy().astype(np.int64),
                table["n_tokens"].cast(pa.int64()).fill_null(-1).to_numpy(),
            )
        )
        contents.append(table["content"].cast(pa.large_string()))
        parents.append(table["parents"].cast(pa.large_list(pa.uint64())))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    joined = [pa.chunked_array([chunk for column in texts for chunk in column.chunks], texts[0].type) for texts in (contents, parents)]
    return Pool(*columns, *joined)


def _check_pool(manifest: Manifest, pool: Pool) -> Iterator[Finding]:
    schemas = [pq.read_schema(file) for file in manifest.pool_files()]
    typed = (
        all(schema.field(field.name).type == field.type for schema in schemas for field in POOL)
        and len({tuple(s.names) for s in schemas}) == 1
    )
    yield check("pool columns", typed, f"{len(schemas[0].names)} columns")
    text = sorted({name for schema in schemas for name in schema.names} & set(FORBIDDEN))
    yield check("the pool holds no text", not text, ", ".join(text))
    yield check("pool rows are numbered in order", np.array_equal(pool.row, np.arange(len(pool.row))), f"{len(pool.row):,} rows")
    yield check("decisions are known", (pool.decision >= 0).all(), ", ".join(DECISIONS))
    yield check("sources are the header's", (pool.source >= 0).all(), ", ".join(manifest.sources))
    reasoned = np.isin(pool.decision, [DECISIONS.index("dropped"), DECISIONS.index("quarantined")])
    yield check(
        "dropped and quarantined have a reason, kept have none",
        np.array_equal(pool.reasoned[pool.decision != _HELD], reasoned[pool.decision != _HELD]),
    )
    missing = pool.content.is_null().to_numpy() != (pool.decision == DECISIONS.index("quarantined"))
    yield check("every document has a content hash, quarantined records have none", not missing.any(), f"{int(missing.sum())} rows")


_HELD = DECISIONS.index("held_out")
_KEPT = DECISIONS.index("kept")


def _check_stored(manifest: Manifest, pool: Pool, stored: Stored) -> Iterator[Finding]:
    row = stored.row
    rising = bool((np.diff(row) > 0).all())
    known = bool((row < len(pool.row)).all())
    yield check(
        "stored documents are kept documents, once each, in pool order",
        rising and known and (pool.decision[row] == _KEPT).all(),
        f"{len(row):,} documents",
    )
    counted = (pool.n_tokens[row] == stored.length).all()
    yield check("stored ids are as many as the pool's n_tokens", counted, f"{int(stored.length.sum()):,} ids")
    largest = max((int(manifest.token_file(number).ids.max(initial=0)) for number in range(manifest.token_files)), default=0)
    yield check(
        "ids are below vocab_size", largest < manifest.tokenizer["vocab_size"], f"largest {largest} of {manifest.tokenizer['vocab_size']}"
    )


def _check_accounting(manifest: Manifest, pool: Pool, stored: Stored) -> Iterator[Finding]:
    """Promise 1. A remix stores its parent's documents and need not plan them all."""
    planned = stored.row if manifest.header["parent"] is None else stored.row[_planned(manifest, stored)]
    for number, (name, counts) in enumerate(manifest.sources.items()):
        here = pool.source == number
        found = {decision: int(np.count_nonzero(here & (pool.decision == index))) for index, decision in enumerate(DECISIONS)}
        dropped = sum(step["documents"] for step in counts["dropped"])
        said = {"kept": counts["kept"], "dropped": dropped, "held_out": counts["held_out"], "quarantined": counts["quarantined"]}
        used = int(np.count_nonzero(here[planned]))
        exact = found == said and counts["read"] == sum(said.values()) == int(here.sum())
        divided = counts["kept"] == counts["used"] + counts["unused"] + counts["unassigned"] and counts["used"] == used
        figure = f"read {counts['read']:,}; header {said}, pool {found}; used {counts['used']:,}, planned {used:,}"
        yield check(f"accounting of {name}", exact and divided and min(counts["unused"], counts["unassigned"]) >= 0, figure)


def _planned(manifest: Manifest, stored: Stored) -> npt.NDArray[np.int64]:
    """The stored documents that the plan names, as far as its places can be looked up; `check_plan` says whether they can."""
    named = np.zeros(len(stored.row), np.bool_)
    for arrays in manifest.stage_arrays:
        file, token_row = (column.astype(np.int64) for column in arrays.columns[:2])
        document = stored.first[np.minimum(file, len(stored.first) - 1)] + token_row
        named[document[document < len(named)]] = True
    return np.flatnonzero(named)


def _some(names: list[str], otherwise: str) -> str:
    return f"{len(names)}: {', '.join(names[:3])}" if names else otherwise
