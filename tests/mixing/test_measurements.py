"""Measurements written by training are read back by a recipe, from any of the three formats."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mixing import UserError
from mixing.measurements import DOCUMENTATION, MEASUREMENTS, Measurement, append, read

ONE = Measurement("run-1", "ab" * 32, "domain", "loss", "target", 1000, 0.5, 3e-4, 17, 2.25, "c0ffee")
WHOLE = Measurement("run-1\u2028é", "ab" * 32, None, "accuracy/arc", "guard", 2000, None, None, 17, 0.5, None)


def test_append_twice_reads_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    append(path, [ONE])
    append(path, [WHOLE, ONE])
    assert [Measurement(**row) for row in read(path).to_pylist()] == [ONE, WHOLE, ONE]
    assert list(json.loads(path.read_text(encoding="utf-8").split("\n")[0])) == MEASUREMENTS.names


def test_append_value_that_is_not_finite_is_null(tmp_path: Path) -> None:
    append(tmp_path / "m.jsonl", [ONE._replace(value=math.nan), ONE._replace(value=math.inf, epochs=math.nan)])
    assert read(tmp_path / "m.jsonl").select(["value", "epochs"]).to_pylist() == [
        {"value": None, "epochs": 0.5},
        {"value": None, "epochs": None},
    ]


def test_read_parquet_and_csv_of_the_same_rows_agree(tmp_path: Path) -> None:
    append(tmp_path / "m.jsonl", [ONE, WHOLE])
    table = read(tmp_path / "m.jsonl")
    pq.write_table(table, tmp_path / "m.parquet")
    pa.csv.write_csv(table, tmp_path / "m.csv")
    assert read(tmp_path / "m.parquet").equals(table)
    assert read(tmp_path / "m.csv").equals(table)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", "", r"m\.jsonl: empty; nothing was measured yet"),
        ("m.parquet", "", r"m\.parquet: empty; nothing was measured yet"),
        ("m.jsonl", "{}\n", r"m.jsonl, line 1: found ; a measurement has run, manifest"),
        ("m.jsonl", "[1]\n", "line 1: found list"),
        ("m.jsonl", json.dumps(ONE._asdict()) + "\n{", "line 2: not JSON"),
        ("m.jsonl", json.dumps(ONE._asdict() | {"note": 1}), "line 1: found run, .*note; a measurement has"),
        ("m.jsonl", json.dumps(ONE._asdict() | {"group": "other"}), "group 'other'; accepted: target, guard"),
        ("m.jsonl", json.dumps(ONE._asdict() | {"tokens": "many"}), "not measurements"),
        ("m.jsonl", json.dumps(ONE._asdict() | {"run": None}), "not measurements: .*'run' with null values"),
        ("m.csv", "run,manifest\na,b\n", "no column component, metric"),
        ("m.csv", ",".join(MEASUREMENTS.names) + "\na,b,c,d,target,x,1,1,1,1,c\n", "not measurements"),
        ("m.txt", "", "measurements are read from .jsonl, .parquet, .csv"),
    ],
)
def test_read_what_is_no_measurement_is_refused_by_name(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_read_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m.jsonl: no such file"):
        read(tmp_path / "m.jsonl")


def test_documentation_covers_every_column() -> None:
    assert list(DOCUMENTATION) == MEASUREMENTS.names
