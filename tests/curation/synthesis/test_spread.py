"""Requests spread over processes that come, answer a part, and are lost, in any order: each prompt is answered once, and nothing is asked again that was answered."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.engine.local import News
from curation.engine.work_directory import Work
from curation.synthesis.asking import Asked, Desk, Job, prompt_key, settled
from curation.synthesis.config import Generation
from curation.synthesis.local import exchange
from curation.synthesis.spread import Spread
from curation.synthesis.store import Answer, Store
from curation.synthesis.template import load
from mixing import UserError

CONTINUATION = load("continuation")
IN_FLIGHT = 3


class Losing:
    """Processes that answer what chance wants of what they were sent, or die of it: at most `deaths` of them, and another comes."""

    def __init__(self, seed: int, places: int, deaths: int) -> None:
        self.chance, self.deaths = random.Random(seed), deaths
        self.coming = list(range(places))
        self.held = dict[int, list[Asked]]()
        self.called, self.lost, self.is_closed = set[int](), set[int](), False
        self.answered: Counter[str] = Counter()
        self.most = 0

    def send(self, number: int, new: Sequence[Asked], seconds: float) -> None:
        assert number in self.held
        assert number not in self.called
        assert number not in self.lost
        self.held[number] += new
        self.most = max(self.most, len(self.held[number]))
        self.called.add(number)

    def wait(self) -> News:
        number = self.chance.choice(sorted([*self.coming, *self.called]))
        is_lost = self.deaths > 0 and self.chance.random() < 0.3
        if is_lost:
            self.deaths -= 1
            self.lost.add(number)
            self.coming.append(100 + self.deaths)
        if number in self.coming:
            self.coming.remove(number)
            if not is_lost:
                self.held[number] = []
            return News(number, is_lost=is_lost)
        self.called.remove(number)
        if is_lost:
            return News(number, is_lost=True)
        held = self.held[number]
        some = [held.pop(self.chance.randrange(len(held))) for _ in range(self.chance.randint(0, len(held)))]
        self.answered.update(str(one.prompt) for one in some)
        return News(number, [(one.number, Answer(f" and then {one.seed}")) for one in some])

    def close(self) -> None:
        self.is_closed = True


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 6), st.integers(0, 25))
def test_every_prompt_is_answered_once_whatever_is_lost(
    tmp_path_factory: pytest.TempPathFactory, seed: int, places: int, deaths: int, prompts: int
) -> None:
    residents, generation = Losing(seed, places, deaths), Generation.model_validate({"model": "m", "temperature": 0})
    with Store(Work(tmp_path_factory.mktemp("work")), {"model": "m"}) as store:
        asked = [f"The text with the number {number} begins here" for number in range(prompts)]
        jobs = [Job(prompt_key(prompt, 0), prompt, CONTINUATION, store) for prompt in asked]
        desk = Desk(generation)
        desk.ask(iter(jobs), lambda: Spread(residents, IN_FLIGHT), generation)

        assert residents.answered == Counter(asked)
        assert desk.sent == len(store) == prompts
        assert all(settled(job, 1).parsed is not None for job in jobs)
    assert residents.most <= IN_FLIGHT
    assert residents.is_closed == (prompts > 0)


def test_vllm_that_is_not_installed_is_refused_by_the_nodes_name(tmp_path: Path) -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"^synthesize\.backend: vllm is not installed on \S+; pip install"):
            exchange(Generation.model_validate({"model": "m", "backend": "vllm"}), str(tmp_path))
    else:
        pytest.skip("vLLM is installed")
