"""Which n-gram length and which share find planted items, and flag nothing else? Beside lm-evaluation-harness and datatrove.

    python benchmarks/contamination.py accuracy ITEMS.parquet PLANTED.parquet [--chinese HOSTS.parquet] [--peer PEER/bin/python]
    python benchmarks/contamination.py corpora ITEMS.parquet CORPUS… [--show 30]
    python benchmarks/contamination.py speed ITEMS.parquet CORPUS… [--peer PEER/bin/python]
    python benchmarks/contamination.py memory CORPUS [--items 1000000]

ITEMS: `task, id, question, choices, answer_text, lang`. PLANTED: `id, text, kind, question_id`: documents that hold a question in the disguise `kind`, none for `clean`, an answer alone for
`option_only`. `accuracy` indexes every item, looks for the length and share on the planted documents of one half of the items (by xxh3 of the id) and prints the figures of the other half.
`--english` and `--chinese`: questions of all lengths are planted here, in seven disguises, one text each. `corpora` says how many documents that nobody planted anything in are flagged, and prints passages for
reading. `memory` makes items of its own and measures building the index and two processes that use it on CORPUS.
"""

from __future__ import annotations

import gzip
import html
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import zstandard

from curation.engine.memory import held
from curation.signals import SIGNALS
from curation.text.words import text_buffers

SIGNAL = SIGNALS["contamination"]
LENGTHS, SHARES = (5, 6, 7, 8, 9, 10, 11, 12, 13), (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
NEGATIVES = ("clean", "option_only")
MUST = ("verbatim_full", "verbatim_question", "case_punct", "whitespace", "html")
SEED = 17
UNSPACED = re.compile(r"[A-Za-z0-9.]+|.", re.DOTALL)
MARKS = re.compile(r"[^\w ]")


class Planted(NamedTuple):
    id: str
    text: str
    kind: str
    item: str | None

    @property
    def reported(self) -> bool:
        return xxhash.xxh3_64_intdigest((self.item or self.id).encode()) % 2 == 1


def read_items(path: Path) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return items


def read_texts(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        texts: list[str] = pq.read_table(path, columns=["text"])["text"].to_pylist()
        return texts
    opened: Any = {".zst": zstandard.open, ".gz": gzip.open}.get(path.suffix, open)
    with opened(path, "rb") as lines:
        return [orjson.loads(line)["text"] for line in lines.read().split(b"\n") if line.strip()]


def index(items: Iterable[dict[str, Any]], folder: Path, **settings: Any) -> Any:
    """Trains the signal on items; its configuration."""
    config = SIGNAL.config.model_validate({"kind": "contamination", "against": "x", **settings})
    records = (
        {
            "": f"items#{n}",
            "task": one["task"],
            "id": one["id"],
            "question": one["question"],
            "choices": orjson.dumps(one["choices"]).decode(),
        }
        for n, one in enumerate(items)
    )
    folder.mkdir()
    SIGNAL.train(config, {"against": pa.array([orjson.dumps(one).decode() for one in records], pa.large_string())}, folder, SEED)
    return config


def values(config: Any, texts: list[str], folder: Path) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = SIGNAL.compute(config, pa.array(texts, pa.large_string()), folder).to_pylist()
    return found


def shares(config: Any, texts: list[str], folder: Path) -> npt.NDArray[np.float64]:
    return np.array([0.0 if value is None else value["share"] for value in values(config, texts, folder)])


# --- accuracy


def plant(questions: list[dict[str, Any]], hosts: list[str], language: str) -> list[Planted]:
    """Every question, short ones too, in one host and in one of seven disguises by turns, and as many hosts without."""
    rng = random.Random(SEED)
    parts = [word for host in hosts[:200] for word in (host.replace("\n", "") if language == "zh" else host.split())]
    cut, join = (UNSPACED.findall, "") if language == "zh" else (str.split, " ")

    def half(text: str) -> str:
        return join.join(cut(text)[: len(cut(text)) // 2])

    disguises: dict[str, Callable[[str], str]] = {
        "verbatim_question": lambda text: f"\n{text}\n",
        "running_text": lambda text: f" {text} ",
        "case_punct": lambda text: "\n" + MARKS.sub(lambda _: rng.choice("，。 、;,."), text.upper()) + "\n",
        "whitespace": lambda text: f"\n{join.join(rng.choice(['', '', ' ', '  ']) + part for part in cut(text))}\n",
        "html": lambda text: f"<p>{html.escape(text[:8])}<b>{html.escape(text[8:12])}</b>{html.escape(text[12:])}</p>",
        "few_words": lambda text: f"\n{join.join(rng.choice(parts) if rng.random() < 0.1 else part for part in cut(text))}\n",
        "first_half": lambda text: f"\n{half(text)}\n",
    }
    planted = []
    for number, one in enumerate(questions):
        kind = list(disguises)[number % len(disguises)]
        before, behind = hosts[rng.randrange(len(hosts))], hosts[rng.randrange(len(hosts))]
        planted.append(Planted(f"{language}{number}", f"{before}{disguises[kind](one['question'])}{behind}", kind, one["id"]))
    return planted + [Planted(f"clean{number}", hosts[rng.randrange(len(hosts))], "clean", None) for number in range(len(questions))]


def rates(planted: list[Planted], flagged: npt.NDArray[np.bool_]) -> dict[str, float]:
    """By kind the share of documents flagged."""
    kinds = sorted({one.kind for one in planted}, key=lambda kind: (kind in NEGATIVES, kind not in MUST, kind))
    return {kind: float(np.mean([flag for one, flag in zip(planted, flagged, strict=True) if one.kind == kind])) for kind in kinds}


def grid(items: list[dict[str, Any]], planted: list[Planted], room: Path) -> dict[int, npt.NDArray[np.float64]]:
    """By n-gram length the share of every planted document."""
    texts = [one.text for one in planted]
    found = {}
    for length in LENGTHS:
        folder = room / f"{len(list(room.iterdir()))}"
        found[length] = shares(index(items, folder, ngram=length), texts, folder)
    return found


def print_rates(title: str, rows: dict[str, dict[str, float]]) -> None:
    kinds = list(next(iter(rows.values())))
    click.echo(f"\n{title}\n| | {' | '.join(kinds)} |\n|---|{'---:|' * len(kinds)}")
    for name, row in rows.items():
        click.echo(f"| {name} | {' | '.join(f'{row[kind]:.3f}' for kind in kinds)} |")


def peer_flags(python: Path, peer: str, items: list[dict[str, Any]], documents: list[dict[str, str]]) -> tuple[set[str], float]:
    with TemporaryDirectory() as room:
        paths = [Path(room) / name for name in ("items.jsonl", "documents.jsonl")]
        asked = [{"question": one["question"], "answer": one["answer_text"]} for one in items]
        for path, records in zip(paths, (asked, documents), strict=True):
            path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in records))
        command = [str(python), str(Path(__file__).with_name("contamination_peers.py")), peer, *map(str, paths)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(ran.stdout.splitlines()[-1])
    return set(answer["flagged"]), answer["seconds"]


def compare(name: str, items: list[dict[str, Any]], planted: list[Planted], peers: Iterable[str], python: Path | None) -> None:
    """The whole grid on the half that the settings are chosen on, and the lengths of interest on the other."""
    chosen, reported = ([one for one in planted if one.reported == half] for half in (False, True))
    with TemporaryDirectory() as room:
        on_chosen, on_reported = (grid(items, half, Path(room)) for half in (chosen, reported))
    print_rates(
        f"{name}: the half to choose on, {len(chosen)} documents",
        {f"n {length}, share {share}": rates(chosen, on_chosen[length] >= share) for length in LENGTHS for share in SHARES},
    )
    rows = {f"n {length}, share {share}": rates(reported, on_reported[length] >= share) for length in LENGTHS for share in (0.3, 0.5)}
    rows |= {f"n {length}, any": rates(reported, on_reported[length] > 0) for length in LENGTHS}
    for peer in peers if python else ():
        assert python is not None
        flagged, _ = peer_flags(python, peer, items, [{"id": one.id, "text": one.text} for one in reported])
        rows[peer] = rates(reported, np.array([one.id in flagged for one in reported]))
    print_rates(f"{name}: the other half, {len(reported)} documents", rows)


@click.group(help=__doc__.splitlines()[0] if __doc__ else None)
def main() -> None:
    pass


EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


@main.command()
@click.argument("items", type=EXISTING)
@click.argument("planted", type=EXISTING)
@click.option(
    "--without", default="pubmedqa", show_default=True, help="a task whose items stand in the hosts, and so in documents called clean"
)
@click.option("--english", type=EXISTING, multiple=True, help="hosts")
@click.option("--chinese", type=EXISTING, multiple=True, help="hosts")
@click.option("--peer", type=EXISTING)
def accuracy(items: Path, planted: Path, without: str, english: tuple[Path, ...], chinese: tuple[Path, ...], peer: Path | None) -> None:
    every = [one for one in read_items(items) if one["task"] != without]
    documents = [Planted(one["id"], one["text"], one["kind"], one["question_id"]) for one in pq.read_table(planted).to_pylist()]
    compare("planted", every, documents, ("lm-eval", "datatrove", "datatrove-default"), peer)
    for language, paths in (("en", english), ("zh", chinese)):
        if paths:
            hosts = [text for path in paths for text in read_texts(path)]
            questions = [one for one in every if one["lang"] == language]
            compare(f"planted here, {language}", every, plant(questions, hosts, language), ("lm-eval", "datatrove"), peer)


# --- corpora


@main.command()
@click.argument("items", type=EXISTING)
@click.argument("corpora", nargs=-1, required=True, type=EXISTING)
@click.option("--show", default=30, show_default=True)
def corpora(items: Path, corpora: tuple[Path, ...], show: int) -> None:
    every = read_items(items)
    question = {one["id"]: one["question"] for one in every}
    flagged = []
    with TemporaryDirectory() as room:
        configs = {length: index(every, Path(room) / str(length), ngram=length) for length in LENGTHS}
        default = index(every, Path(room) / "default")
        click.echo(f"| corpus | documents |{''.join(f' n {n}, any / 0.3 / 0.5 |' for n in LENGTHS)} defaults, 0.3 / 0.5 |")
        for path in corpora:
            texts = read_texts(path)
            cells = []
            for length, config in configs.items():
                found = shares(config, texts, Path(room) / str(length))
                cells.append(f"{(found > 0).sum()} / {(found >= 0.3).sum()} / {(found >= 0.5).sum()}")
            rows = values(default, texts, Path(room) / "default")
            by_share = [sum(row is not None and row["share"] >= share for row in rows) for share in (0.3, 0.5)]
            click.echo(f"| {path.parent.name} | {len(texts)} | {' | '.join(cells)} | {by_share[0]} / {by_share[1]} |")
            flagged += [
                (path.parent.name, text, row) for text, row in zip(texts, rows, strict=True) if row is not None and row["share"] >= 0.2
            ]
    random.Random(SEED).shuffle(flagged)
    others = [one for one in flagged if one[2]["benchmark"] != "pubmedqa"]
    for name, text, row in [*others[:show], *flagged[: max(0, show - len(others))]]:
        begin, end = row["start"], row["start"] + row["length"]
        click.echo(
            f"\n{name}: {row['share']:.2f} of {row['item']}, options {row['options']}\n  there {text[begin:end]!r}\n  item  {question[row['item']]!r}"
        )


# --- speed


@main.command()
@click.argument("items", type=EXISTING)
@click.argument("corpora", nargs=-1, required=True, type=EXISTING)
@click.option("--peer", type=EXISTING)
@click.option("--runs", default=5, show_default=True)
def speed(items: Path, corpora: tuple[Path, ...], peer: Path | None, runs: int) -> None:
    every = read_items(items)
    with TemporaryDirectory() as room:
        folder = Path(room) / "index"
        config = index(every, folder)
        for path in corpora:
            texts = pa.array(read_texts(path), pa.large_string())
            data = text_buffers(texts)[1]
            megabytes = (data[-1] - data[0]) / 1e6
            SIGNAL.compute(config, texts, folder)
            seconds = []
            for _ in range(runs):
                began = time.process_time()
                SIGNAL.compute(config, texts, folder)
                seconds.append(time.process_time() - began)
            click.echo(f"{path.parent.name}: {megabytes / np.median(seconds):.0f} MB/s/core ({megabytes:.1f} MB)")
            some = texts.to_pylist()[:300]
            for name in ("lm-eval", "datatrove") if peer else ():
                assert peer is not None
                _, taken = peer_flags(peer, name, every, [{"id": str(n), "text": text} for n, text in enumerate(some)])
                click.echo(f"  {name}: {sum(len(text.encode()) for text in some) / 1e6 / taken:.2f} MB/s/core")


# --- memory


def made_items(count: int) -> Iterator[dict[str, Any]]:
    """Items of 40 words on average, of a Zipf vocabulary of 200,000."""
    rng = np.random.default_rng(SEED)
    for begin in range(0, count, 10_000):
        sizes = rng.integers(10, 71, min(10_000, count - begin))
        words = np.minimum(rng.zipf(1.2, int(sizes.sum())), 200_000)
        for number, part in enumerate(np.split(words, np.cumsum(sizes)[:-1])):
            text = " ".join(f"w{word:x}" for word in part.tolist())
            yield {
                "task": f"made{(begin + number) % 100}",
                "id": str(begin + number),
                "question": text,
                "choices": ["wa wb", "wc", "wd we", "wf"],
            }


def _build(count: int, folder: Path, answers: Any) -> None:
    import resource

    began = time.monotonic()
    index(made_items(count), folder)
    answers.put((time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def _use(folder: Path, corpus: Path, answers: Any, go_on: Any) -> None:
    config = SIGNAL.config.model_validate({"kind": "contamination", "against": "x"})
    items = [one["question"] + " and more" for one in made_items(10_000)]
    found = sum(value is not None and value["share"] == 1 for value in values(config, items, folder))
    texts = pa.array(read_texts(corpus), pa.large_string())
    seconds = []
    for _ in range(4):  # the first maps the index
        began = time.process_time()
        SIGNAL.compute(config, texts, folder)
        seconds.append(time.process_time() - began)
    answers.put((texts.nbytes / 1e6 / np.median(seconds[1:]), found))
    go_on.wait()


@main.command()
@click.argument("corpus", type=EXISTING)
@click.option("--items", "count", default=1_000_000, show_default=True)
def memory(corpus: Path, count: int) -> None:
    context = get_context("spawn")
    answers, go_on = context.Queue(), context.Event()
    with TemporaryDirectory() as room:
        folder = Path(room) / "index"
        builder = context.Process(target=_build, args=(count, folder, answers))
        builder.start()
        seconds, peak = answers.get()
        builder.join()
        size = sum(path.stat().st_size for path in folder.iterdir())
        keys = len(np.load(folder / "keys.npy", mmap_mode="r"))
        click.echo(
            f"{count:,} items, {keys:,} n-grams: built in {seconds:.0f} s, peak {peak / 1e9:.2f} GB (texts included), on disk {size / 1e9:.2f} GB"
        )
        users = [context.Process(target=_use, args=(folder, corpus, answers, go_on)) for _ in range(2)]
        for user in users:
            user.start()
        told = [answers.get() for _ in users]
        click.echo(f"two processes: {', '.join(f'{rate:.0f} MB/s/core, {found:,} items found' for rate, found in told)}")
        click.echo(f"  together {held([user.pid for user in users if user.pid]) / 1e9:.2f} GB besides the mapped index")
        go_on.set()
        for user in users:
            user.join()


if __name__ == "__main__":
    sys.exit(main())
