from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixing import UserError
from mixing.curves import Gap, gap, gaps, retention
from mixing.measurements import Measurement
from train.stability import relative_updates


def test_gap_of_a_v_curve_has_exact_values() -> None:
    # an accuracy that falls from .5 to .3 at 100 tokens and is back at .5 at 300; straight lines between
    assert gap("accuracy/x", [(0, 0.5), (100, 0.3), (300, 0.5), (400, 0.55)]) == Gap(
        pytest.approx(0.2), 100, 300, pytest.approx(0.2 * 100 / 2 + 0.2 * 200 / 2), pytest.approx(0.05)
    )


def test_gap_of_a_loss_is_looked_at_upside_down() -> None:
    found = gap("loss/x", [(0, 4.0), (100, 4.5), (200, 3.5)])

    # below the start on the way up for 100 tokens, then until the line from +.5 to -.5 crosses at half of the next 100
    assert found == Gap(pytest.approx(0.5), 100, 200, pytest.approx(25 + 12.5), pytest.approx(0.5))


def test_gap_of_a_monotone_curve_is_none() -> None:
    assert gap("loss/x", [(0, 4.0), (100, 3.0), (200, 2.0)]) == Gap(0.0, 0, 0, 0.0, 2.0)


def test_gap_that_never_closes_has_no_recovery() -> None:
    found = gap("accuracy/x", [(0, 0.5), (100, 0.2), (200, 0.4)])

    assert found.recovered is None
    assert found.end == pytest.approx(-0.1)
    assert found.area == pytest.approx(0.3 * 50 + (0.3 + 0.1) / 2 * 100)


def test_gap_ignores_what_is_not_finite_and_needs_a_start() -> None:
    assert gap("loss/x", [(0, 4.0), (50, math.nan), (100, 5.0)]).area == pytest.approx(50)
    with pytest.raises(UserError, match="a curve begins at token 0"):
        gap("loss/x", [(100, 4.0), (200, 5.0)])


def row(metric: str, group: str, tokens: int, value: float) -> Measurement:
    return Measurement("run", "digest", None, metric, group, tokens, None, None, 17, value, None)  # type: ignore[arg-type]


def test_retention_is_the_mean_change_of_the_guards_loss() -> None:
    rows = [
        row("loss/a", "guard", 0, 4.0),
        row("loss/a", "guard", 10, 4.5),
        row("loss/b", "guard", 0, 3.0),
        row("loss/b", "guard", 10, 2.9),
    ]
    rows += [
        row("loss/t", "target", 0, 9.0),
        row("loss/t", "target", 10, 1.0),
        row("accuracy/a", "guard", 0, 0.5),
        row("accuracy/a", "guard", 10, 0.4),
    ]

    found = gaps(rows)

    assert set(found) == {("loss/a", None), ("loss/b", None), ("accuracy/a", None)}
    assert retention(found) == pytest.approx((-0.5 + 0.1) / 2)
    assert retention(found, "accuracy") == pytest.approx(-0.1)
    assert retention({}) is None


def folder_of(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file(tensors, path / "model.safetensors")
    return path


def test_relative_updates_against_hand_values(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = {f"model.layers.{layer}.{part}.weight": torch.randn(4, 4) for layer in range(12) for part in ("up", "down")}
    tensors["model.embed.weight"] = torch.randn(4, 4)
    base = folder_of(tmp_path / "base", tensors)
    scaled = folder_of(tmp_path / "scaled", {name: tensor * 1.1 for name, tensor in tensors.items()})
    lowest = folder_of(
        tmp_path / "lowest", {name: tensor * (1.2 if any(f".{n}." in name for n in range(5)) else 1.1) for name, tensor in tensors.items()}
    )

    assert relative_updates(base, base).layers == [0.0] * 12
    assert relative_updates(base, base).ratio is None
    assert relative_updates(base, scaled).layers == pytest.approx([0.1] * 12, rel=1e-5)
    assert relative_updates(base, scaled).ratio == pytest.approx(1.0, rel=1e-5)
    assert relative_updates(base, lowest).ratio == pytest.approx(2.0, rel=1e-5)
