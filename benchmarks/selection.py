"""Which scorer finds a domain's documents in a pool, from a small reference? Labels are known here and used for measuring alone.

    python benchmarks/selection.py CORPORA [--seeds 17 18 19] [--scorers ngram importance …]

CORPORA holds the folders named in DOMAIN and GENERAL, each with Parquet or JSON Lines files of a `text` column, and `tokenizer/`. A pool has POOL_TOKENS tokens, a share of them of the
domain, in equal parts from its sources and from the general ones; a reference is drawn evenly from the domain's sources and shares no text with the pool. Pools, references
and settings were fixed before the first run; every scorer runs with the defaults of its signal, through the signal's own `train` and `compute`, each training in a fresh process.

A scorer is one function: what it is given (`Given`) -> one number per text of the pool, the greater the better; several numbers by name where they come from the same models.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.formats import FORMATS, format_of
from curation.formats.records import Fields, records_of
from curation.signals import SIGNALS
from curation.signals.classifier_quality import area_under_curve

DOMAIN = ("med_abstracts", "med_textbook", "med_qa")
GENERAL = ("books_en", "wiki_en", "web_en", "handbook_en", "techdocs_en")
POOL_TOKENS = 1_400_000
SHARES, REFERENCES, BUDGETS = (0.2, 0.3), (100, 300), (0.25, 0.5, 1.0)
NEGATIVES = 300  # documents of each general source outside the pool, or as many as are left
SAMPLED = 5000  # documents of the pool that a model may be trained on: the default of `{sample: …}`
Floats = npt.NDArray[np.float64]


class Document(NamedTuple):
    source: str
    text: str
    tokens: int


class Given(NamedTuple):
    """Texts of the reference, of the pool and of general documents outside it; a seed, and an empty folder for a model."""

    reference: list[str]
    pool: list[str]
    general: list[str]
    seed: int
    folder: Path


# --- scorers


def trained(kind: str, settings: dict[str, Any], roles: dict[str, list[str]], given: Given) -> pa.Array:
    """The values of a signal trained on the texts of its roles."""
    signal = SIGNALS[kind]
    config = signal.config.model_validate({"kind": kind, **settings})
    signal.train(config, {role: pa.array(texts, pa.large_string()) for role, texts in roles.items()}, given.folder, given.seed)
    return signal.compute(config, pa.array(given.pool, pa.large_string()), given.folder)


def sample_of(given: Given) -> list[str]:
    """What `{sample: …}` of the pool would be."""
    return random.Random(given.seed).sample(given.pool, min(SAMPLED, len(given.pool)))


def numbers(values: pa.Array, worst: float) -> Floats:
    return np.asarray(values.fill_null(worst).to_numpy(zero_copy_only=False), np.float64)


def ngram(given: Given) -> Floats:
    return -numbers(trained("ngram", {"reference": "-"}, {"reference": given.reference}, given), np.inf)


def importance(field: str, given: Given) -> Floats:
    roles = {"target": given.reference, "pool": sample_of(given)}
    return numbers(trained("importance", {"target": "-", "pool": "-"}, roles, given).field(field), -np.inf)


def fasttext(negative: list[str], given: Given) -> Floats:
    roles = {"positive": given.reference, "negative": negative}
    return numbers(trained("fasttext", {"train": {"positive": "-", "negative": "-"}}, roles, given), -1)


def fasttext_against_pool(given: Given) -> Floats:
    """Negatives are a sample of the pool, in which the domain's documents are too: nobody could take them out without labels."""
    return fasttext(sample_of(given), given)


def fasttext_against_general(given: Given) -> Floats:
    """Negatives are documents outside the pool of the very sources that the domain has to be told from: the best case."""
    return fasttext(given.general, given)


def causal_lm(given: Given) -> dict[str, Floats]:
    """Perplexity under a small model continued on the reference, its contrast to the model it was continued from, and the perplexity under that one, a base that never saw the domain."""
    import selection_lm

    def perplexity(folder: Path) -> Floats:
        signal = SIGNALS["causal_lm"]
        config = signal.config.model_validate(
            {"kind": "causal_lm", "model": str(folder), "stride": 224}
        )  # half a context would cost twice the time
        return np.log(numbers(signal.compute(config, pa.array(given.pool, pa.large_string()), folder).field("perplexity"), np.inf))

    base, continued = map(perplexity, selection_lm.write(given.reference, given.general, given.seed, given.folder))
    return {"continued": -continued, "contrast": base - continued, "base": -base}


def chance(given: Given) -> Floats:
    return np.random.default_rng(given.seed).random(len(given.pool))


SCORERS: dict[str, Callable[[Given], Floats | dict[str, Floats]]] = {
    "ngram": ngram,
    "importance (log_ratio)": partial(importance, "log_ratio"),
    "importance (mean)": partial(importance, "mean"),
    "fasttext": fasttext_against_pool,
    "fasttext (clean negatives)": fasttext_against_general,
    "causal_lm": causal_lm,
    "chance": chance,
}


# --- pools


def read(corpora: Path) -> dict[str, list[Document]]:
    """All documents by source, each text once, with its tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(next((corpora / "tokenizer").glob("*.json"))))
    found = {}
    for source in (*DOMAIN, *GENERAL):
        texts: dict[str, None] = {}
        for path in sorted((corpora / source).iterdir()):
            kind = format_of(path.name)
            if kind is not None:
                texts |= dict.fromkeys(r.text for r in records_of(FORMATS[kind].read(path, Fields("text", None, {}), 0, None)) if r.text)
        drawn = random.Random(source).sample(
            list(texts), min(len(texts), 3000)
        )  # enough for every pool; what is not drawn is not tokenized
        encoded = tokenizer.encode_batch_fast([text[:400_000] for text in drawn], add_special_tokens=False)
        found[source] = [Document(source, text, len(one)) for text, one in zip(drawn, encoded, strict=True)]
        print(f"{source}: {len(drawn):,} texts, {sum(one.tokens for one in found[source]):,} tokens", file=sys.stderr)
    return found


def filled(documents: list[Document], tokens: float) -> list[Document]:
    """Documents in their order, as many as `tokens` hold."""
    ends = np.cumsum([one.tokens for one in documents])
    if not len(ends) or ends[-1] < 0.9 * tokens:
        sys.exit(f"{documents[0].source}: {ends[-1]:,} tokens; this benchmark needs {tokens:,.0f}")
    return documents[: int(np.searchsorted(ends, tokens, side="right"))]


def draw(everything: dict[str, list[Document]], share: float, references: int, seed: int) -> tuple[list[str], list[Document], list[str]]:
    """(texts of the reference, pool in random order, general texts outside it)."""
    rng = random.Random(f"{seed} {share}")
    shuffled = {source: rng.sample(documents, len(documents)) for source, documents in everything.items()}
    most = max(REFERENCES) // len(DOMAIN)  # set aside alike for every size, so that the pool is the same
    count = references // len(DOMAIN)
    reference = [one.text for source in DOMAIN for one in shuffled[source][: count + (source == DOMAIN[0]) * (references % len(DOMAIN))]]
    pool = [one for source in DOMAIN for one in filled(shuffled[source][most + 1 :], POOL_TOKENS * share / len(DOMAIN))]
    taken = {source: filled(shuffled[source], POOL_TOKENS * (1 - share) / len(GENERAL)) for source in GENERAL}
    pool += [one for source in GENERAL for one in taken[source]]
    general = [one.text for source in GENERAL for one in shuffled[source][len(taken[source]) :][:NEGATIVES]]
    return reference, rng.sample(pool, len(pool)), general


# --- measuring


def measured(scores: Floats, pool: list[Document]) -> dict[str, float]:
    """AUC over documents, and the share of the domain among the tokens selected at each budget, a share of the domain's tokens in the pool."""
    is_domain = np.array([one.source in DOMAIN for one in pool])
    tokens = np.array([one.tokens for one in pool])
    best = np.argsort(-scores, kind="stable")
    ends = np.cumsum(tokens[best])
    found = {"AUC": area_under_curve(scores[is_domain], scores[~is_domain])}
    for budget in BUDGETS:
        chosen = best[: np.searchsorted(ends, budget * tokens[is_domain].sum(), side="right")]
        found[f"{budget:.0%}"] = float(tokens[chosen][is_domain[chosen]].sum() / tokens[chosen].sum())
    return found


def score(scorer: str, reference: list[str], pool: list[str], general: list[str], seed: int) -> tuple[dict[str, Floats], float]:
    """Scores by the name they stand under in the table, and the processor's seconds."""
    with TemporaryDirectory() as folder:
        began = time.process_time()
        found = SCORERS[scorer](Given(reference, pool, general, seed, Path(folder)))
        named = {f"{scorer} ({name})": one for name, one in found.items()} if isinstance(found, dict) else {scorer: found}
        return named, time.process_time() - began


def runs(everything: dict[str, list[Document]], scorers: list[str], seeds: list[int]) -> Iterator[dict[str, Any]]:
    for share in SHARES:
        for references in REFERENCES:
            for seed in seeds:
                reference, pool, general = draw(everything, share, references, seed)
                for scorer in scorers:
                    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
                        scores, seconds = apart.submit(score, scorer, reference, [one.text for one in pool], general, seed).result()
                    for name, one in scores.items():
                        found = {"share": share, "references": references, "seed": seed, "scorer": name, "cpu_s": round(seconds, 2)}
                        found |= measured(one, pool)
                        print(json.dumps(found), file=sys.stderr, flush=True)
                        yield found


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    names = ["AUC", *(f"{budget:.0%}" for budget in BUDGETS)]
    yield "| domain | reference | scorer | " + " | ".join(names) + " |"
    yield "|---|---:|---|" + "---:|" * len(names)
    for share in SHARES:
        for references in REFERENCES:
            for scorer in dict.fromkeys(one["scorer"] for one in found):
                mine = [one for one in found if (one["share"], one["references"], one["scorer"]) == (share, references, scorer)]
                cells = [f"{mean(one[name] for one in mine):.3f} ± {stdev([one[name] for one in mine]):.3f}" for name in names]
                yield f"| {share:.0%} | {references} | {scorer} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--scorers", nargs="+", default=list(SCORERS), choices=list(SCORERS))
    given = parser.parse_args()
    everything = read(given.corpora)
    print("\n".join(table(list(runs(everything, given.scorers, given.seeds)))))


if __name__ == "__main__":
    main()
