"""The generated parts of the pages: the summary in README.md, and of each claim its verdicts, arms and where every number comes from.

They stand between `<!-- name -->` and `<!-- /name -->`, and are made from the stored results alone; the prose around them is written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.rig.claim import Claim
from experiments.rig.corpora import DOMAINS, GENERAL
from experiments.rig.figures import MAIN
from experiments.rig.judging import MISSING, Check, mean, overall, spread
from experiments.rig.results import Result, Results, load, story

PAGES = Path(__file__).parents[1]


def write(found: Sequence[Claim], folder: Path, pages: Path = PAGES) -> None:
    """Every page's generated parts, and the figures."""
    rows = ["| claim | source | our number | verdict |", "| --- | --- | --- | --- |"]
    for claim in found:
        results = load(claim.name, folder)
        drawn = {name: svg for name, svg in claim.figures(results).items() if svg}
        rows.append(summary(claim, results))
        insert(pages / f"{claim.name}.md", {"results": page(claim, results, folder, list(drawn))})
        for name, svg in drawn.items():
            (pages / "figures").mkdir(exist_ok=True)
            (pages / "figures" / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")
    insert(pages / "README.md", {"summary": "\n".join(rows)})


def insert(file: Path, parts: Mapping[str, str]) -> None:
    """The parts between their marks; a ValueError where a mark is missing."""
    text = file.read_text(encoding="utf-8")
    for name, part in parts.items():
        opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(opening)
        _, closed, after = rest.partition(closing)
        if not found or not closed:
            raise ValueError(f"{file}: no marks <!-- {name} --> and <!-- /{name} -->")
        text = f"{before}{opening}{part}\n{closing}{after}"
    file.write_text(text, encoding="utf-8")


def summary(claim: Claim, results: Results) -> str:
    checks = claim.checks(results)
    shown = [check for check in checks if check.decides and check.effects][: claim.numbers]
    numbers = "<br>".join(f"{check.name}: {across(check)}" for check in shown) or "-"
    gate = " (gated)" if claim.gated else ""
    return f"| [{claim.title}]({claim.name}.md){gate} | {claim.source} | {numbers} | **{overall(checks)}** |"


def across(check: Check) -> str:
    return "; ".join(f"{domain} {spread(check.of(domain), signed=True)}" for domain in check.domains)


def page(claim: Claim, results: Results, folder: Path, drawn: Sequence[str]) -> str:
    checks = claim.checks(results)
    parts = [f"**{overall(checks)}**. {claim.says} ({claim.source})"]
    if not results.rows:
        return "\n".join(["", *parts, ""])
    parts += [f"![{name.replace('-', ' ')}: means over the seeds, {MAIN}](figures/{name}.svg)" for name in drawn]
    parts.append(verdicts(checks))
    domains = list(dict.fromkeys(domain for domain, _ in results.places))
    parts += [arms(claim, results, domain) for domain in domains]
    parts.append(sources(claim, results, folder))
    return "\n" + "\n\n".join(parts) + "\n"


def verdicts(checks: Sequence[Check]) -> str:
    """Each check: mean ± sd over the seeds, every seed's value, what was asked, what came out."""
    rows = ["| effect | domain | mean ± sd | each seed | asked | gate | verdict |", "| --- | --- | ---: | --- | ---: | ---: | --- |"]
    for check in checks:
        name = check.name if check.decides else f"*{check.name}*"
        gate = "-" if check.gate is None else f"< {check.gate:g}"
        for domain in check.domains or ["-"]:
            each = ", ".join(f"{value:+.3f}" for value in check.of(domain))
            verdict = check.verdict(domain) if check.effects else MISSING
            rows.append(
                f"| {name} | {domain} | {spread(check.of(domain), signed=True)} | {each or '-'} | < {check.limit:g} | {gate} | {verdict} |"
            )
    return "\n".join(["Losses are in nats a token unless another unit is said; *in italics* what is reported beside the claim.", "", *rows])


def arms(claim: Claim, results: Results, domain: str) -> str:
    """Losses at the end, mean ± sd over the seeds, the base first; the domain's and the guard's mean, and every corpus by itself."""
    kinds = [*DOMAINS[domain].kinds, *GENERAL]
    heading = ["arm", "seeds", "domain", "guard", *kinds, *claim.columns]
    rows = [heading, ["---", *["---:"] * (len(heading) - 1)]]
    first = {row.seed: row for row in results.rows if row.domain == domain and len(row.curve) > 1}
    if first:
        rows.append(line("base", list(first.values()), kinds, 0, {}))
    for arm, label in claim.arms.items():
        if found := results.of(arm, domain):
            rows.append(line(label, found, kinds, -1, {name: spread([of(row) for row in found]) for name, of in claim.columns.items()}))
    return f"Loss at the end, {domain}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in pad(rows))


def line(label: str, found: Sequence[Result], kinds: Sequence[str], mark: int, columns: Mapping[str, str]) -> list[str]:
    whole = [spread([row.domain_loss(mark) for row in found]), spread([row.guard_loss(mark) for row in found])]
    return [
        label,
        str(len(found)),
        *whole,
        *(f"{mean([row.curve[mark][1][kind] for row in found]):.3f}" for kind in kinds),
        *columns.values(),
    ]


def pad(rows: list[list[str]]) -> list[list[str]]:
    return [row + [""] * (len(rows[0]) - len(row)) for row in rows]


def sources(claim: Claim, results: Results, folder: Path) -> str:
    """Which manifest and which run each number is of."""
    rows = ["| domain | seed | arm | manifest | run |", "| --- | ---: | --- | --- | --- |"]
    rows += [
        f"| {row.domain} | {row.seed} | {claim.arms[row.arm]} | `{row.manifest[:12]}` | `{row.run}` |"
        for row in sorted(results.rows, key=lambda row: (row.domain != "medical", row.domain, row.seed))
        if row.arm in claim.arms
    ]
    told = story(claim.name, folder)
    return f"<details><summary>Where each number comes from: {told}</summary>\n\n" + "\n".join(rows) + "\n\n</details>"


def broken(claim: Claim, results: Results) -> list[str]:
    """A line for each gate that a seed breaks."""
    return [
        f"{claim.name}: {check.name}: {check.effects[place]:+.3f} at {place[0]}, seed {place[1]}; the gate is below {check.gate:g}"
        for check in claim.checks(results)
        for place in check.broken()
    ]


def verdict_line(claim: Claim, results: Results) -> str:
    checks = claim.checks(results)
    shown = next((f"; {check.name} {across(check)}" for check in checks if check.decides and check.effects), "")
    return f"{claim.name}: {overall(checks)}{shown}"
