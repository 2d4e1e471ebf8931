"""Documents and mixtures for tests of planning, and the promises about a plan in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixing import validated
from mixing.draws import Documents
from mixing.plan import Mixture, Plan


def documents_of(components: list[list[int]], gap: int = 1, seed: int = 3) -> Documents:
    """Documents dealt out to components in turn, so that a component's rows are not contiguous; `gap` spreads the pool rows."""
    rows = sorted((position, component, length) for component, lengths in enumerate(components) for position, length in enumerate(lengths))
    content = np.random.default_rng(seed).integers(0, 2**64, (len(rows), 2), np.uint64)
    component = np.array([component for _, component, _ in rows], np.uint16)
    tokens = np.array([length for _, _, length in rows], np.int64)
    return Documents(np.arange(0, gap * len(rows), gap, dtype=np.uint64), content, component, tokens)


def mixture_of(components: int, stages: list[dict[str, Any]], **keys: Any) -> Mixture:
    names = {f"c{number}": f"source = '{number}'" for number in range(components)}
    return validated(Mixture, {"sequence_length": 32, "components": names, "stages": stages, **keys}, "mixture")


def check_plan(mixture: Mixture, documents: Documents, planned: Plan) -> None:
    """Every promise about a plan, span by span in plain Python."""
    names, size = list(mixture.components), mixture.sequence_length
    visits: dict[int, int] = {}
    read: dict[tuple[int, int], int] = {}
    totals = dict.fromkeys(names, 0)
    for stage, header in zip(planned.stages, (stage.header for stage in planned.stages), strict=True):
        ends = [*stage.first_span[1:].tolist(), len(stage.document)]
        tokens = dict.fromkeys(names, 0)
        sequences = {name: np.flatnonzero(stage.component == index) for index, name in enumerate(names)}
        cuts = dict.fromkeys(names, 0)
        sums = []
        for component, low, high in zip(stage.component.tolist(), stage.first_span.tolist(), ends, strict=True):
            assert low < high
            sums.append(int(stage.length[low:high].sum()))
            for span in range(low, high):
                document, epoch = int(stage.document[span]), int(stage.epoch[span])
                start, end = int(stage.start[span]), int(stage.start[span]) + int(stage.length[span])
                assert documents.component[document] == component
                assert start < end <= documents.tokens[document]
                # The epoch is the number of earlier visits: this span goes on with the last visit or begins the next one.
                assert epoch in (visits.get(document, 0) - 1, visits.get(document, 0))
                visits[document] = epoch + 1
                assert start >= read.get((document, epoch), 0)
                read[document, epoch] = end
                cuts[names[component]] += end < documents.tokens[document]
            tokens[names[component]] += sums[-1]
        assert max(sums) <= size
        for name, said in header["components"].items():
            mine = sequences[name]
            assert tokens[name] == said["tokens"]
            assert tokens[name] == said["asked_tokens"] or mixture.on_shortage == "redistribute"
            assert len(mine) == said["sequences"]
            assert all(sums[sequence] >= mixture.fill * size for sequence in mine[:-1])
            deviation = np.cumsum(stage.component == names.index(name)) * len(sums) - np.arange(1, len(sums) + 1) * len(mine)
            assert np.abs(deviation).max() < len(sums)
            assert said["cut_long"] + said["cut_to_fill"] + said["cut_to_budget"] == cuts[name]
            totals[name] += tokens[name]
            spans = [i for i in range(len(stage.document)) if documents.component[stage.document[i]] == names.index(name)]
            distinct = {
                (int(stage.document[i]), t) for i in spans for t in range(int(stage.start[i]), int(stage.start[i]) + int(stage.length[i]))
            }
            assert said["unique_tokens"] == len(distinct)
            assert said["documents"] == len({document for document, _ in distinct})
        assert sum(tokens.values()) == header["tokens"] == header["asked_tokens"]
        assert header["padding"] == len(sums) * size - header["tokens"]
        assert header["predictions"] == header["tokens"] - len(stage.document)
    for name in names:
        cap = mixture.cap(name)
        assert totals[name] <= cap * planned.components[name]["tokens"]
    for document, count in visits.items():
        assert count <= -(-mixture.cap(names[int(documents.component[document])]) // 1)
