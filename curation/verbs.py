"""What `curate` does, as functions: the same words, values instead of printed text. `import curation` offers them all without importing any of what they need.

A path may be a string, and `Opened` is a `Manifest` or the path of one. What a user can mend is a `mixing.UserError` with the message that the command prints. `workers` is 1 here: a script that asks for more, which are processes of
their own, has to be importable, with its work below `if __name__ == "__main__":`; a notebook needs nothing, and shows what a function made as its command prints it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace as replace_in
from pathlib import Path
from typing import Any, Literal

from curation import terminal
from curation.build import Built
from curation.build import build as build_manifest
from curation.commands import cleanup, differences, explain, indexing, sketches
from curation.commands.estimate import Estimate, estimate
from curation.commands.remix import Remixed
from curation.commands.remix import remix as remix_manifest
from curation.dedup.index import Index
from curation.engine.local import Run
from curation.engine.work_directory import write_text
from curation.page.compose import report as make_page
from curation.recipe import Recipe, load
from curation.starter.init import Started
from curation.starter.init import init as write_recipe
from mixing import UserError, validated
from mixing.audit import verify as audit
from mixing.export import Compression, Exported, Format
from mixing.export import export as export_plan
from mixing.findings import Finding
from mixing.manifest import Manifest

Decision = Literal["kept", "dropped", "held_out", "quarantined"]
Opened = Manifest | Path | str


def init(
    paths: Sequence[Path | str] | Path | str, output: Path | str = "recipe.yaml", base: str | None = None, *, replace: bool = False
) -> Started:
    """Looks at files, folders, patterns or URLs and writes a commented recipe for them that builds as it is; `base` is the model to train."""
    several = [paths] if isinstance(paths, Path | str) else list(paths)
    return write_recipe([str(path) for path in several], Path(output), base, replace=replace)


def build(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *overrides: str,
    output: Path | str | None = None,
    work: Path | str | None = None,
    workers: int = 1,
    memory: float | None = None,
    roots: Mapping[str, str] | None = None,
    ray: str | None = None,
    replace: bool = False,
) -> Built:
    """Builds the manifest of a recipe: a file, or its values as a mapping, whose paths then start in the current folder. `overrides` are as on the command line, `memory` is in GB.
    `ray` is the address of a cluster, or `local` for one of this machine alone; there 0 `workers` are as many as it has processors. `Built.manifest` opens what was made."""
    loaded, folder = _recipe(recipe, overrides)
    target = _writable("-o", output) if output is not None else Path("data_manifests") / f"{loaded.name}-v{loaded.version}"
    return build_manifest(loaded, folder, target, replace_in(_run(folder, work, workers, memory, roots), ray=ray), replace=replace)


def dry_run(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *overrides: str,
    work: Path | str | None = None,
    workers: int = 1,
    memory: float | None = None,
    roots: Mapping[str, str] | None = None,
) -> Estimate:
    """What a build of the recipe would find, from samples; writes nothing."""
    loaded, folder = _recipe(recipe, overrides)
    return estimate(loaded, folder, _run(folder, work, workers, memory, roots))


def _recipe(recipe: Recipe | Mapping[str, Any] | Path | str, overrides: Sequence[str]) -> tuple[Recipe, Path]:
    """The recipe, and the folder where its paths start."""
    if not all(isinstance(override, str) for override in overrides):
        raise TypeError(
            f"found {overrides!r} after the recipe, where overrides are, strings such as 'seed=3'; a folder to write is output="
        )
    if isinstance(recipe, Path | str):
        return load(Path(recipe), overrides), Path(recipe).parent
    if overrides:
        raise TypeError("overrides are for a recipe in a file; change the values themselves")
    return recipe if isinstance(recipe, Recipe) else validated(Recipe, recipe), Path()


def _run(folder: Path, work: Path | str | None, workers: int, memory: float | None, roots: Mapping[str, str] | None) -> Run:
    return Run(folder / ".tilth" if work is None else _writable("--work", work), workers, dict(roots or {}), memory)


def _writable(option: str, folder: Path | str) -> Path:
    """A folder that is written to. One in an object store is refused: what lies there cannot be mapped, locked or renamed."""
    if url := re.match(r"(\w+):/+(.*)", str(folder)):  # a path has lost a slash
        raise UserError(
            f"{option} {url[1]}://{url[2]}: a build writes to a file system, in a cluster to one that all nodes share; sources may lie in an object store"
        )
    return Path(folder)


def _opened(manifest: Opened) -> Manifest:
    return manifest if isinstance(manifest, Manifest) else Manifest.open(manifest)


def inspect(manifest: Opened) -> dict[str, Any]:
    """The header with its digest, effective tokens, and what the build counted besides: what `inspect --json` prints."""
    return terminal.facts(_opened(manifest))


def verify(manifest: Opened) -> list[Finding]:
    """Every check of the manifest, re-read from its bytes; `Finding.ok` says whether it holds."""
    return list(audit(manifest.folder if isinstance(manifest, Manifest) else manifest))


def show(
    manifest: Opened,
    *,
    reason: str | None = None,
    decision: Decision | None = None,
    source: str | None = None,
    documents: int = 10,
    work: Path | str | None = None,
) -> list[str]:
    """Texts by decision, as `curate show` prints them, evenly spread over those that match. Needs the work directory."""
    return list(explain.show(_opened(manifest), reason, decision, source, documents, None if work is None else Path(work)))


def why(manifest: Opened, document: int | str | None = None, *, text: str | None = None, work: Path | str | None = None) -> list[str]:
    """Why a document was kept or dropped, and where it is in the plan: by pool row, key or origin, or by its text."""
    if (document is None) == (text is None):
        raise TypeError("name a document by row, key or origin, or give its text; one of them")
    named = None if document is None else str(document)
    return list(explain.why(_opened(manifest), named, text, None if work is None else Path(work)))


def diff(a: Opened, b: Opened) -> dict[str, Any]:
    """What differs between two manifests: recipe, inputs, rules, tokens, documents, order; what `diff --json` prints."""
    return differences.facts(_opened(a), _opened(b))


def report(
    manifest: Opened,
    runs: Sequence[Path | str] = (),
    output: Path | str = "report.html",
    *,
    verify: bool = False,
    work: Path | str | None = None,
) -> Path:
    """Writes one self-contained HTML page about a manifest, with the curves of runs trained on it, and returns its path; `verify` has everything proved first. Texts need the work directory."""
    page = make_page(_opened(manifest), [Path(run) for run in runs], None if work is None else Path(work), prove=verify)
    write_text(Path(output), page)
    return Path(output)


def remix(
    manifest: Opened,
    mixture: Path | str,
    output: Path | str,
    *,
    consumed: int | None = None,
    roots: Mapping[str, str] | None = None,
    replace: bool = False,
) -> Remixed:
    """A new plan from the documents of a manifest, by the mixture in a file; `consumed` is how many of its sequences a run has trained and goes on from."""
    return remix_manifest(_opened(manifest), Path(mixture), Path(output), consumed=consumed, replace=replace, roots=roots)


def export(manifest: Opened, to: Format, output: Path | str, *, compression: Compression | None = None) -> Exported:
    """The plan for another trainer: `megatron` or `mds`, whose shards `compression="zstd"` compresses."""
    return export_plan(_opened(manifest), to, Path(output), compression=compression)


def signatures(manifest: Path | str, output: Path | str, *, work: Path | str | None = None) -> int:
    """Writes the MinHash signatures of the kept documents of a manifest, or of an index, to a Parquet file; how many there are."""
    return sketches.write_sketches(Path(manifest), Path(output), None if work is None else Path(work))


def index_add(
    index: Path | str,
    what: Path | str,
    *,
    name: str | None = None,
    work: Path | str | None = None,
    workers: int = 1,
    roots: Mapping[str, str] | None = None,
) -> Index:
    """Adds the kept documents of a manifest, or the documents of a YAML file of sources, to a persistent index, which is made if it is not there."""
    run = _run(Path(what).parent, work, workers, None, roots)
    return indexing.add(Path(index), Path(what), name, None if work is None else Path(work), run)[0]


def index_remove(index: Path | str, source: str) -> Index:
    """Removes a source from an index."""
    return indexing.remove(Path(index), source)


def index_show(index: Path | str) -> Index:
    """The index with its sources."""
    return Index.open(Path(index))


def index_verify(index: Path | str, *, workers: int = 1) -> list[str]:
    """The files of an index that are not what was written; none if all is well."""
    return list(indexing.verify(Path(index), Run(Path(), workers)))


def clean(work: Path | str = ".tilth", *, older_than: float = 30.0) -> int:
    """Removes from a work directory what no build of the last `older_than` days refers to; the bytes made free."""
    return cleanup.sweep(Path(work), older_than)


def _show_in_notebooks() -> None:
    """Has IPython, if this is one, show what these functions make as a person wants to read it."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None:
        return
    texts = {
        Started: terminal.started,
        Estimate: terminal.dry_run,
        Built: terminal.built,
        Remixed: terminal.remixed,
        Exported: terminal.exported,
    }
    for kind, told in texts.items():
        shell.display_formatter.formatters["text/plain"].for_type(kind, lambda made, page, _, told=told: page.text(told(made)))


_show_in_notebooks()
