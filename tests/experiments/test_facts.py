"""The closed world: prose says what is true, questions ask for it, and the server answers right."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

from experiments.rig.facts import OPTIONS, PEOPLE, TELLINGS, VALUES, World, answering


def test_world_of_a_seed_is_told_in_full_and_the_same_each_time() -> None:
    world = World.drawn(11)
    texts = world.tellings(11)

    assert world == World.drawn(11)
    assert world != World.drawn(12)
    assert len(world.people) == PEOPLE
    assert len(texts) == PEOPLE * TELLINGS
    assert texts == world.tellings(11)
    for number, attributes in enumerate(world.people.values()):
        assert all(value in texts[number * TELLINGS] for value in attributes.values())


def test_every_question_of_the_test_has_its_answer_once_among_options_of_its_kind() -> None:
    world = World.drawn(11)

    rows = world.test(11)

    assert len(rows) == PEOPLE * len(VALUES)
    truths = [(name, value) for name, attributes in world.people.items() for value in attributes.values()]
    for row, (name, value) in zip(rows, truths, strict=True):
        assert name in row["question"]
        assert row["choices"][row["answer_idx"]] == value
        assert len(set(row["choices"])) == OPTIONS
    chosen = [row["answer_idx"] for row in rows]
    assert all(chosen.count(place) > len(rows) / 8 for place in range(OPTIONS))  # no place is always right


def test_server_answers_a_prompt_about_a_passage_with_the_truth() -> None:
    world = World.drawn(11)
    passage = world.tellings(11)[0]
    name, attributes = next(iter(world.people.items()))
    body = {"messages": [{"role": "user", "content": f"Read.\n<passage>\n{passage}\n</passage>\n\nWrite 4 questions."}]}

    with answering(world) as url, urlopen(Request(f"{url}/chat/completions", json.dumps(body).encode()), timeout=20) as reply:
        pairs = json.loads(json.loads(reply.read())["choices"][0]["message"]["content"])["pairs"]

    assert [pair["answer"] for pair in pairs] == list(attributes.values())
    assert all(name in pair["question"] for pair in pairs)
