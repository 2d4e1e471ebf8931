"""Scoring with a fastText model in a folder: by its table where that is exact (a softmax), by the library otherwise; either way for every label.

The folder is what `prepare` makes of a model file, ours or someone else's: the table, or a copy of the file. Tables are memory-mapped; a model for the library is held by every worker.
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curation.signals import fasttext_file, fasttext_table

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
MODEL = "model.bin"
PREFIX = fasttext_table.LABEL.decode()
_AT_ONCE = 1024  # texts: bounds the Python strings alive at one time
_ADDED = 1e-5  # by fastText to a probability before its logarithm


def prepare(path: Path, folder: Path) -> None:
    """Puts what scoring needs of the model file `path` into `folder`. A UserError where it is no supervised model."""
    model = fasttext_file.read_model_file(path)
    if fasttext_table.is_exact(model):
        fasttext_table.save(fasttext_table.make(model), folder)
    else:
        shutil.copyfile(path, folder / MODEL)


def labels(folder: Path) -> list[str]:
    """The labels in the order of the columns of `probabilities`."""
    return list(_loaded(str(folder))[0])


def probabilities(folder: Path, texts: pa.LargeStringArray) -> Floats:
    """f64[texts, labels], NaN in the row of a text in which the model finds nothing to read."""
    names, model = _loaded(str(folder))
    if isinstance(model, fasttext_table.Table):
        return fasttext_table.probabilities(model, texts)
    place = {name: column for column, name in enumerate(names)}
    found = np.full((len(texts), len(names)), np.nan)
    for start in range(0, len(texts), _AT_ONCE):
        lines = [clean(text) for text in texts.slice(start, _AT_ONCE).to_pylist()]
        for row, (named, values) in enumerate(zip(*model.predict(lines, k=-1), strict=True), start):  # a list: one string fails on NumPy 2
            if len(named):
                found[row] = 0.0  # a hierarchical softmax does not go down to labels below 0.00001
            found[row, [place[name] for name in named]] = np.clip(np.asarray(values, np.float64) - _ADDED, 0, 1)
    return found


def clean(text: str) -> str:
    """`text` as one line without what fastText would take for a label or for the end of the line: words that begin with `__label__`, and the word `</s>`."""
    text = text.replace("\n", " ")
    if PREFIX not in text and "</s>" not in text:
        return text
    return " ".join(word for word in _words(text) if word != "</s>" and not word.startswith(PREFIX))


def column_of(names: list[str], label: str) -> int | None:
    """The column of a label given with or without fastText's prefix; None if the model has none such."""
    return next((names.index(name) for name in (label, PREFIX + label) if name in names), None)


def plain(label: str) -> str:
    return label.removeprefix(PREFIX)


def _words(text: str) -> list[str]:
    for space in "\t\v\f\r\0":
        text = text.replace(space, " ")
    return [word for word in text.split(" ") if word]


@lru_cache(maxsize=4)
def _loaded(folder: str) -> tuple[list[str], Any]:
    if (Path(folder) / fasttext_table.HEADER).exists():
        table = fasttext_table.load(Path(folder))
        return table.labels, table
    import fasttext

    model = fasttext.load_model(str(Path(folder) / MODEL))
    return sorted(model.get_labels()), model
