"""A new mixture from the documents that a manifest stores: without their text, and also in the middle of a run.

In: a manifest, a mixture, and which component each pool row belongs to. Out: another manifest, whose header names the first as its `parent`. Token files,
tokenizer and pool are those of the parent, hard-linked where the file system can; plan and header are new. Only documents in `tokens/` can be planned.

With `consumed` the run goes on: of the parent's plan that many sequences have been trained. No (document, epoch, token range) of them, nor of what the parent
itself goes on from, is planned again: a document that was read in part opens its component's draws with its tail, as the same visit; then come those visited least, in the
cursor's order; earlier visits and tokens count for `max_epochs`. `fresh` and `fixed` draws shuffle under the number of sequences consumed, so that no
round repeats an earlier one. A stage that has the name of one of the parent's goes on: what was trained of it counts against its `tokens`,
and its weights share what is left. If nothing of mixture and seed has changed, what is left is exactly the rest of the parent's plan.

Cost: the pool is read column by column, a file at a time; memory is 2 bytes a pool row, 60 a stored document, and the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mixing import UserError
from mixing.draws import ComponentDraws, Documents, Shortage, joined, shuffled
from mixing.files import write_plan
from mixing.findings import Stored
from mixing.history import History, after, remembers, stored
from mixing.manifest import Holdout, Manifest, StageArrays
from mixing.packing import Pieces, interleave
from mixing.plan import Mixture, Plan, Stage, StagePlan, distinct, plan, simulated
from mixing.strategies.shares import PARTS
from mixing.write import ManifestWriter


class Assigned(NamedTuple):
    """The pool under the new mixture: a component for each row (65535: none), and per source how many kept documents have one."""

    component: npt.NDArray[np.uint16]
    kept: dict[str, int]


class Named(NamedTuple):
    """What a remix is called and shuffled by."""

    name: str
    version: int
    seed: int


def remix(
    manifest: Manifest,
    mixture: Mixture,
    assigned: Assigned,
    named: Named,
    target: Path,
    *,
    consumed: int | None = None,
    replace: bool = False,
    provenance: Mapping[str, Any],
) -> str:
    """Write the remix into `target` and return its digest. `consumed` is how many sequences of the parent were trained; None begins a run of its own."""
    if consumed is not None and not 0 <= consumed <= manifest.sequences:
        raise UserError(f"--consumed {consumed}: {manifest.folder} has {manifest.sequences:,} sequences; give 0 to {manifest.sequences}")
    documents = stored(manifest)
    history = after(manifest, consumed, documents) if consumed or (consumed == 0 and remembers(manifest)) else None
    if consumed is not None and unchanged(manifest, mixture, named.seed):
        planned = remaining(manifest, consumed, documents)
    else:
        planned = _drawn(manifest, mixture, assigned, named.seed, documents, history, consumed)
    with ManifestWriter(target, manifest.tokenizer["dtype"], replace=replace) as writer:
        writer.adopt(manifest, "tokens/", "tokenizer/", "pool/")
        _holdout(manifest, assigned, writer)
        for stage in planned.stages:
            writer.take(*write_plan(writer.folder, stage, documents.row, documents))
        if history is not None:
            writer.visits(history, documents)
        return writer.finish(_header(manifest, mixture, assigned, named, planned, documents, consumed), provenance)


def unchanged(manifest: Manifest, mixture: Mixture, seed: int) -> bool:
    """Whether the manifest was planned by this mixture and seed; keys it does not spell out have their defaults."""
    try:
        planned_by = Mixture.model_validate(manifest.header["recipe"]["mixture"])
    except (UserError, ValueError):  # of another version of Tilth
        return False
    return planned_by.resolved() == mixture.resolved() and bool(manifest.header["seed"] == seed)


def _holdout(manifest: Manifest, assigned: Assigned, writer: ManifestWriter) -> None:
    """The parent's hold-out; a source's table is new where its documents would belong to other components now."""
    for source, held in manifest.holdout().items():
        component = assigned.component[held.pool_row]
        if np.array_equal(component, held.component):
            writer.adopt(manifest, f"holdout/{source}.arrow")
        else:
            writer.holdout(source, Holdout(held.pool_row, component, held.bytes, held.offsets - held.offsets[0], held.ids))


def _header(
    manifest: Manifest, mixture: Mixture, assigned: Assigned, named: Named, planned: Plan, documents: Stored, consumed: int | None
) -> dict[str, Any]:
    parent = {"digest": manifest.digest, "consumed_sequences": consumed or 0}
    used = pc.value_counts(pool_values(manifest, "source", documents.row[planned.documents()])).to_pylist()
    planned_of = {entry["values"]: entry["counts"] for entry in used}
    sources = {}
    for name, counts in manifest.sources.items():
        there, taken = assigned.kept[name], planned_of.get(name, 0)
        sources[name] = {**counts, "used": taken, "unused": there - taken, "unassigned": counts["kept"] - there}
    recipe = {**manifest.header["recipe"], "name": named.name, "version": named.version, "mixture": mixture.resolved()}
    new = {**named._asdict(), "recipe": recipe, "parent": parent, "sources": sources, **planned.header()}
    own = ("schema_version", "recipe_sha256", "holdout", "files")  # the writer's
    return {key: value for key, value in {**manifest.header, **new}.items() if key not in own}


def pool_values(manifest: Manifest, column: str, rows: npt.NDArray[np.int64]) -> Any:
    """The values of a text column in some pool rows (ascending), as one Arrow array."""
    parts, begin = [], 0
    for file in manifest.pool_files():
        end = begin + pq.read_metadata(file).num_rows
        low, high = np.searchsorted(rows, (begin, end))
        if low < high:
            values = pq.read_table(file, columns=[column])[column]
            parts.append(values.take(pa.array(rows[low:high] - begin)).combine_chunks().cast(pa.large_string()))
        begin = end
    return pa.concat_arrays(parts) if parts else pa.array([], pa.large_string())


def pool_numbers(manifest: Manifest, by: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The values of a number, or of one of a struct's, in some pool rows (ascending); NaN for none."""
    column, _, part = by.partition(".")
    parts, begin = [np.zeros(0, np.float64)], 0
    for file in manifest.pool_files():
        end = begin + pq.read_metadata(file).num_rows
        low, high = np.searchsorted(rows, (begin, end))
        if low < high:
            values = pq.read_table(file, columns=[column])[column].take(pa.array(rows[low:high] - begin))
            values = pc.struct_field(values, part) if part else values
            parts.append(pc.fill_null(values.cast(pa.float64()), float("nan")).to_numpy())
        begin = end
    return np.concatenate(parts)


# --- the same mixture: the rest of the plan


def remaining(manifest: Manifest, consumed: int, documents: Stored) -> Plan:
    """What is left of the manifest's plan after its first `consumed` sequences. A stage that was begun is interleaved anew, so that its prefixes stay even."""
    stages: list[StagePlan] = []
    for header, arrays in zip(manifest.stages, manifest.stage_arrays, strict=True):
        begin = max(0, consumed - header["first_sequence"])
        if begin < header["sequences"]:
            first = sum(len(stage.component) for stage in stages)
            stages.append(_rest(manifest, header, arrays, begin, first, documents))
    if not stages:
        raise UserError(
            f"--consumed {consumed}: that is the whole plan of {manifest.folder}, and the mixture asks no more; give it another stage"
        )
    components = {name: manifest.header["components"][name] for name in manifest.component_names}
    return Plan(manifest.sequence_length, components, stages)


def _rest(manifest: Manifest, header: dict[str, Any], arrays: StageArrays, begin: int, first_sequence: int, documents: Stored) -> StagePlan:
    file, token_row, start, length, epoch = arrays.columns
    first = arrays.first_span.astype(np.int64)
    whole = Pieces((documents.first[file] + token_row).astype(np.uint32), start, length, epoch)
    order = _order(manifest, header, arrays.component, begin)
    counts = np.append(first[1:], len(file))[order] - first[order]
    first_span = np.cumsum(counts) - counts
    span = np.repeat(first[order] - first_span, counts) + np.arange(int(counts.sum()))
    columns = Pieces(whole.document[span], start[span], length[span], epoch[span])
    component = arrays.component[order]
    numbers = {**header, "first_sequence": first_sequence}
    if begin:
        cuts = _cuts(whole, documents.length, manifest.sequence_length)[span]
        parts = _parts(manifest, component, np.repeat(component, counts), columns, cuts, documents.length)
        tokens = int(columns.length.sum(dtype=np.int64))
        numbers |= {
            "sequences": len(order),
            "asked_tokens": tokens,
            "tokens": tokens,
            "predictions": tokens - len(span),
            "padding": len(order) * manifest.sequence_length - tokens,
            "components": parts,
        }
    return StagePlan(header["name"], component, first_span.astype(np.uint64), *columns, header=numbers)


def _order(manifest: Manifest, header: dict[str, Any], component: npt.NDArray[np.uint16], begin: int) -> npt.NDArray[np.int64]:
    """The sequences of a stage from `begin` on: as they stand if that is all of them, else interleaved anew, each component's in its own order."""
    order = np.arange(begin, len(component))
    if begin:
        indices = [manifest.component_names.index(name) for name in manifest.component_names if name in header["components"]]
        own = [begin + np.flatnonzero(component[begin:] == index) for index in indices]
        turns = interleave([len(sequences) for sequences in own])
        for turn, sequences in enumerate(own):
            order[turns == turn] = sequences
    return order


_NOT_CUT, _LONG, _TO_FILL, _TO_BUDGET = range(4)


def _cuts(spans: Pieces, lengths: npt.NDArray[np.int64], sequence_length: int) -> npt.NDArray[np.int8]:
    """Why each span of a stage ends before its document does, as far as spans tell: one that goes on in the stage was cut while packing, as part of a piece
    longer than a sequence or not; one that does not go on was cut by the budget."""
    end = spans.start.astype(np.int64) + spans.length
    order = np.lexsort((spans.start, spans.epoch, spans.document))
    begins = np.ones(len(order), np.bool_)
    same = (np.diff(spans.document[order]) == 0) & (np.diff(spans.epoch[order]) == 0)
    begins[1:] = ~(same & (spans.start[order][1:] == end[order][:-1]))
    firsts = np.flatnonzero(begins)
    long = np.repeat(np.add.reduceat(spans.length[order].astype(np.int64), firsts) > sequence_length, np.diff(firsts, append=len(order)))
    why = np.where(np.append(begins[1:], True), _TO_BUDGET, np.where(long, _LONG, _TO_FILL))
    cuts = np.empty(len(order), np.int8)
    cuts[order] = np.where(end[order] < lengths[spans.document[order]], why, _NOT_CUT)
    return cuts


def _parts(
    manifest: Manifest,
    component: npt.NDArray[np.uint16],
    of_span: npt.NDArray[np.uint16],
    columns: Pieces,
    cuts: npt.NDArray[np.int8],
    lengths: npt.NDArray[np.int64],
) -> dict[str, dict[str, Any]]:
    """What the header says of each component that is left in a stage; its weight is its share of what is left."""
    parts = {}
    for index, name in enumerate(manifest.component_names):
        mine = of_span == index
        if not mine.any():
            continue
        pieces = Pieces(columns.document[mine], columns.start[mine], columns.length[mine], columns.epoch[mine])
        tokens = int(pieces.length.sum(dtype=np.int64))
        documents, unique = distinct(pieces, lengths)
        count = np.bincount(cuts[mine], minlength=4)
        parts[name] = {
            "weight": round(tokens / int(columns.length.sum(dtype=np.int64)) * PARTS) / PARTS,
            "asked_tokens": tokens,
            "tokens": tokens,
            "sequences": int(np.count_nonzero(component == index)),
            "documents": documents,
            "unique_tokens": unique,
            "epochs": tokens / unique,
            "cut_long": int(count[_LONG]),
            "cut_to_fill": int(count[_TO_FILL]),
            "cut_to_budget": int(count[_TO_BUDGET]),
        }
    return parts


# --- another mixture: drawn anew from where the documents stand


def _drawn(
    manifest: Manifest,
    mixture: Mixture,
    assigned: Assigned,
    seed: int,
    documents: Stored,
    history: History | None,
    consumed: int | None,
) -> Plan:
    component = assigned.component[documents.row]
    values = {by: pool_numbers(manifest, by, documents.row) for by in mixture.ordered_by()}
    candidates = Documents(documents.row.astype(np.uint64), _contents(manifest, documents), component, documents.length, values)
    try:
        if history is None:
            return plan(mixture, candidates, seed)
        left = mixture.model_copy(update={"stages": list(_left(manifest, mixture.stages, consumed or 0))})
        if not left.stages:
            raise UserError(
                f"--consumed {consumed}: all that the stages of the mixture ask has been trained; give it another stage or more tokens"
            )
        candidates = simulated(mixture, candidates, seed)
        visits, salt = history.visits.copy(), f"after {consumed} of {manifest.digest}"
        draws = {
            name: ContinuedDraws(name, k, candidates, visits, seed, mixture.cap(name), history, salt)
            for k, name in enumerate(mixture.components)
        }
        return plan(left, candidates, seed, draws=draws)
    except Shortage as short:
        trained = f", of which training has read {int(history.tokens.sum()):,} tokens" if history is not None else ""
        lie = f"{len(documents.row):,} documents of {int(documents.length.sum()):,} tokens"
        raise UserError(
            f"{short}; a remix plans only what lies in {manifest.folder}/tokens ({lie}{trained}): build the recipe for more"
        ) from None


def _contents(manifest: Manifest, documents: Stored) -> npt.NDArray[np.uint64]:
    """The content hashes of the stored documents: n x 2, high and low half."""
    parts = [np.zeros((0, 2), np.uint64)]
    for low in range(0, len(documents.row), 1 << 20):
        texts = pool_values(manifest, "content", documents.row[low : low + (1 << 20)]).to_pylist()
        parts.append(np.frombuffer(bytes.fromhex("".join(texts)), ">u8").reshape(-1, 2).astype(np.uint64))
    return np.concatenate(parts)


def _left(manifest: Manifest, stages: Sequence[Stage], consumed: int) -> Iterator[Stage]:
    """The stages with the tokens that are left of them."""
    trained = trained_tokens(manifest, consumed)
    for number, stage in enumerate(stages):
        done = trained.get(stage.name, 0)
        if stage.tokens == "all":
            if done:
                raise UserError(
                    f"mixture.stages[{number}].tokens: '{stage.name}' asks all, and {done:,} of its tokens have been trained already; write its tokens as a number"
                )
            yield stage
            continue
        if done > stage.tokens:
            raise UserError(
                f"mixture.stages[{number}].tokens: '{stage.name}' asks {stage.tokens:,} tokens, of which {done:,} have been trained already; "
                "its tokens count those too: ask for more, leave the stage out, or give it another name"
            )
        if done < stage.tokens:
            yield stage.model_copy(update={"tokens": stage.tokens - done})


def trained_tokens(manifest: Manifest, consumed: int) -> dict[str, int]:
    """Tokens trained of each stage of the manifest's recipe after `consumed` sequences, over its chain of remixes."""
    planned = {stage["name"]: stage for stage in manifest.stages}
    trained = {}
    for stage in manifest.header["recipe"]["mixture"]["stages"]:
        here = planned.get(stage["name"])
        # A remix plans what was left of a stage when it was made.
        sizes = sum(manifest.header["components"][name]["tokens"] for name in here["components"]) if here else 0
        whole = sizes if stage["tokens"] == "all" else stage["tokens"]
        earlier = whole - (here["asked_tokens"] if here else 0) if remembers(manifest) else 0
        if here:
            first = here["first_sequence"]
            last = min(first + here["sequences"], max(first, consumed))
            earlier += int(manifest.spans(first, last).length.sum(dtype=np.int64))
        trained[stage["name"]] = earlier
    return trained


class ContinuedDraws(ComponentDraws):
    """A component's draws that go on: open documents first, then those visited least in the cursor's order, and so on as ever."""

    def __init__(
        self,
        name: str,
        index: int,
        documents: Documents,
        visits: npt.NDArray[np.uint16],
        seed: int,
        cap: Fraction,
        history: History,
        salt: str,
    ) -> None:
        """`visits`, shared by all components, begins as that of `history`; `salt` enters the keys of `fresh` and `fixed` draws."""
        super().__init__(name, index, documents, visits, seed, cap)
        members, self._salt = self.members, salt
        self._trained = int(history.tokens[members].sum())
        earlier, read = history.visits[members], history.read[members]
        is_open = (earlier > 0) & (read < documents.tokens[members])
        self._open = dict(zip(members[is_open].tolist(), read[is_open].tolist(), strict=True))
        self._pass = int(earlier.min(initial=self._most))
        order = shuffled(members, documents.content, [self.seed, self.name, self._pass])
        place = np.searchsorted(members, order)
        self._tails = order[is_open[place]].tolist()
        self._order, self._place = order[earlier[place] == self._pass], 0

    @property
    def available(self) -> int:
        """Tokens the cap allows besides those that were trained."""
        return max(0, super().available - self._trained)

    def _cursor(self, asked: int, repeats: int = 0) -> Pieces:
        """What training left open comes first, unless another draw has met it since; `_tail`, the document cut last, before the others."""
        parts: list[Pieces] = []
        waiting = dict.fromkeys([self._tail, *self._tails]) if self._tails else {}
        for document in list(waiting):
            if not asked:
                break
            del waiting[document]
            if document in self._open:
                more, _ = self._walk(np.array([document], np.uint32), 0, asked, repeats)
                parts += more
                asked -= sum(int(part.length.sum()) for part in more)
                self._tail = document
        self._tails = [document for document in waiting if document >= 0]
        if asked:
            parts.append(super()._cursor(asked, repeats))
        return joined(parts)

    def _fresh(self, stage: str, rounds: Sequence[int]) -> list[Pieces]:
        return super()._fresh(f"{stage} {self._salt}", rounds)

    def _fixed(self, stage: str, rounds: Sequence[int]) -> list[Pieces]:
        return super()._fixed(f"{stage} {self._salt}", rounds)
