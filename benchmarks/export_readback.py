"""Exports read back with the peers' own readers, and compared with the manifest token by token.

`python benchmarks/export_readback.py MANIFEST` in an environment that has `megatron-core` and `mosaicml-streaming` beside Tilth (benchmarks/export.md
says how it was made). Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mixing.export import export
from mixing.manifest import Manifest
from train.stream import IGNORED, read_step


def sequences(manifest: Manifest, first: int, last: int) -> Iterator[tuple[int, list[np.ndarray[Any, Any]], str]]:
    """(number, pieces, component) of each sequence, by the manifest's own look-ups, one span at a time."""
    for number in range(first, last):
        spans = manifest.spans(number, number + 1)
        pieces = [manifest.ids(*span) for span in zip(*(column.tolist() for column in spans[1:5]), strict=True)]
        yield number, pieces, manifest.component_names[int(manifest.components(number, number + 1)[0])]


def megatron(manifest: Manifest, folder: Path) -> dict[str, int]:
    """Every row and piece through `IndexedDataset`, and every row through `GPTDataset`, which shuffles them."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    counted = {"sequences": 0, "tokens": 0, "pieces": 0, "differ": 0, "gpt samples": 0, "gpt differ": 0, "planned differ": 0}
    facts = json.loads((folder / "export.json").read_text())
    for stage in facts["stages"]:
        rows, pieces = IndexedDataset(str(folder / stage["name"])), IndexedDataset(str(folder / f"{stage['name']}.pieces"))
        components = np.load(folder / f"{stage['name']}.components.npy")
        bounds = pieces.document_indices
        counted["differ"] += int(len(rows) != stage["sequences"]) + int(len(bounds) != stage["sequences"] + 1)
        seen = {}
        for number, wanted, component in sequences(manifest, stage["first_sequence"], stage["first_sequence"] + stage["sequences"]):
            row = number - stage["first_sequence"]
            ids = rows[row]
            filled = sum(map(len, wanted))
            same = np.array_equal(ids[:filled], np.concatenate(wanted)) and (ids[filled:] == facts["pad_id"]).all()
            found = [pieces[piece] for piece in range(int(bounds[row]), int(bounds[row + 1]))]
            same &= len(found) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
            counted["differ"] += not (same and facts["components"][components[row]] == component)
            counted["sequences"] += 1
            counted["tokens"] += filled
            counted["pieces"] += len(found)
            expected = np.full(len(ids), facts["pad_id"], ids.dtype)
            expected[:filled] = np.concatenate(wanted)
            seen[expected.tobytes()] = seen.get(expected.tobytes(), 0) + 1
        counted["planned differ"] += planned_differ(manifest, stage, folder / stage["name"])
        for sample in gpt_samples(rows, folder / stage["name"], facts):
            counted["gpt samples"] += 1
            left = seen.get(sample.tobytes(), 0)
            seen[sample.tobytes()] = left - 1
            counted["gpt differ"] += left < 1
    return counted


def planned_differ(manifest: Manifest, stage: dict[str, Any], prefix: Path) -> int:
    """Rows of which the dataset shown in docs/guides/other-trainers.md gives another target, position or boundary than Tilth's own stream."""
    page = (Path(__file__).parents[1] / "docs" / "guides" / "other-trainers.md").read_text(encoding="utf-8")
    shown: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], shown)
    dataset, differ = shown["Planned"](str(prefix)), 0
    for row in range(len(dataset)):
        found, number = dataset[row], stage["first_sequence"] + row
        ours = read_step(manifest, number, 1, 1, 0, 1).micro_batches[0]
        filled = int(ours.tokens[0])
        targets = np.where(found["loss_mask"] == 1, found["labels"], IGNORED)
        same = np.array_equal(targets, ours.targets[0].numpy())
        same &= np.array_equal(found["position_ids"][:filled], ours.position_ids[0, :filled].numpy())
        same &= np.array_equal(found["tokens"][:filled], ours.input_ids[0, :filled].numpy())
        same &= found["cu_seqlens"].tolist() == [end for end in ours.boundaries.tolist() if end <= filled]
        differ += not same
    return differ


def gpt_samples(rows: Any, prefix: Path, facts: dict[str, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """One epoch of Megatron's GPTDataset over a prefix, in the order that it chose."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=facts["sequence_length"],
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache=tempfile.mkdtemp(),
        tokenizer=SimpleNamespace(
            eod=facts["tokenizer"]["eos_id"], pad=-1, vocab_size=facts["tokenizer"]["vocab_size"], unique_identifiers={}
        ),
        reset_position_ids=True,
        reset_attention_mask=True,
        eod_mask_loss=True,
        create_attention_mask=False,
        add_extra_token_to_sequence=False,
        mid_level_dataset_surplus=0.005,
    )
    dataset = GPTDataset(rows, str(prefix), np.arange(len(rows)), len(rows), Split.train, config)
    for index in range(len(rows)):
        yield dataset[index]["tokens"].numpy().astype(rows.index.dtype)


def mds(manifest: Manifest, folder: Path, batch: int = 8) -> dict[str, int]:
    """Every sample through `StreamingDataset`, in order, hashes checked, at the root and stage by stage."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    counted = {"sequences": 0, "tokens": 0, "pieces": 0, "differ": 0, "stage samples": 0}
    pad = json.loads((folder / "export.json").read_text())["pad_id"]
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=batch, num_canonical_nodes=1, validate_hash="sha256")
    samples = iter(dataset)
    for number, wanted, component in sequences(manifest, 0, manifest.sequences):
        sample = next(samples)
        filled = sum(map(len, wanted))
        ends = np.cumsum([0, *map(len, wanted)])
        same = np.array_equal(sample["tokens"][:filled], np.concatenate(wanted)) and (sample["tokens"][filled:] == pad).all()
        same &= np.array_equal(sample["cu_seqlens"], ends) and sample["sequence"] == number and sample["component"] == component
        same &= len(sample["tokens"]) == manifest.sequence_length
        counted["differ"] += not same
        counted["sequences"] += 1
        counted["tokens"] += filled
        counted["pieces"] += len(wanted)
    counted["differ"] += len(dataset) != manifest.sequences
    for stage in manifest.stages:
        clean_stale_shared_memory()
        part = StreamingDataset(local=str(folder / stage["name"]), shuffle=False, batch_size=batch, num_canonical_nodes=1)
        numbers = [int(part[index]["sequence"]) for index in range(len(part))]
        counted["differ"] += numbers != list(range(stage["first_sequence"], stage["first_sequence"] + stage["sequences"]))
        counted["stage samples"] += len(numbers)
    return counted


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="+")
    failed = False
    for path in parser.parse_args().manifest:
        manifest = Manifest.open(path)
        print(f"{manifest.header['name']} {manifest.digest[:16]}: {manifest.sequences:,} sequences of {manifest.sequence_length:,}")
        for to, compression, read in (("megatron", None, megatron), ("mds", None, mds), ("mds", "zstd", mds)):
            with tempfile.TemporaryDirectory() as scratch:
                began = time.perf_counter()
                made = export(manifest, to, Path(scratch) / "out", compression=compression)  # type: ignore[arg-type]
                seconds = time.perf_counter() - began
                size = sum(file["bytes"] for file in made.facts["files"]) / 1e6
                counted = read(manifest, made.folder)
            failed |= bool(counted["differ"] or counted.get("gpt differ") or counted.get("planned differ"))
            print(f"  {to}{f' {compression}' if compression else ''}: written in {seconds:.2f} s, {size:,.1f} MB; {counted}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"megatron-core {version('megatron-core')}, mosaicml-streaming {version('mosaicml-streaming')}, numpy {np.__version__}; peak {peak:,.0f} MB"
    )
    sys.exit(failed)


if __name__ == "__main__":
    main()
