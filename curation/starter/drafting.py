"""The text of a first recipe: what was found and measured, as a commented YAML file.

Every value that a person might change has beside it what it was measured from. The mixture takes every document once, which no corpus is too small for; a mixture with weights
stands below it as a comment, with a budget that the sample says there is.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from curation.starter.prospect import LICENCE_NAMES, Found, Prospect, cleaned_name

FEW_WORDS = 20
REPLAY = 0.25
HEADROOM = 0.7  # of the tokens there seem to be: steps and the hold-out take some
MOST_WORDS = 100_000
BYTE_TOKENIZER = "byte-tokenizer.json"


class Measured(NamedTuple):
    """A source with what its sample's texts say: `spoken` languages by share, and shares of the texts that came before, nearly or to the letter, and that are short."""

    source: Prospect
    tokens: int
    spoken: list[tuple[str, float]]
    copies: float
    similar: float
    short: float
    general: str | None  # what says that it resembles the text of a base model
    known: float  # the share of its texts that earlier sources have


class Chosen(NamedTuple):
    """A tokenizer: how the recipe names it and its end token, and why it is this one; the sequence length, and the longest that the base model reads."""

    path: str
    eos: str | bool
    why: str
    sequence_length: int
    longest: int | None


def draft(name: str, sources: list[Measured], found: Found, chosen: Chosen) -> str:
    """The recipe for these sources."""
    lines = [
        *_head(name),
        "",
        f"name: {_quoted(cleaned_name(name))}",
        "version: 1",
        "seed: 17                      # decides the hold-out, the order of documents and every sample",
        f"# {chosen.why}",
        f"tokenizer: {{path: {_quoted(chosen.path)}, eos: {json.dumps(chosen.eos)}}}",
        "clean: [nfc, control_characters]",
        "",
        "# Their order is their rank: of two equal documents the one in the earlier source stays.",
        "sources:",
        *(line for one in sources for line in _source(one)),
        *_asides(found),
        "",
        "steps:",
        *_steps(sources, found),
        "",
        *_holdout(sources),
        "",
        *_mixture(sources, chosen),
        "",
    ]
    return "\n".join(lines)


def _head(name: str) -> list[str]:
    return [
        f"# A first recipe for {name}, written by `curate init` from a sample of its files. It builds as it is; every figure below is of the sample.",
        "#",
        "#   curate build RECIPE --dry-run     what there is, without building",
        "#   curate build RECIPE               the manifest",
    ]


def size(count: int) -> str:
    """Bytes as a person reads them."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= unit), (1, "bytes"))
    return f"{count / unit:,.1f} {name}" if unit > 1 else f"{count} bytes"


def _source(one: Measured) -> list[str]:
    source = one.source
    comment = [f"{len(source.files):,} files" if len(source.files) > 1 else "1 file", size(source.bytes)]
    comment.append(f"{'' if source.whole else 'about '}{source.documents:,} documents, about {one.tokens:,} tokens")
    comment.append(", ".join(f"{code} {share:.0%}" for code, share in one.spoken if share >= 0.01) or "no language told")
    if one.similar:
        comment.append(f"{one.copies:.1%} copies and {one.similar - one.copies:.1%} near-copies among {len(source.texts):,} texts")
    if one.known:
        comment.append(f"{one.known:.1%} of its texts stand in earlier sources")
    lines = [f"  # {'; '.join(comment)}", f"  {_quoted(source.name)}:"]
    lines += (
        [f"    files: {_quoted(source.patterns[0])}"]
        if len(source.patterns) == 1
        else ["    files:", *(f"      - {_quoted(one)}" for one in source.patterns)]
    )
    column = source.text.strip('"')
    others = [
        f"{name} {length:,}"
        for name, length in sorted(source.lengths.items(), key=lambda item: -item[1])
        if name not in (column, source.key, *source.values, *LICENCE_NAMES) and length * 20 > source.lengths.get(column, 0)
    ]
    if source.form in ("lines", "parquet", "arrow", "delimited"):
        length = source.lengths.get(column)
        measured = f"characters on average: {length:,}" if length else "an expression of columns" if "||" in column else "short texts"
        lines.append(f"    text: {_quoted(source.text)}    # {measured}{'; other texts: ' + ', '.join(others) if others else ''}")
    if source.key:
        lines.append(f"    key: {_quoted(source.key)}    # every value its own in the sample")
    lines += _licence(source)
    more = [name for name in source.columns if name not in (column, source.key, *LICENCE_NAMES)]
    if more and source.form in ("lines", "parquet", "arrow", "delimited"):
        said = [f"{name} = {source.values[name]}" if name in source.values else name for name in more[:12]]
        lines.append(f"    # columns: [...] carries into the pool: {', '.join(said)}")
    return [*lines, *_limits(one)]


def _licence(source: Prospect) -> list[str]:
    name = next((name for name in LICENCE_NAMES if name in source.columns), None)
    if name is None:
        return ["    # licence: not told by the files"]
    if name not in source.values:
        return [f"    # licence: several, in the column {name}"]
    return [f"    licence: {_quoted(source.values[name])}"]


def _limits(one: Measured) -> list[str]:
    """The limits that a source would break as it is, raised to what the sample shows."""
    lines = []
    if one.source.damage > 0.005:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in one.source.damaged.most_common(5))
        limit = min(1.0, round(one.source.damage * (1.2 if one.source.whole else 2) + 0.01, 2))
        lines.append(f"    # {sum(one.source.damaged.values()):,} of {one.source.sampled:,} records cannot be used: {reasons}")
        lines.append(f"    max_quarantine: {limit}    # the default is 0.01; the rest of the records is read")
    if one.similar > 0.3:
        lines.append(f"    max_duplicates: {min(1.0, round(one.similar + 0.3, 1))}    # the default warns above 0.3 and stops above 0.6")
    return lines


def _asides(found: Found) -> list[str]:
    lines = []
    if found.benchmarks:
        lines += [
            "",
            "# Benchmarks (questions with options): no sources, but what the sources are checked against below.",
            *_listed(found.benchmarks),
        ]
    if found.asides:
        lines += ["", "# Set aside:"]
        for aside in found.asides:
            more = f" and {len(aside.files) - 4:,} more" if len(aside.files) > 4 else ""
            lines.append(f"#   {', '.join(aside.files[:4])}{more}: {aside.why}")
    return lines


def _listed(found: list[Prospect]) -> list[str]:
    return [f"#   {', '.join(one.patterns[:4])}: about {one.documents:,} items" for one in found]


def _steps(sources: list[Measured], found: Found) -> list[str]:
    lines = [
        "  # The same text twice, then texts of which 80 % of the five-word runs agree: the first stays.",
        "  - add: {copy_of: {kind: exact}}",
        "  - keep: copy_of IS NULL",
        "  - add: {duplicate_of: {kind: minhash, threshold: 0.8}}",
        "  - keep: duplicate_of IS NULL",
    ]
    patterns = [pattern for one in found.benchmarks for pattern in one.patterns]
    if patterns:
        lines += ["", "  # A document that holds a benchmark's question would teach the answer: 0.3 of its 8-word runs tell one."]
    for number, pattern in enumerate(patterns, 1):
        name = "contaminated" if len(patterns) == 1 else f"contaminated_{number}"
        lines += [
            f"  - add: {{{name}: {{kind: contamination, against: {_quoted(pattern)}}}}}",
            f"  - keep: {name}.share IS NULL OR {name}.share < 0.3",
        ]
    lines += [
        "",
        "  # Rules to think about. Each costs one line, drops nothing silently and can be changed without computing again.",
        "  # - add: {words: {kind: heuristics, set: gopher}}",
        f"  # - keep: words.words BETWEEN {FEW_WORDS} AND {MOST_WORDS}"
        + _said("would drop of the sample", [(one.source.name, one.short) for one in sources if one.short >= 0.005]),
    ]
    codes = sorted({code for one in sources for code, share in one.spoken[:1] if share >= 0.5})
    strays = [(one.source.name, 1 - sum(share for code, share in one.spoken if code in codes)) for one in sources]
    lines += ["  # - add: {language: {kind: language}}"]
    accepted = ", ".join(f"'{code}'" for code in codes)
    lines.append(
        f"  # - keep: language.code IN ({accepted})" + _said("not in these", [(name, share) for name, share in strays if share >= 0.02])
    )
    return lines


def _said(what: str, shares: list[tuple[str, float]]) -> str:
    return f"    # {what}: {', '.join(f'{name} {share:.1%}' for name, share in shares)}" if shares else ""


def _holdout(sources: list[Measured]) -> list[str]:
    smallest = min(one.source.documents for one in sources)
    count = max(1, min(100, smallest // 20))
    return [
        "# Documents of each source that no model trains on, nor on a copy of them: where its loss is measured. Never more than a tenth of a source.",
        f"holdout: {{documents: {count}}}    # the smallest source has about {smallest:,}",
    ]


def _mixture(sources: list[Measured], chosen: Chosen) -> list[str]:
    length = chosen.sequence_length
    why = f"the base model's context is {chosen.longest:,}" if chosen.longest else "at most your model's context"
    width = max(len(_quoted(one.source.name)) for one in sources) + 1
    return [
        "mixture:",
        f"  sequence_length: {length}    # {why}; longer documents are cut, every cut is counted",
        "  components:",
        *(f"    {_quoted(one.source.name) + ':':{width}} \"source = '{one.source.name}'\"" for one in sources),
        "  stages:",
        "    # Every document once, in random order.",
        "    - {name: main, tokens: all, weights: {strategy: concatenate}}",
        "    #",
        *_weighted(sources, chosen),
    ]


def _weighted(sources: list[Measured], chosen: Chosen) -> list[str]:
    """The stage that a person will want in the end, as a comment: by weights, with a replay if there is something to replay."""
    replay = [one for one in sources if one.general]
    domain = [one for one in sources if not one.general]
    lines = []
    if replay and domain:
        lines.append("    # With weights: what the model should learn, and replay of text like its pre-training's, against forgetting.")
        lines.append(f"    # General by what the files say: {', '.join(f'{one.source.name} ({one.general})' for one in replay)}.")
        lines.append(
            "    # How much replay: 5 % is enough for a small shift, 25 % for a strong one (arXiv 2403.08763); see docs/concepts/mixtures.md."
        )
        shares = {one.source.name: (1 - REPLAY) * one.tokens / _sum(domain) for one in domain}
        shares |= {one.source.name: REPLAY * one.tokens / _sum(replay) for one in replay}
    else:
        shares = {one.source.name: one.tokens / _sum(sources) for one in sources}
        lines.append("    # With weights and a budget: shares of the stage's tokens, here as the sources are sized.")
        if not replay:
            lines += [
                "    # No source looks like general text. A model that trains on a domain alone forgets: add a source like its pre-training (a sample of FineWeb or",
                '    # Wikipedia, say), or let the base model write its own replay: docs/guides/synthesize.md, "Replay from the model itself".',
            ]
    rounded = {name: max(round(share, 3), 0.001) for name, share in shares.items()}
    total = sum(rounded.values())
    fits = [one.tokens / (rounded[one.source.name] / total) for one in sources if one.tokens]
    budget = _rounded(HEADROOM * min(fits)) if fits else 0
    weights = ", ".join(f"{_quoted(name)}: {share:g}" for name, share in rounded.items())
    return [*lines, f"    # - {{name: main, tokens: {budget}, weights: {{{weights}}}}}"]


def _sum(sources: list[Measured]) -> int:
    return sum(one.tokens for one in sources) or 1


def _rounded(tokens: float) -> int:
    """Two digits, downwards."""
    digits = max(len(str(int(tokens))) - 2, 0)
    unit: int = 10**digits
    return int(tokens) // unit * unit


def _quoted(value: Any) -> str:
    """A YAML scalar: plain where that is safe, else in double quotes as JSON has them."""
    text = str(value)
    plain = text.replace("/", "").replace("_", "").replace("-", "").replace(".", "").isalnum() and text.isascii() and not text[0].isdigit()
    return (
        text
        if plain and text.lower() not in ("true", "false", "null", "yes", "no", "on", "off", "none") and text[0] not in "-."
        else json.dumps(text, ensure_ascii=False)
    )
