from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mixing.manifest import Manifest
from train.evaluate import evaluate, holdouts
from train.loop import Run
from train.model import World
from train.stream import EMPTY_ROW


def test_holdout_loss_equals_transformers_document_by_document(model: Any, manifest: Manifest, run: Run) -> None:
    scores = evaluate(model, holdouts(manifest, 4, run.world), "fp32", run.world)

    model.set_attn_implementation("eager")
    longer = 0
    for source, held in manifest.holdout().items():
        nats, predictions = 0.0, 0
        for start, end in zip(held.offsets, held.offsets[1:], strict=False):
            document = torch.from_numpy(held.ids[start:end].astype("int64"))
            longer += len(document) > manifest.sequence_length
            for piece in document.split(manifest.sequence_length):
                with torch.no_grad():
                    log_p = F.log_softmax(model(input_ids=piece[None], use_cache=False).logits[0].double(), 1)
                nats -= log_p[:-1].gather(1, piece[1:, None]).sum().item()
                predictions += len(piece) - 1
        assert scores[source].predictions == predictions
        assert scores[source].nats_per_token == pytest.approx(nats / predictions, rel=1e-6)
        assert scores[source].bits_per_byte == pytest.approx(nats / math.log(2) / held.bytes.sum(), rel=1e-6)
    assert longer
    assert set(scores) == {"prose", "code"}


@pytest.mark.parametrize(("count", "size"), [(1, 1), (4, 1), (4, 2), (7, 3)])
def test_holdouts_over_processes_hold_every_token_once(count: int, size: int, manifest: Manifest) -> None:
    cpu = torch.device("cpu")
    parts = [holdouts(manifest, count, World(rank, size, cpu, sharded=False)) for rank in range(size)]

    assert len({len(part.rows) for part in parts}) == 1
    rows = [rows for part in parts for rows in part.rows]
    assert all(len(micro.component) == count for micro in rows)
    for number, held in enumerate(manifest.holdout().values()):
        ids = torch.cat(
            [micro.input_ids[row, : micro.tokens[row]] for micro in rows for row in range(count) if micro.component[row] == number]
        )
        assert sorted(ids.tolist()) == sorted(held.ids[held.offsets[0] : held.offsets[-1]].tolist())
    assert all((micro.tokens[micro.component == EMPTY_ROW] == 0).all() for micro in rows)


def test_evaluate_changes_neither_model_nor_random_state(model: Any, manifest: Manifest, run: Run) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)

    first = evaluate(model, holdouts(manifest, 4, run.world), "fp32", run.world)
    assert torch.equal(torch.rand(3), drawn)
    assert evaluate(model, holdouts(manifest, 4, run.world), "fp32", run.world) == first

    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
