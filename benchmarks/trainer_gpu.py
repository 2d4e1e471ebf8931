"""What one large GPU does: 1B at 4,096 and 8B at 8,192 tokens a sequence, the attention kernel beside SDPA, and a resume that must give the same bits.

    torchrun --nproc-per-node 1 benchmarks/trainer_gpu.py [--out gpu.jsonl] [--only NAME…]
    torchrun --nproc-per-node 1 benchmarks/trainer_gpu.py --tiny        # every part on a CPU, in miniature: does the script work?

Parts, each a JSON line:
    attention   varlen forward and backward against SDPA one document at a time, and their largest difference in units of bf16's step
    1B, 8B      tokens a second, utilisation in both conventions of the run's record (all pairs of positions, as torchtitan counts, and those inside
                documents only), peak memory, the share of time that waits for rows, the loss at the ends; aims on an H200: 45 % and 42 %
    resume      some steps, a checkpoint in the middle, the rest again from it with deterministic kernels: equal digests of all parameters

The manifest is made here, of random documents whose lengths are drawn as those of web text are (log-normal).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mixing import UserError, validated
from mixing.manifest import Manifest
from train import attention, loop, weights
from train import model as models
from train.config import Config, resolved
from train.model import World
from train.record import PEAK
from train.record import operations as operations_of
from train.stream import fill, read_step, steps

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from manifests import small_manifest  # the tests' own way to a manifest without text

LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
Case = dict[str, Any]
CASES: dict[str, Case] = {
    "1B": {
        "shape": LLAMA_1B | {"tie_word_embeddings": True},
        "width": 4096,
        "rows": 8,
        "micro": 4,
        "recompute": "none",
        "moments": "fp32",
        "aim": 0.45,
    },
    "8B": {"shape": LLAMA_8B, "width": 8192, "rows": 4, "micro": 2, "recompute": "full", "moments": "bf16", "aim": 0.42},
}
SMALLER = {"shape": TINY, "width": 128, "rows": 4, "micro": 2}


def manifest_for(folder: Path, width: int, vocabulary: int, tokens: int) -> Manifest:
    if not folder.exists():
        lengths = (math.log(width / 12), 1.2, 20 * width)  # of web text, if a sequence has 8,192 tokens: a mean of about 1,400
        small_manifest(folder, sequence_length=width, tokens=tokens, vocabulary=vocabulary, token_file_ids=1 << 24, lengths=lengths)
    return Manifest.open(folder)


def configured(case: Case, manifest: Manifest, vocabulary: int, compile_blocks: bool) -> Config:
    model = {"model_type": "llama", "vocab_size": 128_256 if vocabulary > 256 else 256, **case["shape"]}  # the head of Llama 3
    values = {
        "model": {"config": model},
        "precision": "bf16",
        "batch": case["rows"],
        "micro_batch": case["micro"],
        "recompute": case["recompute"],
        "compile": compile_blocks,
        "optimizer": {"learning_rate": 1e-4, "moments": case["moments"]},
    }
    return resolved(validated(Config, values), manifest, "fresh")


def built(config: Config, world: World) -> Any:
    model = models.place(weights.skeleton(models.architecture(config)), config, world)
    weights.draw(model, config.seed)
    return model


def wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def training(name: str, case: Case, folder: Path, world: World, count: int, vocabulary: int, compile_blocks: bool) -> Case:
    manifest = manifest_for(folder / f"{name}-{case['width']}", case["width"], vocabulary, (count + 2) * case["rows"] * case["width"])
    config = configured(case, manifest, vocabulary, compile_blocks)
    model = built(config, world)
    run, learner = loop.Run(folder, manifest, config, world), loop.Learner(model, config, world.device)
    waited, spent, tokens, inside, losses = 0.0, 0.0, 0, 0, []
    skipped = min(5, count // 3)  # compilation and the allocator's first steps
    stream = steps(manifest, 0, case["rows"], case["micro"], world.rank, world.size, world.device)
    for number in range(count):
        asked = time.perf_counter()
        step = next(stream)
        got = time.perf_counter()
        outcome = loop.take_step(run, learner, step, 1e-4)
        wait(world)
        losses.append(sum(outcome.read()[0][0]) / step.predictions)
        if number >= skipped:
            waited, spent, tokens = waited + got - asked, spent + time.perf_counter() - asked, tokens + step.tokens
            inside += sum(int(rows.boundaries.diff().double().square().sum()) for rows in step.micro_batches)
    card = torch.cuda.get_device_name() if world.device.type == "cuda" else ""
    peak = next((operations for part, operations in PEAK.items() if part in card), None)
    per_token, per_position = operations_of(model)

    def utilisation(positions: int) -> float | None:
        return peak and round((tokens * per_token + positions * per_position) / spent / peak, 4)

    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_a_second": round(tokens / spent),
        "utilisation_all_pairs": utilisation(tokens * case["width"]),
        "utilisation_inside_documents": utilisation(inside),
        "aim": case.get("aim"),
        "peak_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2) if peak else None,
        "stall": round(waited / spent, 6),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def documents(total: int, seed: int = 3) -> list[int]:
    """Lengths that add up to `total`."""
    drawn = np.random.default_rng(seed).lognormal(math.log(total / 24), 1.2, total).astype(int) + 1
    ends = np.minimum(drawn.cumsum(), total)
    return [int(length) for length in np.diff(ends, prepend=0) if length]


def kernel(world: World, total: int, heads: int, groups: int, size: int, runs: int) -> Case:
    """Our attention (varlen on a GPU) and SDPA one document at a time: milliseconds of forward and backward, largest difference."""
    dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
    lengths = documents(total)
    rows = fill([[np.zeros(length, np.int64) for length in lengths]], [0], total).to(world.device)
    boundaries, longest = attention.bucketed(rows)
    generator = torch.Generator(world.device).manual_seed(1)
    shapes = [(1, count, total, size) for count in (heads, groups, groups)]
    inputs = [torch.randn(shape, device=world.device, dtype=dtype, generator=generator, requires_grad=True) for shape in shapes]
    module = torch.nn.Module()

    def packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention.attend(module, query, key, value, None, cu_seq_lens_q=boundaries, max_length_q=longest)[0]

    def one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        parts = zip(*(part.split(lengths, 2) for part in (query, key, value)), strict=True)
        done = [F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in parts]
        return torch.cat(done, 2).transpose(1, 2)

    times, results = {}, {}
    for name, function in (("packed", packed), ("one_by_one", one_by_one)):
        taken = []
        for _ in range(runs + 2):
            began = time.perf_counter()
            out = function(*inputs)
            found = torch.autograd.grad(out.square().sum(), inputs)
            wait(world)
            taken.append(time.perf_counter() - began)
        times[name], results[name] = 1e3 * sorted(taken[2:])[runs // 2], [out.detach(), *found]
    differences = [
        float((a.float() - b.float()).abs().max() / b.float().abs().max() / torch.finfo(torch.bfloat16).eps)
        for a, b in zip(results["packed"], results["one_by_one"], strict=True)
    ]
    assert max(differences) < 4, f"varlen and SDPA differ by {differences} steps of bf16 (output, query, key, value)"
    return {
        "documents": len(lengths),
        "tokens": total,
        **{f"{name}_ms": round(value, 2) for name, value in times.items()},
        "differences": [round(value, 3) for value in differences],
    }


def digest(model: Any) -> str:
    sha = hashlib.sha256()
    for parameter in model.parameters():
        held = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        sha.update(held.detach().float().cpu().numpy().tobytes())
    return sha.hexdigest()


def resumed(case: Case, folder: Path, world: World, vocabulary: int) -> Case:
    """Six steps; then three, their state to one side and back, and the other three."""
    torch.use_deterministic_algorithms(True)
    manifest = manifest_for(folder / f"resume-{case['width']}", case["width"], vocabulary, 10 * case["rows"] * case["width"])
    config = configured(case, manifest, vocabulary, False)
    run, digests = loop.Run(folder, manifest, config, world), []
    kept: dict[str, torch.Tensor] = {}
    for first in (0, 3):
        learner = loop.Learner(built(config, world), config, world.device)
        if first:
            for name, tensor in learner.tensors().items():
                tensor.copy_(kept[name])
        for number in range(first, 6):
            step = read_step(manifest, number * case["rows"], case["rows"], case["micro"], world.rank, world.size)
            loop.take_step(run, learner, step, 1e-3)
            if number == 2:
                kept = {name: tensor.detach().clone() for name, tensor in learner.tensors().items()}
        digests.append(digest(learner.model))
        del learner
    torch.use_deterministic_algorithms(False)
    assert digests[0] == digests[1], f"the resumed run ended with {digests[1]}, the straight one with {digests[0]}"
    return {"equal": True, "digest": digests[0][:16]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="*", default=["attention", "1B", "8B", "resume"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    models.prepare_transformers()
    vocabulary, count = (256, 6) if given.tiny else (50_304, given.steps)
    with models.joined_world() as world, tempfile.TemporaryDirectory() as scratch:
        if not given.tiny and world.device.type != "cuda":
            raise UserError("no GPU here: give --tiny to run every part in miniature on a CPU")
        for name in given.only:
            if name == "attention":
                found = kernel(
                    world, 600 if given.tiny else 16_384, 8 if given.tiny else 32, 4 if given.tiny else 8, 16 if given.tiny else 128, 5
                )
            elif name == "resume":
                found = resumed(
                    CASES["1B"] | SMALLER | ({} if given.tiny else {"shape": TINY | {"hidden_size": 256}}), Path(scratch), world, 256
                )
            else:
                case = CASES[name] | (SMALLER if given.tiny else {})
                found = training(name, case, Path(scratch), world, count, vocabulary, not given.tiny)
            if world.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            line = json.dumps({"part": name, "device": str(world.device), "torch": torch.__version__, **found})
            print(line, flush=True)
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
