"""Kill a build at random instants, resume it until it ends, and compare its digest with that of a build left alone.

    python benchmarks/kill_and_resume.py RECIPE --kills 12

Each round starts from nothing: `curate build` on two workers is killed with SIGKILL after a random time, and started again on what it left in its work directory, until it
ends; after eight kills it is left alone. Prints one line a round and exits 1 if any digest differs.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

CURATE = [sys.executable, "-c", "from curation.cli import main; main(prog_name='curate')"]


def build(recipe: Path, folder: Path, seconds: float | None) -> bool:
    """Runs a build to its end, or kills it after `seconds`; whether it ended."""
    command = [*CURATE, "build", str(recipe), "-o", str(folder / "manifest"), "--work", str(folder / "work"), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        sys.exit(errors.decode())
    return True


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "manifest" / "manifest.json").read_bytes()).hexdigest()


@click.command()
@click.argument("recipe", type=click.Path(exists=True, path_type=Path))
@click.option("--kills", default=12, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(recipe: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        alone, killed = Path(scratch, "alone"), Path(scratch, "killed")
        build(recipe, Path(scratch, "warm"), None)  # kernels compile on their first use
        began = time.monotonic()
        build(recipe, alone, None)
        length = time.monotonic() - began
        print(f"left alone: {length:.1f} s, digest {digest(alone)}")
        done, differing = 0, 0
        while done < kills:
            shutil.rmtree(killed, ignore_errors=True)
            seconds = [chance.uniform(0.5, length) for _ in range(8)]
            survived = next((number for number, instant in enumerate(seconds) if build(recipe, killed, instant)), len(seconds))
            if survived == len(seconds):
                build(recipe, killed, None)
            seconds = seconds[:survived]
            done += len(seconds)
            differing += digest(killed) != digest(alone)
            waits = ", ".join(f"{instant:.1f}" for instant in seconds) or "no"
            print(f"killed after {waits} s, then {'the same' if digest(killed) == digest(alone) else 'ANOTHER'} digest")
        print(f"{done} kills, {differing} builds with another digest")
        sys.exit(differing > 0)


if __name__ == "__main__":
    main()
