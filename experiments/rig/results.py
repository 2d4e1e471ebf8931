"""What a claim's runs measured, in a small JSON file that is kept in the repository: every table, figure and verdict is made from these files alone.

A file holds the scale, the exams' digests, commit and machine, and one entry an arm, domain and seed: the manifest's digest, the run's folder name, how it
was configured, the loss of every source at every mark, and what else the arm is judged by.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.rig.corpora import DOMAINS, GENERAL
from experiments.rig.judging import Place, mean
from experiments.rig.running import ROOT, digest

EXAM_LOSS = "loss/exam-v1/"
FOLDER = ROOT / "experiments" / "results"
MACHINE = ("commit", "date", "hardware", "python")  # what a file says of each domain's runs


class Result(NamedTuple):
    """One arm of one seed. `curve`: tokens and the loss of each source, from token 0 on; a soup's or sweep's single point has one mark."""

    arm: str
    domain: str
    seed: int
    manifest: str
    run: str
    curve: list[tuple[int, dict[str, float]]]
    extra: dict[str, float] = {}  # noqa: RUF012 - never changed

    @property
    def place(self) -> Place:
        return self.domain, self.seed

    @property
    def end(self) -> dict[str, float]:
        return self.curve[-1][1]

    def domain_loss(self, mark: int = -1) -> float:
        return mean([self.curve[mark][1][kind] for kind in DOMAINS[self.domain].kinds])

    def guard_loss(self, mark: int = -1) -> float:
        return mean([self.curve[mark][1][kind] for kind in GENERAL])


def of_run(arm: str, domain: str, seed: int, manifest: Path, run: Path, **extra: float) -> Result:
    """From a run's measurements.jsonl."""
    marks: dict[int, dict[str, float]] = {}
    for line in (run / "measurements.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["metric"].startswith("loss/exam-v1/") or row["metric"].startswith(("accuracy/", "margin/")):
            marks.setdefault(row["tokens"], {})[row["metric"].removeprefix("loss/exam-v1/")] = row["value"]
    return Result(arm, domain, seed, digest(manifest), run.name, sorted(marks.items()), extra)


def exam_losses(values: Mapping[str, float]) -> dict[str, float]:
    """Of metrics as a sweep stores them, the exam's losses by source."""
    return {name.removeprefix(EXAM_LOSS): value for name, value in values.items() if name.startswith(EXAM_LOSS)}


class Results(NamedTuple):
    """All arms of one claim."""

    rows: list[Result]

    def find(self, arm: str, place: Place) -> Result | None:
        return next((row for row in self.rows if row.arm == arm and row.place == place), None)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(row.arm for row in self.rows))

    @property
    def places(self) -> list[Place]:
        return sorted({row.place for row in self.rows}, key=lambda place: (place[0] != "medical", place))

    def of(self, arm: str, domain: str) -> list[Result]:
        return [row for row in self.rows if row.arm == arm and row.domain == domain]

    def effect(self, arms: Sequence[str], measure: Callable[..., float]) -> dict[Place, float]:
        """`measure` of the named arms, wherever all of them were run."""
        found = {}
        for place in self.places:
            there = [self.find(arm, place) for arm in arms]
            if all(there):
                found[place] = measure(*there)
        return found

    def difference(self, arm: str, control: str, measure: Callable[[Result], float]) -> dict[Place, float]:
        """Paired: `arm` minus `control`."""
        return self.effect([arm, control], lambda one, other: measure(one) - measure(other))


def load(claim: str, folder: Path = FOLDER) -> Results:
    file = folder / f"{claim}.json"
    if not file.exists():
        return Results([])
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return Results([Result(**row | {"curve": [(mark["tokens"], mark["loss"]) for mark in row["curve"]]}) for row in rows])


def story(claim: str, folder: Path = FOLDER) -> str:
    """On what the claim's results were made, in a line."""
    about = json.loads((folder / f"{claim}.json").read_text(encoding="utf-8"))
    exams = ", ".join(f"{name.replace('_', ' ')} `{value[:12]}`" for name, value in about.items() if name.startswith("exam_"))
    made: dict[str, list[str]] = {}
    for domain, one in sorted(about["made"].items(), key=lambda item: item[0] != "medical"):
        made.setdefault(f"commit {one['commit']}, {one['date']}, {one['hardware']}", []).append(domain)
    of = [f"{', '.join(domains)}: {where}" if len(made) > 1 else where for where, domains in made.items()]
    return f"{'; '.join(of)}; scale {about['scale']['name']}; {exams}"


def save(claim: str, found: Sequence[Result], about: dict[str, Any], folder: Path = FOLDER) -> None:
    """Adds rows to the claim's file; an arm, domain and seed that is there is replaced. `about` has `MACHINE`, the scale and the exams' digests."""
    new = {(row.arm, row.place): row for row in found}
    kept = {(row.arm, row.place): row for row in load(claim, folder).rows} | new
    rows = [row._asdict() | {"curve": [{"tokens": tokens, "loss": rounded(loss)} for tokens, loss in row.curve]} for row in kept.values()]
    file = folder / f"{claim}.json"
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    exams = {name: value for name, value in before.items() if name.startswith("exam_")}
    now = {name: about[name] for name in MACHINE if name in about}
    made = before.get("made", {}) | {row.domain: now for row in found}
    rest = {name: value for name, value in about.items() if name not in MACHINE}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"claim": claim, **exams, **rest, "made": made, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def rounded(losses: dict[str, float]) -> dict[str, float]:
    return {source: round(value, 6) for source, value in losses.items()}


def machine() -> dict[str, str]:
    """The commit and hardware that a result is of."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "curation", "mixing", "train"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    model = next((line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")), platform.processor())
    return {
        "commit": commit + (" and changes" if changed.stdout else ""),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} x {model}",
        "python": platform.python_version(),
    }


def cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8").splitlines() if info.exists() else []
