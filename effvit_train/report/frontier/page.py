"""`frontier.html`: one file that opens offline. Its script is its own, and no other may run."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from effvit_train.report.charts import escape
from effvit_train.report.frontier.study import Study

_SCRIPTS = ("state", "numbers", "items", "scatter", "words", "table", "selection", "controls")


def render(study: Study, content: dict[str, Any]) -> str:
    """The page.

    Args:
        study: the runs, for what stands above the chart.
        content: of `payload.payload`.
    """
    files = resources.files("effvit_train.report")
    css = files.joinpath("card.css").read_text("utf-8") + files.joinpath("frontier/frontier.css").read_text(
        "utf-8"
    )
    scripts = [files.joinpath(f"frontier/{name}.js").read_text("utf-8") for name in _SCRIPTS]
    js = f'"use strict";\n(() => {{\n{"".join(scripts)}}})();\n'  # one scope, in this order
    digest = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = _title(study)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(title)}</h1><p class="facts">{escape(_facts(study))}</p></header>\n'
        f'<noscript><p class="absent">This page draws with a script of its own. frontier.csv and frontier.json beside it '
        f"hold the same numbers.</p></noscript>\n{_BODY}\n</main>\n"
        f'<script type="application/json" id="data">{embedded(content)}</script>\n'
        f"<script>{js}</script>\n</body>\n</html>\n"
    )


def embedded(content: Any) -> str:
    """JSON that cannot end the element that it stands in, nor open another."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _title(study: Study) -> str:
    count = len(study.entries)
    data = study.sets[0].label if len(study.sets) == 1 else f"{len(study.sets)} data sets"
    return f"{count:,} run{'s' * (count > 1)} on {data}"


def _facts(study: Study) -> str:
    parts = [f"{len(study.arms):,} arm{'s' * (len(study.arms) > 1)} (runs that differ in the seed only)"]
    started = sorted(filter(None, (str(entry.card.run.get("started") or "")[:10] for entry in study.entries)))
    if started:
        parts.append(started[0] if started[0] == started[-1] else f"{started[0]} to {started[-1]}")
    found = study.found
    for left, what in (
        (found.damaged, "damaged"), (found.unfinished, "without a card yet"), (found.trials, "of a single batch"),
    ):  # fmt: skip
        if left:
            parts.append(f"left out: {len(left):,} {what}")
    return " · ".join(parts)


_BODY = """
<div class="needs-script">
<section aria-label="Axes and filters">
<div class="controls">
  <div class="field" id="set-field"><label for="set">Data set</label><select id="set"></select></div>
  <div class="field"><label for="y">Up: measure</label><div class="row"><select id="y"></select>
    <label><input type="checkbox" id="log-y"> log</label></div></div>
  <div class="field"><label for="x">Across: measure</label><div class="row"><select id="x"></select>
    <label><input type="checkbox" id="log-x"> log</label></div></div>
  <div class="field"><label for="also">Further objectives of the front</label><select id="also"></select>
    <ul class="chips" id="further"></ul></div>
  <fieldset><legend>Points</legend><div class="row">
    <label><input type="radio" name="unit" id="arms"> arms (means)</label>
    <label><input type="radio" name="unit" id="runs"> single runs</label></div></fieldset>
</div>
<details id="filters"><summary>Filters and budgets</summary><div class="controls">
  <div class="field"><label for="text">Filter by words</label><input type="search" id="text" autocomplete="off"></div>
  <div class="field"><label for="tech">Techniques</label><select id="tech"></select></div>
  <div class="field"><label for="model">Model</label><select id="model"></select></div>
  <form class="field" id="bound"><span>Add a budget</span><div class="row">
    <select id="bound-key" aria-label="measure of the budget"></select>
    <select id="bound-sign" aria-label="direction of the budget">
      <option value="&lt;=">at most</option><option value="&gt;=">at least</option></select>
    <input type="number" step="any" id="bound-limit" aria-label="limit of the budget"> <span id="bound-unit"></span>
    <button type="submit">Add</button></div></form>
  <fieldset><legend>Budgets</legend><ul class="chips" id="budgets"></ul>
    <div class="row"><label><input type="checkbox" id="hide"> hide what misses one</label></div></fieldset>
</div></details>
</section>
<section aria-label="Front">
  <p class="status" id="status" role="status"></p>
  <div id="plot-area"><div id="plot"></div><p class="absent" id="plot-empty" hidden></p>
    <div class="tip" id="tip" hidden></div></div>
  <ul class="key-list" id="key"></ul>
  <ul class="notes" id="notes"></ul>
  <p class="row"><button type="button" id="reset" hidden>Show all again</button></p>
  <p class="hint">Click a point, or a row of the table, to see it on all axes; up to five at once. The line bounds what the
  front beats. Equal points do not beat each other.</p>
  <p class="unseen" id="said" role="status"></p>
</section>
<section id="selected" hidden><h2>Selected, on all axes</h2><div id="selection"></div>
  <p class="hint">A spoke is one measure as a factor against the reference, on a logarithmic scale: outside the circle is
  better, inside worse, whichever way the measure points.</p></section>
<section id="search" hidden><h2>Privacy of the whole search</h2><ul class="notes" id="spent"></ul></section>
<section><h2>Table</h2>
  <p class="row"><label><input type="checkbox" id="every"> all measures</label></p>
  <div class="table-scroll" id="table" role="region" aria-label="table" tabindex="0"></div>
  <p class="row"><button type="button" id="more" hidden></button></p>
</section>
</div>
<section><p class="hint files">Beside this page: <a href="frontier.csv">frontier.csv</a>
<a href="frontier.json">frontier.json</a></p></section>
""".strip()
