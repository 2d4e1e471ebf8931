"""Every format under every damage that applies to it, with exact counts: which records are kept, and why the others are not.

A case writes files below a folder and says what must come out: the kept texts in their order, and the quarantined records by reason. `{n}` texts stand before and after the damage, so
that what a damage takes with it shows.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.corpus.sources import SourceConfig, cut, read_unit, resolve
from curation.engine.local import Engine
from curation.engine.work_directory import Digests, Work
from mixing import UserError

GOOD = [f"text {number} é\u4e2d" for number in range(40)]
HALF = GOOD[:20]
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}


class Case(NamedTuple):
    name: str
    content: bytes
    kept: list[str]
    lost: dict[str, int]


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False).encode() + b"\n" for text in texts)


def rows(texts: list[str], delimiter: str = ",", header: bool = True) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerows(([["id", "text"]] if header else []) + [["1", text] for text in texts])
    return out.getvalue().encode()


def table(texts: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"id": list(range(len(texts))), "text": pa.array(texts, kind or pa.string())})


def parquet(data: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(data, out, **{"row_group_size": 10, **options})
    return out.getvalue()


def arrow(data: pa.Table, *, stream: bool = False) -> bytes:
    out = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, data.schema) as writer:
        writer.write_table(data, max_chunksize=10)
    return out.getvalue()


def overwritten(content: bytes, begin: int, size: int) -> bytes:
    return content[:begin] + bytes(byte ^ 0xA5 for byte in content[begin : begin + size]) + content[begin + size :]


def damaged_group(content: bytes, number: int, column: int = 1) -> bytes:
    place = pq.read_metadata(io.BytesIO(content)).row_group(number).column(column)
    start = place.dictionary_page_offset if place.has_dictionary_page else place.data_page_offset
    return overwritten(content, start, place.total_compressed_size)


def between(line: bytes) -> bytes:
    return lines(HALF) + line + b"\n" + lines(GOOD[20:])


BAD_LINES: list[tuple[str, bytes, dict[str, int]]] = [
    ("broken", b'{"text": "x', {"broken JSON": 1}),
    ("invalid utf-8", b'{"text": "\xff"}', {"invalid UTF-8": 1}),
    ("nul", b'{"text": "a\0b"}', {"raw NUL byte": 1}),
    ("wrong type", b'{"text": 7}', {"'text' is not a string": 1}),
    ("missing", b'{"body": "x"}', {"no 'text'": 1}),
    ("null", b'{"text": null}', {"no 'text'": 1}),
    ("empty", b'{"text": ""}', {"empty text": 1}),
    ("blank", b'{"text": " \\u200b\\n"}', {"empty text": 1}),
    ("array", b'[{"text": "x"}]', {"not a JSON object": 1}),
    ("surrogate", b'{"text": "\\ud83d"}', {"lone surrogate": 1}),
    ("nested", b"[" * 200_000, {"nested too deeply": 1}),
    ("no lines at all", b"", {}),
    ("huge and broken", b'{"text": "' + b"x" * 5_000_000, {"broken JSON": 1}),
]
READABLE: list[tuple[str, bytes, list[str]]] = [
    ("two on a line", b'{"text": "one"}{"text": "two"}', ["one", "two"]),
    ("three on a line", b'{"text": "one"} {"text": "two"}\t{"text": "three"}', ["one", "two", "three"]),
    ("nan", b'{"text": "one", "id": NaN, "x": -Infinity}', ["one"]),
    ("surrogate elsewhere", b'{"text": "one", "id": "\\ud83d"}', ["one"]),
    ("nested elsewhere", b'{"text": "one", "id": ' + b"[" * 400 + b"]" * 400 + b"}", ["one"]),
    ("written twice", b'{"text": "one", "text": "two"}', ["two"]),
    ("integer of 40 digits", b'{"text": "one", "id": ' + b"7" * 40 + b"}", ["one"]),
    ("5 MB on a line", json.dumps({"text": "x" * 5_000_000}).encode(), ["x" * 5_000_000]),
]


def line_cases() -> list[Case]:
    whole = lines(GOOD)
    found = [Case("a.jsonl " + name, between(line), GOOD, lost) for name, line, lost in BAD_LINES]
    found += [Case("a.jsonl " + name, between(line), [*HALF, *texts, *GOOD[20:]], {}) for name, line, texts in READABLE]
    found.append(
        Case("a.jsonl one and a half on a line", between(b'{"text": "one"} {"text": "tw'), [*HALF, "one", *GOOD[20:]], {"broken JSON": 1})
    )
    for end, pack in PACK.items():
        found.append(Case(f"a.jsonl{end} whole", pack(whole), GOOD, {}))
        found.append(Case(f"a.jsonl{end} no bytes", b"", [], {}))
        found.append(Case(f"a.jsonl{end} packed nothing", pack(b""), [], {}))
        found.append(Case(f"a.jsonl{end} two members", pack(lines(HALF)) + pack(lines(GOOD[20:])), GOOD, {}))
        found.append(Case(f"a.jsonl{end} mark", pack(b"\xef\xbb\xbf" + whole), GOOD, {}))
        found.append(Case(f"a.jsonl{end} windows", pack(whole.replace(b"\n", b"\r\n")), GOOD, {}))
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
            found.append(Case(f"a.jsonl{end} {encoding}", pack(whole.decode().encode(encoding)), GOOD, {}))
        for other in PACK:
            found.append(Case(f"a.jsonl{end} misnamed, is {other or 'plain'}", PACK[other](whole), GOOD, {}))
        if end:
            kind = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2"}[end]
            reason = f"damaged {kind} stream: it ends too early"
            tail = pack(lines(GOOD[20:]))
            found.append(Case(f"a.jsonl{end} second member without its end", pack(lines(HALF)) + tail[:8], HALF, {reason: 1}))
    found.append(
        Case(
            "a.jsonl utf-16 with half a letter",
            whole.decode().encode("utf-16") + b"x",
            GOOD,
            {"damaged utf-16-le stream: it ends too early": 1},
        )
    )
    surrogate = between(b'{"text": "?"}').decode().encode("utf-16").replace("?".encode("utf-16-le"), b"\x00\xd8")
    found.append(Case("a.jsonl utf-16 with a lone surrogate", surrogate, GOOD, {"invalid UTF-8": 1}))
    found.append(Case("a.jsonl is Parquet", parquet(table(GOOD)), GOOD, {}))
    found.append(Case("a.jsonl is Arrow", arrow(table(GOOD)), GOOD, {}))
    return found


def table_cases() -> list[Case]:
    kinds = {
        "string": pa.string(),
        "large": pa.large_string(),
        "view": pa.string_view(),
        "binary": pa.binary(),
        "large binary": pa.large_binary(),
        "binary view": pa.binary_view(),
    }
    found = []
    for name, write in (("a.parquet", parquet), ("a.arrow", arrow), ("a.feather", lambda data: arrow(data, stream=True))):
        for kind, type_ in kinds.items():
            texts: list[Any] = [text.encode() for text in GOOD] if "binary" in kind else GOOD
            found.append(Case(f"{name} {kind}", write(table(texts, type_)), GOOD, {}))
        coded = table(GOOD * 2).set_column(1, "text", pa.array(GOOD * 2).dictionary_encode())
        found.append(Case(f"{name} dictionary", write(coded), GOOD * 2, {}))
        found.append(Case(f"{name} nulls", write(table([*HALF, None, "", *GOOD[20:]])), GOOD, {"no 'text'": 1, "empty text": 1}))
        found.append(Case(f"{name} integers", write(table([1, 2], pa.int64())), [], {"'text' is not a string": 2}))
        found.append(
            Case(f"{name} lists", write(table([["a"], None], pa.list_(pa.string()))), [], {"'text' is not a string": 1, "no 'text'": 1})
        )
        found.append(Case(f"{name} zero rows", write(table([])), [], {}))
        bad = [*(text.encode() for text in HALF), b"\xff\xfe", *(text.encode() for text in GOOD[20:])]
        found.append(Case(f"{name} invalid utf-8", write(table(bad, pa.binary())), GOOD, {"invalid UTF-8": 1}))
        liar = pa.Array.from_buffers(pa.string(), len(bad), pa.array(bad, pa.binary()).buffers())
        found.append(
            Case(
                f"{name} invalid utf-8 called text", write(table(bad, pa.binary()).set_column(1, "text", liar)), GOOD, {"invalid UTF-8": 1}
            )
        )
        found.append(Case(f"{name} is JSON lines", lines(GOOD), GOOD, {}))
        found.append(Case(f"{name} is JSON lines, packed", gzip.compress(lines(GOOD)), GOOD, {}))
        reason = "not a Parquet file" if name == "a.parquet" else "not an Arrow file"
        found.append(Case(f"{name} no bytes", b"", [], {reason: 1}))
        found.append(Case(f"{name} garbage", b"\x07" * 5000, [], {reason: 1}))
    whole = parquet(table(GOOD), compression="zstd")
    found.append(Case("a.parquet truncated", whole[: len(whole) // 2], [], {"not a Parquet file": 1}))
    found.append(Case("a.parquet damaged group", damaged_group(whole, 1), GOOD[:10] + GOOD[20:], {"damaged row group": 10}))
    checked = parquet(table(GOOD), compression="none", use_dictionary=False, write_page_checksum=True)
    group = pq.read_metadata(io.BytesIO(checked)).row_group(2).column(1)
    flipped = overwritten(checked, group.data_page_offset + group.total_compressed_size - 20, 1)
    found.append(Case("a.parquet wrong checksum", flipped, GOOD[:20] + GOOD[30:], {"damaged row group": 10}))
    found.append(Case("a.parquet damaged column that is not read", damaged_group(whole, 1, column=0), GOOD, {}))
    found.append(Case("a.parquet many groups", parquet(table(GOOD), row_group_size=1), GOOD, {}))
    found.append(Case("a.parquet is Arrow", arrow(table(GOOD)), GOOD, {}))
    whole = arrow(table(GOOD))
    found.append(Case("a.arrow without its footer", whole[:-30], GOOD, {"damaged record batch": 1}))
    found.append(Case("a.arrow is Parquet", parquet(table(GOOD)), GOOD, {}))
    stream = arrow(table(GOOD), stream=True)
    found.append(Case("a.arrow stream cut in a batch", stream[: 3 * len(stream) // 4], GOOD[:20], {"damaged record batch": 1}))
    long = arrow(table(["x" * 0x1337]))
    offsets = long.rindex(b"\0\0\0\0\x37\x13\0\0")  # 0 and the length: the offsets of the one text
    wild = overwritten(long, offsets + 6, 1)
    found.append(Case("a.arrow offsets out of bounds", wild, [], {"damaged record batch": 1}))
    return found


def row_cases() -> list[Case]:
    many = [*HALF, 'a "b", c\nd', *GOOD[20:]]
    found = []
    for end, pack in PACK.items():
        found.append(Case(f"a.csv{end} whole", pack(rows(many)), many, {}))
        found.append(Case(f"a.csv{end} utf-16", pack(rows(many).decode().encode("utf-16")), many, {}))
        found.append(Case(f"a.csv{end} mark and windows", pack(b"\xef\xbb\xbf" + rows(GOOD).replace(b"\n", b"\r\n")), GOOD, {}))
    cut_off = gzip.compress(rows(HALF)) + gzip.compress(rows(HALF))[:8]
    found.append(Case("a.csv.gz cut off", cut_off, HALF, {"damaged gzip stream: it ends too early": 1}))
    found.append(Case("a.tsv whole", rows(many, "\t"), many, {}))
    found.append(Case("a.csv semicolons", rows(many, ";"), many, {}))
    found.append(Case("a.csv no bytes", b"", [], {}))
    found.append(Case("a.csv header alone", rows([]), [], {}))

    def inside(line: bytes) -> bytes:
        return rows(HALF) + line + b"\n" + rows(GOOD[20:], header=False)

    for name, line, lost in (
        ("too few", b"1", {"1 fields, the header has 2": 1}),
        ("too many", b"1,2,3", {"3 fields, the header has 2": 1}),
        ("open quote", b'1,"never closed', {"broken CSV": 1}),
        ("quote in a quote", b'1,"a "b" c"', {"broken CSV": 1}),
        ("nul", b"1,a\0b", {"raw NUL byte": 1}),
        ("invalid utf-8", b"1,\xff", {"invalid UTF-8": 1}),
        ("empty", b"1,", {"empty text": 1}),
        ("blank line", b"", {}),
    ):
        found.append(Case(f"a.csv {name}", inside(line), GOOD, lost))
    closed_later = rows(HALF) + b'1,"never closed\n' + rows(GOOD[20:30], header=False) + b'1,"closed"\n' + rows(GOOD[30:], header=False)
    found.append(Case("a.csv open quote and a later one", closed_later, [*GOOD[:30], "closed", *GOOD[30:]], {"broken CSV": 1}))
    return found


def document_cases() -> list[Case]:
    text = "# Title\n\none é\u4e2d\r\ntwo"
    found = []
    for name in ("a.txt", "a.md"):
        for end, pack in PACK.items():
            found.append(Case(f"{name}{end} whole", pack(text.encode()), [text], {}))
        for encoding in ("utf-8-sig", "utf-16", "utf-32"):
            found.append(Case(f"{name} {encoding}", text.encode(encoding), [text], {}))
        found.append(Case(f"{name} nul", b"a\0b", [], {"raw NUL byte": 1}))
        found.append(Case(f"{name} invalid utf-8", b"abc\xff", [], {"invalid UTF-8": 1}))
        found.append(Case(f"{name} no bytes", b"", [], {"empty text": 1}))
        found.append(Case(f"{name} blank", b" \n\t", [], {"empty text": 1}))
        found.append(
            Case(f"{name} 100 MB", b"word " * 20_000_000, ["word " * 20_000_000], {})
            if name == "a.md"
            else Case(f"{name} short", b"x", ["x"], {})
        )
    packed = gzip.compress(os.urandom(5000).hex().encode())
    found.append(Case("a.txt.gz cut off", packed[:3000], [], {"damaged gzip stream: it ends too early": 1}))
    return found


def page(text: str) -> str:
    return f"<!DOCTYPE html><html><head><title>t</title></head><body><nav>menu</nav><article><p>{text}</p></article><footer>end</footer></body></html>"


def page_cases() -> list[Case]:
    text = "A paragraph é\u4e2d that is long enough to be taken for the text of its page, because it goes on and on. " * 4
    whole, text = page(text).encode(), text.strip()
    found = []
    for name in ("a.html", "a.htm", "a.xhtml"):
        for end, pack in PACK.items():
            found.append(Case(f"{name}{end} whole", pack(whole), [text], {}))
        for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
            found.append(Case(f"{name} {encoding}", whole.decode().encode(encoding), [text], {}))
        declared = whole.replace(b"<title>", b"<meta charset=gb2312><title>").decode().encode("gb18030")
        found.append(Case(f"{name} declared", declared, [text], {}))
        found.append(Case(f"{name} not declared", whole.decode().encode("gb18030"), [], {"invalid encoding": 1}))
        found.append(Case(f"{name} nul", whole.replace(b"long", b"lo\0ng"), [], {"raw NUL byte": 1}))
        found.append(Case(f"{name} no bytes", b"", [], {"no main text": 1}))
        found.append(Case(f"{name} frames", b"<html><frameset><frame src='a.html'></frameset></html>", [], {"no main text": 1}))
        found.append(Case(f"{name} nested", b"<div>" * 100_000 + whole, [], {"nested too deeply": 1}))
        found.append(Case(f"{name} huge", page("x " * 3_000_000).encode(), [], {"a page of more than 4 MiB": 1}))
    packed = gzip.compress(whole + os.urandom(5000).hex().encode())
    found.append(Case("a.html.gz cut off", packed[:3000], [], {"damaged gzip stream: it ends too early": 1}))
    return found


def stored(text: str | bytes, length: int = 0) -> bytes:
    """A WARC record of plain text whose Content-Length is wrong by `length`."""
    block = text.encode() if isinstance(text, str) else text
    head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: {len(block) + length}\r\n\r\n"
    return head.encode() + block + b"\r\n\r\n"


def archive_cases() -> list[Case]:
    records, early = [stored(text) for text in GOOD], "damaged gzip stream: it ends too early"
    found = []
    for end, pack in PACK.items():
        found.append(Case(f"a.warc{end} whole", pack(b"".join(records)), GOOD, {}))
        found.append(Case(f"a.warc{end} by record", b"".join(map(pack, records)), GOOD, {}))
        found.append(Case(f"a.warc{end} no bytes", b"", [], {}))
        found.append(Case(f"a.warc{end} packed nothing", pack(b""), [], {}))
        for name, record, lost in (
            ("too short", stored("a text", -2), {"wrong Content-Length": 1}),
            ("too long", stored("a text", 50), {"wrong Content-Length": 1}),
            ("far too long", stored("a text", 10**12), {"wrong Content-Length": 1}),
            ("no length", stored("a text").replace(b"Content-Length", b"Content-Size"), {"broken WARC header": 1}),
            ("invalid utf-8", stored(b"a\xfftext"), {"invalid encoding": 1}),
            ("nul", stored("a\0text"), {"raw NUL byte": 1}),
            ("empty", stored(""), {"empty text": 1}),
            ("image", stored("x").replace(b"text/plain", b"image/png"), {}),
            ("request", stored("x").replace(b"conversion", b"request"), {}),
        ):
            found.append(Case(f"a.warc{end} {name}", b"".join(map(pack, [*records[:20], record, *records[20:]])), GOOD, lost))
    members = [gzip.compress(record) for record in records]
    found.append(Case("a.warc cut off", b"".join(records)[:-8], GOOD[:39], {"the file ends within a record": 1}))
    found.append(Case("a.warc.gz cut off", b"".join(members)[:-8], GOOD[:39], {early: 1}))
    found.append(Case("a.warc.gz garbage", b"".join([*members[:20], b"garbage", *members[20:]]), GOOD, {"damaged gzip stream": 1}))
    half = [*members[:20], members[20][:60], *members[21:]]
    found.append(Case("a.warc.gz half a member", b"".join(half), GOOD[:20] + GOOD[21:], {"damaged gzip stream": 1}))
    flipped = [*members[:20], overwritten(members[20], len(members[20]) - 6, 1), *members[21:]]
    found.append(Case("a.warc.gz wrong checksum", b"".join(flipped), GOOD[:20] + GOOD[21:], {"damaged gzip stream": 1}))
    frames = b"".join(zstandard.compress(record) for record in records[:20]) + zstandard.compress(records[20])[:-5]
    # Nothing shows that the record before the cut is whole.
    found.append(Case("a.warc.zst cut off", frames, GOOD[:19], {"damaged zstd stream: it ends too early": 1}))
    found.append(Case("a.warc is no WARC", page(GOOD[0]).encode(), [], {"no WARC record begins here": 1}))
    return found


CASES = [*line_cases(), *table_cases(), *row_cases(), *document_cases(), *page_cases(), *archive_cases()]


def read_all(folder: Path, work: Path, **config: Any) -> tuple[list[str], Counter[str]]:
    """The texts in the order of their rows, and the quarantined records by reason, up to what a library says in its own words."""
    digests = Digests(Work(work))
    with Engine(1) as engine:
        source = resolve("s", SourceConfig.model_validate({"files": "*", **config}), folder, {}, digests, engine)
    (unit,) = cut(source, ())
    texts: list[str] = []
    lost: Counter[str] = Counter()
    for number, facts in enumerate(read_unit(unit, Work(work))):
        shard = work / "shards" / unit.name / f"{number:05}.parquet"
        texts += pq.read_table(shard)["text"].to_pylist()
        assert facts.rows + sum(facts.quarantined.values()) == sum(count for *_, count in facts.runs)
        for reason, count in facts.quarantined.items():
            plain = reason if "stream: it ends" in reason or ":" not in reason else reason.split(":")[0]
            lost[plain] += count
    return texts, lost


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_matrix_of_formats_and_damages_keeps_and_quarantines_exactly(tmp_path: Path, case: Case) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / case.name.split(" ")[0]).write_bytes(case.content)

    texts, lost = read_all(tmp_path / "in", tmp_path / "work")

    assert len(texts) == len(case.kept)
    assert texts == case.kept
    assert dict(lost) == case.lost


def test_matrix_has_no_case_twice_and_covers_every_format() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {
        "a.jsonl",
        "a.jsonl.gz",
        "a.jsonl.zst",
        "a.jsonl.bz2",
        "a.parquet",
        "a.arrow",
        "a.feather",
        "a.csv",
        "a.tsv",
        "a.txt",
        "a.md",
        "a.html",
        "a.xhtml.gz",
        "a.warc",
        "a.warc.gz",
        "a.warc.zst",
    } <= {name.split(" ")[0] for name in names}


@settings(max_examples=150)
@given(st.data())
def test_bytes_flipped_or_cut_anywhere_never_stop_the_reading(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any damage whatever: reading ends, and every record is a document or has a reason."""
    case = data.draw(st.sampled_from([case for case in CASES if len(case.content) < 10_000]))
    content = bytearray(case.content)
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "in").mkdir()
    (folder / "in" / case.name.split(" ")[0]).write_bytes(bytes(content))

    try:
        texts, lost = read_all(folder / "in", folder / "work")
    except UserError as error:  # only before anything is read: the damage hit the names of the columns
        refusal = str(error)
    else:
        refusal = "no column 'text'"
        assert all(isinstance(text, str) for text in texts)
        assert all(lost)
    assert "no column 'text'" in refusal or "two columns" in refusal
