"""Text in, decided documents out. The commands of `curate` as functions, imported when they are first asked for: `curation.build(…)`, `curation.Manifest.open(…)`."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_FROM = {
    **dict.fromkeys(
        ("build", "clean", "diff", "dry_run", "export", "index_add", "index_remove", "index_show", "index_verify"), "curation.verbs"
    ),
    **dict.fromkeys(("init", "inspect", "remix", "report", "show", "signatures", "verify", "why"), "curation.verbs"),
    **dict.fromkeys(("Recipe", "load"), "curation.recipe"),
    "Manifest": "mixing.manifest",
    "UserError": "mixing",
}
__all__ = sorted(_FROM)


class _Package(ModuleType):
    """`curation.build` is the function, also after the module of this name was imported; that is had by `from curation.build import …`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FROM and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'curation' has no attribute {name!r}")
    found = getattr(import_module(_FROM[name]), name)
    setattr(sys.modules[__name__], name, found)
    return found


def __dir__() -> list[str]:
    return [*globals(), *_FROM]


sys.modules[__name__].__class__ = _Package
