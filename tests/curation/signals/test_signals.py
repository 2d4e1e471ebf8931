"""The dict of row signals: what a recipe's `kind` stands for, and what it costs to look it up."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated, Union, get_args

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from curation.signals import SIGNALS


@pytest.mark.parametrize("kind", sorted(SIGNALS))
def test_kind_of_a_signal_is_the_one_its_config_accepts(kind: str) -> None:
    assert get_args(SIGNALS[kind].config.model_fields["kind"].annotation) == (kind,)


def test_configs_make_a_union_that_the_kind_decides() -> None:
    union = TypeAdapter(Annotated[Union[tuple(signal.config for signal in SIGNALS.values())], Field(discriminator="kind")])  # noqa: UP007

    assert type(union.validate_python({"kind": "ngram", "reference": {"sample": "books"}})) is SIGNALS["ngram"].config
    with pytest.raises(ValidationError, match="words"):
        union.validate_python({"kind": "heuristics", "words": 5})


def test_version_of_a_signal_is_stable_and_names_its_kind_of_model() -> None:
    ngram = SIGNALS["ngram"]

    versions = {ngram.version(ngram.config(kind="ngram", reference="a", order=order)) for order in (1, 3)}

    assert len(versions) == 1
    assert "witten-bell" in versions.pop()


def test_looking_up_signals_imports_no_numeric_library() -> None:
    code = "import sys, json, curation.signals; print(json.dumps(sorted(sys.modules)))"

    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout))

    assert {"numba", "numpy", "polars", "pyarrow", "fasttext"}.isdisjoint(loaded)
