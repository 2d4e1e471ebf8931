"""The golden manifest: built again it has the same digest, and what is stored passes every check.

If the digest changed and that is meant, `python tests/golden.py` and `make docs` write it again; the commit says what changed in a manifest.
"""

from __future__ import annotations

from pathlib import Path

import golden
from click.testing import CliRunner

from curation.cli import main
from mixing.manifest import Manifest


def test_golden_recipe_built_by_one_worker_has_the_stored_digest(tmp_path: Path) -> None:
    golden.build(tmp_path / "docs-v1", tmp_path / "work", "--workers", "1")

    assert Manifest.open(tmp_path / "docs-v1").digest == Manifest.open(golden.GOLDEN).digest


def test_stored_golden_manifest_passes_every_check() -> None:
    result = CliRunner().invoke(main, ["verify", str(golden.GOLDEN)])

    assert result.exit_code == 0, result.output
    assert "FAIL" not in result.output
