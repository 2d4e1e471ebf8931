"""E11: synthetic questions and answers about facts that prose tells, as a share of an equal budget."""

from __future__ import annotations

from typing import Any

from experiments.rig import facts
from experiments.rig.arms import trained
from experiments.rig.claim import Claim
from experiments.rig.corpora import GENERAL
from experiments.rig.files import write_text
from experiments.rig.judging import Check
from experiments.rig.recipes import BOOKS, Rig, of_sources, stage
from experiments.rig.results import Result, Results

TEMPLATE = "---\nextends: qa\n---\n=== document\nQuestion: {{ question }}\nAnswer: {{ answer }}\n"
PROSE, SHARES = 0.3, (0.0, 0.1, 0.2, 0.4)
ARMS = {f"qa-{share * 100:02.0f}": f"{share * 100:.0f} % questions and answers" for share in SHARES}


def run(rig: Rig) -> list[Result]:
    return [world(rig, arm, share, PROSE) for arm, share in zip(ARMS, SHARES, strict=True)]


def world(rig: Rig, arm: str, share: float, prose: float, corrupt: float = 0.0) -> Result:
    """An arm with `share` of its tokens questions and answers, `prose` the prose that they are made from, the rest general text. Nothing is dropped as
    a duplicate, since a fact is asked again and again."""
    told, file, test = facts.write(rig.corpora, rig.seed)
    template = write_text(rig.corpora / "facts_qa.md", TEMPLATE)
    asked = {
        "from": "source = 'prose'",
        "template": str(template),
        "per_document": 4,
        "model": "rule",
        "backend": {"kind": "server"},
        "corrupt": corrupt,
    }
    sources: dict[str, Any] = {"prose": {"files": f"corpora:{file.name}"}} | rig.general() | {"qa": {"synthesize": asked}}
    general = 1 - share - prose
    weights = {"prose": prose, "qa": share} | dict(zip(GENERAL, (general * BOOKS, general * (1 - BOOKS)), strict=True))
    used = {name: weight for name, weight in weights.items() if weight}
    recipe = rig.plain(sources, of_sources(list(used)), [stage(rig.scale.tokens, used)], [], max_epochs=8)
    with facts.answering(told) as url:
        manifest = rig.workshop.manifest(f"{arm}-{rig.seed}", recipe, roots=[f"qa={url}"])
    tasks = {"facts": {"file": str(test), "prompt": "Question: {question}\nAnswer:"}}
    return trained(rig, arm, manifest, marks={"first": None, "every": 0.5, "tasks": tasks})


def accuracy(result: Result) -> float:
    return result.end["accuracy/facts"]


def checks(results: Results) -> list[Check]:
    none, tenth, fifth, most = ARMS
    return [
        Check("accuracy, 0 % - 20 %", results.difference(none, fifth, accuracy), unit="of the questions"),
        Check("accuracy, 0 % - 10 %", results.difference(none, tenth, accuracy), unit="of the questions"),
        Check("guard, 20 % - 0 %", results.difference(fifth, none, Result.guard_loss), 0.1),
        Check("accuracy, 40 % - 20 %", results.difference(most, fifth, accuracy), decides=False, unit="of the questions"),
    ]


CLAIM = Claim(
    "qa_share",
    "Synthetic questions and answers help",
    "A share of synthetic question-answer text in an equal budget makes a model answer better than prose alone; about 20 % is best.",
    "Llama-3-SynE, arXiv 2407.18743",
    run,
    checks,
    ARMS,
    domains=("medical",),
    columns={"accuracy": accuracy, "margin": lambda row: row.end["margin/facts"]},
)
