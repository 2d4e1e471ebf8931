"""Documents that equal or resemble a held-out one, against all pairs in plain Python."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import xxhash

from curation.dedup.holdout_index import match_holdout, open_holdout_index, write_holdout_index
from curation.dedup.minhash import signatures
from curation.text.words import words


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def contents(texts: list[str]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts), np.uint64).reshape(-1, 2)


def matches(
    folder: Path, held: dict[int, str], texts: list[str], threshold: float, pairs_at_once: int = 1 << 24
) -> dict[int, tuple[int, float]]:
    held_texts = list(held.values())
    write_holdout_index(folder / "index.npz", arrow(held_texts), contents(held_texts), np.array(list(held), np.uint64))
    index = open_holdout_index(folder / "index.npz")
    found = match_holdout(arrow(texts), contents(texts), signatures(arrow(texts)), index, threshold, pairs_at_once)
    return {position: (survivor, similarity) for position, survivor, similarity in found.tolist()}


@cache
def plain_shingles(text: str) -> frozenset[tuple[str, ...]]:
    found = words(text)
    return frozenset(tuple(found[i : i + 5]) for i in range(max(len(found) - 4, 1))) - {()}


def plain_jaccard(a: str, b: str) -> float:
    left, right = plain_shingles(a), plain_shingles(b)
    return len(left & right) / len(left | right) if left and right else 0.0


def plain_matches(held: dict[int, str], texts: list[str], threshold: float) -> dict[int, tuple[int, float]]:
    expected = {}
    for position, text in enumerate(texts):
        scored = [(-1.0 if text == other else -plain_jaccard(text, other), row) for row, other in held.items()]
        reach = [(score, row) for score, row in scored if -score >= threshold]
        if reach:
            expected[position] = (min(reach)[1], -min(reach)[0])
    return expected


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_match_holdout_random_edits_equal_all_pairs(tmp_path: Path, threshold: float) -> None:
    rng = random.Random(4)
    bases = [[f"w{rng.randrange(500)}" for _ in range(rng.choice([3, 30, 80]))] for _ in range(40)]
    held = {1000 - 7 * i: " ".join(base) for i, base in enumerate(bases)}
    texts = [" ".join(f"w{rng.randrange(500)}" for _ in range(60)) for _ in range(50)]
    for _ in range(250):
        edited = list(rng.choice(bases))
        for _ in range(rng.randrange(5)):
            edited[rng.randrange(len(edited))] = f"e{rng.randrange(9)}"
        texts.append(" ".join(edited))
    expected = plain_matches(held, texts, threshold)
    assert len(expected) > 30
    assert matches(tmp_path, held, texts, threshold) == expected
    assert matches(tmp_path, held, texts, threshold, pairs_at_once=300) == expected


def test_match_holdout_copies_ties_and_wordless_texts_follow_the_rule(tmp_path: Path) -> None:
    line = "one line of seven words stands here"
    held = {9: line, 4: line.upper(), 6: "...", 2: "", 7: "中文也是这样的一句话"}
    texts = [line, line + "!", "...", "....", "", "nothing of the kind in this text", "中文，也是这样的一句话。", line + " now"]
    found = matches(tmp_path, held, texts, 0.7)
    assert found == {0: (4, 1.0), 1: (4, 1.0), 2: (6, 1.0), 4: (2, 1.0), 6: (7, 1.0), 7: (4, 0.75)}
    assert found == plain_matches(held, texts, 0.7)


def test_match_holdout_empty_index_or_shard_matches_nothing(tmp_path: Path) -> None:
    assert matches(tmp_path, {}, ["a b c", ""], 0.8) == {}
    (tmp_path / "other").mkdir()
    assert matches(tmp_path / "other", {0: "a b c"}, [], 0.8) == {}


def test_write_holdout_index_any_order_gives_equal_bytes_and_other_versions_are_refused(tmp_path: Path) -> None:
    texts, rows = ["b b b", "a a a", ""], np.array([5, 3, 9], np.uint64)
    write_holdout_index(tmp_path / "one.npz", arrow(texts), contents(texts), rows)
    write_holdout_index(tmp_path / "two.npz", arrow(texts[::-1]), contents(texts[::-1]), rows[::-1])
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as stored:
        np.savez(tmp_path / "old.npz", **(dict(stored) | {"version": np.array("0/words-0")}))
    with pytest.raises(ValueError, match="build the index again"):
        open_holdout_index(tmp_path / "old.npz")
