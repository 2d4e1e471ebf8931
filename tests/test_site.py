"""The documentation as a site: it builds from the pages as they are, loads nothing from elsewhere, and a link that leads nowhere fails it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def site(project: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(project / "docs" / "build_site.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the pages."""
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
        (tmp_path / "project").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "project" / name)
    for name in ("docs", "data_manifests", "benchmarks", "experiments"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "project" / name)
    return tmp_path / "project"


def test_site_builds_from_the_pages_with_every_page_and_without_the_network(tmp_path: Path) -> None:
    done = site(ROOT, tmp_path / "site")

    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    pages = [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in (ROOT / "docs").glob("*/*.md")]
    assert set(pages) <= made
    assert {"index.html", "data_manifests/index.html"} <= made
    assert not (tmp_path / "site-pages").exists()


@pytest.mark.parametrize(
    ("page", "text", "part"),
    [
        ("docs/guides/first-manifest.md", "[x](nowhere.md)", "nowhere.md"),
        ("docs/guides/first-manifest.md", "[x](../concepts/training.md#nothing-of-this-name)", "nothing-of-this-name"),
        ("README.md", "[x](docs/missing/page.md)", "docs/missing/page.md"),
        ("README.md", '<script src="https://cdn.example.org/x.js"></script>', "would load from elsewhere"),
        ("docs/guides/unlisted.md", "# A page in no menu", "unlisted.md"),
    ],
)  # fmt: skip
def test_link_to_nowhere_unlisted_page_or_foreign_script_fails_the_site(
    project: Path, tmp_path: Path, page: str, text: str, part: str
) -> None:
    path = project / page
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + f"\n{text}\n", encoding="utf-8")

    done = site(project, tmp_path / "site")

    assert done.returncode != 0
    assert part in done.stderr + done.stdout
