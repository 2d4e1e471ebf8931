"""Reading against plain Python: `bytes.split`, `json`, `gzip` and the Unicode database say what a file holds."""

from __future__ import annotations

import gzip
import json
import struct
import unicodedata
import zlib
from datetime import date
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.formats import streams
from curation.formats.lines import read_json_lines, sniff_columns
from curation.formats.records import EXCERPT, Chunk, Fields, Record, in_chunks, records_of
from curation.formats.tables import read_parquet, spelled_types
from curation.text.clean import CLEAN, clean_all, cleaned, has_visible

TEXT = Fields("text", None, {})
BOM = b"\xef\xbb\xbf"


def read(path: Path, content: bytes, fields: Fields = TEXT, begin: int = 0, end: int | None = None) -> list[Record]:
    path.write_bytes(content)
    return list(records_of(read_json_lines(path, fields, begin, end)))


def only(path: Path, line: bytes, fields: Fields = TEXT) -> Record:
    (record,) = read(path, line, fields)
    return record


def expected_positions(content: bytes) -> list[int]:
    """Where the lines begin that are not blank, by `bytes.split`."""
    found, position = [], 0
    for line in content.split(b"\n"):
        if line.strip(b" \t\r"):
            found.append(position)
        position += len(line) + 1
    return found


LINES = [
    b'{"text": "one"}',
    b'{"text": "two"}\r',
    b"",
    b" \t\r",
    '{"text": "a\u2028b\u2029c\x85d"}'.encode(),
    b'  {"text": "indented"}  ',
    json.dumps({"text": "huge " * 30_000}).encode(),
    b'{"text": "broken',
    b'{"text": "last"}',
]


ODD_LINES = [
    *LINES,
    b"[1]",
    b'{"text": 1}',
    b'{"text": null}',
    b"{}",
    b'{"text": "a", "id": 1.50}',
    b'{"text": "a", "id": 12345678901234567890123}',
    b'{"text": "\\ud800"}',
    b"\xff",
    b"{}{}",
    b"\0",
]


@given(st.lists(st.sampled_from(ODD_LINES), max_size=8), st.booleans(), st.integers(1, 60))
def test_records_of_a_block_read_at_once_are_those_of_its_lines_read_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], mark: bool, block: int
) -> None:
    fields = Fields("text", "id", {"id": "float64", "n": "string"})
    path = tmp_path_factory.mktemp("lines") / "a"
    path.write_bytes(BOM * mark + b"\n".join([b"{}", *lines]))  # a first line, since NULs and line ends in turn would be UTF-16

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "BLOCK", 1 << 20)
        at_once = list(records_of(read_json_lines(path, fields)))
        patch.setattr(streams, "BLOCK", block)
        in_small_blocks = list(records_of(read_json_lines(path, fields)))
    one_by_one = [
        record
        for position, line in streams.lines_of(path, 0, None)
        for record in records_of(_alone(tmp_path_factory, position, line, fields))
    ]

    assert at_once == in_small_blocks == one_by_one


def _alone(folder: pytest.TempPathFactory, position: int, line: bytes | str, fields: Fields) -> list[Chunk]:
    """What a line holds as a file of its own, moved to where it stood."""
    assert isinstance(line, bytes)
    path = folder.mktemp("alone") / "a"
    path.write_bytes(line)
    return [chunk._replace(position=chunk.position + position) for chunk in read_json_lines(path, fields)]


def test_a_chunk_cut_refused_and_thinned_keeps_every_other_record_as_it_was() -> None:
    records = [
        Record(10 * n, n, f"text {n}", f"k{n}", (n,), None, "") if n % 3 else Record(10 * n, n, None, None, (), "bad", str(n))
        for n in range(9)
    ]
    (chunk,) = in_chunks(records, 1)

    assert list(chunk.records()) == records
    assert list(chunk.cut(2, 7).records()) == records[2:7]
    assert [*chunk.cut(0, 4).records(), *chunk.cut(4, 9).records()] == records
    thinned = chunk.without(np.array([text != "text 4" for text in chunk.text]))
    assert list(thinned.records()) == records[:4] + records[5:]
    refused = chunk.refuse(np.array([text != "text 4" for text in chunk.text]), "no", ["x"])
    assert list(refused.records()) == [*records[:4], Record(40, 4, None, None, (), "no", "x"), *records[5:]]


# --- positions


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
@pytest.mark.parametrize("block", [64, 1 << 22])
def test_positions_of_a_plain_file_are_byte_offsets_of_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: bytes, block: int
) -> None:
    monkeypatch.setattr(streams, "BLOCK", block)
    content = b"\n".join(LINES) + ending

    found = read(tmp_path / "a", content)

    assert [record.position for record in found] == expected_positions(content)
    for record in found:
        if record.text is not None:
            line = content[record.position :].split(b"\n")[0]
            assert json.loads(line)["text"] == record.text
    assert [record.reason for record in found].count("broken JSON") == 1


@pytest.mark.parametrize("cuts", [[], [10], [1, 2, 3, 40], [100, 150_100]])
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_positions_of_a_compressed_file_of_any_members_are_those_of_the_decoded_stream(tmp_path: Path, kind: str, cuts: list[int]) -> None:
    content = b"\n".join(LINES)
    ends = [0, *cuts, len(content)]
    pack = gzip.compress if kind == "gzip" else zstandard.compress
    members = b"".join(pack(content[a:b]) for a, b in pairwise(ends))

    found = read(tmp_path / "without-an-ending", members)

    assert found == read(tmp_path / "plain", content)


def test_a_byte_order_mark_is_no_part_of_the_text_and_shifts_no_position(tmp_path: Path) -> None:
    content = BOM + b'{"text": "one"}\n{"text": "two"}\n'
    for packed in (content, gzip.compress(content), gzip.compress(content[:1]) + gzip.compress(content[1:])):
        found = read(tmp_path / "a", packed)
        assert [(record.position, record.text) for record in found] == [(0, "one"), (len(BOM) + 16, "two")]


def test_a_byte_order_mark_in_a_later_line_is_broken_json(tmp_path: Path) -> None:
    found = read(tmp_path / "a", b'{"text": "one"}\n' + BOM + b'{"text": "two"}\n')

    assert [record.reason for record in found] == [None, "broken JSON"]


def test_an_empty_file_or_only_blank_lines_have_no_records(tmp_path: Path) -> None:
    assert read(tmp_path / "a", b"") == []
    assert read(tmp_path / "b", b"\n\n \r\n\t") == []
    assert read(tmp_path / "c", BOM) == []
    assert read(tmp_path / "d", gzip.compress(b"")) == []


@settings(max_examples=60)
@given(
    lines=st.lists(st.sampled_from([b'{"text": "a"}', b"", b"\r", b"x", b'{"text": "\xc3\xa9\xe2\x80\xa8"}\r', b"y" * 40]), max_size=12),
    ending=st.sampled_from([b"", b"\n"]),
    mark=st.booleans(),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    block=st.integers(3, 50),
)
def test_byte_ranges_of_any_cut_together_give_exactly_the_whole(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ending: bytes, mark: bool, cuts: list[int], block: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "ranges"
    content = (BOM if mark else b"") + b"\n".join(lines) + ending
    whole = read(path, content)
    ends = sorted({0, *(cut for cut in cuts if cut < len(content)), len(content)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "BLOCK", block)
        parts = [record for a, b in pairwise(ends) for record in records_of(read_json_lines(path, TEXT, a, b))]

    assert parts == whole
    spaces = b" " * len(BOM) + content.removeprefix(BOM) if mark else content
    assert [record.position for record in whole] == expected_positions(spaces)


# --- damage


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_truncated_stream_keeps_what_was_decoded_and_ends_with_one_record_about_it(tmp_path: Path, kind: str) -> None:
    lines = [json.dumps({"text": f"{number} " + "x" * (number % 50)}).encode() for number in range(3000)]
    content = b"\n".join(lines)
    if kind == "gzip":
        packed = gzip.compress(content)
    else:
        frames = [content[a : a + 9000] for a in range(0, len(content), 9000)]
        packed = b"".join(map(zstandard.compress, frames))
    for keep in (len(packed) // 2, len(packed) - 1):
        found = read(tmp_path / "a", packed[:keep])

        assert found[-1].reason == f"damaged {kind} stream: it ends too early"
        good = [record.text for record in found if record.reason is None]
        assert good == [json.loads(line)["text"] for line in lines[: len(good)]]
        assert len(found) - len(good) <= 2  # the record about the stream, and the line that breaks off there
        assert len(good) > 0.4 * keep / len(packed) * len(lines)
        assert found[-1].position <= len(content)


def test_a_wrong_checksum_at_the_end_of_a_gzip_file_keeps_what_was_decoded(tmp_path: Path) -> None:
    content = b"\n".join(json.dumps({"text": f"{number} {zlib.crc32(bytes([number % 251]))}"}).encode() for number in range(20_000))
    packed = bytearray(gzip.compress(content))
    packed[-6] ^= 1

    found = read(tmp_path / "a", bytes(packed))

    assert found[-1].reason is not None
    assert found[-1].reason.startswith("damaged gzip stream")
    assert sum(record.reason is None for record in found) > 0.9 * 20_000


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_damage_in_the_middle_of_a_stream_keeps_what_stands_before_it(tmp_path: Path, kind: str) -> None:
    lines = [json.dumps({"text": f"{number} {zlib.crc32(str(number).encode())}"}).encode() for number in range(60_000)]
    packed = bytearray((gzip.compress if kind == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress)(b"\n".join(lines)))
    for place in range(len(packed) // 2, len(packed) // 2 + 64):
        packed[place] ^= 0x5A

    found = read(tmp_path / "a", bytes(packed))

    assert found[-1].reason is not None
    assert found[-1].reason.startswith(f"damaged {kind} stream")
    good = [record.text for record in found if record.reason is None]
    assert len(good) > 0.3 * len(lines)
    right = sum(text == json.loads(line)["text"] for text, line in zip(good, lines, strict=False))
    assert right > 0.3 * len(lines)


def test_zstd_with_skippable_frames_is_read_through_them(tmp_path: Path) -> None:
    """pzstd writes one before each frame."""
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"abcd"
    packed = b"".join(skippable + zstandard.compress(line + b"\n") for line in (b'{"text": "one"}', b'{"text": "two"}'))

    assert [record.text for record in read(tmp_path / "a", packed)] == ["one", "two"]
    assert streams.is_stream(tmp_path / "a")


def test_zstd_with_a_long_window_is_read(tmp_path: Path) -> None:
    """`zstd --long=31`, as the public dumps of forums are packed."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(b'{"text": "one"}\n') + compressor.flush()

    assert [record.text for record in read(tmp_path / "a", packed)] == ["one"]


# --- every reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "broken JSON"),
        (b'{"text": "a",}', "broken JSON"),
        (b"{'text': 'a'}", "broken JSON"),
        (b'{"text": NaN}', "no 'text'"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8"),
        (b'{"text": "a\0"}', "raw NUL byte"),
        (b"\0\0\0", "raw NUL byte"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "no 'text'"),
        (b'{"text": null}', "no 'text'"),
        (b'{"text": 3}', "'text' is not a string"),
        (b'{"text": ["a"]}', "'text' is not a string"),
        (b'{"text": false}', "'text' is not a string"),
    ],
)
def test_a_line_that_cannot_be_used_says_why_and_shows_what_was_found(tmp_path: Path, line: bytes, reason: str) -> None:
    before = b'{"text": "good"}\n'

    good, bad, after = read(tmp_path / "a", before + line + b"\n" + before)

    assert (good.reason, after.reason) == (None, None)
    assert (bad.reason, bad.text, bad.key, bad.position) == (reason, None, None, len(before))
    assert bad.excerpt
    assert bad.excerpt.isprintable()
    assert len(bad.excerpt) <= 12 * EXCERPT


def test_escaped_nul_and_control_characters_are_text(tmp_path: Path) -> None:
    assert only(tmp_path / "a", b'{"text": "a\\u0000b\\u001bc"}').text == "a\0b\x1bc"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'"k"', "k"),
        (b"7", "7"),
        (b"-7", "-7"),
        (b"18446744073709551615", "18446744073709551615"),
        (b"340282366920938463463374607431768211455", "340282366920938463463374607431768211455"),
        (b"null", None),
        (b"true", "true"),
        (b'["a", 1]', '["a",1]'),
        (b'"\\u00e9"', "é"),
        (b'"\\ud800x"', "\\ud800x"),
        (b"[" * 400 + b"]" * 400, "[" * 400 + "]" * 400),
    ],
)
def test_a_key_that_is_no_string_becomes_text_without_loss(tmp_path: Path, value: bytes, key: str | None) -> None:
    record = only(tmp_path / "a", b'{"text": "a", "id": ' + value + b"}", Fields("text", "id", {}))

    assert (record.reason, record.key) == (None, key)


def test_a_missing_key_is_null_and_quarantines_nothing(tmp_path: Path) -> None:
    assert only(tmp_path / "a", b'{"text": "a"}', Fields("text", "id", {}))[3:6] == (None, (), None)


def test_carried_columns_that_do_not_fit_their_type_are_null(tmp_path: Path) -> None:
    fields = Fields("text", None, {"year": "int64", "share": "float64", "good": "bool", "tag": "string"})
    rows: list[dict[str, Any]] = [
        {"year": 3, "share": 0.5, "good": True, "tag": "x"},
        {"year": 3.5, "share": 2, "good": 1, "tag": 5},
        {"year": True, "share": True, "good": None, "tag": {"a": [1]}},
        {"year": 2**63, "share": "a", "good": "true", "tag": None},
        {},
    ]

    found = read(tmp_path / "a", b"\n".join(json.dumps({"text": "t"} | row).encode() for row in rows), fields)

    assert [record.columns for record in found] == [
        (3, 0.5, True, "x"),
        (None, 2.0, None, "5"),
        (None, None, None, '{"a":[1]}'),
        (None, None, None, None),
        (None, None, None, None),
    ]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], "int64"),
        ([1, 2.5], "float64"),
        ([True, None], "bool"),
        ([True, 1], "string"),
        (["a", 1], "string"),
        ([[1]], "string"),
    ],
)
def test_a_sniffed_column_has_the_narrowest_type_that_holds_its_values(tmp_path: Path, values: list[object], kind: str) -> None:
    (tmp_path / "a").write_bytes(b"broken\n[1]\n\n" + b"\n".join(json.dumps({"c": value}).encode() for value in values))

    assert sniff_columns(tmp_path / "a", ["c", "nowhere"]) == {"c": kind}


# --- Parquet


def parquet(path: Path, table: pa.Table, group: int = 100, **options: Any) -> Path:
    pq.write_table(table, path, row_group_size=group, **options)
    return path


def test_parquet_positions_are_row_indices_over_all_row_groups(tmp_path: Path) -> None:
    texts = [None if number % 7 == 0 else f"text {number}" for number in range(250)]
    path = parquet(tmp_path / "a", pa.table({"text": texts, "id": list(range(250))}), group=33)
    fields = Fields("text", "id", {})

    found = list(records_of(read_parquet(path, fields)))

    assert [record.position for record in found] == list(range(250))
    assert [record.text for record in found] == texts
    assert {record.reason for record in found if record.text is None} == {"no 'text'"}
    assert all(record.key == str(record.position) for record in found if record.text is not None)
    groups = pq.ParquetFile(path).num_row_groups
    assert [record for group in range(groups) for record in records_of(read_parquet(path, fields, group, group + 1))] == found


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.binary()),
    ],
)
def test_parquet_text_of_any_encoding_reads_the_same(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["é", None, "b", "b", ""]
    values = [text.encode() if text is not None and "binary" in str(kind) else text for text in texts]
    array = pa.array(values, kind.value_type).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array(values, kind)
    path = parquet(tmp_path / "a", pa.table({"text": array, "id": array}), group=2)

    assert [record.text for record in records_of(read_parquet(path, TEXT))] == texts
    assert [record.key for record in records_of(read_parquet(path, Fields("text", "id", {}))) if record.text is not None] == [
        "é",
        "b",
        "b",
        "",
    ]


def test_parquet_bytes_that_are_no_utf8_are_quarantined_or_shown_never_fatal(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff\xfe", b"good"], pa.binary())
    declared = pa.Array.from_buffers(pa.string(), 3, bad.buffers())  # says it is UTF-8, and is not
    for name, column in (("binary", bad), ("string", declared)):
        path = parquet(tmp_path / name, pa.table({"text": column, "id": ["1", "2", "3"]}))
        found = list(records_of(read_parquet(path, Fields("text", "id", {}))))
        assert [(record.reason, record.key) for record in found] == [(None, "1"), ("invalid UTF-8", None), (None, "3")]

        path = parquet(tmp_path / f"{name} key", pa.table({"text": ["a", "b", "c"], "id": column}))
        found = list(records_of(read_parquet(path, Fields("text", "id", {"id": "string"}))))
        assert [record.text for record in found] == ["a", "b", "c"]
        assert [found[0].key, found[2].key, found[0].columns, found[2].columns] == ["good", "good", ("good",), ("good",)]
        assert found[1].key is not None
        found[1].key.encode()


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1, 2], ["1", "2"]),
        ([b"x", None], ["x", None]),
        ([Decimal("1.50"), Decimal("2.00")], ["1.50", "2.00"]),
        ([date(2020, 1, 2)], ["2020-01-02"]),
        ([[1, 2]], ["[1,2]"]),
        ([[b"x"]], ['["x"]']),
        ([{"a": Decimal("1.5")}], ['{"a":"1.5"}']),
        ([0.5], ["0.5"]),
    ],
)
def test_parquet_keys_and_columns_of_any_type_become_text(tmp_path: Path, values: list[object], shown: list[str | None]) -> None:
    path = parquet(tmp_path / "a", pa.table({"text": ["t"] * len(values), "id": values}))

    found = list(records_of(read_parquet(path, Fields("text", "id", {"id": "string"}))))

    assert [record.key for record in found] == shown
    assert [record.columns[0] for record in found] == shown


def test_parquet_text_that_is_no_string_is_quarantined_with_what_was_found(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a", pa.table({"text": [1, None]}))

    assert [(record.reason, record.excerpt) for record in records_of(read_parquet(path, TEXT))] == [
        ("'text' is not a string", "1"),
        ("no 'text'", ""),
    ]


def test_parquet_float_columns_hold_null_for_nan(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a", pa.table({"text": ["a", "b"], "x": [float("nan"), 1.5]}))

    assert [record.columns for record in records_of(read_parquet(path, Fields("text", None, {"x": "float64"})))] == [(None,), (1.5,)]


def test_a_damaged_row_group_is_quarantined_row_by_row_and_the_others_are_read(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a", pa.table({"text": [f"text {number} {'x' * 50}" for number in range(90)]}), group=30, compression="zstd")
    group = pq.read_metadata(path).row_group(1).column(0)
    start = group.dictionary_page_offset if group.has_dictionary_page else group.data_page_offset
    content = bytearray(path.read_bytes())
    for place in range(start, start + group.total_compressed_size):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))

    found = list(records_of(read_parquet(path, TEXT)))

    assert [record.position for record in found] == list(range(90))
    assert [record.text for record in found[:30]] == [f"text {number} {'x' * 50}" for number in range(30)]
    assert all(record.reason == "damaged row group" and record.excerpt for record in found[30:60])
    assert all(record.reason is None for record in found[60:])


def test_parquet_column_types_are_spelled_in_four_words() -> None:
    schema = pa.schema(
        [
            ("a", pa.int8()),
            ("b", pa.uint64()),
            ("c", pa.float32()),
            ("d", pa.bool_()),
            ("e", pa.dictionary(pa.int8(), pa.int64())),
            ("f", pa.timestamp("us")),
            ("g", pa.list_(pa.int64())),
            ("h", pa.large_string()),
        ]
    )

    assert [kind for _, kind in spelled_types(schema)] == ["int64", "int64", "float64", "bool", "int64", "string", "string", "string"]


# --- clean


def test_clean_control_characters_removes_exactly_those_of_category_cc_but_three() -> None:
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x3000 + 0xE000), 0x10FFFF)))

    kept = CLEAN["control_characters"](everything)

    assert kept == "".join(c for c in everything if unicodedata.category(c) != "Cc" or c in "\t\n\r")


@settings(deadline=None)  # the first example compiles a kernel
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_clean_steps_once_or_twice_give_the_same(text: str) -> None:
    for name, step in CLEAN.items():
        once = step(text)
        assert step(once) == once, name
        once.encode()


def test_clean_nfc_and_line_endings_do_what_they_say() -> None:
    assert CLEAN["nfc"]("e\u0301 \u2126") == "é Ω"
    assert CLEAN["line_endings"]("a\r\nb\rc\n\r\nd") == "a\nb\nc\n\nd"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+list@mail.example.co.uk, please", "write to [EMAIL], please"),
        ("<a@b.org>;c_d@e-f.com.", "<[EMAIL]>;[EMAIL]."),
        ("邮箱a@b.cn。", "邮箱[EMAIL]。"),
        ("邮箱：a@b.cn", "邮箱：[EMAIL]"),
        ("from 130.60.24.7 to 93.184.216.34:80", "from [IP] to [IP]:80"),
        ("call +49 30 1234567, +1 (212) 555-0123 or (212) 555-0123; 212-555-0123", "call [PHONE], [PHONE] or [PHONE]; [PHONE]"),
        ("+442071838750", "[PHONE]"),
    ],
)
def test_clean_mask_pii_replaces_what_has_the_form(text: str, masked: str) -> None:
    assert CLEAN["mask_pii"](text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "@property\ndef f(self): return a@b",
        "user@localhost, x@, @y.com",
        "127.0.0.1 10.0.0.1 192.168.1.20 0.0.0.0 256.1.1.1 1.2.3 1.2.3.4.5 v8.8.8.8",
        "3.14159265358979, 2024-05-06, 12:30, ISBN 978-3-16-148410-0, 1,234,567.89",
        "x = a + 12 - 3456 + 7890; 10.1016/j.cell.2020.01.001; +5; 2^+1",
    ],
)
def test_clean_mask_pii_leaves_code_numbers_and_private_addresses(text: str) -> None:
    assert CLEAN["mask_pii"](text) == text


@given(st.lists(st.text(st.sampled_from("aé\u0301中@.+- (0123456789\r\n\t\x00\x85\x7f"), max_size=30), max_size=6))
def test_clean_all_of_many_texts_is_cleaned_of_each(texts: list[str]) -> None:
    for steps in (tuple(CLEAN), tuple(reversed(CLEAN))):
        after, utf8, changed = clean_all(texts, steps)

        alone = [cleaned(text, steps) for text in texts]
        assert after == [text for text, _ in alone]
        assert utf8 == [text.encode() for text in after]
        assert {name: mask.tolist() for name, mask in changed.items()} == {name: [name in names for _, names in alone] for name in steps}


# Unicode 15.1, DerivedCoreProperties.txt: Default_Ignorable_Code_Point.
IGNORABLE = [
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010), *range(0x202A, 0x202F)),
    *(*range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0, *range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4)),
    *(*range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
]


def test_has_visible_is_false_for_white_space_controls_and_ignorable_characters_and_true_for_the_rest() -> None:
    blank = {chr(code) for code in IGNORABLE} | {"\ufff9", "\ufffa", "\ufffb"}
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        character = chr(code)
        nothing = character in blank or character.isspace() or unicodedata.category(character) in ("Cc", "Zs", "Zl", "Zp")
        assert has_visible(character) is not nothing, hex(code)
    assert not has_visible("")
    assert not has_visible("".join(sorted(blank)))
    assert has_visible(" \u200b.\n")
