"""Statistics of one text, each its own column, so that a threshold is a `keep` line and never a new computation.

A *word* is what stands between white space (`str.split`), punctuation included, as in Gopher's paper; in a script written without spaces
(`curation.text.words`: Chinese, Japanese, Thai …) every letter begins a word of its own, and the punctuation behind it belongs to it. So `平时90年代。` is
4 words, and for Chinese a word is a character: `mean_length` is then near 1 and `stop_words` 0, and no n-gram threshold was made for it. A *line* ends
at `\n`; white space at its ends does not count, nor does a line without a visible character. A *paragraph* is a run of lines without an empty one
between them. Characters are code points. A *share* is between 0 and 1.

Set `gopher`: the quality filter of Gopher (arXiv 2112.11446, appendix A1.1).

| column           | meaning                                                                                          | the paper keeps |
|------------------|--------------------------------------------------------------------------------------------------|-----------------|
| `words`          | words                                                                                            | 50 to 100,000   |
| `mean_length`    | characters per word                                                                              | 3 to 10         |
| `hash_ratio`     | `#` per word                                                                                     | at most 0.1     |
| `ellipsis_ratio` | `...` and U+2026 per word (`....` is one)                                                        | at most 0.1     |
| `symbol_ratio`   | the greater of the two: the paper's rule "for either" in one number                              | at most 0.1     |
| `bullet_lines`   | share of lines that begin with one of BULLETS                                                    | at most 0.9     |
| `ellipsis_lines` | share of lines that end with `...` or U+2026                                                     | at most 0.3     |
| `alphabetic`     | share of words with a letter (`str.isalpha`)                                                     | at least 0.8    |
| `stop_words`     | how many of the eight STOP_WORDS occur as a word, in any case, less the punctuation at its ends  | at least 2      |
| `lines`          | lines                                                                                            |                 |

Set `gopher_repetition`: Gopher's table A1, counted as datatrove counts it: of several equal units all but the first are duplicates.

| column                              | meaning                                                                                     | the paper keeps, at most          |
|-------------------------------------|---------------------------------------------------------------------------------------------|-----------------------------------|
| `duplicate_lines`                   | share of lines that occurred before                                                         | 0.3                               |
| `duplicate_paragraphs`              | share of paragraphs that occurred before                                                    | 0.3                               |
| `duplicate_line_characters`         | their characters, by those of the text                                                      | 0.2                               |
| `duplicate_paragraph_characters`    | their characters (line ends inside included), by those of the text                          | 0.2                               |
| `top_2_gram` to `top_4_gram`        | characters of the most frequent n words (one space between) times its occurrences, by those of the text; 0 where none occurs twice, and over 1 where occurrences overlap | 0.2, 0.18, 0.16 |
| `duplicate_5_grams` to `duplicate_10_grams` | characters, without spaces, of n words that occurred before, from left to right without overlap, by those of the text | 0.15, 0.14, 0.13, 0.12, 0.11, 0.1 |

Set `c4`: what C4 (arXiv 1910.10683, section 2.2) drops lines and pages for. C4 edits; this counts, and each cause for itself.

| column           | meaning                                                                                                     | C4 keeps              |
|------------------|-------------------------------------------------------------------------------------------------------------|-----------------------|
| `lines`          | lines                                                                                                       |                       |
| `dropped_lines`  | lines that C4 drops: for one of the five causes below                                                       |                       |
| `unended`        | lines that do not end with `. ? ! " '` (or `” ’ 。！？」』`), citations behind it apart, or end with `...`    | lines without         |
| `short`          | lines of fewer than 3 words                                                                                 | lines without         |
| `long`           | lines with a word of more than 1,000 characters                                                             | lines without         |
| `javascript`     | lines with this word, in any case                                                                           | lines without         |
| `policy`         | lines with a phrase of POLICY (terms of use, privacy, cookies)                                              | lines without         |
| `kept`           | characters of the lines C4 keeps, by those of all lines                                                     |                       |
| `sentences`      | sentences in the lines C4 keeps                                                                             | 5 or more (its code: 3) |
| `lorem_ipsum`    | lines with this phrase, dropped ones too                                                                    | 0                     |
| `curly_brackets` | `{` in all lines                                                                                            | 0                     |

A sentence ends at `. ? !` with closing quotes or brackets, before white space and no small letter, and not at `...` or at an initial; at `。！？`; and at
the end of a line. C4's list of bad words is not here: list them in a rule, or train a classifier.

Set `fineweb`: the three filters that FineWeb (arXiv 2406.17557, section 3.6) adds, and the one that its code has besides.

| column                 | meaning                                                                             | datatrove keeps         |
|------------------------|-------------------------------------------------------------------------------------|-------------------------|
| `lines`                | lines                                                                               |                         |
| `terminated`           | share of lines that end with a code point of Unicode's Sentence_Terminal            | at least 0.12           |
| `short_lines`          | share of lines of at most 30 characters                                             | at most 0.67            |
| `duplicate_characters` | characters of lines that occurred before, by those of all lines                     | at most 0.01 (the paper: under 0.1) |
| `newlines_per_word`    | `\n` per word                                                                       | at most 0.3             |

Counts are never null. A text with no word has no ratio and no share: those columns are null. Counting is in integers; no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.reference import Reference

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

TOPS = tuple(f"top_{n}_gram" for n in (2, 3, 4))
DUPLICATES = tuple(f"duplicate_{n}_grams" for n in (5, 6, 7, 8, 9, 10))
# The columns of each set: counts, then ratios.
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gopher": (
        ("words", "stop_words", "lines"),
        ("mean_length", "hash_ratio", "ellipsis_ratio", "symbol_ratio", "bullet_lines", "ellipsis_lines", "alphabetic"),
    ),
    "gopher_repetition": (
        (),
        (
            "duplicate_lines",
            "duplicate_paragraphs",
            "duplicate_line_characters",
            "duplicate_paragraph_characters",
            *TOPS,
            *DUPLICATES,
        ),
    ),
    "c4": (
        (
            "lines",
            "dropped_lines",
            "unended",
            "short",
            "long",
            "javascript",
            "policy",
            "sentences",
            "lorem_ipsum",
            "curly_brackets",
        ),
        ("kept",),
    ),
    "fineweb": (("lines",), ("terminated", "short_lines", "duplicate_characters", "newlines_per_word")),
}
VERSIONS = {"gopher": 2, "gopher_repetition": 1, "c4": 1, "fineweb": 1}


class HeuristicsConfig(BaseModel):
    """Which set of statistics to compute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["heuristics"]
    statistics: Literal["gopher", "gopher_repetition", "c4", "fineweb"] = Field(default="gopher", alias="set")


def version(config: HeuristicsConfig) -> str:
    """The rules' own number and the Unicode tables they read."""
    import unicodedata

    return f"{config.statistics} {VERSIONS[config.statistics]}, unicode {unicodedata.unidata_version}"


def fields(config: HeuristicsConfig) -> pa.DataType:
    import pyarrow as pa

    counts, ratios = COLUMNS[config.statistics]
    return pa.struct([pa.field(name, pa.int64()) for name in counts] + [pa.field(name, pa.float64()) for name in ratios])


def references(config: HeuristicsConfig) -> dict[str, Reference]:
    return {}


def train(config: HeuristicsConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    raise TypeError("heuristics have no model to train")


def compute(config: HeuristicsConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.StructArray:
    """The statistics of every text, as `fields` names them."""
    import numpy as np
    import pyarrow as pa

    values = {"gopher": _gopher, "gopher_repetition": _repetition, "c4": _c4, "fineweb": _fineweb}[config.statistics](texts)
    counts, ratios = COLUMNS[config.statistics]
    columns = [pa.array(values[name]) for name in counts]
    for name in ratios:
        columns.append(pa.array(values[name], mask=np.isnan(values[name])))
    return pa.StructArray.from_arrays(columns, fields=list(fields(config)))


def _ratio(part: npt.NDArray[np.int64], of: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """NaN, which becomes null, where there is nothing to divide by."""
    import numpy as np

    ratios: npt.NDArray[np.float64] = np.divide(part, of, out=np.full(of.size, np.nan), where=of != 0)
    return ratios


def _gopher(texts: pa.LargeStringArray) -> dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]:
    import numpy as np

    from curation.signals import counting

    counts = counting.count(texts)
    words, lines = counts.words, counts.lines
    return {
        "words": words,
        "stop_words": counts.stop_words,
        "lines": lines,
        "mean_length": _ratio(counts.word_characters, words),
        "hash_ratio": _ratio(counts.hashes, words),
        "ellipsis_ratio": _ratio(counts.ellipses, words),
        "symbol_ratio": _ratio(np.maximum(counts.hashes, counts.ellipses), words),
        "bullet_lines": _ratio(counts.bullet_lines, lines),
        "ellipsis_lines": _ratio(counts.ellipsis_lines, lines),
        "alphabetic": _ratio(counts.alphabetic_words, words),
    }


def _repetition(texts: pa.LargeStringArray) -> dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]:
    import numpy as np

    from curation.signals import counting, repetition

    found = counting.lines(texts)
    characters = np.where(np.diff(found.offsets), counting.characters(texts), 0)
    paragraphs = repetition.paragraphs(found)
    of_lines = repetition.repeated(found.hashes, found.characters, found.offsets)
    of_paragraphs = repetition.repeated(*paragraphs)
    grams = repetition.n_grams(counting.words(texts, found))
    return {
        "duplicate_lines": _ratio(of_lines.units, np.diff(found.offsets)),
        "duplicate_paragraphs": _ratio(of_paragraphs.units, np.diff(paragraphs[2])),
        "duplicate_line_characters": _ratio(of_lines.characters, characters),
        "duplicate_paragraph_characters": _ratio(of_paragraphs.characters, characters),
        **{name: _ratio(column, characters) for name, column in zip((*TOPS, *DUPLICATES), grams.T, strict=True)},
    }


def _c4(texts: pa.LargeStringArray) -> dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]:
    import numpy as np

    from curation.signals import c4, counting

    found = counting.lines(texts)
    counts = c4.count(texts, found)
    characters = np.diff(np.concatenate([[0], np.cumsum(found.characters)])[found.offsets])
    return {
        **counts._asdict(),
        "lines": np.diff(found.offsets),
        "dropped_lines": counts.dropped,
        "kept": _ratio(counts.kept_characters, characters),
    }


def _fineweb(texts: pa.LargeStringArray) -> dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]:
    import numpy as np

    from curation.signals import counting, fineweb

    found = counting.lines(texts)
    counts = fineweb.count(texts, found)
    lines = np.diff(found.offsets)

    def per_text(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.diff(np.concatenate([[0], np.cumsum(values)])[found.offsets])

    return {
        "lines": lines,
        "terminated": _ratio(counts.terminated, lines),
        "short_lines": _ratio(counts.short, lines),
        "duplicate_characters": _ratio(counts.duplicate_characters, per_text(found.characters)),
        "newlines_per_word": _ratio(counts.newlines, per_text(found.words)),
    }
