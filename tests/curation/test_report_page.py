"""`curate report`: the numbers against Polars, the texts as text, the page as a file that runs and fetches nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from answering import Answering
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from recipes import built, recipe, text_of, write_corpus, write_file
from reports import OVERRIDE, RULES, SCRIPT, THRESHOLDS, Page, manifest_in, tables, written

from curation.cli import main
from curation.page import windows as pool_windows
from curation.page.axes import Axis, axis_of, stops_of
from curation.page.compose import report
from curation.page.counting import FATES, count
from curation.page.survey import Spread, survey
from curation.page.thresholds import thresholds
from curation.page.untrusted import differences, shortened, visible
from mixing import UserError
from mixing.manifest import Manifest
from mixing.measurements import Measurement, append


class Example:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.open(manifest_in(folder))
        self.html = report(self.manifest)
        self.page = Page(self.html)
        self.pool = pl.read_parquet(self.manifest.folder / "pool" / "*.parquet")
        counted = self.pool.filter(pl.col("n_tokens").is_not_null()).group_by("source").agg(pl.col("n_tokens", "bytes").sum())
        overall = counted["n_tokens"].sum() / counted["bytes"].sum()
        self.rates = dict.fromkeys(self.manifest.sources, overall)
        self.rates |= {source: tokens / size for source, tokens, size in counted.iter_rows()}

    def passing(self, rule: str, decision: pl.Expr) -> dict[str, tuple[int, int]]:
        """Per source the documents and tokens (estimated from bytes where not counted) for which an SQL expression holds."""
        chosen = self.pool.filter(decision)
        there = pl.SQLContext(pool=chosen, eager=True).execute(f"SELECT source, n_tokens, bytes FROM pool WHERE {rule}")
        found = {}
        for source in self.manifest.sources:
            mine = there.filter(pl.col("source") == source)
            uncounted = mine.filter(pl.col("n_tokens").is_null())["bytes"].sum()
            found[source] = (mine.height, round(mine["n_tokens"].sum() + uncounted * self.rates[source]))
        return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return Example(tmp_path_factory.mktemp("report"))


# --- numbers


@pytest.mark.parametrize("number", range(len(THRESHOLDS)))
def test_every_stop_of_a_threshold_keeps_what_polars_counts(example: Example, number: int) -> None:
    place, value, operator, at, template = THRESHOLDS[number]
    rule = RULES[place]
    sources, found = tables(example.html)

    table = next(one for one in found if (one.value, one.operator, one.stops[one.here]) == (value, operator, float(at)))

    assert len(table.stops) >= 5
    assert table.stops == sorted(set(table.stops))
    mine = (pl.col("decision") == "dropped") & pl.col("reason").is_in([rule, f"{rule} (no value)"])
    moved = 0
    for stop, threshold in enumerate(table.stops):
        stays = example.passing(template.format(threshold), pl.col("decision") == "kept")
        returns = example.passing(template.format(threshold), mine)
        for index, source in enumerate(sources):
            assert (table.stays[index][stop], table.stays_tokens[index][stop]) == stays[source], (threshold, source)
            assert (table.returns[index][stop], table.returns_tokens[index][stop]) == returns[source], (threshold, source)
        moved += sum(documents for documents, _ in returns.values())
    assert [row[table.here] for row in table.stays] == [example.manifest.sources[source]["kept"] for source in sources]
    assert all(row[table.here] == 0 for row in table.returns)
    assert moved or value == "bytes"


def test_a_ranking_is_a_threshold_at_the_worst_value_it_took(example: Example) -> None:
    sources, found = tables(example.html)
    table = next(one for one in found if (one.value, one.operator) == ("score", ">="))
    ranked = example.pool.filter((pl.col("source") == "code") & (pl.col("decision") == "kept"))
    fell = example.pool.filter(pl.col("reason").str.starts_with("top: "))

    assert table.stops[table.here] == ranked["score"].min()
    code = sources.index("code")
    for stop, threshold in enumerate(table.stops):
        assert table.stays[code][stop] == ranked.filter(pl.col("score") >= threshold).height
        assert table.returns[code][stop] == fell.filter(pl.col("score") >= threshold).height
    assert max(table.returns[code]) == fell.height > 0
    for index, source in enumerate(sources):
        if source != "code":  # outside its `where`
            assert set(table.stays[index]) == {example.manifest.sources[source]["kept"]}


def test_distributions_hold_every_document_that_had_the_value(example: Example) -> None:
    manifest = example.manifest
    values, found = pool_windows.values_of(manifest), thresholds(manifest, pool_windows.schema_of(manifest))
    known = survey(manifest, values, found, lambda rows: None)

    counts = count(manifest, values, found, known, lambda rows: None)

    alive = example.pool.filter(pl.col("decision").is_in(["kept", "dropped"]))
    for name in ("bytes", "score", "words.words", "words.mean_length"):
        column, _, part = name.partition(".")
        series = alive[column].struct.field(part) if part else alive[column]
        kept = series.filter(alive["decision"] == "kept").drop_nulls()
        assert int(counts.bars[name].sum()) == series.drop_nulls().len() == known.spreads[name].known
        assert int(counts.bars[name][FATES.index("kept")].sum()) == kept.len()
        assert (known.spreads[name].low, known.spreads[name].high) == (series.min(), series.max())
        assert known.spreads[name].quantile(0.5) == series.drop_nulls().quantile(0.5, "nearest")


def test_funnel_on_the_page_is_the_headers(example: Example) -> None:
    header = example.manifest.sources
    names = list(example.manifest.header["recipe"]["sources"])
    order = [one["name"] for one in names]

    def numbers(label: str) -> list[int]:
        cells = example.page.row(label)[2:]
        return [int(cell.replace(",", "").replace("−", "")) if cell not in ("–", "") else 0 for cell in cells]

    for label, key in (("records read", "read"), ("held out for measuring", "held_out"), ("documents kept", "kept"), ("planned", "used")):
        assert numbers(label) == [sum(header[name][key] for name in order), *(header[name][key] for name in order)], label
    for rule in ("copy_of IS NULL", "duplicate_of IS NULL", *RULES):
        dropped = [sum(one["documents"] for one in header[name]["dropped"] if one["rule"] == rule) for name in order]
        assert numbers(rule) == [sum(dropped), *dropped], rule
    planned = numbers("tokens planned, all visits")
    assert planned[0] == sum(stage["tokens"] for stage in example.manifest.stages) == sum(planned[1:])


def test_the_page_says_when_the_pool_does_not_say_what_the_header_says(example: Example, tmp_path: Path) -> None:
    assert "differs: " not in example.page.shown
    shutil.copytree(example.manifest.folder, tmp_path / "m")
    manifest = Manifest.open(tmp_path / "m")
    manifest.header["sources"]["web"]["kept"] += 1

    assert "differs: web" in Page(report(manifest)).shown


def test_what_is_worth_a_look_is_named_with_its_sources(example: Example) -> None:
    told = re.findall(r'<li><a href="#(\w+)">(.*?)</a>', example.html)
    texts = [html.unescape(text).replace("\u202f", " ") for _, text in told]
    web = example.manifest.sources["web"]

    assert "No licence is stated for 'web', 'code', 'odd', 'strange'." in texts
    assert f"Records could not be used: of 'web' ({100 * web['quarantined'] / web['read']:.1f} %)." in texts
    idle = [f"'{name}'" for name in ("prose", "web", "code", "odd", "strange") if not example.manifest.sources[name]["used"]]
    assert ("Nothing is planned of " + ", ".join(idle) + "." in texts) == bool(idle)
    assert "There is no hold-out" not in example.page.shown


def test_windows_change_no_byte_of_the_page(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pool_windows.windows
    monkeypatch.setattr("curation.page.survey.windows", lambda manifest, values: original(manifest, values, rows=37))
    monkeypatch.setattr("curation.page.counting.windows", lambda manifest, values: original(manifest, values, rows=41))

    assert report(example.manifest) == example.html


def test_the_same_recipe_gives_the_same_page_whatever_the_workers_and_folders(example: Example, tmp_path: Path) -> None:
    values = written(tmp_path)
    built(tmp_path, values, tmp_path / "elsewhere", tmp_path / "other-work", workers=2)

    assert report(Manifest.open(tmp_path / "elsewhere")) == example.html
    assert str(example.folder) not in example.html


# --- texts


def test_planted_markup_and_overrides_are_shown_as_text(example: Example) -> None:
    shown = example.page.shown

    assert SCRIPT in shown
    assert "</pre></details><img src=x onerror=alert(1)>" in shown
    assert "{{ 7 * 7 }}" in shown
    assert "a<b>&.jsonl#" in shown
    assert OVERRIDE.replace("\u202e", "U+202E") in shown
    assert not [character for character in example.html if character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x1b\0"]
    assert "\\u003cscript" not in shown
    assert "onerror" not in {name for _, name, _ in example.page.attributes}


def test_the_page_runs_only_its_own_script_and_fetches_nothing(example: Example) -> None:
    page = example.page
    policy = next(value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "default-src" in value)

    assert "default-src 'none'" in policy
    code = [text for kind, text in page.scripts if kind is None]
    assert [kind for kind, _ in page.scripts] == ["application/json", None]
    for content, directive in ((code[0], "script-src"), (page.styles[0], "style-src")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert len(page.styles) == 1
    names = {name for _, name, _ in page.attributes}
    assert "style" not in names
    assert "src" not in names
    assert not [name for name in names if name.startswith("on")]
    assert all(value.startswith("#") for _, name, value in page.attributes if name in ("href", "xlink:href", "action"))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= set(ids)
    assert not re.search(r"url\(|@import", page.styles[0])


def test_visible_shows_hidden_characters_and_keeps_what_scripts_are_spelled_with() -> None:
    assert str(visible("<b>&\u202e\x00")) == '&lt;b&gt;&amp;<b class="hidden">U+202E</b><b class="hidden">U+0000</b>'
    assert str(visible("\u2066")) == '<b class="hidden">U+2066</b>'
    assert str(visible("می\u200cروم\n\tx")) == "می\u200cروم\n\tx"


@given(st.text(max_size=60))
def test_visible_text_reads_back_as_it_was(text: str) -> None:
    shown = re.sub(r'<b class="hidden">U\+([0-9A-F]+)</b>', lambda match: chr(int(match[1], 16)), str(visible(text)))

    assert "<" not in re.sub(r'<b class="hidden">[^<]*</b>', "", str(visible(text)))
    assert html.unescape(shown) == text


def test_long_texts_are_cut_and_say_how_long_they_are() -> None:
    assert str(shortened("x" * 5000, 10)) == 'xxxxxxxxxx<span class="cut">… 5,000 characters in all</span>'


def test_differences_mark_what_only_one_text_has_near_the_first_difference() -> None:
    words = [f"w{number}" for number in range(200)]
    changed = [*words[:100], "NEW<i>", *words[101:]]

    here, there = differences(" ".join(words), " ".join(changed))

    assert str(here).startswith("… w88 ")
    assert re.findall(r"<del>(.*?)</del>", str(here)) == ["w100"]
    assert html.unescape("".join(re.findall(r"<ins>(.*?)</ins>", str(there)))) == "NEW<i>"


def test_examples_of_a_rule_were_dropped_by_it(example: Example) -> None:
    dropped = example.pool.filter(pl.col("reason").is_in([RULES[1], f"{RULES[1]} (no value)"]))
    section = example.html[example.html.index('<section id="examples">') :]
    block = section[section.index(html.escape(RULES[1]).replace("&#x27;", "&#39;")) :]
    rows = [int(row.replace(",", "")) for row in re.findall(r'class="row">row ([\d,]+)<', block[: block.index("</details>")])]

    assert 0 < len(rows) <= 3
    assert set(rows) <= set(dropped["row"].to_list())


def test_pairs_are_duplicates_with_their_survivors_and_similarity(example: Example) -> None:
    evidence = {
        row: json.loads(told)
        for row, told in example.pool.filter(pl.col("reason") == "duplicate_of IS NULL").select("row", "evidence").iter_rows()
    }
    section = example.html[example.html.index('<section id="duplicates">') : example.html.index('<section id="examples">')]
    pairs = re.findall(
        r"similarity ([\d.]+)</h4>.*?row ([\d,]+)</span>.*?<b>survivor</b> <span class=\"origin\">row ([\d,]+),", section, re.DOTALL
    )
    near = [(float(similarity), int(row.replace(",", "")), int(other.replace(",", ""))) for similarity, row, other in pairs]

    told = [one for one in near if one[1] in evidence]
    assert told
    for similarity, row, survivor in told:
        assert (similarity, survivor) == (pytest.approx(evidence[row]["similarity"], abs=5e-5), evidence[row]["row"])
    assert "<del>" in section
    assert "<ins>" in section


def test_without_the_work_directory_numbers_are_shown_and_texts_missed(example: Example, tmp_path: Path) -> None:
    shutil.copytree(example.manifest.folder, tmp_path / "m")
    provenance = json.loads((tmp_path / "m" / "provenance.json").read_text())
    told = json.dumps({**provenance, "work": str(tmp_path / "gone")})
    (tmp_path / "m" / "provenance.json").write_text(told)
    files = json.loads((tmp_path / "m" / "files.json").read_text())
    sizes = [{**one, "bytes": len(told)} if one["path"] == "provenance.json" else one for one in files]
    (tmp_path / "m" / "files.json").write_text(json.dumps(sizes))
    moved = Manifest.open(tmp_path / "m")

    page = report(moved)

    assert "--work DIR" in page
    assert "owned" not in page
    assert tables(page) == tables(example.html)
    assert report(moved, work=example.folder / ".tilth") == example.html
    with pytest.raises(UserError, match="not the work directory"):
        report(moved, work=tmp_path)


# --- what a page may meet


def test_a_manifest_without_steps_or_hold_out_has_a_page(tmp_path: Path) -> None:
    write_corpus(tmp_path, 10)
    values = recipe(steps=[])
    del values["holdout"]
    values["sources"]["web"]["max_quarantine"] = 0.5
    values["mixture"]["stages"][0]["tokens"] = 2000
    built(tmp_path, values, tmp_path / "out")

    page = Page(report(Manifest.open(tmp_path / "out")))

    assert "There is no hold-out" in page.shown
    assert 'id="thresholds"' not in report(Manifest.open(tmp_path / "out"))


def test_infinite_and_missing_values_are_counted_and_drawn(tmp_path: Path) -> None:
    values = recipe(
        sources={"a": {"files": "a/*.jsonl", "columns": ["score"]}},
        steps=[{"keep": "score >= 2"}],
    )
    values["mixture"] = {
        "sequence_length": 64,
        "components": {"a": "source = 'a'"},
        "stages": [{"name": "s", "tokens": 500, "weights": {"a": 1}}],
    }
    del values["holdout"]
    numbers = ["1e999", "-1e999", "null", "1.5", "2.5", "3.5", "4", "5", *(str(number / 2) for number in range(30))]
    lines = [f'{{"text": "{text_of(number)}", "score": {score}}}' for number, score in enumerate(numbers)]
    write_file(tmp_path / "a" / "a.jsonl", "\n".join(lines).encode())
    built(tmp_path, values, tmp_path / "out")
    manifest = Manifest.open(tmp_path / "out")

    _, (table,) = tables(report(manifest))

    kept = manifest.sources["a"]["kept"]
    assert table.stays[0][table.here] == kept
    finite = [float(number) for number in numbers if number not in ("null", "1e999", "-1e999")]
    pool = pl.read_parquet(tmp_path / "out" / "pool" / "*.parquet")
    infinite = int(pool["score"].is_infinite().sum())
    for stop, threshold in enumerate(table.stops):
        expected = sum(threshold <= number for number in finite) + (infinite > 0)
        assert table.stays[0][stop] + table.returns[0][stop] == expected


def test_a_page_about_many_sources_puts_the_smallest_together(tmp_path: Path) -> None:
    names = [f"s{number:02}" for number in range(30)]
    for number, name in enumerate(names):
        lines = [json.dumps({"text": text_of(1000 * number + line)}) for line in range(2 + number)]
        write_file(tmp_path / name / "a.jsonl", "\n".join(lines).encode())
    values = recipe(sources={name: {"files": f"{name}/*.jsonl"} for name in names}, steps=[{"keep": "bytes >= 200"}])
    values["mixture"] = {
        "sequence_length": 64,
        "components": {"all": "bytes > 0"},
        "stages": [{"name": "s", "tokens": 500, "weights": {"all": 1}}],
    }
    del values["holdout"]
    built(tmp_path, values, tmp_path / "out")
    manifest = Manifest.open(tmp_path / "out")

    sources, (table,) = tables(report(manifest))

    assert sources == [*names[6:], "6 smaller sources"]
    assert sum(row[table.here] for row in table.stays) == sum(one["kept"] for one in manifest.sources.values())
    assert table.stays[-1][table.here] == sum(manifest.sources[name]["kept"] for name in names[:6])


def test_runs_are_shown_with_the_gap_of_their_guards(example: Example, tmp_path: Path) -> None:
    run = tmp_path / "a<run>"
    run.mkdir()
    lines = [{"tokens": tokens, "loss": 5.0, "learning_rate": 1e-3, "manifest": "another"} for tokens in (100, 200)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = [(0, 4.0), (100, 4.5), (200, 3.9)]
    append(run / "measurements.jsonl", [Measurement("r", "d", None, "loss/general", "guard", t, None, None, 17, v, None) for t, v in curve])

    page = Page(report(example.manifest, [run]))

    assert page.row("a<run>") == ["a<run>", "loss/general", "0.5000", "100", "200", "+0.1000"]
    assert "Trained on another manifest than this one" in page.shown
    with pytest.raises(UserError, match="not a run"):
        report(example.manifest, [tmp_path])


def test_what_was_asked_of_a_model_is_shown_with_its_yield(tmp_path: Path) -> None:
    write_corpus(tmp_path, 20)
    values = recipe(
        steps=[{"add": {"copy_of": {"kind": "exact"}}}, {"keep": "copy_of IS NULL"}, {"keep": "grounded IS NULL OR grounded >= 0.5"}]
    )
    values["sources"]["web"]["max_quarantine"] = 0.5
    with Answering().running() as answering:
        backend = {"kind": "server", "url": answering.url, "in_flight": 4}
        asked = {"from": "source = 'code'", "template": "qa", "per_document": 3, "model": "m", "backend": backend}
        values["sources"]["qa"] = {"synthesize": asked}
        values["mixture"]["components"]["made"] = "source = 'qa'"
        values["mixture"]["stages"] = [{"name": "adapt", "tokens": 3000, "weights": {"domain": 0.3, "replay": 0.6, "made": 0.1}}]
        built(tmp_path, values, tmp_path / "out")
    manifest = Manifest.open(tmp_path / "out")
    made = manifest.sources["qa"]
    prompts = sum(one["kept"] for name, one in manifest.sources.items() if name == "code")

    html_page = report(manifest)

    section = Page(html_page[html_page.index('<section id="synthesis">') : html_page.index('<section id="holdout">')])
    cells = section.row("qa")
    assert (cells[2], cells[4], cells[5]) == (f"{prompts:,}", f"{made['read']:,}", f"{made['kept']:,}")
    _, found = tables(html_page)
    grounded = next(one for one in found if one.value == "grounded")
    assert [row[grounded.here] for row in grounded.stays] == [
        manifest.sources[source["name"]]["kept"] for source in manifest.header["recipe"]["sources"]
    ]
    assert "was written by a model" in Page(html_page).shown


def test_a_plan_that_names_what_is_not_there_is_refused(example: Example, tmp_path: Path) -> None:
    shutil.copytree(example.manifest.folder, tmp_path / "m")
    manifest = Manifest.open(tmp_path / "m")
    manifest.stage_arrays[0] = manifest.stage_arrays[0]._replace(
        columns=(manifest.stage_arrays[0].columns[0], manifest.stage_arrays[0].columns[1] + 10**6, *manifest.stage_arrays[0].columns[2:])
    )

    with pytest.raises(UserError, match="curate verify"):
        report(manifest)


def test_the_command_writes_the_page_and_proves_the_manifest_when_asked(example: Example, tmp_path: Path) -> None:
    output = tmp_path / "sub" / "page.html"

    plain = CliRunner().invoke(main, ["report", str(example.manifest.folder), "-o", str(output)])
    assert (plain.exit_code, output.read_text()) == (0, example.html)
    assert plain.stdout.startswith(f"{output}: ")

    proved = CliRunner().invoke(main, ["report", str(example.manifest.folder), "-o", str(output), "--verify"])
    assert proved.exit_code == 0
    shown = Page(output.read_text()).shown
    assert "not read again here" not in shown
    assert re.search(r"(\d+) of \1 checks hold", shown)
    refused = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert refused.exit_code == 2


# --- axes


def test_stops_are_short_numbers_with_the_recipes_own_among_them() -> None:
    spread = Spread()
    spread.known, spread.low, spread.high, spread.whole = 1000, 0.0, 0.999123, False
    spread.draw(pl.Series([number * 0.000999123 for number in range(1000)]).to_numpy(), pl.Series(range(1000), dtype=pl.UInt64).to_numpy())
    spread.finish()

    stops = stops_of(spread, axis_of(spread, [0.123456]), 0.123456)

    assert 0.123456 in stops
    inner = [stop for stop in stops[1:-1] if stop != 0.123456]
    assert all(float(f"{stop:.3g}") == stop for stop in inner)
    assert stops[0] <= spread.low
    assert stops[-1] >= spread.high


@given(st.floats(1e-6, 1e6), st.floats(1.1, 1e6), st.sampled_from([None, 0.0, 1.0]))
def test_an_axis_places_its_ends_and_counts_what_lies_beyond_to_the_outermost_bars(low: float, factor: float, shift: float | None) -> None:
    axis = Axis(low, low * factor, 10, shift)
    values = pl.Series([low, low * factor, -1e300, 1e300, float("inf"), float("-inf")]).to_numpy()

    assert (axis.place(low), axis.place(low * factor)) == (0.0, 1.0)
    assert axis.bar(values).tolist() == [0, 9, 0, 9, 9, 0]
