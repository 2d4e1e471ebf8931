from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from manifests import small_manifest

from mixing import UserError, validated
from mixing.manifest import NO_COMPONENT, Manifest
from train import scoring
from train.config import Config, Evaluate
from train.evaluate import ITEMS, Result, evaluate, is_due, prepared, write_items
from train.loop import train
from train.model import World
from train.start import Run

CPU = torch.device("cpu")


def named(results: Sequence[Result]) -> dict[str, Result]:
    return {result.metric if result.component is None else f"{result.metric} of {result.component}": result for result in results}


def nats_of(model: Any, manifest: Manifest, ids: Any) -> tuple[float, int]:
    """Document by document with transformers, without packing."""
    nats, predictions = 0.0, 0
    for piece in torch.from_numpy(ids.astype("int64")).split(manifest.sequence_length):
        with torch.no_grad():
            log_p = F.log_softmax(model(input_ids=piece[None], use_cache=False).logits[0].double(), 1)
        nats -= log_p[:-1].gather(1, piece[1:, None]).sum().item()
        predictions += len(piece) - 1
    return nats, predictions


def test_holdout_loss_equals_transformers_document_by_document(model: Any, manifest: Manifest, run: Run) -> None:
    results = named(evaluate(model, prepared(Evaluate(by=["decision"]), manifest, run.world), "fp32", run.world))

    model.set_attn_implementation("eager")
    longer, of_component, everything = 0, {name: [0.0, 0] for name in manifest.component_names}, [0.0, 0]
    for source, held in manifest.holdout().items():
        nats, predictions = 0.0, 0
        for number, (start, end) in enumerate(zip(held.offsets, held.offsets[1:], strict=False)):
            longer += end - start > manifest.sequence_length
            one, count = nats_of(model, manifest, held.ids[start:end])
            nats, predictions = nats + one, predictions + count
            if held.component[number] != NO_COMPONENT:
                total = of_component[manifest.component_names[held.component[number]]]
                total[0], total[1] = total[0] + one, total[1] + count
        everything = [everything[0] + nats, everything[1] + predictions]
        assert results[f"loss/{source}"].denominators.sum() == predictions
        assert results[f"loss/{source}"].value == pytest.approx(nats / predictions, rel=1e-6)
        assert results[f"bits_per_byte/{source}"].value == pytest.approx(nats / math.log(2) / held.bytes.sum(), rel=1e-6)
    assert longer
    for name, (nats, predictions) in of_component.items():
        if predictions:
            assert results[f"loss of {name}"].value == pytest.approx(nats / predictions, rel=1e-6)
    assert results["loss/decision=held_out"].value == pytest.approx(everything[0] / everything[1], rel=1e-6)
    assert {"loss/prose", "loss/code", "loss of domain", "loss of replay"} <= set(results)


@pytest.mark.parametrize("size", [2, 3])
def test_results_on_several_processes_are_the_same_bits(
    size: int, model: Any, manifest: Manifest, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOKENS_A_PASS", 128)  # several passes from little text
    alone = scoring.nats(model, prepared(Evaluate(), manifest, run.world).documents[0].passes, "fp32", run.world)

    parts = []
    for rank in range(size):
        passes = prepared(Evaluate(), manifest, World(rank, size, CPU, sharded=False)).documents[0].passes
        parts.append((len(passes.rows), scoring.nats(model, passes, "fp32", run.world)))

    assert len({count for count, _ in parts}) == 1
    assert parts[0][0] > 1
    together = np.stack([part for _, part in parts])
    assert ((together > 0).sum(0) <= 1).all()
    assert np.array_equal(together.sum(0), alone)


def test_evaluate_changes_neither_model_nor_random_state(model: Any, manifest: Manifest, run: Run) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)

    first = evaluate(model, prepared(Evaluate(), manifest, run.world), "fp32", run.world)
    assert torch.equal(torch.rand(3), drawn)
    second = evaluate(model, prepared(Evaluate(), manifest, run.world), "fp32", run.world)
    assert [result.value for result in second] == [result.value for result in first]

    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_holdout_of_another_manifest_is_measured_under_its_name(model: Any, manifest: Manifest, run: Run, tmp_path: Path) -> None:
    other = small_manifest(tmp_path / "other", seed=5, tokens=3000)
    rename(other, "other")
    settings = Evaluate(holdouts=[str(other)], guards=["other-v1/prose"])

    results = named(evaluate(model, prepared(settings, manifest, run.world), "fp32", run.world))

    alone = named(evaluate(model, prepared(Evaluate(), Manifest.open(other), run.world), "fp32", run.world))
    assert results["loss/other-v1/prose"].value == alone["loss/prose"].value
    assert results["loss/prose"].value != alone["loss/prose"].value
    assert [name for name in results if "other" in name and "of" in name.split()] == []


def test_mean_of_losses_counts_every_text_the_same_and_can_be_resampled(model: Any, manifest: Manifest, run: Run) -> None:
    settings = Evaluate(means={"both": ["prose", "code"], "one": ["code"]}, guards=["both"])

    results = named(evaluate(model, prepared(settings, manifest, run.world), "fp32", run.world))

    for kind in ("loss", "bits_per_byte"):
        assert results[f"{kind}/both"].value == pytest.approx(
            (results[f"{kind}/prose"].value + results[f"{kind}/code"].value) / 2, rel=1e-12
        )
        assert results[f"{kind}/one"].value == pytest.approx(results[f"{kind}/code"].value, rel=1e-12)
    assert len(results["loss/both"].numerators) == sum(len(results[f"loss/{name}"].numerators) for name in ("prose", "code"))
    assert results["loss/both"].denominators.sum() == pytest.approx(1)


def rename(folder: Path, called: str, **tokenizer: object) -> None:
    path = folder / "manifest.json"
    header = json.loads(path.read_text())
    header["name"] = called
    header["tokenizer"] |= tokenizer
    path.write_text(json.dumps(header))
    listed = json.loads((folder / "files.json").read_text())
    for entry in listed:
        if entry["path"] == path.name:
            entry["bytes"] = path.stat().st_size
    (folder / "files.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"holdouts": ["{foreign}"]},
            r"evaluate\.holdouts: .*foreign was made with the tokenizer strange \(0{12}\), the run's manifest with",
        ),
        ({"holdouts": ["{copy}", "{copy}"]}, r"copy is a second manifest called small-v1; leave one out"),
        ({"guards": ["wikipdia"]}, r"evaluate\.guards: nothing is measured of wikipdia; measured are: .*code.*prose"),
        ({"means": {"all": ["prose", "verse"]}}, r"evaluate\.means\.all: there is no loss of verse; there is of: code, prose"),
        ({"means": {"prose": ["code"]}}, r"evaluate\.means\.prose: there is a loss of that name already"),
        ({"by": ["topic"]}, r"evaluate\.by: the pool of .* has no column 'topic'; it has: row, source"),
        ({"by": ["source.name"]}, r"evaluate\.by: 'source\.name' is no column of the pool; 'source' is string"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(
    settings: dict[str, Any], message: str, manifest: Manifest, world: World, tmp_path: Path
) -> None:
    places = {name: small_manifest(tmp_path / name, tokens=3000) for name in ("foreign", "copy")}
    rename(places["foreign"], "foreign", name="strange", sha256="0" * 64)
    if "holdouts" in settings:
        settings = {"holdouts": [path.format(**places) for path in settings["holdouts"]]}

    with pytest.raises(UserError, match=message):
        prepared(Evaluate(**settings), manifest, world)


def test_column_with_too_many_values_is_refused(manifest: Manifest, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.evaluate.MOST_LABELS", 3)

    with pytest.raises(UserError, match=r"'origin' has \d+ values in the hold-out; name a column of at most 3 labels"):
        prepared(Evaluate(by=["origin"]), manifest, world)


def test_items_hold_what_the_values_are_made_of(model: Any, manifest: Manifest, run: Run, tmp_path: Path) -> None:
    results = evaluate(model, prepared(Evaluate(), manifest, run.world), "fp32", run.world)
    write_items(tmp_path / "items.parquet", results)

    table = pq.read_table(tmp_path / "items.parquet")
    assert table.schema == ITEMS
    rows = [row for row in table.to_pylist() if row["metric"] == "loss/prose"]
    assert [row["item"] for row in rows] == list(range(len(manifest.holdout()["prose"].bytes)))
    value = math.fsum(row["numerator"] for row in rows) / math.fsum(row["denominator"] for row in rows)
    assert value == named(results)["loss/prose"].value


@pytest.mark.parametrize(
    ("first", "every", "marks"),
    [
        (3, 100, [3, 6, 12, 24, 48, 96, 100, 200]),
        (None, 100, [100, 200]),
        (100, 100, [100, 200]),
        (300, 100, [100, 200]),
    ],
)
def test_marks_are_dense_at_first_and_even_later(first: int | None, every: int, marks: list[int]) -> None:
    settings = Evaluate(first=first, every=every)

    assert [tokens for tokens in range(1, 250) if is_due(settings, tokens - 1, tokens)] == marks


def test_run_measures_components_guards_and_items_at_every_mark(manifest_folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    settings["evaluate"] = {"first": 1000, "every": 6000, "guards": ["replay"], "items": True}

    run = train(manifest_folder, validated(Config, settings), None, tmp_path / "run")

    rows = [json.loads(line) for line in (run / "measurements.jsonl").read_text().splitlines()]
    marks = sorted({row["tokens"] for row in rows})
    assert marks[0] == 0
    assert [mark // 1000 for mark in marks[1:4]] == [1, 2, 4]
    assert {(row["metric"], row["component"]) for row in rows if row["group"] == "guard"} == {
        ("loss", "replay"),
        ("bits_per_byte", "replay"),
    }
    assert sorted(int(path.stem) for path in (run / "items").iterdir()) == marks
