"""Builds the golden manifest, data_manifests/docs-v1, from the frozen pages: `python tests/golden.py` writes it again after a meant change.

It is stored without provenance.json, which says on which machine and where a manifest was built.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "data_manifests" / "docs.yaml"
GOLDEN = ROOT / "data_manifests" / "docs-v1"


def build(folder: Path, work: Path, *words: str) -> None:
    """Builds the golden recipe with the real command, in a process of its own."""
    command = [sys.executable, "-c", "from curation.cli import main; main()", "build", RECIPE, "-o", folder, "--work", work, *words]
    subprocess.run(command, cwd=ROOT, check=True)


def without_provenance(folder: Path) -> None:
    (folder / "provenance.json").unlink()
    listed = json.loads((folder / "files.json").read_text())
    kept = [entry for entry in listed if entry["path"] != "provenance.json"]
    (folder / "files.json").write_text(json.dumps(kept, separators=(",", ":"), sort_keys=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        build(Path(scratch) / "docs-v1", Path(scratch) / "work")
        without_provenance(Path(scratch) / "docs-v1")
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(Path(scratch) / "docs-v1", GOLDEN)
