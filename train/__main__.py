"""`python -m train`, also as `torchrun -m train` and `tilth-train`: the commands, no logic. Help needs neither torch nor transformers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixing import UserError

if TYPE_CHECKING:
    from train.config import Start


@contextmanager
def _refusals() -> Iterator[None]:
    """A UserError as one message on stderr and exit code 2, Ctrl-C as a word on how to go on, from one process of a machine."""
    try:
        yield
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            click.echo("interrupted; a run goes on from its newest checkpoint with --start resume, a sweep with the same command", err=True)
        raise SystemExit(130) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train a language model from a manifest."""


@main.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--start",
    type=click.Choice(["fresh", "weights", "weights-optimizer", "continue", "resume"]),
    help="fresh: random weights. weights: those of model.path, with a new optimizer. weights-optimizer: both of --from, at the rates of CONFIG, from "
    "token 0. continue: go on from --from with a manifest remixed from its own. resume: go on from the newest checkpoint in RUN, exactly. "
    "Default: weights if the configuration has model.path, else fresh; a run with checkpoints is only ever resumed.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="The run, or one of its checkpoints, for weights-optimizer and continue.",
)
@click.option(
    "-o",
    "--output",
    "run_folder",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="The run folder. Default: runs/<name>-v<version> of the manifest.",
)
def run(
    manifest: Path, config: Path, overrides: tuple[str, ...], start: Start | None, source: Path | None, run_folder: Path | None
) -> None:
    """Train from a manifest as a configuration says.

    MANIFEST is a folder or its manifest.json, CONFIG a YAML file that key.key=value overrides. Under torchrun: torchrun -m -- train run … Prints the run
    folder; progress goes to stderr. SIGTERM and the time_limit of CONFIG end a run early: it saves a checkpoint and exits with code 75.
    """
    with _refusals():
        from train.config import load

        loaded = load(config, overrides)
        from train.loop import Stopped, train  # imported here, after the configuration was read: torch and transformers take seconds

        try:
            folder = train(manifest, loaded, start, run_folder, source)
        except Stopped as stopped:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                click.echo(stopped, err=True)
            raise SystemExit(os.EX_TEMPFAIL) from None
        if os.environ.get("RANK", "0") == "0":
            click.echo(folder)


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to write; it must not exist."
)
@click.option("--step", type=int, help="The checkpoint to export. Default: the newest.")
@click.option("--ema", "kind", flag_value="ema", default="model", help="The average of the weights instead (ema in the configuration).")
def export(run_folder: Path, output: Path, step: int | None, kind: str) -> None:
    """Write a checkpoint of RUN as a Hugging Face folder.

    It holds safetensors, the configuration and the manifest's tokenizer; its path is printed.
    """
    with _refusals():
        from train.checkpoint import export_checkpoint

        click.echo(export_checkpoint(run_folder, output, step, kind))


@main.command()
@click.argument("model", metavar="RUN|FOLDER", type=click.Path(path_type=Path))
@click.argument("manifests", nargs=-1, required=True, metavar="MANIFEST...", type=click.Path(path_type=Path))
@click.option("-c", "--config", type=click.Path(path_type=Path), help="A YAML file with the keys of `evaluate`. Default: those of RUN.")
@click.option("--step", type=int, help="The checkpoint of RUN. Default: the newest.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Default: that of RUN, else fp32.")
@click.option("--harness", metavar="TASK,…", help="Also these tasks of lm-evaluation-harness, on a folder (extra `eval`).")
@click.option("--include", type=click.Path(path_type=Path), metavar="DIR", help="A folder with tasks of your own for --harness.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Append the measurements to this .jsonl file.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as JSON Lines.")
def evaluate(
    model: Path,
    manifests: tuple[Path, ...],
    config: Path | None,
    step: int | None,
    precision: str | None,
    harness: str | None,
    include: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure a checkpoint of RUN or a Hugging Face FOLDER.

    Hold-out loss of the first MANIFEST per source and component, of further ones per source, and the tests of the configuration. Works the same
    under torchrun.
    """
    with _refusals():
        from train import measure

        if harness and measure.is_run(model):
            raise UserError(f"--harness: {model} is a run; name a Hugging Face folder, such as {model / 'export'}")
        found = measure.measure(model, manifests, config, step, precision)
        if os.environ.get("RANK", "0") == "0":
            if harness:
                found += measure.harnessed(model, harness.split(","), include, manifests[0])
            if output:
                from mixing.measurements import append

                append(output, found)
            click.echo(measure.as_json(found) if as_json else measure.shown(found))


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]FOLDER...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to write; it must not exist."
)
@click.option("--weights", metavar="W,W,…", help="The weights, which add up to 1. Default: all the same.")
@click.option("--grid", type=click.IntRange(min=1), metavar="N", help="Measure all weights that are multiples of 1/N, and write the best.")
@click.option("-m", "--manifest", "manifests", multiple=True, type=click.Path(path_type=Path), help="With --grid: what to measure on.")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="With --grid: a YAML file with the keys of `evaluate`.")
@click.option("--target", metavar="METRIC", help="With --grid: the metric to be best in, such as loss/medical.")
@click.option(
    "--guard", "guards", multiple=True, metavar="METRIC=TOLERANCE", help="With --grid: how much worse than the first model it may be."
)
def soup(
    models: tuple[str, ...],
    output: Path,
    weights: str | None,
    grid: int | None,
    manifests: tuple[Path, ...],
    config: Path | None,
    target: str | None,
    guards: tuple[str, ...],
) -> None:
    """Average models: a base and what was trained from it, or one model per data set.

    With --grid every average is measured, DIR also holds measurements.jsonl and ratios.csv for strategy `regression`, and a table is printed.
    """
    with _refusals():
        from train import soup as soups
        from train import soup_search

        named = {model.partition("=")[0] or model: Path(model.rpartition("=")[2]) for model in models}
        if len(named) < max(2, len(models)):
            raise UserError(f"{', '.join(models)}: a soup is made of two or more models with different names; write NAME=FOLDER")
        if grid is None:
            parts = soups.ingredients(list(named.values()))
            try:
                given = [float(weight) for weight in weights.split(",")] if weights else [1 / len(parts)] * len(parts)
            except ValueError:
                raise UserError(f"--weights {weights}: numbers with commas between them are needed, such as 0.5,0.5") from None
            click.echo(soups.write(parts, given, output))
            return
        if weights or not manifests or not target:
            raise UserError("--grid: give --manifest and --target too, and no --weights")
        tolerances = {}
        for guard in guards:
            metric, equals, tolerance = guard.rpartition("=")
            if not equals or not tolerance.replace(".", "", 1).isdigit():
                raise UserError(f"--guard {guard}: write METRIC=TOLERANCE, such as loss/general=0.05")
            tolerances[metric] = float(tolerance)
        found = soup_search.search(named, grid, manifests, config, target, tolerances, output)
        click.echo(f"{soup_search.shown(found, target, tolerances)}\n\n{output}")


@main.command()
@click.argument("config", metavar="SWEEP.yaml", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The sweep's folder; one that is there goes on."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Learning rates and data sets at once. Default: one per GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print what sweep.json holds.")
def sweep(config: Path, output: Path, jobs: int | None, as_json: bool) -> None:
    """Train learning rates by durations by data sets, and choose.

    The same command goes on after an interruption; finished cells are never run again.
    """
    with _refusals():
        import json

        from train import sweep as sweeps

        result = sweeps.run_sweep(config, output, jobs)
        if os.environ.get("RANK", "0") == "0":
            click.echo(json.dumps(result, indent=1) if as_json else sweeps.shown(result))


@main.command()
@click.argument("sweep_folder", metavar="SWEEP", type=click.Path(path_type=Path))
@click.option("--parameters", type=float, metavar="N", help="With --base-tokens: also the best target by training FLOPs, 6 N D.")
@click.option("--base-tokens", type=float, default=0.0, metavar="D", help="Tokens of the base model's pre-training.")
@click.option("--json", "as_json", is_flag=True, help="For a program to read.")
def characterise(sweep_folder: Path, parameters: float | None, base_tokens: float, as_json: bool) -> None:
    """Say what each data set of a finished SWEEP did to each metric: helped, hurt or neither, against noise."""
    with _refusals():
        import json

        from train import characterise as characters

        found = characters.characterise(sweep_folder)
        spent = characters.compute(sweep_folder, parameters, base_tokens) if parameters else []
        if as_json:
            click.echo(json.dumps({"data_sets": characters.described(found), "compute": spent}, indent=1))
            return
        click.echo(characters.shown(found))
        for row in spent:
            click.echo(f"{row['data_set']}  {row['duration']:,} tokens  {row['flops']:.3g} FLOPs  {row['metric']} {row['best']:.4f}")


@main.command()
@click.argument("folders", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The page to write.")
@click.option(
    "--figures", type=click.Path(path_type=Path), metavar="DIR", help="Each chart as SVG too, and as PNG with the extra `report`."
)
def report(folders: tuple[Path, ...], output: Path, figures: Path | None) -> None:
    """Draw the curves of several runs (and sweeps and soups) into one self-contained page."""
    with _refusals():
        from train import report as reports

        reports.write(reports.report(folders), output, figures)
        click.echo(output)


@main.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("trained", nargs=-1, required=True, metavar="TRAINED...", type=click.Path(path_type=Path))
def updates(base: Path, trained: tuple[Path, ...]) -> None:
    """Say how far each layer moved from BASE: relative updates, and the lowest five layers over the highest five."""
    with _refusals():
        from train import stability

        for folder in trained:
            found = stability.relative_updates(base, folder)
            layers = "  ".join(f"{number}: {value:.4f}" for number, value in enumerate(found.layers))
            click.echo(f"{folder}  lowest / highest {'n/a' if found.ratio is None else f'{found.ratio:.3f}'}  {layers}")


def program() -> None:
    """`main`; under torchrun the process ends with it, and the interpreter is not taken down step by step.

    torch's communication threads let go of their last tensors when they get round to it, which takes the interpreter's lock. Python before 3.14 ends a
    thread that asks for the lock while the interpreter goes down, in the middle of C++, and the whole process aborts (SIGABRT, about one run in twenty on
    a crowded machine) although all it had to do was done.
    """
    try:
        main()
    except SystemExit as end:
        if "RANK" not in os.environ:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


if __name__ == "__main__":
    program()
