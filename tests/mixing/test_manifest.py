"""Canonical JSON, the content digest, and the reader."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import small_manifest

from mixing import UserError
from mixing.canonical import canonical_json, content_digest
from mixing.manifest import Manifest


@pytest.mark.parametrize(
    ("bits", "text"),
    [  # RFC 8785, appendix B
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_canonical_json_number_is_written_as_the_rfc_says(bits: str, text: str) -> None:
    assert canonical_json(struct.unpack(">d", bytes.fromhex(bits))[0]) == text


def test_canonical_json_of_the_rfc_example_is_its_bytes() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\nA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_json(value) == expected


def test_canonical_json_keys_are_sorted_by_utf16_code_units() -> None:
    # RFC 8785, section 3.2.3: the emoji comes before U+FB33 although its code point is higher.
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    written = json.loads(canonical_json(dict.fromkeys(keys, 0)), object_pairs_hook=list)
    assert [key for key, _ in written] == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_canonical_json_random_value_agrees_with_the_reference_library(value: object) -> None:
    rfc8785 = pytest.importorskip("rfc8785")
    try:
        expected = rfc8785.dumps(value).decode()
    except rfc8785.IntegerDomainError:  # the library stops one short of 2**53
        return
    assert canonical_json(value) == expected
    # Readers of canonical JSON hold numbers in doubles; Python's would take the digits of a large one as an exact integer.
    assert json.loads(canonical_json(value), parse_int=lambda digits: float(digits) if len(digits) > 15 else int(digits)) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (2**53 + 1, "9007199254740993"),
        ({1: 2}, "not int"),
        (b"x", "bytes"),
        (np.int64(1), "int64"),
        (Path("x"), "Path"),
        ({"a", "b"}, "set"),
        ("\ud800", "surrogates"),
    ],
)
def test_canonical_json_of_what_json_cannot_hold_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        canonical_json({"key": [value]} if not isinstance(value, dict) else value)


def u64(*values: int) -> bytes:
    return np.array(values, "<u8").tobytes()


def test_content_digest_of_each_kind_of_column_is_the_sha256_of_bytes_written_by_hand() -> None:
    table = pa.table(
        {
            "n": pa.array([1, None, -2], pa.int32()),
            "f": pa.array([-0.0, 1.5, None], pa.float32()),
            "b": pa.array([True, None, False]),
            "s": pa.array(["é", "", None]),
            "l": pa.array([[1, 2], None, []], pa.list_(pa.uint16())),
            "r": pa.array([{"x": 1, "y": "a"}, None, {"x": None, "y": "b"}], pa.struct([("x", pa.int8()), ("y", pa.string())])),
            "e": pa.nulls(3),
        }
    )
    written = [
        b"n\0int32\0" + u64(3) + b"\1\0\1" + np.array([1, -2], "<i4").tobytes(),
        b"f\0float\0" + u64(3) + b"\1\1\0" + np.array([0.0, 1.5], "<f4").tobytes(),
        b"b\0bool\0" + u64(3) + b"\1\0\1" + b"\1\0",
        b"s\0string\0" + u64(3) + b"\1\1\0" + u64(2, 0) + "é".encode(),
        b"l\0list<uint16>\0" + u64(3) + b"\1\0\1" + u64(2, 0) + b"item\0uint16\0" + u64(2) + b"\1\1" + np.array([1, 2], "<u2").tobytes(),
        b"r\0struct<x:int8,y:string>\0"
        + u64(3)
        + b"\1\0\1"
        + b"x\0int8\0"
        + u64(2)
        + b"\1\0"
        + b"\1"
        + b"y\0string\0"
        + u64(2)
        + b"\1\1"
        + u64(1, 1)
        + b"ab",
        b"e\0null\0" + u64(3) + b"\0\0\0",
    ]
    assert content_digest(table) == hashlib.sha256(b"".join(written)).hexdigest()


def test_content_digest_of_one_value_in_other_encodings_is_the_same() -> None:
    values = ["a", None, "longer than the twelve bytes a view holds inline", "a", ""]
    plain = pa.array(values)
    types = [pa.large_string(), pa.string_view()]
    encodings = [
        plain,
        plain.dictionary_encode(),
        *(pa.array(values, kind) for kind in types),
        pa.concat_arrays([pa.array(["x"]), plain])[1:],
    ]
    lists = [
        pa.array([["a"], None, ["b", "a"]], kind)
        for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.dictionary(pa.int8(), pa.string())))
    ]
    assert len({content_digest(pa.table({"c": array})) for array in encodings}) == 1
    assert len({content_digest(pa.table({"c": array})) for array in lists}) == 1


def test_content_digest_of_other_chunks_is_the_same_and_of_other_values_is_not() -> None:
    table = pa.table({"n": pa.array([1.0, None, -0.0, 4.0]), "l": pa.array([[1], [], None, [2, 3]]), "s": ["a", "b", None, "d"]})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1, 2), table.slice(3)])
    assert chunked["n"].num_chunks > 1
    assert content_digest(chunked) == content_digest(table)
    others = [
        table.slice(1),
        table.rename_columns(["m", "l", "s"]),
        table.select(["l", "n", "s"]),
        table.set_column(2, "s", pa.array(["a", "b", None, "e"])),
    ]
    others += [table.set_column(0, "n", pa.array([1.0, 0.0, None, 4.0])), table.set_column(0, "n", table["n"].cast(pa.float32()))]
    assert len({content_digest(other) for other in [table, *others]}) == 7


def test_content_digest_does_not_see_what_lies_under_a_null() -> None:
    validity = pa.py_buffer(b"\x05")
    one, other = (pa.Array.from_buffers(pa.int32(), 3, [validity, pa.py_buffer(np.array([1, under, 3], np.int32))]) for under in (0, 99))
    assert content_digest(pa.table({"n": one})) == content_digest(pa.table({"n": other}))


def test_content_digest_of_a_type_without_defined_bytes_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="decimal128"):
        content_digest(pa.table({"d": pa.array([1], pa.decimal128(5))}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_manifest(tmp_path_factory.mktemp("read") / "small", token_file_ids=2000)


def by_hand(folder: Path) -> list[tuple[int, list[tuple[int, int, int, int, int]], list[list[int]]]]:
    """Every sequence of every stage read with pyarrow alone: component, spans, ids of each span."""
    header = json.loads((folder / "manifest.json").read_text())
    tokens = [pa.ipc.open_file(str(path)).read_all()["ids"].to_pylist() for path in sorted((folder / "tokens").iterdir())]
    sequences = []
    for stage in header["stages"]:
        rows = pa.ipc.open_file(str(folder / f"plan/{stage['name']}.arrow")).read_all().to_pylist()
        spans = [
            tuple(span.values()) for span in pa.ipc.open_file(str(folder / f"plan/{stage['name']}.spans.arrow")).read_all().to_pylist()
        ]
        for row, following in zip(rows, [*rows[1:], {"first_span": len(spans)}], strict=True):
            own = spans[row["first_span"] : following["first_span"]]
            sequences.append((row["component"], own, [tokens[f][r][s : s + n] for f, r, s, n, _ in own]))
    return sequences


def test_manifest_reads_every_range_as_it_was_written(folder: Path) -> None:
    manifest, expected = Manifest.open(folder / "manifest.json"), by_hand(folder)
    assert manifest.token_files > 2
    assert manifest.sequences == len(expected)
    border = manifest.stages[1]["first_sequence"]
    for first, last in [
        (0, manifest.sequences),
        (border - 2, border + 2),
        (border, border + 1),
        (5, 5),
        (manifest.sequences - 1, manifest.sequences),
    ]:
        spans = manifest.spans(first, last)
        assert manifest.components(first, last).tolist() == [component for component, _, _ in expected[first:last]]
        assert spans.sequence.tolist() == np.cumsum([0, *(len(own) for _, own, _ in expected[first:last])]).tolist()
        rows = list(zip(*(column.tolist() for column in spans[1:]), strict=True))
        assert rows == [span for _, own, _ in expected[first:last] for span in own]
        assert [manifest.ids(*row[:4]).tolist() for row in rows] == [ids for _, _, own in expected[first:last] for ids in own]
        assert manifest.tokens(first, last).tolist() == [sum(map(len, own)) for _, _, own in expected[first:last]]
        assert manifest.predictions(first, last) == sum(len(ids) - 1 for _, _, own in expected[first:last] for ids in own)
    assert [manifest.stage_of(sequence) for sequence in (0, border - 1, border, manifest.sequences - 1)] == [0, 0, 1, 1]


def test_manifest_reads_hold_out_and_pool(folder: Path) -> None:
    manifest = Manifest.open(folder)
    held = manifest.holdout()
    assert {source: len(documents.pool_row) for source, documents in held.items()} == {
        name: counts["documents"] for name, counts in manifest.header["holdout"].items()
    }
    for source, documents in held.items():
        written = pa.ipc.open_file(str(folder / f"holdout/{source}.arrow")).read_all()
        assert documents.pool_row.tolist() == written["pool_row"].to_pylist()
        assert [
            documents.ids[low:high].tolist() for low, high in zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
        ] == written["ids"].to_pylist()
    assert [path.name for path in manifest.pool_files()] == ["00000.parquet"]


def test_manifest_ids_are_read_only_views_of_one_map(folder: Path) -> None:
    manifest = Manifest.open(folder)
    ids = manifest.ids(0, 0, 0, 2)
    assert ids.base is not None
    assert np.shares_memory(ids, manifest.token_file(0).ids)
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_manifest_travels_to_another_process(folder: Path) -> None:
    manifest = Manifest.open(folder)
    again = pickle.loads(pickle.dumps(manifest))
    assert again.digest == manifest.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert again.tokens(0, 4).tolist() == manifest.tokens(0, 4).tolist()


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (3, 2), (0, 10**6)])
def test_manifest_range_outside_the_plan_is_an_index_error(folder: Path, first: int, last: int) -> None:
    manifest = Manifest.open(folder)
    with pytest.raises(IndexError, match=f"sequences {first} to {last} of"):
        manifest.spans(first, last)
    with pytest.raises(IndexError, match="row 0 of tokens file 0"):
        manifest.ids(0, 0, 0, 10**6)


def edit_header(folder: Path, **changes: object) -> None:
    header = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(canonical_json({**header, **changes}))
    sizes = json.loads((folder / "files.json").read_text())
    for entry in sizes:
        entry["bytes"] = (folder / entry["path"]).stat().st_size if ".." not in entry["path"] else 0
    (folder / "files.json").write_text(canonical_json(sizes))


def test_manifest_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    folder = small_manifest(tmp_path / "small", tokens=2000)
    whole = (folder / "manifest.json").read_text()
    header = json.loads(whole)

    def refuses(message: str) -> None:
        with pytest.raises(UserError, match=message):
            Manifest.open(folder)

    with pytest.raises(UserError, match=r"nowhere/manifest.json: no such file; a manifest is a folder"):
        Manifest.open(tmp_path / "nowhere")
    edit_header(folder, schema_version=2)
    refuses(r"manifest.json: schema version 2; this Tilth reads up to 1; install a newer one")
    edit_header(folder, schema_version="one")
    refuses("not the header of a manifest")
    for path in ("../outside.arrow", "/etc/passwd", "tokens/../../x", "C:x", "a\\..\\x"):
        edit_header(folder, schema_version=1, files=[*header["files"], {"path": path, "rows": 0, "digest": ""}])
        refuses("leaves the manifest; paths of a manifest stay below its folder")
    (folder / "manifest.json").write_text("{")
    refuses("manifest.json: cannot be read as JSON")
    (folder / "manifest.json").write_text(canonical_json({key: value for key, value in header.items() if key not in ("seed", "stages")}))
    refuses("the header has no seed, stages; rebuild")
    (folder / "manifest.json").write_text(whole)
    tokens = folder / "tokens/00000.arrow"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-1])
    refuses(f"tokens/00000.arrow: {len(content) - 1} bytes, files.json says {len(content)}")
    tokens.unlink()
    refuses("the file tokens/00000.arrow is missing")
    tokens.write_bytes(content)
    (folder / "files.json").unlink()
    refuses("files.json: no such file")


def test_manifest_file_of_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    folder = small_manifest(tmp_path / "small", tokens=2000)
    path = folder / "plan/adapt.arrow"
    table = pa.ipc.open_file(str(path)).read_all()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=3):
            writer.write_batch(batch)
    edit_header(folder)
    with pytest.raises(
        UserError, match=r"plan/adapt.arrow: [0-9]+ record batches of component: uint16, first_span: uint64; a manifest has one of"
    ):
        Manifest.open(folder).spans(0, 1)
