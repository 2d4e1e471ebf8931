"""The floors of the house: `curation -> mixing <- train`, imports that point downward, small modules with names that say what they are for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("curation", "mixing", "train")

# Every module, lowest first: a module imports only modules that stand before it. A new module has to take its place here.
ORDER = {
    "mixing": [
        "mixing",
        "canonical",
        "progress",
        "remote",
        "mirror",
        "manifest",
        "measurements",
        "chart",
        "curves",
        "pool",
        "strategies.shares",
        "strategies.sizes",
        "strategies.measured",
        "strategies.regression",
        "strategies.reference",
        "strategies",
        "learned",
        "budget",
        "packing",
        "draws",
        "order",
        "plan",
        "findings",
        "files",
        "history",
        "write",
        "export",
        "remix",
        "audit_plan",
        "audit_holdout",
        "audit",
    ],
    "curation": [
        "curation",
        "engine",
        "engine.atomic_files",
        "engine.memory",
        "engine.journal",
        "engine.work_directory",
        "engine.orphans",
        "engine.local",
        "engine.nodes",
        "engine.residents",
        "engine.cluster",
        "text",
        "text.words",
        "text.identifier_windows",
        "text.identifiers",
        "text.clean",
        "text.shared_passages",
        "text.tokenizer",
        "signals.reference",
        "signals.causal_lm_engines",
        "signals.causal_lm",
        "signals.plain",
        "signals.overlap",
        "signals.contamination",
        "signals.counting",
        "signals.repetition",
        "signals.c4",
        "signals.fineweb",
        "signals.heuristics",
        "signals.scripts",
        "signals.automaton",
        "signals.classifier_quality",
        "signals.fasttext_file",
        "signals.fasttext_table",
        "signals.fasttext_scoring",
        "signals.fasttext_training",
        "signals.classifier",
        "signals.language",
        "signals.topic",
        "signals.bags",
        "signals.importance",
        "signals.ngram",
        "signals.arpa",
        "signals.perplexity",
        "signals.listed",
        "signals.privacy",
        "signals",
        "dedup",
        "dedup.preference",
        "dedup.minhash",
        "dedup.settling",
        "dedup.runs",
        "dedup.ranks",
        "dedup.store",
        "dedup.banding",
        "dedup.rare",
        "dedup.exact",
        "dedup.index",
        "dedup.repeats",
        "dedup.near",
        "dedup.holdout_index",
        "rules",
        "formats.records",
        "formats.streams",
        "formats.lines",
        "formats.tables",
        "formats.delimited",
        "formats.documents",
        "formats.web",
        "formats.warc",
        "formats",
        "synthesis",
        "synthesis.config",
        "corpus",
        "corpus.file_samples",
        "corpus.record_selection",
        "corpus.input_files",
        "corpus.sources",
        "corpus.shards",
        "corpus.token_ids",
        "decisions",
        "decisions.components",
        "decisions.ranking",
        "decisions.duplicates",
        "decisions.holdout",
        "decisions.signal_models",
        "decisions.dedup_guard",
        "decisions.resolved_steps",
        "decisions.build_state",
        "decisions.apply_steps",
        "synthesis.template",
        "synthesis.store",
        "synthesis.cutting",
        "synthesis.filters",
        "synthesis.corruption",
        "synthesis.asking",
        "synthesis.server",
        "synthesis.local",
        "synthesis.spread",
        "synthesis.parents",
        "synthesis.resolving",
        "recipe",
        "starter",
        "starter.prospect",
        "starter.drafting",
        "starter.init",
        "synthesis.making",
        "synthesis.waves",
        "pool_rows",
        "assemble",
        "build",
        "commands",
        "commands.cleanup",
        "commands.estimate",
        "commands.remix",
        "commands.explain",
        "commands.indexing",
        "commands.sketches",
        "terminal",
        "commands.differences",
        "page",
        "page.thresholds",
        "page.windows",
        "page.survey",
        "page.axes",
        "page.sampling",
        "page.counting",
        "page.drawing",
        "page.facts",
        "page.untrusted",
        "page.gallery",
        "page.training",
        "page.compose",
        "verbs",
        "cli",
    ],
    "train": [
        "train",
        "config",
        "schedule",
        "stream",
        "window",
        "attention",
        "loss",
        "weights",
        "model",
        "exact",
        "guard",
        "optim",
        "checkpoint",
        "scoring",
        "choice",
        "evaluate",
        "measure",
        "goal",
        "soup",
        "soup_search",
        "stability",
        "report",
        "start",
        "record",
        "loop",
        "sweep",
        "characterise",
        "__main__",
    ],
}
BETWEEN = {"curation": {"curation", "mixing"}, "mixing": {"mixing"}, "train": {"train", "mixing"}}
TRAIN_MAY_IMPORT = {"mixing", "mixing.manifest", "mixing.measurements", "mixing.chart", "mixing.curves", "mixing.progress"}
HEAVY = {
    "polars",
    "numba",
    "torch",
    "pyarrow",
    "numpy",
    "transformers",
    "tokenizers",
    "fasttext",
    "fastokens",
    "scipy",
    "lxml",
    "trafilatura",
    "warcio",
}
MODULE_LINES, FUNCTION_LINES = 450, 45
LOOKED_AT = {"mixing.packing._pack"}  # one kernel whose parts share a dozen arrays: cut in two, each half would take them all
NAMES_WITHOUT_A_PURPOSE = {"utils", "common", "base", "helpers", "registry", "misc"}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file of every module of a package; a package goes by its folder's name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


EVERY_MODULE = {name: path for package in PACKAGES for name, path in modules(package).items()}
EXPERIMENTS = modules("experiments")


def imported(name: str, path: Path) -> Iterator[str]:
    """The project's own modules that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: relative import; write the full name"
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
            candidates = [candidate if candidate in EVERY_MODULE else str(node.module) for candidate in candidates]
        else:
            continue
        yield from (candidate for candidate in candidates if candidate.split(".")[0] in PACKAGES)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_on_disk_are_the_listed_ones(package: str) -> None:
    listed = {package if name == package else f"{package}.{name}" for name in ORDER[package]}

    assert set(modules(package)) == listed


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_inside_a_package_point_downward(package: str) -> None:
    rank = {package if name == package else f"{package}.{name}": position for position, name in enumerate(ORDER[package])}

    upward = [
        f"{name} imports {target}"
        for name, path in modules(package).items()
        for target in imported(name, path)
        if target.split(".")[0] == package and rank[target] >= rank[name]
    ]

    assert upward == []


def test_rooms_of_curation_import_from_lower_rooms_alone() -> None:
    rooms = list(dict.fromkeys(name.split(".")[0] for name in ORDER["curation"] if "." in name))
    floor = {f"curation.{room}": number for number, room in enumerate(rooms) if room != "synthesis"}  # which stands on several

    def stands_on(name: str) -> int | None:
        return floor.get(".".join(name.split(".")[:2]))

    pairs = [(name, target) for name, path in modules("curation").items() for target in imported(name, path)]
    floors = [(name, target, stands_on(name), stands_on(target)) for name, target in pairs]

    assert [
        (name, target) for name, target, own, of_target in floors if own is not None and of_target is not None and of_target > own
    ] == []


@pytest.mark.parametrize("name", sorted(EVERY_MODULE))
def test_imports_between_packages_stay_on_their_floor(name: str) -> None:
    package = name.split(".")[0]

    targets = set(imported(name, EVERY_MODULE[name]))

    assert {target.split(".")[0] for target in targets} <= BETWEEN[package]
    if package == "train":
        assert {target for target in targets if target.startswith("mixing")} <= TRAIN_MAY_IMPORT


def test_train_without_the_curation_libraries_imports() -> None:
    blocked = ["polars", "numba", "fasttext", "fastokens", "curation"]
    names = [name for name in EVERY_MODULE if name.startswith("train")]

    result = python(f"import sys, importlib\nfor b in {blocked}: sys.modules[b] = None\nfor n in {names}: importlib.import_module(n)")

    assert result.returncode == 0, result.stderr


def test_what_train_may_import_without_heavy_libraries_imports() -> None:
    blocked = ["polars", "numba", "pydantic", "torch", "curation", "train"]

    result = python(
        f"import sys\nfor b in {blocked}: sys.modules[b] = None\nimport mixing, mixing.manifest, mixing.measurements, mixing.chart, mixing.curves, mixing.progress"
    )

    assert result.returncode == 0, result.stderr


def test_curate_help_imports_nothing_heavy() -> None:
    code = "import sys, json\nfrom curation.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(json.dumps(sorted(sys.modules)))"

    result = python(code)

    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout.splitlines()[-1])
    assert HEAVY.isdisjoint(loaded)
    assert "curation.cli" in loaded


def test_nobody_imports_the_experiments_and_they_import_the_charts_alone() -> None:
    def modules_named(path: Path) -> set[str]:
        tree = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Import | ast.ImportFrom)]
        return {str(node.module) if isinstance(node, ast.ImportFrom) else alias.name for node in tree for alias in node.names}

    of_product = {found for path in EVERY_MODULE.values() for found in modules_named(path)}
    of_experiments = {found for name, path in EXPERIMENTS.items() for found in imported(name, path)}

    assert not [found for found in of_product if found.split(".")[0] == "experiments"]
    assert of_experiments == {"mixing.chart"}


@pytest.mark.parametrize("name", sorted(EVERY_MODULE | EXPERIMENTS))
def test_module_size_and_name_are_within_the_house_rules(name: str) -> None:
    lines = (EVERY_MODULE | EXPERIMENTS)[name].read_text(encoding="utf-8").count("\n")

    assert lines <= MODULE_LINES, f"{name} has {lines} lines: is there a second room in it?"
    assert NAMES_WITHOUT_A_PURPOSE.isdisjoint(name.split("."))


def test_functions_are_not_longer_than_a_screen() -> None:
    long = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, path in (EVERY_MODULE | EXPERIMENTS).items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    }

    assert {name: lines for name, lines in long.items() if name not in LOOKED_AT} == {}


def test_every_module_opens_with_its_contract() -> None:
    silent = [
        name for name, path in (EVERY_MODULE | EXPERIMENTS).items() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert silent == []
