"""Do the published rule sets decide as datatrove's filters do, where not, why, and how fast are both?

    python benchmarks/heuristics.py OUT FILE… --peer PYTHON [--documents 20000] [--timed 1500]

Draws the same number of documents from every Parquet or JSON Lines file (all of a smaller one) by the hash of their text, applies the rules that
docs/concepts/signals.md prints for each set, runs datatrove's four filters on the same texts with PYTHON (an environment that has datatrove and
spacy), and names for every difference the definition it comes from (`heuristics_rules.py`). Fails where a difference is left without a reason, or
where a plain-Python telling of either side gives another verdict than the side itself. MB is a million bytes of UTF-8, time is processor time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import click
import orjson
import polars as pl
import pyarrow as pa
import xxhash
import yaml
from heuristics_rules import FILTERS, Seen, reason
from token_parity import documents

from curation.rules import parse
from curation.signals import SIGNALS
from curation.signals.fineweb import SENTENCE_TERMINAL

ROOT = Path(__file__).parents[1]
LONGEST = 30_000  # bytes: datatrove reads 0.4 MB a second


def drawn(files: tuple[Path, ...], wanted: int) -> dict[str, list[str]]:
    """Per file the texts of lowest hash, of up to LONGEST bytes: as many of each, more where another file has fewer."""
    ranked = {}
    for path in files:
        texts = {xxhash.xxh3_128_digest(text.encode()): text for text in documents(path, "text") if len(text.encode()) <= LONGEST}
        ranked[path.parent.name] = [texts[key] for key in sorted(texts)]
    each, left, open_files = {}, wanted, sorted(ranked, key=lambda name: len(ranked[name]))
    for position, name in enumerate(open_files):
        each[name] = min(len(ranked[name]), left // (len(open_files) - position))
        left -= each[name]
    return {name: ranked[name][: each[name]] for name in ranked}


def rules() -> dict[str, list[dict[str, object]]]:
    """The steps of every rule set that the page of signals prints."""
    page = (ROOT / "docs/concepts/signals.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(# .*?)```", page, re.DOTALL)]
    return {signal["set"]: steps for steps in blocks for signal in steps[0]["add"].values() if signal.get("set") in FILTERS}


def decided(steps: list[dict[str, object]], texts: pa.LargeStringArray) -> tuple[list[bool], Counter[str]]:
    """Whether the published rules keep each text, and how many each rule is the first to drop."""
    ((name, values),) = steps[0]["add"].items()  # type: ignore[attr-defined]
    signal = SIGNALS["heuristics"]
    computed = signal.compute(signal.config.model_validate(values), texts, None)
    frame = pl.DataFrame({name: pl.Series(computed)})
    kept, by_rule = [True] * len(texts), Counter[str]()
    for step in steps[1:]:
        text = str(step["keep"])
        passed = parse(text, text, pa.schema([(name, computed.type)])).decide(frame)[0].tolist()
        by_rule[text] = sum(before and not now for before, now in zip(kept, passed, strict=True))
        kept = [before and now for before, now in zip(kept, passed, strict=True)]
    return kept, by_rule


def speed(kind: str, texts: pa.LargeStringArray) -> float:
    signal = SIGNALS["heuristics"]
    config = signal.config.model_validate({"kind": "heuristics", "set": kind})
    signal.compute(config, texts.slice(0, 10), None)
    start = time.process_time()
    signal.compute(config, texts, None)
    return time.process_time() - start


def terminal() -> tuple[str, ...]:
    spans = [[int(end, 16) for end in span.split("-")] for span in "".join(SENTENCE_TERMINAL).split()]
    return tuple(chr(point) for span in spans for point in range(span[0], span[-1] + 1))


def compare(out: Path, drawn_texts: dict[str, list[str]]) -> None:
    texts = [text for found in drawn_texts.values() for text in found]
    names = [name for name, found in drawn_texts.items() for _ in found]
    array = pa.array(texts, pa.large_string())
    ours = {kind: decided(steps, array) for kind, steps in rules().items()}
    with (out / "peer.jsonl").open("rb") as file:
        about = orjson.loads(next(file))
        print(f"datatrove {about['versions']['datatrove']}, spacy {about['versions']['spacy']}; {len(texts)} documents")
        differ: dict[str, Counter[tuple[str, str]]] = {kind: Counter() for kind in FILTERS}
        examples: dict[tuple[str, str], str] = {}
        unicode_terminal = terminal()
        dropped: dict[str, Counter[str]] = {kind: Counter() for kind in FILTERS}
        for index, line in enumerate(file):
            found = orjson.loads(line)
            seen = Seen(
                texts[index],
                found["tokens"],
                found["sentences"],
                frozenset(about["punctuation"]),
                tuple(about["terminal"]),
                unicode_terminal,
            )
            for kind, (rule, switches) in FILTERS.items():
                mine, theirs = ours[kind][0][index], found["kept"][kind]
                dropped[kind].update({"ours": not mine, "theirs": not theirs})
                if index % 20 == 0 or mine != theirs:  # plain Python is slow: every difference, and every twentieth document besides
                    told = not rule(seen, frozenset()), not rule(seen, frozenset(switches))
                    if told != (theirs, mine):
                        sys.exit(
                            f"{kind}, document {index} ({names[index]}): told {told}, decided {(theirs, mine)}: {texts[index][:200]!r}"
                        )
                if mine != theirs:
                    why = reason(kind, seen)
                    differ[kind][why, "ours keeps" if mine else "datatrove keeps"] += 1
                    examples.setdefault((kind, why), f"{names[index]}: {texts[index][:120]!r}")
    report(len(texts), ours, dropped, differ, examples)


def report(
    total: int,
    ours: dict[str, tuple[list[bool], Counter[str]]],
    dropped: dict[str, Counter[str]],
    differ: dict[str, Counter[tuple[str, str]]],
    examples: dict[tuple[str, str], str],
) -> None:
    for kind, found in differ.items():
        print(
            f"\n{kind}: ours drops {dropped[kind]['ours']}, datatrove {dropped[kind]['theirs']} of {total}; {sum(found.values())} differ, {100 * (1 - sum(found.values()) / total):.2f} % agree"
        )
        for (why, which), count in found.most_common():
            print(f"  {count:5} {which:16} {why}")
        print("  first dropped by: " + ", ".join(f"{rule} {count}" for rule, count in ours[kind][1].items() if count))
    print("\nexamples")
    for (kind, why), text in examples.items():
        print(f"  {kind}, {why}: {text}")


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--peer", required=True, type=click.Path(exists=True), help="A Python that has datatrove and spacy.")
@click.option("--documents", "wanted", default=20_000, show_default=True)
@click.option("--timed", default=1500, show_default=True, help="Documents that datatrove is timed on.")
def main(out: Path, files: tuple[Path, ...], peer: str, wanted: int, timed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = drawn(files, wanted)
    texts = sorted((text for part in found.values() for text in part), key=lambda text: xxhash.xxh3_64_intdigest(text.encode()))
    script = Path(__file__).with_name("heuristics_peers.py")
    for name, some in (("documents.jsonl", [text for part in found.values() for text in part]), ("timed.jsonl", texts[:timed])):
        (out / name).write_bytes(b"".join(orjson.dumps(text) + b"\n" for text in some))
    subprocess.run([peer, script, out / "timed.jsonl", out / "seconds.jsonl", "--timed", str(timed)], check=True)
    theirs = {one["filter"]: one["seconds"] for one in map(orjson.loads, (out / "seconds.jsonl").read_bytes().splitlines())}
    sample = pa.array(texts[:timed], pa.large_string())
    size = sum(len(text.encode()) for text in texts[:timed]) / 1e6
    print(f"speed over {timed} documents, {size:.1f} MB, one thread, MB a second: ours (median of 5), datatrove (once)")
    for kind in FILTERS:
        seconds = sorted(speed(kind, sample) for _ in range(5))[2]
        print(f"  {kind:18} {size / seconds:7.1f} {size / theirs[kind]:7.2f}   {theirs[kind] / seconds:.0f} times")
    subprocess.run([peer, script, out / "documents.jsonl", out / "peer.jsonl"], check=True)
    compare(out, found)


if __name__ == "__main__":
    main()
