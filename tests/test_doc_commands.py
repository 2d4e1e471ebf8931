"""Every command that a page shows is run as it is written, in a folder where small stand-ins have the names that the pages use; what cannot be run here says why.

The tutorial is followed from an empty folder. In the stand-ins a recipe of a page asks for fewer tokens and documents, by the replacements in SMALLER, and is otherwise as printed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from recipes import text_of, write_file, write_records, write_tokenizer

from curation.cli import main as curate
from train.__main__ import main as train

ROOT = Path(__file__).parents[1]
TUTORIAL = "docs/guides/first-manifest.md"
pytestmark = pytest.mark.timeout(900)

GUIDES = [path.relative_to(ROOT).as_posix() for folder in ("guides", "concepts") for path in sorted((ROOT / "docs" / folder).glob("*.md"))]
PAGES = ["README.md", "CONTRIBUTING.md", "data_manifests/README.md", *GUIDES]
PROGRAMS = ("curate", "python", "torchrun", "make", "pip", "source", "vllm", "srun", "curl", "ssh", "git", "tilth-train")

# What is not run here, by how it begins, and why. All but the first two kinds are still read by the command's own parser.
ABSENT = {
    "make ": "builds an environment or takes minutes; `make check` and `make test` are what CI runs",
    "source ": "the tests run in the environment already",
    "torchrun ": "wants as many devices as it says; tests/train starts torchrun with 2 and 4 processes",
    "srun ": "wants Slurm",
    "pip install vllm": "wants a GPU; `make test-vllm` builds such an environment for a CPU",
    "vllm serve": "wants a GPU; tests/curation/synthesis ask a server on loopback",
    "curl http://gpu7": "wants that server",
    "curate build medical.yaml --root pubmed_qa": "wants that server",
    "curate init s3://": "wants a bucket; tests/curation/test_remote.py runs it with one on loopback",
    "curate build medical.yaml --work /scratch": "wants that bucket and those folders",
    "python -m train sweep": "minutes; tests/train/test_sweep.py runs it",
    "python -m train characterise": "wants the sweep above; tests/train/test_characterise.py runs it",
    "python -m train soup": "wants the models of the sweep; tests/train/test_soup.py runs it",
    "python -m train report": "wants the runs above; tests/train/test_report.py runs it",
    "curate report data_manifests/medical-v1 runs/medical": "wants the runs above; tests/curation/test_report_page.py makes one",
    "python -m train evaluate": "wants lm-eval, or the runs above; tests/train/test_evaluate.py runs it",
    "python -m train run data_manifests/mixture-v1": "wants the measurements of the sweep",
    "python -m train run build/second": "wants a run that stopped in the middle; tests/train/test_start.py makes one",
    "curate remix build/first mixture.yaml -o build/second --consumed 4096": "wants 4,096 sequences trained; tests/curation/commands/test_remix.py has them",
    "curate build recipe.yaml --workers 2 --memory 2": "run below without the limit, which on a machine of 2 GB is refused",
    "curate build /shared/": "wants a cluster; tests/curation/engine/test_cluster.py has one of three nodes",
    "curate: ": "what the program answers",
}
SMALLER = {
    "tokens: 300M": "tokens: 50K",
    "tokens: 10B": "tokens: 4K",
    "sequence_length: 4096": "sequence_length: 32",
    "sequence_length: 8192": "sequence_length: 32",
    "documents: 500": "documents: 3",
    "documents: 200": "documents: 3",
    "tokens: 8192": "tokens: 512",
    "source = 'pubmed'": "source = 'abstracts'",
    "IN ('wiki', 'books')": "= 'wiki'",
    "batch: 8 ": "batch: 256 ",
    "every: 0.1": "every: 0.5",
}


def commands(page: str) -> list[str]:
    """The command lines of a page's plain and shell blocks, continued lines joined, comments left out."""
    found = []
    for language, block in re.findall(r"```(\w*)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
        if language in ("", "bash", "sh", "console"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [" ".join(re.sub(r"\s#.*", "", line).split()) for line in lines if line.strip().startswith(PROGRAMS)]
    return found


def why_not(command: str) -> str | None:
    return next((why for start, why in ABSENT.items() if command.startswith(start)), None)


def block(page: str, first: str) -> str:
    """The YAML block of a page that begins so, made smaller."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = next(one for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if one.startswith(first))
    for here, there in SMALLER.items():
        found = found.replace(here, there)
    return found


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As a shell runs it, with this checkout's programs."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "curate").write_text(f'#!/bin/sh\nexec {sys.executable} -c "from curation.cli import main; main()" "$@"\n')
    (programs / "curate").chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "TERM": "dumb"}
    return subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=600, env=environment, check=False)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted."""
    folder = tmp_path_factory.mktemp("pages")
    abstracts = [{"pmid": n, "abstract": text_of(n), "year": 2020, "journal": "j"} for n in range(900)]
    write_records(folder / "corpora/abstracts/a.parquet", abstracts)
    for path, start in (("corpora/wiki/w.jsonl.zst", 2000), ("reference/r.jsonl", 5000)):
        write_file(folder / path, b"".join(json.dumps({"text": text_of(start + n)}).encode() + b"\n" for n in range(300)))
    write_tokenizer(folder / "models/base")
    recipe = block("README.md", "name: medical")
    recipe = recipe.replace("quality >= 0.6", "quality >= 0.0")  # texts of one vocabulary are all alike to the classifier
    (folder / "medical.yaml").write_text(recipe)
    (folder / "recipe.yaml").write_text(recipe.replace("name: medical", "name: again"))
    (folder / "mixture.yaml").write_text(block("docs/guides/change-the-mixture.md", "# mixture.yaml"))
    later = (
        recipe[recipe.index("mixture:") :]
        .replace("medical: 0.8, replay: 0.2", "medical: 0.75, replay: 0.25")
        .replace("mixture:", "mixture:\n  max_epochs: 2", 1)
    )
    (folder / "later.yaml").write_text(later)
    (folder / "train.yaml").write_text(block("docs/guides/train-from-a-manifest.md", "# train.yaml"))
    (folder / "benchmark.yaml").write_text('clean: [nfc, control_characters]\nsources: {benchmark: {files: "reference/*.jsonl"}}\n')
    for name in ("exam", "exam-sources"):
        (folder / f"{name}.yaml").write_text(block("docs/guides/measure-and-mix.md", f"# {name}.yaml"))
    for name, start in (("wiki", 7000), ("papers", 8000)):
        write_records(folder / f"exam/{name}.jsonl", [{"text": text_of(start + n)} for n in range(100)])
    made = run("curate build medical.yaml && mkdir build && cp -r data_manifests/medical-v1 build/first", folder)
    assert made.returncode == 0, made.stderr
    assert run("curate build recipe.yaml", folder).returncode == 0
    _golden(folder)
    _model(folder / "models/base")
    return folder


def _golden(folder: Path) -> None:
    (folder / "data_manifests/docs-v1").symlink_to(ROOT / "data_manifests/docs-v1")


def _model(folder: Path) -> None:
    """A model of a few thousand parameters beside the tokenizer."""
    code = (
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,"
        f" num_key_value_heads=2, max_position_embeddings=64)).save_pretrained({str(folder)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL and any(why_not(one) is None for one in commands(page))])
def test_commands_of_a_page_run_as_written(there: Path, page: str) -> None:
    for command in commands(page):
        if why_not(command) is None:
            done = run(command, there)
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_command_that_is_not_run_is_one_that_the_program_would_take(page: str) -> None:
    for command in commands(page):
        words = shlex.split(command.replace("…", "x"))
        if why_not(command) is None or words[0] not in ("curate", "python", "torchrun"):
            continue
        named = words[1:] if words[0] == "curate" else words[words.index("run") if words[0] == "torchrun" else 3 :]
        _parsed(curate if words[0] == "curate" else train, named)


def _parsed(group: click.Command, words: list[str]) -> None:
    """Reads the words as the command does, without running it; click's refusal is the failure. Below its group, whose options for help click would else forget for good."""
    context = click.Context(group, **group.context_settings)
    while isinstance(group, click.Group):
        found = group.get_command(context, words[0])
        assert found is not None, words
        group, words = found, words[1:]
    group.make_context("command", words, parent=context)


@pytest.mark.slow
def test_tutorial_is_followed_as_written_from_an_empty_folder(tmp_path: Path) -> None:
    text = (ROOT / TUTORIAL).read_text(encoding="utf-8")
    saved = re.search(r"Save it as `([\w.]+)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert saved is not None
    (tmp_path / saved[1]).write_text(saved[2])
    said = {}

    for command in commands(TUTORIAL):
        if why_not(command) is None:
            done = run(command, tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            said[command] = done.stdout

    assert len(said) == 11
    assert "checks hold" in said["curate verify build/first"].splitlines()[-1]
    assert "threshold: 0.8 -> 0.6" in said["curate diff build/first build/stricter"]
    header = json.loads((tmp_path / "build/weighted/manifest.json").read_text())
    weighted = header["stages"][0]["components"]
    assert {name: one["tokens"] for name, one in weighted.items()} == {"code": 2_400_000, "prose": 600_000}
    assert weighted["prose"]["epochs"] > 1


def test_no_reason_is_left_over() -> None:
    shown = [command for page in PAGES for command in commands(page)]

    assert [start for start in ABSENT if not any(command.startswith(start) for command in shown) and start != "curate: "] == []
