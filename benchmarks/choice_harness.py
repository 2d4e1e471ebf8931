"""Does our multiple choice give lm-evaluation-harness' accuracies?

    python benchmarks/choice_harness.py MODEL MANIFEST QUESTIONS.parquet [--limit 500] [--python PEER_PYTHON]

The same questions of each task go to `python -m train evaluate` and, as user tasks, to lm-evaluation-harness (its own environment's python, where it
is not installed in this one), on the same Hugging Face folder. Prints accuracy, length-normalised accuracy and seconds of both, per task.
QUESTIONS has the columns task, question, choices, answer_idx.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]
PROMPT = "Question: {question}\nAnswer:"
HARNESS = """
import json, sys, time
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
import torch
torch.set_num_threads(1)
model, include, *tasks = sys.argv[1:]
began = time.perf_counter()
given = simple_evaluate(model="hf", model_args={"pretrained": model, "dtype": "float32"}, tasks=tasks, batch_size=16, device="cpu",
    task_manager=TaskManager(include_path=include), bootstrap_iters=0)
print("RESULT" + json.dumps({"seconds": time.perf_counter() - began,
    "tasks": {task: [values["acc,none"], values["acc_norm,none"]] for task, values in given["results"].items()}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--limit", type=int, default=500, help="questions of each task")
    parser.add_argument("--python", default=sys.executable, help="a python with lm-evaluation-harness")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        counts = tasks_of(arguments.questions, arguments.limit, Path(scratch))
        ours, our_seconds = measured(arguments.model, arguments.manifest, counts, Path(scratch))
        theirs = harness(arguments.python, arguments.model, counts, Path(scratch))
    print(f"{'task':12}{'questions':>10}{'accuracy':>10}{'harness':>10}{'normalised':>12}{'harness':>10}")
    for task, count in counts.items():
        mine = ours[f"accuracy/{task}"], ours[f"accuracy_normalised/{task}"]
        peer = theirs["tasks"][task]
        print(
            f"{task:12}{count:10}{mine[0]:10.4f}{peer[0]:10.4f}{mine[1]:12.4f}{peer[1]:10.4f}{'' if list(mine) == peer else '  DIFFERENT'}"
        )
    print(f"\n{our_seconds:.1f} s with start-up and hold-out, the harness {theirs['seconds']:.1f} s without its imports")


def tasks_of(questions: Path, limit: int, scratch: Path) -> dict[str, int]:
    """Files of the first `limit` questions of every task, for both sides; the number of each."""
    table = pq.read_table(questions, columns=["task", "question", "choices", "answer_idx"]).to_pylist()
    chosen: dict[str, list[dict[str, object]]] = {}
    for row in table:
        if len(chosen.setdefault(row["task"], [])) < limit:
            chosen[row["task"]].append(row)
    for task, rows in chosen.items():
        pq.write_table(pa.Table.from_pylist(rows), scratch / f"{task}.parquet")
        described = {
            "task": task,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": str(scratch / f"{task}.parquet")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer_idx}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        (scratch / f"{task}.yaml").write_text(yaml.safe_dump(described))
    return dict(Counter({task: len(rows) for task, rows in chosen.items()}))


def measured(model: Path, manifest: Path, counts: dict[str, int], scratch: Path) -> tuple[dict[str, float], float]:
    config = scratch / "evaluate.yml"
    config.write_text(yaml.safe_dump({"tasks": {task: {"file": str(scratch / f"{task}.parquet"), "prompt": PROMPT} for task in counts}}))
    began = time.perf_counter()
    command = [sys.executable, "-m", "train", "evaluate", str(model), str(manifest), "-c", str(config), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    return {row["metric"]: row["value"] for row in rows}, time.perf_counter() - began


def harness(python: str, model: Path, counts: dict[str, int], scratch: Path) -> dict[str, dict[str, list[float]]]:
    answer = subprocess.run([python, "-c", HARNESS, str(model), str(scratch), *counts], capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit(answer.stderr[-3000:])
    found: dict[str, dict[str, list[float]]] = json.loads(answer.stdout.split("RESULT")[-1])
    return found


if __name__ == "__main__":
    main()
