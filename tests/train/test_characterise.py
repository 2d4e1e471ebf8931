from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mixing import UserError
from train.characterise import Change, Character, characterise, compute, described, flops, over_items, over_seeds, shown
from train.sweep import run_sweep


def test_band_over_seeds_is_twice_the_standard_error() -> None:
    found = over_seeds([0.1, 0.2, 0.3])

    assert found.gain == pytest.approx(0.2)
    assert found.band == pytest.approx(2 * 0.1 / math.sqrt(3))


def test_verdict_is_outside_the_band_or_not() -> None:
    assert [Change(gain, 0.1).verdict for gain in (0.2, 0.05, -0.05, -0.2, math.nan)] == [
        "helped",
        "unaffected",
        "unaffected",
        "hurt",
        "diverged",
    ]


def test_bootstrap_of_a_mean_agrees_with_its_standard_error() -> None:
    random = np.random.default_rng(5)
    before, difference, ones = random.normal(4, 1, 400), random.normal(-0.3, 0.2, 400), np.ones(400)

    found = over_items("loss/x", (before, ones), (before + difference, ones))

    assert found.gain == pytest.approx(-difference.mean())
    assert found.band == pytest.approx(2 * difference.std() / 20, rel=0.1)  # paired: the spread of the documents themselves plays no part
    assert found == over_items("loss/x", (before, ones), (before + difference, ones))
    assert over_items("accuracy/x", (before, ones), (before, ones)) == Change(0.0, 0.0)


def test_flops_of_llama_2_and_its_continuation() -> None:
    assert flops(7e9, 2e12) == pytest.approx(8.4e22)
    assert flops(13e9, 2e12) == pytest.approx(1.56e23)
    assert flops(70e9, 2e12) == pytest.approx(8.4e23)
    assert flops(7e9, 40e9) == pytest.approx(1.7e21, rel=0.02)


def test_data_set_is_dropped_only_if_it_hurts_at_every_rate() -> None:
    hurt, same = Change(-0.3, 0.1), Change(0.05, 0.1)

    def character(**by_rate: Change) -> Character:
        return Character("a", "loss/t", 1e-4, 1000, {"loss/t": hurt}, {float(number): one for number, one in enumerate(by_rate.values())})

    assert character(low=hurt, high=hurt).drop
    assert not character(low=same, high=hurt).drop
    assert "a: drop, it hurts loss/t at every learning rate" in shown([character(low=hurt)])
    assert "a: keep, at learning rate 0.0001 for 1,000 tokens" in shown([character(low=same)])


def test_described_for_a_program_says_what_is_shown_and_has_no_nan() -> None:
    changes = {"loss/t": Change(0.3, 0.1), "loss/u": Change(math.nan, 0.0)}
    character = Character("a", "loss/t", 1e-4, 1000, changes, {1e-4: changes["loss/t"]})

    (found,) = json.loads(json.dumps(described([character]), allow_nan=False))

    assert found["changes"] == {
        "loss/t": {"gain": 0.3, "band": 0.1, "verdict": "helped"},
        "loss/u": {"gain": None, "band": 0.0, "verdict": "diverged"},
    }
    assert (found["data_set"], found["drop"], list(found["by_rate"])) == ("a", False, ["0.0001"])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[17], [17, 18]])
def test_sweep_is_characterised(seeds: list[int], manifest_folder: Path, tmp_path: Path) -> None:
    model = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    train: dict[str, Any] = {"model": {"config": model}, "batch": 4, "schedule": {"warmup": 100}}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(train))
    sweep = {
        "train": str(tmp_path / "train.yaml"),
        "manifests": {"small": str(manifest_folder)},
        "learning_rates": [1e-2],
        "durations": [2000, 4000],
        "target": "loss/code",
        "seeds": seeds,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(UserError, match="no finished sweep here"):
        characterise(tmp_path / "swept")
    run_sweep(tmp_path / "sweep.yaml", tmp_path / "swept", None)

    (found,) = characterise(tmp_path / "swept")

    assert found.changes["loss/code"].verdict == "helped"
    assert found.changes["loss/code"].band > 0
    assert set(found.by_rate) == {1e-2}
    assert not found.drop
    spent = compute(tmp_path / "swept", 1e6, 1e9)
    assert [row["flops"] for row in spent] == [6e6 * (1e9 + 2000), 6e6 * (1e9 + 4000)]
    assert spent[1]["best"] < spent[0]["best"]
