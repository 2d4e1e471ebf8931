"""Builds the documentation as a site of plain HTML: `python docs/build_site.py build/site`. No network, neither here nor in the pages; they open from disk too.

The pages are the Markdown files of the project, copied with what they link to under the names they have, so that every link reads the same on the site and in the repository. mkdocs
builds them strictly: a link or an anchor that leads nowhere, and a page that `docs/mkdocs.yml` does not list, fail it. `outside` then looks at what the pages load.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    *(
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "docs/LOG.md",
        "docs/guides/*.md",
        "docs/concepts/*.md",
        "docs/reference/*.md",
    ),
    *(
        "data_manifests/README.md",
        "data_manifests/*.yaml",
        "benchmarks/*.md",
        "benchmarks/*.svg",
        "experiments/**/*.md",
        "experiments/**/*.svg",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the documentation as a site.")
    parser.add_argument("folder", type=Path, help="where to; emptied first")
    folder = parser.parse_args().folder
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    build(folder)
    if found := outside(folder):
        sys.exit("the site would load from elsewhere: " + ", ".join(found))
    print(f"{len(list(folder.rglob('*.html')))} pages in {folder}; open {folder / 'index.html'}")


def build(folder: Path) -> None:
    """The site in `folder`; a UserWarning of mkdocs is an error."""
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    shutil.rmtree(folder, ignore_errors=True)
    folder = folder.resolve()
    source = folder.parent / f"{folder.name}-pages"
    shutil.rmtree(source, ignore_errors=True)
    for path in sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}):
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    build_site(load_config(str(ROOT / "docs" / "mkdocs.yml"), docs_dir=str(source), site_dir=str(folder), strict=True))
    shutil.rmtree(source)


def outside(folder: Path) -> list[str]:
    """What the pages would load from another place: scripts, styles, fonts, images. A link that one has to click on is none."""
    loads = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"' >]+|<link\b[^>]*\bhref=["']?(?:https?:)?//[^"' >]+"""
    )
    fetches = re.compile(r"""(?:@import\s+|url\()["']?(?:https?:)?//[^"')]+""")
    found = [(page, match[0]) for page in folder.rglob("*.html") for match in loads.finditer(page.read_text(encoding="utf-8"))]
    found += [(sheet, match[0]) for sheet in folder.rglob("*.css") for match in fetches.finditer(sheet.read_text(encoding="utf-8"))]
    return sorted({f"{page.relative_to(folder)}: {what}" for page, what in found})


if __name__ == "__main__":
    main()
