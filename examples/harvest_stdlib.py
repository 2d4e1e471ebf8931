"""A real corpus from the machine's own Python: no download, no account, and nothing is imported or run.

In: the standard library beside this interpreter, and the packages installed with it. Sources are read with `ast`, never imported.
Out, under the given folder, in the formats a corpus arrives in (fields `id`, `text`, `path`, `licence`; paths are relative to the library):

    docstrings.jsonl        prose: the language reference of `pydoc_data`, and the docstrings of well documented packages
    descriptions.parquet    prose: the long descriptions of installed packages, as their authors wrote them
    licences.jsonl.gz       boilerplate: the licence files that came with the packages; many are copies and near-copies of each other
    code.jsonl.zst          code: the modules of the standard library, cut between definitions

Docstrings are not taken from the modules whose code is: a held-out docstring would be read again as a part of its module. The order is that of the sorted paths and the bytes depend on the installed versions only, so a second harvest writes the same files.
"""

from __future__ import annotations

import ast
import gzip
import importlib.metadata
import io
import json
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

DOCUMENTED = ("huggingface_hub", "networkx", "numpy", "polars")  # packages that explain themselves, at times in nearly the same words
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "turtledemo", "lib2to3", "__pycache__"}
SHORTEST_DOCSTRING = 200  # characters; below this they are mostly one-line summaries of a signature
LONGEST_PIECE = 8_000  # characters of code; a longer module is cut between definitions
PSF = "PSF-2.0"


class Document(NamedTuple):
    id: str
    text: str
    path: str
    licence: str


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_path("stdlib"))
    distributions = installed()
    harvest = {
        "docstrings.jsonl": [*topics(library), *documented(distributions)],
        "descriptions.parquet": list(descriptions(distributions)),
        "licences.jsonl.gz": list(licences(distributions)),
        "code.jsonl.zst": list(code(library)),
    }
    for name, documents in harvest.items():
        write(folder / name, documents)
        text = sum(len(document.text.encode()) for document in documents)
        print(
            f"  {name:22}{len(documents):7,} documents {text / 1e6:6.1f} MB of text, {(folder / name).stat().st_size / 1e6:5.1f} MB on disk"
        )


def modules(root: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """Path below `root`, source and syntax tree of every module that this interpreter can read; tests and templates it cannot are passed over."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        if NOT_LIBRARY.isdisjoint(path.relative_to(root).parts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escape sequences in other people's sources
                try:
                    with tokenize.open(path) as file:
                        source = file.read()
                    yield path.relative_to(root).as_posix(), source, ast.parse(source)
                except (SyntaxError, UnicodeDecodeError):
                    continue


def docstrings(root: Path, licence: str, prefix: str) -> Iterator[Document]:
    """Docstrings of modules, classes and functions, in the order they stand in."""
    for path, _, tree in modules(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= SHORTEST_DOCSTRING:
                    name = "module" if isinstance(node, ast.Module) else f"{node.name}:{node.lineno}"
                    yield Document(f"{prefix}{path}#{name}", text, prefix + path, licence)


def topics(library: Path) -> Iterator[Document]:
    """The language reference that `help()` shows: one dictionary of long texts in `pydoc_data/topics.py`."""
    path = "pydoc_data/topics.py"
    with tokenize.open(library / path) as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for name, text in zip(map(ast.literal_eval, filter(None, node.keys)), map(ast.literal_eval, node.values), strict=True):
                yield Document(f"{path}#{name}", text, path, PSF)


def installed() -> list[importlib.metadata.Distribution]:
    """Every installed package once, by name; not this project's own, whose README would change the corpus with every word."""
    found = {distribution.metadata["Name"].lower(): distribution for distribution in importlib.metadata.distributions()}
    return [found[name] for name in sorted(found) if name != "tilth"]


def documented(distributions: list[importlib.metadata.Distribution]) -> Iterator[Document]:
    for distribution in distributions:
        name = distribution.metadata["Name"]
        if name in DOCUMENTED:
            yield from docstrings(Path(str(distribution.locate_file(name))), licence_of(distribution), f"{name}/")


def descriptions(distributions: list[importlib.metadata.Distribution]) -> Iterator[Document]:
    for distribution in distributions:
        text = str(distribution.metadata.json.get("description", ""))
        if len(text) >= SHORTEST_DOCSTRING:
            name = distribution.metadata["Name"]
            yield Document(f"{name}#description", text, f"{name}/METADATA", licence_of(distribution))


def licences(distributions: list[importlib.metadata.Distribution]) -> Iterator[Document]:
    for distribution in distributions:
        name = distribution.metadata["Name"]
        for file in sorted(distribution.files or [], key=str):
            if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE")) and file.suffix in ("", ".txt", ".md", ".rst"):
                path = Path(str(file.locate()))
                if path.is_file():
                    text = path.read_text(encoding="utf-8", errors="replace")
                    below = file.as_posix().partition(".dist-info/")[2] or file.as_posix()
                    yield Document(f"{name}#{below}", text, f"{name}/{below}", licence_of(distribution))


def licence_of(distribution: importlib.metadata.Distribution) -> str:
    """The licence as the package's metadata states it: an SPDX expression, or the last part of its classifier, or `unknown`."""
    stated = distribution.metadata.json.get("license_expression")
    classifiers = [value for value in distribution.metadata.get_all("Classifier") or [] if value.startswith("License ::")]
    return str(stated or (classifiers[0].rpartition(" :: ")[2] if classifiers else "unknown"))


def code(library: Path) -> Iterator[Document]:
    for path, source, tree in modules(library):
        for number, piece in enumerate(pieces(source, tree)):
            if piece.strip():
                yield Document(f"{path}#{number}", piece, path, PSF)


def pieces(source: str, tree: ast.Module) -> Iterator[str]:
    """A module as pieces of whole statements, as many in one piece as `LONGEST_PIECE` holds; joined they are the module again."""
    lines = io.StringIO(source).readlines()  # at line feeds only, as the syntax tree counts
    begin, end = 0, 0
    for after in [*(line - 1 for line in borders(tree, lines)), len(lines)]:
        if end > begin and size(lines, begin, after) > LONGEST_PIECE:
            yield "".join(lines[begin:end])
            begin = end
        end = after
    yield "".join(lines[begin:])


def borders(tree: ast.Module, lines: list[str]) -> Iterator[int]:
    """The lines where a module may be cut: before top-level statements, and inside a class that is too long by itself before its methods."""
    for node in tree.body:
        yield first_line(node)
        if isinstance(node, ast.ClassDef) and size(lines, node.lineno - 1, node.end_lineno) > LONGEST_PIECE:
            yield from map(first_line, node.body[1:])


def first_line(node: ast.stmt) -> int:
    """The line a statement begins on, its decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def size(lines: list[str], begin: int, end: int | None) -> int:
    return sum(map(len, lines[begin:end]))


def write(path: Path, documents: Iterable[Document]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([document._asdict() for document in documents]), path)
        return
    lines = "".join(json.dumps(document._asdict(), ensure_ascii=False) + "\n" for document in documents).encode()
    if path.suffix == ".gz":
        lines = gzip.compress(lines, mtime=0)
    elif path.suffix == ".zst":
        lines = zstandard.compress(lines)
    path.write_bytes(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/harvest_stdlib.py FOLDER")
    main(Path(sys.argv[1]))
