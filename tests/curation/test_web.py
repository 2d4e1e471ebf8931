"""HTML and WARC: real pages, WARC files written by warcio's own writer, and damage with exact counts of what is kept and what is lost."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import os
import re
import subprocess
import sys
import zlib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import built, pool_of, recipe, text_of, write_corpus
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from curation import formats
from curation.corpus.sources import SourceConfig, cut, resolve
from curation.decisions.signal_models import resolve_references
from curation.engine.local import Engine, Run
from curation.engine.work_directory import Digests, Work
from curation.formats.records import Fields, Record, records_of
from curation.formats.warc import read_warc
from curation.formats.web import Page, decoded, extracted, read_html
from curation.signals import SIGNALS
from mixing import UserError
from mixing.manifest import Manifest

ROOT = Path(__file__).parents[2]
TEXT = Fields("text", None, {})
HTML_COLUMNS = dict.fromkeys(("title", "url", "date", "author", "language"), "string")
WARC_COLUMNS = dict.fromkeys(("title", "url", "date", "author", "language", "id", "content_type"), "string")
FIRST = "The upper layer of a field holds most of what a plant can reach, and it is renewed by what dies in it."
LAST = "What is taken from a field by the harvest has to be given back to it, or the next harvest will be smaller."
CHINESE = "土壤是陆地表面的一层疏松物质,能够生长植物。它由矿物质、有机质、水分和空气组成,是农业的基础。"
BOILERPLATE = (
    "Home",
    "Imprint",
    "All rights reserved",
    "trackVisitor",
    "color: red",
    "What a lovely text",
    "Related: ten foods",
    "Accept all cookies",
)


def page(*paragraphs: str, head: str = "", lang: str = "en") -> str:
    """An article with everything around it that a reader would not call its text."""
    body = "\n".join(f"<p>{one}</p>" for one in paragraphs)
    return f"""<!DOCTYPE html>
<html lang="{lang}"><head><title>On soil</title>{head}
<style>p {{ color: red }}</style><script>trackVisitor("/log");</script></head>
<body><div class="cookie-banner"><p>Accept all cookies?</p></div>
<header><nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav></header>
<main><article><h1>On soil</h1>
{body}
</article></main>
<aside class="sidebar"><p>Related: ten foods you should never plant beside each other.</p></aside>
<div id="comments"><p>What a lovely text, thank you for writing it, said a reader.</p></div>
<footer><p>Copyright 2020. All rights reserved. <a href="/imprint">Imprint</a></p></footer></body></html>"""


ARTICLE = page(FIRST, LAST)


def from_html(path: Path, content: bytes | str, fields: Fields = TEXT) -> Record:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (record,) = records_of(read_html(path, fields))
    return record


def text_of_page(content: bytes | str) -> str:
    found = extracted(content.encode() if isinstance(content, str) else content, None, set())
    assert found.reason is None, found
    return found.values["text"] or ""


# --- the main text


def test_html_with_everything_around_an_article_keeps_its_paragraphs_alone(tmp_path: Path) -> None:
    record = from_html(tmp_path / "a.html", ARTICLE)

    assert record.text == f"On soil\n{FIRST}\n{LAST}"
    assert not any(word in record.text for word in BOILERPLATE)
    assert (record.position, record.size, record.reason) == (0, len(ARTICLE.encode()), None)


def test_html_with_lists_tables_and_code_keeps_them_in_their_order(tmp_path: Path) -> None:
    items = "<ul><li>clay holds water</li><li>sand lets it through</li></ul>"
    table = "<table><tr><th>soil</th><th>grain</th></tr><tr><td>clay</td><td>0.002 mm</td></tr></table>"
    code = "<pre><code>def grain(soil):\n    return SIZES[soil]\n</code></pre>"
    markup = ARTICLE.replace(f"<p>{LAST}</p>", f"{items}{table}{code}<p>{LAST}</p>")

    lines = text_of_page(markup).splitlines()

    assert lines[:2] == ["On soil", FIRST]
    assert lines[-1] == LAST
    assert [line for line in lines if "clay holds" in line or "sand lets" in line] == ["- clay holds water", "- sand lets it through"]
    assert [line.strip() for line in lines[4:-3]] == ["| soil | grain |", "|---|---|", "| clay | 0.002 mm |"]
    assert lines[-3:-1] == ["def grain(soil):", "    return SIZES[soil]"]


def test_html_of_chinese_keeps_every_character() -> None:
    assert CHINESE in text_of_page(page(CHINESE, lang="zh"))


def test_html_entities_and_markup_inside_a_paragraph_become_plain_text() -> None:
    assert "a < b & c, H2O and grün." in text_of_page(page(FIRST, "a &lt; b &amp; c, H<sub>2</sub>O and gr&uuml;n."))


def test_html_character_references_are_read_as_browsers_read_them() -> None:
    """128 to 159 are windows-1252; control characters and surrogates, which no XML may hold, are nothing."""
    markup = page(f"It&#146;s 5&#x80; &#150; or&#1;&#xB;&#xD800;&#65535; &#x1F600;&#28;. {FIRST}", LAST)

    assert f"It’s 5€ – or \U0001f600. {FIRST}" in text_of_page(markup)


def test_html_read_twice_in_one_process_gives_the_same_text() -> None:
    pages = [page(FIRST, text_of(seed), LAST) for seed in range(5)]

    first = [text_of_page(one) for one in pages]

    assert [text_of_page(one) for one in reversed(pages)] == first[::-1]
    assert all(FIRST in text for text in first)


def test_html_text_does_not_depend_on_the_columns_asked_for() -> None:
    head = '<meta property="og:title" content="x"><meta name="author" content="Ada Byron">'

    texts = {
        extracted(page(FIRST, LAST, head=head).encode(), None, names).values["text"] for names in (set(), {"title"}, set(HTML_COLUMNS))
    }

    assert len(texts) == 1


@pytest.mark.parametrize("end", [".gz", ".zst", ".bz2", ""])
def test_html_packed_or_plain_is_read_the_same(tmp_path: Path, end: str) -> None:
    pack = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, "": bytes}[end]

    assert from_html(tmp_path / f"a.html{end}", pack(ARTICLE.encode())).text == f"On soil\n{FIRST}\n{LAST}"


# --- what a page says of itself


def test_html_with_metadata_fills_the_columns(tmp_path: Path) -> None:
    head = (
        '<link rel="canonical" href="https://example.org/soil"><meta name="author" content="Ada Byron">'
        '<meta property="article:published_time" content="2021-03-04T23:30:00-05:00">'
    )

    record = from_html(tmp_path / "a.html", page(FIRST, LAST, head=head, lang="en-GB"), Fields("text", "url", HTML_COLUMNS))

    assert record.key == "https://example.org/soil"
    assert dict(zip(HTML_COLUMNS, record.columns, strict=True)) == {
        "title": "On soil",
        "url": "https://example.org/soil",
        "date": "2021-03-04",
        "author": "Ada Byron",
        "language": "en-GB",
    }


def test_html_without_metadata_has_null_columns(tmp_path: Path) -> None:
    record = from_html(
        tmp_path / "a.html", f"<html><body><article><p>{FIRST}</p><p>{LAST}</p></article></body></html>", Fields("text", None, HTML_COLUMNS)
    )

    assert record.columns == (None,) * len(HTML_COLUMNS)


def test_html_date_of_the_future_or_relative_to_today_does_not_follow_the_clock() -> None:
    """What trafilatura makes of `2 days ago`, or refuses because it lies after today, would change from day to day."""
    stated = page(FIRST, LAST, head='<meta property="article:published_time" content="2050-01-02">')
    relative = page("<time>2 days ago</time> " + FIRST, LAST)

    assert extracted(stated.encode(), None, {"date"}).values["date"] == "2050-01-02"
    assert extracted(relative.encode(), None, {"date"}).values["date"] is None


def test_html_date_is_the_same_in_every_time_zone() -> None:
    markup = page(FIRST, LAST, head='<meta property="article:published_time" content="2021-03-04T23:30:00Z">')
    code = f"from curation.formats.web import extracted; print(extracted({markup.encode()!r}, None, {{'date'}}).values['date'])"

    found = set()
    for zone in ("UTC", "EAST-14", "WEST+12"):  # as POSIX spells them: ahead of UTC, and behind it
        env = {**os.environ, "TZ": zone, "PYTHONPATH": os.pathsep.join(sys.path)}
        found.add(
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.strip()
        )

    assert found == {"2021-03-04"}


# --- charsets

ENCODED = [
    ("utf-8", "utf-8", "grün, naïve, 土壤"),
    ("utf-8-sig", "", "grün, naïve, 土壤"),
    ("utf-16", "", "grün, naïve, 土壤"),
    ("utf-16-le", "", "grün, naïve, 土壤"),
    ("utf-16-be", "utf-16", "grün, naïve, 土壤"),
    ("utf-32", "", "grün, naïve, 土壤"),
    ("latin-1", "ISO-8859-1", "grün, naïve"),
    ("cp1252", "iso-8859-1", "grün – “naïve” – 5 €"),  # browsers read that label as windows-1252
    ("cp1252", "Windows-1252", "“naïve”"),
    ("gb18030", "gb2312", "土壤, 镕"),  # 镕 is not in GB 2312
    ("gbk", "GBK", "土壤"),
    ("big5", "big5", "土壤"),
    ("cp932", "Shift_JIS", "土壌, ①"),  # ① is NEC's
    ("euc-jp", "EUC-JP", "土壌"),
    ("iso2022_jp", "iso-2022-jp", "土壌"),
    ("cp949", "euc-kr", "토양, 똠"),  # 똠 is not in KS X 1001
    ("koi8-r", "koi8-r", "почва"),
    ("cp1251", "windows-1251", "почва"),
    ("cp874", "tis-620", "ดิน"),
]


@pytest.mark.parametrize(("encoding", "label", "words"), ENCODED, ids=[f"{one}_called_{label or 'nothing'}" for one, label, _ in ENCODED])
def test_html_in_a_declared_or_marked_charset_is_decoded(tmp_path: Path, encoding: str, label: str, words: str) -> None:
    head = f'<meta http-equiv="Content-Type" content="text/html; charset={label}">' if label else ""

    record = from_html(tmp_path / "a.html", page(words, FIRST, head=head).encode(encoding))

    assert record.text == f"On soil\n{words}\n{FIRST}"


@pytest.mark.parametrize("declaration", ["<meta charset='gbk'>", '<meta charset="gbk" />', "<META CharSet = gbk >"])
def test_html_charset_declared_in_other_spellings_is_found(declaration: str) -> None:
    assert CHINESE in text_of_page(page(CHINESE, head=declaration).encode("gbk"))


def test_html_called_latin_1_but_in_utf_8_is_read_as_utf_8() -> None:
    assert "grün" in text_of_page(page("grün " + FIRST, head="<meta charset=iso-8859-1>"))


def test_xhtml_with_an_xml_declaration_is_decoded_by_it() -> None:
    markup = '<?xml version="1.0" encoding="ISO-8859-1"?>\n' + page("grün " + FIRST)

    assert "grün" in text_of_page(markup.encode("latin-1"))


@pytest.mark.parametrize("label", ["", "utf-8", "base64", "rot13", "utf-7", "unicode_escape", "no-such-charset", "gbk", "utf-16"])
def test_html_whose_bytes_no_declared_charset_can_read_is_quarantined(tmp_path: Path, label: str) -> None:
    head = f"<meta charset={label}>" if label else ""

    record = from_html(tmp_path / "a.html", page("gr\xfcn " + FIRST, head=head).encode("latin-1") + b"\xff")

    assert (record.text, record.reason) == (None, "invalid encoding")
    assert record.excerpt.startswith("<!DOCTYPE html>")


def test_charset_of_the_http_header_comes_before_that_of_the_page() -> None:
    raw = '<meta charset="koi8-r">почва'.encode("cp1251")

    assert decoded(raw, "windows-1251") == ('<meta charset="koi8-r">почва', None)
    assert decoded(raw, None)[0] != decoded(raw, "windows-1251")[0]


# --- pages that nobody wrote to be read

PATHOLOGICAL: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "no main text"),
    ("blanks", b" \n\t ", "no main text"),
    ("a comment", b"<!-- nothing but a comment -->", "no main text"),
    ("no body", b"<html><head><title>t</title></head></html>", "no main text"),
    ("a frameset", b"<html><frameset><frame src='a.html'></frameset></html>", "no main text"),
    ("only a script", b"<html><body><script>var a = 'Some words that are not a text at all';</script></body></html>", "no main text"),
    ("nul bytes", ARTICLE.replace("upper", "up\0per").encode(), "raw NUL byte"),
    ("random bytes", bytes(range(128, 256)) * 20, "invalid encoding"),
    ("deep", ("<html><body>" + "<div>" * 300 + f"<p>{FIRST}</p>" + "</div>" * 300 + f"<p>{LAST}</p>").encode(), "nested too deeply"),
    ("very deep", b"<b>" * 200_000, "nested too deeply"),
    ("lists in lists", ("<html><body>" + "<ul><li>" * 110 + "<li>soil" * 2000).encode(), "more text than the page has"),
    ("5 MB", page(*([FIRST] * 50_000)).encode(), "a page of more than 4 MiB"),
    ("many elements", page("<br>" * 60_000).encode(), "a page of more than 50000 elements"),
]


@pytest.mark.parametrize(("content", "reason"), [one[1:] for one in PATHOLOGICAL], ids=[one[0].replace(" ", "_") for one in PATHOLOGICAL])
def test_html_that_cannot_be_used_is_quarantined_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    with caplog.at_level(logging.WARNING):
        record = from_html(tmp_path / "a.html", content)

    assert (record.text, record.reason) == (None, reason)
    assert [one.name for one in caplog.records] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("inner", ["<div>", "<ul><li>", "<blockquote>", "<b>", "<table><tr><td>", "<span>", "<dl><dd>"])
def test_html_as_deep_as_is_read_is_not_too_deep_for_the_extractor(inner: str) -> None:
    """Close to the limit of the parser, which is 256, and from a call that itself stands deep: what is extracted must not depend on that."""
    tags = inner.count("<")
    markup = "<html><body>" + inner * (240 // tags) + f"<p>{FIRST}</p><p>{LAST}</p>"

    def deep(levels: int) -> Page:
        return extracted(markup.encode(), None, set()) if levels == 0 else deep(levels - 1)

    assert deep(0) == deep(700)
    assert deep(0).reason in (None, "no main text")


@pytest.mark.parametrize(
    "markup",
    [
        ARTICLE.replace("</p>", ""),
        ARTICLE.replace("</article></main>", ""),
        ARTICLE[: ARTICLE.index("</article>")],
        ARTICLE.replace("<p>", '<p class=a"b id=x =y>'),
        ARTICLE.replace("<!DOCTYPE html>", '<!DOCTYPE html PUBLIC "-//W3C//DTD/ x">'),
        ARTICLE.replace('<html lang="en">', "<html/>\n"),
        ARTICLE.replace("upper", "up\x0bp\x1fer"),
    ],
    ids=["p_not_closed", "article_not_closed", "cut_off", "odd_attributes", "odd_doctype", "html_closed_at_once", "control_characters"],
)
def test_html_that_is_broken_is_read_as_far_as_browsers_would(markup: str) -> None:
    assert LAST in text_of_page(markup)


def test_html_with_more_structured_data_than_is_searched_keeps_its_text() -> None:
    """The pattern that trafilatura looks for in JSON-LD would take minutes for these 3 MB."""
    script = '<script type="application/ld+json">' + '"@type": [' * 300_000 + "</script>"

    assert text_of_page(page(FIRST, LAST, head=script)) == f"On soil\n{FIRST}\n{LAST}"


@settings(max_examples=60)
@given(st.data())
def test_html_with_any_bytes_changed_never_stops_the_reading(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(
        page(FIRST, LAST, head='<script type="application/ld+json">{"@type": "Article", "author": {"name": "A B"}}</script>').encode()
    )
    for _ in range(data.draw(st.integers(1, 30))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b"<>/\"'=&;{}[] a\x00\xc3\x1b"))

    record = from_html(tmp_path_factory.mktemp("fuzz") / "a.html", bytes(content), Fields("text", None, HTML_COLUMNS))

    assert (record.text is None) == (record.reason is not None)
    assert not (record.reason or "").startswith("the extractor failed")


# --- WARC


class Writer(WARCWriter):  # type: ignore[misc]
    """warcio's writer, without the temporary files that it leaves open."""

    _create_temp_file = staticmethod(io.BytesIO)


class Warc:
    """A WARC file in the making, by warcio's writer; `members` are its records as they were written."""

    def __init__(self, packed: bool = True) -> None:
        self._packed = packed
        self.members: list[bytes] = []

    def add(self, kind: str, block: bytes, *, http: str | None = None, headers: dict[str, str] | None = None, **record: str) -> None:
        out = io.BytesIO()
        writer = Writer(out, gzip=self._packed)
        number = len(self.members)
        lines = StatusAndHeaders(http, list((headers or {}).items()), protocol="HTTP/1.1") if http else None
        named = {
            "WARC-Date": "2024-05-06T07:08:09Z",
            "WARC-Record-ID": f"<urn:uuid:{number:032}>",
            **{name.replace("_", "-"): value for name, value in record.items()},
        }
        made = writer.create_warc_record(
            f"http://example.org/{number}", kind, payload=io.BytesIO(block), http_headers=lines, warc_headers_dict=named
        )
        writer.write_record(made)
        self.members.append(out.getvalue())

    def response(self, block: bytes | str, content_type: str = "text/html; charset=utf-8", status: str = "200 OK", **headers: str) -> None:
        named = {"Content-Type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
        self.add("response", block.encode() if isinstance(block, str) else block, http=status, headers=named)

    @property
    def content(self) -> bytes:
        return b"".join(self.members)


def chunked(content: bytes, size: int = 100) -> bytes:
    parts = [content[begin : begin + size] for begin in range(0, len(content), size)]
    return b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in [*parts, b""])


def deflated(content: bytes, window: int) -> bytes:
    packer = zlib.compressobj(wbits=window)
    return packer.compress(content) + packer.flush()


def from_warc(path: Path, content: bytes, fields: Fields = TEXT) -> list[Record]:
    path.write_bytes(content)
    return list(records_of(read_warc(path, fields)))


def paragraph(number: int) -> str:
    return f"Field number {number} lies {text_of(number, 20)}"


def crawl(count: int = 5, packed: bool = True) -> Warc:
    """Each page with the request and the metadata that belong to it: the page is record 3n."""
    warc = Warc(packed)
    for number in range(count):
        warc.response(page(paragraph(number), LAST))
        warc.add("request", b"", http="GET / HTTP/1.1", headers={"Host": "example.org"})
        warc.add("metadata", b"fetchTimeMs: 7\r\n", Content_Type="application/warc-fields")
    return warc


def text_in(number: int) -> str:
    return f"On soil\n{paragraph(number)}\n{LAST}"


def test_warc_of_every_kind_of_record_gives_the_documents_with_their_numbers(tmp_path: Path) -> None:
    warc = Warc()
    warc.add("warcinfo", b"software: x\r\n", Content_Type="application/warc-fields")
    warc.response(page(paragraph(1), LAST))
    warc.add("request", b"", http="GET / HTTP/1.1", headers={"Host": "example.org"})
    warc.add("metadata", b"a: b\r\n", Content_Type="application/warc-fields")
    warc.add("revisit", b"")
    warc.response(ARTICLE, status="404 Not Found")
    warc.response(b"", status="301 Moved Permanently", Location="/")
    warc.response(b"\x89PNG\r\n\x1a\n" + bytes(50), "image/png")
    warc.response(chunked(page(paragraph(8), LAST).encode()), Transfer_Encoding="chunked")
    warc.response(gzip.compress(page(paragraph(9), LAST).encode()), Content_Encoding="gzip")
    warc.response(page("grün", LAST).encode("latin-1"), "text/html; charset=ISO-8859-1")
    warc.response(page(CHINESE, LAST, head="<meta charset=gbk>").encode("gbk"), "text/html")
    warc.response(page(CHINESE, LAST).encode("utf-16"), "application/xhtml+xml")
    warc.response("two lines\nof plain text", "text/plain")
    warc.add("resource", page(paragraph(14), LAST).encode(), Content_Type="text/html")
    warc.add("conversion", "as it\n\nis: é".encode(), Content_Type="text/plain")
    warc.add("resource", b"{}", Content_Type="application/json")

    found = from_warc(tmp_path / "a.warc.gz", warc.content)

    assert [(record.position, record.text) for record in found] == [
        (1, text_in(1)),
        (8, text_in(8)),
        (9, text_in(9)),
        (10, f"On soil\ngrün\n{LAST}"),
        (11, f"On soil\n{CHINESE}\n{LAST}"),
        (12, f"On soil\n{CHINESE}\n{LAST}"),
        (13, "two lines\nof plain text"),
        (14, text_in(14)),
        (15, "as it\n\nis: é"),
    ]


def test_warc_columns_are_the_headers_of_the_record_and_what_the_page_says(tmp_path: Path) -> None:
    warc = Warc()
    warc.response(
        page(FIRST, LAST, head='<meta name="author" content="Ada Byron"><link rel="canonical" href="https://other.org/x">'),
        "Text/HTML;charset=utf-8",
    )
    warc.response("plain words", "text/plain")

    first, second = from_warc(tmp_path / "a.warc.gz", warc.content, Fields("text", "id", WARC_COLUMNS))

    assert first.key == f"<urn:uuid:{0:032}>"
    assert dict(zip(WARC_COLUMNS, first.columns, strict=True)) == {
        "title": "On soil",
        "url": "http://example.org/0",
        "date": "2024-05-06T07:08:09Z",
        "author": "Ada Byron",
        "language": "en",
        "id": f"<urn:uuid:{0:032}>",
        "content_type": "text/html",
    }
    assert second.columns == (None, "http://example.org/1", "2024-05-06T07:08:09Z", None, None, f"<urn:uuid:{1:032}>", "text/plain")


PACKED_CONTENT: list[tuple[str, bytes, dict[str, str]]] = [
    ("gzip", gzip.compress(ARTICLE.encode()), {"Content_Encoding": "gzip"}),
    ("x-gzip", gzip.compress(ARTICLE.encode()), {"Content_Encoding": "x-gzip"}),
    ("deflate", deflated(ARTICLE.encode(), 15), {"Content_Encoding": "deflate"}),
    ("deflate without header", deflated(ARTICLE.encode(), -15), {"Content_Encoding": "deflate"}),
    ("br", brotli.compress(ARTICLE.encode()), {"Content_Encoding": "br"}),
    ("chunked gzip", chunked(gzip.compress(ARTICLE.encode())), {"Content_Encoding": "gzip", "Transfer_Encoding": "chunked"}),
    ("chunked br", chunked(brotli.compress(ARTICLE.encode()), 7), {"Content_Encoding": "br", "Transfer_Encoding": "chunked"}),
    ("called gzip", ARTICLE.encode(), {"Content_Encoding": "gzip"}),
    ("called br", ARTICLE.encode(), {"Content_Encoding": "br"}),
    ("called deflate", ARTICLE.encode(), {"Content_Encoding": "deflate"}),
    ("called chunked", ARTICLE.encode(), {"Transfer_Encoding": "chunked"}),
    ("identity", ARTICLE.encode(), {"Content_Encoding": "identity"}),
]


@pytest.mark.parametrize(
    ("block", "headers"), [one[1:] for one in PACKED_CONTENT], ids=[one[0].replace(" ", "_") for one in PACKED_CONTENT]
)
def test_warc_content_in_any_encoding_is_unpacked(tmp_path: Path, block: bytes, headers: dict[str, str]) -> None:
    warc = Warc()
    warc.response(block, **headers)

    (record,) = from_warc(tmp_path / "a.warc.gz", warc.content)

    assert record.text == f"On soil\n{FIRST}\n{LAST}"


DAMAGED_CONTENT: list[tuple[str, bytes, dict[str, str], str]] = [
    ("gzip cut", gzip.compress(ARTICLE.encode())[:-20], {"Content_Encoding": "gzip"}, "damaged gzip content"),
    ("gzip flipped", gzip.compress(ARTICLE.encode())[:-8] + bytes(8), {"Content_Encoding": "gzip"}, "damaged gzip content"),
    ("br cut", brotli.compress(ARTICLE.encode())[:-20], {"Content_Encoding": "br"}, "damaged br content"),
    ("deflate cut", deflated(ARTICLE.encode(), 15)[:-20], {"Content_Encoding": "deflate"}, "damaged deflate content"),
    ("chunked cut", chunked(ARTICLE.encode())[:-50], {"Transfer_Encoding": "chunked"}, "damaged chunked content"),
    (
        "chunked wrong",
        chunked(ARTICLE.encode()).replace(b"\r\n64\r\n", b"\r\n63\r\n", 1),
        {"Transfer_Encoding": "chunked"},
        "damaged chunked content",
    ),
    ("unknown", ARTICLE.encode(), {"Content_Encoding": "sdch"}, "damaged sdch content"),
    ("bomb", gzip.compress(bytes(30 << 20)), {"Content_Encoding": "gzip"}, "a page of more than 4 MiB"),
]


@pytest.mark.parametrize(
    ("block", "headers", "reason"), [one[1:] for one in DAMAGED_CONTENT], ids=[one[0].replace(" ", "_") for one in DAMAGED_CONTENT]
)
def test_warc_content_that_cannot_be_unpacked_is_quarantined(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], block: bytes, headers: dict[str, str], reason: str
) -> None:
    warc = Warc()
    warc.response(block, **headers)
    warc.response(ARTICLE)

    first, second = from_warc(tmp_path / "a.warc.gz", warc.content)

    assert (first.text, first.reason) == (None, reason)
    assert second.text == f"On soil\n{FIRST}\n{LAST}"
    assert capfd.readouterr() == ("", "")


def packings() -> dict[str, bytes]:
    plain = crawl(packed=False).content
    third = len(plain) // 3
    return {
        "a.warc": plain,
        "a.warc.gz": crawl().content,
        "whole.warc.gz": gzip.compress(plain),
        "blocks.warc.gz": gzip.compress(plain[:third]) + gzip.compress(plain[third : 2 * third]) + gzip.compress(plain[2 * third :]),
        "padded.warc.gz": bytes(100_000).join(crawl().members) + bytes(70_000),
        "a.warc.zst": zstandard.compress(plain),
        "a.warc.bz2": bz2.compress(plain),
    }


@pytest.mark.parametrize("name", packings())
def test_warc_packed_in_any_way_gives_the_same_records(tmp_path: Path, name: str) -> None:
    found = from_warc(tmp_path / name, packings()[name])

    assert [(record.position, record.text) for record in found] == [(3 * number, text_in(number)) for number in range(5)]


def test_warc_sizes_add_up_to_the_decoded_file_before_its_last_document(tmp_path: Path) -> None:
    warc = crawl(packed=False)
    found = from_warc(tmp_path / "a.warc", warc.content)

    until_last = len(b"".join(warc.members[:13]))

    assert until_last - 4 * 15 <= sum(record.size for record in found) <= until_last


@settings(max_examples=40)
@given(st.data())
def test_warc_of_random_records_gives_what_the_iterator_of_warcio_gives(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    warc = Warc(packed=data.draw(st.booleans()))
    words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40) | st.sampled_from(
        ["WARC/1.0\r\n", "\r\n\r\n", "a\r\n\r\nWARC/1.1\r\nb"]
    )
    for _ in range(data.draw(st.integers(0, 8))):
        kind = data.draw(st.sampled_from(["conversion", "metadata", "response"]))
        block = data.draw(words).encode()
        if kind == "response":
            warc.response(block, "text/plain")
        else:
            warc.add(kind, block, Content_Type="text/plain")

    found = from_warc(tmp_path_factory.mktemp("warc") / "a", warc.content)

    expected = [
        (number, one.content_stream().read().decode())
        for number, one in enumerate(ArchiveIterator(io.BytesIO(warc.content)))
        if one.rec_type != "metadata"
    ]
    assert [(record.position, record.text) for record in found] == [(number, text.removeprefix("\ufeff")) for number, text in expected]


# --- WARC: damage


def kept(records: list[Record]) -> list[int]:
    return [record.position for record in records if record.text is not None]


def lost(records: list[Record]) -> list[tuple[int, str]]:
    return [(record.position, record.reason) for record in records if record.reason is not None]


EARLY = "damaged gzip stream: it ends too early"


def test_warc_gz_cut_off_in_its_last_member_keeps_what_stands_before(tmp_path: Path) -> None:
    members = crawl().members[:-2]

    found = from_warc(tmp_path / "a.warc.gz", b"".join(members)[:-60])

    assert kept(found) == [0, 3, 6, 9]
    assert lost(found) == [(12, EARLY)]


def test_warc_gz_with_a_member_cut_in_the_middle_goes_on_with_the_next(tmp_path: Path) -> None:
    members = crawl().members
    members[6] = members[6][: len(members[6]) // 2]

    found = from_warc(tmp_path / "a.warc.gz", b"".join(members))

    assert kept(found) == [0, 3, 9, 12]
    assert [position for position, _ in lost(found)] == [6]
    assert lost(found)[0][1].startswith("damaged gzip stream")


@pytest.mark.parametrize("garbage", [b"garbage", bytes(5) + b"\x1f\x8b\x08\x00garbage", b"x" * 200_000, b"\x1f\x8b\x08"])
def test_warc_gz_with_garbage_between_members_loses_nothing_else(tmp_path: Path, garbage: bytes) -> None:
    members = crawl().members

    found = from_warc(tmp_path / "a.warc.gz", b"".join([*members[:6], garbage, *members[6:]]))

    assert kept(found) == [0, 3, 7, 10, 13]
    assert len(lost(found)) == 1
    assert lost(found)[0][0] == 6
    assert lost(found)[0][1].startswith("damaged gzip stream")


def test_warc_gz_with_a_flipped_byte_loses_that_record_alone(tmp_path: Path) -> None:
    members = crawl().members
    middle = len(members[3]) // 2

    for place in (12, middle, len(members[3]) - 6):  # in the stream, and in its checksum
        damaged = bytearray(members[3])
        damaged[place] ^= 0x55
        found = from_warc(tmp_path / "a.warc.gz", b"".join([*members[:3], bytes(damaged), *members[4:]]))

        assert kept(found) == [0, 6, 9, 12]
        assert [position for position, _ in lost(found)] == [3]


def test_warc_gz_of_one_member_cut_off_keeps_the_records_that_are_whole(tmp_path: Path) -> None:
    plain = crawl(60, packed=False).content
    packed = gzip.compress(plain)

    found = from_warc(tmp_path / "a.warc.gz", packed[: len(packed) // 2])

    assert kept(found) == [3 * number for number in range(len(kept(found)))]
    assert 20 < len(kept(found)) < 40
    assert [reason for _, reason in lost(found)] == [EARLY]
    assert [record.text for record in found[:-1]] == [text_in(number) for number in range(len(found) - 1)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("change", [-300, -1, 5, 300, 100_000])
def test_warc_with_a_wrong_content_length_loses_that_record_alone(tmp_path: Path, packed: bool, change: int) -> None:
    records = crawl(packed=False).members
    length = int(re.search(rb"Content-Length: (\d+)", records[6])[1])  # type: ignore[index]
    records[6] = records[6].replace(f"Content-Length: {length}".encode(), f"Content-Length: {length + change}".encode(), 1)

    found = from_warc(tmp_path / "a.warc", b"".join(gzip.compress(one) for one in records) if packed else b"".join(records))

    assert kept(found) == [0, 3, 9, 12]
    assert lost(found) == [(6, "wrong Content-Length")]


@pytest.mark.parametrize("length", [b"", b"Content-Length: \r\n", b"Content-Length: -5\r\n", b"Content-Length: many\r\n"])
def test_warc_without_a_usable_content_length_loses_that_record_alone(tmp_path: Path, length: bytes) -> None:
    records = crawl(packed=False).members
    records[6] = re.sub(rb"Content-Length: \d+\r\n", length, records[6], count=1)

    found = from_warc(tmp_path / "a.warc", b"".join(records))

    assert kept(found) == [0, 3, 9, 12]
    assert lost(found) == [(6, "broken WARC header")]


def test_warc_cut_off_keeps_what_stands_before(tmp_path: Path) -> None:
    records = crawl(packed=False).members

    found = from_warc(tmp_path / "a.warc", b"".join(records[:13])[:-100])

    assert kept(found) == [0, 3, 6, 9]
    assert lost(found) == [(12, "the file ends within a record")]


def test_warc_with_garbage_between_records_loses_nothing_else(tmp_path: Path) -> None:
    records = crawl(packed=False).members

    found = from_warc(tmp_path / "a.warc", b"".join([b"garbage\n", *records[:6], b"more\r\nof it\r\n\r\n", *records[6:]]))

    # What stands behind a record and is no record may as well be the rest of it: the metadata in front of the second garbage is lost with it.
    assert kept(found) == [1, 4, 7, 10, 13]
    assert lost(found) == [(0, "no WARC record begins here"), (6, "wrong Content-Length")]


@pytest.mark.parametrize("content", [b"", b"\r\n\r\n", gzip.compress(b"", mtime=0)])
def test_warc_without_a_record_has_none(tmp_path: Path, content: bytes) -> None:
    assert from_warc(tmp_path / "a.warc.gz", content) == []


def test_warc_that_is_no_warc_is_one_record_in_quarantine(tmp_path: Path) -> None:
    assert lost(from_warc(tmp_path / "a.warc", ARTICLE.encode() * 100)) == [(0, "no WARC record begins here")]


def test_warc_response_without_its_url_is_read_all_the_same(tmp_path: Path) -> None:
    content = re.sub(rb"WARC-Target-URI: [^\r]*\r\n", b"", crawl(2, packed=False).content)

    found = from_warc(tmp_path / "a.warc", content, Fields("text", None, {"url": "string"}))

    assert [(record.position, record.text, record.columns) for record in found] == [(0, text_in(0), (None,)), (3, text_in(1), (None,))]


def test_warc_response_without_a_status_line_is_quarantined(tmp_path: Path) -> None:
    records = crawl(2, packed=False).members
    records[0] = records[0].replace(b"\r\n\r\nHTTP/1.1 200", b"\r\n\r\nOh dear! 200", 1)

    found = from_warc(tmp_path / "a.warc", b"".join(records))

    assert (kept(found), lost(found)) == ([3], [(0, "broken HTTP header")])


@settings(max_examples=150)
@given(st.data())
def test_warc_with_bytes_flipped_or_cut_anywhere_never_stops_the_reading(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from([crawl(3).content, crawl(3, packed=False).content])))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))

    found = from_warc(tmp_path_factory.mktemp("fuzz") / "a", bytes(content[: data.draw(st.integers(0, len(content)))]))

    assert all((record.text is None) == (record.reason is not None) for record in found)
    assert [record.position for record in found] == sorted({record.position for record in found})


# --- as a source


def web_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Pages of two formats beside the planted corpus, whose tokenizer and hold-out the recipe uses."""
    (folder / "pages").mkdir(exist_ok=True)
    for number in range(40):
        (folder / "pages" / f"{number}.html").write_text(page(paragraph(number), text_of(number + 500), LAST))
    (folder / "pages" / "empty.html").write_text("<html></html>")
    warc = Warc()
    for number in range(40):
        warc.response(page(paragraph(number + 100), text_of(number + 700), LAST))
        warc.add("request", b"", http="GET / HTTP/1.1", headers={"Host": "example.org"})
    (folder / "crawl.warc.gz").write_bytes(warc.content)
    return {
        "name": "web",
        "seed": 3,
        "tokenizer": recipe()["tokenizer"],
        "sources": {
            "pages": {"files": "pages/*.html", "columns": ["title", "language"], "max_quarantine": 0.1},
            "crawl": {"files": "*.warc.gz", "key": "url", "columns": ["title", "content_type"]},
        },
        "steps": [{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}],
        "mixture": {
            "sequence_length": 64,
            "components": {"all": "source IN ('pages', 'crawl')"},
            "max_epochs": {"all": 4},
            "stages": [{"name": "only", "tokens": 2000, "weights": {"all": 1.0}}],
        },
        **changes,
    }


def test_build_over_html_and_warc_is_the_same_on_one_and_on_two_workers(tmp_path: Path) -> None:
    digests = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        write_corpus(folder)
        built(folder, web_recipe(folder), folder / "out", workers=workers)
        digests.append(Manifest.open(folder / "out").digest)

    assert digests[0] == digests[1]
    header = json.loads((tmp_path / "1" / "out" / "manifest.json").read_text())
    assert {name: (source["read"], source["quarantined"]) for name, source in header["sources"].items()} == {
        "pages": (41, 1),
        "crawl": (40, 0),
    }
    assert "trafilatura" not in json.dumps(header)
    assert {"trafilatura", "warcio", "lxml"} <= set(json.loads((tmp_path / "1" / "out" / "provenance.json").read_text())["versions"])
    rows = [row for row in pool_of(tmp_path / "1" / "out") if row["source"] == "crawl"]
    assert [(row["origin"], row["key"], row["title"], row["content_type"]) for row in rows[:2]] == [
        ("crawl.warc.gz#0", "http://example.org/0", "On soil", "text/html"),
        ("crawl.warc.gz#2", "http://example.org/2", "On soil", "text/html"),
    ]


def resolved(folder: Path, files: str) -> Any:
    with Engine(1) as engine:
        return resolve("web", SourceConfig(files=files), folder, {}, Digests(Work(folder / "work")), engine)


def test_key_of_what_was_read_follows_the_version_of_the_extractor_for_web_pages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.html").write_text(ARTICLE)
    (tmp_path / "a.warc").write_bytes(crawl(1, packed=False).content)
    (tmp_path / "a.txt").write_text(FIRST)

    def names() -> dict[str, str]:
        return {end: cut(resolved(tmp_path, f"a.{end}"), ())[0].name for end in ("html", "warc", "txt")}

    before = names()
    monkeypatch.setattr(formats, "version", lambda package: "99" if package == "trafilatura" else "1")
    after = names()

    assert {end for end in before if before[end] != after[end]} == {"html", "warc"}


def test_build_after_a_new_version_of_the_extractor_is_a_new_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path)
    keys: list[str] = []
    for number in ("1", "1", "2"):
        out = tmp_path / f"out-{len(keys)}"
        monkeypatch.setattr(formats, "version", lambda package, number=number: number)
        built(tmp_path, web_recipe(tmp_path), out)
        keys.append(json.loads((out / "provenance.json").read_text())["build"])

    assert keys[0] == keys[1] != keys[2]


def test_references_of_web_pages_carry_the_version_of_the_extractor(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(ARTICLE)
    (tmp_path / "b.txt").write_text(FIRST)
    config = SIGNALS["fasttext"].config.model_validate({"kind": "fasttext", "train": {"positive": "a.html", "negative": "b.txt"}})

    with Engine(1) as engine:
        run = Run(tmp_path / "work", 1)
        found = resolve_references("steps[0]", "fasttext", config, [], tmp_path, run, Digests(Work(tmp_path / "work")), engine)

    readers = {reference.role: set(reference.readers) for reference in found}
    assert {role: "trafilatura" in names for role, names in readers.items()} == {role: "positive" in role for role in readers}
    assert len(readers) == 2


@pytest.mark.parametrize(("name", "package"), [("a.html", "trafilatura"), ("a.warc", "warcio"), ("a.html", "lxml_html_clean")])
def test_web_pages_without_the_extra_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / name).write_bytes(ARTICLE.encode())

    def version(asked: str) -> str:
        if asked == package:
            raise PackageNotFoundError(asked)
        return "1"

    monkeypatch.setattr(formats, "version", version)

    with pytest.raises(UserError) as refusal:
        resolved(tmp_path, name)

    assert str(refusal.value).startswith(
        f"sources.web.files: {name} is {name[2:].upper()}, which is read by {package}, and that is not installed"
    )
    assert "pip install 'tilth[web]'" in str(refusal.value)


def test_importing_the_formats_imports_no_web_library() -> None:
    code = "import sys, curation.formats; print([name for name in ('lxml', 'trafilatura', 'warcio', 'brotli') if name in sys.modules])"

    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert shown.strip() == "[]"
