"""ARPA files against a scorer that knows nothing but the format: what is written means what the model says, and what is read scores as the format says."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from curation.signals import SIGNALS, arpa
from curation.signals.perplexity import PerplexityConfig
from curation.text.words import words
from mixing import UserError

SIGNAL = SIGNALS["ngram"]
CORPUS = ["The cat sat on the mat.", "the dog sat", "A cat; the cat!", "中文 text"]
TEXTS = ["the cat sat", "a dog on the mat", "zebras sat on zebras", "中文 cat", "...", "the the the"]
FOREIGN = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-2.5\t<unk>
-99\t<s>\t-0.3
-0.7\t</s>
-0.5\tcat\t-0.25
-0.9\tsat

\\2-grams:
-0.1\t<s> cat
-0.2\tcat sat

\\end\\
"""


def array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def config(**settings: object) -> PerplexityConfig:
    return PerplexityConfig.model_validate({"kind": "ngram", **settings})


class Backoff:
    """log10 P(w | h) of an ARPA file: the n-gram's if it stands there, else the back-off of h and P(w | h')."""

    def __init__(self, text: str) -> None:
        self.log: dict[tuple[str, ...], float] = {}
        self.weight: dict[tuple[str, ...], float] = {}
        self.order = 0
        for line in text.splitlines():
            if line.endswith("-grams:"):
                self.order = int(line[1])
            elif self.order and line and not line.startswith("\\"):
                parts = line.split("\t")
                gram = tuple(parts[1].split())
                self.log[gram] = float(parts[0])
                self.weight[gram] = float(parts[2]) if len(parts) > 2 else 0.0

    def of(self, gram: tuple[str, ...]) -> float:
        if gram in self.log:
            return self.log[gram]
        return self.log[("<unk>",)] if len(gram) == 1 else self.weight.get(gram[:-1], 0.0) + self.of(gram[1:])

    def perplexity(self, text: str) -> float | None:
        symbols = ["<s>", *words(text), "</s>"]
        total = sum(self.of(tuple(symbols[max(0, at - self.order + 1) : at + 1])) for at in range(1, len(symbols)))
        return 10 ** (-total / (len(symbols) - 1)) if len(symbols) > 2 else None


def assert_scores(folder: Path, configured: PerplexityConfig, oracle: Backoff) -> None:
    for value, text in zip(SIGNAL.compute(configured, array(TEXTS), folder).to_pylist(), TEXTS, strict=True):
        expected = oracle.perplexity(text)
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-5))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_file_written_beside_a_model_scores_as_the_model_and_reads_back(tmp_path: Path, order: int) -> None:
    configured = config(reference="-", order=order, arpa=True)
    SIGNAL.train(configured, {"reference": array(CORPUS)}, tmp_path, 17)
    text = (tmp_path / "model.arpa").read_text(encoding="utf-8")

    assert_scores(tmp_path, configured, Backoff(text))

    again = tmp_path / "again"
    again.mkdir()
    given = config(model="model.arpa")
    SIGNAL.train(given, {"model": array([str(tmp_path / "model.arpa")])}, again, 17)
    assert_scores(again, given, Backoff(text))


def test_file_written_does_not_depend_on_the_order_of_the_texts(tmp_path: Path) -> None:
    files = []
    for name, texts in (("one", CORPUS), ("other", CORPUS[::-1])):
        (tmp_path / name).mkdir()
        SIGNAL.train(config(reference="-", arpa=True), {"reference": array(texts)}, tmp_path / name, 17)
        files.append((tmp_path / name / "model.arpa").read_bytes())

    assert files[0] == files[1]
    assert files[0].startswith(b"\\data\\\nngram 1=13\n")


@pytest.mark.parametrize("packed", [False, True])
def test_foreign_file_scores_as_the_format_says(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("foreign.arpa.gz" if packed else "foreign.arpa")
    path.write_bytes(gzip.compress(FOREIGN.encode()) if packed else FOREIGN.encode())

    SIGNAL.train(config(model=path.name), {"model": array([str(path)])}, tmp_path, 17)

    assert_scores(tmp_path, config(model=path.name), Backoff(FOREIGN))
    # <s> cat: -.1, cat sat: -.2, sat </s>: no back-off of sat, -.7.
    assert SIGNAL.compute(config(model=path.name), array(["Cat sat!"]), tmp_path)[0].as_py() == pytest.approx(10 ** (1.0 / 3))


def test_words_that_are_none_here_are_left_out_while_they_are_few(tmp_path: Path) -> None:
    path = tmp_path / "some.arpa"
    path.write_text(FOREIGN.replace("-0.9\tsat\n", "-0.9\tsat\n-1\tThe\n").replace("ngram 1=5", "ngram 1=6"))

    assert arpa.read(path).words == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not a model\n", r"not an ARPA file: it announces no n-grams"),
        (FOREIGN.replace("ngram 2=2", "ngram 2=3"), r"it announces \[5, 3\] n-grams and holds \[5, 2\]"),
        (FOREIGN.replace("<unk>", "dog"), r"no <unk> among its words"),
        (
            FOREIGN.replace("-0.9\tsat", "-0.9\tThe").replace("cat\t-0.25", "Cat\t-0.25"),
            r"2 of its 2 words, 'Cat' among them, are no words here",
        ),
        (FOREIGN.replace("-0.2\tcat sat", "-0.2\tdog sat").replace("<unk>", "<unk>\n-1\tdog").replace("1=5", "1=6"), None),
        (FOREIGN.replace("-0.5\tcat", "half\tcat"), r"not an ARPA file: could not convert"),
        (FOREIGN.replace("ngram 2=2", "".join(f"ngram {n}=2\n" for n in range(2, 7))), r"an order of 6; accepted: up to 5"),
    ],
)
def test_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "odd.arpa"
    path.write_text(text)

    if message is None:
        assert arpa.read(path).words == 4
        return
    with pytest.raises(UserError, match=rf"odd\.arpa: {message}" if message[0] != "2" else message):
        arpa.read(path)


def test_bigram_whose_context_stands_nowhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.arpa"
    trigram = FOREIGN.replace("ngram 2=2\n", "ngram 2=2\nngram 3=1\n").replace("\\end\\", "\\3-grams:\n-0.1\tcat cat sat\n\n\\end\\")
    path.write_text(trigram)

    with pytest.raises(UserError, match="some 3-grams stand there without their suffix or context"):
        arpa.read(path)


@pytest.mark.parametrize("settings", [{}, {"reference": "a", "model": "b"}, {"model": "b", "order": 2}, {"model": "b", "arpa": True}])
def test_config_that_is_neither_trained_nor_given_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"exactly one of reference, model|goes with reference"):
        config(**settings)


def test_kenlm_binary_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    monkeypatch.setattr("curation.signals.perplexity.find_spec", lambda name: None)

    with pytest.raises(UserError, match=r"model\.bin: a KenLM binary, and its package is not installed; run `pip install"):
        SIGNAL.references(config(model="model.bin"))["model"].look(path)
