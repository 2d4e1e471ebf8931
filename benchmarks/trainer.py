"""How fast is a step, beside the Trainer of transformers and litgpt on the same tokens? How fast is the stream, how long does a step wait for it, how
much memory do logits take that are never made?

    python benchmarks/trainer.py loader MANIFEST
    python benchmarks/trainer.py stall MANIFEST --steps 500 --batch 1
    python benchmarks/trainer.py memory
    PEERS/bin/python benchmarks/trainer.py peers MANIFEST --steps 12
    PEERS/bin/python benchmarks/trainer.py curve MANIFEST --steps 200 --figure curve.svg

`peers` and `curve` run in an environment that also has `accelerate` and `litgpt`. In `peers` the steps of all trainers take turns in one process, so that
what else the machine does meets them all; ratios are medians over the steps. The manifest is any that `curate build` made. Results are JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mixing import validated
from mixing.manifest import Manifest
from train import loop, weights
from train import model as models
from train.config import Config, resolved
from train.model import World
from train.stream import IGNORED, Step, steps

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU, sharded=False)
LLAMA = {"model_type": "llama", "tie_word_embeddings": True, "num_attention_heads": 8, "num_key_value_heads": 4}
SMALL = LLAMA | {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
TINY = LLAMA | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def configured(manifest: Manifest, model: dict[str, Any], batch: int) -> Config:
    values = {
        "model": {"config": model},
        "batch": batch,
        "optimizer": {"learning_rate": 3e-4},
        "schedule": {"kind": "constant", "warmup": 0},
    }
    return resolved(validated(Config, values), manifest, "fresh")


def drop_from_page_cache(manifest: Manifest) -> None:
    for path in [*manifest.folder.glob("tokens/*"), *manifest.folder.glob("plan/*")]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loader(folder: Path, runs: int) -> None:
    """Tokens a second of the stream with nobody computing, 32 sequences a step: warm, then with the files dropped from the page cache."""
    for cold in (False, True):
        speeds = []
        for _ in range(runs):
            manifest = Manifest.open(folder)
            if cold:
                drop_from_page_cache(manifest)
            began, tokens = clocks(), 0
            for step in steps(manifest, 0, 32, 32, 0, 1, CPU):
                tokens += step.tokens
            speeds.append([tokens / 1e6 / seconds for seconds in since(began)])
        spans = len(manifest.spans(0, manifest.sequences).length)
        wall, cpu = (rounded([speed[place] for speed in speeds]) for place in range(2))
        report("loader", cold=cold, million_tokens_a_second=wall, million_tokens_a_CPU_second=cpu, tokens_a_span=round(tokens / spans))


def stall(folder: Path, count: int, batch: int, caches: list[str]) -> None:
    """The share of training that waits for a batch: warm, or cold, the files dropped from the page cache before the first step."""
    for cold in (cache == "cold" for cache in caches):
        waited, whole, read = waits(folder, count, batch, cold)
        report(
            "stall",
            cold=cold,
            steps=count,
            KiB_from_disk=read // 2,
            seconds_a_step=round(whole / count, 3),
            share=round(sum(waited) / whole, 6),
            share_after_the_first=round(sum(waited[1:]) / whole, 6),
            milliseconds=rounded([1e3 * one for one in waited[1:]]),
            nine_in_ten_below=round(1e3 * sorted(waited)[len(waited) * 9 // 10], 3),
            first_milliseconds=round(1e3 * waited[0], 3),
        )


def waits(folder: Path, count: int, batch: int, cold: bool) -> tuple[list[float], float, int]:
    """Seconds that each step waited for its rows, seconds of all steps, and blocks of 512 bytes that were read from the disk meanwhile."""
    manifest = Manifest.open(folder)
    trainer = Ours(manifest, configured(manifest, TINY, batch))
    if cold:
        drop_from_page_cache(manifest)
    waited, blocks, began = [], resource.getrusage(resource.RUSAGE_SELF).ru_inblock, time.perf_counter()
    stream = steps(manifest, 0, batch, batch, 0, 1, CPU)
    for _ in range(count):
        asked = time.perf_counter()
        step = next(stream)
        waited.append(time.perf_counter() - asked)
        trainer(step)
    return waited, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_inblock - blocks


def memory() -> None:
    """Peak memory of one forward and backward pass, 4 x 512 positions, 50,280 words, with and without logits, each in a process of its own."""
    for kind in ("without logits", "with logits"):
        answer = subprocess.run([sys.executable, __file__, "one-pass", kind], capture_output=True, text=True, check=True)
        report("memory", kind=kind, **json.loads(answer.stdout.splitlines()[-1]))


def one_pass(kind: str) -> None:
    from train import loss
    from train.stream import fill

    torch.set_num_threads(1)
    models.prepare_transformers()
    settings = SMALL | {"vocab_size": 50_280, "max_position_embeddings": 512}
    known = models.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = models.new_model(known, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "with logits":
        loss._whole[model] = True
    documents = [[torch.randint(0, 50_280, (512,)).numpy()] for _ in range(4)]
    began = time.perf_counter()
    total, _ = models.losses(model, fill(documents, [0] * 4, 512), "fp32")
    total.backward()  # type: ignore[no-untyped-call]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"MiB_above_the_model": (peak - before) // 1024, "seconds": round(time.perf_counter() - began, 1)}))


class Ours:
    """This project's trainer, one step a call, which returns its loss."""

    def __init__(self, manifest: Manifest, config: Config) -> None:
        models.prepare_transformers()
        self.model = models.place(weights.skeleton(models.architecture(config)), config, ALONE)
        weights.draw(self.model, config.seed)
        self.run = loop.Run(Path(), manifest, config, ALONE)
        self.learner = loop.Learner(self.model, config, CPU)

    def __call__(self, step: Step, before_update: Callable[[], None] = lambda: None) -> float:
        outcome = loop.take_step(self.run, self.learner, step, self.run.config.optimizer.learning_rate, before_update)
        return float(sum(outcome.read()[0][0]) / step.predictions)


def documents_as_rows(manifest: Manifest, count: int, rows: int, width: int) -> list[Step]:
    """Steps whose rows are one piece of `width` tokens each, so that every trainer's plain causal attention computes the same."""
    from train.stream import fill

    spans = manifest.spans(0, manifest.sequences)
    long = [number for number, length in enumerate(spans.length.tolist()) if length >= width][: count * rows]
    assert len(long) == count * rows, f"the manifest has {len(long)} spans of {width} tokens, {count * rows} are needed"
    ids = [manifest.ids(int(spans.file[n]), int(spans.token_row[n]), int(spans.start[n]), width) for n in long]
    batches = [[[piece] for piece in ids[first : first + rows]] for first in range(0, len(ids), rows)]
    return [Step(n * rows, (n + 1) * rows, rows * width, rows * (width - 1), [fill(b, [0] * rows, width)]) for n, b in enumerate(batches)]


def packed_steps(manifest: Manifest, count: int, rows: int) -> list[Step]:
    stream = steps(manifest, 0, rows, rows, 0, 1, CPU)
    return [next(stream) for _ in range(count)]


class Theirs:
    """The Trainer of transformers, one step whenever it is asked: its loop runs in the callback's `between`."""

    def __init__(self, config: Config, start: dict[str, torch.Tensor], packed: bool) -> None:
        from transformers import AutoModelForCausalLM

        built: Any = AutoModelForCausalLM
        self.model = built.from_config(models.architecture(config), dtype=torch.float32, attn_implementation="sdpa")
        self.model.load_state_dict(start, strict=False)
        self.model.config.use_cache = False  # with a cache its documents would see each other
        self.packed = packed

    def batch(self, step: Step) -> dict[str, torch.Tensor]:
        """What a user hands over: ids and labels, and for packed rows positions that begin again, all rows as one (transformers' padding-free form)."""
        (rows,) = step.micro_batches
        labels = torch.full_like(rows.targets, IGNORED)
        labels[:, 1:] = rows.targets[:, :-1]  # transformers moves them back by one
        if not self.packed:
            return {"input_ids": rows.input_ids, "labels": labels}
        return {"input_ids": rows.input_ids.view(1, -1), "labels": labels.view(1, -1), "position_ids": rows.position_ids.view(1, -1)}

    def train(self, batches: list[Step], config: Config, between: Callable[[int, tuple[float, float]], None]) -> None:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        began = [(0.0, 0.0)]

        class Turns(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                began[0] = clocks()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                between(state.global_step - 1, since(began[0]))

        settings, optimizer = config.optimizer, config.optimizer
        with tempfile.TemporaryDirectory() as scratch:
            arguments = TrainingArguments(
                output_dir=scratch,
                max_steps=len(batches),
                per_device_train_batch_size=1,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="constant",
                weight_decay=optimizer.weight_decay,
                adam_beta1=optimizer.betas[0],
                adam_beta2=optimizer.betas[1],
                adam_epsilon=optimizer.epsilon,
                max_grad_norm=optimizer.clip or 0.0,
                optim="adamw_torch_fused",
                logging_strategy="steps",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            )
            data = [self.batch(step) for step in batches]
            trainer = Trainer(
                model=self.model, args=arguments, train_dataset=data, data_collator=lambda found: found[0], callbacks=[Turns()]
            )
            trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
            trainer.train()
            self.losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]


def litgpts(config: Config, vocabulary: int, width: int) -> Callable[[Step], float]:
    """litgpt's model, loss and clipping as its pretrain.py strings them together, fp32; its own random weights."""
    from litgpt.model import GPT
    from litgpt.model import Config as Shape
    from litgpt.utils import chunked_cross_entropy

    model_config = config.model.config
    assert model_config is not None
    shape = Shape(
        block_size=width,
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
        n_layer=model_config["num_hidden_layers"],
        n_head=model_config["num_attention_heads"],
        n_query_groups=model_config["num_key_value_heads"],
        n_embd=model_config["hidden_size"],
        intermediate_size=model_config["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(shape)
    model.lm_head.weight = model.transformer.wte.weight
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )

    def train_one(step: Step) -> float:
        (rows,) = step.micro_batches
        loss = chunked_cross_entropy(model(rows.input_ids), rows.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip or 1e9)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return train_one


def peers(folder: Path, count: int, width: int, batch: int, which: list[bool]) -> None:
    """One step of each in turn: rows that are one document, then packed rows with the documents kept apart."""
    manifest = Manifest.open(folder)
    config = configured(manifest, SMALL, batch)
    vocabulary = manifest.tokenizer["vocab_size"]
    for packed in which:
        batches = packed_steps(manifest, count, batch) if packed else documents_as_rows(manifest, count, batch, width)
        mine = Ours(manifest, config)
        start = {name: value.clone() for name, value in mine.model.state_dict().items()}
        theirs = Theirs(config, start, packed)
        third = None if packed else litgpts(config, vocabulary, width)
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "transformers": [], "litgpt": []}
        losses: list[float] = []

        def between(number: int, took: tuple[float, float], mine: Any = mine, third: Any = third, batches: Any = batches) -> None:
            times["transformers"].append(took)  # noqa: B023
            for name, train_one in (("ours", mine), ("litgpt", third)):
                if train_one is not None:
                    began = clocks()
                    loss = train_one(batches[number])
                    times[name].append(since(began))  # noqa: B023
                    if name == "ours":
                        losses.append(loss)  # noqa: B023

        theirs.train(batches, config, between)
        ratios = {
            (name, clock): rounded([a[place] / b[place] for a, b in zip(taken, times["ours"], strict=True)][2:])
            for name, taken in times.items()
            for place, clock in enumerate(("wall", "CPU"))
            if taken and name != "ours"
        }
        report(
            "peers",
            rows="packed" if packed else "one document each",
            parameters=sum(p.numel() for p in mine.model.parameters()),
            tokens_a_step=batches[0].tokens,
            cpu_seconds=round(statistics.median(cpu for _, cpu in times["ours"][2:]), 3),
            times_ours={f"{name}, {clock} time": values for (name, clock), values in ratios.items()},
            largest_difference_of_loss=max(abs(a - b) for a, b in zip(losses, theirs.losses, strict=True)),
        )


def curve(folder: Path, count: int, figure: Path | None) -> None:
    """The losses of `count` steps of ours and of transformers' Trainer from the same weights on the same packed rows."""
    manifest = Manifest.open(folder)
    config = configured(manifest, TINY, 2)
    batches = packed_steps(manifest, count, 2)
    mine = Ours(manifest, config)
    theirs = Theirs(config, {k: v.clone() for k, v in mine.model.state_dict().items()}, True)
    losses: list[float] = []
    theirs.train(batches, config, lambda number, took: losses.append(mine(batches[number])))
    differences = [abs(a - b) for a, b in zip(losses, theirs.losses, strict=True)]
    report("curve", steps=count, first=losses[0], last=losses[-1], theirs_last=theirs.losses[-1], largest_difference=max(differences))
    if figure is not None:
        figure.write_text(drawn(losses, theirs.losses), encoding="utf-8")


def drawn(first: list[float], second: list[float]) -> str:
    """Both curves in one SVG, ours as a wide light line below theirs."""
    low, high = min(first + second), max(first + second)

    def line(values: list[float], style: str) -> str:
        points = " ".join(
            f"{60 + 620 * i / (len(values) - 1):.1f},{300 - 270 * (v - low) / (high - low):.1f}" for i, v in enumerate(values)
        )
        return f'<polyline fill="none" {style} points="{points}"/>'

    words = (
        f'<text x="5" y="35">{high:.2f}</text><text x="5" y="300">{low:.2f}</text><text x="60" y="325">step 1</text>'
        f'<text x="620" y="325">{len(first)}</text><text x="330" y="50">wide: this trainer, thin: transformers Trainer (loss, nats)</text>'
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 335" font-family="sans-serif" font-size="13"><rect width="700" height="335" fill="white"/>'
        + line(first, 'stroke="#9ecae1" stroke-width="6"')
        + line(second, 'stroke="#08519c" stroke-width="1.2"')
        + f"{words}</svg>\n"
    )


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """Wall and CPU seconds: on a shared machine the second says more."""
    now = clocks()
    return now[0] - began[0], now[1] - began[1]


def rounded(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "least": round(min(values), 3), "most": round(max(values), 3)}


def report(part: str, **found: Any) -> None:
    print(json.dumps({"part": part, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["loader", "stall", "memory", "peers", "curve", "one-pass"])
    parser.add_argument("manifest", nargs="?")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rows", nargs="*", choices=["single", "packed"], default=["single", "packed"])
    parser.add_argument("--cache", nargs="*", choices=["warm", "cold"], default=["warm", "cold"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = Path(given.manifest or ".")
    parts: dict[str, Callable[[], None]] = {
        "loader": lambda: loader(folder, given.runs),
        "stall": lambda: stall(folder, given.steps, given.batch, given.cache),
        "memory": memory,
        "one-pass": lambda: one_pass(given.manifest),
        "peers": lambda: peers(folder, given.steps, given.width, given.batch, [form == "packed" for form in given.rows]),
        "curve": lambda: curve(folder, given.steps, given.figure),
    }
    parts[given.part]()


if __name__ == "__main__":
    main()
