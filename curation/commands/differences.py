"""What differs between two manifests, in the order a reviewer asks: recipe, inputs, what the rules dropped, tokens by component, documents, order.

`facts` is for programs, `diff` for people. Documents are compared by content, so that two manifests of different inputs compare; the order is that of the planned tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import ndiff
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from mixing.manifest import Manifest

Value = TypeVar("Value")
BRIEF = 120
AT_ONCE = 4096  # sequences compared at once
PARTS = ("parent", "tokenizer", "holdout", "models")
COUNTS = ("read", "quarantined", "dropped", "held_out", "kept", "used")


def facts(a: Manifest, b: Manifest) -> dict[str, Any]:
    """The differences as values: `changed` maps a path of the header to [a, b], every other part names what it counts."""
    return {
        "a": a.digest,
        "b": b.digest,
        "changed": dict(_changes("recipe", a.header["recipe"], b.header["recipe"]))
        | {path: pair for part in PARTS for path, pair in _changes(part, a.header[part], b.header[part])},
        "inputs": {name: change for name in _union(a.sources, b.sources) if any((change := _inputs(a, b, name)).values())},
        "sources": _differing(_funnels(a, b), _funnels(b, a), {}),
        "rules": _differing(_rules(a), _rules(b), 0),
        "tokens": _tokens(a, b),
        "documents": _documents(a, b),
        "order": {"sequences": [a.sequences, b.sequences], "same": _same_order(a, b)},
    }


def diff(a: Manifest, b: Manifest) -> str:
    """The differences as text; one line if there is none."""
    if a.digest == b.digest:
        return f"the same manifest, digest {a.digest}"
    found = facts(a, b)
    parts = [
        f"a  {a.folder}  {a.digest}\nb  {b.folder}  {b.digest}",
        "\n".join(_changed(found["changed"])),
        "\n".join(_told_inputs(name, one) for name, one in found["inputs"].items()),
        _columns("documents", COUNTS, found["sources"]),
        _rows("dropped by", found["rules"]),
        _rows("tokens", found["tokens"]),
        _told_documents(found["documents"]),
        _told_order(found["order"]),
    ]
    return "\n\n".join(part for part in parts if part)


# --- finding


def _changes(path: str, a: Any, b: Any) -> Iterator[tuple[str, list[Any]]]:
    """(path, [a, b]) of everything that differs: lists whose entries have names are compared by name, lists of one length entry by entry, other lists whole."""
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(one, dict) and "name" in one for one in [*a, *b]):
        a, b = ({one["name"]: one for one in some} for some in (a, b))
        if [name for name in a if name in b] != [name for name in b if name in a]:
            yield f"{path}, order", [list(a), list(b)]
    if isinstance(a, dict) and isinstance(b, dict):
        for key in _union(a, b):
            yield from _changes(f"{path}.{key}", a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _changes(f"{path}[{index}]", one, other)
    elif a != b:
        yield path, [a, b]


def _union(a: Any, b: Any) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


def _differing(a: dict[str, Value], b: dict[str, Value], none: Value) -> dict[str, list[Value]]:
    """[a, b] of every name whose values differ; `none` stands where one has no such name."""
    pairs = {name: [a.get(name, none), b.get(name, none)] for name in _union(a, b)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _inputs(a: Manifest, b: Manifest, name: str) -> dict[str, list[str]]:
    before, after = ({one["path"]: one["digest"] for one in manifest.sources.get(name, {}).get("inputs", [])} for manifest in (a, b))
    return {
        "added": [path for path in after if path not in before],
        "removed": [path for path in before if path not in after],
        "changed": [path for path in after if path in before and after[path] != before[path]],
    }


def _funnels(manifest: Manifest, other: Manifest) -> dict[str, dict[str, int]]:
    """The counts of the sources of both, as they are in one."""
    return {name: _counts(manifest, name) for name in _union(manifest.sources, other.sources)}


def _counts(manifest: Manifest, name: str) -> dict[str, int]:
    source = manifest.sources.get(name)
    if source is None:
        return dict.fromkeys(COUNTS, 0)
    return {key: sum(one["documents"] for one in source[key]) if key == "dropped" else source[key] for key in COUNTS}


def _rules(manifest: Manifest) -> dict[str, int]:
    """Documents dropped by each rule, over all sources."""
    counts: dict[str, int] = {}
    for source in manifest.sources.values():
        for one in source["dropped"]:
            counts[one["rule"]] = counts.get(one["rule"], 0) + one["documents"]
    return counts


def _tokens(a: Manifest, b: Manifest) -> dict[str, list[int]]:
    """Tokens of each stage's components that differ, by `stage, component`."""
    before, after = (
        {f"{stage['name']}, {name}": one["tokens"] for stage in manifest.stages for name, one in stage["components"].items()}
        for manifest in (a, b)
    )
    return _differing(before, after, 0)


def _documents(a: Manifest, b: Manifest) -> dict[str, Any]:
    """Distinct texts planned in each, and how many of them are in one alone, by the source that they are from there."""
    planned = [_planned(manifest) for manifest in (a, b)]
    alone = [
        dict(one.join(other, on="content", how="anti").group_by("source").len().sort("source").iter_rows())
        for one, other in (planned, planned[::-1])
    ]
    return {"planned": [len(one) for one in planned], "lost": alone[0], "gained": alone[1]}


def _planned(manifest: Manifest) -> pl.DataFrame:
    """content and source of every planned text, once."""
    planned = [np.zeros(len(manifest.token_file(file).pool_row), np.bool_) for file in range(manifest.token_files)]
    for stage in manifest.stage_arrays:  # a remix stores its parent's documents, planned or not
        file, token_row, *_ = stage.columns
        for number in np.unique(file):
            planned[number][token_row[file == number]] = True
    rows = np.concatenate([np.zeros(0, np.uint64), *(manifest.token_file(file).pool_row[here] for file, here in enumerate(planned))])
    found = manifest.pool().select("row", "content", "source").join(pl.LazyFrame({"row": rows}), on="row", how="semi").collect()
    return found.select("content", "source").unique("content", keep="first", maintain_order=True)


def _same_order(a: Manifest, b: Manifest) -> int:
    """How many sequences from the first on hold the same tokens of the same texts in both."""
    if a.sequence_length != b.sequence_length or a.tokenizer["sha256"] != b.tokenizer["sha256"]:
        return 0
    named, until = (_contents(a), _contents(b)), min(a.sequences, b.sequences)
    for first in range(0, until, AT_ONCE):
        last = min(first + AT_ONCE, until)
        if not _same(a, b, named, first, last):
            return next(one for one in range(first, last) if not _same(a, b, named, one, one + 1))
    return until


def _same(a: Manifest, b: Manifest, named: tuple[list[npt.NDArray[np.int64]], ...], first: int, last: int) -> bool:
    mine, theirs = a.spans(first, last), b.spans(first, last)
    columns = ("sequence", "start", "length")
    if not all(np.array_equal(getattr(mine, name), getattr(theirs, name)) for name in columns):
        return False
    one, other = (_at(contents, spans.file, spans.token_row) for contents, spans in zip(named, (mine, theirs), strict=True))
    return np.array_equal(one, other)


def _at(contents: list[npt.NDArray[np.int64]], file: npt.NDArray[np.uint32], row: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    out = np.zeros(len(file), np.int64)
    for number in np.unique(file):
        here = file == number
        out[here] = contents[number][row[here]]
    return out


def _contents(manifest: Manifest) -> list[npt.NDArray[np.int64]]:
    """The first 60 bits of the content of every stored document, by file and row."""
    first = pl.col("content").str.slice(0, 15).str.to_integer(base=16)
    table = manifest.pool().filter(pl.col("content").is_not_null()).select("row", first).collect()
    rows, contents = table["row"].to_numpy(), table["content"].to_numpy()
    return [contents[np.searchsorted(rows, manifest.token_file(file).pool_row)] for file in range(manifest.token_files)]


# --- telling


def _changed(changes: dict[str, list[Any]]) -> Iterator[str]:
    for path, (a, b) in changes.items():
        if isinstance(a, list) and isinstance(b, list):
            yield f"{path}:"
            yield from (f"  {line}" for line in ndiff([_brief(one) for one in a], [_brief(one) for one in b]) if line[:1] in "-+")
        else:
            yield f"{path}: {_brief(a)} -> {_brief(b)}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= BRIEF else f"{text[: BRIEF - 3]}..."


def _told_inputs(name: str, change: dict[str, list[str]]) -> str:
    said = [f"{len(paths):,} {what} ({paths[0]}{', …' if len(paths) > 1 else ''})" for what, paths in change.items() if paths]
    return f"files of {name}: {', '.join(said)}"


def _columns(title: str, names: tuple[str, ...], pairs: dict[str, list[dict[str, int]]]) -> str:
    """A row for each thing, `a -> b` where a value changed."""
    from curation.terminal import table

    if not pairs:
        return ""
    head = [title, *(name.replace("used", "planned").replace("_", " ") for name in names)]
    rows = [
        [name, *(f"{a[key]:,}" if a[key] == b[key] else f"{a[key]:,} -> {b[key]:,}" for key in names)] for name, (a, b) in pairs.items()
    ]
    return table([head, *rows], "")


def _rows(title: str, pairs: dict[str, list[int]]) -> str:
    from curation.terminal import table

    if not pairs:
        return ""
    rows = [[name if len(name) <= 50 else f"{name[:47]}...", f"{a:,}", f"{b:,}", f"{b - a:+,}"] for name, (a, b) in pairs.items()]
    return table([[title, "a", "b", "change"], *rows], "")


def _told_documents(documents: dict[str, Any]) -> str:
    a, b = documents["planned"]
    lost, gained = documents["lost"], documents["gained"]
    line = f"documents planned: {a:,} in a, {b:,} in b, {sum(lost.values()):,} lost, {sum(gained.values()):,} gained"
    by_source = [f"  {name}: {lost.get(name, 0):,} lost, {gained.get(name, 0):,} gained" for name in _union(lost, gained)]
    return "\n".join([line, *by_source])


def _told_order(order: dict[str, Any]) -> str:
    a, b = order["sequences"]
    if order["same"] == a == b:
        return f"order: the same {a:,} sequences in the same order"
    if order["same"] == min(a, b):
        return f"order: the {order['same']:,} sequences of the shorter are the first of the longer ({a:,} in a, {b:,} in b)"
    if order["same"] == 0:
        return f"order: different from the first sequence on ({a:,} in a, {b:,} in b)"
    return f"order: the same up to sequence {order['same']:,}, different from there on ({a:,} in a, {b:,} in b)"
