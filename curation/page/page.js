"use strict";
// Sliders over counts that were made with the page: nothing is estimated here, every number is looked up. Without this script histograms and marks remain, and nothing moves.

const numbers = JSON.parse(document.getElementById("numbers").textContent);
const grouped = new Intl.NumberFormat("en-US");
const signs = { ">=": "≥", "<=": "≤", ">": ">", "<": "<" };

const sums = (table) => table.map((row) => { let total = 0; return row.map((step) => (total += step)); });
const added = (table, stop) => table.reduce((total, row) => total + row[stop], 0);

function written(value) {
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return String(Number(value.toPrecision(6)));
  return grouped.format(value) === "0" && value !== 0 ? String(value) : new Intl.NumberFormat("en-US", { maximumSignificantDigits: 8 }).format(value);
}

function change(now, before) {
  if (now === before) return "–";
  const part = before ? ` (${now > before ? "+" : "−"}${(Math.abs(now - before) / before * 100).toFixed(1)} %)` : "";
  return (now > before ? "+" : "−") + grouped.format(Math.abs(now - before)) + part;
}

function cell(row, text, kind) {
  const made = document.createElement(kind === "name" ? "th" : "td");
  if (kind === "name") { made.className = "text"; made.scope = "row"; }
  if (kind === "fewer") made.className = "fewer";
  made.textContent = text;
  row.append(made);
}

function wire(card) {
  const one = numbers.thresholds[Number(card.dataset.nth)];
  const [documents, tokens] = one.stays.map(sums);
  const [back, backTokens] = one.returns.map(sums);
  const input = card.querySelector("input"), output = card.querySelector("output"), said = card.querySelector(".said");
  const button = card.querySelector(".back"), body = card.querySelector("tbody"), fails = card.querySelector(".fails");
  const line = card.querySelector(".chosen"), width = card.querySelector("svg").viewBox.baseVal.width;
  const failsLeft = one.operator.startsWith(">");
  let stop = one.here;

  function row(name, at, kind) {
    const made = document.createElement("tr");
    made.className = kind;
    const now = at(documents, stop), before = at(documents, one.here), returned = at(back, stop);
    cell(made, name, "name");
    cell(made, grouped.format(now));
    cell(made, change(now, before), now < before ? "fewer" : "");
    cell(made, grouped.format(at(tokens, stop)));
    cell(made, returned ? "+" + grouped.format(returned) : "–");
    cell(made, returned ? grouped.format(at(backTokens, stop)) : "–");
    body.append(made);
  }

  function show() {
    const x = one.places[stop] * width, sign = signs[one.operator];
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    fails.setAttribute("x", failsLeft ? 0 : x);
    fails.setAttribute("width", failsLeft ? x : width - x);
    input.value = Math.round(one.places[stop] * 1000);
    output.textContent = `${sign} ${written(one.stops[stop])}`;
    said.textContent = stop === one.here ? "as in the recipe" : `the recipe has ${sign} ${written(one.stops[one.here])}`;
    button.hidden = stop === one.here;
    body.replaceChildren();
    numbers.sources.forEach((name, place) => row(name, (table, at) => table[place][at], ""));
    if (numbers.sources.length > 1) row("all", added, "all");
    input.setAttribute("aria-valuetext", `${output.textContent}: ${grouped.format(added(documents, stop))} documents kept, ${grouped.format(added(back, stop))} come back`);
  }

  function move(to) {
    stop = Math.max(0, Math.min(one.stops.length - 1, to));
    show();
  }

  input.addEventListener("input", () => {
    const place = Number(input.value) / 1000;
    let nearest = 0;
    one.places.forEach((other, at) => { if (Math.abs(other - place) < Math.abs(one.places[nearest] - place)) nearest = at; });
    move(nearest);
  });
  input.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -one.stops.length, End: one.stops.length }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    move(stop + by);
  });
  button.addEventListener("click", () => { move(one.here); input.focus(); });
  show();
}

document.querySelectorAll(".threshold").forEach(wire);

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

let opened = [];
addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; opened.forEach((one) => { one.open = true; }); });
addEventListener("afterprint", () => { opened.forEach((one) => { one.open = false; }); });
