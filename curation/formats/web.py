"""Records from web pages: the main text of an HTML file, and what the page says of itself.

A page is decoded strictly: by a byte order mark, as UTF-8 if it is UTF-8, else by the charset that its `<meta>` (or the HTTP header) declares, read as browsers read such labels
(https://encoding.spec.whatwg.org/#names-and-labels). Nothing is guessed: undeclared bytes that are no UTF-8 are `invalid encoding`. trafilatura (https://aclanthology.org/2021.acl-demo.15)
then takes the main text: navigation, footers, scripts and readers' comments go; headings, paragraphs, lists, tables and code stay, one line each.

The result depends on the page and the versions of `PACKAGES` alone, which are part of the key of what was read: no clock bounds the work but the size of the page and of its tree, a
date is only taken where the page states one, and nothing is remembered from page to page. About 30 pages a second and core.
"""

from __future__ import annotations

import codecs
import logging
import re
import sys
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from curation.formats.records import EXCERPT, Chunk, Fields, Record, as_row, chunk_of, refused
from curation.formats.streams import BYTE_ORDER_MARK, decoded_bytes, encoding_of
from mixing.remote import Place

PACKAGES = ("trafilatura", "justext", "htmldate", "courlan", "lxml", "lxml_html_clean")  # whose versions decide what is extracted
COLUMNS = ("text", "title", "url", "date", "author", "language")
STATED = {"title", "url", "date", "author"}  # what trafilatura finds beside the text
PAGE_BYTES = 4 << 20
# The work grows with the square of what stands under one parent: 40,000 cells of one row take 7 seconds, 40,000 paragraphs 5.
ELEMENTS = 50_000
STRUCTURED = 64 << 10  # characters of JSON-LD: trafilatura's search in it takes the square of its length, a second for these at worst
LATEST = "2100-01-01"  # trafilatura's own bound for a stated date is today
DECLARED_IN = 1024  # bytes, where HTML wants its charset
_CHARSET = re.compile(rb"""<(?:meta|\?xml)\b[^>]*?(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_:.-]+)""", re.IGNORECASE)
_REFERENCE = re.compile("&#(?:([0-9]{1,7})|[xX]([0-9a-fA-F]{1,6}));?")
_READ_AS = {
    **dict.fromkeys(("ascii", "iso8859-1"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
# Labels of the standard that Python does not know.
_LABELS = {"x-sjis": "cp932", "windows-31j": "cp932", "x-gbk": "gb18030", "windows-874": "cp874", "x-x-big5": "big5hkscs"}
_SEVEN_BITS = ("iso2022_jp", "hz")  # their bytes are all ASCII, and so UTF-8
_NO_CHARSETS = re.compile("utf-(7|16|32).*|idna|punycode|(raw-)?unicode-escape|undefined")  # or none that a page can declare in ASCII


class Page(NamedTuple):
    """Values of the columns that were asked for; without a text, the reason."""

    values: dict[str, str | None]
    reason: str | None


def read_html(path: Place, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """The file as one record."""
    assert (begin, end) == (0, None)
    raw, reason = decoded_bytes(path)
    page = Page({}, reason) if reason else extracted(raw, None, wanted(fields))
    yield chunk_of([record_of(0, len(raw), fields, page, raw)], len(fields.columns))


def wanted(fields: Fields) -> set[str]:
    return {name for name in (fields.text, fields.key, *fields.columns) if name is not None}


def record_of(position: int, size: int, fields: Fields, page: Page, raw: bytes) -> Record:
    """The record that a page becomes; `raw` is for the excerpt of one that cannot be used."""
    text = "" if fields.text is None else page.values.get(fields.text)
    reason = page.reason or (f"no '{fields.text}'" if text is None else None)
    if reason is not None:
        return refused(position, size, reason, raw[:EXCERPT])
    key = page.values.get(fields.key) if fields.key else None
    columns, misfits = as_row(page.values, fields.columns)
    return Record(position, size, text, key, columns, None, "", misfits)


# --- bytes to markup


def decoded(raw: bytes, declared: str | None) -> tuple[str, str | None]:
    """The text of a page's bytes, and why there is none; `declared` is the charset of the HTTP header."""
    marked = encoding_of(raw[:4])
    labels = [declared or "", *(found.decode() for found in _CHARSET.findall(raw[:DECLARED_IN]))]
    stated = [name for name in map(_codec, labels) if name is not None]
    names = [marked] if marked else [*(name for name in stated if name in _SEVEN_BITS), "utf-8", *stated]
    for name in names:
        try:
            text = raw.removeprefix(BYTE_ORDER_MARK).decode(name).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
        return text, "raw NUL byte" if "\0" in text else None
    return "", "invalid encoding"


def _codec(label: str) -> str | None:
    """The codec that browsers take for a label; None for one that names no charset of pages."""
    label = label.strip("\"' ").lower()
    try:
        codec = codecs.lookup(_LABELS.get(label, label))
    except (LookupError, ValueError):
        return None
    if not codec._is_text_encoding or _NO_CHARSETS.fullmatch(codec.name):  # base64, rot13 and the like are codecs, too
        return None
    return _READ_AS.get(codec.name, codec.name)


# --- markup to text


def _referred(reference: re.Match[str]) -> str:
    """A numeric character reference as browsers read it: 128 to 159 are windows-1252, as in `It&#146;s`; what XML cannot hold, on which lxml fails, is nothing."""
    code = int(reference[1]) if reference[1] else int(reference[2], 16)
    if 0x80 <= code <= 0x9F:
        return bytes([code]).decode("cp1252", "ignore")
    hollow = (code < 0x20 and code not in (0x9, 0xA, 0xD)) or 0xD800 <= code <= 0xDFFF or code in (0xFFFE, 0xFFFF)
    return "" if hollow else reference[0]


def extracted(raw: bytes, declared: str | None, names: set[str]) -> Page:
    """The main text of a page, and those of `COLUMNS` that `names` asks for."""
    if len(raw) > PAGE_BYTES:
        return Page({}, f"a page of more than {PAGE_BYTES >> 20} MiB")
    markup, reason = decoded(raw, declared)
    if reason is not None:
        return Page({}, reason)
    depth = sys.getrecursionlimit()
    sys.setrecursionlimit(max(depth, 10_000))  # what a tree of 256 levels takes, however deep this call itself stands
    try:
        return _from_markup(markup, names)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - libraries that meet any page whatever: one they fail at must not end the build
        return Page({}, f"the extractor failed: {type(error).__name__}")
    finally:
        sys.setrecursionlimit(depth)


def _from_markup(markup: str, names: set[str]) -> Page:
    web = _libraries()
    parser = web.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, collect_ids=False, default_doctype=False)
    try:
        tree = web.html.document_fromstring(web.repair(_REFERENCE.sub(_referred, markup), markup[:50].lower()).encode(), parser=parser)
    except web.etree.ParserError:  # no element at all
        return Page({}, "no main text")
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):  # what stands behind it is not in the tree
        return Page({}, "nested too deeply")
    if sum(1 for _ in tree.iter()) > ELEMENTS:
        return Page({}, f"a page of more than {ELEMENTS} elements")
    scripts = [one for one in tree.iter("script") if "json" in one.get("type", "")]
    if sum(len(one.text or "") for one in scripts) > STRUCTURED:
        for one in scripts:
            one.drop_tree()
    text = web.extract(tree, output_format="txt", include_comments=False, deduplicate=False)
    if not text:
        return Page({}, "no main text")
    if len(text) > 2 * len(markup):  # of lists nested without an end trafilatura repeats each in each that it stands in: 0.2 MB became 8.9
        return Page({}, "more text than the page has")
    return Page({"text": text, **_stated(tree, names)}, None)


def _stated(tree: Any, names: set[str]) -> dict[str, str | None]:
    """What a page says of itself; the tree is spent by it."""
    values: dict[str, str | None] = {"language": tree.get("lang") or tree.get("{http://www.w3.org/XML/1998/namespace}lang") or None}
    if names & STATED:
        stated_only = {"original_date": True, "extensive_search": False, "max_date": LATEST}
        found = _libraries().metadata(tree, date_config=stated_only)
        values |= {name: getattr(found, name) or None for name in STATED}
    return values


@cache
def _libraries() -> SimpleNamespace:
    """What is used of lxml and trafilatura, imported once it is needed and told to be silent: what they would say stands in quarantine."""
    from lxml import etree, html
    from trafilatura import extract
    from trafilatura.metadata import extract_metadata
    from trafilatura.utils import repair_faulty_html

    for name in ("trafilatura", "htmldate", "courlan", "justext"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return SimpleNamespace(etree=etree, html=html, extract=extract, metadata=extract_metadata, repair=repair_faulty_html)
