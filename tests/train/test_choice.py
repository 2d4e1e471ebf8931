from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mixing import UserError
from mixing.manifest import Manifest
from train import model as models
from train import weights
from train.choice import Question, answers, chance, core_average, pieces, questions, tokenizer
from train.config import Evaluate, Task
from train.evaluate import evaluate, prepared
from train.model import World
from train.start import Run

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = [
    {"question": "What grows?", "choices": ["soil", "what is seen"], "answer_idx": 0, "task": "a", "context": None},
    {"question": "What is planned?", "choices": ["something", "the plan", "to grow"], "answer_idx": 1, "task": "a", "context": "It is."},
    {"question": "<|end|> is text", "choices": ["ready", "the ready soil"], "answer_idx": 1, "task": "b", "context": ""},
]


@pytest.fixture
def model(run: Run) -> Any:
    """One with a row for every id of the tokenizer, which has more than the manifest's random documents use."""
    config = run.config.model_copy(update={"model": run.config.model.model_copy(update={"config": {**LLAMA, "vocab_size": 300}})})
    placed = models.place(weights.skeleton(models.architecture(config)), config, run.world)
    weights.draw(placed, 5)
    return placed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_likelihoods_equal_transformers_option_by_option(model: Any, manifest: Manifest, run: Run, file: Path) -> None:
    asked = questions("test", Task(file=str(file)))
    encoder = tokenizer(manifest.folder / "tokenizer/tokenizer.json")

    results = {
        result.metric: result
        for result in evaluate(model, prepared(Evaluate(tasks={"test": Task(file=str(file))}), manifest, run.world), "fp32", run.world)
    }

    model.set_attn_implementation("eager")
    right, normalised, margins = [], [], []
    for question in asked:
        sums = []
        for option in question.options:
            before = encoder.encode(question.prompt, add_special_tokens=False).ids
            ids = torch.tensor(encoder.encode(f"{question.prompt} {option}", add_special_tokens=False).ids)
            with torch.no_grad():
                log_p = F.log_softmax(model(input_ids=ids[None, :-1], use_cache=False).logits[0].double(), 1)
            sums.append(log_p[len(before) - 1 :].gather(1, ids[len(before) :, None]).sum().item())
        share = np.array(sums) / [len(option) for option in question.options]
        right.append(int(np.argmax(sums) == question.answer))
        normalised.append(int(np.argmax(share) == question.answer))
        margins.append(share[question.answer] - max(np.delete(share, question.answer)))
    assert results["accuracy/test"].numerators.tolist() == right
    assert results["accuracy_normalised/test"].numerators.tolist() == normalised
    assert results["margin/test"].numerators == pytest.approx(margins, abs=1e-5)
    assert [margin > 0 for margin in margins] == [bool(one) for one in normalised]


def test_answers_against_hand_values() -> None:
    asked = [Question("", ["ab", "abcd"], 0), Question("", ["x", "y", "z"], 2)]

    given = answers(asked, np.array([3.0, 4.0, 1.0, 1.0, 2.0]))

    assert given.raw.tolist() == [1, 0]
    assert given.normalised.tolist() == [0, 0]  # 1.5 nats a character against 1
    assert given.margin.tolist() == [-0.5, -1.0]
    assert chance(asked) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_core_average_against_hand_value() -> None:
    accuracy, random = {"a": 0.5, "b": 0.4, "c": 0.75}, {"a": 0.25, "b": 0.4, "c": 0.5}

    # reading: (1/3 + 0) / 2 = 1/6; science: 1/2
    assert core_average(accuracy, random, {"reading": ["a", "b"], "science": ["c"]}) == pytest.approx((1 / 6 + 1 / 2) / 2)
    with pytest.raises(UserError, match="core: no accuracy for d"):
        core_average(accuracy, random, {"reading": ["a", "d"]})
    with pytest.raises(ValidationError, match="core has 'd', which is not among tasks: none"):
        Evaluate(core={"reading": ["d"]})


def test_core_average_is_measured_and_may_be_a_guard(model: Any, manifest: Manifest, run: Run, file: Path) -> None:
    tasks = {"two": Task(file=str(file), where={"task": "a"}), "one": Task(file=str(file), where={"task": "b"})}
    settings = Evaluate(tasks=tasks, core={"all": ["two", "one"]}, guards=["core_average"])

    results = {result.metric: result.value for result in evaluate(model, prepared(settings, manifest, run.world), "fp32", run.world)}

    two, one = (results["accuracy/two"] - 5 / 12) / (7 / 12), (results["accuracy/one"] - 1 / 2) / (1 / 2)
    assert results["core_average"] == pytest.approx((two + one) / 2)


def test_control_tokens_in_a_question_stay_text(manifest: Manifest, file: Path) -> None:
    encoder = tokenizer(manifest.folder / "tokenizer/tokenizer.json")
    end = encoder.token_to_id("<|end|>")

    (question,) = questions("test", Task(file=str(file), where={"task": "b"}))
    assert all(end not in piece.ids for piece in pieces([question], encoder, None, 512))


def test_question_longer_than_the_context_loses_its_beginning(manifest: Manifest) -> None:
    encoder = tokenizer(manifest.folder / "tokenizer/tokenizer.json")
    asked = [Question("the soil is ready to grow something, " * 20, ["what", "the plan is ready"], 0)]

    whole, cut = pieces(asked, encoder, 7, 10_000), pieces(asked, encoder, 7, 30)

    for long, short in zip(whole, cut, strict=True):
        assert long.ids[0] == 7
        assert len(short.ids) == 31
        assert short.ids.tolist() == long.ids[-31:].tolist()
        assert long.ids[long.first :].tolist() == short.ids[short.first :].tolist()


def test_prompt_takes_its_columns_and_parquet_gives_the_same_questions(file: Path, tmp_path: Path) -> None:
    task = Task(file=str(file), prompt="{context}Q: {question}", where={"task": "a"})
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "questions.parquet")

    asked = questions("test", task)

    assert asked == questions("test", task.model_copy(update={"file": str(tmp_path / "questions.parquet")}))
    assert [question.prompt for question in asked] == ["Q: What grows?", "It is.Q: What is planned?"]
    texts = [row | {"answer_idx": row["choices"][row["answer_idx"]]} for row in ROWS]  # type: ignore[index]
    file.write_text("".join(json.dumps(row) + "\n" for row in texts))
    assert questions("test", task) == asked


@pytest.mark.parametrize(
    ("change", "task", "message"),
    [
        ({"answer_idx": 2}, {}, r"evaluate\.tasks\.t\.answer: row 1 of .* has 2; the number of an option from 0 to 1"),
        ({"answer_idx": "soils"}, {}, r"evaluate\.tasks\.t\.answer: row 1 of .* has 'soils'"),
        ({"choices": ["one"]}, {}, r"evaluate\.tasks\.t\.choices: row 1 of .* has \['one'\]; two or more texts"),
        ({}, {"prompt": "{query}"}, r"evaluate\.tasks\.t\.prompt: row 1 of .* has no 'query'; it has: question, choices"),
        ({}, {"where": {"task": "z"}}, r"evaluate\.tasks\.t: no question in .* with {'task': 'z'}; correct file or where"),
        ({}, {"where": {"split": "z"}}, r"evaluate\.tasks\.t\.where: row 1 of .* has no 'split'"),
        ({}, {"file": "questions.csv"}, r"evaluate\.tasks\.t\.file: questions\.csv; questions are read from \.jsonl and \.parquet"),
        ({}, {"file": "absent.jsonl"}, r"evaluate\.tasks\.t\.file: absent\.jsonl: cannot be read"),
    ],
)
def test_question_that_cannot_be_read_is_refused(change: dict[str, Any], task: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(ROWS[0] | change) + "\n")

    with pytest.raises(UserError, match=message):
        questions("t", Task(**({"file": str(path)} | task)))


def test_results_of_questions_are_the_same_bits_on_several_processes(
    model: Any, manifest: Manifest, run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import scoring

    monkeypatch.setattr(scoring, "TOKENS_A_PASS", 64)
    settings = Evaluate(tasks={"test": Task(file=str(file))})
    cpu = torch.device("cpu")
    (test,) = prepared(settings, manifest, run.world).tests
    alone = scoring.nats(model, test.passes, "fp32", run.world)
    parts = [
        scoring.nats(model, prepared(settings, manifest, World(rank, 2, cpu, sharded=False)).tests[0].passes, "fp32", run.world)
        for rank in range(2)
    ]

    assert np.array_equal(parts[0] + parts[1], alone)
    assert all(math.isfinite(value) and value > 0 for value in alone)
