"""Which of several duplicates is kept, and what the documents are compared with: what the configurations of `exact` and `minhash` have in common.

Of duplicates the document kept is the one whose source comes first in the recipe; within a source the one with the best value of `priority`, no value being the worst; among
equals the one of the lowest row. Keys that are not written do not appear when a configuration is dumped, so they are part of no recipe and no key that does without them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator


class Preference(BaseModel):
    """By what a document is preferred to its duplicates in the same source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    priority: str | None = Field(
        None,
        description="a numeric signal added before, or a column, `words.mean_length` for one of several values: within a source the document with the best is kept; "
        "without it the first",
    )
    order: Literal["ascending", "descending"] = Field("descending", description="descending prefers the highest values of `priority`")

    against: str | None = Field(
        None,
        description="the folder of an index (`curate index`): documents that equal or resemble one of its members are duplicates of it, whatever their source; "
        "its members have priority over all and are never duplicates themselves",
    )

    silent: ClassVar[dict[str, object]] = {"priority": None, "against": None}

    @model_validator(mode="after")
    def _orders_something(self) -> Preference:
        if self.priority is None and "order" in self.model_fields_set:
            raise ValueError("order says nothing without priority; name a signal or column as priority, or leave order out")
        return self

    @model_serializer(mode="wrap")
    def _spelled(self, spell: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unsaid = {name for name, value in self.silent.items() if getattr(self, name) == value}
        unsaid |= {"order"} if self.priority is None else set()
        return {name: value for name, value in spell(self).items() if name not in unsaid}
