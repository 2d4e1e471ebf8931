"""`curate remix` as a person meets it: a built manifest, a file with a mixture, the predicates over the pool."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from recipes import built, pool_of, recipe, said, write_corpus

from curation.cli import main
from mixing.canonical import canonical_json
from mixing.manifest import NO_COMPONENT, Manifest

STAGES = [
    {"name": "adapt", "tokens": 9000, "weights": {"domain": 0.4, "replay": 0.6}, "rounds": 3, "draw": "fresh"},
    {"name": "enhance", "tokens": 3000, "weights": {"domain": 0.6, "replay": 0.4}},
]
MIXTURE = {**recipe()["mixture"], "stages": STAGES}


def curate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and the manifest `out` made of it; the work directory and the corpus are gone."""
    made = tmp_path_factory.mktemp("remix")
    write_corpus(made, 30)
    built(made, recipe(mixture=MIXTURE), made / "out")
    shutil.rmtree(made / ".tilth")
    for source in ("prose", "web", "code"):
        shutil.rmtree(made / source)
    return made


def write(path: Path, **values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


def planned(folder: Path, first: int = 0, last: int | None = None) -> Counter[tuple[int, int, int]]:
    """(pool row, visit, place) of every planned token of some sequences."""
    manifest = Manifest.open(folder)
    spans = manifest.spans(first, manifest.sequences if last is None else last)
    counted: Counter[tuple[int, int, int]] = Counter()
    for file, row, start, length, epoch in zip(*(column.tolist() for column in spans[1:]), strict=True):
        pool_row = int(manifest.token_file(file).pool_row[row])
        counted.update((pool_row, epoch, place) for place in range(start, start + length))
    return counted


def test_remix_with_the_recipes_mixture_mid_run_leaves_what_was_not_trained(folder: Path, tmp_path: Path) -> None:
    mixture = write(tmp_path / "mixture.yaml", mixture=MIXTURE)

    result = curate("remix", folder / "out", mixture, "-o", tmp_path / "rest", "--consumed", "41")

    assert (result.exit_code, said(result.stderr)) == (0, "")
    assert planned(folder / "out", 0, 41) + planned(tmp_path / "rest") == planned(folder / "out")
    digest = Manifest.open(folder / "out").digest
    assert f"a remix of {digest[:16]}, after 41 of its sequences" in curate("inspect", tmp_path / "rest").stdout
    assert json.loads(curate("inspect", tmp_path / "rest", "--json").stdout)["parent"] == {"digest": digest, "consumed_sequences": 41}
    assert curate("verify", tmp_path / "rest").exit_code == 0


def test_remix_predicates_are_decided_by_the_pools_own_columns(folder: Path, tmp_path: Path) -> None:
    components = {"good": "score >= 20 AND words.words > 10", "rest": "source = 'prose'"}
    stages = [{"name": "only", "tokens": 4000, "weights": {"good": 0.5, "rest": 0.5}}]
    changed = {**MIXTURE, "components": components, "first_match": True, "max_epochs": 1, "stages": stages}
    mixture = write(tmp_path / "mixture.yaml", mixture=changed, name="other", version=7, seed=5)

    result = curate("remix", folder / "out", mixture, "-o", tmp_path / "out")

    assert result.exit_code == 0, result.stderr
    made, pool = Manifest.open(tmp_path / "out"), pool_of(folder / "out")
    assert (made.header["name"], made.header["version"], made.header["seed"]) == ("other", 7, 5)
    assert made.header["recipe"]["seed"] == 17  # which chose the hold-out

    def component(row: int) -> str | None:
        record = pool[row]
        good = record["score"] >= 20 and record["words"]["words"] > 10
        return "good" if good else "rest" if record["source"] == "prose" else None

    for sequence in range(made.sequences):
        name = made.component_names[int(made.components(sequence, sequence + 1)[0])]
        assert {component(row) for row, _, _ in planned(tmp_path / "out", sequence, sequence + 1)} == {name}
    kept = [record["row"] for record in pool if record["decision"] == "kept"]
    for source, counts in made.sources.items():
        assert counts["unassigned"] == sum(pool[row]["source"] == source and component(row) is None for row in kept)
    for held in made.holdout().values():
        found = [made.component_names[one] if one != NO_COMPONENT else None for one in held.component]
        assert found == [component(row) for row in held.pool_row.tolist()]
    assert curate("verify", tmp_path / "out").exit_code == 0


def test_remix_takes_the_same_files_and_diff_says_what_changed(folder: Path, tmp_path: Path) -> None:
    stages = [{"name": "adapt", "tokens": 2000, "weights": {"domain": 0.5, "replay": 0.5}}]
    mixture = write(tmp_path / "mixture.yaml", mixture={**MIXTURE, "stages": stages})

    assert curate("remix", folder / "out", mixture, "-o", tmp_path / "out").exit_code == 0

    for part in ("tokens/00000.arrow", "pool/00000.parquet", "tokenizer/tokenizer.json"):
        assert os.path.samefile(folder / "out" / part, tmp_path / "out" / part)
    said = curate("diff", folder / "out", tmp_path / "out").stdout
    before, after = ({row for row, _, _ in planned(path)} for path in (folder / "out", tmp_path / "out"))
    assert f"documents planned: {len(before):,} in a, {len(after):,} in b, {len(before - after):,} lost, 0 gained" in said
    assert "parent: null -> " in said


def test_why_on_a_remix_says_what_was_read_before_and_what_is_planned(folder: Path, tmp_path: Path) -> None:
    mixture = write(tmp_path / "mixture.yaml", mixture=MIXTURE)
    curate("remix", folder / "out", mixture, "-o", tmp_path / "out", "--consumed", "41")
    trained, left = planned(folder / "out", 0, 41), planned(tmp_path / "out")
    lengths = {record["row"]: record["n_tokens"] for record in pool_of(folder / "out")}
    ends = {row: place + 1 for row, _, place in trained}  # in the order of the run
    gone = {row for row, _, _ in trained} - {row for row, _, _ in left}
    whole, open_end = (min(row for row in gone if (ends[row] < lengths[row]) is partly) for partly in (False, True))
    untouched = min({row for row, _, _ in left} - {row for row, _, _ in trained})

    def visits(row: int) -> str:
        return f"  visits before this plan begins: {len({visit for one, visit, _ in trained if one == row})}"

    assert f"{visits(open_end)}, the last one up to token {ends[open_end]:,}\n" in curate("why", tmp_path / "out", str(open_end)).stdout
    said = curate("why", tmp_path / "out", str(whole)).stdout
    assert f"{visits(whole)}\n" in said
    assert "  not planned\n" in said
    said = curate("why", tmp_path / "out", str(untouched)).stdout
    assert "before this plan" not in said
    assert "planned in stage" in said


def test_manifest_without_provenance_still_answers_why_and_refuses_to_show(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "out", tmp_path / "moved")
    listed = json.loads((tmp_path / "moved/files.json").read_text())
    (tmp_path / "moved/files.json").write_text(json.dumps([entry for entry in listed if entry["path"] != "provenance.json"]))
    (tmp_path / "moved/provenance.json").unlink()

    assert curate("why", tmp_path / "moved", "0").exit_code == 0
    shown = curate("show", tmp_path / "moved")
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "no provenance.json that says where its texts are" in shown.stderr


def test_remix_again_is_the_same_digest_and_left_untouched(folder: Path, tmp_path: Path) -> None:
    mixture = write(tmp_path / "mixture.yaml", mixture=MIXTURE)
    curate("remix", folder / "out", mixture, "-o", tmp_path / "out", "--consumed", "5")
    written = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns

    assert curate("remix", folder / "out", mixture, "-o", tmp_path / "out", "--consumed", "5").exit_code == 0
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == written

    other = curate("remix", folder / "out", mixture, "-o", tmp_path / "out", "--consumed", "6")
    assert other.exit_code == 2
    assert "--replace" in other.stderr
    assert curate("remix", folder / "out", mixture, "-o", tmp_path / "out", "--consumed", "6", "--replace").exit_code == 0


@pytest.mark.parametrize(
    ("values", "arguments", "part"),
    [
        ({"mixture": {**MIXTURE, "stages": [{**STAGES[0], "tokens": "9M"}]}}, [], "a remix plans only what lies in"),
        ({"mixture": {**MIXTURE, "components": {"domain": "qualty > 3", "replay": "TRUE"}}}, [], "names 'qualty', which is no column"),
        ({"mixture": {**MIXTURE, "components": {"domain": "1 = 1", "replay": "source = 'prose'"}}}, [], "set mixture.first_match: true"),
        ({"mixture": {**MIXTURE, "components": {"domain": "decision = 'dropped'", "replay": "TRUE"}}}, [], "names 'decision'"),
        ({"mixture": {**MIXTURE, "stagse": []}}, [], "unknown key 'stagse'"),
        (MIXTURE, [], "unknown key"),
        (recipe(), [], "is a whole recipe; a remix takes its `mixture` alone"),
        ({"mixture": MIXTURE}, ["--consumed", "9999"], "--consumed 9999: "),
        ({"mixture": MIXTURE}, ["--consumed", "-1"], "--consumed"),
    ],
)
def test_remix_user_error_is_one_message_exit_code_2_and_nothing_written(
    folder: Path, tmp_path: Path, values: dict[str, Any], arguments: list[str], part: str
) -> None:
    mixture = write(tmp_path / "mixture.yaml", **values)

    result = curate("remix", folder / "out", mixture, "-o", tmp_path / "out", *arguments)

    assert result.exit_code == 2, (result.exception, result.output)
    assert result.stdout == ""
    assert part in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mixture.yaml"]


# --- every verb that reads a manifest refuses one that is not whole, by name


def future(folder: Path) -> str:
    header = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(canonical_json({**header, "schema_version": 99}))
    return "schema version 99; this Tilth reads up to 1; install a newer one"


def missing_shard(folder: Path) -> str:
    (folder / "tokens/00000.arrow").unlink()
    return "the file tokens/00000.arrow is missing; copy the manifest again or rebuild it"


def cut_file(folder: Path) -> str:
    path = folder / "plan/adapt.spans.arrow"
    path.write_bytes(path.read_bytes()[:-8])
    return "plan/adapt.spans.arrow: "


@pytest.mark.parametrize("damage", [future, missing_shard, cut_file])
@pytest.mark.parametrize("verb", ["inspect", "verify", "diff", "why", "remix", "export"])
def test_manifest_that_is_not_whole_is_refused_by_every_verb_with_the_files_name(
    folder: Path, tmp_path: Path, damage: Any, verb: str
) -> None:
    shutil.copytree(folder / "out", tmp_path / "bad")
    message = damage(tmp_path / "bad")
    write(tmp_path / "mixture.yaml", mixture=MIXTURE)
    more = {
        "diff": [folder / "out"],
        "why": ["0"],
        "remix": [tmp_path / "mixture.yaml", "-o", tmp_path / "out"],
        "export": ["--to", "mds", "-o", tmp_path / "out"],
    }

    result = curate(verb, tmp_path / "bad", *more.get(verb, []))

    assert result.exit_code == (1 if verb == "verify" else 2)
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_remix_of_an_edited_manifest_fails_verify_by_the_files_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "out", tmp_path / "bad")
    path = tmp_path / "bad/tokens/00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # the same size: opening it cannot tell
    path.write_bytes(content)
    mixture = write(tmp_path / "mixture.yaml", mixture=MIXTURE)
    assert curate("remix", tmp_path / "bad", mixture, "-o", tmp_path / "out").exit_code == 0

    result = curate("verify", tmp_path / "out")

    assert result.exit_code == 1
    assert "FAIL    files.json agrees with the bytes  1: tokens/00000.arrow" in result.stdout


def test_remix_ordered_by_what_the_pool_knows_and_weighed_by_what_training_measured(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"run": "r", "manifest": "m", "component": name, "metric": "loss", "group": "target", "tokens": int(100 * epochs), "epochs": epochs,
         "learning_rate": 1e-3, "seed": 1, "value": value, "commit": None}
        for name, best in (("domain", 2.0), ("replay", 6.0))
        for epochs, value in ((1.0, 3.0), (best, 1.0), (9.0, 2.0))
    ]  # fmt: skip
    (tmp_path / "measured.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = {"strategy": "optimal_durations", "measurements": "measured.jsonl", "metric": "loss"}
    stage = {"name": "adapt", "tokens": 4000, "weights": weights, "order": {"by": "words.mean_length", "components": ["replay"]}}
    mixture = write(tmp_path / "mixture.yaml", mixture={**MIXTURE, "stages": [stage]})

    answer = curate("remix", folder / "out", mixture, "-o", tmp_path / "new")

    assert answer.exit_code == 0, answer.output
    assert curate("verify", tmp_path / "new").exit_code == 0
    manifest = Manifest.open(tmp_path / "new")
    said = manifest.stages[0]["components"]
    assert {name: said[name]["weight"] for name in said} == {"domain": 0.25, "replay": 0.75}
    length = {row["row"]: row["words"]["mean_length"] for row in pool_of(tmp_path / "new") if row["decision"] == "kept"}
    spans = manifest.spans(0, manifest.sequences)
    component = np.repeat(manifest.components(0, manifest.sequences), np.diff(spans.sequence))
    replay = component == manifest.component_names.index("replay")
    rows = [int(manifest.token_file(file).pool_row[row]) for file, row in zip(spans.file[replay], spans.token_row[replay], strict=True)]
    quarter = len(rows) // 4
    assert sum(length[row] for row in rows[:quarter]) < sum(length[row] for row in rows[-quarter:])


@pytest.mark.parametrize(
    ("order", "message"),
    [({"by": "source"}, "accepted: a number"), ({"by": "nowhere"}, "nowhere")],
)
def test_remix_ordered_by_what_is_no_number_is_refused(folder: Path, tmp_path: Path, order: dict[str, str], message: str) -> None:
    stage = {"name": "adapt", "tokens": 4000, "weights": {"domain": 1}, "order": order}

    answer = curate("remix", folder / "out", write(tmp_path / "m.yaml", mixture={**MIXTURE, "stages": [stage]}), "-o", tmp_path / "new")

    assert answer.exit_code == 2
    assert message in answer.output
    assert not (tmp_path / "new").exists()


def test_remix_mid_run_keeps_to_simulate_redistribute_and_bounds(folder: Path, tmp_path: Path) -> None:
    """What budgets may say holds for a run that goes on: the contract is verified, and nothing trained is planned again."""
    stages = [
        {"name": "adapt", "tokens": 9000, "weights": {"domain": 0.4, "replay": 0.6}, "rounds": 3, "draw": "fresh"},
        {"name": "more", "tokens": 2000, "weights": {"domain": 0.9, "replay": 0.1}, "max_share": {"domain": 0.6}},
    ]
    for number, extra in enumerate(({}, {"on_shortage": "redistribute"}, {"simulate": 12_000})):
        mixture = write(tmp_path / f"{number}.yaml", mixture={**MIXTURE, "stages": stages, "max_epochs": 6, **extra})
        answer = curate("remix", folder / "out", mixture, "-o", tmp_path / f"{number}", "--consumed", "30")
        assert answer.exit_code == 0, answer.output
        verified = curate("verify", tmp_path / f"{number}")
        assert verified.exit_code == 0, verified.output
        assert not planned(folder / "out", 0, 30) & planned(tmp_path / f"{number}")
        assert Manifest.open(tmp_path / f"{number}").stages[-1]["components"]["domain"]["asked_tokens"] == 1200
