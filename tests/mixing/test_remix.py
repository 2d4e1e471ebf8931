"""A remix plans what its parent stores, and after training has begun nothing that was trained: counted token by token over whole chains of remixes."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from damage import failed, rewrite, sign
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import SOURCES, random_corpus, small_manifest

from mixing import UserError, validated
from mixing.audit import verify
from mixing.draws import ComponentDraws, Documents, Drawn
from mixing.history import VISITS_PATH, History
from mixing.manifest import NO_COMPONENT, Manifest
from mixing.plan import Mixture
from mixing.remix import Assigned, ContinuedDraws, Named, remix

TOKENS, SEED = 6000, 17
corpus_of = lru_cache(random_corpus)
CORPUS = corpus_of(256, TOKENS, SEED)

Token = tuple[int, int, int]
"""Pool row, visit, place in the document."""


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_manifest(tmp_path_factory.mktemp("remix") / "parent", tokens=TOKENS)


def mixture_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["recipe"]["mixture"]


def assigned(component: np.ndarray[Any, Any] | None = None, tokens: int = TOKENS) -> Assigned:
    """The components of `random_corpus`, or others."""
    corpus = corpus_of(256, tokens, SEED)
    of_row = corpus.component if component is None else component
    decided = np.array([decision in ("kept", "held_out") for decision in corpus.decision])
    kept = dict.fromkeys(SOURCES, 0)
    for number, decision, one in zip(corpus.source, corpus.decision, of_row, strict=True):
        kept[SOURCES[number]] += int(decision == "kept" and one != NO_COMPONENT)
    return Assigned(np.where(decided, of_row, NO_COMPONENT).astype(np.uint16), kept)


def remixed(
    folder: Path,
    target: Path,
    mixture: dict[str, Any],
    consumed: int | None = None,
    *,
    seed: int = SEED,
    to: Assigned | None = None,
    **keys: Any,
) -> Manifest:
    config = validated(Mixture, mixture, "mixture")
    named = Named("small", 2, seed)
    remix(Manifest.open(folder), config, to or assigned(), named, target, consumed=consumed, provenance={"made_by": "tests"}, **keys)
    assert [finding for finding in verify(target) if finding.verdict == "FAIL"] == []
    return Manifest.open(target)


def tokens_of(manifest: Manifest, first: int, last: int) -> Counter[Token]:
    """Every planned token of some sequences."""
    counted: Counter[Token] = Counter()
    for row, start, length, epoch in spans_of(manifest, first, last):
        counted.update((row, epoch, place) for place in range(start, start + length))
    return counted


def spans_of(manifest: Manifest, first: int, last: int) -> list[tuple[int, int, int, int]]:
    """(pool row, start, length, epoch) in the order of the run."""
    spans = manifest.spans(first, last)
    columns = zip(
        spans.file.tolist(), spans.token_row.tolist(), spans.start.tolist(), spans.length.tolist(), spans.epoch.tolist(), strict=True
    )
    return [(int(manifest.token_file(file).pool_row[row]), start, length, epoch) for file, row, start, length, epoch in columns]


# --- a run of its own


def test_remix_by_the_same_mixture_is_the_parents_plan_over_the_same_files(parent: Path, tmp_path: Path) -> None:
    before = Manifest.open(parent)

    after = remixed(parent, tmp_path / "out", mixture_of(parent))

    assert tokens_of(after, 0, after.sequences) == tokens_of(before, 0, before.sequences)
    assert after.header["parent"] == {"digest": before.digest, "consumed_sequences": 0}
    for entry in before.header["files"]:
        if not entry["path"].startswith("plan/"):
            assert os.path.samefile(parent / entry["path"], tmp_path / "out" / entry["path"])
    kept = ("tokenizer", "holdout", "models", "component_names", "sequence_length", "stages")
    assert {key: after.header[key] for key in kept} == {key: before.header[key] for key in kept}


def test_remix_where_files_cannot_be_linked_copies_them(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    linked = remixed(parent, tmp_path / "linked", mixture_of(parent))
    monkeypatch.setattr(os, "link", refuses)

    copied = remixed(parent, tmp_path / "copied", mixture_of(parent))

    assert copied.digest == linked.digest
    assert not os.path.samefile(parent / "tokens/00000.arrow", tmp_path / "copied/tokens/00000.arrow")
    listed = [json.loads((folder / "files.json").read_text()) for folder in (tmp_path / "linked", tmp_path / "copied")]
    assert listed[0] == listed[1]


def test_remix_into_other_components_counts_them_anew_and_moves_the_hold_out(parent: Path, tmp_path: Path) -> None:
    one = np.where(CORPUS.source == 0, 0, NO_COMPONENT).astype(np.uint16)  # prose alone
    mixture = {**mixture_of(parent), "components": {"text": "source = 'prose'"}, "max_epochs": 2}
    mixture["stages"] = [{"name": "only", "tokens": 900, "weights": {"text": 1}}]

    made = remixed(parent, tmp_path / "out", mixture, to=assigned(one))

    stored = {int(row) for number in range(made.token_files) for row in made.token_file(number).pool_row}
    prose = [row for row in stored if CORPUS.source[row] == 0]
    assert made.header["components"] == {"text": {"documents": len(prose), "tokens": sum(len(CORPUS.ids[row]) for row in prose)}}
    planned = {row for row, *_ in tokens_of(made, 0, made.sequences)}
    assert planned < set(prose)
    kept = [row for row, decision in enumerate(CORPUS.decision) if decision == "kept"]
    assert made.sources["prose"]["used"] == len(planned)
    assert made.sources["prose"]["unassigned"] == 0
    assert made.sources["code"]["unassigned"] == sum(CORPUS.source[row] == 1 for row in kept)
    assert made.sources["code"]["used"] == made.sources["code"]["unused"] == 0
    held = made.holdout()
    assert set(held["prose"].component.tolist()) == {0}
    assert set(held["code"].component.tolist()) == {NO_COMPONENT}
    assert held["code"].ids.tolist() == Manifest.open(parent).holdout()["code"].ids.tolist()


def test_remix_of_more_than_lies_in_tokens_is_refused_and_says_so(parent: Path, tmp_path: Path) -> None:
    mixture = mixture_of(parent)
    mixture["stages"] = [{"name": "adapt", "tokens": 50_000, "weights": {"replay": 1}}]

    with pytest.raises(
        UserError, match=r"component 'replay'.*a remix plans only what lies in .*/tokens \([0-9,]+ documents of [0-9,]+ tokens\)"
    ):
        remixed(parent, tmp_path / "out", mixture)

    assert not (tmp_path / "out").exists()


def test_remix_with_another_seed_draws_in_another_order(parent: Path, tmp_path: Path) -> None:
    same = remixed(parent, tmp_path / "same", mixture_of(parent))

    other = remixed(parent, tmp_path / "other", mixture_of(parent), seed=SEED + 1)

    assert other.header["seed"] == SEED + 1
    assert spans_of(other, 0, 40) != spans_of(same, 0, 40)


# --- in the middle of a run


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.74, 0.76, 0.99])
def test_remix_mid_run_with_the_unchanged_mixture_plans_exactly_what_is_left(parent: Path, tmp_path: Path, share: float) -> None:
    before = Manifest.open(parent)
    consumed = int(share * before.sequences)

    after = remixed(parent, tmp_path / "out", mixture_of(parent), consumed)

    assert after.header["parent"] == {"digest": before.digest, "consumed_sequences": consumed}
    assert after.sequences == before.sequences - consumed
    whole = tokens_of(before, 0, consumed) + tokens_of(after, 0, after.sequences)
    assert whole == tokens_of(before, 0, before.sequences)
    left = sum(sum(one["tokens"] for one in stage["components"].values()) for stage in after.stages)
    assert left == sum(tokens_of(before, consumed, before.sequences).values())


def test_remix_mid_run_twice_with_the_unchanged_mixture_plans_exactly_what_is_left(parent: Path, tmp_path: Path) -> None:
    first = Manifest.open(parent)
    second = remixed(parent, tmp_path / "second", mixture_of(parent), 20)

    third = remixed(tmp_path / "second", tmp_path / "third", mixture_of(parent), 35)

    whole = tokens_of(first, 0, 20) + tokens_of(second, 0, 35) + tokens_of(third, 0, third.sequences)
    assert whole == tokens_of(first, 0, first.sequences)
    assert third.header["parent"] == {"digest": second.digest, "consumed_sequences": 35}


def test_remix_mid_run_counts_the_cuts_that_are_left(parent: Path, tmp_path: Path) -> None:
    made = remixed(parent, tmp_path / "out", mixture_of(parent), 11)

    stage = made.stages[0]
    for number, name in enumerate(made.component_names):
        if name in stage["components"]:
            cuts = 0
            for sequence in range(stage["sequences"]):
                if made.components(sequence, sequence + 1)[0] == number:
                    cuts += sum(start + length < len(CORPUS.ids[row]) for row, start, length, _ in spans_of(made, sequence, sequence + 1))
            said = stage["components"][name]
            assert said["cut_long"] + said["cut_to_fill"] + said["cut_to_budget"] == cuts


def test_remix_mid_run_counts_trained_tokens_against_a_stage_of_the_same_name(parent: Path, tmp_path: Path) -> None:
    before, consumed = Manifest.open(parent), 30
    mixture = mixture_of(parent)
    mixture["stages"][0]["weights"] = {"domain": 0.8, "replay": 0.2}
    trained = sum(tokens_of(before, 0, consumed).values())

    after = remixed(parent, tmp_path / "out", mixture, consumed)

    assert after.stages[0]["asked_tokens"] == mixture["stages"][0]["tokens"] - trained
    for name, weight in mixture["stages"][0]["weights"].items():
        assert abs(after.stages[0]["components"][name]["asked_tokens"] - weight * after.stages[0]["asked_tokens"]) < 1
    assert after.stages[1]["asked_tokens"] == mixture["stages"][1]["tokens"]
    # and once more: what the grandparent trained counts too
    mixture["stages"][0]["weights"] = {"domain": 0.7, "replay": 0.3}
    last = remixed(tmp_path / "out", tmp_path / "last", mixture, 10)
    trained += sum(tokens_of(after, 0, 10).values())
    assert last.stages[0]["asked_tokens"] == mixture["stages"][0]["tokens"] - trained


def test_remix_mid_run_skips_a_stage_that_is_done_and_takes_a_new_one(parent: Path, tmp_path: Path) -> None:
    before = Manifest.open(parent)
    mixture = mixture_of(parent)
    mixture["stages"].append({"name": "more", "tokens": 300, "weights": {"domain": 1}})

    after = remixed(parent, tmp_path / "out", mixture, before.stages[1]["first_sequence"])

    assert [(stage["name"], stage["tokens"]) for stage in after.stages] == [("enhance", TOKENS // 4), ("more", 300)]


def test_remix_mid_run_reads_the_tails_of_open_documents_first(parent: Path, tmp_path: Path) -> None:
    before, mixture = Manifest.open(parent), mixture_of(parent)
    consumed = next(
        number
        for number in range(5, 60)
        for row, start, length, _ in spans_of(before, number, number + 1)
        if CORPUS.component[row] == 0 and start + length < len(CORPUS.ids[row])
    )
    consumed += 1
    reached = {row: (epoch, start + length) for row, start, length, epoch in spans_of(before, 0, consumed)}
    is_open = {row: at for row, at in reached.items() if at[1] < len(CORPUS.ids[row]) and CORPUS.component[row] == 0}
    mixture["stages"] = [{"name": "next", "tokens": 1500, "weights": {"domain": 1}, "draw": "cursor"}]

    after = remixed(parent, tmp_path / "out", mixture, consumed)

    assert is_open
    first = {}
    for row, start, _, epoch in spans_of(after, 0, after.sequences):
        first.setdefault(row, (epoch, start))
    assert {row: first[row] for row in is_open} == is_open


def test_remix_mid_run_draws_the_documents_visited_least_before_any_other(tmp_path: Path) -> None:
    folder = small_manifest(
        tmp_path / "parent",
        tokens=TOKENS,
        mixture={"stages": [{"name": "adapt", "tokens": 4000, "weights": {"domain": 1}}], "max_epochs": {"domain": 4}},
    )
    before = Manifest.open(folder)
    consumed = 20  # in the first pass over the component
    reached = {row: epoch for row, _, _, epoch in spans_of(before, 0, consumed)}
    stored = {int(row) for number in range(before.token_files) for row in before.token_file(number).pool_row}
    unread = stored - set(reached)
    mixture = mixture_of(folder)
    mixture["stages"] = [{"name": "next", "tokens": sum(len(CORPUS.ids[row]) for row in unread), "weights": {"domain": 1}}]
    assert set(reached.values()) == {0}
    assert unread

    after = remixed(folder, tmp_path / "out", mixture, consumed)

    assert {epoch for *_, epoch in spans_of(after, 0, after.sequences)} == {0}


def test_remix_mid_run_caps_count_what_was_trained(parent: Path, tmp_path: Path) -> None:
    before = Manifest.open(parent)
    replay = before.component_names.index("replay")
    consumed = before.sequences // 2
    stored = {int(row) for number in range(before.token_files) for row in before.token_file(number).pool_row}
    own = sum(len(CORPUS.ids[row]) for row in stored if CORPUS.component[row] == replay)
    trained = sum(int(CORPUS.component[row] == replay) for row, _, _ in tokens_of(before, 0, consumed).elements())
    mixture = mixture_of(parent)

    mixture["stages"] = [{"name": "next", "tokens": own - trained, "weights": {"replay": 1}}]
    after = remixed(parent, tmp_path / "out", mixture, consumed)
    assert after.stages[0]["tokens"] == own - trained

    mixture["stages"][0]["tokens"] += 1
    with pytest.raises(UserError, match=r"component 'replay'.*of which training has read [0-9,]+ tokens\): build the recipe for more"):
        remixed(parent, tmp_path / "more", mixture, consumed)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_remix_chain_of_random_mixtures_never_plans_a_trained_token_again(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over a chain: no (document, visit, token) twice, visits without gaps and within the cap, a visit read from its start to its end."""
    folder = tmp_path_factory.mktemp("chain")
    caps = {"domain": 3, "replay": 2, "extra": 3}
    first = small_manifest(folder / "0", tokens=3000, sequence_length=32, mixture=drawn_mixture(data, 2000, caps, 0))
    chain = [(Manifest.open(first), 0)]
    for number in range(1, data.draw(st.integers(1, 3), "remixes") + 1):
        last = chain[-1][0]
        consumed = data.draw(st.integers(0, last.sequences), "consumed")
        chain[-1] = (last, consumed)
        mixture = {**mixture_of(last.folder), **drawn_mixture(data, 1200, caps, number)}
        try:
            chain.append((remixed(last.folder, folder / str(number), mixture, consumed, to=assigned(tokens=3000)), 0))
        except UserError as error:
            if not re.search("asks? [0-9,]+ tokens of", str(error)):
                raise
            break  # the component has no more
        chain[-1] = (chain[-1][0], chain[-1][0].sequences)

    check_chain(chain, caps, corpus_of(256, 3000, SEED))


def drawn_mixture(data: st.DataObject, tokens: int, caps: dict[str, int], number: int) -> dict[str, Any]:
    stages = [
        {
            "name": f"stage-{number}-{stage}",
            "tokens": data.draw(st.integers(100, tokens // 2), "tokens"),
            "weights": {
                name: data.draw(st.sampled_from([1, 2, 5]), name)
                for name in data.draw(st.sets(st.sampled_from(list(caps)), min_size=1), "components")
            },
            "rounds": data.draw(st.integers(1, 3), "rounds"),
            "draw": data.draw(st.sampled_from(["cursor", "fresh"]), "draw"),
        }
        for stage in range(data.draw(st.integers(1, 2), "stages"))
    ]
    return {"max_epochs": caps, "stages": stages}


def check_chain(chain: Sequence[tuple[Manifest, int]], caps: dict[str, int], corpus: Any) -> None:
    trained: Counter[Token] = Counter()
    reached: dict[int, tuple[int, int]] = {}
    for manifest, consumed in chain:
        trained += tokens_of(manifest, 0, consumed)
        for row, start, length, epoch in spans_of(manifest, 0, consumed):
            earlier, end = reached.get(row, (-1, len(corpus.ids[row])))
            if end < len(corpus.ids[row]):
                assert (epoch, start) == (earlier, end)  # an open visit goes on where it stopped
            else:
                assert (epoch, start) == (earlier + 1, 0)
            reached[row] = (epoch, start + length)
    assert max(trained.values(), default=1) == 1
    for index, (name, cap) in enumerate(caps.items()):
        own = [row for row in reached if corpus.component[row] == index]
        assert all(reached[row][0] < cap for row in own), name
        tokens = sum(corpus.component[row] == index for row, _, _ in trained.elements())
        whole = sum(
            len(ids)
            for ids, one, decision in zip(corpus.ids, corpus.component, corpus.decision, strict=True)
            if one == index and decision == "kept"
        )
        assert tokens <= Fraction(cap) * whole


# --- draws that go on, against a tape of tokens

LENGTHS = [3, 1, 7, 2, 9, 4, 1, 5]


def documents_of(lengths: list[int]) -> Documents:
    content = np.random.default_rng(3).integers(0, 2**64, (len(lengths), 2), np.uint64)
    rows = np.arange(len(lengths))
    return Documents(rows.astype(np.uint64), content, np.zeros(len(rows), np.uint16), np.array(lengths, np.int64))


def tape_of(documents: Documents, passes: int) -> list[Token]:
    """(document, visit, place) of every token of some passes of a cursor: the definition, by the reference implementation of xxh3."""
    written: list[Token] = []
    for number in range(passes):
        seed = xxhash.xxh3_64_intdigest(f'[17,"domain",{number}]'.encode())
        keys = [xxhash.xxh3_64_intdigest(content.astype("<u8").tobytes(), seed=seed) for content in documents.content]
        for document in sorted(range(len(keys)), key=lambda one: keys[one]):
            written += [(document, number, place) for place in range(int(documents.tokens[document]))]
    return written


def continued(documents: Documents, trained: list[Token], cap: float = 9) -> ContinuedDraws:
    """The draws that go on after some tokens of the tape."""
    history = History(np.zeros(len(documents.row), np.uint16), *(np.zeros(len(documents.row), np.int64) for _ in range(2)))
    for document, visit, place in trained:
        history.visits[document], history.read[document] = visit + 1, place + 1
        history.tokens[document] += 1
    return ContinuedDraws("domain", 0, documents, history.visits.copy(), 17, Fraction(str(cap)), history, "later")


def drawn_tokens(drawn: Drawn) -> list[Token]:
    rows = zip(*(column.tolist() for column in drawn.pieces), strict=True)
    return [(document, epoch, place) for document, start, length, epoch in rows for place in range(start, start + length)]


@pytest.mark.parametrize("trained", range(0, 2 * sum(LENGTHS) + 1, 3))
def test_continued_cursor_reads_on_where_the_tape_was_left(trained: int) -> None:
    documents = documents_of(LENGTHS)
    tape = tape_of(documents, 4)

    drawn = continued(documents, tape[:trained]).take("next", "cursor", [40])

    assert drawn_tokens(drawn) == tape[trained : trained + 40]


def test_continued_cursor_takes_up_what_packing_left_behind_before_another_pass() -> None:
    documents = documents_of(LENGTHS)
    tape = tape_of(documents, 2)
    order = list(dict.fromkeys(document for document, _, _ in tape))
    early, late = order[1], order[-1]  # drawn early and still waiting; drawn last and trained
    trained = [token for token in tape if token[1] == 0 and token[0] != early]

    drawn = drawn_tokens(continued(documents, trained).take("next", "cursor", [LENGTHS[early] + LENGTHS[order[0]]]))

    assert {document for document, visit, _ in drawn if visit == 0} == {early}
    assert (late, 1, 0) not in drawn[: LENGTHS[early]]
    assert drawn[: LENGTHS[early]] == [token for token in tape if token[0] == early and token[1] == 0]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_continued_cursor_taken_in_small_draws_reads_open_documents_one_after_the_other(size: int) -> None:
    documents = documents_of(LENGTHS)
    whole = [token for token in tape_of(documents, 1) if token[2] < documents.tokens[token[0]] // 2]  # the first half of each
    left = [token for token in tape_of(documents, 1) if token not in whole]
    draws = continued(documents, whole)

    drawn = [token for _ in range(0, len(left) - size + 1, size) for token in drawn_tokens(draws.take("next", "cursor", [size]))]

    visited = [token for token in left if documents.tokens[token[0]] > 1]
    assert drawn[: len(visited)] == visited[: len(drawn)]


def test_continued_cursor_under_a_lower_cap_leaves_open_documents_alone() -> None:
    documents = documents_of(LENGTHS)
    tape = tape_of(documents, 2)
    first = tape[0][0]
    trained = [token for token in tape if token[0] == first][: LENGTHS[first] + 1]  # twice visited, the second time open

    drawn = drawn_tokens(continued(documents, trained, cap=1).take("next", "cursor", [12]))

    assert drawn == [token for token in tape if token[0] != first][:12]


def test_continued_fresh_round_goes_through_another_order_than_the_round_that_was_trained() -> None:
    documents = documents_of([1] * 200)
    begun = ComponentDraws("domain", 0, documents, np.zeros(200, np.uint16), 17, Fraction(9))

    first = drawn_tokens(begun.take("adapt", "fresh", [50]))
    again = drawn_tokens(continued(documents, first).take("adapt", "fresh", [50]))

    both = {document for document, _, _ in first} & {document for document, _, _ in again}
    assert 0 < len(both) < 30  # of 50; an equal shuffle would share all of them
    assert {visit for document, visit, _ in again if document in both} == {1}


def test_continued_draws_have_of_a_fraction_cap_what_training_left() -> None:
    documents = documents_of(LENGTHS)
    trained = tape_of(documents, 1)[:20]

    draws = continued(documents, trained, cap=1.5)

    assert draws.available == math.floor(1.5 * sum(LENGTHS)) - 20
    assert continued(documents, tape_of(documents, 2), cap=1.5).available == 0


def test_remix_mid_run_keeps_prefixes_even_where_the_rest_of_the_order_would_not(tmp_path: Path) -> None:
    stages = [{"name": "adapt", "tokens": 51 * 64, "weights": {"domain": 24, "replay": 25, "extra": 9}}]
    folder = small_manifest(
        tmp_path / "parent", tokens=TOKENS, mixture={"stages": stages, "max_epochs": {"domain": 4, "replay": 3, "extra": 6}}
    )
    component = Manifest.open(folder).components(0, Manifest.open(folder).sequences)

    def uneven(consumed: int) -> float:
        left = component[consumed:]
        even = np.arange(1, len(left) + 1) / len(left)
        return max(float(np.abs(np.cumsum(left == k) - even * np.count_nonzero(left == k)).max()) for k in range(3))

    consumed = max(range(1, len(component)), key=uneven)
    assert uneven(consumed) > 1

    remixed(folder, tmp_path / "out", mixture_of(folder), consumed)  # where verify looks at the prefixes


# --- refusals, and what verify sees


@pytest.mark.parametrize(
    ("consumed", "change", "message"),
    [
        (10**6, {}, r"--consumed 1000000: .* sequences; give 0 to"),
        (-1, {}, r"--consumed -1: "),
        ("all", {}, "that is the whole plan of .* give it another stage"),
        (60, {"stages": [{"name": "adapt", "tokens": 100, "weights": {"domain": 1}}]}, r"mixture.stages\[0\].tokens: 'adapt' asks 100 tokens, of which [0-9,]+ have been trained"),
        ("adapt", {"stages": [{"name": "adapt", "tokens": 4500, "weights": {"domain": 1}}]}, "all that the stages of the mixture ask has been trained"),
    ],
)  # fmt: skip
def test_remix_that_cannot_go_on_is_refused(parent: Path, tmp_path: Path, consumed: Any, change: dict[str, Any], message: str) -> None:
    manifest = Manifest.open(parent)
    consumed = {"all": manifest.sequences, "adapt": manifest.stages[1]["first_sequence"]}.get(consumed, consumed)

    with pytest.raises(UserError, match=message):
        remixed(parent, tmp_path / "out", {**mixture_of(parent), **change}, consumed)

    assert list(tmp_path.iterdir()) == []


def test_remix_in_the_way_of_another_manifest_is_refused_and_replaced_when_asked(parent: Path, tmp_path: Path) -> None:
    shutil.copytree(parent, tmp_path / "out")
    mixture = mixture_of(parent)

    with pytest.raises(UserError, match=r"holds another manifest, digest .* pass --replace"):
        remixed(parent, tmp_path / "out", mixture, 10)

    assert remixed(tmp_path / "out", tmp_path / "out", mixture, 10, replace=True).header["parent"]["digest"] == Manifest.open(parent).digest


def test_verify_remix_that_plans_what_was_read_before_fails(parent: Path, tmp_path: Path) -> None:
    remixed(parent, tmp_path / "out", mixture_of(parent), 40)
    rewrite(tmp_path / "out", VISITS_PATH, lambda columns: columns.update(visits=[visits + 2 for visits in columns["visits"]]))
    sign(tmp_path / "out")

    assert failed(tmp_path / "out") == {"nothing that was read before the plan is planned again"}


def test_verify_remix_that_reads_an_open_document_from_its_start_fails(parent: Path, tmp_path: Path) -> None:
    made = remixed(parent, tmp_path / "out", mixture_of(parent), 40)
    table = pa.ipc.open_file(str(tmp_path / "out" / VISITS_PATH)).read_all().to_pydict()
    lengths = [len(CORPUS.ids[row]) for row in table["pool_row"]]
    planned = {row for row, *_ in spans_of(made, 0, made.sequences)}
    partly = [k for k, row in enumerate(table["pool_row"]) if table["read"][k] < lengths[k] and row in planned]
    assert partly

    def further(columns: dict[str, list[Any]]) -> None:
        columns["read"][partly[0]] += 1

    rewrite(tmp_path / "out", VISITS_PATH, further)
    sign(tmp_path / "out")

    assert failed(tmp_path / "out") == {"nothing that was read before the plan is planned again"}


@pytest.mark.parametrize("change", [{"parent": None}, {"parent": {"digest": "x", "consumed_sequences": 3}}])
def test_verify_remix_without_a_true_parent_fails(parent: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    remixed(parent, tmp_path / "out", mixture_of(parent), 40)
    sign(tmp_path / "out", lambda header: header.update(change))

    assert "the parent is named" in failed(tmp_path / "out")
