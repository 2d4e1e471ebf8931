"""`build` on a small corpus with planted truth: accounting, evidence, hold-out, and one digest whatever happened on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import xxhash
from recipes import Planted, built, near_copy, pool_of, recipe, text_of, write_corpus, write_recipe, write_records

from curation.text.words import words
from mixing import UserError
from mixing.audit import verify
from mixing.files import first_of_files
from mixing.manifest import Manifest

ROOT = Path(__file__).parents[2]
MODELS = [
    {"add": {"like_code": {"kind": "fasttext", "train": {"positive": {"sample": "code"}, "negative": {"sample": "prose"}}, "dimensions": 8, "buckets": 1000, "epochs": 2}}},
    {"add": {"perplexity": {"kind": "ngram", "order": 2, "reference": {"sample": "prose", "documents": 50}}}},
    {"keep": "perplexity > 0"},
]  # fmt: skip


def shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + 5]) for i in range(max(1, len(found) - 4))} if found else set()


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b) if a | b else 0.0


def with_steps(change: dict[int, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The recipe with some of its steps replaced, by index."""
    values = recipe(**changes)
    return {**values, "steps": [change.get(index, step) for index, step in enumerate(values["steps"])]}


def sequences(folder: Path) -> list[list[Any]]:
    """The spans of every sequence with their ids."""
    manifest = Manifest.open(folder)
    return [[(*one[:-1], one[-1].tolist()) for one in manifest.sequence(number).excerpts] for number in range(manifest.sequences)]


class Example:
    """The corpus, and the manifest of the plain recipe over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.planted: Planted = write_corpus(folder)
        self.made = built(folder, recipe(), folder / "out")
        self.pool = pool_of(folder / "out")
        self.header: dict[str, Any] = json.loads((folder / "out" / "manifest.json").read_text())

    def text(self, row: dict[str, Any]) -> str:
        return self.planted.text[row["key"]]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return Example(tmp_path_factory.mktemp("example"))


def digest_of(folder: Path) -> str:
    return Manifest.open(folder).digest


# --- what the manifest says


def test_manifest_passes_every_check_of_the_audit(example: Example) -> None:
    findings = list(verify(example.folder / "out"))

    assert [finding for finding in findings if finding.verdict == "FAIL"] == []
    assert len(findings) > 20


def test_accounting_per_source_adds_up_and_agrees_with_the_pool_and_the_files(example: Example) -> None:
    read = Counter(example.planted.source.values()) + Counter(example.planted.broken)
    assert set(example.header["sources"]) == set(read)
    for name, one in example.header["sources"].items():
        rows = [row for row in example.pool if row["source"] == name]
        decisions = Counter(row["decision"] for row in rows)
        dropped = sum(step["documents"] for step in one["dropped"])
        assert one["read"] == len(rows) == read[name]
        assert one["read"] == one["quarantined"] + dropped + one["held_out"] + one["kept"]
        assert one["kept"] == one["used"] + one["unused"] + one["unassigned"]
        assert decisions == Counter(
            {"quarantined": one["quarantined"], "dropped": dropped, "held_out": one["held_out"], "kept": one["kept"]}
        )
        reasons = Counter(row["reason"] for row in rows if row["decision"] == "dropped")
        assert reasons == Counter({step["rule"]: step["documents"] for step in one["dropped"]})
        assert one["quarantined"] == example.planted.broken.get(name, 0)
        assert one["inputs"] == sorted(one["inputs"], key=lambda entry: [len(entry["path"]), entry["path"]])
    assert [row["row"] for row in example.pool] == list(range(sum(read.values())))


def test_planted_truth_is_found_and_nothing_else_is_dropped(example: Example) -> None:
    planted = example.planted
    by_key = {row["key"]: row for row in example.pool if row["key"]}
    for key, row in by_key.items():
        expected = {
            "own": {None, "top"},
            "copy": {"copy_of IS NULL", "holdout"},
            "near": {"duplicate_of IS NULL", "holdout"},
            "short": {"words.words >= 10"},
        }[key.split("-")[1]]
        reason = row["reason"] and ("top" if row["reason"].startswith("top: ") else row["reason"])
        # A copy that stands before its original is the one that stays, and a held-out text is not dropped.
        originals = [planted.copies.get(key), planted.near.get(key)]
        first = all(by_key[original]["row"] > row["row"] for original in originals if original)
        if row["decision"] == "held_out" or first:
            continue
        removed_original = any(by_key[o]["decision"] == "dropped" for o in originals if o and by_key[o]["reason"] != "copy_of IS NULL")
        assert reason in expected | ({None} if removed_original else set()), (key, row)
    assert len({row["reason"] for row in example.pool if row["decision"] == "quarantined"}) == 7


def test_every_dropped_document_names_one_rule_and_the_value_or_the_survivor_that_decided(example: Example) -> None:
    rows = example.pool
    for row in rows:
        if row["decision"] != "dropped":
            assert row["evidence"] is None or row["decision"] == "held_out"
            continue
        evidence = json.loads(row["evidence"])
        if row["reason"] in ("copy_of IS NULL", "duplicate_of IS NULL", "holdout"):
            survivor = rows[evidence["row"]]
            assert evidence["survivor"] == survivor["origin"]
            assert evidence["similarity"] == pytest.approx(jaccard(example.text(row), example.text(survivor)), abs=1e-12)
            if row["reason"] == "holdout":
                assert survivor["decision"] == "held_out"
                continue
            assert survivor["row"] < row["row"]
            signal = row["reason"].split()[0]
            assert row[signal] == survivor["row"]
            # The survivor was kept at that step: if dropped at all, then by a later one.
            order = ["copy_of IS NULL", "duplicate_of IS NULL", "words.words >= 10", "top"]
            place = order.index(row["reason"])
            assert survivor["decision"] == "kept" or any(survivor["reason"].startswith(later) for later in order[place + 1 :])
        elif row["reason"].startswith("words"):
            assert evidence == {"value": row["words"]["words"]}
            assert row["words"]["words"] == len(example.text(row).split()) < 10
        else:
            assert row["reason"].startswith('top: {"by":"score"')
            assert evidence == {"value": row["score"]}
            assert row["source"] == "code"


def test_exact_duplicates_are_exactly_the_later_documents_of_equal_live_contents(example: Example) -> None:
    first: dict[str, int] = {}
    for row in example.pool:
        if row["decision"] == "quarantined" or row["decision"] == "held_out" or row["reason"] == "holdout":
            assert row["copy_of"] is None
            continue
        assert row["copy_of"] == first.get(row["content"])
        first.setdefault(row["content"], row["row"])


def test_near_duplicates_are_exactly_those_similar_to_a_kept_document_before_them(example: Example) -> None:
    """The rule of the survivors, in plain Python over all pairs."""
    alive = [
        row
        for row in example.pool
        if row["content"] and row["decision"] != "held_out" and row["copy_of"] is None and row["reason"] != "holdout"
    ]
    sets = {row["row"]: shingles(example.text(row)) for row in alive}
    kept: list[dict[str, Any]] = []
    for row in alive:
        similar = [
            other["row"] for other in kept if len(sets[row["row"]] & sets[other["row"]]) >= 0.8 * len(sets[row["row"]] | sets[other["row"]])
        ]
        assert (row["duplicate_of"] is not None) == bool(similar), row
        if similar:
            assert row["duplicate_of"] in similar
        else:
            kept.append(row)


def test_pool_shows_a_signal_only_for_documents_alive_when_its_step_ran(example: Example) -> None:
    steps = ["holdout", "copy_of IS NULL", "duplicate_of IS NULL", "words.words >= 10", "top"]
    for row in example.pool:
        gone = 99 if row["decision"] == "kept" else -1
        if row["reason"] and row["decision"] != "quarantined":
            gone = next(place for place, step in enumerate(steps) if row["reason"].startswith(step))
        if row["decision"] == "held_out":
            gone = 99 if row["reason"] is None else gone
        assert (row["words"] is not None) == (gone > 2), row
        if row["decision"] == "quarantined":
            assert row["content"] is row["copy_of"] is row["duplicate_of"] is row["n_tokens"] is row["key"] is None


def test_top_is_a_plain_sort_of_the_documents_alive(example: Example) -> None:
    ranked = [row for row in example.pool if row["source"] == "code" and row["decision"] != "held_out"]
    ranked = [row for row in ranked if row["decision"] == "kept" or row["reason"].startswith("top: ")]
    ranked.sort(key=lambda row: (-row["score"], row["row"]))

    assert [row["decision"] == "kept" for row in ranked] == [True] * (8 * len(ranked) // 10) + [False] * (
        len(ranked) - 8 * len(ranked) // 10
    )


def test_held_out_texts_and_what_resembles_them_are_not_in_the_token_store(example: Example) -> None:
    manifest = Manifest.open(example.folder / "out")
    stored = [int(row) for file in range(manifest.token_files) for row in manifest.token_file(file).pool_row]
    reserved = [example.text(row) for row in example.pool if row["decision"] == "held_out"]

    assert len(reserved) == 9
    assert stored
    for row in stored:
        assert example.pool[row]["decision"] == "kept"
        assert max(jaccard(example.text(example.pool[row]), text) for text in reserved) < 0.8


def test_ids_of_the_store_are_the_tokenizers_of_the_text_with_its_end(example: Example) -> None:
    from tokenizers import Tokenizer

    manifest = Manifest.open(example.folder / "out")
    tokenizer = Tokenizer.from_file(str(example.folder / "tokenizer" / "tokenizer.json"))
    file = manifest.token_file(0)
    for index, row in enumerate(file.pool_row[:20].tolist()):
        ids = file.ids[file.offsets[index] : file.offsets[index + 1]].tolist()
        assert ids == [*tokenizer.encode(example.text(example.pool[row]), add_special_tokens=False).ids, 0]
        assert example.pool[row]["n_tokens"] == len(ids)


def test_resolved_recipe_holds_no_place_of_this_machine(example: Example) -> None:
    text = (example.folder / "out" / "manifest.json").read_text()

    assert str(example.folder) not in text
    assert example.folder.name not in text


# --- the same digest


def test_two_workers_and_a_fresh_work_directory_give_the_same_digest(example: Example, tmp_path: Path) -> None:
    made = built(example.folder, recipe(), tmp_path / "out", tmp_path / "another work", workers=2)

    assert made.digest == example.made.digest
    assert not made.unchanged


def test_many_files_written_by_several_processes_are_those_of_one(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("curation.assemble"), "first_of_files", partial(first_of_files, ids=1500))
    monkeypatch.setattr(import_module("curation.pool_rows"), "ROWS_PER_FILE", 100)

    one, two = (
        built(example.folder, recipe(), tmp_path / str(workers), tmp_path / f"work {workers}", workers=workers) for workers in (1, 2)
    )

    assert one.digest == two.digest != example.made.digest
    assert len(list((tmp_path / "2" / "tokens").iterdir())) > 3
    assert len(list((tmp_path / "2" / "pool").iterdir())) == -(-len(example.pool) // 100)
    assert pool_of(tmp_path / "2") == example.pool
    assert sequences(tmp_path / "2") == sequences(example.folder / "out")
    assert [finding for finding in verify(tmp_path / "2") if not finding.ok] == []


def test_a_moved_copy_of_inputs_and_recipe_gives_the_same_digest(example: Example, tmp_path: Path) -> None:
    moved = tmp_path / "else [where] *"
    shutil.copytree(example.folder, moved, ignore=shutil.ignore_patterns(".tilth", "out*"))
    (moved / "unrelated.txt").write_text("x")

    assert built(moved, recipe(), tmp_path / "out").digest == example.made.digest


def test_a_moved_work_directory_is_used_and_gives_the_same_digest(example: Example, tmp_path: Path) -> None:
    shutil.copytree(example.folder / ".tilth", tmp_path / "moved work")

    made = built(example.folder, recipe(), tmp_path / "out", tmp_path / "moved work")

    assert made.digest == example.made.digest
    assert made.computed == {"copy_of": 0, "duplicate_of": 0, "words": 0}


@pytest.mark.slow
def test_a_build_killed_at_many_places_resumes_to_the_same_digest(example: Example, tmp_path: Path) -> None:
    values = {**recipe(), "steps": [*recipe()["steps"], *MODELS]}
    whole = built(example.folder, values, tmp_path / "whole", tmp_path / "whole work").digest
    path = write_recipe(example.folder, values, "killed.yaml")
    command = [sys.executable, "-c", "from curation.cli import main; main()", "build", str(path), "-o", str(tmp_path / "out")]
    command += ["--work", str(tmp_path / "work"), "--workers", "2"]
    kills = 0
    for seen in ("shards", "sidecars", "models", "never"):
        building = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        assert building.stderr is not None
        deadline = time.monotonic() + 120
        while building.poll() is None and time.monotonic() < deadline:
            if seen != "never" and any((tmp_path / "work" / seen).glob("*")):
                os.killpg(building.pid, signal.SIGKILL)
            time.sleep(0.005)
        errors = building.stderr.read().decode()
        building.stderr.close()
        kills += building.wait() == -signal.SIGKILL
        assert building.returncode in (0, -signal.SIGKILL), errors

    assert kills >= 2
    assert building.returncode == 0
    assert digest_of(tmp_path / "out") == whole


def test_a_threshold_loosened_and_tightened_again_gives_the_first_digest_and_computes_only_what_is_new(
    example: Example, tmp_path: Path
) -> None:
    strict, loose = (
        with_steps({4: {"keep": rule}, 5: {"add": {"words": {"kind": "heuristics"}}}}) for rule in ("bytes > 489", "bytes > 483")
    )
    work = tmp_path / "work"

    first = built(example.folder, strict, tmp_path / "a", work)
    loosened = built(example.folder, loose, tmp_path / "b", work)
    again = built(example.folder, strict, tmp_path / "c", work)
    fresh = built(example.folder, strict, tmp_path / "d", tmp_path / "fresh work")
    fresh_loose = built(example.folder, loose, tmp_path / "e", tmp_path / "fresh loose work")

    assert first.digest == again.digest == fresh.digest != loosened.digest == fresh_loose.digest
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "d" / "manifest.json").read_bytes()
    more = sum(row["words"] is not None for row in pool_of(tmp_path / "b")) - sum(
        row["words"] is not None for row in pool_of(tmp_path / "a")
    )
    assert more > 0
    assert (loosened.computed["words"], loosened.remembered["words"]) == (more, first.computed["words"])
    assert again.computed == {"copy_of": 0, "duplicate_of": 0, "words": 0}
    assert pool_of(tmp_path / "a") == pool_of(tmp_path / "c")


def test_models_are_remembered_and_not_trained_for_a_changed_rule(example: Example, tmp_path: Path) -> None:
    values = {**recipe(), "steps": [*recipe()["steps"], *MODELS]}
    changed = {**values, "steps": [*values["steps"][:-1], {"keep": "perplexity > 1.5 AND like_code IS NOT NULL"}]}

    first = built(example.folder, values, tmp_path / "a", tmp_path / "work")
    second = built(example.folder, changed, tmp_path / "b", tmp_path / "work")
    elsewhere = built(example.folder, values, tmp_path / "c", tmp_path / "other work")

    assert second.computed == dict.fromkeys(first.computed, 0)
    assert len(list((tmp_path / "work" / "models").iterdir())) == 2
    header, other = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert header["models"] == other["models"]
    assert {name: model["kind"] for name, model in header["models"].items()} == {"like_code": "fasttext", "perplexity": "ngram"}
    assert elsewhere.digest == first.digest


# --- decide again for free


def test_an_unchanged_build_answers_unchanged_and_touches_nothing(example: Example) -> None:
    before = {path: path.stat().st_mtime_ns for path in (example.folder / "out").rglob("*")}

    again = built(example.folder, recipe(), example.folder / "out")

    assert (again.unchanged, again.digest, again.computed) == (True, example.made.digest, {})
    assert {path: path.stat().st_mtime_ns for path in (example.folder / "out").rglob("*")} == before


def test_the_same_manifest_built_into_another_folder_recomputes_no_signal(example: Example, tmp_path: Path) -> None:
    made = built(example.folder, recipe(), tmp_path / "again")

    assert made.digest == example.made.digest
    assert made.computed == {"copy_of": 0, "duplicate_of": 0, "words": 0}
    assert made.remembered == example.made.computed


def test_one_changed_input_file_recomputes_only_its_documents(example: Example, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(example.folder, folder, ignore=shutil.ignore_patterns("out*"))
    write_records(folder / "code" / "more.parquet", [{"id": f"new {n}", "text": text_of(90_000 + n), "score": n} for n in range(7)])

    made = built(folder, recipe(), tmp_path / "out", folder / ".tilth")

    assert made.computed["words"] == sum(
        row["words"] is not None for row in pool_of(tmp_path / "out") if (row["key"] or "").startswith("new")
    )
    assert made.digest == built(folder, recipe(), tmp_path / "fresh", tmp_path / "fresh work").digest


# --- the output folder


def test_another_manifest_in_the_output_folder_is_refused_before_reading_unless_replaced(example: Example, tmp_path: Path) -> None:
    target = tmp_path / "out"
    first = built(example.folder, recipe(), target)
    other = recipe(seed=18)

    with pytest.raises(UserError) as caught:
        built(example.folder, other, target, tmp_path / "work")

    new = built(example.folder, other, tmp_path / "elsewhere").digest
    assert first.digest in str(caught.value)
    assert "curate diff" in str(caught.value)
    assert not (tmp_path / "work" / "shards").exists()
    assert digest_of(target) == first.digest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    assert built(example.folder, other, target, replace=True).digest == new == digest_of(target)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_output_that_is_no_manifest_is_refused_before_reading(example: Example, tmp_path: Path, what: str) -> None:
    target = tmp_path / "out"
    if what == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "precious").write_text("precious")

    with pytest.raises(UserError, match="is not a manifest"):
        built(example.folder, recipe(), target, tmp_path / "work")

    assert not (tmp_path / "work" / "shards").exists()
    assert (target if what == "file" else target / "precious").read_text() == "precious"


def test_a_damaged_manifest_in_the_output_folder_is_not_called_unchanged(example: Example, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shutil.copytree(example.folder / "out", target)
    (target / "pool" / "00000.parquet").write_bytes(b"short")

    with pytest.raises(UserError, match=r"5 bytes, files.json says .*pass --replace"):
        built(example.folder, recipe(), target)
    assert built(example.folder, recipe(), target, replace=True).digest == example.made.digest
    assert digest_of(target) == example.made.digest


# --- refusals


def components(**predicates: str) -> dict[str, Any]:
    mixture = recipe()["mixture"]
    weights = dict.fromkeys(predicates, 1)
    return {**mixture, "components": predicates, "max_epochs": 3, "stages": [{"name": "adapt", "tokens": 3000, "weights": weights}]}


def test_overlapping_components_are_refused_with_an_example_unless_the_first_match_counts(example: Example, tmp_path: Path) -> None:
    mixture = components(most="source != 'code'", web="source = 'web'")

    with pytest.raises(UserError) as caught:
        built(example.folder, recipe(mixture=mixture), tmp_path / "out")
    assert "pages.jsonl.zst#" in str(caught.value)
    assert "'most' and in 'web'" in str(caught.value)
    assert "first_match" in str(caught.value)

    turned = components(web="source = 'web'", most="source != 'code'")
    made = built(example.folder, recipe(mixture={**turned, "first_match": True}), tmp_path / "first")
    header = json.loads((made.folder / "manifest.json").read_text())
    rows = pool_of(made.folder)
    kept = Counter(row["source"] for row in rows if row["decision"] == "kept")
    assert header["components"]["web"]["documents"] == kept["web"]
    assert header["components"]["most"]["documents"] == kept["prose"]
    assert header["sources"]["code"]["unassigned"] == kept["code"]


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_written(example: Example, tmp_path: Path) -> None:
    mixture = recipe()["mixture"]
    mixture = {**mixture, "stages": [{**mixture["stages"][0], "tokens": "5M"}]}

    with pytest.raises(UserError) as caught:
        built(example.folder, recipe(mixture=mixture), tmp_path / "out")

    message = str(caught.value)
    for part in ("domain", "2,000,000", "3"):
        assert part in message or part.replace(",", "") in message
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []


# --- values that break things


def test_values_without_a_json_form_are_evidence_all_the_same(tmp_path: Path) -> None:
    scores = [float("inf"), float("-inf"), float("nan"), 1.0, 2.0, None]
    numbers = [2**60, 2**53, 2**53 + 1, -(2**60), 5, None]
    records = [{"text": text_of(n), "score": scores[n % 6], "number": numbers[n % 6]} for n in range(60)]
    write_records(tmp_path / "a.parquet", records)
    values = recipe(
        sources={"a": {"files": "a.parquet", "columns": ["score", "number"]}},
        steps=[{"keep": "number < 100 OR number = 9007199254740992"}, {"keep": "score > -5"}, {"keep": "1 = 1"}],
        holdout=None,
        mixture={
            "sequence_length": 64,
            "components": {"all": "source = 'a'"},
            "stages": [{"name": "s", "tokens": 500, "weights": {"all": 1}}],
        },
    )

    built(tmp_path, values, tmp_path / "out")

    rows = pool_of(tmp_path / "out")
    found = Counter((row["reason"], row["evidence"]) for row in rows)
    first = "number < 100 OR number = 9007199254740992"
    assert found == {
        (first, '{"value":"1152921504606846976"}'): 10,
        (first, '{"value":"9007199254740993"}'): 10,
        (f"{first} (no value)", '{"value":null}'): 10,
        ("score > -5", '{"value":"-inf"}'): 10,
        (None, None): 20,
    }
    assert [finding for finding in verify(tmp_path / "out") if finding.verdict == "FAIL"] == []


def test_a_rule_of_a_duplicate_and_more_still_names_the_survivor(tmp_path: Path) -> None:
    texts = [text_of(number) for number in range(30)]
    records = [{"text": text, "n": number} for number, text in enumerate([*texts, *(near_copy(text, 1) for text in texts[:10])])]
    write_records(tmp_path / "a.jsonl", records)
    mixture = {
        "sequence_length": 64,
        "components": {"all": "source = 'a'"},
        "stages": [{"name": "s", "tokens": 500, "weights": {"all": 1}}],
    }
    rule = "twin IS NULL OR n > 35"
    steps = [{"add": {"twin": {"kind": "minhash"}}}, {"keep": rule}, {"keep": "twin IS NOT NULL OR n < 25"}]

    built(
        tmp_path,
        recipe(sources={"a": {"files": "a.jsonl", "columns": ["n"]}}, steps=steps, holdout=None, mixture=mixture),
        tmp_path / "out",
    )

    rows = pool_of(tmp_path / "out")
    assert [row["reason"] for row in rows[30:]] == [rule] * 6 + [None] * 4
    for row in rows[30:36]:
        similarity = jaccard(records[row["row"]]["text"], records[row["row"] - 30]["text"])
        assert json.loads(row["evidence"]) == {
            "survivor": rows[row["row"] - 30]["origin"],
            "row": row["row"] - 30,
            "similarity": similarity,
        }
    assert {row["evidence"] for row in rows[25:30]} == {f'{{"value":{{"n":{n},"twin":null}}}}' for n in range(25, 30)}


def test_values_that_became_null_are_told(tmp_path: Path) -> None:
    records = [{"text": text_of(number), "score": number if number < 1000 else "none"} for number in range(1002)]
    write_records(tmp_path / "a.jsonl", records)
    mixture = {"sequence_length": 64, "components": {"all": "TRUE"}, "stages": [{"name": "all", "tokens": 1000, "weights": {"all": 1}}]}
    values = recipe(sources={"a": {"files": "a.jsonl", "columns": ["score"]}}, steps=[], holdout=None, mixture=mixture)

    made = built(tmp_path, values, tmp_path / "out")

    assert made.warnings == [
        "sources.a: 2 values of the column 'score' are not of its type, int64, and null here; a column has the type of its first records"
    ]


def test_the_same_file_in_two_sources_is_read_decided_and_counted_in_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_records(tmp_path / name / "x.jsonl", [{"text": text_of(number)} for number in range(40)])
    mixture = {"sequence_length": 64, "components": {"a": "source = 'a'"}, "stages": [{"name": "s", "tokens": 500, "weights": {"a": 1}}]}
    steps = [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}]

    built(tmp_path, recipe(sources={n: {"files": f"{n}/x.jsonl"} for n in "ab"}, steps=steps, mixture=mixture), tmp_path / "out")

    rows = pool_of(tmp_path / "out")
    assert Counter((row["source"], row["decision"]) for row in rows) == {("a", "kept"): 37, ("a", "held_out"): 3, ("b", "dropped"): 40}
    for row in rows[40:]:
        assert json.loads(row["evidence"])["row"] == row["row"] - 40
        assert row["content"] == xxhash.xxh3_128_hexdigest(text_of(row["row"] - 40).encode())
    assert [finding for finding in verify(tmp_path / "out") if finding.verdict == "FAIL"] == []
