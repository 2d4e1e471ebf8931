"""Whether a text holds an item of a benchmark: which one, where, and how much of it.

The files of `against` are benchmarks in any format a source may have, one item a record. Their columns are found by name: `columns` lists for every part of an item the
names that it may go by, the first that a file has counts, and for options all of them. A value may be text, a list or a mapping, as benchmarks have them. `parts` says what
must not be trained on: the question by default. A context is mostly a passage that is public anyway, and then counts every copy of an encyclopedia.

Texts and items are compared as `plain` reads them and `overlap` counts: runs of `ngram` words; an item with no n-gram of its own as a line of at least `shortest` words. Items
with the same words are one, known by the first. N-grams that stand in more than `common_share` of the documents of a sample in `common` (drawn from the source as it was read,
never from what is left of it) are left out.

One struct per text, of the item it has the largest share of, null if it has none of any: `share` of the item's n-grams; `benchmark` (its column, or the file's name) and
`item` (its id, or `file#position`); `part`; `start` and `length` in characters of the text; `options`, the share of the item's answer options that follow it, null if it has none.
Nothing is dropped here: the rule says from which share on. 0.3 is what `benchmarks/contamination.md` found with 8 words.

The model is the index, ITEMS with the texts for those who want to see them, SUMMARY with how each benchmark is protected, and UNPROTECTED with the items that nothing protects.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.reference import Columns, Reference, Sample
from mixing import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from curation.signals.overlap import Index

ITEMS, SUMMARY, UNPROTECTED = "items.arrow", "summary.json", "unprotected.jsonl"
ORIGIN = ""  # where a record stands, beside its columns
EVIDENCE = ("benchmark", "item", "start", "length", "share")
Part = Literal["question", "context", "answer"]


class ItemColumns(BaseModel):
    """The names that the parts of an item may go by, in order of preference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: list[str] = ["question", "Question", "problem", "query", "prompt", "goal", "ctx", "sentence", "instruction", "input"]
    context: list[str] = ["context", "passage", "article", "support", "story"]
    options: list[str] = [
        *("choices", "options", "endings", "A", "B", "C", "D", "E"),
        *("opa", "opb", "opc", "opd", "ope", "option1", "option2", "sol1", "sol2"),
    ]
    answer: list[str] = ["answer_text", "answer", "Answer", "solution", "canonical_solution", "target", "output"]
    item: list[str] = ["id", "ID", "_id", "question_id", "task_id"]
    benchmark: list[str] = ["benchmark", "task", "dataset"]


class ContaminationConfig(BaseModel):
    """The benchmarks, and how they are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["contamination"]
    against: str = Field(description="paths or URLs with wildcards: benchmarks, one item a record")
    columns: ItemColumns = ItemColumns()
    parts: list[Part] = Field(default=["question"], min_length=1, description="what of an item must not be trained on")
    ngram: int = Field(default=8, ge=3, le=50, description="words; a character of Chinese and the like is one")
    shortest: int = Field(default=3, ge=1, le=50, description="words of an item that is found as a whole line")
    common: list[Sample] = Field(default=[], description="sources whose common n-grams are left out of the index")
    common_share: float = Field(default=0.01, gt=0, le=1, description="of a sample's documents, from which on an n-gram is common")


def version(config: ContaminationConfig) -> str:
    from curation.signals.plain import PLAIN_VERSION

    return f"contamination 1, plain {PLAIN_VERSION}"


def fields(config: ContaminationConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.struct(
        [
            pa.field("share", pa.float64()),
            *(pa.field(name, pa.large_string()) for name in ("benchmark", "item", "part")),
            *(pa.field(name, pa.int64()) for name in ("start", "length")),
            pa.field("options", pa.float64()),
        ]
    )


def references(config: ContaminationConfig) -> dict[str, Reference]:
    return {"against": config.against} | {f"common[{number}]": sample for number, sample in enumerate(config.common)}


def columns(config: ContaminationConfig) -> dict[str, Columns]:
    """The columns that an item may have."""
    named = config.columns.model_dump()
    needed = [name for part in config.parts for name in named[part]]
    return {"against": Columns(needed, list(dict.fromkeys(name for names in named.values() for name in names)))}


# --- the index


class Passage(NamedTuple):
    """One part of one item."""

    benchmark: str
    item: str
    part: str
    text: str
    options: list[str]


def passages(config: ContaminationConfig, record: dict[str, Any]) -> Iterator[Passage]:
    """What of a record must not be trained on; nothing where the parts are empty."""
    path, _, _ = str(record[ORIGIN]).rpartition("#")
    name = PurePosixPath(path)
    while name.suffix:
        name = name.with_suffix("")
    named = config.columns

    def first(names: list[str]) -> str:
        return next((text for column in names for text in [" ".join(_texts(record.get(column)))] if text), "")

    options = [text for column in named.options for text in _texts(record.get(column))]
    for part in config.parts:
        text = first(getattr(named, part))
        if text:
            yield Passage(first(named.benchmark) or str(name), first(named.item) or str(record[ORIGIN]), part, text, options)


def _texts(value: str | None) -> list[str]:
    """The texts of a column: one, those of a list, or of a mapping by label; `{text: [...], label: [...]}` and `[{text, label}]` are how some benchmarks have options."""
    import orjson

    if value is None or value[:1] not in ("[", "{"):
        return [value] if value else []
    try:
        return _leaves(orjson.loads(value))
    except orjson.JSONDecodeError:
        return [value]


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = value["text"] if "text" in value else list(value.values())
    if isinstance(value, list):
        return [leaf for one in value for leaf in _leaves(one)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def train(config: ContaminationConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """Writes the index and what is known of the items. A UserError where no item has a word in its parts."""
    import numpy as np
    import orjson

    from curation.signals import overlap
    from curation.text.words import text_buffers

    read = [one for record in texts["against"] for one in passages(config, orjson.loads(record.as_py()))]
    words, offsets = _words(one.text for one in read)
    distinct = overlap.distinct(words, offsets)
    if not len(distinct):
        raise UserError(
            f"against: no word in the {' and '.join(config.parts)} of its {len(texts['against'])} records; name the columns in `columns`"
        )
    kept = [read[at] for at in distinct.tolist()]
    words, offsets = _words(one.text for one in kept)
    samples = [text_buffers(texts[role]) for role in texts if role != "against"]
    index = overlap.build(words, offsets, config.ngram, config.shortest, samples, config.common_share)
    option_words, option_offsets = _words(option for one in kept for option in one.options)
    option_first = np.cumsum([0, *(len(one.options) for one in kept)])
    overlap.save(overlap.with_options(index, option_words, option_offsets, option_first), folder)
    _write_items(kept, len(read) - len(kept), overlap.protection(index), index.sizes, folder)


def _words(texts: Iterator[str]) -> tuple[Any, npt.NDArray[np.int64]]:
    import pyarrow as pa

    from curation.signals.plain import words_of
    from curation.text.words import text_buffers

    return words_of(*text_buffers(pa.array(texts, pa.large_string())))


def _write_items(kept: list[Passage], repeated: int, protection: list[str], sizes: npt.NDArray[np.uint32], folder: Path) -> None:
    import json

    import pyarrow as pa

    table = pa.table({name: pa.array([getattr(one, name) for one in kept], pa.large_string()) for name in Passage._fields[:4]})
    with pa.OSFile(str(folder / ITEMS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    counts: dict[str, dict[str, int]] = {}
    with (folder / UNPROTECTED).open("w", encoding="utf-8") as file:
        for one, how, size in zip(kept, protection, sizes.tolist(), strict=True):
            of = counts.setdefault(one.benchmark, {"ngrams": 0, "line": 0, "nothing": 0})
            of[how] += 1
            if how == "nothing":
                lost = {"benchmark": one.benchmark, "item": one.item, "part": one.part, "words": size, "text": one.text}
                file.write(json.dumps(lost, ensure_ascii=False) + "\n")
    (folder / SUMMARY).write_text(json.dumps({"protected_by": counts, "repeated": repeated}, indent=1) + "\n", encoding="utf-8")


def caveat(folder: Path) -> str | None:
    """What the user should know of the index: the items that have no n-gram, by benchmark."""
    import json

    counts = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["protected_by"]
    weak = {name: (of["line"], of["nothing"]) for name, of in counts.items() if of["line"] or of["nothing"]}
    if not weak:
        return None
    told = ", ".join(f"{name} {line:,} and {nothing:,}" for name, (line, nothing) in weak.items())
    total = sum(sum(of.values()) for of in counts.values())
    return f"of {total:,} items these have no n-gram, so that they are found as a whole line alone, or not at all: {told}; {folder.name}/{UNPROTECTED} lists the last"


# --- texts


def compute(config: ContaminationConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.StructArray:
    """What every text has of an item."""
    import numpy as np
    import pyarrow as pa

    from curation.signals import overlap
    from curation.text.words import text_buffers

    assert model is not None
    found = overlap.find(*text_buffers(texts), _loaded(str(model)))
    none = found.passage < 0
    items = _items(model).take(pa.array(np.where(none, 0, found.passage)))
    values = [found.share, *(items[name].combine_chunks() for name in Passage._fields[:3]), found.start, found.length]
    values.append(pa.array(found.options, mask=found.options < 0))
    kinds = list(fields(config))
    return pa.StructArray.from_arrays([pa.array(value) for value in values], fields=kinds, mask=pa.array(none))


def text_of(model: Path, benchmark: str, item: str, part: str) -> str | None:
    """The text of an item as the benchmark has it; None if the model does not know it."""
    import pyarrow.compute as pc

    if not (model / ITEMS).exists():
        return None
    items = _items(model)
    named = pc.and_(pc.and_(pc.equal(items["benchmark"], benchmark), pc.equal(items["item"], item)), pc.equal(items["part"], part))
    texts = items["text"].filter(named).to_pylist()
    return texts[0] if texts else None


def _items(model: Path) -> pa.Table:
    import pyarrow as pa

    with pa.memory_map(str(model / ITEMS)) as source:
        return pa.ipc.open_file(source).read_all()


@lru_cache(maxsize=4)
def _loaded(folder: str) -> Index:
    from curation.signals import overlap

    return overlap.load(Path(folder))
