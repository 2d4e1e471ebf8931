"""The language and the script of a text.

| column         | meaning                                                                                                             |
|----------------|---------------------------------------------------------------------------------------------------------------------|
| `code`         | ISO 639-1 code, ISO 639-3 where there is none; `zxx`: no language (code, tables); null for a text without a letter   |
| `probability`  | the model's, 0 to 1; of a text under 50 characters it says little                                                   |
| `script`       | ISO 15924 code of the script of most letters: `Latn`, `Cyrl`, `Jpan`, …; Chinese as `Hans` (simplified), `Hant` (traditional) or `Hani` (can be both) |
| `script_share` | its share of the letters                                                                                            |

The model comes with py3langid (139 languages, naive Bayes over byte n-grams, no download); its automaton is walked here by a kernel, with the library's
own verdicts (a test compares them). Of a text over 3 KiB three windows of 1 KiB are read, from its beginning, middle and end; the script is that of
the whole text. Where most letters are Han without kana the code is `zh`, whatever the model says (it takes poems for Wu or Japanese), and the
probability is that of `zh`, `wuu`, `yue` and `ja` together. With `model: lid.176.bin` (or another fastText file) that model reads the same windows, the code
is its label without `__label__`, and a text in which it finds nothing to read has none. Probabilities are rounded to four digits, which hides the last bits of other processors.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from curation.signals.classifier import labels_of
from curation.signals.reference import ModelFile, Reference

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

WINDOWS, WINDOW = 3, 1024  # bytes
HAN = ("Hans", "Hant", "Hani")
CHINESE = ("zh", "wuu", "yue", "ja")
DIGITS = 4


class LanguageConfig(BaseModel):
    """What language a text is in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["language"]
    model: str | None = Field(default=None, description="a fastText file (.bin or .ftz) instead of the model that comes with py3langid")


class Tables(NamedTuple):
    """The model of py3langid: an automaton over bytes and a naive Bayes classifier over the features that its states stand for."""

    rows: npt.NDArray[np.int64]
    """Per state the first entry of its 256 in `following`."""
    following: npt.NDArray[np.uint32]
    features: npt.NDArray[np.int32]
    """Per state, -1 for none."""
    weights: npt.NDArray[np.float32]
    """Features x languages, logarithms."""
    priors: npt.NDArray[np.float64]
    codes: list[str]


def version(config: LanguageConfig) -> str:
    """The rules' own number, the model's library and the Unicode tables that scripts are read from."""
    import unicodedata
    from importlib.metadata import version

    reader = "fasttext" if config.model else f"py3langid {version('py3langid')}"
    return f"language 1, {reader}, unicode {unicodedata.unidata_version}"


def fields(config: LanguageConfig) -> pa.DataType:
    import pyarrow as pa

    return pa.struct([("code", pa.string()), ("probability", pa.float64()), ("script", pa.string()), ("script_share", pa.float64())])


def references(config: LanguageConfig) -> dict[str, Reference | ModelFile]:
    return {} if config.model is None else {"model": ModelFile(config.model, labels_of, lambda labels: None)}


def train(config: LanguageConfig, texts: dict[str, pa.LargeStringArray], folder: Path, seed: int) -> None:
    """Puts what scoring needs of the named model into `folder`."""
    from curation.signals import fasttext_scoring

    fasttext_scoring.prepare(Path(texts["model"][0].as_py()), folder)


def compute(config: LanguageConfig, texts: pa.LargeStringArray, model: Path | None) -> pa.StructArray:
    """Code, probability, script and its share of every text, as `fields` names them."""
    import numpy as np
    import pyarrow as pa

    from curation.signals import scripts

    names, shares = scripts.of(texts)
    windows = [sampled(text) for text in texts.to_pylist()]
    codes, probabilities = _probabilities(windows) if model is None else _by_fasttext(windows, model)
    chinese = [codes.index(code) for code in CHINESE if code in codes] if "zh" in codes else []
    best = probabilities.argmax(1).tolist()
    found = probabilities.max(1)
    spoken: list[str | None] = [codes[column] for column in best]
    for row, name in enumerate(names):
        if name in HAN and chinese:
            spoken[row], found[row] = "zh", probabilities[row, chinese].sum()
    silent = np.array([name is None for name in names], np.bool_)
    unread = silent | np.isnan(found)
    columns = [
        pa.array(spoken, pa.string(), mask=unread),
        pa.array(np.minimum(found.round(DIGITS), 1.0), mask=unread),
        pa.array(names, pa.string()),
        pa.array(shares, mask=silent),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(fields(config)))


def sampled(text: str) -> bytes:
    """What is read of a text, as py3langid reads it: NFC, small letters if it has capitals only."""
    import unicodedata

    raw = text.encode()
    if len(raw) > WINDOWS * WINDOW:
        starts = (0, (len(raw) - WINDOW) // 2, len(raw) - WINDOW)
        text = "\n".join(raw[start : start + WINDOW].decode(errors="ignore") for start in starts)
    if text.isupper():
        text = text.lower()
    return text.encode() if text.isascii() else unicodedata.normalize("NFC", text).encode()


@lru_cache(maxsize=1)
def tables() -> Tables:
    import numpy as np
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE)
    return Tables(
        np.asarray(model.tk_row, np.int64) * 256,
        np.asarray(model.tk_nextmove, np.uint32),
        np.asarray(model.tk_output, np.int32),
        np.asarray(model.nb_ptc, np.float32),
        np.asarray(model.nb_pc, np.float64),
        list(model.nb_classes),
    )


def _by_fasttext(windows: list[bytes], folder: Path) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The labels of the model in `folder`, and texts x labels."""
    import pyarrow as pa

    from curation.signals import fasttext_scoring

    texts = pa.array([window.decode() for window in windows], pa.large_string())
    return [fasttext_scoring.plain(label) for label in fasttext_scoring.labels(folder)], fasttext_scoring.probabilities(folder, texts)


def _probabilities(windows: list[bytes]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The distinct codes, and texts x codes: softmax of the log posteriors over the root of the text's bytes, as the library has it."""
    import numpy as np

    from curation.signals import automaton

    known = tables()
    scores = automaton.scores(windows, known.rows, known.following, known.features, known.weights, known.priors)
    sizes = np.array([max(len(window), 1) for window in windows], np.float64)
    scores = np.exp((scores - scores.max(1, keepdims=True, initial=-np.inf)) / np.sqrt(sizes)[:, None])
    scores /= scores.sum(1, keepdims=True)
    distinct = list(dict.fromkeys(known.codes))
    merged = np.zeros((len(windows), len(distinct)))
    for column, code in enumerate(known.codes):
        merged[:, distinct.index(code)] += scores[:, column]
    return distinct, merged
