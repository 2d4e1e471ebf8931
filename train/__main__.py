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


if __name__ == "__main__":
    main()
