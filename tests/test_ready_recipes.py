"""The ready recipes against stand-ins of the hub: files under the same names with the columns of the data sets' cards, checked by a dry run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes import text_of, write_file, write_records, write_tokenizer

import curation
from curation.commands.estimate import Estimate

FOLDER = Path(__file__).parents[1] / "data_manifests"
READY = ("medical-stability-gap", "bilingual-science", "math-durations")

# The columns that a repository's card names, with a value that a record may have; TEXT stands for a text of its own.
TEXT = "text"
CARDS: dict[str, dict[str, Any]] = {
    "MedRAG/textbooks": {"id": "a_0", "title": "a", "content": TEXT, "contents": TEXT},
    "wikimedia/wikipedia": {"id": "12", "url": "u", "title": "t", "text": TEXT},
    "manu/project_gutenberg": {"id": "1-0", "text": TEXT},
    "EleutherAI/proof-pile-2": {"text": TEXT, "meta": {"arxiv_id": "1"}},
    "lvwerra/stack-exchange-paired": {"qid": 5, "question": TEXT, "date": "d", "metadata": ["m"], "response_j": TEXT, "response_k": TEXT},
    "codeparrot/github-code-clean": {"code": TEXT, "repo_name": "r", "path": "p", "language": "C", "license": "mit", "size": 9},
    "tiiuae/falcon-refinedweb": {"content": TEXT, "url": "u", "dump": "d", "segment": "s", "image_urls": [["a", "b"]]},
    "open-web-math/open-web-math": {"url": "u", "text": TEXT, "date": "d", "metadata": "{}"},
    "wangrui6/Zhihu-KOL": {"INSTRUCTION": TEXT, "RESPONSE": TEXT, "SOURCE": "Zhihu", "METADATA": "{}"},
    "Skywork/SkyPile-150B": {"text": TEXT},
    "HuggingFaceFW/fineweb": {"text": TEXT, "id": "i", "dump": "d", "url": "u", "date": "d", "language": "en", "token_count": 3},
    "Muennighoff/flan": {"inputs": TEXT, "targets": TEXT, "task": "t"},
}


def standing_in(pattern: str, folder: Path, seed: int) -> str:
    """Writes one file that the pattern names, of 30 records as the card has them; the pattern below `folder`."""
    repository, below = re.fullmatch(r"hf://datasets/([^/]+/[^/]+)/(.*)", pattern).groups()  # type: ignore[union-attr]
    records = [{name: text_of(1000 * seed + 10 * n + at) if value == TEXT else value for at, (name, value) in enumerate(CARDS[repository].items())} for n in range(30)]  # fmt: skip
    path = folder / repository / below.replace("**/", "").replace("*", "00000")
    if path.suffix == ".parquet":
        write_records(path, records)
    else:
        write_file(path, b"".join(json.dumps(one).encode() + b"\n" for one in records))
    return str(folder / repository / below)


def dry_run(name: str, folder: Path) -> Estimate:
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    tokenizer = write_tokenizer(folder / "tokenizer")
    overrides = [f"tokenizer.path={tokenizer}", "tokenizer.eos=true", "tokenizer.bos=false"]
    for number, (source, config) in enumerate(values["sources"].items()):
        if str(config.get("files", "")).startswith("hf://"):
            overrides.append(f"sources.{source}.files={standing_in(config['files'], folder / 'hub', number)}")
    write_file(folder / "evals" / "items.jsonl", json.dumps({"question": text_of(7, 12), "choices": ["a", "b"], "answer": "a"}).encode())
    write_file(folder / "own" / "a.jsonl", b"".join(json.dumps({"text": text_of(90000 + n)}).encode() + b"\n" for n in range(30)))
    roots = {"evals": str(folder / "evals"), "books_zh": str(folder / "own")}
    return curation.dry_run(FOLDER / f"{name}.yaml", *overrides, work=folder / "work", roots=roots)


@pytest.mark.parametrize("name", READY)
def test_ready_recipe_is_sound_for_files_with_the_columns_of_the_cards(name: str, tmp_path: Path) -> None:
    found = dry_run(name, tmp_path)

    read = [one for one in found.sources if one.files]
    assert [(one.name, one.sampled, one.unusable) for one in read] == [(one.name, 30, 0) for one in read]
    assert all(one.tokens > 30 for one in read)


def test_bilingual_recipe_asks_the_billions_that_the_paper_has(tmp_path: Path) -> None:
    asked = {one.name: one.asked for one in dry_run("bilingual-science", tmp_path).components}

    assert None not in asked.values()
    total = {
        "web": 45_175_000_000,
        "encyclopedia": 4_925_000_000,
        "books": 15_737_500_000,
        "forum": 4_925_000_000,
    }
    assert {name: asked[f"{name}_zh"] + asked[f"{name}_en"] for name in total} == total  # type: ignore[operator]
    assert {name: asked[name] for name in ("papers", "math", "code", "questions")} == {
        "papers": 7_925_000_000,
        "math": 7_925_000_000,
        "code": 11_887_500_000,
        "questions": 1_500_000_000,
    }


def test_medical_recipe_replays_the_curated_rates_and_durations_are_one_to_five(tmp_path: Path) -> None:
    medical = {one.name: one.asked for one in dry_run("medical-stability-gap", tmp_path / "a").components}
    durations = {one.name: one.asked for one in dry_run("math-durations", tmp_path / "b").components}

    shares = {name: round((count or 0) / 20_000_000_000, 4) for name, count in medical.items()}
    assert shares == {"medical": 0.82, "code": 0.045, "encyclopedia": 0.045, "books": 0.045, "papers": 0.025, "forum": 0.02}
    assert durations["math"] == pytest.approx(5 * (durations["instructions"] or 0), abs=200)


@pytest.mark.parametrize("name", READY)
def test_ready_recipe_says_when_it_last_ran_and_where_its_numbers_are_from(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")

    assert re.search(r"Last run against the hub: (never|\d{4}-\d\d-\d\d)\.", text)
    numbers = [
        line
        for line in text.splitlines()
        if re.search(r"(tokens|seed|documents|threshold|sequence_length|max_\w+):.*\d", line) and "# " not in line
    ]
    before = [text.splitlines()[text.splitlines().index(line) - 1] for line in numbers]
    unsaid = [line for line, above in zip(numbers, before, strict=True) if "#" not in above and "name:" not in above]
    assert unsaid == []
