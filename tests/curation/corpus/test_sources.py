"""Finding files, cutting them into units, and what a unit's shards hold, against the files themselves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from recipes import built, json_lines, recipe, text_of, write_corpus, write_file, write_records

from curation.corpus import sources
from curation.corpus.input_files import locate, natural
from curation.corpus.sources import Source, SourceConfig, cut, read_unit, resolve
from curation.engine.local import Engine
from curation.engine.work_directory import Digests, Work, key_of
from curation.terminal import inspect
from mixing import UserError, validated
from mixing.manifest import Manifest


def resolved(folder: Path, name: str = "prose", roots: dict[str, str] | None = None, **config: Any) -> Source:
    with Engine(1) as engine:
        checked = validated(SourceConfig, {"files": "*.jsonl", **config}, f"sources.{name}")
        return resolve(name, checked, folder, roots or {}, Digests(Work(folder / "work")), engine)


def write_numbered(folder: Path, names: list[str], lines: int = 3) -> None:
    for name in names:
        write_file(folder / name, json_lines({"text": f"{name} {number}"} for number in range(lines)))


# --- finding


@given(st.lists(st.text("ab019/-", min_size=1, max_size=8), max_size=8))
def test_natural_order_is_total_and_numbers_count_as_numbers(paths: list[str]) -> None:
    assert sorted(sorted(set(paths)), key=natural) == sorted(sorted(set(paths), reverse=True), key=natural)
    assert sorted(["part-10", "part-2", "part-02", "part-1/x", "part-1", "10", "9"], key=natural) == [
        "9",
        "10",
        "part-1",
        "part-1/x",
        "part-02",
        "part-2",
        "part-10",
    ]


def test_files_are_found_below_the_fixed_part_in_natural_order(tmp_path: Path) -> None:
    write_numbered(tmp_path, ["in/part-10.jsonl", "in/part-2.jsonl", "in/sub/part-1.jsonl", "in/.hidden.jsonl", "other/x.jsonl"])

    source = resolved(tmp_path, files="in/**/*.jsonl")

    assert [one.path for one in source.inputs] == ["part-2.jsonl", "part-10.jsonl", "sub/part-1.jsonl"]
    assert (source.root, source.root_name, source.pattern) == (tmp_path / "in", "prose", ["**/*.jsonl"])
    assert [one.bytes for one in source.inputs] == [(tmp_path / "in" / one.path).stat().st_size for one in source.inputs]
    assert [one.path for one in resolved(tmp_path, files="in").inputs] == [one.path for one in source.inputs]
    assert [one.path for one in resolved(tmp_path, files=["in/part-2.jsonl", "other/*.jsonl"]).inputs] == [
        "in/part-2.jsonl",
        "other/x.jsonl",
    ]
    assert [one.path for one in resolved(tmp_path, files="root:*/x.jsonl", roots={"root": str(tmp_path)}).inputs] == ["other/x.jsonl"]
    assert resolved(tmp_path, files="root:*/x.jsonl", roots={"root": str(tmp_path)}).root_name == "root"


def test_files_named_twice_by_overlapping_patterns_are_read_once(tmp_path: Path) -> None:
    write_numbered(tmp_path, ["a.jsonl", "b.jsonl"])

    assert [one.path for one in resolved(tmp_path, files=["a.jsonl", "*.jsonl", "./b.jsonl"]).inputs] == ["a.jsonl", "b.jsonl"]


def test_wildcards_in_the_name_of_the_recipes_folder_are_part_of_its_name(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain", tmp_path / "data [v2] *"
    for folder in (plain, odd):
        write_numbered(folder, ["in/a.jsonl", "b.jsonl"])

    for files in ("in/*.jsonl", "b.jsonl", ["in/a.jsonl", "*.jsonl"], "in", "../plain/b.jsonl"):
        one, other = resolved(plain, files=files), resolved(odd, files=files)
        assert ([i.path for i in one.inputs], one.pattern) == ([i.path for i in other.inputs], other.pattern)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ("none/*.jsonl", "no file matches 'none/*.jsonl'"),
        ("a.pdf", "cannot read 'a.pdf'"),
        ("https://example.org/*.jsonl", "a URL that begins https://"),
        ("s3://me:secret@bucket/*.jsonl", "a s3:// URL with credentials or options in it"),
        ("s3://bucket/*.jsonl?secret=1", "a s3:// URL with credentials or options in it"),
        (["s3://bucket/*.jsonl", "a.jsonl"], "several places"),
        (["s3://bucket/*.jsonl", "s3://other/a.jsonl"], "several buckets"),
        ("corpora:*.jsonl", "no root named 'corpora' (given: root); name it with --root corpora=PATH"),
        ("root:../x/*.jsonl", "leaves its root"),
        ("root:/etc/*.jsonl", "leaves its root"),
        ("*/../../*.jsonl", "leaves its root"),
    ],
)
def test_files_that_cannot_be_found_or_read_are_refused_with_their_place(tmp_path: Path, files: str, what: str) -> None:
    write_file(tmp_path / "a.pdf", b"x")

    with pytest.raises(UserError) as caught:
        resolved(tmp_path, files=files, roots={"root": str(tmp_path)})

    assert str(caught.value).startswith("sources.prose.files: ")
    assert what in str(caught.value)


def test_a_missing_parquet_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    write_records(tmp_path / "a.parquet", [{"body": "x", "id": 1}])

    for config in ({}, {"text": "body", "key": "pmid"}, {"text": "body", "columns": ["year"]}):
        with pytest.raises(UserError, match=r"no column '(text|pmid|year)' in a.parquet; it has: body, id"):
            resolved(tmp_path, files="*.parquet", **config)


def test_carried_columns_of_files_that_disagree_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "a.parquet", [{"text": "x", "year": 1}])
    write_records(tmp_path / "b.parquet", [{"text": "x", "year": "1"}])

    with pytest.raises(UserError, match="carry only columns whose types agree"):
        resolved(tmp_path, files="*.parquet", columns=["year"])


def test_locate_gives_the_same_answer_whatever_the_order_in_the_folder(tmp_path: Path) -> None:
    names = [f"f{number}.jsonl" for number in (3, 1, 11, 2)]
    write_numbered(tmp_path / "one", names)
    write_numbered(tmp_path / "two", names[::-1])

    assert locate("", "*.jsonl", "x", tmp_path / "one", {})[3] == locate("", "*.jsonl", "x", tmp_path / "two", {})[3]


# --- cutting


def spans(source: Source, cut_bytes: int) -> list[tuple[str, int, int | None]]:
    return [(piece.path, piece.begin, piece.end) for unit in cut(source, (), cut_bytes) for piece in unit.pieces]


@pytest.fixture
def small_is_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 2,000 bytes and more are cut; smaller ones share buckets."""
    monkeypatch.setattr(sources, "SMALL", 2000)


@pytest.mark.usefixtures("small_is_tiny")
def test_plain_files_are_cut_by_bytes_compressed_ones_not_parquet_by_row_groups(tmp_path: Path) -> None:
    records = [{"text": text_of(number)} for number in range(30)]
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        write_records(tmp_path / name, records, group=7)
    size = (tmp_path / "a.jsonl").stat().st_size

    found = spans(resolved(tmp_path, files="*"), 3000)

    assert [span for span in found if span[0] == "a.jsonl"] == [("a.jsonl", b, min(b + 3000, size)) for b in range(0, size, 3000)]
    assert [span for span in found if span[0] == "b.jsonl.gz"] == [("b.jsonl.gz", 0, None)]
    groups = [span[1:] for span in found if span[0] == "c.parquet"]
    assert [group[0] for group in groups] == [0, *(group[1] for group in groups[:-1])]
    assert groups[-1][1] == 5
    sizes = [pq.read_metadata(tmp_path / "c.parquet").row_group(group).total_byte_size for group in range(5)]
    assert all(sum(sizes[a:b]) <= 3000 or b - a == 1 for a, b in groups if b is not None)


def test_small_files_share_buckets_by_the_hash_of_their_path(tmp_path: Path) -> None:
    write_numbered(tmp_path, [f"{number}.jsonl" for number in range(600)], lines=1)

    units = cut(resolved(tmp_path), ())

    assert len(units) == len({xxhash.xxh3_64_intdigest(f"{number}.jsonl".encode()) % sources.BUCKETS for number in range(600)})
    for unit in units:
        assert len({xxhash.xxh3_64_intdigest(piece.path.encode()) % sources.BUCKETS for piece in unit.pieces}) == 1
        assert [piece.path for piece in unit.pieces] == sorted((piece.path for piece in unit.pieces), key=natural)


def test_one_more_small_file_leaves_the_names_of_all_units_but_its_own(tmp_path: Path) -> None:
    write_numbered(tmp_path, [f"{number}.jsonl" for number in range(300)], lines=1)
    before = {unit.name for unit in cut(resolved(tmp_path), ())}
    write_numbered(tmp_path, ["new.jsonl"], lines=1)

    after = {unit.name for unit in cut(resolved(tmp_path), ())}

    assert len(after - before) == 1
    assert len(before - after) <= 1


@pytest.mark.usefixtures("small_is_tiny")
def test_names_of_units_change_with_what_decides_their_content_and_with_nothing_else(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_records(tmp_path / folder / "a.jsonl", [{"text": text_of(number), "id": 1, "year": 2} for number in range(30)])
    plain = {unit.name for unit in cut(resolved(tmp_path / "one"), ())}
    assert {unit.name for unit in cut(resolved(tmp_path / "two", "other", licence="CC0", max_quarantine=0.5), ())} == plain

    changed = [
        {unit.name for unit in cut(resolved(tmp_path / "one", **config), clean)}
        for config, clean in (({"key": "id"}, ()), ({"columns": ["year"]}, ()), ({}, ("nfc",)), ({"text": "id"}, ()))
    ]
    with (tmp_path / "two" / "a.jsonl").open("ab") as file:
        file.write(b"\n")
    changed.append({unit.name for unit in cut(resolved(tmp_path / "two"), ())})
    for names in changed:
        assert not names & plain


# --- a unit's shards


def test_a_unit_read_gives_shards_with_identity_content_and_quarantine(tmp_path: Path) -> None:
    lines = [
        b'{"text": "\\u0000one\\r\\n", "id": 7, "year": 1999}',
        b"",
        b"broken",
        b'{"text": "two", "id": null}',
        b'{"text": " \xe2\x80\x8b "}',
    ]
    write_file(tmp_path / "a.jsonl", b"\n".join(lines))
    source = resolved(tmp_path, key="id", columns=["year"])
    (unit,) = cut(source, ("control_characters", "line_endings"))
    work = Work(tmp_path / "work")

    (facts,) = read_unit(unit, work)

    folder = work.root / "shards" / unit.name
    rows = pq.read_table(folder / "00000.parquet").to_pylist()
    first = len(lines[0]) + 2 + len(lines[2]) + 1
    assert [(row["run"], row["ordinal"], row["position"], row["key"], row["text"], row["column.year"]) for row in rows] == [
        (0, 0, 0, "7", "one\n", 1999),
        (0, 2, first, None, "two", None),
    ]
    for row in rows:
        assert row["content"] == xxhash.xxh3_128_digest(row["text"].encode())
        assert row["bytes"] == len(row["text"].encode())
    quarantine = pq.read_table(folder / "00000.quarantine.parquet").to_pylist()
    assert [(row["ordinal"], row["reason"]) for row in quarantine] == [(1, "broken JSON"), (3, "empty text")]
    assert (facts.rows, facts.quarantined, facts.runs) == (2, {"broken JSON": 1, "empty text": 1}, [(0, 0, 4)])


def test_shards_are_a_function_of_the_input_alone(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_records(tmp_path / folder / "a.jsonl", [{"text": text_of(number)} for number in range(40)])
        write_records(tmp_path / folder / "b.parquet", [{"text": text_of(number)} for number in range(40)])
    made = []
    for folder in ("one", "two"):
        work = Work(tmp_path / f"work {folder}")
        for unit in cut(resolved(tmp_path / folder, files="*"), (), 3000)[:: 1 if folder == "one" else -1]:
            read_unit(unit, work)
        made.append({path.relative_to(work.root): path.read_bytes() for path in work.root.rglob("*") if path.is_file()})

    assert made[0] == made[1]
    assert sum(path.name.endswith("0.parquet") for path in made[0]) >= 2


def test_a_unit_that_lies_there_is_not_read_again(tmp_path: Path) -> None:
    write_numbered(tmp_path, ["a.jsonl"])
    (unit,) = cut(resolved(tmp_path), ())
    work = Work(tmp_path / "work")
    first = read_unit(unit, work)
    (tmp_path / "a.jsonl").unlink()

    assert read_unit(unit, work) == first


def test_a_file_that_is_no_parquet_file_is_one_record_in_quarantine(tmp_path: Path) -> None:
    write_records(tmp_path / "a.parquet", [{"text": "good"}])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really PAR1")
    (tmp_path / "c.parquet").write_bytes(b"")
    work = Work(tmp_path / "work")

    facts = [fact for unit in cut(resolved(tmp_path, files="*.parquet"), ()) for fact in read_unit(unit, work)]

    assert sum(fact.rows for fact in facts) == 1
    assert [fact.quarantined for fact in facts if fact.quarantined] == [{"not a Parquet file": 1}] * 2


@pytest.mark.parametrize("cut_bytes", [1, 500, 10**9])
def test_records_of_a_unit_are_all_in_its_shards_whatever_their_size(tmp_path: Path, cut_bytes: int) -> None:
    write_numbered(tmp_path, [f"{number}.jsonl" for number in range(3)], lines=20)
    source = resolved(tmp_path)
    work = Work(tmp_path / "work")

    texts = set()
    for unit in cut(source, (), cut_bytes):
        facts = read_unit(unit, work)
        for number, fact in enumerate(facts):
            table = pq.read_table(work.root / "shards" / unit.name / f"{number:05}.parquet")
            assert table.num_rows == fact.rows
            assert sum(count for _, _, count in fact.runs) == fact.rows
            texts |= set(table["text"].to_pylist())
        assert len(facts) == 1 or cut_bytes < 10**9

    assert texts == {f"{number}.jsonl {line}" for number in range(3) for line in range(20)}


def test_key_of_a_unit_is_what_its_folder_is_called(tmp_path: Path) -> None:
    write_numbered(tmp_path, ["a.jsonl"])
    (unit,) = cut(resolved(tmp_path), ())
    read_unit(unit, Work(tmp_path / "work"))

    assert [path.name for path in (tmp_path / "work" / "shards").iterdir()] == [unit.name]
    assert len(unit.name) == len(key_of("x"))
    assert json.loads((tmp_path / "work" / "shards" / unit.name / "unit.json").read_text())[0][0] == 3


def test_an_empty_parquet_file_has_no_records(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    (unit,) = cut(resolved(tmp_path, files="*.parquet"), ())

    assert [fact.rows for fact in read_unit(unit, Work(tmp_path / "work"))] == [0]


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_numbered(tmp_path, ["a.jsonl", "ünï \u2028.jsonl"])
    assert len(resolved(tmp_path).inputs) == 2
    (tmp_path / "a.jsonl").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))

    with pytest.raises(UserError, match=r"the file '\\udcff.jsonl' is not UTF-8; rename it"):
        resolved(tmp_path)


# --- what is taken of the records


def taken(
    folder: Path, clean: tuple[str, ...] = (), cut_bytes: int = sources.CUT, **config: Any
) -> tuple[list[dict[str, Any]], list[sources.ShardFacts]]:
    """The rows of all shards in the order of the corpus, and what `unit.json` says."""
    rows, facts = [], []
    for unit in cut(resolved(folder, **config), clean, cut_bytes):
        for number, fact in enumerate(read_unit(unit, Work(folder / "work"))):
            rows += pq.read_table(folder / "work" / "shards" / unit.name / f"{number:05}.parquet").to_pylist()
            facts.append(fact)
    return rows, facts


DRIFTING = [
    {"title": f"t{number}", "body": None if number % 10 == 3 else f"body {number}", "id": number, "lang": "en" if number % 2 else "de"}
    for number in range(60)
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.jsonl.gz"])
def test_where_leaves_records_out_as_if_they_were_not_there(tmp_path: Path, name: str) -> None:
    write_records(tmp_path / "all" / name, DRIFTING)
    write_records(tmp_path / "english" / name, [one for one in DRIFTING if one["lang"] == "en"])

    chosen, facts = taken(tmp_path / "all", files="*", text="title", key="id", where="lang = 'en'")
    written, _ = taken(tmp_path / "english", files="*", text="title", key="id")

    assert len(chosen) == 30
    assert [{**row, "position": 0} for row in chosen] == [{**row, "position": 0} for row in written]
    assert [fact.runs for fact in facts] == [[(0, 0, 30)]]
    assert set(chosen[0]) == {"run", "ordinal", "position", "content", "key", "bytes", "text"}


def test_where_looks_at_key_bytes_and_columns_and_a_record_without_a_value_is_left_out(tmp_path: Path) -> None:
    write_file(
        tmp_path / "a.jsonl",
        json_lines([{"text": "aé", "id": 1}, {"text": "aéb", "id": 2}, {"text": "aéc"}, b"broken", {"text": "abcdefgh", "id": 4}]),
    )

    rows, facts = taken(tmp_path, key="id", where="bytes <= 4 AND key <> '7'")

    assert [row["text"] for row in rows] == ["aé", "aéb"]
    assert [(fact.rows, fact.quarantined) for fact in facts] == [(2, {"broken JSON": 1})]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.jsonl.zst"])
def test_text_as_an_expression_is_what_python_makes_of_the_columns(tmp_path: Path, name: str) -> None:
    write_records(tmp_path / name, DRIFTING)

    rows, (fact,) = taken(tmp_path, files="*", text="title || '\n\n' || body", key="id", columns=["lang"])

    expected = [one for one in DRIFTING if one["body"] is not None]
    assert [row["text"] for row in rows] == [f"{one['title']}\n\n{one['body']}" for one in expected]
    assert [row["key"] for row in rows] == [str(one["id"]) for one in expected]
    assert [row["column.lang"] for row in rows] == [one["lang"] for one in expected]
    assert fact.quarantined == {"no value for the text": 6}


@pytest.mark.parametrize("limit", [1, 7, 25, 1000])
def test_limit_reads_the_first_records_in_the_order_of_the_files(tmp_path: Path, limit: int) -> None:
    write_numbered(tmp_path, ["b-10.jsonl", "b-9.jsonl", "a.jsonl"], lines=10)

    rows, facts = taken(tmp_path, limit=limit, cut_bytes=100)

    everything = [f"{name} {line}" for name in ("a.jsonl", "b-9.jsonl", "b-10.jsonl") for line in range(10)]
    assert [row["text"] for row in rows] == everything[:limit]
    assert sum(count for fact in facts for *_, count in fact.runs) == min(limit, 30)


def test_limit_counts_what_where_leaves_and_what_is_quarantined(tmp_path: Path) -> None:
    write_file(tmp_path / "a.jsonl", json_lines([{"text": "no", "n": 1}, b"broken", {"text": "yes", "n": 2}, {"text": "later", "n": 3}]))

    rows, (fact,) = taken(tmp_path, where="n > 1", limit=2)

    assert ([row["text"] for row in rows], fact.quarantined) == (["yes"], {"broken JSON": 1})


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"text": "title || '"}, 'sources.prose.text: "title || \'" is not an SQL expression'),
        ({"text": "length(title)"}, "sources.prose.text: 'length(title)' is UInt32; accepted: an expression of text"),
        ({"text": "title || ttl"}, "sources.prose: no column 'ttl' in a.parquet; it has: title, body, id, lang"),
        ({"text": "title", "where": "lang"}, "sources.prose.where: 'lang' is String, a rule is Boolean"),
        ({"text": "title", "where": "lagn = 'en'"}, "sources.prose: no column 'lagn' in a.parquet"),
        ({"text": "title", "where": "id > (SELECT 1)"}, "sources.prose.where"),
        ({"text": "title", "where": "id = max(id)"}, "sources.prose.where: 'id = max(id)' has an aggregate"),
        ({"text": "title", "limit": -1}, "sources.prose.limit"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused_before_anything_is_read(tmp_path: Path, config: dict[str, Any], what: str) -> None:
    write_records(tmp_path / "a.parquet", DRIFTING)

    with pytest.raises(UserError) as caught:
        resolved(tmp_path, files="a.parquet", **config)

    assert what in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize("damaged", [False, True])
def test_values_that_are_not_of_their_columns_type_are_null_and_counted(tmp_path: Path, name: str, damaged: bool) -> None:
    values = [*range(1000), None, "many", 2.5, 7, "few", True]
    if name == "a.csv":
        lines = [f"t{place},{'' if value is None else value},x" for place, value in enumerate(values)]
        write_file(tmp_path / name, "\n".join(["text,score,other", *lines, *["too,many,fields,here"] * damaged]).encode())
    else:
        records: list[Any] = [{"text": f"t{place}", "score": value, "other": "x"} for place, value in enumerate(values)]
        write_file(tmp_path / name, json_lines([*records, *[b"{"] * damaged]))  # such a block is read line by line

    rows, (fact,) = taken(tmp_path, files=name, columns=["score", "other"])

    assert [row["column.score"] for row in rows] == [*range(1000), None, None, None, 7, None, None]
    assert fact.cleaned == {"column score": 4}
    assert sum(fact.quarantined.values()) == damaged


def test_parquet_nan_is_no_value_and_counts_as_nothing(tmp_path: Path) -> None:
    write_records(tmp_path / "a.parquet", [{"text": "a", "x": 0.5}, {"text": "b", "x": float("nan")}, {"text": "c", "x": None}])

    rows, (fact,) = taken(tmp_path, files="a.parquet", columns=["x"])

    assert [row["column.x"] for row in rows] == [0.5, None, None]
    assert fact.cleaned == {}


def test_columns_that_drift_between_files_are_reconciled(tmp_path: Path) -> None:
    write_records(tmp_path / "1.parquet", [{"text": "a", "x": 1, "only": "here"}])
    write_records(tmp_path / "2.parquet", [{"text": "b", "x": 0.5, "id": 7}])
    write_file(tmp_path / "3.jsonl", json_lines([{"text": "c"}, {"text": "d", "x": 3}]))
    write_file(tmp_path / "4.csv", b"x,text\n2.5,e\n,f\n")

    source = resolved(tmp_path, files="[1-4].*", key="id", columns=["x", "only"])
    rows, _ = taken(tmp_path, files="[1-4].*", key="id", columns=["x", "only"])

    assert source.columns == {"x": "float64", "only": "string"}
    assert {row["text"]: (row["column.x"], row["column.only"], row["key"]) for row in rows} == {
        "a": (1.0, "here", None),
        "b": (0.5, None, "7"),
        "c": (None, None, None),
        "d": (3.0, None, None),
        "e": (2.5, None, None),
        "f": (None, None, None),
    }


def test_columns_that_cannot_be_reconciled_are_refused_with_both_schemas(tmp_path: Path) -> None:
    write_records(tmp_path / "1.parquet", [{"text": "a", "x": 1, "y": True}])
    write_file(tmp_path / "2.jsonl", json_lines([{"text": "c", "x": "one", "y": 1}]))

    with pytest.raises(UserError) as caught:
        resolved(tmp_path, files="[12].*", columns=["x", "y"])

    assert "'x' is int64 in 1.parquet (x int64, y bool) and string in 2.jsonl (x string, y int64)" in str(caught.value)


def test_a_table_with_two_columns_of_the_name_that_is_read_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")

    with pytest.raises(UserError, match=r"two columns 'text' in a\.parquet"):
        resolved(tmp_path, files="a.parquet")


def test_clean_steps_count_the_documents_they_changed(tmp_path: Path) -> None:
    texts = ["plain", "e\u0301", "a\r\nb", "a\0b\r\n", "e\u0301\0", "é"]
    write_records(tmp_path / "a.jsonl", [{"text": text} for text in texts])

    _, (fact,) = taken(tmp_path, clean=("nfc", "control_characters", "line_endings"))

    assert fact.cleaned == {"nfc": 2, "control_characters": 2, "line_endings": 2}


def test_a_file_looked_at_once_is_not_opened_to_be_looked_at_again(tmp_path: Path) -> None:
    write_records(tmp_path / "in" / "a.parquet", [{"text": "a", "x": 1}])
    digests = Digests(Work(tmp_path / "work"))
    config = SourceConfig(files="in/*", columns=["x"])
    with Engine(1) as engine:
        first = resolve("s", config, tmp_path, {}, digests, engine)
        digests.save()
        state = (tmp_path / "in" / "a.parquet").stat()
        known = Digests(Work(tmp_path / "work"))
        known.remember(tmp_path / "in" / "a.parquet", [state.st_size, state.st_mtime_ns - 10**10, state.st_ino], first.inputs[0].digest)
        (tmp_path / "in" / "a.parquet").write_bytes(b"x" * state.st_size)  # the digest is what it was by the state below
        os.utime(tmp_path / "in" / "a.parquet", ns=(state.st_mtime_ns - 10**10,) * 2)

        assert resolve("s", config, tmp_path, {}, known, engine) == first


def test_inspect_shows_how_many_documents_each_clean_step_changed(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    write_records(
        tmp_path / "prose" / "odd.jsonl", [{"text": f"{text_of(number)} e\u0301 \0", "id": str(number), "score": 1} for number in range(7)]
    )
    built(tmp_path, recipe(clean=["line_endings", "nfc", "control_characters"], steps=[]), tmp_path / "out")

    shown = inspect(Manifest.open(tmp_path / "out"))

    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["cleaned"]["prose"] == {
        "line_endings": 0,
        "nfc": 7,
        "control_characters": 7,
    }
    assert [line.split()[:4] for line in shown.splitlines() if "changed by" in line] == [
        ["changed", "by", step, "7"] for step in ("nfc", "control_characters")
    ]
