"""Damage for tests: change one thing in a manifest and make all else agree with it again, so that only the planted damage is left to find."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixing.audit import verify
from mixing.canonical import canonical_json, content_digest


def header_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def table_of(file: Path) -> pa.Table:
    return pq.read_table(file) if file.suffix == ".parquet" else pa.ipc.open_file(pa.BufferReader(file.read_bytes())).read_all()


def rewrite(folder: Path, path: str, change: Callable[[dict[str, list[Any]]], object]) -> None:
    """Change the columns of one file in place, as lists."""
    table = table_of(folder / path)
    columns = table.to_pydict()
    change(columns)
    table = pa.table(columns, schema=table.schema)
    if path.endswith(".parquet"):
        pq.write_table(table, folder / path)
        return
    with pa.OSFile(str(folder / path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])


def sign(folder: Path, change: Callable[[dict[str, Any]], object] = lambda header: None) -> None:
    """Make header and files.json agree with the files again, so that only the planted damage is left."""
    header = header_of(folder)
    for entry in header["files"]:
        file = folder / entry["path"]
        if "rows" in entry:
            entry |= {"rows": table_of(file).num_rows, "digest": content_digest(table_of(file))}
        else:
            entry["digest"] = hashlib.sha256(file.read_bytes()).hexdigest()
    change(header)
    header["recipe_sha256"] = hashlib.sha256(canonical_json(header["recipe"]).encode()).hexdigest()
    (folder / "manifest.json").write_text(canonical_json(header))
    sign_files(folder)


def sign_files(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "files.json")
    entries = [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    ]
    (folder / "files.json").write_text(canonical_json(entries))


def failed(folder: Path) -> set[str]:
    return {finding.check for finding in verify(folder) if not finding.ok}
