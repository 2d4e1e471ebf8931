"""The claims, one command each: `python -m experiments run replay --corpora DIR`. What is finished is not repeated.

`claims` runs those that are gated, `claims-full` all; both end with the verdicts, and with exit code 1 if a gate is broken. `pages` writes the tables of
README.md and of each claim's page, and the figures, from the stored results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from experiments.rig import corpora, pages
from experiments.rig.claim import Claim
from experiments.rig.files import alone
from experiments.rig.recipes import Rig
from experiments.rig.results import FOLDER, load, machine, save
from experiments.rig.running import ROOT, Workshop, digest
from experiments.rig.scale import SCALES

NAMES = (
    "flagship",
    "replay",
    "subset",
    "soup",
    "interleaved",
    "learning_rate",
    "stability_gap",
    "epochs",
    "matched_replay",
    "curriculum",
    "topic_controller",
    "characterise",
    "durations",
    "qa_share",
    "corruption",
)
SEEDS = (11, 12, 13)


def claims() -> list[Claim]:
    found = [import_module(f"experiments.{name}").CLAIM for name in NAMES]
    return [one for one in found if isinstance(one, Claim)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments", description="The papers' claims in miniature.")
    parser.add_argument("what", choices=("run", "claims", "claims-full", "pages"))
    parser.add_argument("names", nargs="*", help="with run: which claims")
    parser.add_argument("--corpora", type=Path, help="a folder with a folder for each corpus (see experiments/README.md)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "experiments")
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    parser.add_argument("--seeds", type=numbers, default=SEEDS, help="whole numbers with commas between")
    parser.add_argument(
        "--domains",
        type=domains,
        default=["medical"],
        help="medical, math or both; a claim that is of one alone is passed over in the other",
    )
    parser.add_argument("--jobs", type=processes, default=1, help="claims and seeds at once, one thread each")
    parser.add_argument("--results", type=Path, default=FOLDER)
    asked = parser.parse_args(arguments)
    chosen = [
        claim for claim in claims() if asked.what == "claims-full" or (asked.what == "claims" and claim.gated) or claim.name in asked.names
    ]
    if unknown := sorted(set(asked.names) - set(NAMES)):
        parser.error(f"{unknown[0]}: no such claim; there are: {', '.join(NAMES)}")
    if asked.what == "run" and not chosen:
        parser.error(f"run: name one claim or more of: {', '.join(NAMES)}")
    if asked.what != "pages":
        if asked.corpora is None or not asked.corpora.is_dir():
            parser.error(f"--corpora: found {asked.corpora}; give the folder in which the corpora lie (experiments/README.md says which)")
        if missing := [kind for kind in corpora.kinds() if not (asked.corpora / kind).is_dir()]:
            parser.error(f"--corpora: {asked.corpora} has no folder {', '.join(missing)}; experiments/README.md says what lies in them")
        try:
            run(chosen, asked)
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
            return 130
    pages.write(claims(), asked.results)
    broken = [line for claim in chosen for line in pages.broken(claim, load(claim.name, asked.results))]
    print("\n".join([*(pages.verdict_line(claim, load(claim.name, asked.results)) for claim in chosen), *broken]))
    return 1 if broken else 0


def numbers(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"found {text!r}; whole numbers with commas between, such as 11,12,13")
    return [int(part) for part in text.split(",")]


def domains(text: str) -> list[str]:
    if unknown := [name for name in text.split(",") if name not in corpora.DOMAINS]:
        raise argparse.ArgumentTypeError(f"found {unknown[0]!r}; there are {', '.join(corpora.DOMAINS)}")
    return text.split(",")


def processes(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}; a whole number from 1")
    return int(text)


def run(chosen: Sequence[Claim], asked: argparse.Namespace) -> None:
    """Claim by claim, each for all seeds before the next begins, so that no seed is left to run alone; results are stored as soon as a seed has them."""
    scale = SCALES[asked.scale]
    folder = (asked.work / scale.name).resolve()
    corpora.prepare(asked.corpora, folder / "corpora", scale.vocabulary)
    rigs = [Rig(Workshop(folder), scale, domain, seed) for domain in asked.domains for seed in asked.seeds]
    for rig in rigs:  # what all seeds share is made before any begins
        rig.made()

    def one(claim: Claim, rig: Rig) -> None:
        found = claim.run(rig)
        about = machine() | {"scale": scale.described(), f"exam_{rig.domain}": digest(rig.exam)}
        with alone(folder / "results.lock"):
            save(claim.name, found, about, asked.results)
        print(f"{claim.name}, {rig.domain}, seed {rig.seed}: stored", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(asked.jobs) as pool:
        try:
            for done in [pool.submit(one, claim, rig) for claim in chosen for rig in rigs if rig.domain in claim.domains]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # one that failed ends those that have not begun
            raise


if __name__ == "__main__":
    sys.exit(main())
