"""The demo's corpus and tokenizer: nothing of a source is lost when it is cut, and every format gives back the texts that went in."""

from __future__ import annotations

import ast
import json
import textwrap
import tokenize
from pathlib import Path

import demo
import harvest_stdlib
import pytest
import train_tokenizer
from harvest_stdlib import Document
from tokenizers import Tokenizer

TEXTS = ["def f():\n    return 1\n", "naïve 土 \x0b\u2028 and\r\nmore", '<|endoftext|> "quoted" \\']
DOCUMENTS = [Document(f"d{number}", text, "a/b.py", "PSF-2.0") for number, text in enumerate(TEXTS)]


@pytest.mark.parametrize("module", [json.decoder, textwrap, tokenize, ast])
def test_pieces_of_a_module_joined_are_the_module(module: object) -> None:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")  # type: ignore[attr-defined]

    pieces = list(harvest_stdlib.pieces(source, ast.parse(source)))

    assert "".join(pieces) == source
    assert len(pieces) > 1


def test_pieces_of_a_long_module_hold_the_limit_where_a_statement_does() -> None:
    source = "".join(f"x{number} = {'1' * 2500}\n" for number in range(10))

    pieces = list(harvest_stdlib.pieces(source, ast.parse(source)))

    assert [piece.count("\n") for piece in pieces] == [3, 3, 3, 1]


def test_pieces_of_a_long_class_are_cut_before_its_methods() -> None:
    method = "    @staticmethod\n    def f():\n        return '" + "1" * 5000 + "'\n"

    pieces = list(harvest_stdlib.pieces(source := "class C:\n    x = 1\n" + 2 * method, ast.parse(source)))

    assert pieces == ["class C:\n    x = 1\n" + method, method]


def test_docstrings_of_a_library_are_the_long_ones_of_its_modules(tmp_path: Path) -> None:
    long = "A sentence of some length. " * 10
    (tmp_path / "b.py").write_text(f'"""{long}"""\nclass C:\n    """Short."""\n    def m(self):\n        """{long}M"""\n')
    (tmp_path / "a.py").write_text("def broken(:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text(f'"""{long}"""\n')

    found = list(harvest_stdlib.docstrings(tmp_path, "MIT", "lib/"))

    assert [(document.id, document.text) for document in found] == [("lib/b.py#module", long), ("lib/b.py#m:4", long + "M")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_written_documents_in_every_format_read_back_the_same(tmp_path: Path, name: str) -> None:
    harvest_stdlib.write(tmp_path / name, DOCUMENTS)
    first = (tmp_path / name).read_bytes()
    harvest_stdlib.write(tmp_path / name, DOCUMENTS)

    assert list(train_tokenizer.texts(tmp_path / name)) == TEXTS
    assert (tmp_path / name).read_bytes() == first


def test_beginning_of_a_file_stops_after_its_share(tmp_path: Path) -> None:
    harvest_stdlib.write(tmp_path / "a.jsonl", DOCUMENTS)

    assert list(train_tokenizer.beginning(tmp_path / "a.jsonl", len(TEXTS[0]) / 1e6)) == TEXTS[:1]


def test_trained_tokenizer_on_any_text_is_lossless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvest_stdlib.write(tmp_path / "a.jsonl", DOCUMENTS)
    monkeypatch.setattr("sys.argv", ["train_tokenizer", str(tmp_path / "out"), str(tmp_path / "a.jsonl"), "--entries", "300"])

    train_tokenizer.main()

    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert [tokenizer.decode(tokenizer.encode(text).ids) for text in TEXTS[:2]] == TEXTS[:2]
    assert tokenizer.get_added_tokens_decoder()[0].special
    assert tokenizer.token_to_id(train_tokenizer.END_OF_TEXT) == 0


def test_chart_of_a_straight_line_runs_from_corner_to_corner() -> None:
    drawing = demo.chart({"falling": [(0, 3.0), (50, 2.0), (100, 1.0)]}, height=3, width=6).splitlines()

    assert drawing == [
        "   3.00 |aa",
        "   2.00 |  aa",
        "   1.00 |    aa",
        "        +------",
        "         0100 tokens",
        "         a falling",
    ]


def test_chart_of_a_constant_curve_is_one_line_of_its_letter() -> None:
    drawing = demo.chart({"falling": [(0, 2.0), (10, 1.0)], "flat": [(0, 1.0), (10, 1.0)]}, height=2, width=12).splitlines()

    assert drawing[1] == "   1.00 |" + "b" * 12
