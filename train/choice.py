"""Multiple choice by the log-likelihood of the options, without generating.

In: a `.jsonl` or `.parquet` file with a question a row, and how to read it (`train.config.Task`). Out: per question whether the option with the
highest log-likelihood after the prompt is the right one: raw, and divided by its length in characters as the option is written; and the
margin: length-normalised log-likelihood of the right option minus that of the best wrong one, in nats a character. It is positive where the
normalised answer is right, and moves long before accuracy leaves chance. A prompt and an option are joined by one space and encoded together; of equal
options the first is chosen: the conventions of lm-evaluation-harness, whose accuracies are equal. Control tokens written in a question are text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from mixing import UserError
from train.config import Task
from train.scoring import Piece

_COLUMN = re.compile(r"{(\w+)}")


class Question(NamedTuple):
    """What stands before the options, the options, and the number of the right one."""

    prompt: str
    options: list[str]
    answer: int


class Answers(NamedTuple):
    """One value a question: 1 for right, 0 for wrong; nats a character."""

    raw: npt.NDArray[np.float64]
    normalised: npt.NDArray[np.float64]
    margin: npt.NDArray[np.float64]


def questions(name: str, task: Task) -> list[Question]:
    """The questions of a test; UserError for a file, column or row that does not fit."""
    where = f"evaluate.tasks.{name}"
    found = []
    for number, row in enumerate(_rows(f"{where}.file", Path(task.file)), 1):
        if absent := [column for column in task.where if column not in row]:
            raise UserError(f"{where}.where: row {number} of {task.file} has no '{absent[0]}'; it has: {', '.join(row)}")
        if all(str(row[column]) == str(value) for column, value in task.where.items()):
            found.append(_question(where, f"row {number} of {task.file}", task, row))
    if not found:
        raise UserError(f"{where}: no question in {task.file}" + (f" with {task.where}" if task.where else "") + "; correct file or where")
    return found


def _rows(where: str, path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            return found
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        else:
            raise UserError(f"{where}: {path}; questions are read from .jsonl and .parquet")
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {path}: cannot be read: {' '.join(str(error).split())}") from None
    if strange := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise UserError(f"{where}: {path}, row {strange[0]}: not an object; a question is one, with the columns that the task names")
    return rows


def _question(where: str, place: str, task: Task, row: Mapping[str, Any]) -> Question:
    for key, column in [
        *(("prompt", column) for column in _COLUMN.findall(task.prompt)),
        ("choices", task.choices),
        ("answer", task.answer),
    ]:
        if column not in row:
            raise UserError(f"{where}.{key}: {place} has no '{column}'; it has: {', '.join(row)}")
    options, answer = row[task.choices], row[task.answer]
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(option, str) and option for option in options):
        raise UserError(f"{where}.choices: {place} has {options!r}; two or more texts are needed")
    if isinstance(answer, str) and answer in options:
        answer = options.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
        raise UserError(
            f"{where}.answer: {place} has {answer!r}; the number of an option from 0 to {len(options) - 1}, or its text, is needed"
        )
    prompt = _COLUMN.sub(lambda match: "" if row[match[1]] is None else str(row[match[1]]), task.prompt)
    return Question(prompt, options, answer)


@lru_cache(maxsize=4)
def tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json; control tokens in a text stay text."""
    read = Tokenizer.from_file(str(file))
    read.encode_special_tokens = True
    read.no_truncation()
    read.no_padding()
    return read


def pieces(asked: Sequence[Question], encoder: Tokenizer, bos: int | None, context: int) -> list[Piece]:
    """One piece an option, question by question; what is longer than `context` loses its beginning."""
    found = []
    start = [] if bos is None else [bos]
    for question in asked:
        stem = question.prompt.rstrip()
        space = question.prompt[len(stem) :]
        before = start + encoder.encode(stem, add_special_tokens=False).ids
        for option in question.options:
            whole = start + encoder.encode(f"{stem}{space} {option}", add_special_tokens=False).ids
            cut = max(0, len(whole) - context - 1)
            found.append(Piece(np.array(whole[cut:], np.int64), max(1, len(before) - cut)))
    return found


def answers(asked: Sequence[Question], nats: npt.NDArray[np.float64]) -> Answers:
    """From the nats of every option, in the order of `pieces`."""
    raw, normalised, margin = [], [], []
    place = 0
    for question in asked:
        likelihood = -nats[place : place + len(question.options)]
        place += len(question.options)
        per_character = likelihood / [len(option) for option in question.options]
        raw.append(float(np.argmax(likelihood) == question.answer))
        normalised.append(float(np.argmax(per_character) == question.answer))
        margin.append(per_character[question.answer] - np.delete(per_character, question.answer).max())
    return Answers(np.array(raw), np.array(normalised), np.array(margin))


def chance(asked: Sequence[Question]) -> float:
    """The accuracy that guessing expects."""
    return math.fsum(1 / len(question.options) for question in asked) / len(asked)


def core_average(accuracy: Mapping[str, float], random: Mapping[str, float], categories: Mapping[str, Sequence[str]]) -> float:
    """(accuracy - chance) / (1 - chance) per task, their mean per category, the mean of those. A task without an accuracy is a UserError, never left out.

    The aggregate of the Gauntlet of "Characterizing Datasets": 0 is guessing, 1 is all right.
    """
    if missing := [task for tasks in categories.values() for task in tasks if task not in accuracy]:
        raise UserError(
            f"core: no accuracy for {', '.join(missing)}; an average over the others would be another measure: measure them, or change core"
        )
    means = [
        math.fsum((accuracy[task] - random[task]) / (1 - random[task]) for task in tasks) / len(tasks) for tasks in categories.values()
    ]
    return math.fsum(means) / len(means)
