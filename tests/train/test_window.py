from __future__ import annotations

import pickle

import numpy as np
import pytest

from mixing import UserError
from mixing.manifest import Manifest
from train.window import step_ends, windowed


def every_id(manifest: Manifest, first: int, last: int) -> list[list[int]]:
    spans = manifest.spans(first, last)
    return [manifest.ids(*(int(value) for value in span)).tolist() for span in zip(*spans[1:5], strict=True)]


def test_beginning_of_a_plan_is_whole_steps_of_the_same_sequences(manifest: Manifest) -> None:
    part = windowed(manifest, 8, 5000, None)

    assert part.sequences % 8 == 0
    tokens = manifest.tokens(0, part.sequences)
    assert tokens.sum() >= 5000 > tokens[:-8].sum()
    assert every_id(part, 3, part.sequences) == every_id(manifest, 3, part.sequences)
    assert np.array_equal(part.components(0, part.sequences), manifest.components(0, part.sequences))
    assert sum(stage["tokens"] for stage in part.stages) == tokens.sum()
    assert sum(stage["predictions"] for stage in part.stages) == manifest.predictions(0, part.sequences)
    of_component = np.bincount(manifest.components(0, part.sequences), tokens, len(manifest.component_names))
    for number, name in enumerate(manifest.component_names):
        assert sum(stage["components"].get(name, {"tokens": 0})["tokens"] for stage in part.stages) == of_component[number]
    assert part.digest == manifest.digest
    with pytest.raises(IndexError):
        part.components(0, part.sequences + 1)


def test_beginning_that_crosses_a_stage_keeps_both(manifest: Manifest) -> None:
    first = manifest.stages[0]
    part = windowed(manifest, 8, first["tokens"] + 1000, None)

    assert [stage["name"] for stage in part.stages] == ["adapt", "enhance"]
    assert part.stages[0]["tokens"] == first["tokens"]
    assert part.stage_of(first["sequences"]) == 1


def test_whole_plan_asked_for_is_the_whole_plan(manifest: Manifest) -> None:
    total = sum(stage["tokens"] for stage in manifest.stages)

    assert windowed(manifest, 8, None, None) is manifest
    assert windowed(manifest, 8, total, None).sequences == manifest.sequences
    half = windowed(manifest, 1, 0.5, None)
    assert sum(stage["tokens"] for stage in half.stages) == pytest.approx(total / 2, abs=manifest.sequence_length)
    with pytest.raises(UserError, match=r"tokens: 1,000,000 asked, .* plans 12,000; ask for fewer"):
        windowed(manifest, 8, 1_000_000, None)


def test_simulated_run_repeats_like_the_long_one(manifest: Manifest) -> None:
    spans = manifest.spans(0, manifest.sequences)
    unique = int(spans.length[spans.epoch == 0].sum())

    part = windowed(manifest, 4, 3000, 8 * unique)  # eight visits of everything

    assert part.sequences % 4 == 0
    period = part.period
    assert part.tokens(0, period).sum() == pytest.approx(3000 / 8, abs=manifest.sequence_length)
    assert every_id(part, period + 1, period + 3) == every_id(manifest, 1, 3)
    across = every_id(part, 2 * period - 1, 2 * period + 1)
    assert across == every_id(manifest, period - 1, period) + every_id(manifest, 0, 1)
    first = part.spans(0, part.sequences)
    once = int(first.length[first.epoch == 0].sum())
    assert first.length.sum() / once == pytest.approx(8, rel=0.2)
    assert sum(stage["tokens"] for stage in part.stages) == part.tokens(0, part.sequences).sum() >= 3000
    assert [part.stages[part.stage_of(number)]["first_sequence"] <= number for number in (0, period, part.sequences - 1)] == [True] * 3


def test_simulated_run_shorter_than_itself_or_without_length_is_refused(manifest: Manifest) -> None:
    with pytest.raises(UserError, match="simulate: 2,000 tokens, fewer than the 3,000 of the run"):
        windowed(manifest, 4, 3000, 2000)
    with pytest.raises(UserError, match="simulate: 2,000 tokens, but no tokens"):
        windowed(manifest, 4, None, 2000)


def test_window_that_travels_is_the_same_window(manifest: Manifest) -> None:
    part = windowed(manifest, 4, 3000, 30_000)

    again = pickle.loads(pickle.dumps(part))

    assert every_id(again, 0, again.sequences) == every_id(part, 0, part.sequences)


def test_step_ends_are_the_tokens_a_run_has_seen(manifest: Manifest) -> None:
    ends = step_ends(manifest, 8)

    assert len(ends) == -(-manifest.sequences // 8)
    assert ends[0] == manifest.tokens(0, 8).sum()
    assert ends[-1] == manifest.tokens(0, manifest.sequences).sum()
