"""Statistics of one text, each its own column, so that a threshold is a `keep` line and never a new computation.

Set `gopher`: the statistics of the quality filter of Gopher (arXiv 2112.11446, appendix A1.1). A *word* here is what stands between white space
(`str.split`), punctuation included, as in the paper; a *line* ends at `\\n` and is counted when it holds a visible character. English is assumed:
in a script without spaces a whole line is one word, and there the word columns mean nothing.

| column           | meaning                                                                                          | the paper keeps |
|------------------|--------------------------------------------------------------------------------------------------|-----------------|
| `words`          | words                                                                                            | 50 to 100,000   |
| `mean_length`    | code points per word                                                                             | 3 to 10         |
| `hash_ratio`     | `#` per word                                                                                     | at most 0.1     |
| `ellipsis_ratio` | `...` and U+2026 per word (`....` is one)                                                        | at most 0.1     |
| `symbol_ratio`   | the greater of the two: the paper's rule "for either" in one number                              | at most 0.1     |
| `bullet_lines`   | share of lines that begin (after white space) with one of BULLETS                                | at most 0.9     |
| `ellipsis_lines` | share of lines that end (before white space) with `...` or U+2026                                | at most 0.3     |
| `alphabetic`     | share of words with a letter (`str.isalpha`)                                                     | at least 0.8    |
| `stop_words`     | how many of the eight STOP_WORDS occur as a word, in any case, less the punctuation at its ends  | at least 2      |
| `lines`          | lines                                                                                            |                 |

Counts are never null. A text with no word has no ratio: those columns are null. Counting is in integers; no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.reference import Reference

if TYPE_CHECKING:
    import pyarrow as pa

COUNTS = ("words", "stop_words", "lines")
RATIOS = ("mean_length", "hash_ratio", "ellipsis_ratio", "symbol_ratio", "bullet_lines", "ellipsis_lines", "alphabetic")


class HeuristicsConfig(BaseModel):
    """Which set of statistics to compute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["heuristics"]
    statistics: Literal["gopher"] = Field(default="gopher", alias="set")


def version(config: HeuristicsConfig) -> str:
    """The rules' own number and the Unicode tables they read."""
    import unicodedata

    return f"{config.statistics} 1, unicode {unicodedata.unidata_version}"


def fields(config: HeuristicsConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.struct([pa.field(name, pa.int64()) for name in COUNTS] + [pa.field(name, pa.float64()) for name in RATIOS])


def references(config: HeuristicsConfig) -> dict[str, Reference]:
    return {}


def train(config: HeuristicsConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    raise TypeError("heuristics have no model to train")


def compute(config: HeuristicsConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.StructArray:
    """The statistics of every text, as `fields` names them."""
    import numpy as np
    import pyarrow as pa

    from curation.signals import gopher

    counts = gopher.count(texts)
    words, lines = counts.words, counts.lines
    per_word = np.maximum(words, 1)
    per_line = np.maximum(lines, 1)
    values = {
        "words": words,
        "stop_words": counts.stop_words,
        "lines": lines,
        "mean_length": counts.word_characters / per_word,
        "hash_ratio": counts.hashes / per_word,
        "ellipsis_ratio": counts.ellipses / per_word,
        "symbol_ratio": np.maximum(counts.hashes, counts.ellipses) / per_word,
        "bullet_lines": counts.bullet_lines / per_line,
        "ellipsis_lines": counts.ellipsis_lines / per_line,
        "alphabetic": counts.alphabetic_words / per_word,
    }
    no_words = words == 0  # and so no line with a visible character either
    columns = [pa.array(values[name]) for name in COUNTS] + [pa.array(values[name], mask=no_words) for name in RATIOS]
    return pa.StructArray.from_arrays(columns, fields=list(fields(config)))
