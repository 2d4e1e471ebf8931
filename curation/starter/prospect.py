"""What lies at some paths: which files are texts to train on, which are benchmarks, which are neither, and what a sample of each says.

Files are told by their content where their name is vague. A folder below the one named is a source, unless its name only counts (`2024`, `part-3`, `year=2020`); of several paths
each is one. The files of a source have one text column: the string column that holds the most text, or a well-known name whose texts are nearly as long. What has questions and options
is a benchmark, and what names the benchmark items in it, or lies in a folder called so, is for evaluation: neither becomes training text by itself. Everything that is set aside
says why. The result depends on the files alone; at most LOOKED_AT files of a group are opened, and SAMPLED of a source read from.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import orjson
import xxhash

from curation.corpus.file_samples import spread_records
from curation.corpus.input_files import locate, natural
from curation.corpus.record_selection import Choice, is_expression, names_in, select
from curation.formats import ENDINGS, FORMATS, PACKED, format_of, readers_of, streams, true_format, why_unread
from curation.formats.records import Fields, Record, in_chunks, records_of
from curation.signals.contamination import ItemColumns
from curation.text.clean import has_visible
from mixing import UserError
from mixing.remote import Place, Remote, is_url

LOOKED_AT, SAMPLED, MEASURED = 64, 4, 500
STREAM_BYTES = 32 << 20  # of a compressed file, a quarter of it of a plain one: damage comes in clumps
TEXT_NAMES = ("text", "content", "contents", "body", "abstract", "article", "document", "raw_content", "markdown", "code", "passage")
KEY_NAMES = ("id", "key", "uuid", "_id", "doc_id", "document_id", "pmid", "pmcid", "doi", "arxiv_id", "url", "path", "title")
LICENCE_NAMES = ("licence", "license")
BENCHMARK_WORDS = {"eval", "evals", "evaluation", "evaluations", "benchmark", "benchmarks", "contamination", "test", "tests"}
COUNTING = re.compile(
    r"\d[\d_.-]*|[\w-]+=.*|(part|shard|chunk|split|batch|file)s?[-_]?\d*|data|train|default|main|jsonl|parquet|text|raw", re.I
)
BESIDE_DATA = {"readme", "license", "licence", "citation", "notice", "changelog", "contributing", "authors"}
TOKENIZER_KEYS = {"model", "added_tokens"}
DOCUMENTS = {"text", "html"}
ITEMS = ItemColumns()


class File(NamedTuple):
    """A file found: where it is, how a recipe would name it, and its path below what the user named."""

    place: Place
    written: str
    below: PurePosixPath
    size: int


class Aside(NamedTuple):
    """Files that become no source, and why."""

    files: list[str]
    why: str


@dataclass(frozen=True)
class Prospect:
    """Files that belong together, by a sample of them. `documents` and `text_bytes` are estimates for all; `texts` is what was sampled, `copies` how many of those texts came before."""

    name: str
    files: list[File]
    patterns: list[str]
    form: str
    columns: list[str]
    text: str
    key: str | None
    lengths: dict[str, int]  # mean characters of each string column that could be the text
    values: dict[str, str]  # columns of one value throughout
    sampled: int
    damaged: Counter[str]
    documents: int
    text_bytes: int
    whole: bool  # whether the sample is everything
    texts: list[str] = field(repr=False)
    contents: frozenset[int] = field(repr=False)  # hashes of all texts read

    @property
    def bytes(self) -> int:
        return sum(one.size for one in self.files)

    @property
    def damage(self) -> float:
        """The share of sampled records that cannot be used."""
        return sum(self.damaged.values()) / self.sampled if self.sampled else 0.0


@dataclass(frozen=True)
class Found:
    """Everything at the paths."""

    sources: list[Prospect]
    benchmarks: list[Prospect]
    asides: list[Aside]
    tokenizers: list[File]


class _Group(NamedTuple):
    """Files of one name, form and kind; `kind` is "text", "benchmark" or "evaluation"."""

    name: str
    form: str
    kind: str
    columns: tuple[str, ...]


def prospect(paths: Sequence[str], beside: Path) -> Found:
    """Looks at files, folders, patterns or URLs; `beside` is the folder of the recipe to be, from which it names them."""
    files = [(file, name) for path in paths for file, name in _named(path, beside, alone=len(paths) == 1)]
    asides: dict[str, list[str]] = {}
    tokenizers: list[File] = []
    groups: dict[_Group, list[File]] = {}
    documented = any(format_of(str(file.below)) not in (None, *DOCUMENTS) for file, _ in files)
    for (name, ending), some in _by_ending(files).items():
        for group, file in _told(name, ending, some, documented, asides, tokenizers):
            groups.setdefault(group, []).append(file)
    made: dict[str, list[Prospect]] = {"text": [], "benchmark": [], "evaluation": []}
    taken: set[str] = set()
    for group, some in groups.items():
        one = _measured(group, sorted(some, key=lambda file: natural(str(file.below))), beside)
        if not one.texts and group.kind == "text":
            asides.setdefault("no record with a text was found in its sample", []).extend(file.written for file in some)
            continue
        made[group.kind].append(replace(one, name=_own(one.name, one.form, taken)))
    for one in made["evaluation"]:
        why = f"evaluation by its {'folder' if _evaluating(one.files[0].below.parent) else 'columns'}: it should be no training text"
        asides.setdefault(why, []).extend(one.patterns)
    if not made["text"]:
        raise UserError(f"init: found no texts in {', '.join(paths)}{_why_not(asides)}; accepted: files ending in {', '.join(ENDINGS)}")
    order = sorted(made["text"], key=lambda one: (one.damage > 0.01, natural(one.name)))
    return Found(
        order,
        made["benchmark"],
        [Aside(some, why) for why, some in asides.items()],
        sorted(tokenizers, key=lambda one: natural(one.written)),
    )


def _why_not(asides: dict[str, list[str]]) -> str:
    return "".join(f"; {some[0]}{f' and {len(some) - 1:,} more' if len(some) > 1 else ''}: {why}" for why, some in list(asides.items())[:2])


# --- finding and naming


def _named(path: str, beside: Path, *, alone: bool) -> list[tuple[File, str]]:
    """The files at a path, each with the name of the source it would belong to."""
    here = Path(path).expanduser()
    if not is_url(path) and not re.search(r"[*?\[]", path) and not any(one.is_file() for one in [here, *here.rglob("*")]):
        raise UserError(
            f"init: {path}: {'a folder without files' if here.exists() else 'no such file or folder'}; name what holds your texts"
        )
    folder = is_url(path) and format_of(path) is None and not re.search(r"[*?\[]", path)
    root, _, _, found = locate("init", f"{path.rstrip('/')}/" if folder else path, "init", Path(), {})
    title = PurePosixPath(str(root)).name
    loose = {_stem(one) for one in found if "/" not in one and format_of(one) not in (None, *DOCUMENTS)}
    files = []
    for one in found:
        place, below = root / one, PurePosixPath(one)
        inner = [part for part in below.parts[:-1] if not COUNTING.fullmatch(part)]
        name = title if not alone or not inner else inner[0]
        if alone and len(below.parts) == 1 and _stem(one) in loose and 1 < len(loose) <= 12 and not COUNTING.fullmatch(_stem(one) or "0"):
            name = _stem(one)
        files.append(
            (File(place, _written(place, path, beside), PurePosixPath(title, *below.parts), int(place.stat().st_size)), cleaned_name(name))
        )
    return files


def _written(place: Place, path: str, beside: Path) -> str:
    """A file as a recipe beside it names it: relative if the user named it so."""
    if isinstance(place, Remote):
        return str(place)
    absolute = os.path.isabs(os.path.expanduser(path))
    return str(place) if absolute else os.path.relpath(place, beside.resolve())


def _stem(name: str) -> str:
    """A file's name without its endings and what counts it: `part` of `part-00001-of-00008.jsonl.gz`."""
    stem = PurePosixPath(name).name.partition(".")[0]
    return re.sub(r"([-_]?\d+([-_]?of[-_]?\d+)?)+$", "", stem)


def cleaned_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:60] or "texts"


def _own(name: str, form: str, taken: set[str]) -> str:
    """`name`, or with its form or a number behind it if that is taken."""
    choices = [name, f"{name}_{form}", *(f"{name}_{number}" for number in range(2, 1000))]
    chosen = next(one for one in choices if one not in taken)
    taken.add(chosen)
    return chosen


def _by_ending(files: Iterable[tuple[File, str]]) -> dict[tuple[str, str], list[File]]:
    groups: dict[tuple[str, str], list[File]] = {}
    for file, name in files:
        suffixes = [suffix.lower() for suffix in file.below.suffixes]
        ending = "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in PACKED else suffixes[-1:])
        groups.setdefault((name, ending), []).append(file)
    return groups


# --- telling what a file is


def _told(
    name: str, ending: str, files: list[File], documented: bool, asides: dict[str, list[str]], tokenizers: list[File]
) -> list[tuple[_Group, File]]:
    """The group of every file that is texts or a benchmark; the others are put aside. Beyond LOOKED_AT files, the others are taken to be as the first."""
    told: list[tuple[_Group, File]] = []
    for number, file in enumerate(files):
        if number >= LOOKED_AT and told:
            told.append((told[0][0], file))
            continue
        group = _kind(name, file, documented)
        if isinstance(group, _Group):
            told.append((group, file))
        elif group == "tokenizer":
            tokenizers.append(file)
        else:
            asides.setdefault(group, []).append(file.written)
    return told


def _kind(name: str, file: File, documented: bool) -> _Group | str:
    """The group of a file, "tokenizer", or why it is set aside."""
    form = format_of(str(file.below))
    if form is None:
        return why_unread(str(file.below))
    if file.size == 0:
        return "empty"
    if form in DOCUMENTS and documented and file.below.name.partition(".")[0].lower() in BESIDE_DATA:
        return "a page about the data"
    form = true_format(file.place, form)
    try:
        readers_of("init", {file.written: form})
    except UserError:
        return "web pages: pip install 'tilth[web]' reads them"
    if form == "lines":
        names = _names_of_lines(file.place)
        if not names:
            return _no_lines(file)
        if set(names) >= TOKENIZER_KEYS:
            return "tokenizer"
    else:
        columns = FORMATS[form].columns(file.place, [])
        if columns is None:
            return "its table cannot be opened"
        names = [column for column, _ in columns]
    options = [one for one in ITEMS.options if one in names]
    if any(one in names for one in ITEMS.question) and options:
        return _Group(name, form, "benchmark", tuple(sorted(names)))
    points = "question_id" in names and any(one in names for one in ITEMS.benchmark)
    if points or _evaluating(file.below.parent):
        return _Group(name, form, "evaluation", ())
    known = next((one for one in TEXT_NAMES if one in names), None)
    return _Group(name, form, "text", (known,) if known else () if form == "lines" else tuple(sorted(names)))


def _evaluating(folder: PurePosixPath) -> bool:
    return any(not BENCHMARK_WORDS.isdisjoint(re.split(r"[^a-z]+", part.lower())) for part in folder.parts)


def _names_of_lines(place: Place) -> list[str]:
    """The columns of the JSON objects in the first 256 KiB, in their order; none if there is no object on a line."""
    names: dict[str, None] = {}
    for line in streams.decoded_head(place, 1 << 18).split(b"\n"):
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(values, dict):
            names |= dict.fromkeys(values)
    return list(names)


def _no_lines(file: File) -> str:
    """What a file named as JSON is that has no object on a line."""
    head = streams.decoded_head(file.place, 1 << 16).lstrip()
    if head[:1] == b"[":
        return "one JSON array: write an object a line (jq -c '.[]')"
    if head[:1] == b"{" and file.size <= 64 << 20:
        try:
            with file.place.open("rb") as handle:
                values = orjson.loads(handle.read())
        except orjson.JSONDecodeError:
            return "no JSON Lines"
        return "tokenizer" if set(values) >= TOKENIZER_KEYS else "one JSON document, no records"
    return "no JSON Lines"


# --- measuring


def _measured(group: _Group, files: list[File], beside: Path) -> Prospect:
    """The prospect of a group, from a sample of its first, last and some files between."""
    some = [files[round(place * (len(files) - 1) / (SAMPLED - 1))] for place in range(SAMPLED)] if len(files) > SAMPLED else files
    names = list(dict.fromkeys(name for file in some for name in _columns(group.form, file)))
    everything = Fields(None, None, dict.fromkeys(names, "string"))
    rows = [record.columns for file in some for record in _sample(group.form, file, everything)[0] if record.reason is None]
    by_name = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    lengths = {name: length for name, values in by_name.items() if (length := _prose(values))}
    text = "text" if group.form not in ("lines", "parquet", "arrow", "delimited") else _text(lengths, names)
    key = _key(by_name)
    reads: list[Record] = []
    share = 0.0
    for file in some:
        read, part = _sample(group.form, file, Fields(None if is_expression(text) else text, key, _extras(text)))
        reads += _chosen(read, text)
        share += part * file.size
    usable = [record.text for record in reads if record.text is not None and has_visible(record.text)]
    damaged = Counter(record.reason or "empty text" for record in reads if record.text is None or not has_visible(record.text))
    total = sum(file.size for file in files)
    scale = total / share if share else 0.0
    return Prospect(
        name=group.name,
        files=files,
        patterns=_patterns(files, beside),
        form=group.form,
        columns=names,
        text=text,
        key=key,
        lengths=lengths,
        values={name: found for name, values in by_name.items() if (found := _only(values)) is not None},
        sampled=len(reads),
        damaged=damaged,
        documents=round(len(usable) * scale),
        text_bytes=round(sum(len(one.encode()) for one in usable) * scale),
        whole=len(some) == len(files) and scale < 1.001,
        texts=usable[:: max(1, len(usable) // MEASURED)],
        contents=frozenset(xxhash.xxh3_64_intdigest(one.encode()) for one in usable),
    )


def _columns(form: str, file: File) -> list[str]:
    return _names_of_lines(file.place) if form == "lines" else [name for name, _ in FORMATS[form].columns(file.place, []) or []]


def _sample(form: str, file: File, fields: Fields) -> tuple[list[Record], float]:
    """The sample of a file, no record twice."""
    found, share = spread_records(file.place, file.size, form, fields, STREAM_BYTES)
    seen: set[int] = set()
    return [one for one in found if one.position not in seen and not seen.add(one.position)], share  # type: ignore[func-returns-value]


def _extras(text: str) -> dict[str, str]:
    return dict.fromkeys(names_in(text, "text"), "string") if is_expression(text) else {}


def _chosen(records: list[Record], text: str) -> list[Record]:
    """The records with the text that an expression makes of them."""
    if not is_expression(text):
        return records
    columns = _extras(text)
    return list(records_of(select(in_chunks(records, len(columns)), Choice(columns, 0, text, None), ())))


def _prose(values: list[Any]) -> int:
    """The mean characters of a column's texts, 0 if most of them are missing or no text for people: numbers, names, JSON."""
    there = [str(value) for value in values if value]
    if len(there) < len(values) / 2 or not there:
        return 0
    data = sum(value[:1] in "[{" and _is_json(value) for value in there[:50])
    spaced = sum(any(character.isspace() or ord(character) > 0x2E7F for character in value[:2000].strip()) for value in there)
    return round(sum(map(len, there)) / len(there)) if spaced > len(there) / 2 and data <= min(len(there), 50) / 2 else 0


def _is_json(value: str) -> bool:
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


def _text(lengths: dict[str, int], names: list[str]) -> str:
    """The column that holds the text: a well-known one that is nearly the longest, else question and answer together, else the longest."""
    longest = max(lengths.values(), default=0)
    known = next((name for name in TEXT_NAMES if lengths.get(name, 0) * 5 >= longest > 0), None)
    if known:
        return known
    question = next((name for name in ITEMS.question if name in lengths), None)
    answer = next((name for name in ITEMS.answer if name in lengths), None)
    if question and answer:
        return f"{question} || '\n' || {answer}"
    found = max(lengths, key=lambda name: lengths[name]) if lengths else next(iter(names), "text")
    return '"' + found.replace('"', '""') + '"' if is_expression(found) else found


def _key(columns: dict[str, list[Any]]) -> str | None:
    """A well-known column of which every value is there and its own."""
    for name in KEY_NAMES:
        values = columns.get(name, [])
        if values and None not in values and len(set(values)) == len(values):
            return name
    return None


def _only(values: list[Any]) -> str | None:
    """The one value that all records have."""
    return str(values[0]) if values and values[0] is not None and len(str(values[0])) <= 60 and len(set(values)) == 1 else None


def _patterns(files: list[File], beside: Path) -> list[str]:
    """A pattern that names these files and no other, or the files one by one."""
    if len(files) == 1:
        return [_escaped(files[0].written)]
    scheme, separator, _ = files[0].written.rpartition("://")
    named = [file.written.removeprefix(f"{scheme}{separator}") for file in files]
    folder = os.path.commonpath([os.path.dirname(one) for one in named])
    top = f"{scheme}{separator}{folder}" if separator else escape(folder)
    for inside in ("*", "**/*"):
        patterns = [f"{top}/{inside}{ending}".removeprefix("/" * (not folder)) for ending in sorted({_ending(one) for one in named})]
        if _matches(patterns, beside) == {_place(file.written, beside) for file in files}:
            return patterns
    return [_escaped(file.written) for file in files]


def _escaped(path: str) -> str:
    return path if "://" in path else escape(path)


def _ending(name: str) -> str:
    suffixes = PurePosixPath(name).suffixes
    return "".join(suffixes[-2:] if suffixes and suffixes[-1].lower() in PACKED else suffixes[-1:])


def _matches(patterns: list[str], beside: Path) -> set[str]:
    try:
        root, _, _, found = locate("init", patterns, "init", beside.resolve(), {})
    except UserError:
        return set()
    return {_place(str(root / one), beside) for one in found}


def _place(written: str, beside: Path) -> str:
    """Where a file lies that a recipe names so."""
    return written if "://" in written else os.path.normpath(beside.resolve() / written)
