"""The answers that other deduplicators' own tests expect, in texts and code of ours: datatrove's windows of one text, data-juicer's survivors, datasketch's vectors.

Two things have no counterpart here and are not tested. datatrove and text-dedup remove whole clusters but one, also what only resembles a removed document; here that stays, so
datatrove's fixture is checked where each of its clusters hangs together through its first window. datasketch's `optimal_param` weighs false positives against false negatives; here every
candidate is verified, a false positive costs time and not a document, so bands are chosen for recall alone: what is tested is that ours find more than its known choices do.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import datasketch
import numpy as np
import pyarrow as pa
import pytest
from datasketch.lsh import _optimal_param
from duplicates import Listed, serial

from curation.dedup.banding import Banding, banding
from curation.dedup.exact import exact_duplicates
from curation.dedup.minhash import PERMUTATIONS, MinhashConfig, _permute, permutations, signatures
from curation.dedup.near import near_duplicates

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "qua", "re", "sti", "tor", "ux", "vel", "zin"]


def listed(texts: list[str]) -> Listed:
    return Listed("listed", tuple(enumerate(texts)))


def near(texts: list[str], threshold: float, scratch: Path) -> dict[int, int]:
    """Of each removed row, its survivor."""
    [path] = near_duplicates([listed(texts)], MinhashConfig(threshold=threshold), scratch, serial)
    return {position: survivor for position, survivor, _ in np.load(path).tolist()}


def survivors(texts: list[str], threshold: float, scratch: Path) -> list[int]:
    removed = near(texts, threshold, scratch)
    return [row for row in range(len(texts)) if row not in removed]


def prose(seed: int, length: int) -> str:
    """`length` characters of words that no language has, in sentences, as filler text goes."""
    rng = random.Random(seed)
    words: list[str] = []
    while sum(map(len, words)) + len(words) <= length:
        word = "".join(rng.choices(SYLLABLES, k=rng.choice([1, 2, 2, 3])))
        words.append(word.capitalize() if not words or words[-1].endswith(".") else word)
        if rng.random() < 0.15:
            words[-1] += rng.choice(".,")
    return " ".join(words)[:length]


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_datatroves_windows_of_one_text_leave_one_of_each_cluster(seed: int, tmp_path: Path) -> None:
    lorem = prose(seed, 3000)
    clusters = [[0, 20, 50], [400, 420], [800, 810, 820, 840, 860], [1205, 1215, 1225, 1245], [1600], [2000]]
    group = [number for number, starts in enumerate(clusters) for _ in starts]
    removed = near([lorem[start : start + 400] for starts in clusters for start in starts], 0.5, tmp_path)
    kept = [row for row in range(len(group)) if row not in removed]
    assert kept == [group.index(number) for number in range(6)]  # the first of each, as the rule wants it
    assert all(group[row] == group[survivor] for row, survivor in removed.items())
    assert len({group[row] for row in removed}) == 4  # datatrove counts these four and "none"


def test_signatures_datatroves_text_reversed_from_a_place_on_estimates_what_is_left() -> None:
    lorem = prose(6, 3400)
    texts = [lorem[: len(lorem) * percent // 100] + lorem[: len(lorem) * percent // 100 - 1 : -1] for percent in range(5, 100, 5)]
    rows = signatures(pa.array([lorem, *texts], pa.large_string()))
    for percent, row in zip(range(5, 100, 5), rows[1:], strict=True):
        share = percent / 100  # of the shingles of both; as Jaccard
        assert abs((rows[0] == row).mean() - share / (2 - share)) < 0.21


def test_exact_duplicates_datatroves_priority_is_the_lowest_row(tmp_path: Path) -> None:
    texts = ["to be", "to be", "or not", "or not to be", "or not"]
    [path] = exact_duplicates([listed(texts)], tmp_path, serial)
    assert np.load(path).tolist() == [(1, 0, 1.0), (4, 2, 1.0)]


def test_near_duplicates_data_juicers_english_survivors_are_the_first_of_two_long_versions_and_all_short_ones(tmp_path: Path) -> None:
    report = prose(7, 6000)
    revised = report.replace(report[40:60], "plants at two sites", 1)
    shortened = revised[:5600]
    texts = [
        "Monday is a holiday, and the sun is out!",
        "Would you like another cup of tea?",
        "Monday is a holiday, and the sun is really out!",
        "A new way of pre-training language models is described.",
        report,
        revised,
        shortened,
    ]
    assert survivors(texts, 0.7, tmp_path) == [0, 1, 2, 3, 4]


def chinese_minutes(seed: int) -> list[str]:
    rng = random.Random(seed)
    stock = "会议决定由委员会审查各成员国提交的预算报告并在规定时间内向大会说明经费来源与用途其余事项按照先到先办的原则处理"
    return ["".join(rng.choices(stock, k=rng.randrange(8, 30))) for _ in range(60)]


def test_near_duplicates_data_juicers_chinese_survivors_are_the_first_of_two_long_versions_and_all_short_ones(tmp_path: Path) -> None:
    lines = chinese_minutes(8)
    minutes = "第三届会议\n2011年5月2日至6日\n日内瓦\n" + "，".join(lines) + "。"
    dated = "第三届会议\n时间：2011年5月2日至6日\n日内瓦\n" + "；".join(lines) + "。"
    texts = ["早上好，您找哪位", "欢迎光临本店！", minutes, dated, "早上好，您找哪一位", "第三届会议"]
    assert survivors(texts, 0.7, tmp_path) == [0, 1, 2, 4, 5]
    assert survivors([dated, minutes], 0.9, tmp_path) == [0]
    half = minutes[: len(minutes) // 2]  # a half is no copy of the whole
    assert survivors([minutes, half], 0.7, tmp_path) == [0, 1]


def test_signatures_datasketchs_vector_of_hello_comes_out_of_our_permutations() -> None:
    oracle = datasketch.MinHash(num_perm=4, seed=1, scheme="affine32")
    oracle.update(b"Hello")
    assert oracle.hashvalues.tolist() == [3231258861, 1388533999, 831950533, 1845606703]
    multipliers, addends = (np.ascontiguousarray(row, np.uint32) for row in oracle.permutations)
    hello = np.array([int.from_bytes(hashlib.sha1(b"Hello").digest()[:4], "little") << 32], np.uint64)
    ours = np.full(4, 0xFFFFFFFF, np.uint32)
    _permute(hello, np.empty(1, np.uint32), multipliers, addends, ours)
    assert ours.tolist() == oracle.hashvalues.tolist()


def test_permutations_are_those_of_datasketch() -> None:
    oracle = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32")
    assert np.array_equal(np.stack(permutations()), oracle.permutations)


@pytest.mark.parametrize(("threshold", "known"), [(0.5, (25, 5)), (0.7, (14, 9)), (0.8, (9, 13)), (0.9, (5, 25))])
def test_banding_finds_more_than_datasketchs_optimal_param(threshold: float, known: tuple[int, int]) -> None:
    assert _optimal_param(threshold, PERMUTATIONS, 0.5, 0.5) == known
    theirs, ours = Banding(*known), banding(threshold)
    assert theirs.recall(threshold) < 0.6
    assert ours.recall(threshold) >= 0.995
    assert all(ours.recall(similarity) >= theirs.recall(similarity) for similarity in np.linspace(threshold, 0.99, 20))


@pytest.mark.parametrize("similarity", [0.6, 0.75, 0.9])
def test_recall_of_bands_is_the_share_of_pairs_with_one_that_agrees(similarity: float) -> None:
    bands, rows = 6, 3
    rng = np.random.default_rng(3)
    drawn = (rng.random((20_000, bands, rows)) < similarity).all(axis=2).any(axis=1).mean()
    assert Banding(bands, rows).recall(similarity) == pytest.approx(drawn, abs=4 * (0.25 / 20_000) ** 0.5)
