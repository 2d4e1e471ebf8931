"""What is said of a synthetic document, and the wrong answers of an ablation."""

from __future__ import annotations

import random

import pytest

from curation.synthesis.corruption import swapped
from curation.synthesis.filters import Questions, code_parses, grounded, in_language
from mixing import UserError

PASSAGE = "The river Oder rises in the Czech Republic and flows north into the Baltic Sea."


def test_grounded_is_the_share_of_distinct_words_in_the_passage() -> None:
    assert grounded("The Oder flows into the BALTIC sea!", PASSAGE) == 1.0
    assert grounded("The Oder flows into the Black Sea", PASSAGE) == pytest.approx(5 / 6)
    assert grounded("奥得河流入海", "奥得河流入波罗的海") == 1.0
    assert grounded("...", PASSAGE) is None


def test_in_language_counts_letters_of_the_script() -> None:
    assert in_language("Straße 12", "de") == 1.0
    assert in_language("河 is 水", "zh") == 0.5
    assert in_language("河", "en") == 0.0
    assert in_language("что", "ru") is None
    assert in_language("12", "en") is None


@pytest.mark.parametrize(
    ("code", "good"),
    [("x = 1\n", True), ("def f(:", False), ("(" * 5000, False), ("x = '\\d'", True), ("a\0b", False), ("1" * 300_000, False)],
)
def test_code_is_parsed_and_never_run(code: str, good: bool) -> None:
    assert code_parses(code) is good


def test_questions_alike_are_those_a_comparison_of_all_pairs_finds() -> None:
    draw = random.Random(5)
    words = [f"w{number}" for number in range(30)]
    asked = [" ".join(draw.sample(words, draw.randint(3, 12))) for _ in range(150)]
    asked += [" ".join(draw.sample(one.split(), len(one.split()))[: max(3, len(one.split()) - 1)]) for one in asked]
    questions = Questions()

    found = [questions.like(str(number), question) for number, question in enumerate(asked)]

    sets = [set(one.split()) for one in asked]
    expected = [
        next((str(other) for other in range(number) if len(sets[number] & sets[other]) / len(sets[number] | sets[other]) >= 0.8), None)
        for number in range(len(asked))
    ]
    assert found == expected
    assert sum(one is not None for one in expected) > 50


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.55, 1.0])
def test_corruption_changes_exactly_its_share_and_a_smaller_one_is_part_of_it(share: float) -> None:
    keys = [f"k{number}" for number in range(37)]
    answers = [f"answer {number % 5}" for number in range(37)]

    wrong, all_wrong = swapped(keys, answers, share, 3), swapped(keys, answers, 1.0, 3)

    assert len(wrong) == int(share * 37 + 0.5)
    assert all(answers[keys.index(key)] != answer for key, answer in wrong.items())
    assert wrong.items() <= all_wrong.items()
    assert swapped(keys, answers, share, 4) != wrong or share in (0.0,)


def test_corruption_of_equal_answers_is_refused() -> None:
    with pytest.raises(UserError, match="all 3 documents have the same answer"):
        swapped(["a", "b", "c"], ["x", "x", "x"], 0.5, 0)
