"""`verify` finds what it promises to find: each kind of damage is planted in a manifest that is consistent in every other way, and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import failed, header_of, rewrite, sign, sign_files, table_of
from manifests import small_manifest

from mixing.audit import verify
from mixing.audit_plan import _unique_tokens
from mixing.canonical import canonical_json
from mixing.findings import Finding


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_manifest(tmp_path_factory.mktemp("audit") / "sound", tokens=6000)


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "small")
    return tmp_path / "small"


def test_verify_sound_manifest_has_no_failure_and_names_each_check_once(sound: Path) -> None:
    findings = list(verify(sound / "manifest.json"))
    assert [finding for finding in findings if finding.verdict != "ok"] == []
    assert len({finding.check for finding in findings}) == len(findings) > 40


def test_verify_edited_bytes_fail_the_digests(folder: Path) -> None:
    path = folder / "tokens/00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert {"files.json agrees with the bytes", "rows and content digests of the files"} <= failed(folder)


def test_verify_edited_tokenizer_fails_its_digest_even_when_signed(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    sign(folder)
    assert failed(folder) == {"tokenizer.sha256 is that of tokenizer.json"}


def test_verify_missing_and_strange_files_are_named(folder: Path) -> None:
    (folder / "plan/adapt.spans.arrow").rename(folder / "plan/adopt.spans.arrow")
    findings = {finding.check: finding for finding in verify(folder)}
    assert findings["every file is listed and there"].figure == "2: plan/adapt.spans.arrow, plan/adopt.spans.arrow"
    assert "plan/adapt.spans.arrow is missing" in findings["the manifest can be read"].figure


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda h: h.pop("models"), "the header has its keys"),
        (lambda h: h.update(schema_version=2), "the manifest can be read"),
        (lambda h: h["recipe"].update(sources={"code": {}}), "ordered parts of the recipe are arrays"),
        (lambda h: h["recipe"]["mixture"]["components"].reverse(), "components are the recipe's, in its order"),
        (lambda h: h["recipe"].update(model="/home/someone/model.bin"), "no path of a machine and no URL in the header"),
        (lambda h: h["sources"]["code"].update(inputs=[{"path": "s3://bucket/key"}]), "no path of a machine and no URL in the header"),
        (lambda h: h["recipe"].update(model="a/../../b"), "no path of a machine and no URL in the header"),
        (lambda h: h["tokenizer"].update(sha256="0" * 64), "tokenizer.sha256 is that of tokenizer.json"),
        (lambda h: h["tokenizer"].update(vocab_size=100), "ids are below vocab_size"),
        (lambda h: h["sources"]["code"].update(read=7), "accounting of code"),
        (lambda h: h["sources"]["prose"]["dropped"][0].update(documents=1), "accounting of prose"),
        (
            lambda h: h["sources"]["prose"].update(used=h["sources"]["prose"]["used"] - 1, unused=h["sources"]["prose"]["unused"] + 1),
            "accounting of prose",
        ),
        (lambda h: h["stages"][1].update(first_sequence=0), "stage enhance: sequences and spans are numbered without a gap"),
        (
            lambda h: h["stages"][0].update(tokens=h["stages"][0]["tokens"] + 1),
            "stage adapt: tokens, predictions and padding are the header's",
        ),
        (lambda h: h["stages"][0].update(predictions=1), "stage adapt: tokens, predictions and padding are the header's"),
        (lambda h: h["stages"][0].update(padding=0), "stage adapt: tokens, predictions and padding are the header's"),
        (
            lambda h: h["stages"][0]["components"]["domain"].update(weight=0.7),
            "stage adapt: asked tokens are the weights' share of the budget",
        ),
        (
            lambda h: h["stages"][0]["components"]["domain"].update(unique_tokens=9),
            "stage adapt, domain: realised is asked, and every count is true",
        ),
        (
            lambda h: h["stages"][0]["components"]["domain"].update(epochs=9),
            "stage adapt, domain: realised is asked, and every count is true",
        ),
        (
            lambda h: h["stages"][0]["components"]["domain"].update(cut_to_fill=99),
            "stage adapt, domain: realised is asked, and every count is true",
        ),
        (
            lambda h: h["stages"][0]["components"]["domain"].update(documents=1),
            "stage adapt, domain: realised is asked, and every count is true",
        ),
        (
            lambda h: h["stages"][0]["components"]["domain"].update(sequences=1),
            "stage adapt, domain: realised is asked, and every count is true",
        ),
        (lambda h: h["recipe"]["mixture"].update(fill=1.0), "stage adapt: sequences are filled to 1, but for the last of each component"),
        (lambda h: h["recipe"]["mixture"].update(max_epochs=1), "domain: within max_epochs 1"),
        (lambda h: h["components"]["replay"].update(documents=1), "replay: within max_epochs 1"),
        (lambda h: h.update(sequences=1), "sequences in all"),
        (lambda h: h["holdout"]["code"].update(tokens=0), "hold-out of code: rows, bytes, ids and counts agree"),
        (lambda h: h["holdout"].pop("code"), "hold-out of code: no file and no document that the rules pass"),
    ],
)
def test_verify_header_that_says_something_untrue_fails_that_check(
    folder: Path, change: Callable[[dict[str, Any]], object], check: str
) -> None:
    sign(folder, change)
    assert check in failed(folder)


def test_verify_header_that_is_not_canonical_fails(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps(header_of(folder)))
    sign_files(folder)
    assert failed(folder) == {"manifest.json is canonical JSON"}


def test_verify_recipe_that_is_not_the_one_hashed_fails(folder: Path) -> None:
    header = header_of(folder)
    header["recipe"]["seed"] = 5
    (folder / "manifest.json").write_text(canonical_json(header))
    sign_files(folder)
    assert failed(folder) == {"recipe_sha256 is the recipe's"}


def at(column: str, row: int, value: Any) -> Callable[[dict[str, list[Any]]], object]:
    return lambda columns: columns[column].__setitem__(row, value)


def swap(column: str, one: int, other: int) -> Callable[[dict[str, list[Any]]], object]:
    def change(columns: dict[str, list[Any]]) -> None:
        values = columns[column]
        values[one], values[other] = values[other], values[one]

    return change


@pytest.mark.parametrize(
    ("path", "change", "check"),
    [
        ("pool/00000.parquet", swap("row", 3, 4), "pool rows are numbered in order"),
        ("pool/00000.parquet", at("decision", 0, "lost"), "decisions are known"),
        ("pool/00000.parquet", at("source", 0, "elsewhere"), "sources are the header's"),
        ("pool/00000.parquet", at("content", 0, None), "every document has a content hash, quarantined records have none"),
        (
            "pool/00000.parquet",
            lambda c: c["reason"].__setitem__(c["decision"].index("dropped"), None),
            "dropped and quarantined have a reason, kept have none",
        ),
        (
            "pool/00000.parquet",
            lambda c: c["reason"].__setitem__(c["decision"].index("kept"), "why"),
            "dropped and quarantined have a reason, kept have none",
        ),
        (
            "pool/00000.parquet",
            lambda c: c["n_tokens"].__setitem__(slice(None), [n and n + 1 for n in c["n_tokens"]]),
            "stored ids are as many as the pool's n_tokens",
        ),
        ("tokens/00000.arrow", swap("pool_row", 0, 1), "stored documents are kept documents, once each, in pool order"),
        ("plan/adapt.arrow", at("first_span", 1, 0), "stage adapt: sequences and spans are numbered without a gap"),
        ("plan/adapt.arrow", at("component", 1, 2), "stage adapt: sequences and spans are numbered without a gap"),
        ("plan/adapt.spans.arrow", at("length", 0, 0), "stage adapt: spans lie in their documents"),
        ("plan/adapt.spans.arrow", at("start", 0, 60000), "stage adapt: spans lie in their documents"),
        ("plan/adapt.spans.arrow", at("file", 0, 9), "stage adapt: spans lie in their documents"),
        ("plan/adapt.spans.arrow", at("token_row", 0, 60000), "stage adapt: spans lie in their documents"),
        ("plan/adapt.spans.arrow", at("epoch", 0, 7), "epochs count a document's visits in the order of the run"),
        ("plan/adapt.arrow", lambda c: c["component"].sort(), "stage adapt: every prefix holds its shares to within one sequence"),
        ("holdout/code.arrow", at("bytes", 0, 1), "hold-out of code: rows, bytes, ids and counts agree"),
        ("holdout/code.arrow", at("pool_row", 0, 1), "hold-out of code: rows, bytes, ids and counts agree"),
        ("holdout/code.arrow", at("component", 0, 77), "hold-out of code: rows, bytes, ids and counts agree"),
    ],
)
def test_verify_file_that_holds_something_wrong_fails_that_check(
    folder: Path, path: str, change: Callable[[dict[str, list[Any]]], object], check: str
) -> None:
    rewrite(folder, path, change)
    sign(folder)
    assert check in failed(folder)


def test_verify_document_planned_in_two_components_fails(folder: Path) -> None:
    sequences, spans = (table_of(folder / f"plan/adapt{kind}.arrow").to_pylist() for kind in ("", ".spans"))
    ends = [*(sequence["first_span"] for sequence in sequences[1:]), len(spans)]
    component = [sequence["component"] for sequence, end in zip(sequences, ends, strict=True) for _ in range(sequence["first_span"], end)]
    longest = max(range(len(spans)), key=lambda row: spans[row]["start"] + spans[row]["length"])
    other = next(row for row in range(len(spans)) if component[row] != component[longest] and spans[row]["start"] == 0)
    for column in ("file", "token_row"):
        rewrite(folder, "plan/adapt.spans.arrow", at(column, other, spans[longest][column]))
    sign(folder)
    assert "no document is in two components" in failed(folder)


def test_verify_full_sequences_joined_are_over_full(folder: Path) -> None:
    header = header_of(folder)

    def join(columns: dict[str, list[Any]]) -> None:
        for values in columns.values():
            del values[1]

    rewrite(folder, "plan/adapt.arrow", join)
    sign(
        folder,
        lambda h: (
            h["stages"][0].update(sequences=header["stages"][0]["sequences"] - 1),
            h["stages"][1].update(first_sequence=header["stages"][1]["first_sequence"] - 1),
        ),
    )
    assert "stage adapt: no sequence is over full" in failed(folder)


def test_verify_pieces_in_the_wrong_order_fail(folder: Path) -> None:
    spans = table_of(folder / "plan/adapt.spans.arrow").to_pylist()
    where: dict[tuple[int, int, int], int] = {}
    for row, span in enumerate(spans):
        key = (span["file"], span["token_row"], span["epoch"])
        if key in where:
            break
        where[key] = row
    first = where[key]
    for column in ("start", "length"):
        rewrite(folder, "plan/adapt.spans.arrow", swap(column, first, row))
    sign(folder)
    assert "the pieces of one visit keep their order, no token twice" in failed(folder)


def test_verify_stored_document_that_is_not_planned_fails(folder: Path) -> None:
    stages = [table_of(folder / f"plan/{stage}.spans.arrow").to_pylist() for stage in ("adapt", "enhance")]
    documents = [(span["file"], span["token_row"]) for spans in stages for span in spans]
    longest = max(stages[0], key=lambda span: span["start"] + span["length"])
    once = next(row for row, document in enumerate(documents[: len(stages[0])]) if documents.count(document) == 1)
    for column in ("file", "token_row"):
        rewrite(folder, "plan/adapt.spans.arrow", at(column, once, longest[column]))
    sign(folder)
    findings = {finding.check: finding.figure for finding in verify(folder) if not finding.ok}
    assert findings["every stored document is planned"].startswith("1 of ")


def test_verify_content_column_of_text_in_the_pool_fails(folder: Path) -> None:
    table = pq.read_table(folder / "pool/00000.parquet")
    pq.write_table(table.append_column("text", pa.array(["x"] * len(table))), folder / "pool/00000.parquet")
    sign(folder)
    assert failed(folder) == {"the pool holds no text"}


def test_verify_pool_column_of_another_type_fails(folder: Path) -> None:
    table = pq.read_table(folder / "pool/00000.parquet")
    pq.write_table(table.set_column(0, "row", table["row"].cast(pa.int64())), folder / "pool/00000.parquet")
    sign(folder)
    assert failed(folder) == {"pool columns"}


def stored_row(folder: Path, number: int = 5, least: int = 0) -> tuple[int, list[int]]:
    """The pool row and ids of a planned document."""
    documents = [row for row in table_of(folder / "tokens/00000.arrow").to_pylist() if len(row["ids"]) >= least]
    return documents[number]["pool_row"], documents[number]["ids"]


def test_verify_planned_copy_of_held_out_content_fails(folder: Path) -> None:
    row, _ = stored_row(folder)

    def copy(columns: dict[str, list[Any]]) -> None:
        columns["content"][row] = columns["content"][columns["decision"].index("held_out")]

    rewrite(folder, "pool/00000.parquet", copy)
    sign(folder)
    assert failed(folder) == {"no held-out content is planned"}


def test_verify_document_made_from_a_held_out_one_fails_even_through_another(folder: Path) -> None:
    def descend(columns: dict[str, list[Any]]) -> None:
        held, dropped = columns["decision"].index("held_out"), columns["decision"].index("dropped")
        columns["parents"][dropped] = [held]
        columns["parents"][stored_row(folder)[0]] = [0, dropped]

    rewrite(folder, "pool/00000.parquet", descend)
    sign(folder)
    findings = {finding.check: finding for finding in verify(folder)}
    assert [name for name, finding in findings.items() if not finding.ok] == ["nothing is made from a held-out document"]
    assert findings["nothing is made from a held-out document"].figure == f"2 descend, kept rows [{stored_row(folder)[0]}]"


def hold_out_ids(folder: Path, ids: list[int]) -> int:
    """Make the first held-out document of `code` have these ids; its row."""
    row = table_of(folder / "holdout/code.arrow")["pool_row"][0].as_py()
    before = len(table_of(folder / "holdout/code.arrow")["ids"][0])
    rewrite(folder, "holdout/code.arrow", at("ids", 0, ids))
    rewrite(folder, "pool/00000.parquet", at("n_tokens", row, len(ids)))
    sign(folder, lambda h: h["holdout"]["code"].update(tokens=h["holdout"]["code"]["tokens"] + len(ids) - before))
    return int(row)


def test_verify_planned_ids_equal_to_held_out_ones_fail(folder: Path) -> None:
    planned, ids = stored_row(folder)
    held = hold_out_ids(folder, ids)
    findings = [finding for finding in verify(folder) if finding.verdict == "FAIL"]
    assert [finding.check for finding in findings] == ["held-out ids are not among planned ones"]
    assert f"[({held}, {planned})]" in findings[0].figure


def pairs(folder: Path) -> Finding:
    return next(finding for finding in verify(folder) if "share 0.9" in finding.check)


def test_verify_near_copy_of_a_planned_document_is_a_finding_with_its_similarity(folder: Path) -> None:
    planned, ids = stored_row(folder, number=0, least=120)
    held = hold_out_ids(folder, [*ids[:-4], 1])  # without the last four ids, and another end
    shingles = [{tuple(text[i : i + 8]) for i in range(len(text) - 7)} for text in (ids, [*ids[:-4], 1])]
    similarity = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    assert 0.9 <= similarity < 1
    assert not failed(folder)
    assert pairs(folder).verdict == "finding"
    assert pairs(folder).figure == f"1 pairs of rows: {held} ~ {planned} ({round(similarity, 3)})"


def test_verify_document_less_alike_is_no_finding(folder: Path) -> None:
    _, ids = stored_row(folder, number=0, least=120)
    hold_out_ids(folder, ids[: int(0.85 * len(ids))])
    assert pairs(folder).verdict == "ok"


def test_unique_tokens_of_overlapping_ranges_are_their_union() -> None:
    random = np.random.default_rng(3)
    document, start = random.integers(0, 9, 400), random.integers(0, 90, 400)
    end = start + random.integers(1, 30, 400)
    union = {(int(d), token) for d, s, e in zip(document, start, end, strict=True) for token in range(s, e)}
    assert _unique_tokens(document, start, end) == len(union)


def test_verify_redistribution_that_moved_more_than_was_short_fails(tmp_path: Path) -> None:
    stages = [{"name": "adapt", "tokens": 20_000, "weights": {"domain": 0.2, "extra": 0.8}}]
    folder = small_manifest(tmp_path / "m", mixture={"stages": stages, "on_shortage": "redistribute"})
    header = header_of(folder)["stages"][0]["components"]
    assert header["extra"]["tokens"] < header["extra"]["asked_tokens"] == 16_000
    assert failed(folder) == set()

    sign(folder, lambda header: header["recipe"]["mixture"]["max_epochs"].update(extra=50))

    assert failed(folder) == {"stage adapt: only what is short was moved"}
