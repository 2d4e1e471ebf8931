"""Text that others wrote, as HTML that shows it and nothing else.

Everything is escaped. What cannot be seen, or would change how its surroundings are read, becomes visible as its code point: control characters, bidirectional overrides,
unassigned and private characters. New lines and tabs stay; so do the joiners that Persian, Indic scripts and emoji are spelled with. Long text is cut, and says so.
"""

from __future__ import annotations

import difflib
import re
import unicodedata

from markupsafe import Markup, escape

from curation.text.shared_passages import excerpt, first_difference, words_of

SHOWN = 700
COMPARED = 120
"""Words of either text that are compared: quadratic at worst."""
BEFORE = 12
"""Words shown before the first difference."""
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SPELLED = frozenset("\n\t\u200c\u200d")
_PIECES = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]|\w+|\s+|[^\w\s]")


def visible(text: str) -> Markup:
    """`text` escaped, with what is hidden in it shown by code point."""
    parts: list[str] = []
    for character in text:
        if unicodedata.category(character) in _HIDDEN and character not in _SPELLED:
            parts.append(f'<b class="hidden">U+{ord(character):04X}</b>')
        else:
            parts.append(str(escape(character)))
    return Markup("".join(parts))


def shortened(text: str, limit: int = SHOWN) -> Markup:
    """The beginning of a text, and how long it is."""
    if len(text) <= limit:
        return visible(text)
    return visible(text[:limit]) + Markup('<span class="cut">… {:,} characters in all</span>').format(len(text))


def differences(here: str, there: str) -> tuple[Markup, Markup]:
    """Two texts around their first difference, with what only one of them has marked: `<del>` in the first, `<ins>` in the second."""
    at = max(first_difference(words_of(here), words_of(there)) - BEFORE, 0)
    mine, theirs = (_PIECES.findall(excerpt(text, at, COMPARED)[: 4 * SHOWN]) for text in (here, there))
    one, other = [Markup("… ") if at else Markup("")], [Markup("… ") if at else Markup("")]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        left, right = visible("".join(mine[a:b])), visible("".join(theirs[c:d]))
        one.append(left if kind == "equal" or not left else Markup("<del>{}</del>").format(left))
        other.append(right if kind == "equal" or not right else Markup("<ins>{}</ins>").format(right))
    return Markup("").join(one), Markup("").join(other)
