"""Is near-duplicate removal right, how fast is it, and how much does it take, beside the tools people use for it? `dedup.md` has the answers.

    python benchmarks/dedup.py truth OUT med_qa/*.zst med_abstracts/*.parquet … zh_poetry/*.parquet [--peer rensa=PEER/bin/python]…
    python benchmarks/dedup.py sign OUT books_en/*.parquet … [--peer daft=PEER/bin/python]…
    python benchmarks/dedup.py corpus OUT books_en/*.parquet --gb 0.5
    python benchmarks/dedup.py whole OUT/corpus [--peer rensa=PEER/bin/python] [--part datasketch=1]
    python benchmarks/dedup.py memory OUT/corpus
    python benchmarks/dedup.py templates OUT books_en/*.parquet
    python benchmarks/dedup.py paper whole.json

Texts come from given files (Parquet, JSON Lines, .zst or .gz; column `text`), the name of their folder is the name of their corpus; nothing of them is printed except `OUT/removed.txt`, pairs
for reading by eye. Peers run one at a time, each under the interpreter of its own environment (`dedup_peers.py`), and are left out where none is given. Seconds are given as wall and as CPU
time, which other jobs on the machine disturb less.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson
import pyarrow as pa
from dedup_accuracy import read_texts
from dedup_ours import deduplicate, survivors_of
from dedup_truth import (
    Document,
    Pairs,
    Verdict,
    all_pairs,
    brute_force,
    greedy,
    judge,
    numbered,
    plain_shingles,
    planted_copy,
    with_planted,
)
from memory import rollup, tree, words_of

from curation.dedup.minhash import signatures

HERE = Path(__file__).parent
THRESHOLDS = ("0.7", "0.8", "0.9")
FILES = click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
OUT = click.argument("out", type=click.Path(path_type=Path))
PEERS = click.option("--peer", "peers", multiple=True, help="NAME=PYTHON: a peer of `dedup_peers.py` and the interpreter that has it")


@click.group(help=__doc__.splitlines()[0] if __doc__ else None)
def main() -> None: ...


def interpreters(peers: Sequence[str]) -> dict[str, str]:
    return {name: python for name, _, python in (peer.partition("=") for peer in peers)}


def corpora_of(files: Sequence[Path]) -> dict[str, list[str]]:
    """The texts of each corpus, the name of the files' folder; texts that cannot be written as UTF-8 and empty ones are left out."""
    found: dict[str, list[str]] = {}
    for path in files:
        found.setdefault(path.parent.name, []).extend(read_texts(path, "text").to_pylist())
    return found


def write_lines(path: Path, texts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        out.writelines(orjson.dumps({"id": i, "text": text}) + b"\n" for i, text in enumerate(texts))


def answer_of(command: Sequence[str | Path]) -> dict[str, Any]:
    """The JSON object that a program's last line is."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[1]} {command[2]}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ours(files: str | Path, out: Path, workers: int = 2, threshold: str = "0.8") -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    found = answer_of([sys.executable, HERE / "dedup_ours.py", files, out, "--threshold", threshold, "--workers", str(workers)])
    shutil.rmtree(out)
    return found


# --- right?


@main.command()
@OUT
@FILES
@PEERS
@click.option("--share", default=0.15, show_default=True, help="near-copies planted, of the documents")
@click.option("--seed", default=17, show_default=True)
@click.option("--checked", default=3000, show_default=True, help="documents of which every pair is looked at to check the truth")
def truth(out: Path, files: tuple[Path, ...], peers: tuple[str, ...], share: float, seed: int, checked: int) -> None:
    """Precision and recall of removals against exact Jaccard of all pairs."""
    documents = with_planted(corpora_of(files), share, seed)
    texts = [document.text for document in documents]
    write_lines(out / "corpus.jsonl", texts)
    began = time.monotonic()
    sets = numbered(texts)
    pairs = all_pairs(sets, Fraction(THRESHOLDS[0]))
    assert all_pairs(sets[:checked], Fraction(1, 2)) == brute_force(sets[:checked], Fraction(1, 2))
    print(
        f"{len(texts):,} documents, {sum(one.planted for one in documents):,} of them planted, {sum(map(len, sets)):,} shingles; "
        f"{sum(map(len, pairs.values())) // 2:,} pairs at {THRESHOLDS[0]} or more; {time.monotonic() - began:.0f} s for the truth",
        flush=True,
    )
    groups = {
        "all": list(range(len(texts))),
        **{name: [i for i, one in enumerate(documents) if one.corpus == name] for name in sorted({one.corpus for one in documents})},
    }
    print("| at | tool | documents of | removed | partner kept | only removed partners | no partner | missed | precision | recall |")
    stayed: dict[str, list[bool]] = {}
    for at in THRESHOLDS:
        threshold = Fraction(at)
        stayed |= {"the rule itself": greedy(len(texts), pairs, threshold), "ours": kept_by_ours(out, at, pairs, documents)}
        for name, python in interpreters(peers).items():
            if at == THRESHOLDS[0] or not name.startswith("datatrove"):  # which has no threshold
                stayed[name] = kept_by_peer(name, python, out, at, len(texts))
        for name, kept in stayed.items():
            for group, rows in groups.items():
                if name != "the rule itself" or group == "all":
                    print(line_of(at, name, group, judge(kept, rows, pairs, threshold)), flush=True)


def line_of(at: str, name: str, group: str, verdict: Verdict) -> str:
    counts = " | ".join(f"{count:,}" for count in verdict)
    return f"| {at} | {name} | {group} | {counts} | {verdict.precision:.4f} | {verdict.recall:.4f} |"


def kept_by_ours(out: Path, at: str, pairs: Pairs, documents: list[Document]) -> list[bool]:
    """What stays, and a check of everything that is recorded about what does not: survivor kept, before it, of exactly this similarity, the most similar known."""
    shutil.rmtree(out / "ours", ignore_errors=True)
    done = deduplicate(str(out.absolute() / "corpus.jsonl"), out / "ours", float(at), 2)
    survivors = survivors_of(done)
    kept = [row not in survivors for row in range(len(documents))]
    less_similar = 0
    for row, (survivor, similarity) in survivors.items():
        common, union = pairs[row][survivor]
        assert kept[survivor], (row, survivor)
        assert survivor < row
        assert similarity == common / union
        best = max(Fraction(*sizes) for other, sizes in pairs[row].items() if kept[other] and other < row)
        less_similar += Fraction(common, union) < best
    facts = done.facts
    print(
        f"ours at {at}: {len(survivors):,} survivors named, all kept, all earlier, all similarities exact; {less_similar} not the most similar kept; "
        f"{facts['report']}; {facts['cpu']:.1f} s CPU",
        flush=True,
    )
    sample = random.Random(at).sample(sorted(survivors), min(70, len(survivors)))
    with (out / "removed.txt").open("w" if at == THRESHOLDS[0] else "a", encoding="utf-8") as file:
        for row in sample:
            survivor, similarity = survivors[row]
            file.write(f"=== {at} · {documents[row].corpus} · planted: {documents[row].planted} · {similarity:.4f}\n")
            file.writelines(side_by_side(documents[survivor].text, documents[row].text))
    shutil.rmtree(out / "ours")
    return kept


def side_by_side(one: str, other: str, around: int = 60, most: int = 6) -> Iterator[str]:
    """Where two texts differ, one above the other, with a little of what they share around it."""
    from difflib import SequenceMatcher

    left, right = (list(text) if " " not in text.strip() else text.split() for text in (one, other))
    joint = "" if " " not in one.strip() else " "
    yield f"  starts: {one[:100]!r}\n"
    changes = [change for change in SequenceMatcher(None, left, right, autojunk=False).get_opcodes() if change[0] != "equal"]
    for _, a, b, c, d in changes[:most]:
        before = joint.join(left[:a])[-around:]
        yield f"  …{before!r}\n    survivor: {joint.join(left[a:b])[:200]!r}\n    removed:  {joint.join(right[c:d])[:200]!r}\n"
    yield f"  {len(changes)} places, {len(left)} and {len(right)} words\n"


def kept_by_peer(name: str, python: str, out: Path, at: str, documents: int) -> list[bool]:
    found = answer_of([python, HERE / "dedup_peers.py", "keep", name, out / "corpus.jsonl", out / "kept.jsonl", at])
    with (out / "kept.jsonl").open("rb") as lines:
        rows = {orjson.loads(line)["id"] for line in lines}
    print(f"{name} at {at}: {found}", flush=True)
    return [row in rows for row in range(documents)]


# --- how fast


@main.command()
@OUT
@FILES
@PEERS
@click.option("--runs", default=5, show_default=True)
@click.option("--part", "parts", multiple=True, help="NAME=MB: how much of the corpus a slow peer gets")
def sign(out: Path, files: tuple[Path, ...], peers: tuple[str, ...], runs: int, parts: tuple[str, ...]) -> None:
    """Text to 128 permutations: MB of UTF-8 a second of CPU time in one process; and two threads against one."""
    texts = [text for some in corpora_of(files).values() for text in some]
    random.Random(17).shuffle(texts)
    limits = {name: float(size) * 1e6 for name, size in interpreters(parts).items()}
    for name in interpreters(peers):
        sizes = np.cumsum([len(text.encode()) for text in texts])
        write_lines(out / f"{name}.jsonl", texts[: int(np.searchsorted(sizes, limits.get(name, sizes[-1]))) + 1])
    column = pa.array(texts, pa.large_string())
    signatures(column.slice(0, 20))
    size = sum(len(text.encode()) for text in texts) / 1e6
    speeds: dict[str, list[float]] = {}
    scaling = []
    for _ in range(runs):
        began = time.process_time()
        signatures(column)
        speeds.setdefault("ours", []).append(size / (time.process_time() - began))
        for name, python in interpreters(peers).items():
            signed = answer_of([python, HERE / "dedup_peers.py", "sign", name, out / f"{name}.jsonl"])
            speeds.setdefault(name, []).append(signed["bytes"] / 1e6 / signed["seconds"])
        scaling.append(seconds_on(1, column) / seconds_on(2, column))
        print({name: round(found[-1], 2) for name, found in speeds.items()}, round(scaling[-1], 2), flush=True)
    print(f"{len(texts):,} documents, {size:.1f} MB; medians of {runs} interleaved runs")
    for name, found in speeds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds["ours"], found, strict=True))
        print(f"| {name} | {statistics.median(found):.2f} MB/s | {ratio:.1f} |")
    print(
        f"two threads against one, wall: {statistics.median(scaling):.2f} ({min(scaling):.2f} to {max(scaling):.2f}); load {os.getloadavg()}"
    )


def seconds_on(threads: int, column: pa.LargeStringArray) -> float:
    step = -(-len(column) // 16)
    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(signatures, [column.slice(first, step) for first in range(0, len(column), step)]))
    return time.monotonic() - began


@main.command()
@OUT
@FILES
@click.option("--gb", default=0.5, show_default=True)
@click.option("--parts", default=16, show_default=True, help="files the corpus is written to")
@click.option("--planted", default=0.1, show_default=True, help="share of near-copies, at Jaccard 0.6 to 0.98")
@click.option("--seed", default=17, show_default=True)
def corpus(out: Path, files: tuple[Path, ...], gb: float, parts: int, planted: float, seed: int) -> None:
    """A corpus resampled at word level: runs of the files' words with one in six replaced, and near-copies of earlier documents."""
    chance, words = random.Random(seed), words_of(files).tolist()
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    earlier: list[str] = []
    number = copies = 0
    for part in range(parts):
        with (out / "corpus" / f"part-{chr(ord('a') + part)}.jsonl").open("wb") as lines:
            while lines.tell() < gb * 1e9 / parts:
                if earlier and chance.random() < planted:
                    text = planted_copy(chance.choice(earlier), chance.uniform(0.6, 0.98), words, chance)
                    copies += 1
                else:
                    text = natural(words, int(chance.lognormvariate(5.7, 0.6)) + 30, chance)
                    earlier = [*earlier[-999:], text]
                lines.write(orjson.dumps({"id": number, "text": text}) + b"\n")
                number += 1
    print(f"{number:,} documents, {copies:,} of them near-copies")


def natural(words: Sequence[str], length: int, chance: random.Random) -> str:
    first = chance.randrange(len(words) - length)
    text = list(words[first : first + length])
    for place in chance.sample(range(length), length // 6):
        text[place] = chance.choice(words)
    return " ".join(text)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@PEERS
@click.option("--runs", default=5, show_default=True)
@click.option(
    "--part", "parts", multiple=True, help="NAME=FILES: how many of the corpus's files a slow peer gets; its seconds are scaled by bytes"
)
def whole(folder: Path, peers: tuple[str, ...], runs: int, parts: tuple[str, ...]) -> None:
    """Read, sign, band, verify, decide and write survivors: ours on two and on one worker, beside peers."""
    files = sorted(folder.glob("*.jsonl"))
    size = sum(file.stat().st_size for file in files)
    some = {name: files[: int(count)] for name, count in interpreters(parts).items()}
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(runs):
        for name, workers in (("ours", 2), ("ours on 1 worker", 1)):
            found.setdefault(name, []).append(ours(folder / "*.jsonl", folder.parent / "work", workers))
        for name, python in interpreters(peers).items():
            mine = some.get(name, files)
            answer = answer_of(
                [python, HERE / "dedup_peers.py", "keep", name, first_of(folder, len(mine)), folder.parent / "kept.jsonl", "0.8"]
            )
            scale = size / sum(file.stat().st_size for file in mine)
            answer |= {"seconds": answer["seconds"] * scale, "cpu": answer["cpu"] * scale}
            found.setdefault(name, []).append(answer)
        print(
            {name: [round(one[-1]["seconds"], 1), round(one[-1]["cpu"], 1)] for name, one in found.items()}, os.getloadavg()[0], flush=True
        )
    (folder.parent / "whole.json").write_text(json.dumps(found["ours"][-1]) + "\n")
    print(json.dumps(found["ours"][-1]))
    print(f"{size / 1e6:.0f} MB; medians of {runs} interleaved runs")
    for name, one in found.items():
        wall, busy = (statistics.median(run[unit] for run in one) for unit in ("seconds", "cpu"))
        ratios = [statistics.median(a[unit] / b[unit] for a, b in zip(one, found["ours"], strict=True)) for unit in ("seconds", "cpu")]
        print(f"| {name} | {wall:.1f} s | {busy:.1f} s | {ratios[0]:.1f} | {ratios[1]:.1f} | {one[-1]['kept']:,} |")


# --- how much


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def memory(folder: Path) -> None:
    """Peak memory of the whole process tree, and of the work directory, at growing parts of a corpus."""
    files = sorted(folder.glob("*.jsonl"))
    small = folder.parent / "small" / "small.jsonl"
    small.parent.mkdir(exist_ok=True)
    with files[0].open("rb") as lines, small.open("wb") as few:
        few.writelines(next(lines) for _ in range(1000))
    print("| documents | held, reading | held, near-dedup | held, writing | with pages of files | scratch | disk in all |")
    for pattern in [small, *(first_of(folder, len(files) // part) for part in (4, 2, 1))]:
        print(watched(pattern, folder.parent / "work"), flush=True)


def first_of(folder: Path, count: int) -> Path:
    return folder / f"part-[a-{chr(ord('a') + count - 1)}].jsonl"


def watched(pattern: Path, out: Path) -> str:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(HERE / "dedup_ours.py"), str(pattern), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = dict.fromkeys(("reading", "near-dedup", "writing", "with files", "scratch", "disk"), 0)
    while process.poll() is None:
        phase = "writing" if any_in(out / "survivors") else "near-dedup" if any_in(out / "scratch") else "reading"
        seen = [one for one in map(rollup, tree(process.pid)) if one]
        sizes = {
            phase: sum(one["Pss_Anon"] + one.get("Pss_Shmem", 0) for one in seen),
            "with files": sum(one["Pss"] for one in seen),
            "scratch": disk(out / "scratch"),
            "disk": disk(out),
        }
        peaks |= {name: max(peaks[name], size) for name, size in sizes.items()}
        time.sleep(0.1)
    assert process.stdout is not None
    facts = json.loads(process.stdout.read().splitlines()[-1])
    shutil.rmtree(out)
    return f"| {facts['documents']:,} | " + " | ".join(f"{peak / 1e6:,.0f} MB" for peak in peaks.values()) + " |"


def any_in(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def disk(folder: Path) -> int:
    """Bytes taken below `folder`, while files come and go."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


# --- templates


@main.command()
@OUT
@FILES
@click.option("--pages", default=200_000, show_default=True)
@click.option("--words", "length", default=240, show_default=True)
@click.option("--own", default=29, show_default=True, help="words of a page that are its own")
@click.option("--runs", default=3, show_default=True)
def templates(out: Path, files: tuple[Path, ...], pages: int, length: int, own: int, runs: int) -> None:
    """Pages of one template whose own parts keep them just below 0.8, beside natural ones of the same length."""
    chance, words = random.Random(17), words_of(files).tolist()
    one = words[1000 : 1000 + length - own]
    templated = [" ".join([*one[: length // 2], *chance.choices(words, k=own), *one[length // 2 :]]) for _ in range(pages)]
    sets = [plain_shingles(text) for text in templated[:200]]
    similar = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i]]
    print(
        f"templated pages, Jaccard of {len(similar):,} pairs: {min(similar):.3f} to {max(similar):.3f}, median {statistics.median(similar):.3f}"
    )
    write_lines(out / "templated" / "pages.jsonl", templated)
    write_lines(out / "natural" / "pages.jsonl", [natural(words, length, chance) for _ in range(pages)])
    found: dict[str, list[dict[str, Any]]] = {"natural": [], "templated": []}
    for _ in range(runs):
        for name, answers in found.items():
            answers.append(ours(out / name / "pages.jsonl", out / "work"))
        print({name: [round(one[-1]["seconds"], 1), round(one[-1]["cpu"], 1)] for name, one in found.items()}, flush=True)
    for name, answers in found.items():
        last = answers[-1]
        print(
            name,
            {unit: round(statistics.median(one[unit] for one in answers), 1) for unit in ("seconds", "cpu")},
            last["removed"],
            last["report"],
        )
    for unit in ("seconds", "cpu"):
        ratio = statistics.median(a[unit] / b[unit] for a, b in zip(found["templated"], found["natural"], strict=True))
        print(f"templated against natural, {unit}: {ratio:.2f}")


# --- a billion documents


PASSES = {
    "read": ("sha256_file", "read_unit"),
    "sign": ("_sign_live",),
    "band keys, sorted": ("_write_keys",),
    "buckets": ("_find_buckets",),
    "candidates, signatures": ("_emit", "_write_signatures", "_filter"),
    "verify by shingles": ("_write_shingles", "_verify"),
    "rare shingles": ("_count_shingles", "_write_postings", "_find_lists"),
    "decide, name survivors": ("write_decisions", "_origins_in", "_write_survivors"),
    "write survivors": ("write_survivors",),
}


@main.command()
@click.argument("measured", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--documents", default=1e9, show_default=True)
@click.option("--cores", default=64, show_default=True)
def paper(measured: Path, documents: float, cores: int) -> None:
    """What a larger corpus of the same kind would take, from the rates that `whole` measured."""
    found: Mapping[str, Any] = json.loads(measured.read_text())
    times = documents / found["documents"]
    bands = found["report"]["bands"]
    print("| pass | CPU seconds here | core-hours | hours |")
    total = counted = 0.0
    for name, tasks in PASSES.items():
        busy = sum(found["tasks"].get(task, (0, 0))[1] for task in tasks)
        counted += busy
        total += busy * times / 3600
        print(f"| {name} | {busy:.2f} | {busy * times / 3600:,.0f} | {busy * times / 3600 / cores:.2f} |")
    alone = found["cpu"] - counted
    print(f"| one process between passes | {alone:.2f} | {alone * times / 3600:,.0f} | {alone * times / 3600:.2f} |")
    print(f"| all | {found['cpu']:.2f} | {total + alone * times / 3600:,.0f} | {total / cores + alone * times / 3600:.2f} |")
    print("| what lies on disk | bytes a document | TB |")
    sizes = {
        "shards (zstd)": found["bytes of shards"] / found["documents"],
        "signatures": 512.0,
        f"band keys, {bands} x 16": 16.0 * bands,
        "maps over rows": 27.0,
    }
    for name, size in sizes.items():
        print(f"| {name} | {size:,.0f} | {size * documents / 1e12:.2f} |")


if __name__ == "__main__":
    main()
