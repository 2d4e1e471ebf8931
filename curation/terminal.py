"""What a person looks at: terminal tables, readable without colour and in a file."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixing.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from curation.build import Built
    from curation.commands.cleanup import Entry
    from curation.commands.estimate import Estimate
    from curation.commands.remix import Remixed
    from curation.starter.init import Started
    from mixing.export import Exported
    from mixing.findings import Finding

REPETITION_HALF_LIFE = 15.39
ABREAST = 6  # sources that stand side by side; more of them stand below each other


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Aligned columns: the first to the left, the others to the right; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def fits(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table is no wider than the terminal it is printed on; a file has room for all."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return not sys.stdout.isatty() or sum(widths) + 2 * len(widths) - 2 <= shutil.get_terminal_size().columns


def fitted(rows: Sequence[Sequence[str]]) -> str:
    """A table, turned round if only so it fits."""
    turned = list(zip(*rows, strict=True))
    return table(turned if not fits(rows) and fits(turned) else rows, "")


def by_source(rows: Sequence[Sequence[str]]) -> str:
    """A table with a column for each source and one for all, turned round where the sources are too many to stand abreast: then each row has a number, and a legend says which is which."""
    if len(rows[0]) - 2 <= ABREAST and fits(rows):
        return table(rows, "")
    heads = [row[0].strip() for row in rows[1:]]
    legend = [f"  {number}  {head}" for number, head in enumerate(heads, 1)]
    turned = [list(column) for column in zip(*rows, strict=True)]
    turned[0] = [rows[0][0], *(str(number) for number in range(1, len(rows)))]
    return "\n".join([table(turned, ""), *legend])


def rooms(found: dict[str, list[Entry]]) -> str:
    """The rooms of a work directory: what lies there, and how much of it no kept build refers to."""
    rows = [["room", "entries", "MB", "unused", "MB"]]
    for room, entries in found.items():
        unused = [entry for entry in entries if not entry.used]
        sizes = [f"{sum(entry.bytes for entry in some) / 1e6:,.1f}" for some in (entries, unused)]
        rows.append([room, f"{len(entries):,}", sizes[0], f"{len(unused):,}", sizes[1]])
    return table(rows)


def effective_tokens(tokens: int, unique: int) -> int:
    """What repeated tokens are worth in fresh ones: U + U R* (1 - exp(-R / R*)), R = tokens / U - 1, R* = 15.39 (arXiv 2305.16264)."""
    if not unique:
        return 0
    repetitions = tokens / unique - 1
    return round(unique + unique * REPETITION_HALF_LIFE * (1 - math.exp(-repetitions / REPETITION_HALF_LIFE)))


def inspect(manifest: Manifest) -> str:
    parts = [
        _title(manifest),
        funnel(manifest),
        duplicates(manifest),
        classifiers(manifest),
        synthesized(manifest),
        budget(manifest),
        moved(manifest),
        chosen(manifest),
        _reserved(manifest),
    ]
    return "\n\n".join(part for part in parts if part)


def _title(manifest: Manifest) -> str:
    header = manifest.header
    tokens = sum(stage["tokens"] for stage in manifest.stages)
    parent = header["parent"]
    remixed = f"\na remix of {parent['digest'][:16]}, after {parent['consumed_sequences']:,} of its sequences" if parent else ""
    return (
        f"{header['name']} v{header['version']}  digest {manifest.digest[:16]}  seed {header['seed']}\n"
        f"{tokens:,} tokens in {manifest.sequences:,} sequences of {manifest.sequence_length:,}\n"
        f"tokenizer {manifest.tokenizer['name']} ({manifest.tokenizer['vocab_size']:,} ids, {manifest.tokenizer['dtype']})"
        f"{remixed}"
    )


def funnel(manifest: Manifest) -> str:
    """Documents left after each step, per source."""
    sources = {source["name"]: manifest.sources[source["name"]] for source in manifest.header["recipe"]["sources"]}
    steps = {dropped["step"]: dropped["rule"] for source in sources.values() for dropped in source["dropped"]}

    def row(label: str, counts: Sequence[int]) -> list[str]:
        return [label, *(f"{count:,}" if count else "-" for count in counts), f"{sum(counts):,}"]

    def dropped(step: int) -> list[int]:
        return [sum(one["documents"] for one in source["dropped"] if one["step"] == step) for source in sources.values()]

    rows = [["documents", *sources, "all"], row("read", [source["read"] for source in sources.values()])]
    rows.append(row("quarantined", [source["quarantined"] for source in sources.values()]))
    for step in manifest.header["recipe"].get("clean", []):
        if any(changed := [_cleaned(manifest).get(name, {}).get(step, 0) for name in sources]):
            rows.append(row(f"  changed by {step}", changed))
    for step, rule in sorted(steps.items()):
        label = "like a held-out one" if step == 0 else f"step {step}: {_short(rule)}"
        rows.append(row(f"dropped, {label}", dropped(step)))
    for name, label in (
        ("held_out", "held out"),
        ("kept", "kept"),
        ("used", "  planned"),
        ("unused", "  not needed"),
        ("unassigned", "  in no component"),
    ):
        rows.append(row(label, [source[name] for source in sources.values()]))
    return by_source(rows)


def _cleaned(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Documents that each clean step changed, per source, as the build counted them."""
    found: dict[str, dict[str, int]] = _counted(manifest).get("cleaned", {})
    return found


def _counted(manifest: Manifest) -> dict[str, Any]:
    """What the build counted besides the manifest's header."""
    path = manifest.folder / "provenance.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def synthesized(manifest: Manifest) -> str:
    """What became of the prompts of each synthesized source, up to the documents made and those kept."""
    found: dict[str, Any] = _counted(manifest).get("synthesized") or {}
    if not found:
        return ""
    labels = ("parents", "requested", "parsed")
    rows = [["synthesized", *found], *([label, *(f"{one[label]:,}" for one in found.values())] for label in labels)]
    for reason in sorted({reason for one in found.values() for reason in one["rejected"]}):
        rows.append([f"  rejected: {reason}", *(f"{one['rejected'].get(reason, 0):,}" for one in found.values())])
    rows.append(["documents made", *(f"{one['documents']:,}" for one in found.values())])
    rows.append(["documents kept", *(f"{manifest.sources[name]['kept']:,}" for name in found)])
    for label in ("tokens_in", "tokens_out"):
        rows.append([label.replace("_", " "), *(f"{one[label]:,}" for one in found.values())])
    return table(rows, "")


def duplicates(manifest: Manifest) -> str:
    """What each rule about duplicates dropped, per source: documents, the share lost to its own documents up to it, and those of groups of which later rules left nothing."""
    steps = _counted(manifest).get("duplicates", [])
    if not steps:
        return ""
    sources = [source["name"] for source in manifest.header["recipe"]["sources"]]
    rows = [["dropped as duplicates", *sources, "all"]]
    for step in steps:
        mine = [step["sources"][name] for name in sources]
        counts = {name: [one[name] for one in mine] for name in ("documents", "gone")}
        rows.append(
            [f"step {step['step']}: {_short(step['rule'])}", *(f"{n:,}" for n in counts["documents"]), f"{sum(counts['documents']):,}"]
        )
        rows.append(["  share of its own, so far", *(f"{one['share']:.1%}" for one in mine), ""])
        if step["groups_gone"]:
            rows.append(
                [f"  of {step['groups_gone']:,} groups that are gone", *(f"{n:,}" for n in counts["gone"]), f"{sum(counts['gone']):,}"]
            )
    return "\n".join([by_source(rows), *_given_up(manifest)])


def _given_up(manifest: Manifest) -> list[str]:
    """A line for every search for near-duplicates that did not compare all it should have."""
    found = _counted(manifest).get("compared", {})
    return [
        f"{name}: {one['pairs_given_up']:,} pairs that might be alike were not compared"
        for name, one in found.items()
        if one["pairs_given_up"]
    ]


def classifiers(manifest: Manifest) -> str:
    """How each classifier does on the texts that its training held out."""
    found = _counted(manifest).get("models", {})
    rows = [["trained here", "trained on", "held out", "AUC", "calibration error"]]
    for name, one in found.items():
        numbers = [sum(part[key] for part in one["labels"].values()) for key in ("trained", "held_out")]
        rows.append([name, *(f"{number:,}" for number in numbers), f"{one['auc']:.4f}", f"{one['calibration_error']:.3f}"])
    return table(rows, "") if found else ""


def _short(rule: str) -> str:
    if rule.startswith("top: "):
        return told(rule).partition(", where ")[0]
    return rule if len(rule) <= 60 else f"{rule[:57]}..."


def told(rule: str) -> str:
    """A rule as it is written, and a `top` in words."""
    if not rule.startswith("top: "):
        return rule
    top = json.loads(rule.removeprefix("top: "))
    budget = next(
        f"{top[name]:,} {name}" if name != "share" else f"{top[name]:.1%}" for name in ("tokens", "documents", "share") if top.get(name)
    )
    where = f", where {top['where']}" if top.get("where") else ""
    by = f" by {top['by']}" if top.get("by") else ""
    return f"top {budget}{by}, {top['order']}{where}"


def budget(manifest: Manifest) -> str:
    """Asked against realised tokens, per stage and component; what repetition makes of them where something is repeated."""
    repeated = any(one["tokens"] != one["unique_tokens"] for stage in manifest.stages for one in stage["components"].values())
    parts = []
    for stage in manifest.stages:
        filled = stage["tokens"] / (stage["sequences"] * manifest.sequence_length)
        rows = [
            [f"stage {stage['name']}", "weight", "asked", "realised", "sequences", "documents", "epochs"],
            *(_budget_row(name, one) for name, one in stage["components"].items()),
            [f"({filled:.2%} full)", "", *(f"{stage[key]:,}" for key in ("asked_tokens", "tokens", "sequences")), "", ""],
        ]
        worth = [effective_tokens(one["tokens"], one["unique_tokens"]) for one in stage["components"].values()]
        cuts = [one["cut_long"] + one["cut_to_fill"] + one["cut_to_budget"] for one in stage["components"].values()]
        more = [("cuts", *(f"{n:,}" for n in cuts), f"{sum(cuts):,}")]
        if repeated:
            unique = [one["unique_tokens"] for one in stage["components"].values()]
            more = [("unique", *(f"{n:,}" for n in unique), ""), ("effective", *(f"{n:,}" for n in worth), f"{sum(worth):,}"), *more]
        parts.append(fitted([[*row, *(column[number] for column in more)] for number, row in enumerate(rows)]))
    return "\n\n".join(parts)


def _budget_row(name: str, one: dict[str, Any]) -> list[str]:
    numbers = [one["asked_tokens"], one["tokens"], one["sequences"], one["documents"]]
    return [name, f"{one['weight']:.4g}", *(f"{n:,}" for n in numbers), f"{one['epochs']:.2f}"]


def _effective_of(stage: dict[str, Any]) -> int:
    return sum(effective_tokens(one["tokens"], one["unique_tokens"]) for one in stage["components"].values())


def moved(manifest: Manifest) -> str:
    """A line for every stage in which a component was short and the others gave its tokens."""
    lines = []
    for stage in manifest.stages:
        more = {name: one["tokens"] - one["asked_tokens"] for name, one in stage["components"].items()}
        short = [f"{name} lacks {-n:,} of {stage['components'][name]['asked_tokens']:,}" for name, n in more.items() if n < 0]
        given = [f"{name} {n:+,}" for name, n in more.items() if n > 0]
        if short:
            lines.append(f"{stage['name']}: redistributed, {', '.join(short)}; instead {', '.join(given)}")
    return "\n".join(lines)


def chosen(manifest: Manifest) -> str:
    """Where the weights of each stage come from, a line for every strategy in it with what it learned from measurements."""
    stages = manifest.header["recipe"]["mixture"]["stages"]
    return "\n".join(f"{stage['name']}: {line}" for stage in stages for line in _strategies(stage["weights"]))


def _strategies(weights: dict[str, Any]) -> list[str]:
    name = weights.get("strategy")
    if not isinstance(name, str):
        groups = {key: one["components"] for key, one in weights.items() if isinstance(one, dict)}
        return [f"{key}: {line}" for key, inner in groups.items() for line in _strategies(inner)]
    if name == "replay":
        inner = [f"{key}: {line}" for key in ("replay", "rest") for line in _strategies(weights[key])]
        return [f"replay of {weights['share']:.4g}", *inner]
    file = weights.get("measurements")
    place = f" in {file['root']}:{file['pattern']}" if file else ""
    if name == "optimal_durations":
        late = weights["censored"] or []
        found = [f"{key} {tokens:,}{' (still improving)' if key in late else ''}" for key, tokens in weights["durations"].items()]
        return [f"{name} of {weights['metric']}{place}: {', '.join(found)}"]
    if name == "topic_controller":
        at = f", {weights['at'][0]:,} to {weights['at'][1]:,} tokens" if weights["at"] else ""
        found = [f"{key} {before:.4g} to {after:.4g}" for key, (before, after) in weights["perplexities"].items()]
        return [f"{name} of {weights['metric']}{place}{at}: {', '.join(found)}"]
    if name == "regression":
        runs = f", {weights['runs']} runs" if weights["runs"] else ""
        found = [key + (f" (error {weights['errors'][key]:.2g})" if weights["errors"] else "") for key in weights["coefficients"]]
        return [f"{name} of {', '.join(weights['metrics'])}{place}{runs}: {', '.join(found)}"]
    return [name]


def _reserved(manifest: Manifest) -> str:
    holdout = manifest.header["holdout"]
    if not holdout:
        return "no hold-out"
    rows = [["hold-out", "documents", "tokens"], *([name, f"{one['documents']:,}", f"{one['tokens']:,}"] for name, one in holdout.items())]
    return table(rows, "")


def facts(manifest: Manifest) -> dict[str, Any]:
    """The header with its digest, effective tokens per component and stage, and what the build counted of duplicates and measured of classifiers: what `inspect --json` prints."""
    stages = [
        {
            **stage,
            "effective_tokens": _effective_of(stage),
            "components": {
                name: {**one, "effective_tokens": effective_tokens(one["tokens"], one["unique_tokens"])}
                for name, one in stage["components"].items()
            },
        }
        for stage in manifest.stages
    ]
    return {
        **manifest.header,
        "digest": manifest.digest,
        "stages": stages,
        "duplicates": _counted(manifest).get("duplicates", []),
        "trained": _counted(manifest).get("models", {}),
    }


def as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def built(made: Built) -> str:
    """What `build` prints at its end."""
    if made.unchanged:
        return f"unchanged: {made.folder}, digest {made.digest}, checked in {made.seconds:.2f} s"
    parts = [inspect(Manifest.open(made.folder))]
    if made.computed:
        rows = [["signal", "computed", "remembered"]]
        rows += [[name, f"{count:,}", f"{made.remembered.get(name, 0):,}"] for name, count in made.computed.items()]
        parts.append(table(rows, ""))
    parts += [f"warning: {warning}" for warning in made.warnings]
    parts.append(f"{made.folder}: digest {made.digest}, {made.seconds:.1f} s\n{_next(made.folder)}")
    return "\n\n".join(parts)


def remixed(made: Remixed) -> str:
    """What `remix` prints at its end."""
    return f"{inspect(Manifest.open(made.folder))}\n\n{made.folder}: digest {made.digest}, {made.seconds:.1f} s\n{_next(made.folder)}"


def _next(folder: Path) -> str:
    """What one does with a manifest that has just been made."""
    return f"next: curate verify {folder}; curate show {folder}; python -m train run {folder} CONFIG"


def verified(findings: Sequence[Finding]) -> str:
    """One line a check."""
    lines = [f"{finding.verdict:<7} {finding.check}  {finding.figure}".rstrip() for finding in findings]
    failed = sum(not finding.ok for finding in findings)
    return "\n".join([*lines, f"{len(findings) - failed} of {len(findings)} checks hold" + (f", {failed} FAILED" if failed else "")])


def started(made: Started) -> str:
    """What `init` prints: the sources with what their samples say, what is no source and why, and the next command."""
    from curation.starter.drafting import size

    rows = [["source", "files", "size", "documents", "tokens", "language", "unusable", "copies"]]
    for one in made.sources:
        source, language = one.source, next((f"{code} {share:.0%}" for code, share in one.spoken), "-")
        sizes = [f"{len(source.files):,}", size(source.bytes), f"{source.documents:,}", f"{one.tokens:,}"]
        rows.append([source.name, *sizes, language, f"{source.damage:.1%}", f"{one.similar:.1%}"])
    lines = ["figures of a sample; copies are texts that came before, nearly or to the letter"]
    lines += [f"benchmark, to check against: {', '.join(one.patterns)}" for one in made.found.benchmarks]
    for aside in made.found.asides:
        more = f" and {len(aside.files) - 2:,} more" if len(aside.files) > 2 else ""
        lines.append(f"set aside: {', '.join(aside.files[:2])}{more}: {aside.why}")
    lines += [f"note: {remark}" for remark in made.remarks]
    return f"{table(rows, '')}\n\n{chr(10).join(lines)}\n\n{made.path} is written; next: curate build {made.path} --dry-run"


def dry_run(estimated: Estimate) -> str:
    """What `build --dry-run` prints."""
    rows = [["source", "files", "bytes", "sampled", "unusable", "documents, about", "tokens, about"]]
    for one in estimated.sources:
        share = f"{one.unusable / one.sampled:.1%}" if one.sampled else "-"
        rows.append([one.name, f"{one.files:,}", f"{one.bytes:,}", f"{one.sampled:,}", share, f"{one.documents:,}", f"{one.tokens:,}"])
    supply = [["component", "asked", "cap", "available, about", ""]]
    for want in estimated.components:
        supply.append(
            [
                want.name,
                "by the sizes" if want.asked is None else f"{want.asked:,}",
                f"x {want.cap:g}",
                "unknown before its signals are" if want.tokens is None else f"{want.tokens:,}",
                want.verdict,
            ]
        )
    disk = f"disk: about {estimated.needed_bytes / 1e6:,.0f} MB for work and manifest, {estimated.free_bytes / 1e6:,.0f} MB free"
    memory = f"memory: about {estimated.memory_bytes / 1e6:,.0f} MB for {estimated.workers} worker{'s'[: estimated.workers > 1]}"
    return "\n\n".join(
        ["the recipe is sound; nothing was written", table(rows, ""), table(supply, ""), f"{disk}\n{memory}", *estimated.warnings]
    )


def exported(made: Exported) -> str:
    """What `export` prints: the rows of each stage, and what their new reader cannot see in the ids alone."""
    heading = ["stage", "sequences", "tokens", "padding", "pieces", "boundaries without EOS"]
    rows = [heading, *([stage["name"], *(f"{stage[key]:,}" for key in _EXPORTED)] for stage in made.facts["stages"])]
    size = sum(file["bytes"] for file in made.facts["files"]) / 1e6
    return f"{table(rows, '')}\n\n{made.folder}: {made.facts['format']}, {size:,.1f} MB, padded with id {made.facts['pad_id']}"


_EXPORTED = ("sequences", "tokens", "padding", "pieces", "boundaries_without_eos")
