"""The rig through the real commands, on corpora made here: passages, splits, and a whole small experiment that is not repeated."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recipes import VOCABULARY, text_of

from experiments.rig import corpora
from experiments.rig.arms import replayed, soups, subset
from experiments.rig.recipes import Rig
from experiments.rig.running import Workshop
from experiments.rig.scale import Scale, llama

TINY = Scale("tiny", 6_000, 1_500, 4_000, 2, 512, 64, 8, 4, 1e-2, 5e-3, False, llama(32, 2, 2, 64, 64))


def write_corpora(folder: Path, documents: int = 240) -> None:
    """Every corpus with texts of its own words; every fourth document is of the same book as the one before."""
    for number, kind in enumerate(corpora.kinds()):
        words = random.Random(kind).sample(VOCABULARY, 120)
        texts = [" ".join(random.Random(f"{kind} {one}").choices(words, k=50)) + "." for one in range(documents)]
        meta = [json.dumps({"book": f"book {one // 4}"}) for one in range(documents)]
        (folder / kind).mkdir(parents=True)
        pq.write_table(
            pa.table({"id": [f"{number}-{one}" for one in range(documents)], "text": texts, "meta": meta}), folder / kind / "part.parquet"
        )


def test_passages_joined_are_the_text_and_none_is_too_long() -> None:
    text = "\n\n".join(text_of(seed, 30 * (seed + 1)) for seed in range(8)) + "\n" + "x" * 4000

    found = corpora.passages(text, 500)

    assert "".join(found).split() == text.split()  # a passage of nothing but white space goes
    assert max(map(len, found)) <= 500
    assert sum(map(len, found)) / len(found) > 200
    assert corpora.passages(" \n ") == []


def test_passages_of_a_book_stand_on_one_side_of_every_split(tmp_path: Path) -> None:
    write_corpora(tmp_path)

    parts: dict[str, set[int]] = {}
    for number, (_, part) in enumerate(corpora.documents(tmp_path / "books_en", "books_en")):
        parts.setdefault(f"book {number // 4}", set()).add(part)

    assert all(len(found) == 1 for found in parts.values())
    assert len({part for found in parts.values() for part in found}) > 30


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    made = tmp_path_factory.mktemp("experiments")
    write_corpora(made / "given")
    corpora.prepare(made / "given", made / "work" / "corpora", TINY.vocabulary)
    return Rig(Workshop(made / "work"), TINY, "medical", 11)


def test_pool_has_a_quarter_of_the_domain_and_nothing_of_exam_and_reference(rig: Rig) -> None:
    pool = pq.read_table(corpora.pool(rig.corpora, "medical", 11, TINY.pool_tokens)).to_pylist()

    apart = {text for kind in corpora.kinds() for text in corpora.read(rig.corpora, kind, 0, corpora.REFERENCE)}
    words = {
        kind in rig.kinds: sum(len(row["text"].split()) for row in pool if (row["kind"] in rig.kinds) == (kind in rig.kinds))
        for kind in corpora.kinds()
    }
    assert apart.isdisjoint(row["text"] for row in pool)
    assert words[True] / (words[True] + words[False]) == pytest.approx(0.25, abs=0.08)
    reference = set(pq.read_table(corpora.reference(rig.corpora, "medical"))["text"].to_pylist())
    assert reference.isdisjoint(row["text"] for row in pool)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_arm_is_trained_once_measured_by_the_exam_and_traced_to_its_manifest(rig: Rig) -> None:
    found = replayed(rig, 0.5, rate=5e-3)
    log = rig.workshop.folder / "commands.log"
    commands = re.findall(r"^\$ (?:curate|python -m train) \S+", log.read_text(), re.MULTILINE)
    before = log.stat().st_size

    assert replayed(rig, 0.5, rate=5e-3) == found
    assert log.stat().st_size == before, "a finished run was repeated"

    assert sorted(commands) == ["$ curate build"] * 3 + ["$ curate index", "$ curate remix"] + ["$ python -m train run"] * 2
    manifests = {
        hashlib.sha256(path.read_bytes()).hexdigest(): path.parent for path in rig.workshop.folder.glob("manifests/*/manifest.json")
    }
    header = json.loads((manifests[found.manifest] / "manifest.json").read_text())
    assert header["parent"] is not None
    weights = {name: one["weight"] for name, one in header["stages"][0]["components"].items()}
    assert weights["books_en"] == pytest.approx(0.46)
    assert weights["med_qa"] == pytest.approx(1 / 6, abs=1e-6)
    assert found.curve[0][0] == 0
    assert len(found.curve) > 5
    assert set(found.end) == {*rig.kinds, "books_en", "wiki_en"}
    assert found.domain_loss() < found.domain_loss(0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_selection_and_soups_go_through_the_commands(rig: Rig) -> None:
    chosen = subset(rig, "importance")
    souped = soups(rig, chosen, 2)

    assert chosen.extra["precision"] > 0.9
    assert [row.extra["weight"] for row in souped] == [0.0, 0.5, 1.0]
    assert souped[0].domain_loss() == pytest.approx(chosen.domain_loss(0), abs=1e-3)
    assert souped[-1].guard_loss() == pytest.approx(chosen.guard_loss(), abs=1e-3)
