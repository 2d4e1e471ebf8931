"""The order in which other tools read sequences of several components mixed by weight; their own code decides it.

    PEERS/bin/python benchmarks/mixture_peers.py TASK.json OUT.npz

Runs under an environment of its own (`pip install mosaicml-streaming megatron-core datasets`, whose needs are not those of this project). `mixture.py --peers` calls it.
TASK holds `sequence_length`, `sequences` (how many to read), `seed`, `weights`, `chunks` (how many full sequences each component has, its documents joined and
cut), `documents` (how many documents each has) and `document_weights`. OUT gets, for each tool, two columns: the component, and the running number of the
sequence or document within it.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def streaming(task: dict[str, Any], weights: list[float]) -> np.ndarray:
    """MosaicML streaming: a stream of MDS shards for each component with its `proportion`, read through a StreamingDataset as it comes, shuffled."""
    from streaming import MDSWriter, Stream, StreamingDataset

    with tempfile.TemporaryDirectory() as scratch:
        streams = []
        for component, (count, weight) in enumerate(zip(task["chunks"], weights, strict=True)):
            folder = f"{scratch}/{component}"
            with MDSWriter(out=folder, columns={"component": "int", "sequence": "int", "tokens": "bytes"}) as writer:
                for sequence in range(count):  # sequences of the size that real ones have: shards end where they would
                    writer.write({"component": component, "sequence": sequence, "tokens": bytes(2 * task["sequence_length"])})
            streams.append(Stream(local=folder, proportion=weight))
        dataset = StreamingDataset(
            streams=streams, epoch_size=task["sequences"], shuffle=True, shuffle_seed=task["seed"], batch_size=8, num_canonical_nodes=1
        )
        rows = [(row["component"], row["sequence"]) for row in dataset]
    return np.array(rows[: task["sequences"]], np.int64)


def megatron(task: dict[str, Any], weights: list[float]) -> np.ndarray:
    """Megatron's blend: its compiled helper, as BlendedDataset calls it."""
    from megatron.core.datasets import helpers_cpp

    component, sequence = np.zeros(task["sequences"], np.int16), np.zeros(task["sequences"], np.int64)
    helpers_cpp.build_blending_indices(component, sequence, np.array(weights), len(weights), task["sequences"], False)
    return np.stack([component.astype(np.int64), sequence], axis=1)


def interleaved(task: dict[str, Any], weights: list[float], counts: list[int]) -> np.ndarray:
    """Hugging Face `interleave_datasets(probabilities=…)`, which ends when one of them does."""
    from datasets import Dataset, interleave_datasets

    parts = [
        Dataset.from_dict({"component": np.full(count, component), "number": np.arange(count)}) for component, count in enumerate(counts)
    ]
    mixed = interleave_datasets(parts, probabilities=weights, seed=task["seed"]).with_format("numpy")
    return np.stack([mixed["component"][:], mixed["number"][:]], axis=1)


def main(task_file: str, out: str) -> None:
    task = json.loads(Path(task_file).read_text())
    weights = [weight / sum(task["weights"]) for weight in task["weights"]]
    np.savez(
        out,
        streaming=streaming(task, weights),
        megatron=megatron(task, weights),
        hf_sequences=interleaved(task, weights, task["chunks"]),
        hf_documents=interleaved(task, weights, task["documents"]),
        hf_documents_by_length=interleaved(task, task["document_weights"], task["documents"]),
    )
    print(", ".join(f"{name} {version(name)}" for name in ("mosaicml-streaming", "megatron-core", "datasets")))


if __name__ == "__main__":
    main(*sys.argv[1:])
