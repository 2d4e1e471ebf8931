"""Contamination: planted items, in every disguise that is claimed to be seen through, against n-grams counted in plain Python; and a whole build with its evidence."""

from __future__ import annotations

import csv
import html
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import built, pool_of, recipe, text_of, write_corpus, write_file

from curation.commands.explain import show, why
from curation.signals import SIGNALS
from curation.signals.contamination import ContaminationConfig, ItemColumns, passages
from curation.signals.plain import words_of
from curation.text.words import text_buffers
from mixing import UserError
from mixing.audit import verify
from mixing.manifest import Manifest

SIGNAL = SIGNALS["contamination"]
QUESTION = "A farmer in Norfolk keeps forty two brown hens and sells half of their eggs; how many eggs are left on Sunday?"
SHORT = "Who painted Guernica?"
CHINESE = "下列关于细胞膜结构与功能的叙述中哪一项是正确的"


def array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def config(**changes: Any) -> ContaminationConfig:
    return ContaminationConfig.model_validate({"kind": "contamination", "against": "evals/*.jsonl", **changes})


def trained(folder: Path, items: list[dict[str, Any]], settings: ContaminationConfig | None = None, **samples: list[str]) -> Path:
    """The index of `items`, which are records as a build hands them on: text columns, lists as JSON."""
    folder.mkdir()
    records = [
        {"": f"quiz.jsonl#{number}", **{k: v if isinstance(v, str) else json.dumps(v) for k, v in item.items()}}
        for number, item in enumerate(items)
    ]
    texts = {"against": array([json.dumps(record) for record in records])} | {role: array(found) for role, found in samples.items()}
    SIGNAL.train(settings or config(), texts, folder, 17)
    return folder


def found(model: Path, *texts: str, settings: ContaminationConfig | None = None) -> list[Any]:
    values: list[Any] = SIGNAL.compute(settings or config(), array(list(texts)), model).to_pylist()
    return values


def around(passage: str, seed: int = 1) -> str:
    return f"{text_of(seed)}\n{passage}\n{text_of(seed + 1)}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = [
        {"id": "hens", "question": QUESTION, "choices": ["twenty one", "seven", "none at all"]},
        {"id": "guernica", "question": SHORT, "choices": ["Picasso", "Braque"]},
        {"id": "膜", "question": CHINESE},
    ]
    return trained(tmp_path_factory.mktemp("index") / "model", items)


# --- what two copies may differ in


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        str.upper,
        lambda text: re.sub(r"[^\w\s]", "", text),
        lambda text: text.replace(" ", "\n"),
        lambda text: text.replace(" ", " \u00a0\t "),
        lambda text: html.escape(f"«{text}»"),
        lambda text: f"<p>{text.replace('brown', '<b>brown</b>').replace('hens', 'he<i class=x>ns</i>').replace(';', '<br/>')}</p>",
        lambda text: text.replace("forty", "fo\u00adrty").replace("eggs", "e\u0301ggs").replace("half", "ｈａｌｆ"),
        lambda text: "".join(f"&#{ord(letter)};" for letter in text),
        lambda text: text.replace(" ", " **").replace("eggs", "_eggs_"),
    ],
    ids=["as it is", "case", "punctuation", "lines", "spaces", "entities", "tags", "accents", "references", "markdown"],
)
def test_a_copy_in_disguise_is_found_whole_and_where_it_stands(model: Path, change: Any) -> None:
    copy = change(QUESTION)
    text = around(copy)

    (value,) = found(model, text)

    assert (value["share"], value["benchmark"], value["item"], value["part"]) == (1.0, "quiz", "hens", "question")
    there = text[value["start"] : value["start"] + value["length"]]
    assert copy.index(there) <= len("<p>")
    assert len(there) >= len(copy) - len("<p>;</p>")


def test_chinese_is_found_by_characters_whatever_stands_between(model: Path) -> None:
    text = f"天气很好。{'，'.join(CHINESE)}？😀 end"

    (value,) = found(model, text)

    assert (value["share"], value["item"]) == (1.0, "膜")
    assert text[value["start"] : value["start"] + value["length"]] == "，".join(CHINESE)


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab é中文<>/&;#b=p\n\u0301ﬁ\U0001d400"), max_size=60))
def test_words_stand_where_they_are_said_to_and_do_not_depend_on_their_neighbours(text: str) -> None:
    data, offsets = text_buffers(array(["x y", text, "z"]))
    words, word_offsets = words_of(data, offsets)
    alone, _ = words_of(*text_buffers(array([text])))

    mine = slice(word_offsets[1], word_offsets[2])
    assert words.hashes[mine].tolist() == alone.hashes.tolist()
    assert (words.starts[mine] - 3).tolist() == alone.starts.tolist()
    ends = [0, *alone.ends.tolist()]
    for start, end, before in zip(alone.starts.tolist(), alone.ends.tolist(), ends, strict=False):
        assert before <= start < end
        text.encode()[start:end].decode()  # whole characters


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Hello, <b>wor</b>ld! x<br/>y", "hello world x y"),
        ("caf&eacute; café cafe\u0301 &#233;&#xE9;", "cafe cafe cafe ee"),
        ("a &lt; b & c &amp; d &foo; AT&T;", "a b c d foo at t"),
        ("if a<b and c>d; x <in> y", "if a b and c d x in y"),
        ('<a href="x">li</a>nk <td nowrap> <p class=a>z</p>', "link td nowrap z"),
        ("ofﬁce ﬃ １２ ＡＢ 你好 co\u00adop x²", "office ffi 12 ab 你 好 coop x2"),
        ("<p", "p"),
        ("<p class='" + "x" * 3000 + "'>", "p class " + "x" * 3000),
    ],
)
def test_words_are_read_through_markup_and_spelling(written: str, read: str) -> None:
    (one, _), (other, _) = (words_of(*text_buffers(array([text]))) for text in (written, read))

    assert one.hashes.tolist() == other.hashes.tolist()


# --- the share


def plain_share(item: str, text: str, n: int) -> float:
    """The share of the item's distinct n-grams that stand anywhere in the text."""

    def grams(of: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", of.lower())
        return set(zip(*(words[at:] for at in range(n)), strict=False))

    return len(grams(item) & grams(text)) / len(grams(item))


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([3, 8, 13]))
def test_share_of_an_altered_item_is_the_one_counted_in_plain_python(tmp_path_factory: pytest.TempPathFactory, seed: int, n: int) -> None:
    rng = random.Random(seed)
    items = [text_of(seed + number, 40) for number in range(5)]
    given = config(ngram=n)
    model = trained(tmp_path_factory.mktemp("index") / "model", [{"question": item} for item in items], given)
    altered = [word if rng.random() > 0.08 else "altered" for word in items[2].split()]
    text = around(" ".join(altered), seed + 100)

    (value,) = found(model, text, settings=given)

    expected = plain_share(items[2], text, n)
    assert (value or {"share": 0.0})["share"] == pytest.approx(expected)
    assert value is None or value["item"] == "quiz.jsonl#2"


def test_what_a_long_text_has_of_an_item_in_two_places_is_not_added_up(model: Path) -> None:
    words = QUESTION.split()
    far = f"{' '.join(words[:12])} {text_of(5, 200)} {' '.join(words[9:])}"
    near = f"{' '.join(words[:12])} so to speak {' '.join(words[9:])}"

    apart, together = found(model, far, near)

    assert together["share"] == pytest.approx(11 / 15)  # of 22 words' 15 n-grams 5 before and 6 behind
    assert apart["share"] == pytest.approx(6 / 15)


def test_a_value_depends_on_its_text_alone(model: Path) -> None:
    texts = [text_of(1), around(QUESTION), "", SHORT, around(CHINESE), " \n", QUESTION[:60]]

    assert found(model, *texts) == [found(model, text)[0] for text in texts]


def test_options_that_follow_are_counted(model: Path) -> None:
    asked = f"{QUESTION}\nA. twenty-one\nB. seven\nC. none at all"

    with_all, with_one, before = found(
        model, asked, f"{QUESTION} Seven, of course.", f"Twenty one, seven, none at all. {text_of(3)} {QUESTION}"
    )

    assert [value["options"] for value in (with_all, with_one, before)] == [1.0, pytest.approx(1 / 3), 0.0]
    assert found(model, CHINESE)[0]["options"] is None


# --- short and common items


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (SHORT, True),
        (f"Quiz\n12. {SHORT.upper()}\nA. Picasso", True),
        (f"<li>Question 3: {SHORT}</li>", True),
        (f"They asked who painted Guernica? {text_of(4)}", False),
        (f"{SHORT} {text_of(4)}", False),
    ],
)
def test_item_without_an_n_gram_is_found_as_a_line_of_its_own(tmp_path: Path, text: str, is_found: bool) -> None:
    given = config(shortest=3)
    model = trained(tmp_path / "model", [{"id": "guernica", "question": SHORT}], given)

    (value,) = found(model, text, settings=given)

    assert (value is not None) == is_found
    assert value is None or (value["share"], value["item"]) == (1.0, "guernica")


def test_items_that_nothing_protects_are_listed_by_benchmark(tmp_path: Path) -> None:
    template = "Which one of the following statements about it is true"
    items = [{"task": "many", "question": f"{template} {number}"} for number in range(30)]
    items += [
        {"task": "own", "id": "a", "question": QUESTION},
        {"task": "own", "id": "b", "question": "Why?"},
        {"task": "own", "question": "Why"},
    ]

    model = trained(tmp_path / "model", items, config(ngram=8))

    summary = json.loads((model / "summary.json").read_text())
    assert summary["repeated"] == 1
    assert summary["protected_by"]["own"] == {"ngrams": 1, "line": 0, "nothing": 1}
    assert json.loads((model / "unprotected.jsonl").read_text()) == {
        "benchmark": "own",
        "item": "b",
        "part": "question",
        "words": 1,
        "text": "Why?",
    }
    assert "own 0 and 1" in str(SIGNAL.caveat(model))
    assert found(model, around(f"{template} indeed")) == [None]
    assert found(model, around(f"{template} 7"))[0]["item"] == "quiz.jsonl#7"


def test_n_grams_common_in_a_sample_count_for_no_item(tmp_path: Path) -> None:
    notice = "this page may be copied freely by anyone who asks us"
    item = f"{notice} and {QUESTION}"
    pages = [f"{text_of(number)} {notice}" for number in range(100)]

    with_sample = trained(tmp_path / "a", [{"question": item}], config(), **{"common[0]": pages})
    without = trained(tmp_path / "b", [{"question": item}])

    assert found(without, pages[0])[0]["share"] > 0
    assert found(with_sample, pages[0]) == [None]
    assert found(with_sample, around(item))[0]["share"] == 1.0


# --- benchmarks as they come


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "q", "choices": '["x", "y"]', "id": "7", "task": "arc"}, ("arc", "7", "q", ["x", "y"])),
        ({"question": "q", "choices": '{"text": ["x", "y"], "label": ["A", "B"]}'}, ("sub/quiz", "sub/quiz.jsonl.gz#3", "q", ["x", "y"])),
        ({"question": "q", "options": '{"A": "x", "B": "y"}'}, ("sub/quiz", "sub/quiz.jsonl.gz#3", "q", ["x", "y"])),
        ({"question": "q", "options": '[{"text": "x", "label": "A"}]'}, ("sub/quiz", "sub/quiz.jsonl.gz#3", "q", ["x"])),
        ({"Question": "q", "A": "x", "B": "y", "Answer": "A"}, ("sub/quiz", "sub/quiz.jsonl.gz#3", "q", ["x", "y"])),
        ({"problem": "[a] q"}, ("sub/quiz", "sub/quiz.jsonl.gz#3", "[a] q", [])),
    ],
)
def test_columns_of_benchmarks_are_found_by_their_names(record: dict[str, str], expected: tuple[Any, ...]) -> None:
    (one,) = passages(config(), {"": "sub/quiz.jsonl.gz#3", **record})

    assert (one.benchmark, one.item, one.text, one.options) == expected


def test_parts_are_items_of_their_own(tmp_path: Path) -> None:
    both = config(parts=["question", "context"], columns=ItemColumns(context=["story"]))

    model = trained(tmp_path / "model", [{"question": QUESTION, "story": text_of(50, 80)}], both)

    assert [value["part"] for value in found(model, around(QUESTION), around(text_of(50, 80)))] == ["question", "context"]


# --- a build


def leaky(folder: Path, **signal: Any) -> dict[str, Any]:
    """A corpus in which one document of `web` holds QUESTION in the middle, and the recipe that drops it."""
    write_corpus(folder)
    write_file(
        folder / "web" / "leak.jsonl",
        (json.dumps({"id": "leak", "text": around(f"<p>{QUESTION.upper()}</p>", 900), "score": 1}) + "\n").encode(),
    )
    added = {"kind": "contamination", "against": "evals/*", **signal}
    steps = [{"add": {"contaminated": added}}, {"keep": "contaminated.share IS NULL OR contaminated.share < 0.3"}]
    values = recipe(steps=steps)
    values["sources"]["web"]["files"] = ["web/*.jsonl.zst", "web/*.jsonl"]
    return values


def write_evals(folder: Path) -> None:
    """One item each as JSON Lines, Parquet and CSV."""
    folder.mkdir()
    (folder / "farm.jsonl").write_text(json.dumps({"id": "hens", "question": QUESTION, "choices": ["a", "b"]}) + "\n")
    pq.write_table(pa.table({"problem": [text_of(7000)], "options": [["x", "y"]]}), folder / "sums.parquet")
    with (folder / "quiz.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Question", "A", "B"], ["Why?", "x", "y"]])


def test_a_build_drops_what_holds_an_item_and_says_which(tmp_path: Path) -> None:
    values = leaky(tmp_path)
    write_evals(tmp_path / "evals")

    result = built(tmp_path, values, tmp_path / "out")

    (row,) = [row for row in pool_of(tmp_path / "out") if row["decision"] == "dropped" and row["reason"] != "holdout"]
    evidence = json.loads(row["evidence"])
    assert row["key"] == "leak"
    assert {name: evidence[name] for name in ("benchmark", "item", "share")} == {"benchmark": "farm", "item": "hens", "share": 1.0}
    assert set(evidence) == {"benchmark", "item", "share", "start", "length"}
    manifest = Manifest.open(tmp_path / "out")
    (told,) = why(manifest, "leak", None, None)
    assert "  100% of an item of farm, hens, stands in it from character" in told
    assert f"    here   “{QUESTION.upper()[:40]}" in told
    assert f"    question “{QUESTION}”" in told
    assert '"item":"hens"' in next(iter(show(manifest, "contaminated.share", None, None, 1, None)))
    assert any("of 3 items these have no n-gram" in warning and "quiz 0 and 1" in warning for warning in result.warnings)
    assert all(finding.ok for finding in verify(tmp_path / "out"))


def test_the_digest_does_not_depend_on_workers_and_a_new_threshold_computes_nothing(tmp_path: Path) -> None:
    values = leaky(tmp_path, common=[{"sample": "prose"}])
    write_evals(tmp_path / "evals")
    first = built(tmp_path, values, tmp_path / "one", tmp_path / "work")
    second = built(tmp_path, values, tmp_path / "two", tmp_path / "other", workers=2)
    values["steps"][1]["keep"] = "contaminated.share IS NULL OR contaminated.share < 0.9"

    again = built(tmp_path, values, tmp_path / "three", tmp_path / "work")

    assert first.digest == second.digest
    assert sum(again.computed.values()) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "evals/a.jsonl",
            '{"text": "no question here"}\n',
            r"steps\[0\]\.add\.contaminated\.against: no column 'question' or 'Question' or .* in a\.jsonl",
        ),
        ("evals/a.csv", "one,two\n1,2\n", r"no column 'question' .* in a\.csv; it has: one, two"),
        (
            "evals/a.jsonl",
            '{"question": "is this"}\n{"question": "cut\n',
            r"contamination: a\.jsonl#\d+ cannot be read: .*no entry of it may be lost",
        ),
        (
            "evals/a.jsonl",
            '{"question": "?!"}\n',
            r"contamination: against: no word in the question of its 1 records; name the columns in `columns`",
        ),
    ],
)
def test_benchmarks_that_cannot_be_protected_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    values = leaky(tmp_path)
    write_file(tmp_path / name, content.encode())

    with pytest.raises(UserError, match=message):
        built(tmp_path, values, tmp_path / "out")


def test_importing_the_signal_imports_no_numeric_library() -> None:
    code = "import sys, curation.signals.contamination; print(*sys.modules)"

    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())

    assert {"numba", "numpy", "pyarrow"}.isdisjoint(loaded)
