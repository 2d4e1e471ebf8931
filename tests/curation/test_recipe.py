"""Recipes: what is refused, with which words, and that the resolved form says everything and nothing of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes import recipe, text_of, write_recipe, write_records

from curation.engine.local import Engine, Run
from curation.engine.work_directory import Digests, Work
from curation.recipe import Recipe, Resolved, load, resolve_recipe
from mixing import UserError
from mixing.canonical import canonical_json

SOURCES = {
    "prose": {"files": "prose.jsonl", "key": "id", "columns": ["score"]},
    "code": {"files": "code.parquet", "columns": ["score"], "licence": "MIT"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("recipes")
    for number, name in enumerate(("prose.jsonl", "code.parquet")):
        write_records(made / name, [{"id": n, "text": text_of(100 * number + n, 12), "score": n, "name": f"n{n}"} for n in range(20)])
    write_records(made / "bare.parquet", [{"body": "x"}])
    (made / "broken.parquet").write_bytes(b"PAR1")
    return made


def plain(**changes: Any) -> dict[str, Any]:
    return recipe(**{"sources": SOURCES, "steps": [], "mixture": {**recipe()["mixture"], "components": {"domain": "source = 'code'", "replay": "source = 'prose'"}}, **changes})  # fmt: skip


def resolved(folder: Path, values: dict[str, Any], *overrides: str) -> Resolved:
    loaded = load(write_recipe(folder, values), overrides)
    run = Run(folder / "work", 1)
    with Engine(1) as engine:
        return resolve_recipe(loaded, folder, run, Digests(Work(run.work)), engine)


def step(**values: Any) -> dict[str, Any]:
    return {"steps": [{"add": {"words": {"kind": "heuristics"}}}, values]}


def mixture(**changes: Any) -> dict[str, Any]:
    return {"mixture": {**plain()["mixture"], **changes}}


STAGE = {"name": "adapt", "tokens": 9000, "weights": {"domain": 1}}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sedd": 3}, ["sedd: unknown key 'sedd', perhaps 'seed'; accepted here:", "seed"]),
        ({"seed": -1}, ["seed: found -1"]),
        ({"name": "a/b"}, ["name: found 'a/b'"]),
        ({"sources": {}}, ["sources"]),
        ({"sources": {"a": {"flies": "x"}}}, ["sources.a.flies: unknown key 'flies', perhaps 'files'; accepted here: columns, files, key, licence"]),
        ({"sources": {"a": {"files": 5}}}, ["sources.a.files: found 5; input should be a valid string or a valid list"]),
        ({"sources": {"a": {"files": ["x", 5]}}}, ["sources.a.files[1]: found 5; input should be a valid string"]),
        ({"sources": {"a": {"synthesize": {"from": "true", "template": "t", "model": "m", "backend": {"kind": "vllm", "in_fligth": 2}}}}}, ["sources.a.synthesize.backend.in_fligth: unknown key 'in_fligth', perhaps 'in_flight'"]),
        ({"sources": {"a": {"files": "nothing*.jsonl"}}}, ["sources.a.files: no file matches 'nothing*.jsonl'"]),
        ({"sources": {"a": {"files": "bare.parquet"}}}, ["sources.a: no column 'text' in bare.parquet; it has: body"]),
        ({"sources": {"a": {"files": "prose.jsonl", "columns": ["text"]}}}, ["sources.a.columns: 'text' cannot be carried"]),
        ({"sources": {"a": {"files": "prose.jsonl", "columns": ["document"]}}}, ["sources.a.columns: 'document' cannot be carried"]),
        ({"sources": {"a": {"files": "prose.jsonl", "columns": ["row"]}}}, ["sources.a.columns: 'row' cannot be carried"]),
        ({"sources": {"a": {"files": "prose.jsonl", "columns": ["a b"]}}}, ["sources.a.columns: 'a b' cannot be carried"]),
        ({"sources": {"a": {"files": "prose.jsonl", "columns": ["name"]}, "b": {"files": "prose.jsonl", "columns": ["name"], "max_quarantine": 2}}}, ["sources.b.max_quarantine: found 2"]),
        ({"clean": ["nfd"]}, ["clean[0]: found 'nfd'"]),
        ({"steps": [{}]}, ["steps[0]: a step is one of add, keep, top; found none of them"]),
        ({"steps": [{"keep": "1 = 1", "top": {"by": "bytes", "order": "ascending", "share": 1}}]}, ["steps[0]: a step is one of add, keep, top; found keep and top"]),
        ({"steps": [{"kepe": "1 = 1"}]}, ["steps[0].kepe: unknown key 'kepe', perhaps 'keep'; accepted here: add, keep, top"]),
        ({"steps": [{"add": {"q": {"kind": "fastext"}}}]}, ["steps[0].add.q.kind: found 'fastext'; accepted: causal_lm, contamination, exact, fasttext, heuristics, importance, language, listed, minhash, ngram, privacy, repeated_paragraphs, repeated_spans, topic"]),
        ({"steps": [{"add": {"q": {"kind": "minhash", "threshhold": 0.8}}}]}, ["steps[0].add.q.threshhold: unknown key", "threshold"]),
        ({"steps": [{"add": {"q": {"kind": "minhash", "threshold": 1.5}}}]}, ["steps[0].add.q.threshold: found 1.5"]),
        ({"steps": [{"add": {"q": {"kind": "exact", "by": "words"}}}]}, ["steps[0].add.q.by: found 'words'", "normalized"]),
        ({"steps": [{"add": {"q": {"kind": "minhash", "order": "ascending"}}}]}, ["steps[0].add.q: order says nothing without priority"]),
        ({"steps": [{"add": {"q": {"kind": "minhash", "priority": "quality"}}}]}, ["steps[0].add.q.priority: ", "'quality', which is no column here"]),
        ({"steps": [{"add": {"q": {"kind": "exact", "priority": "q"}}}]}, ["steps[0].add.q.priority: ", "'q', which is no column here"]),
        ({"steps": [{"add": {"q": {"kind": "exact", "priority": "w.words"}}}, {"add": {"w": {"kind": "heuristics"}}}]}, ["steps[0].add.q.priority: ", "'w', which is no column"]),
        (step(add={"q": {"kind": "exact", "priority": "words"}}), ["steps[1].add.q.priority: 'words' is struct", "accepted: a number"]),
        (step(add={"q": {"kind": "exact", "priority": "score + 1"}}), ["steps[1].add.q.priority: found 'score + 1'; accepted: the name of"]),
        ({"steps": [{"add": {"q": {"kind": "heuristics"}, "r": {"kind": "heuristics"}}}]}, ["steps[0].add: one signal a step; found q, r"]),
        ({"steps": [{"add": {"Q-1": {"kind": "heuristics"}}}]}, ["steps[0].add", "Q-1", "accepted: a name of small letters, digits and _"]),
        ({"name": "medical.v1"}, ["name: found 'medical.v1'; accepted: a name of letters, digits, _ and -"]),
        ({"steps": [{"add": {"bytes": {"kind": "heuristics"}}}]}, ["steps[0].add: 'bytes' is taken"]),
        ({"steps": [{"add": {"score": {"kind": "heuristics"}}}]}, ["steps[0].add: 'score' is taken"]),
        ({"steps": [{"add": {"raw": {"kind": "heuristics"}}}]}, ["steps[0].add: 'raw' is taken"]),
        ({"steps": [{"add": {"w": {"kind": "heuristics"}}}] * 2}, ["steps[1].add: 'w' is taken"]),
        ({"steps": [{"keep": "words.words > 3"}, {"add": {"words": {"kind": "heuristics"}}}]}, ["steps[0].keep: ", "'words', which is no column here"]),
        ({"steps": [{"add": {"q": {"kind": "ngram", "reference": "nowhere*.jsonl"}}}]}, ["steps[0].add.q.reference: no file matches"]),
        ({"steps": [{"add": {"q": {"kind": "ngram", "reference": "bare.parquet"}}}]}, ["steps[0].add.q.reference: no column 'text' in bare.parquet"]),
        ({"steps": [{"add": {"q": {"kind": "ngram", "reference": "broken.parquet"}}}]}, ["steps[0].add.q.reference: broken.parquet cannot be read as Parquet"]),
        ({"steps": [{"add": {"q": {"kind": "ngram", "reference": {"sample": "wiki"}}}}]}, ["steps[0].add.q.reference: no source 'wiki'; the recipe has: prose, code"]),
        (step(keep="words.wrods > 3"), ["steps[1].keep: ", "wrods"]),
        (step(keep="scoer > 3"), ["steps[1].keep: ", "did you mean 'score'?"]),
        (step(keep="AVG(score) > 3"), ["steps[1].keep: ", "an aggregate"]),
        (step(top={"by": "score", "order": "ascending"}), ["steps[1].top: give exactly one of tokens, documents, share"]),
        (step(top={"by": "score", "order": "ascending", "tokens": 5, "share": 0.1}), ["steps[1].top: give exactly one of"]),
        (step(top={"by": "score", "order": "up", "share": 0.1}), ["steps[1].top.order: found 'up'"]),
        (step(top={"by": "score", "order": "ascending", "share": 1.5}), ["steps[1].top.share: found 1.5"]),
        (step(top={"by": "score", "order": "ascending", "tokens": "5X"}), ["steps[1].top.tokens", "5X"]),
        (step(top={"by": "words", "order": "ascending", "share": 0.1}), ["steps[1].top.by: 'words' is struct", "accepted: a number"]),
        (step(top={"by": "source", "order": "ascending", "share": 0.1}), ["steps[1].top.by: 'source' is large_string; accepted: a number"]),
        (step(top={"by": "score + 1", "order": "ascending", "share": 0.1}), ["steps[1].top.by: found 'score + 1'; accepted: the name of"]),
        (step(top={"by": "1", "order": "ascending", "share": 0.1}), ["steps[1].top.by: found '1'; accepted: the name of"]),
        (step(top={"by": "score", "order": "ascending", "share": 0.1, "where": "MAX(score) > 1"}), ["steps[1].top.where: ", "an aggregate"]),
        ({"holdout": {"documents": 0}}, ["holdout.documents: found 0"]),
        ({"holdout": {"documents": 5, "similarity": 0}}, ["holdout.similarity: found 0"]),
        (mixture(components={"a b": "1 = 1"}), ["mixture.components"]),
        (mixture(components={"domain": "sorce = 'code'", "replay": "1 = 2"}), ["mixture.components.domain: ", "did you mean 'source'?"]),
        (mixture(stages=[{**STAGE, "weights": {"domian": 1}}]), ["mixture.stages[0].weights: no component 'domian'; the mixture has: domain, replay"]),
        (mixture(stages=[{**STAGE, "weights": {"domain": -1}}]), ["mixture.stages[0].weights.domain: found -1"]),
        (mixture(stages=[{**STAGE, "tokens": "lots"}]), ["mixture.stages[0].tokens: 'lots' is not a number of tokens; write 20000, 1e9, 300M or 5B"]),
        (mixture(stages=[STAGE, STAGE]), ["mixture.stages[1].name: 'adapt' names an earlier stage"]),
        (mixture(max_epochs={"domian": 2}), ["mixture.max_epochs: no component 'domian'"]),
        ({"tokenizer": {"path": "no/such/folder"}}, ["tokenizer"]),
        ({"tokenizer": {"path": "tokenizer", "eos": "<|none|>"}}, ["tokenizer.eos", "<|none|>"]),
        ({"sources": {"qa": {"synthesize": {"from": "TRUE", "template": "qa", "model": "m", "backend": {"kind": "vllm", "tensor_paralel": 2}}}}}, ["perhaps 'tensor_parallel'; accepted here: context, dtype, eager, in_flight, kind, tensor_parallel"]),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_meant_is_refused_in_one_line_that_names_the_place(
    folder: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        resolved(folder, plain(**changes))

    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "work" / "shards").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: a\nname: b\n", "line 2: 'name' is written twice"),
        ("sources:\n  a: {files: x}\n  a: {files: y}\n", "line 3: 'a' is written twice"),
        ("a: [1\n", "not YAML"),
        ("- a\n- b\n", "a recipe is a mapping of keys; found list"),
        ("", "a recipe is a mapping of keys; found NoneType"),
        ("a: &x [*x]\n", ""),
        ("{a: 1}: 2\n", "a key is a word"),
        ("[1]: 2\n", "a key is a word"),
        ("1: 2\n", ""),
        ("a: !!python/object:os.system x\n", "not YAML"),
        ("\ta: 1\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "r.yaml").write_text(text)

    with pytest.raises(UserError) as caught:
        load(tmp_path / "r.yaml")

    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\n")
    for path in (tmp_path / "r.yaml", tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            load(path)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed", "is no override"),
        ("seed=[1", "not YAML"),
        ("mixture.stages.1.tokens=5", "the recipe has no 'mixture.stages.1'"),
        ("mixture.stages.x.tokens=5", "the recipe has no 'mixture.stages.x'"),
        ("steps.0=5", "has 0 entries"),
        ("seed.deeper=5", "the recipe has no 'seed'"),
        ("sed=5", "unknown key 'sed'"),
        ("=5", "unknown key"),
        ("mixture.fill=2", "mixture.fill: found 2"),
        ("holdout={documents: 1, documents: 2}", "written twice"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(folder: Path, override: str, part: str) -> None:
    path = write_recipe(folder, plain())

    with pytest.raises(UserError) as caught:
        load(path, [override])

    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_set_leaves_and_only_those(folder: Path) -> None:
    path = write_recipe(folder, plain())

    changed = load(path, ["seed=5", "mixture.stages.0.tokens=2M", "sources.code.licence=null", "mixture.max_epochs={domain: 2.5}", "holdout.similarity=0.9"])  # fmt: skip

    expected = plain(seed=5, holdout={"documents": 3, "similarity": 0.9})
    expected["mixture"] = {
        **expected["mixture"],
        "max_epochs": {"domain": 2.5},
        "stages": [{**expected["mixture"]["stages"][0], "tokens": 2_000_000}],
    }
    expected["sources"] = {**expected["sources"], "code": {**expected["sources"]["code"], "licence": None}}
    assert changed == Recipe.model_validate(expected)
    assert load(path) != changed


def test_resolved_values_are_json_with_arrays_for_what_has_an_order_and_every_default(folder: Path) -> None:
    steps = [
        {"add": {"words": {"kind": "heuristics", "set": "gopher"}}},
        {"add": {"like": {"kind": "fasttext", "train": {"positive": "prose.jsonl", "negative": {"sample": "code"}}}}},
        {"keep": "words.words > 3"},
        {"top": {"by": "score", "order": "ascending", "tokens": "5K"}},
    ]

    values = json.loads(canonical_json(resolved(folder, plain(steps=steps, holdout=None)).values))

    assert [source["name"] for source in values["sources"]] == ["prose", "code"]
    assert values["sources"][0]["columns"] == [{"name": "score", "type": "int64"}]
    assert [component["name"] for component in values["mixture"]["components"]] == ["domain", "replay"]
    assert values["steps"][0]["add"] == {"name": "words", "kind": "heuristics", "set": "gopher"}
    trained = values["steps"][1]["add"]["train"]
    assert set(trained["positive"]) == {"root", "pattern", "digest"}
    assert trained["negative"] == {"sample": "code", "documents": 5000}
    assert values["steps"][3]["top"] == {"by": "score", "order": "ascending", "tokens": 5000}
    assert values["holdout"] is None
    assert str(folder) not in canonical_json(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 18},
        {"version": 2},
        {"clean": ["nfc"]},
        {"sources": dict(reversed(SOURCES.items()))},
        {"steps": [{"keep": "1 = 1"}]},
        {"holdout": {"documents": 4}},
        {"tokenizer": {"path": "tokenizer", "eos": False}},
        mixture(fill=0.5),
        mixture(components={"replay": "source = 'prose'", "domain": "source = 'code'"}),
    ],
)
def test_whatever_decides_the_result_is_in_the_key_of_a_build(folder: Path, changes: dict[str, Any]) -> None:
    assert resolved(folder, plain(**changes)).key != resolved(folder, plain()).key


def test_changed_bytes_of_an_input_change_the_key_of_a_build(folder: Path, tmp_path: Path) -> None:
    for name in ("prose.jsonl", "code.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    before = resolved(tmp_path, plain()).key
    assert before == resolved(folder, plain()).key
    (tmp_path / "prose.jsonl").write_bytes((folder / "prose.jsonl").read_bytes() + b"\n")

    assert resolved(tmp_path, plain()).key != before


def test_a_tokenizer_below_a_named_root_is_that_of_the_same_file_beside_the_recipe(folder: Path) -> None:
    beside = resolved(folder, plain(tokenizer={"path": "tokenizer"}))
    loaded = load(write_recipe(folder, plain(tokenizer={"path": "models:tokenizer"})))
    run = Run(folder / "work", 1, {"models": str(folder)})
    with Engine(1) as engine:
        below = resolve_recipe(loaded, folder, run, Digests(Work(run.work)), engine)
        with pytest.raises(UserError, match=r"tokenizer.path: no root named 'models' \(given: none\)"):
            resolve_recipe(loaded, folder, Run(folder / "work", 1), Digests(Work(run.work)), engine)

    assert below.values == beside.values


def test_a_carried_column_of_two_types_is_refused(folder: Path) -> None:
    for name, score in (("whole", 1), ("text", "1")):
        write_records(folder / f"{name}.jsonl", [{"text": "x", "score": score}])
    sources = {name: {"files": f"{name}.jsonl", "columns": ["score"]} for name in ("whole", "text")}
    components = {"domain": "source = 'whole'", "replay": "source = 'text'"}

    with pytest.raises(UserError, match=r"sources\.text\.columns: 'score' is string here and int64 in an earlier source"):
        resolved(folder, plain(sources=sources, mixture={**plain()["mixture"], "components": components}))
