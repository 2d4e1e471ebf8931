"""`transformers.generate` with a tiny model made on the spot: the same store, the same counts, and a batch that changes no answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from recipes import text_of, write_model

from curation.engine.work_directory import Work
from curation.synthesis.asking import Desk, Job, prompt_key, settled
from curation.synthesis.config import Generation
from curation.synthesis.local import exchange
from curation.synthesis.spread import Here
from curation.synthesis.store import Store
from curation.synthesis.template import Template, load

PASSAGES = [text_of(number, 10 + 3 * number) for number in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(Work(tmp_path), {"model": "m"}) as opened:
        yield opened


def answers(template: Template, store: Store, model: Path, *, batch: int, loaded: list[int] | None = None) -> list[tuple[str, str | None]]:
    """(text, fault) of every passage's only answer."""
    backend = {"kind": "transformers", "batch": batch, "dtype": "float32", "device": "cpu"}
    settings = Generation.model_validate({"model": "m", "temperature": 0, "max_tokens": 12, "backend": backend})
    jobs = [Job(prompt_key(prompt, 0), prompt, template, store) for prompt in (template.messages(one) for one in PASSAGES)]

    def opened() -> Here:
        if loaded is not None:
            loaded.append(1)
        return Here(exchange(settings, str(model)), batch)

    Desk(settings).ask(iter(jobs), opened, settings)
    found = [store.find(job.key, 0) for job in jobs]
    assert all(settled(job, 1).parsed is not None for job in jobs)
    return [(one.text, one.fault) for one in found if one is not None]


def test_answers_at_temperature_0_are_those_of_generate_alone_whatever_the_batch(model: Path, store: Store, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    template = load("continuation")
    together = answers(template, store, model, batch=5)
    with Store(Work(tmp_path), {"model": "other"}) as other:
        alone = answers(template, other, model, batch=1)

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = []
    for passage in PASSAGES:
        ids = tokenizer(str(template.messages(passage)), return_tensors="pt")["input_ids"]
        made = network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        expected.append((tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True), None))
    assert together == alone == expected


def test_what_is_stored_loads_no_model(model: Path, store: Store) -> None:
    loaded: list[int] = []
    answers(load("continuation"), store, model, batch=4, loaded=loaded)
    answers(load("continuation"), store, model, batch=4, loaded=loaded)

    assert len(loaded) == 1


def test_prompt_that_leaves_no_room_for_its_answer_is_a_fault_and_not_sent(model: Path, store: Store) -> None:
    assert answers(load("qa"), store, model, batch=3) == [("", "prompt too long")] * len(PASSAGES)
