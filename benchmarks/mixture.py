"""How even, full and whole is a mixture planned here, beside the ways other tools mix and pack? And how many cuts does a fuller sequence cost?

    python benchmarks/mixture.py TOKENIZER COMPONENT… [--tokens 6e6] [--peers PEERS/bin/python]

COMPONENT is `name:weight:FILE,FILE…`, or a FILE alone, which is a component of weight 1. Reads Parquet and JSON Lines (plain, .gz, .zst). Every document is encoded by
the project's own encoder, with the first control token of the tokenizer as its end. All methods get the same documents in the same shuffled order (their own
shuffles apart), the same weights and a budget that leaves no component exhausted.

First table, for each sequence length and method, over the sequences as they would be trained on:

- *uneven*: sequences, largest |sequences of k among the first t - t * k's share of all| over every t and component k, the share being the realised one; a sequence that
  several components share counts for each by its tokens;
- *off the weights*: the same in tokens against the share asked for, |tokens of k - weight * tokens| / sequence length;
- *share*: percentage points, largest |share of the tokens - weight| at the end;
- *fill*: share of the positions that hold a token; *dropped*: tokens thrown away, per million planned;
- cuts per 1,000 documents and per sequence (a cut is a place inside a document where a sequence ends or what is planned ends), and the share of the documents
  no longer than a sequence that are cut: those need not have been.

Second table: cuts by `fill`, as a share of those of concatenate-and-chunk over the same documents, which always fills 100 %.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import xxhash
from token_parity import documents as texts_of

from curation.text.tokenizer import Encoder, TokenizerConfig, parsed, resolve
from mixing import validated
from mixing.draws import Documents, shuffled
from mixing.packing import Pieces, pack
from mixing.plan import Mixture, plan

Integers = npt.NDArray[np.int64]
FILLS = (0, 0.98, 0.99, 0.999, 1)
BUFFER = 1000  # documents that wait for best-fit cropping


class Component(NamedTuple):
    name: str
    weight: float
    files: tuple[Path, ...]


class Sequences(NamedTuple):
    """Sequences in the order of training: the spans of the i-th are `[first_span[i], first_span[i + 1])`. `dropped` tokens were thrown away."""

    first_span: Integers  # one more than there are sequences
    document: Integers
    start: Integers
    length: Integers
    dropped: int = 0


def component_of(written: str) -> Component:
    name, _, rest = written.partition(":")
    weight, _, files = rest.partition(":")
    if files:
        return Component(name, float(weight), tuple(Path(file) for file in files.split(",")))
    file = Path(written)
    return Component(f"{file.absolute().parent.name}-{file.name.split('.')[0]}", 1.0, (file,))


def encoded(tokenizer: Path, components: list[Component], column: str) -> tuple[Documents, Integers]:
    """Every document's component, tokens and content hash; and the number of the file it came from."""
    found = resolve(TokenizerConfig(path=str(tokenizer), eos=False))
    end = next(token for token in parsed(found.read(), tokenizer).get_added_tokens_decoder().values() if token.special).content
    encoder = Encoder.open(resolve(TokenizerConfig(path=str(tokenizer), eos=end)))
    rows: list[tuple[int, int, int, int, int]] = []
    number = 0
    for index, component in enumerate(components):
        for file in component.files:
            texts = list(texts_of(file, column))
            _, ends = encoder.encode(texts)
            for text, tokens in zip(texts, np.diff(ends).tolist(), strict=True):
                digest = xxhash.xxh3_128_intdigest(text.encode())
                rows.append((digest >> 64, digest & (2**64 - 1), index, tokens, number))
            number += 1
    content = np.array([row[:2] for row in rows], np.uint64)
    component_column, tokens_column, file_column = (np.array([row[place] for row in rows], np.int64) for place in (2, 3, 4))
    return Documents(np.arange(len(rows), dtype=np.uint64), content, component_column.astype(np.uint16), tokens_column), file_column


def planned(components: list[Component], documents: Documents, length: int, fill: float, tokens: int, seed: int) -> Sequences:
    """What this project plans."""
    names = {component.name: "true" for component in components}
    stage = {"name": "adapt", "tokens": tokens, "weights": {component.name: component.weight for component in components}}
    mixture = validated(Mixture, {"sequence_length": length, "fill": fill, "components": names, "stages": [stage]}, "mixture")
    (made,) = plan(mixture, documents, seed).stages
    first_span = np.append(made.first_span.astype(np.int64), len(made.document))
    return Sequences(first_span, made.document.astype(np.int64), made.start.astype(np.int64), made.length.astype(np.int64))


def chunked(order: Integers, tokens: Integers, length: int) -> Sequences:
    """Documents joined and cut every `length` tokens; the rest after the last full sequence is dropped."""
    ends = np.cumsum(tokens[order])
    full = int(ends[-1]) // length * length if len(ends) else 0
    edges = np.unique(np.concatenate([ends[ends < full], np.arange(0, full + 1, length)]))
    place = np.searchsorted(ends, edges[:-1], side="right")
    begins = ends[place] - tokens[order[place]]
    first_span = np.searchsorted(edges, np.arange(0, full + 1, length))
    return Sequences(first_span, order[place], edges[:-1] - begins, np.diff(edges), int(ends[-1]) - full if len(ends) else 0)


def taken(sequences: Sequences, chosen: Integers) -> Sequences:
    """Some of the sequences, in the order given."""
    counts = np.diff(sequences.first_span)[chosen]
    first_span = np.concatenate([[0], np.cumsum(counts)])
    spans = np.repeat(sequences.first_span[chosen] - first_span[:-1], counts) + np.arange(first_span[-1])
    return Sequences(first_span, sequences.document[spans], sequences.start[spans], sequences.length[spans], sequences.dropped)


def joined(parts: list[Sequences]) -> Sequences:
    """One after the other."""
    firsts, base = [np.zeros(1, np.int64)], 0
    for part in parts:
        firsts.append(part.first_span[1:] + base)
        base += len(part.document)
    document, start, length = (np.concatenate([(part.document, part.start, part.length)[column] for part in parts]) for column in range(3))
    return Sequences(np.concatenate(firsts), document, start, length, sum(part.dropped for part in parts))


def from_spans(rows: list[list[tuple[int, int, int]]], dropped: int = 0) -> Sequences:
    spans = np.array([span for row in rows for span in row], np.int64).reshape(-1, 3)
    first_span = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(first_span, spans[:, 0], spans[:, 1], spans[:, 2], dropped)


def best_fit_packed(order: Integers, tokens: Integers, length: int) -> Sequences:
    """Best-fit packing (arXiv 2404.10830): documents cut every `length` tokens, the pieces by falling length each into the fullest sequence it fits; padded."""
    pieces = [(start, document) for document in order.tolist() for start in range(0, int(tokens[document]), length)]
    sized = sorted(((min(length, int(tokens[document]) - start), start, document) for start, document in pieces), reverse=True)
    rows: list[list[tuple[int, int, int]]] = []
    rooms: list[int] = []  # the free rooms there are, ascending
    by_room: dict[int, list[int]] = {}
    for size, start, document in sized:
        place = bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del rooms[place]
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append((document, start, size))
        room -= size
        if room:
            if not by_room.setdefault(room, []):
                insort(rooms, room)
            by_room[room].append(row)
    return from_spans(rows)


def best_fit_cropped(stream: Iterator[int], tokens: Integers, length: int, count: int) -> Sequences:
    """Best fit with cropping, as small trainers do it: of the waiting documents the longest that fits, again and again; then the shortest is cut to fill, and its rest dropped."""
    waiting: list[tuple[int, int]] = []
    rows: list[list[tuple[int, int, int]]] = []
    dropped = 0
    for _ in range(count):
        row, room = [], length
        while room:
            while len(waiting) < BUFFER and (document := next(stream, None)) is not None:
                insort(waiting, (int(tokens[document]), document))
            if not waiting:
                return from_spans(rows, dropped)
            place = bisect_right(waiting, (room, len(tokens)))
            size, document = waiting.pop(max(place - 1, 0))
            row.append((document, 0, min(size, room)))
            dropped += max(0, size - room)
            room -= min(size, room)
        rows.append(row)
    return from_spans(rows, dropped)


def by_token_deficit(orders: list[Integers], tokens: Integers, weights: list[float]) -> Iterator[int]:
    """Documents of all components, the next from the one whose tokens lag most behind its weight. Ends where one is exhausted."""
    given, place = [0] * len(orders), [0] * len(orders)
    while True:
        total = sum(given)
        k = max(range(len(orders)), key=lambda k: weights[k] * total - given[k])
        if place[k] == len(orders[k]):
            return
        document = int(orders[k][place[k]])
        place[k] += 1
        given[k] += int(tokens[document])
        yield document


class Measured(NamedTuple):
    uneven: float
    off_weights: float
    share: float
    fill: float
    dropped: float
    cuts_per_thousand: float
    cuts_per_sequence: float
    needless: float


def measured(sequences: Sequences, documents: Documents, weights: list[float], length: int) -> Measured:
    count = len(sequences.first_span) - 1
    sequence = np.repeat(np.arange(count), np.diff(sequences.first_span))
    component = documents.component[sequences.document].astype(np.int64)
    cell = np.bincount(sequence * len(weights) + component, weights=sequences.length, minlength=count * len(weights)).reshape(count, -1)
    assert (cell.sum(axis=1) <= length).all()
    parts = np.cumsum(cell / cell.sum(axis=1, keepdims=True), axis=0)
    uneven = np.abs(parts - np.arange(1, count + 1)[:, None] * parts[-1] / count).max()
    tokens = np.cumsum(cell, axis=0)
    total = tokens.sum(axis=1, keepdims=True)
    off = np.abs(tokens - total * np.array(weights)).max() / length
    cuts, cut = cuts_of(sequences, documents.tokens)
    read = np.unique(sequences.document)
    short = read[documents.tokens[read] <= length]
    return Measured(
        float(uneven),
        float(off),
        float(np.abs(tokens[-1] / total[-1] - np.array(weights)).max() * 100),
        float(total[-1, 0] / (count * length)),
        sequences.dropped / float(total[-1, 0]) * 1e6,
        cuts / len(read) * 1000,
        cuts / count,
        len(np.intersect1d(short, cut)) / len(short) if len(short) else 0.0,
    )


def cuts_of(sequences: Sequences, tokens: Integers) -> tuple[int, Integers]:
    """How many places inside documents a sequence, or what is planned, ends at; and the documents that have one."""
    stride = np.int64(int(tokens.max()) + 1)
    ends = sequences.start + sequences.length
    inside = np.concatenate(
        [(sequences.document * stride + places)[(places > 0) & (places < tokens[sequences.document])] for places in (sequences.start, ends)]
    )
    places = np.unique(inside)
    return len(places), np.unique(places // stride)


def side_by_side(
    components: list[Component], documents: Documents, length: int, tokens: int, seed: int, peers: Path | None
) -> tuple[dict[str, Measured], str]:
    """Every method at one sequence length and seed; and the versions of the peers."""
    total = sum(component.weight for component in components)
    weights = [component.weight / total for component in components]
    orders = [
        shuffled(np.flatnonzero(documents.component == k).astype(np.uint32), documents.content, [seed, component.name, 0]).astype(np.int64)
        for k, component in enumerate(components)
    ]
    found = {f"this project, fill {fill:g}": planned(components, documents, length, fill, tokens, seed) for fill in (0.99, 1)}
    chunks = [chunked(order, documents.tokens, length) for order in orders]
    firsts = np.cumsum([0, *(len(chunk.first_span) - 1 for chunk in chunks)])
    all_chunks = joined(chunks)
    count = tokens // length
    versions = ""
    if peers is not None:
        sizes = [float(documents.tokens[order].mean()) for order in orders]
        rates = [weight / size for weight, size in zip(weights, sizes, strict=True)]
        task = {
            "sequence_length": length,
            "sequences": count,
            "seed": seed,
            "weights": weights,
            "chunks": np.diff(firsts).tolist(),
            "documents": [len(order) for order in orders],
            "document_weights": [rate / sum(rates) for rate in rates],
        }
        answers, versions = asked(peers, task)
        for name, key in (
            ("MosaicML streaming", "streaming"),
            ("Megatron blend", "megatron"),
            ("HF interleave, sequences", "hf_sequences"),
        ):
            k, number = answers[key][:count].T
            found[name] = taken(all_chunks, firsts[k] + number)
        for name, key in (("HF interleave, documents", "hf_documents"), ("HF interleave, by length", "hf_documents_by_length")):
            k, number = answers[key].T
            ends = np.cumsum([0, *(len(order) for order in orders)])
            mixed = np.concatenate(orders)[ends[k] + number]
            batches = [chunked(mixed[first : first + 1000], documents.tokens, length) for first in range(0, len(mixed), 1000)]
            made = joined(batches[: 1 + int(np.searchsorted(np.cumsum([len(batch.first_span) - 1 for batch in batches]), count))])
            found[name] = taken(made, np.arange(min(count, len(made.first_span) - 1)))
    drawn = [
        order[: 1 + int(np.searchsorted(np.cumsum(documents.tokens[order]), weight * tokens))]
        for order, weight in zip(orders, weights, strict=True)
    ]
    packed = joined([best_fit_packed(order, documents.tokens, length) for order in drawn])
    found["best-fit packing, shuffled"] = taken(packed, np.random.default_rng(seed).permutation(len(packed.first_span) - 1))
    found["best-fit cropping"] = best_fit_cropped(by_token_deficit(orders, documents.tokens, weights), documents.tokens, length, count)
    return {name: measured(sequences, documents, weights, length) for name, sequences in found.items()}, versions


def asked(peers: Path, task: dict[str, Any]) -> tuple[dict[str, Integers], str]:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "task.json").write_text(json.dumps(task))
        script = Path(__file__).with_name("mixture_peers.py")
        command = [str(peers), "-W", "ignore", str(script), f"{scratch}/task.json", f"{scratch}/out.npz"]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        with np.load(f"{scratch}/out.npz") as columns:
            return dict(columns), answer.stdout.splitlines()[-1]


class Cost(NamedTuple):
    """What one fill costs over some documents: cuts here, cuts of concatenate-and-chunk, cuts that no packing avoids, and the fill that was reached."""

    cuts: int
    chunk_cuts: int
    unavoidable: int
    fill: float


def cost(order: Integers, tokens: Integers, length: int, fill: float) -> Cost:
    nothing = np.zeros(len(order), np.uint32)
    pieces = Pieces(order.astype(np.uint32), nothing, tokens[order].astype(np.uint32), nothing.astype(np.uint16))
    packed = pack(pieces, length, fill, np.zeros(len(tokens), np.uint8))
    ends = np.cumsum(tokens[order])
    chunk_cuts = len(np.setdiff1d(np.arange(length, int(ends[-1]), length), ends))
    least = int(((tokens[order] - 1) // length).sum())
    return Cost(packed.cut_long + packed.cut_to_fill, chunk_cuts, least, float(ends[-1] / (len(packed.first_span) * length)))


def curve(components: list[Component], documents: Documents, file: Integers, lengths: tuple[int, ...], seed: int) -> None:
    """A row for each component, one for all of them, and one for each file of a component of several."""
    groups: list[tuple[str, list[npt.NDArray[np.bool_]]]] = [(one.name, [documents.component == k]) for k, one in enumerate(components)]
    groups.append(("all components", [mask for _, masks in groups for mask in masks]))
    number = 0
    for component in components:
        for path in component.files:
            if len(component.files) > 1:
                groups.append((f"{component.name}: {path.parent.name}", [file == number]))
            number += 1
    print(
        "\n| documents | median tokens | length | chunk: cuts/sequence | unavoidable | "
        + " | ".join(f"fill {fill:g}" for fill in FILLS)
        + " |"
    )
    print("|---|---|---|---|---|" + "---|" * len(FILLS))
    for name, masks in groups:
        orders = [shuffled(np.flatnonzero(mask).astype(np.uint32), documents.content, [seed, name, 0]).astype(np.int64) for mask in masks]
        total = sum(int(documents.tokens[order].sum()) for order in orders)
        median = float(np.median(np.concatenate([documents.tokens[order] for order in orders])))
        for length in lengths:
            cells = []
            for fill in FILLS:
                costs = [cost(order, documents.tokens, length, fill) for order in orders]
                cuts, chunk_cuts, least = (sum(one[place] for one in costs) for place in (0, 1, 2))
                reached = total / sum(int(documents.tokens[order].sum()) / one.fill for order, one in zip(orders, costs, strict=True))
                cells.append(f"{cuts / max(chunk_cuts, 1):.3f} ({reached:.2%})")
            print(
                f"| {name} | {median:,.0f} | {length} | {chunk_cuts / (total / length):.2f} | {least / max(chunk_cuts, 1):.3f} | {' | '.join(cells)} |",
                flush=True,
            )


@click.command()
@click.argument("tokenizer", type=click.Path(exists=True, path_type=Path))
@click.argument("written", nargs=-1, required=True, metavar="COMPONENT…")
@click.option("--text", "column", default="text", show_default=True, help="The column that holds the text.")
@click.option("--tokens", type=float, help="The budget; without it three tenths of what the scarcest component allows.")
@click.option("--length", "lengths", type=int, multiple=True, default=(512, 2048, 8192), show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option(
    "--peers",
    type=click.Path(exists=True, path_type=Path),
    help="The Python of an environment with mosaicml-streaming, megatron-core and datasets.",
)
def main(
    tokenizer: Path, written: tuple[str, ...], column: str, tokens: float | None, lengths: tuple[int, ...], seeds: int, peers: Path | None
) -> None:
    components = [component_of(one) for one in written]
    if len({component.name for component in components}) < len(components):
        raise click.UsageError(f"components need names of their own, found {', '.join(component.name for component in components)}")
    documents, file = encoded(tokenizer, components, column)
    sizes = [int(documents.tokens[documents.component == k].sum()) for k in range(len(components))]
    total = sum(component.weight for component in components)
    budget = int(tokens or 0.3 * min(size * total / component.weight for size, component in zip(sizes, components, strict=True)))
    for component, size in zip(components, sizes, strict=True):
        print(f"{component.name}: weight {component.weight / total:g}, {size:,} tokens")
    print(f"{budget:,} tokens planned; medians of {seeds} seeds")
    for length in lengths:
        runs = [side_by_side(components, documents, length, budget, seed, peers) for seed in range(seeds)]
        print(f"\n{length} tokens a sequence, {budget // length:,} sequences; {runs[0][1]}\n")
        print(
            "| | uneven | off the weights | share, points | fill | dropped ppm | cuts/1,000 documents | cuts/sequence | short documents cut |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name in runs[0][0]:
            row = Measured(*(statistics.median(column) for column in zip(*(found[name] for found, _ in runs), strict=True)))
            worst = max(found[name].uneven for found, _ in runs)
            print(
                f"| {name} | {row.uneven:.2f} (at most {worst:.4f}) | {row.off_weights:.2f} | {row.share:.3f} | {row.fill:.2%} | {row.dropped:,.0f} "
                f"| {row.cuts_per_thousand:.1f} | {row.cuts_per_sequence:.3f} | {row.needless:.2%} |",
                flush=True,
            )
    curve(components, documents, file, lengths, 0)


if __name__ == "__main__":
    main()
