"""What can be said of a synthetic document beside its parent: columns of its source, for the recipe's rules to look at. No document is dropped here.

| column | is |
|---|---|
| `template` | the template that made it |
| `grounded` | the share of the answer's distinct words that stand in the passage it was made from; of all its words, if the template names no answer |
| `in_language` | the share of its letters that belong to the script of the template's language |
| `question_like` | the key of the first document before it in its source whose question has at least 0.8 of its words in common (Jaccard), null if there is none |
| `code_parses` | whether the template's code is Python by its syntax; it is parsed, never run |
| `judged` | what the judge gave, 1 to 5 |

Words are those of `curation.text.words`: case and punctuation do not count, and Chinese characters are words. Pure functions; null where there is nothing to look at.
"""

from __future__ import annotations

import ast
import math
import re
import warnings

from curation.text.shared_passages import words_of

COLUMNS = {
    "template": "string",
    "grounded": "float64",
    "in_language": "float64",
    "question_like": "string",
    "code_parses": "bool",
    "judged": "float64",
}
ALIKE = 0.8
LONGEST_CODE = 200_000  # characters
_LATIN, _HAN = re.compile(r"[A-Za-zªºÀ-ɏḀ-ỿ]"), re.compile(r"[㐀-䶿一-鿿豈-﫿\U00020000-\U000323af]")
SCRIPTS = {"zh": _HAN} | dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "vi", "id"), _LATIN)


def grounded(answer: str, passage: str) -> float | None:
    """The share of distinct words of the answer that the passage has."""
    words = set(words_of(answer).tolist())
    return len(words & set(words_of(passage).tolist())) / len(words) if words else None


def in_language(text: str, language: str) -> float | None:
    """The share of letters that are of the language's script; None for a language whose script is not known here."""
    script, letters = SCRIPTS.get(language), sum(map(str.isalpha, text))
    return min(1.0, len(script.findall(text)) / letters) if script is not None and letters else None


def code_parses(code: str) -> bool:
    """Whether this is Python. The parser meets text that a model wrote, so whatever it stumbles over is a no."""
    if len(code) > LONGEST_CODE:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


class Questions:
    """Finds for each question the first before it that is nearly the same: exactly, by the words that one of two alike questions must share with the other (prefix filtering)."""

    def __init__(self, alike: float = ALIKE) -> None:
        self._alike = alike
        self._seen: list[tuple[str, frozenset[int]]] = []
        self._by_word: dict[int, list[int]] = {}

    def like(self, key: str, question: str) -> str | None:
        """The key of the first question at least `alike` similar; remembers this one."""
        words = frozenset(words_of(question).tolist())
        prefix = sorted(words)[: len(words) - math.ceil(self._alike * len(words)) + 1]
        near = {other for word in prefix for other in self._by_word.get(word, ())}
        found = next((other for other in sorted(near) if self._similarity(words, self._seen[other][1]) >= self._alike), None)
        for word in prefix if words else ():
            self._by_word.setdefault(word, []).append(len(self._seen))
        self._seen.append((key, words))
        return None if found is None else self._seen[found][0]

    @staticmethod
    def _similarity(one: frozenset[int], other: frozenset[int]) -> float:
        return len(one & other) / len(one | other)
