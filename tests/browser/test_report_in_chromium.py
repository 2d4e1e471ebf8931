"""The page in a browser: every section, the sliders against Polars, the keyboard, narrow and dark, no error, no request. `make test-browser`.

Chromium and its driver are looked for on the path, or named by CHROMIUM and CHROMEDRIVER; without them, or without selenium (extra `browser`), all of this is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import polars as pl
import pytest

pytest.importorskip("selenium", reason="selenium drives the browser: pip install 'tilth[browser]'")

from reports import APART, OVERRIDE, SCRIPT, manifest_in, tables
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from curation.page.compose import report
from mixing.manifest import Manifest
from mixing.measurements import Measurement, append

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with chromedriver here; set CHROMIUM and CHROMEDRIVER"),
]


class Opened(NamedTuple):
    driver: Any
    manifest: Manifest
    html: str


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("browser")
    manifest = Manifest.open(manifest_in(folder))
    run = folder / "run"
    run.mkdir()
    lines = [{"tokens": tokens, "loss": 5.0, "learning_rate": 1e-3} for tokens in (100, 200)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = [(0, 4.0), (100, 4.5), (200, 3.9)]
    append(run / "measurements.jsonl", [Measurement("r", "d", None, "loss/x", "guard", t, None, None, 17, v, None) for t, v in curve])
    page = folder / "report.html"
    page.write_text(report(manifest, [run]), encoding="utf-8")
    options = Options()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.get(page.as_uri())
        yield Opened(driver, manifest, page.read_text(encoding="utf-8"))
    finally:
        driver.quit()


def card(opened: Opened, value: str, operator: str) -> Any:
    """The threshold's card, its folder opened if it lies in one."""
    _, found = tables(opened.html)
    nth = next(number for number, one in enumerate(found) if (one.value, one.operator) == (value, operator))
    element = opened.driver.find_element(By.CSS_SELECTOR, f'.threshold[data-nth="{nth}"]')
    opened.driver.execute_script(
        "for (let at = arguments[0]; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true", element
    )
    return element


def cells(element: Any) -> dict[str, list[int]]:
    """Per source: documents kept, tokens, documents and tokens that come back."""
    found = {}
    for row in element.find_elements(By.CSS_SELECTOR, "tbody tr"):
        name, kept, _, tokens, back, back_tokens = (cell.text for cell in row.find_elements(By.XPATH, "./*"))
        found[name] = [0 if text == "–" else int(text.replace(",", "").replace("+", "")) for text in (kept, tokens, back, back_tokens)]
    return found


def counted(manifest: Manifest, rule: str, template: str, threshold: float) -> dict[str, list[int]]:
    """The same numbers from the pool."""
    pool = pl.read_parquet(manifest.folder / "pool" / "*.parquet")
    known = pool.filter(pl.col("n_tokens").is_not_null())
    found = {}
    for source in [*manifest.sources, "all"]:
        numbers = []
        for chosen in (pool.filter(decision="kept"), pool.filter(pl.col("reason").is_in([rule, f"{rule} (no value)"]), decision="dropped")):
            there = pl.SQLContext(pool=chosen, eager=True).execute(f"SELECT * FROM pool WHERE {template.format(threshold)}")
            tokens = 0
            for name in manifest.sources:
                mine, rate = there.filter(source=name), known.filter(source=name)
                rate = rate if rate.height else known
                missing = mine.filter(pl.col("n_tokens").is_null())["bytes"].sum()
                estimate = round(mine["n_tokens"].sum() + missing * rate["n_tokens"].sum() / rate["bytes"].sum())
                tokens += estimate if source in (name, "all") else 0
            documents = there.height if source == "all" else there.filter(source=source).height
            numbers += [documents, tokens]
        found[source] = numbers
    return found


def test_every_section_is_there_and_reached_from_the_top(opened: Opened) -> None:
    links = opened.driver.find_elements(By.CSS_SELECTOR, "nav a")
    sections = [section.get_attribute("id") for section in opened.driver.find_elements(By.CSS_SELECTOR, "main > section")]

    assert [str(link.get_attribute("href")).partition("#")[2] for link in links] == sections
    assert {
        "summary",
        "funnel",
        "mixture",
        "thresholds",
        "signals",
        "duplicates",
        "examples",
        "holdout",
        "sources",
        "training",
        "recipe",
    } == set(sections)
    for link, name in zip(links, sections, strict=True):
        opened.driver.execute_script("arguments[0].click()", link)
        box = opened.driver.execute_script(
            "const r = document.getElementById(arguments[0]).getBoundingClientRect(); return [r.top, r.bottom]", name
        )
        assert box[0] < 1000
        assert box[1] > 0
        assert opened.driver.find_element(By.ID, name).find_element(By.CSS_SELECTOR, "h1, h2").is_displayed()
    for closed in opened.driver.find_elements(By.CSS_SELECTOR, "details:not([open])"):
        opened.driver.execute_script("arguments[0].open = true", closed)
    assert all(figure.is_displayed() for figure in opened.driver.find_elements(By.CSS_SELECTOR, "figure.document"))


@pytest.mark.parametrize(
    ("value", "operator", "rule", "template"),
    [
        (
            "words.mean_length",
            "<=",
            f"{APART} OR words.words >= 10 AND words.mean_length <= 7.3",
            APART + " OR words.words >= 10 AND words.mean_length <= {}",
        ),
        ("score", "<", "source = 'code' OR NOT (score < 4)", "source = 'code' OR NOT (score < {})"),
        ("bytes", "<=", f"{APART} OR bytes BETWEEN 60 AND 500", APART + " OR bytes BETWEEN 60 AND {}"),
    ],
)
def test_the_slider_shows_what_polars_counts_at_every_place(opened: Opened, value: str, operator: str, rule: str, template: str) -> None:
    element = card(opened, value, operator)
    slider = element.find_element(By.CSS_SELECTOR, "input")
    _, found = tables(opened.html)
    table = next(one for one in found if (one.value, one.operator) == (value, operator))

    assert cells(element) == counted(opened.manifest, rule, template, table.stops[table.here])
    slider.send_keys(Keys.HOME)
    seen = set()
    for stop in range(0, len(table.stops), 6):
        assert cells(element) == counted(opened.manifest, rule, template, table.stops[stop]), stop
        seen.add(element.find_element(By.CSS_SELECTOR, "output").text)
        slider.send_keys(Keys.ARROW_RIGHT * 6)
    assert len(seen) > 2
    for place in (120, 830):  # as the mouse does
        opened.driver.execute_script("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, place)
        shown = element.find_element(By.CSS_SELECTOR, "output").text
        stop = min(table.stops, key=lambda one: abs(one - float(shown.split()[1].replace(",", ""))))
        assert cells(element) == counted(opened.manifest, rule, template, stop)
    element.find_element(By.CSS_SELECTOR, ".back").click()
    assert cells(element) == counted(opened.manifest, rule, template, table.stops[table.here])
    assert not element.find_element(By.CSS_SELECTOR, ".back").is_displayed()


def test_everything_that_acts_is_reached_by_the_keyboard(opened: Opened) -> None:
    opened.driver.execute_script(
        "document.querySelectorAll('details').forEach(one => { one.open = true; }); document.querySelector('nav a').focus()"
    )
    reached = set()
    for _ in range(400):
        opened.driver.switch_to.active_element.send_keys(Keys.TAB)
        active = opened.driver.switch_to.active_element
        if active.tag_name == "body":
            break
        reached.add(
            opened.driver.execute_script(
                "return arguments[0].tagName + (arguments[0].id || arguments[0].closest('[data-nth]')?.dataset.nth || '')", active
            )
        )
    sliders = len(opened.driver.find_elements(By.CSS_SELECTOR, ".threshold"))

    assert "BUTTONtheme" in reached
    assert {f"INPUT{number}" for number in range(sliders)} <= reached
    assert "A" in reached


def test_planted_script_and_override_are_text(opened: Opened) -> None:
    for closed in opened.driver.find_elements(By.CSS_SELECTOR, "details:not([open])"):
        opened.driver.execute_script("arguments[0].open = true", closed)
    texts = [element.text for element in opened.driver.find_elements(By.CSS_SELECTOR, "pre")]

    assert opened.driver.title == "small v1: manifest report"
    assert any(text.startswith(SCRIPT) for text in texts)
    assert any(text.startswith(OVERRIDE.replace("\u202e", "U+202E")) for text in texts)
    assert opened.driver.find_elements(By.CSS_SELECTOR, "img") == []
    assert len(opened.driver.find_elements(By.CSS_SELECTOR, "script")) == 2


def test_light_and_dark_follow_the_system_and_the_button(opened: Opened) -> None:
    def paper() -> str:
        return str(opened.driver.execute_script("return getComputedStyle(document.body).backgroundColor"))

    colours = {}
    for scheme in ("light", "dark"):
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        colours[scheme] = paper()
    assert colours["light"] == "rgb(255, 255, 255)"
    assert colours["dark"] != colours["light"]
    opened.driver.find_element(By.ID, "theme").click()
    assert paper() == colours["light"]
    opened.driver.find_element(By.ID, "theme").click()
    assert paper() == colours["dark"]


def test_a_narrow_window_scrolls_only_down(opened: Opened) -> None:
    opened.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        wide = opened.driver.execute_script("return document.documentElement.scrollWidth")
    finally:
        opened.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    assert 0 < wide <= 400


def test_printing_opens_what_is_closed(opened: Opened) -> None:
    opened.driver.execute_script("document.querySelectorAll('details').forEach(one => { one.open = false; })")
    pdf = opened.driver.execute_cdp_cmd("Page.printToPDF", {})

    assert len(pdf["data"]) > 10_000
    opened.driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert opened.driver.find_elements(By.CSS_SELECTOR, "details:not([open])") == []


def test_the_console_is_silent_and_nothing_is_requested(opened: Opened) -> None:
    """Last, so that the log covers what the other tests did too."""
    time.sleep(0.2)
    events = [json.loads(entry["message"])["message"] for entry in opened.driver.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    page = str(opened.driver.current_url).partition("#")[0]
    requested = {one["request"]["url"].partition("#")[0] for one in sent if one["documentURL"].startswith(page)}

    assert opened.driver.get_log("browser") == []
    assert requested == {page}
    assert not [one["request"]["url"] for one in sent if one["request"]["url"].startswith(("http", "ws"))]
