"""The counts of identifiers are those of what the clean step replaces."""

from __future__ import annotations

import pyarrow as pa

from curation.signals import SIGNALS
from curation.text.clean import CLEAN
from curation.text.identifiers import KINDS

SIGNAL = SIGNALS["privacy"]
CONFIG = SIGNAL.config.model_validate({"kind": "privacy"})


def test_counts_of_texts_are_the_marks_that_masking_leaves() -> None:
    texts = [
        "",
        "a@b.org, c@d.org; +49 30 1234567",
        "nothing",
        "中文：a@b.cn 4111 1111 1111 1111",
        "DE89370400440532013000 at 130.60.24.7 AKIAIOSFODNN7EXAMPLE",
    ]
    array = pa.array(["left@out.org", *texts], pa.large_string()).slice(1)

    values = SIGNAL.compute(CONFIG, array, None)

    expected = [{kind: CLEAN["mask_pii"](text).count(f"[{kind.upper()}]") for kind in KINDS} for text in texts]
    assert values.to_pylist() == expected
    assert sum(sum(one.values()) for one in expected) == 8
    assert values.type == SIGNAL.fields(CONFIG)


def test_counts_of_no_texts_have_the_declared_type() -> None:
    assert SIGNAL.compute(CONFIG, pa.array([], pa.large_string()), None).type == SIGNAL.fields(CONFIG)
