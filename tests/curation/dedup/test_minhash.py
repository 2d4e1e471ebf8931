"""Shingles and signatures against plain Python and datasketch."""

from __future__ import annotations

import math
import random

import datasketch
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.dedup.minhash import PERMUTATIONS, MinhashConfig, jaccards, shingle_set, shingles, signatures
from curation.text.words import words

TEXTS = [
    "",
    "\x00 ... 😀",
    "one",
    "Two words",
    "three little words",
    "now four words here",
    "exactly five words stand here",
    "İstanbul'da ΣΊΣΥΦΟΣ Straße ᎠᎡ e\u0301t 中文维基百科 สวัสดี one two three four five six",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    " ".join(f"w{i % 700}" for i in range(9001)),  # more shingles than one block, repeated ones included
    " ".join(f"w{i}" for i in range(4096 + 4)),
]


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + 5]) for i in range(len(found) - 4)} if len(found) >= 5 else {tuple(found)} - {()}


def plain_jaccard(a: str, b: str) -> float:
    left, right = plain_shingles(a), plain_shingles(b)
    return len(left & right) / len(left | right) if left and right else 0.0


def kernel_jaccard(a: str, b: str) -> float:
    sets, offsets = shingles(arrow([a, b]))
    return float(jaccards(sets, offsets[None, :2], sets, offsets[None, 1:])[0])


def split(texts: list[str]) -> list[list[int]]:
    sets, offsets = shingles(arrow(texts))
    return [sets[offsets[i] : offsets[i + 1]].tolist() for i in range(len(texts))]


def planted(seed: int, count: int, share: float) -> tuple[str, str]:
    rng = random.Random(seed)
    base = [f"{rng.randrange(10**6)}" for _ in range(count)]
    kept = int(count * share)
    return " ".join(base), " ".join(base[:kept] + [f"x{rng.randrange(10**6)}" for _ in range(count - kept)])


def test_shingles_texts_of_every_length_equal_plain_python() -> None:
    assert split(TEXTS) == [sorted(shingle_set(text)) for text in TEXTS]
    assert [len(found) for found in split(TEXTS)] == [len(plain_shingles(text)) for text in TEXTS]
    assert [len(found) for found in split(TEXTS)[:7]] == [0, 0, 1, 1, 1, 1, 1]


@settings(max_examples=100)
@given(st.lists(st.text(st.sampled_from("aB İς中ไ0'\u0301\x00😀 "), max_size=60), min_size=1, max_size=4))
def test_shingles_random_texts_equal_plain_python(texts: list[str]) -> None:
    assert split(texts) == [sorted(shingle_set(text)) for text in texts]


def test_signatures_of_any_text_equal_datasketch_bit_for_bit() -> None:
    rows = signatures(arrow(TEXTS))
    for text, row in zip(TEXTS, rows, strict=True):
        oracle = datasketch.MinHash(num_perm=PERMUTATIONS, scheme="affine32", hashfunc=lambda shingle: shingle >> 32)
        oracle.update_batch(shingle_set(text))
        assert row.tolist() == oracle.hashvalues.tolist()
    loaded = datasketch.LeanMinHash(datasketch.MinHash(hashvalues=rows[8], scheme="affine32"))
    assert loaded.jaccard(datasketch.MinHash(hashvalues=rows[8].copy(), scheme="affine32")) == 1.0


def test_signatures_any_batch_gives_the_same_rows() -> None:
    texts = arrow(TEXTS * 40)  # several ranges of text
    whole = signatures(texts)
    assert (whole == np.concatenate([signatures(texts.slice(i, 37)) for i in range(0, len(texts), 37)])).all()
    assert (whole[: len(TEXTS)] == signatures(arrow(TEXTS))).all()
    assert signatures(arrow([])).shape == (0, PERMUTATIONS)


def test_signatures_estimates_of_planted_pairs_stay_within_their_binomial() -> None:
    pairs = [planted(seed, 60 + seed, share) for seed, share in enumerate(np.linspace(0.3, 0.99, 150))]
    left, right = signatures(arrow([a for a, _ in pairs])), signatures(arrow([b for _, b in pairs]))
    exact = np.array([plain_jaccard(a, b) for a, b in pairs])
    errors = (left == right).mean(axis=1) - exact
    assert np.abs(errors).max() <= 3 / math.sqrt(PERMUTATIONS)
    deviations = errors / np.sqrt(exact * (1 - exact) / PERMUTATIONS)
    assert abs(deviations.mean()) < 0.33  # four standard errors of the mean of 150
    assert 0.8 < deviations.std() < 1.2


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("İstanbul IŞIK geldi dün akşam eve", "i̇stanbul işik geldi dün akşam eve"),
        ("ΟΔΥΣΣΕΑΣ ΣΤΗΝ ΙΘΑΚΗ ΤΩΡΑ ΠΙΑ ΟΧΙ", "οδυσσεασ στην ιθακη τωρα πια οχι"),
        ("ΟΔΟΣ ΣΤΗΝ ΙΘΑΚΗ ΤΩΡΑ ΠΙΑ ΟΧΙ", "οδος στην ιθακη τωρα πια οχι"),
        ("Die STRASSE ist sehr lang heute", "die straße ist sehr lang heute"),
        ("ᎠᎡᎢ Ꭳ Ꭴ Ꭵ Ꭶ Ꭷ", "ꭰꭱꭲ ꭳ ꭴ ꭵ ꭶ ꭷ"),
        ("床前明月光疑是地上霜", "床前明月光疑是天上霜"),
        ("สวัสดีชาวโลก", "สวัสดีชาวไทย"),
        ("cafe\u0301 au lait s'il vous plait", "café au lait s'il vous plait"),
        ("👍 so good 👍 it is 👍 here 👍", "so good it is here"),
        ("nul\x00byte in the middle of it", "nul byte in the middle of it"),
        ("two words", "Two, words!"),
        ("two words", "two words more"),
        ("", ""),
    ],
)
def test_jaccards_case_scripts_and_marks_agree_with_plain_python(a: str, b: str) -> None:
    assert kernel_jaccard(a, b) == plain_jaccard(a, b)


@settings(max_examples=100)
@given(st.text(st.sampled_from("ab İ中 "), max_size=40), st.text(st.sampled_from("ab İ中 "), max_size=40))
def test_jaccards_random_pairs_agree_with_plain_python(a: str, b: str) -> None:
    assert kernel_jaccard(a, b) == plain_jaccard(a, b)


def test_jaccards_share_equal_to_the_threshold_reaches_it() -> None:
    base = [f"w{i}" for i in range(13)]  # 9 shingles; 8 stay of the cut one
    assert kernel_jaccard(" ".join(base), " ".join(base[:12])) == 8 / 9
    nine = [f"w{i}" for i in range(9)]
    assert kernel_jaccard(" ".join(nine), " ".join(nine[:8])) == 0.8 >= MinhashConfig().threshold


def test_minhash_config_unknown_key_and_threshold_outside_are_refused() -> None:
    for values in ({"treshold": 0.8}, {"threshold": 1.1}, {"threshold": 0.0}, {"kind": "simhash"}):
        with pytest.raises(ValidationError):
            MinhashConfig.model_validate(values)
