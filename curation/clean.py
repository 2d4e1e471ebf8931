"""The only edits of text, made once, before it is written to a shard; and what counts as a text at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

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
    raw = text.encode()
    kept = raw.translate(None, _C0)
    text = text if len(kept) == len(raw) else kept.decode()
    return text if text.isascii() else _C1.sub("", text)


def _line_endings(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


CLEAN: dict[str, Callable[[str], str]] = {"nfc": _nfc, "control_characters": _control_characters, "line_endings": _line_endings}


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
