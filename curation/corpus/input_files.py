"""Finding the files that a pattern names, on this machine or in an object store, and the digest of each."""

from __future__ import annotations

import os
import re
from glob import escape, glob
from pathlib import Path

from curation.engine.local import Engine
from curation.engine.work_directory import Digests, Input, sha256_file, state_of
from mixing import UserError
from mixing.remote import Place, Remote, is_url, list_files, parse_url


def natural(path: str) -> tuple[tuple[str | int, ...], str]:
    """Order in which part-2 comes before part-10; equal readings by the path itself."""
    return tuple(int(part) if part.isdigit() and part.isascii() else part for part in re.split(r"([0-9]+)", path)), path


def locate(where: str, files: str | list[str], name: str, folder: Path, roots: dict[str, str]) -> tuple[Place, str, list[str], list[str]]:
    """(root, its name, patterns below it, matching files below it in natural order)."""
    patterns = [files] if isinstance(files, str) else list(files)
    named = [re.match(r"([A-Za-z_][\w-]*):(?!//)(.*)", pattern) for pattern in patterns]
    if all(named) and len({match[1] for match in named if match}) == 1:
        root_name = next(match[1] for match in named if match)
        if root_name not in roots:
            known = ", ".join(sorted(roots)) or "none"
            raise UserError(f"{where}: no root named '{root_name}' (given: {known}); name it with --root {root_name}=PATH")
        given = roots[root_name]
        root: Place = Remote(*parse_url(f"--root {root_name}", given)) if is_url(given) else Path(given).expanduser().resolve()
        below = [match[2] for match in named if match]
    elif any(is_url(pattern) for pattern in patterns):
        root_name = name
        root, below = _remote_root(where, patterns)
    else:
        parts = [_fixed_part(folder, pattern) for pattern in patterns]
        root_name, root = name, Path(os.path.commonpath([fixed for fixed, _ in parts]))
        below = [os.path.normpath(os.path.join(escape(os.path.relpath(fixed, root)), rest)) for fixed, rest in parts]
    if any(".." in pattern.split("/") or pattern.startswith("/") for pattern in below):
        raise UserError(f"{where}: a pattern leaves its root {root}; accepted: paths below it")
    if isinstance(root, Remote):
        root = list_files(root, below)
        found = set(root.listed)
    else:
        here = root
        found = {path for pattern in below for path in glob(pattern, root_dir=here, recursive=True) if (here / path).is_file()}
    if not found:
        raise UserError(f"{where}: no file matches {', '.join(map(repr, patterns))}; looked below {root}")
    odd = [path for path in found if path != path.encode("utf-8", "replace").decode()]
    if odd:
        raise UserError(f"{where}: the name of the file {min(odd)!a} is not UTF-8; rename it")
    return root, root_name, below, sorted(found, key=natural)


def locate_folder(where: str, given: str, file: str, what: str, folder: Path, roots: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """The one folder on this machine that `given` names and that has `file`, and what a recipe keeps of its place; `what` it is, for a refusal."""
    root, name, patterns, paths = locate(where, f"{given.rstrip('/')}/{file}", where.rpartition(".")[2], folder, roots)
    if isinstance(root, Remote) or len(paths) != 1:
        raise UserError(f"{where}: found {given!r}; accepted: the folder of one {what} on this machine")
    return (root / paths[0]).parent, {"root": name, "pattern": patterns[0]}


def _remote_root(where: str, patterns: list[str]) -> tuple[Remote, list[str]]:
    """The common root of URLs, and the patterns below it."""
    urls = [parse_url(where, f"{pattern}**/*" if pattern.endswith("/") else pattern) for pattern in patterns if is_url(pattern)]
    schemes = {scheme for scheme, _ in urls}
    if len(urls) < len(patterns) or len(schemes) > 1:
        raise UserError(
            f"{where}: found files in several places; accepted: paths alone, or URLs of one store; make them sources of their own"
        )
    fixed = []
    for _, path in urls:
        parts = path.split("/")
        first = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
        fixed.append(parts[: max(1, first)])
    common = os.path.commonpath(["/".join(parts) for parts in fixed])
    if not common:
        raise UserError(f"{where}: found URLs of several buckets; accepted: those of one; make them sources of their own")
    below = [path.removeprefix(common).lstrip("/") or "**/*" for _, path in urls]
    return Remote(next(iter(schemes)), common), below


def _fixed_part(folder: Path, pattern: str) -> tuple[str, str]:
    """(the folder before the first wildcard, the rest); a folder alone stands for all files in it. Wildcards in `folder` are part of its name."""
    parts = Path(pattern).expanduser().parts
    first = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
    if first is None and os.path.isdir(folder / Path(*parts)):
        return os.path.abspath(folder / Path(*parts)), os.path.join("**", "*")
    first = len(parts) - 1 if first is None else first
    return os.path.abspath(folder / Path(*parts[:first])), os.path.join(*parts[first:])


def hash_files(root: Place, paths: list[str], digests: Digests, engine: Engine, label: str) -> list[Input]:
    """The files with size and sha256; only those not remembered are read."""
    known = {path: digests.known(root / path) for path in paths}
    missing = [path for path in paths if known[path] is None]
    before = {path: state_of(root / path) for path in missing}
    for path, digest in zip(missing, engine.map(sha256_file, [(root / path,) for path in missing], label), strict=True):
        known[path] = digest
        digests.remember(root / path, before[path], digest)
    return [Input(path, (root / path).stat().st_size, known[path] or "") for path in paths]
