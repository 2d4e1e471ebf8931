"""A stage ordered by what a build knows of its documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import built, pool_of, recipe, write_corpus

from mixing import UserError
from mixing.audit import verify
from mixing.manifest import Manifest


def with_order(order: dict[str, Any]) -> dict[str, Any]:
    values = recipe()
    values["mixture"]["stages"][0]["order"] = order
    return values


@pytest.mark.parametrize(
    ("by", "value"), [("bytes", lambda row: row["bytes"]), ("words.mean_length", lambda row: row["words"]["mean_length"])]
)
def test_stage_ordered_by_a_column_or_signal_reads_its_documents_by_value(tmp_path: Path, by: str, value: Any) -> None:
    write_corpus(tmp_path)
    made = built(tmp_path, with_order({"by": by, "direction": "descending", "components": ["replay"]}), tmp_path / "out")
    plain = built(tmp_path, recipe(), tmp_path / "plain")

    assert made.digest != plain.digest
    assert [finding for finding in verify(tmp_path / "out") if not finding.ok] == []
    pool = {row["row"]: value(row) for row in pool_of(tmp_path / "out") if row["decision"] == "kept"}
    for folder, ordered in (("out", True), ("plain", False)):
        manifest = Manifest.open(tmp_path / folder)
        replay = manifest.header["component_names"].index("replay")
        stage = manifest.header["stages"][0]
        spans = manifest.spans(0, stage["sequences"])
        component = np.repeat(manifest.components(0, stage["sequences"]), np.diff(spans.sequence))
        rows = [int(manifest.token_file(file).pool_row[row]) for file, row in zip(spans.file, spans.token_row, strict=True)]
        seen = [pool[row] for row, mine in zip(rows, component == replay, strict=True) if mine]
        quarter = len(seen) // 4
        first, last = sum(seen[:quarter]) / quarter, sum(seen[-quarter:]) / quarter
        spread = max(seen) - min(seen)
        # In order .73 of the spread; packing alone, which takes long documents first, makes .28 of it in so small a component.
        assert (first - last > spread / 2) is ordered


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("source", r"mixture.stages\[0\].order.by: 'source' is large_string; accepted: a number"),
        ("nowhere", "order.by: .nowhere. names .nowhere., which is no column here"),
        ("bytes + 1", "found 'bytes \\+ 1'"),
    ],
)
def test_stage_ordered_by_what_is_no_number_is_refused_before_any_data_is_read(tmp_path: Path, by: str, message: str) -> None:
    write_corpus(tmp_path)

    with pytest.raises(UserError, match=message):
        built(tmp_path, with_order({"by": by}), tmp_path / "out")

    assert not (tmp_path / ".tilth" / "shards").exists() or not list((tmp_path / ".tilth" / "shards").iterdir())
