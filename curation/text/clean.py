"""The only edits of text, made once, before it is written to a shard; and what counts as a text at all.

`mask_pii` replaces what `identifiers` finds by `[EMAIL]`, `[IP]`, `[PHONE]`, `[CARD]`, `[IBAN]` and `[KEY]`. It knows no names and no postal addresses: it lowers what a model
can repeat, it does not make data anonymous.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

_C0 = bytes(code for code in (*range(32), 127) if code not in (9, 10, 13))
_C1 = re.compile("[\x80-\x9f]")
_VISIBLE = re.compile(
    r"[^\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff\x00-\x1f\x7f-\x9f]"
)


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _control_characters(text: str) -> str:
    """Without C0 (tab, line feed and carriage return stay), DEL and C1. On bytes: deleting from UTF-8 runs at memory speed, a regular expression does not."""
    text = text.encode().translate(None, _C0).decode()
    return text if text.isascii() else _C1.sub("", text)


def _with_control_characters(raw: Sequence[bytes]) -> list[int]:
    """Which texts `_control_characters` changes, given as UTF-8. Looking at all bytes together is ten times as fast as deleting from each text."""
    codes = np.frombuffer(b"".join(raw), np.uint8)
    low = np.flatnonzero(codes < 32)
    lead = np.flatnonzero(codes[:-1] == 0xC2)  # of two bytes, U+0080 to U+00BF
    kept = (codes[low] == 9) | (codes[low] == 10) | (codes[low] == 13)
    places = (low[~kept], np.flatnonzero(codes == 127), lead[codes[lead + 1] < 0xA0])
    ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)))
    changed: list[int] = np.unique(np.searchsorted(ends, np.concatenate(places), side="right")).tolist()
    return changed


def _with_carriage_returns(raw: Sequence[bytes]) -> list[int]:
    return [index for index, text in enumerate(raw) if b"\r" in text]


def _not_ascii(raw: Sequence[bytes]) -> list[int]:
    return [index for index, text in enumerate(raw) if not text.isascii()]


def _line_endings(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _mask_pii(text: str) -> str:
    from curation.text import identifiers

    return identifiers.mask(text.encode()).decode()


def _with_identifiers(raw: Sequence[bytes]) -> list[int]:
    from curation.text import identifiers

    return [index for index, _ in identifiers.found(raw)]


CLEAN: dict[str, Callable[[str], str]] = {
    "nfc": _nfc,
    "control_characters": _control_characters,
    "line_endings": _line_endings,
    "mask_pii": _mask_pii,
}

_LOOKED_AT: dict[str, Callable[[Sequence[bytes]], list[int]]] = {
    "nfc": _not_ascii,
    "control_characters": _with_control_characters,
    "line_endings": _with_carriage_returns,
    "mask_pii": _with_identifiers,
}


def spelled(steps: Sequence[str]) -> list[str]:
    """The steps as keys hold them: with the version of the one whose meaning has changed."""
    if "mask_pii" not in steps:
        return list(steps)
    from curation.text.identifiers import IDENTIFIERS_VERSION

    return [f"{step} {IDENTIFIERS_VERSION}" if step == "mask_pii" else step for step in steps]


def has_visible(text: str) -> bool:
    """Whether any character would show on paper: not white space, not zero width, not a control character."""
    return _VISIBLE.search(text) is not None


def cleaned(text: str, steps: Sequence[str]) -> tuple[str, Sequence[str]]:
    """`text` after `steps` in their order, and those of them that changed it."""
    changed: list[str] = []
    for name in steps:
        after = CLEAN[name](text)
        if after != text:
            changed.append(name)
            text = after
    return text, changed


def clean_all(texts: list[str], steps: Sequence[str]) -> tuple[list[str], list[bytes], dict[str, npt.NDArray[np.bool_]]]:
    """`cleaned` of every text: the texts, the same as UTF-8, and for each step which of them it changed."""
    texts, raw = list(texts), [text.encode() for text in texts]
    changed = {}
    for name in steps:
        mask = changed[name] = np.zeros(len(texts), np.bool_)
        for index in _LOOKED_AT[name](raw):
            after = CLEAN[name](texts[index])
            if after != texts[index]:
                texts[index], raw[index], mask[index] = after, after.encode(), True
    return texts, raw, changed
