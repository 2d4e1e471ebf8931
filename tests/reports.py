"""A manifest for tests of the page: the small corpus with hostile texts beside it, rules of every shape, and what a page says, read back from its HTML."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from recipes import built, recipe, text_of, write_corpus, write_file

SCRIPT = "<script>document.title='owned'</script>"
OVERRIDE = "safe\u202etxt.exe"
HOSTILE = [
    f"{SCRIPT} {text_of(90_001)}",
    f"{OVERRIDE} {text_of(90_002)}",
    f"</pre></details><img src=x onerror=alert(1)> {text_of(90_003)}",
    f"&lt;b&gt; \x1b[31m {{{{ 7 * 7 }}}} {text_of(90_004)}",
    f"</script><script>alert(1)</script> {text_of(90_005)}",
]
APART = "source IN ('odd', 'strange')"
RULES = [
    f"{APART} OR words.words >= 10 AND words.mean_length <= 7.3",
    "source = 'code' OR NOT (score < 4)",
    f"{APART} OR bytes BETWEEN 60 AND 500",
    "score > 1 OR score IS NULL OR source = 'web'",
]
"""Rules with thresholds; the numbers in `THRESHOLDS` are found in them."""
THRESHOLDS = [
    (0, "words.words", ">=", "10", APART + " OR words.words >= {} AND words.mean_length <= 7.3"),
    (0, "words.mean_length", "<=", "7.3", APART + " OR words.words >= 10 AND words.mean_length <= {}"),
    (1, "score", "<", "4", "source = 'code' OR NOT (score < {})"),
    (2, "bytes", ">=", "60", APART + " OR bytes BETWEEN {} AND 500"),
    (2, "bytes", "<=", "500", APART + " OR bytes BETWEEN 60 AND {}"),
    (3, "score", ">", "1", "score > {} OR score IS NULL OR source = 'web'"),
]
"""(rule, value, operator, number as written, the rule with its number left open), written by hand."""


def with_thresholds() -> dict[str, Any]:
    """The small recipe with the rules above and a source `odd` of hostile texts."""
    values = recipe()
    steps = values["steps"]
    values["steps"] = [*steps[:5], *({"keep": rule} for rule in RULES), steps[6]]
    values["sources"] |= {name: {"files": f"{name}/*.jsonl", "columns": ["score"]} for name in ("odd", "strange")}
    values["mixture"]["components"]["replay"] = "source IN ('prose', 'web', 'odd', 'strange')"
    values["mixture"]["stages"][0]["tokens"] = 6000
    return values


def written(folder: Path) -> dict[str, Any]:
    """The corpus in `folder`; its recipe."""
    write_corpus(folder, 40)
    for name, texts in (("odd", HOSTILE[:3]), ("strange", HOSTILE[3:])):  # few enough to be shown, all of them
        lines = [json.dumps({"text": text, "score": 30 + number}) for number, text in enumerate(texts)]
        write_file(folder / name / "a<b>&.jsonl", "\n".join([*lines, json.dumps({"text": text_of(90_009), "score": None})]).encode())
    return with_thresholds()


def manifest_in(folder: Path) -> Path:
    values = written(folder)
    built(folder, values, folder / "out")
    return folder / "out"


class Page(html.parser.HTMLParser):
    """The page as elements: every tag closed in order, what it would fetch or run, its tables, its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.styles: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag in ("script", "style"):
            kind = dict(attributes).get("type")
            (self.scripts.append((kind, "")) if tag == "script" else self.styles.append(""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self.open and self.open[-1] == "style":
            self.styles[-1] += data
        else:
            self.text.append(data)
            if {"td", "th"} & set(self.open) and self.rows:
                self.rows[-1][-1] += data

    @property
    def shown(self) -> str:
        return "".join(self.text)

    def row(self, label: str) -> list[str]:
        """The cells of the first row whose heading ends so."""
        return next([cell.strip() for cell in row] for row in self.rows if row and " ".join(row[0].split()).endswith(label))


class Table(NamedTuple):
    """What the script looks up for one threshold, with its differences summed: `[source][stop]`."""

    value: str
    operator: str
    stops: list[float]
    here: int
    stays: list[list[int]]
    stays_tokens: list[list[int]]
    returns: list[list[int]]
    returns_tokens: list[list[int]]


def tables(page: str) -> tuple[list[str], list[Table]]:
    """The sources, and the table of every threshold."""
    match = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    data = json.loads(match[1])

    def summed(rows: list[list[int]]) -> list[list[int]]:
        return [[sum(row[: stop + 1]) for stop in range(len(row))] for row in rows]

    return data["sources"], [
        Table(
            one["value"],
            one["operator"],
            one["stops"],
            one["here"],
            *(summed(one[kind][amount]) for kind in ("stays", "returns") for amount in (0, 1)),
        )
        for one in data["thresholds"]
    ]
