"""`python -m train`, also as `torchrun -m train` and `tilth-train`: the commands, no logic. Help needs neither torch nor transformers."""

from __future__ import annotations

import os
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
    """A UserError as one message on stderr and exit code 2, from one process of a machine."""
    try:
        yield
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train a language model from a manifest."""


@main.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--start",
    type=click.Choice(["fresh", "weights", "resume"]),
    help="fresh: random weights. weights: those of model.path, with a new optimizer. resume: go on from the newest checkpoint in RUN, exactly. "
    "Default: weights if the configuration has model.path, else fresh; a run with checkpoints is only ever resumed.",
)
@click.option(
    "-o",
    "--output",
    "run_folder",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="The run folder. Default: runs/<name>-v<version> of the manifest.",
)
def run(manifest: Path, config: Path, overrides: tuple[str, ...], start: Start | None, run_folder: Path | None) -> None:
    """Train from a manifest as a configuration says.

    MANIFEST is a folder or its manifest.json, CONFIG a YAML file that key.key=value overrides. Works the same under torchrun. Prints the run
    folder; progress goes to stderr.
    """
    with _refusals():
        from train.config import load

        loaded = load(config, overrides)
        from train.loop import train  # imported here, after the configuration was read: torch and transformers take seconds

        folder = train(manifest, loaded, start, run_folder)
        if os.environ.get("RANK", "0") == "0":
            click.echo(folder)


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to write; it must not exist."
)
@click.option("--step", type=int, help="The checkpoint to export. Default: the newest.")
def export(run_folder: Path, output: Path, step: int | None) -> None:
    """Write a checkpoint of RUN as a Hugging Face folder.

    It holds safetensors, the configuration and the manifest's tokenizer; its path is printed.
    """
    with _refusals():
        from train.checkpoint import export_checkpoint

        click.echo(export_checkpoint(run_folder, output, step))


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


if __name__ == "__main__":
    main()
