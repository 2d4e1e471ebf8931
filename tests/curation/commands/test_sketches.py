"""Signatures for other programs: datasketch reads what is written, and it is what datasketch itself would compute and write."""

from __future__ import annotations

from pathlib import Path

import datasketch
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from recipes import built, pool_of, recipe, write_corpus

from curation.cli import main
from curation.commands.sketches import lean
from curation.dedup.minhash import SIGNATURE_VERSION, shingle_set, signatures

TEXTS = ["one two three four five six seven", "", "床前明月光，疑是地上霜", "one two three four five six eight"]


def oracle(text: str) -> datasketch.LeanMinHash:
    """Over the same shingles, by datasketch alone."""
    sketch = datasketch.MinHash(num_perm=128, scheme="affine32", hashfunc=lambda shingle: shingle >> 32)
    sketch.update_batch(shingle_set(text))
    return datasketch.LeanMinHash(sketch)


def test_lean_bytes_are_those_that_datasketch_writes() -> None:
    written = lean(signatures(pa.array(TEXTS, pa.large_string()))).to_pylist()

    for text, found in zip(TEXTS, written, strict=True):
        expected = bytearray(oracle(text).bytesize("<"))
        oracle(text).serialize(expected, "<")
        assert found == bytes(expected)
        assert datasketch.LeanMinHash.deserialize(found, "<") == oracle(text)


@pytest.mark.parametrize("signs", [True, False], ids=["signed by the build", "signed now"])
def test_signatures_of_a_manifest_load_into_an_index_and_find_the_near_copies(tmp_path: Path, signs: bool) -> None:
    planted = write_corpus(tmp_path, 30)
    steps = [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}]
    steps += [{"add": {"twin": {"kind": "minhash"}}}] if signs else []
    built(tmp_path, recipe(steps=steps, holdout=None), tmp_path / "out")

    result = CliRunner().invoke(main, ["signatures", str(tmp_path / "out"), "-o", str(tmp_path / "sketches.parquet")])

    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "sketches.parquet")
    assert table.schema.metadata[b"tilth.signatures"] == SIGNATURE_VERSION.encode()
    kept = {row["row"]: row for row in pool_of(tmp_path / "out") if row["decision"] == "kept"}
    assert sorted(table["row"].to_pylist()) == sorted(kept)
    assert f"{len(kept):,} signatures" in result.stdout
    index = datasketch.MinHashLSH(threshold=0.7, num_perm=128)
    for one in table.to_pylist():
        row = kept[one["row"]]
        assert (one["source"], one["origin"], one["content"]) == (row["source"], row["origin"], row["content"])
        sketch = datasketch.LeanMinHash.deserialize(one["lean"], "<")
        assert sketch == oracle(planted.text[row["key"]])
        index.insert(row["key"], sketch)
    here = {row["key"] for row in kept.values()}
    pairs = [(copy, original) for copy, original in planted.near.items() if {copy, original} <= here]
    assert len(pairs) > 5
    assert sum(original in index.query(oracle(planted.text[copy])) for copy, original in pairs) > 0.8 * len(pairs)
