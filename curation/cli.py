"""`curate`: click verbs, no logic. Results go to stdout, progress and logs to stderr; a user's error is one message and exit code 2."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from mixing import UserError

Command = Callable[..., None]


def answers(command: Command) -> Command:
    """Turns a UserError into its one message, and Ctrl-C into a word on how to go on."""

    @wraps(command)
    def answered(*args: Any, **options: Any) -> None:
        warnings.showwarning = _warn  # type: ignore[assignment]
        try:
            command(*args, **options)
        except UserError as error:
            click.echo(f"curate: {error}", err=True)
            sys.exit(2)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            click.echo(
                f"curate: no room left on the disk{f' for {error.filename}' if error.filename else ''}; make room or choose another",
                err=True,
            )
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("curate: interrupted; what was finished is kept, and the same command goes on from there", err=True)
            sys.exit(130)

    return answered


def _warn(message: Warning | str, *_: Any) -> None:
    print(f"curate: warning: {message}", file=sys.stderr)  # above a bar, if there is one; click writes past it


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="tilth", prog_name="curate")
def main() -> None:
    """Turn raw corpora into a manifest: an exact, verifiable plan of which tokens a model will see, and in which order."""


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-o", "output", type=click.Path(path_type=Path), default=Path("recipe.yaml"), show_default=True, help="The recipe to write.")
@click.option("--base", metavar="MODEL", help="The model to train: its folder, its tokenizer.json, or its name on the hub.")
@click.option("--replace", is_flag=True, help="Replace a recipe of that name.")
@answers
def init(paths: tuple[str, ...], output: Path, base: str | None, replace: bool) -> None:
    """Look at files, folders, patterns or URLs and write a commented recipe for them that builds as it is."""
    from curation import terminal, verbs
    from mixing.progress import watched

    with watched("look at the files"):
        made = verbs.init(paths, output, base, replace=replace)
    click.echo(terminal.started(made))


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "output", type=click.Path(path_type=Path), help="The manifest's folder [default: data_manifests/NAME-vVERSION].")
@click.option("--work", type=click.Path(path_type=Path), help="The work directory [default: .tilth beside the recipe].")
@click.option("--workers", type=click.IntRange(min=1), help="Processes [default: one a core].")
@click.option(
    "--memory", type=click.FloatRange(min=0, min_open=True), metavar="GB", help="What all processes together may hold [default: no limit]."
)
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Processes of this machine, or a Ray cluster."
)
@click.option(
    "--ray-address", envvar="RAY_ADDRESS", show_envvar=True, metavar="HOST:PORT", help="The cluster [default: one of this machine alone]."
)
@click.option("--root", "roots", multiple=True, metavar="NAME=PATH", help="Where the files named NAME:… lie.")
@click.option("--replace", is_flag=True, help="Replace another manifest in the output folder.")
@click.option("--dry-run", is_flag=True, help="Check the recipe, its inputs, budgets and disk from a sample; write nothing.")
@answers
def build(
    recipe: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    work: Path | None,
    workers: int | None,
    memory: float | None,
    engine: str,
    ray_address: str | None,
    roots: tuple[str, ...],
    replace: bool,
    dry_run: bool,
) -> None:
    """Build the manifest of RECIPE. KEY=VALUE sets one value of the recipe, as in mixture.stages.0.tokens=2M."""
    from curation import terminal, verbs
    from curation.engine.local import default_workers

    if ray_address is not None and engine == "local":
        raise UserError(f"--ray-address {ray_address}: the engine is local; add --engine ray, or leave the address out")
    ray = None if engine == "local" else ray_address or "local"
    most = default_workers() if ray is None or dry_run else 0
    how: dict[str, Any] = {"work": work, "workers": workers or most, "memory": memory, "roots": _roots(roots)}
    if dry_run:
        click.echo(terminal.dry_run(verbs.dry_run(recipe, *overrides, **how)))
    else:
        click.echo(terminal.built(verbs.build(recipe, *overrides, output=output, ray=ray, replace=replace, **how)))


def _roots(roots: tuple[str, ...]) -> dict[str, str]:
    named = {}
    for root in roots:
        name, equals, path = root.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--root {root}: write NAME=PATH")
        named[name] = path
    return named


@main.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path(".tilth"), show_default=True, help="The work directory.")
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Keep what builds of the last DAYS refer to.",
)
@click.option("--dry-run", is_flag=True, help="Show what would go; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@answers
def clean(work: Path, days: float, dry_run: bool, yes: bool) -> None:
    """Remove from the work directory what no recent build refers to; it is made anew when it is wanted."""
    from curation import terminal
    from curation.commands.cleanup import survey, sweep

    found = survey(work, days)
    click.echo(terminal.rooms(found))
    if dry_run or all(entry.used for entries in found.values() for entry in entries):
        return
    if not yes and not (sys.stdin.isatty() and click.confirm("Remove what no build refers to?", err=True)):
        raise UserError("curate clean: nothing was removed; pass --yes to remove without asking")
    click.echo(f"{sweep(work, days) / 1e6:,.1f} MB removed")


manifest_argument = click.argument("manifest", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="For a program to read.")
work_option = click.option("--work", type=click.Path(path_type=Path), help="The work directory, if it has moved since the build.")


@main.command()
@manifest_argument
@as_json
@answers
def inspect(manifest: Path, as_json: bool) -> None:
    """Show what MANIFEST holds: asked against realised tokens, epochs, cuts, and the documents left after each step."""
    from curation import terminal
    from mixing.manifest import Manifest

    opened = Manifest.open(manifest)
    click.echo(terminal.as_json(terminal.facts(opened)) if as_json else terminal.inspect(opened))


@main.command()
@manifest_argument
@as_json
@answers
def verify(manifest: Path, as_json: bool) -> None:
    """Re-read everything in MANIFEST and prove its counts; exit code 1 if anything is wrong."""
    from curation import terminal
    from mixing.audit import verify as audit
    from mixing.progress import watched

    findings = []
    with watched("verify") as progress:
        for finding in audit(manifest):
            findings.append(finding)
            progress.reach(0, f"{len(findings)} checks")
    click.echo(terminal.as_json([finding._asdict() for finding in findings]) if as_json else terminal.verified(findings))
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@main.command()
@manifest_argument
@click.option("--reason", help="Only documents with this reason: a rule as written, or part of it.")
@click.option("--decision", type=click.Choice(["kept", "dropped", "held_out", "quarantined"]), help="Only documents with this decision.")
@click.option("--source", help="Only documents of this source.")
@click.option("-n", "documents", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")
@work_option
@answers
def show(manifest: Path, reason: str | None, decision: str | None, source: str | None, documents: int, work: Path | None) -> None:
    """Show texts by decision, quarantined ones too. Needs the work directory."""
    from curation.commands import explain
    from mixing.manifest import Manifest

    for text in explain.show(Manifest.open(manifest), reason, decision, source, documents, work):
        click.echo(text)


@main.command()
@manifest_argument
@click.argument("document", required=False)
@click.option("--text", help="Find the document by its text instead, read from a file with @PATH.")
@work_option
@answers
def why(manifest: Path, document: str | None, text: str | None, work: Path | None) -> None:
    """Say why DOCUMENT (a pool row, a key, or an origin FILE#POSITION) was kept or dropped, and where it is in the plan."""
    from curation.commands import explain
    from mixing.manifest import Manifest

    if (document is None) == (text is None):
        raise UserError("why: name a document by row, key or origin, or give --text; one of them")
    for found in explain.why(Manifest.open(manifest), document, text, work):
        click.echo(found)


@main.command("report")
@manifest_argument
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The page to write.",
)
@click.option("--verify", "prove", is_flag=True, help="Prove everything first, as `curate verify` does, and say so on the page.")
@work_option
@answers
def report_page(manifest: Path, runs: tuple[Path, ...], output: Path, prove: bool, work: Path | None) -> None:
    """Write one self-contained HTML page about MANIFEST for a person to decide by, with the curves of each RUN trained on it. Texts need the work directory."""
    from curation import verbs

    written = verbs.report(manifest, runs, output, verify=prove, work=work)
    click.echo(f"{written}: {written.stat().st_size / 1e6:.2f} MB")


@main.command()
@manifest_argument
@click.option("-o", "output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The Parquet file to write.")
@work_option
@answers
def signatures(manifest: Path, output: Path, work: Path | None) -> None:
    """Write the MinHash signatures of the kept documents of MANIFEST, or of an index, for datasketch.LeanMinHash and others. A manifest needs its work directory."""
    from curation.commands.sketches import write_sketches

    click.echo(f"{output}: {write_sketches(manifest, output, work):,} signatures")


@main.group()
def index() -> None:
    """Keep an index of documents, with which `against: INDEX` in a recipe compares new ones without reading the old texts again."""


index_argument = click.argument("folder", metavar="INDEX", type=click.Path(path_type=Path))


@index.command()
@index_argument
@click.argument("what", metavar="MANIFEST|SOURCES.yaml", type=click.Path(path_type=Path))
@click.option("--name", help="What to call the source in the index [default: the manifest's NAME-vVERSION, or the file's name].")
@click.option("--work", type=click.Path(path_type=Path), help="The work directory [default: the manifest's, or .tilth beside the file].")
@click.option("--workers", type=click.IntRange(min=1), help="Processes [default: one a core].")
@click.option("--root", "roots", multiple=True, metavar="NAME=PATH", help="Where the files named NAME:… lie.")
@answers
def add(folder: Path, what: Path, name: str | None, work: Path | None, workers: int | None, roots: tuple[str, ...]) -> None:
    """Add the kept documents of MANIFEST to INDEX, or all of a YAML file with `sources` and `clean` as in a recipe. Makes the index if it is not there."""
    from curation.commands import indexing
    from curation.engine.local import Run, default_workers

    run = Run(work or what.parent / ".tilth", workers or default_workers(), _roots(roots))
    made, source = indexing.add(folder, what, name, work, run)
    click.echo(f"{folder}: '{source.name}', {source.documents:,} documents, added; digest {made.digest}")


@index.command()
@index_argument
@click.argument("source")
@answers
def remove(folder: Path, source: str) -> None:
    """Remove SOURCE from INDEX."""
    from curation.commands import indexing

    click.echo(f"{folder}: '{source}' removed; digest {indexing.remove(folder, source).digest}")


@index.command("show")
@index_argument
@answers
def show_index(folder: Path) -> None:
    """Show the sources of INDEX."""
    from curation.commands import indexing

    click.echo(indexing.shown(folder))


@index.command("verify")
@index_argument
@click.option("--workers", type=click.IntRange(min=1), help="Processes [default: one a core].")
@answers
def verify_index(folder: Path, workers: int | None) -> None:
    """Re-read everything in INDEX; exit code 1 if anything is not what was written."""
    from curation.commands import indexing
    from curation.engine.local import Run, default_workers

    bad = indexing.verify(folder, Run(Path(), workers or default_workers()))
    click.echo(
        "\n".join(f"damaged: {path}; remove its source and add it again" for path in bad) or f"{folder}: every file is what was written"
    )
    if bad:
        sys.exit(1)


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@as_json
@answers
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Show what differs between two manifests: recipe, inputs, rules, tokens, documents gained and lost, order."""
    from curation import terminal
    from curation.commands import differences
    from mixing.manifest import Manifest

    one, other = Manifest.open(a), Manifest.open(b)
    click.echo(terminal.as_json(differences.facts(one, other)) if as_json else differences.diff(one, other))


@main.command()
@manifest_argument
@click.argument("mixture", type=click.Path(path_type=Path))
@click.option("-o", "output", type=click.Path(path_type=Path), required=True, help="The new manifest's folder.")
@click.option("--consumed", type=click.IntRange(min=0), metavar="N", help="Sequences of MANIFEST that a run has trained, and goes on from.")
@click.option("--root", "roots", multiple=True, metavar="NAME=PATH", help="Where the files named NAME:… lie.")
@click.option("--replace", is_flag=True, help="Replace another manifest in the output folder.")
@answers
def remix(manifest: Path, mixture: Path, output: Path, consumed: int | None, roots: tuple[str, ...], replace: bool) -> None:
    """Plan a new MIXTURE from the documents in MANIFEST, without their texts; in the middle of a run nothing trained is planned again."""
    from curation import terminal
    from curation.commands.remix import remix as remix_manifest
    from mixing.manifest import Manifest

    click.echo(
        terminal.remixed(remix_manifest(Manifest.open(manifest), mixture, output, consumed=consumed, replace=replace, roots=_roots(roots)))
    )


@main.command()
@manifest_argument
@click.option("--to", type=click.Choice(["megatron", "mds"]), required=True, help="Megatron-LM's .bin/.idx, or MosaicML Streaming's MDS.")
@click.option("-o", "output", type=click.Path(path_type=Path), required=True, help="The folder to write; new or empty.")
@click.option("--compression", type=click.Choice(["zstd"]), help="Compress the shards (mds).")
@answers
def export(manifest: Path, to: Any, output: Path, compression: Any) -> None:
    """Write the plan of MANIFEST for another trainer: the same sequences in the same order."""
    from curation import terminal
    from mixing.export import export as export_plan
    from mixing.manifest import Manifest
    from mixing.progress import watched

    opened = Manifest.open(manifest)
    with watched("export", opened.sequences, "sequences") as progress:
        made = export_plan(opened, to, output, compression=compression, advance=progress.advance)
    click.echo(terminal.exported(made))
