"""The 360 chart: every axis of Efficiency 360 against the uncompressed baseline, in one picture (Patro & Agneeswaran 2023).

Inline SVG without script. A spoke is a headline measure of an axis (`spokes.SPOKES`), on a logarithmic scale from
1/4 to 4 with the baseline as a circle in its middle. What was not measured keeps its spoke, dashed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from effvit_train.report import format as fmt
from effvit_train.report import markup, words
from effvit_train.report.charts import escape
from effvit_train.report.compare import Comparison
from effvit_train.report.spokes import LIMIT, SPOKES, Reading, readings

WIDTH, HEIGHT = 460, 340
CENTRE_X, CENTRE_Y = WIDTH / 2, HEIGHT / 2
INNER, OUTER = 18.0, 110.0  # radii of factors 1/4 and 4
OFF_SCALE = OUTER + 8  # of the open marks of what was not measured
LABEL = OUTER + 21
LINE, GAP = 15.0, 33.0  # of the labels, which have two lines: between the lines, and from label to label
RINGS = ((0.25, "¼"), (0.5, "½"), (1.0, "1"), (2.0, "2"), (4.0, "4"))

_HEADING = "All axes against the baseline"


def section(comparison: Comparison) -> str:
    """Chart, legend and table; without a baseline, what was measured as a list."""
    if comparison.baseline.card is None:
        return _without_baseline(comparison)
    found = readings(comparison)
    body = (
        f'<div class="pair">{svg(found)}<div>{_legend(found)}</div></div>{_table(found)}'
        '<p class="hint">Whatever the chance of the training does (its seed) is not in these factors; '
        "“within noise” is said where the choice of test images, or the usual scatter of times, explains them.</p>"
    )
    return markup.section(_HEADING, body)


def radius(factor: float) -> float:
    """Distance from the centre of a factor, which is brought to the scale."""
    within = min(LIMIT, max(1 / LIMIT, factor))
    return INNER + (math.log(within) / math.log(LIMIT) + 1) / 2 * (OUTER - INNER)


def angle(index: int) -> float:
    """Of a spoke, in radians clockwise from the top; the first is half a step to the right of it."""
    return (index + 0.5) * 2 * math.pi / len(SPOKES)


def place(index: int, distance: float) -> tuple[float, float]:
    """Point on a spoke."""
    turn = angle(index)
    return CENTRE_X + distance * math.sin(turn), CENTRE_Y - distance * math.cos(turn)


def svg(found: Sequence[Reading]) -> str:
    """The chart of all spokes, in their order."""
    told = "; ".join(f"{reading.spoke.name}: {reading.words}" for reading in found)
    parts = [
        f'<svg class="chart c360" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-labelledby="c360-title c360-desc">',
        '<title id="c360-title">Every axis of Efficiency 360 against the uncompressed baseline</title>',
        f'<desc id="c360-desc">{escape(told)}</desc>',
        *_rings(),
        *_outline(found),
    ]
    labels = _label_places(found)
    for index, reading in enumerate(found):
        parts.append(_spoke(index, reading, labels[index]))
    return "".join([*parts, "</svg>"])


def _rings() -> list[str]:
    centre = f'cx="{CENTRE_X:g}" cy="{CENTRE_Y:g}"'
    middle, width = (radius(1) + OUTER) / 2, OUTER - radius(1)
    parts = [
        f'<circle class="outside" {centre} r="{middle:.1f}" stroke-width="{width:.1f}"/>',
        f'<circle class="inside" {centre} r="{radius(1):.1f}"/>',
    ]
    for factor, name in RINGS:
        kind = "ring unit" if factor == 1 else "ring"
        parts.append(f'<circle class="{kind}" {centre} r="{radius(factor):.1f}"/>')
        parts.append(
            f'<text class="scale" x="{CENTRE_X:g}" y="{CENTRE_Y - radius(factor) + 3.5:.1f}" '
            f'text-anchor="middle">{name}</text>'
        )
    return parts


def _outline(found: Sequence[Reading]) -> list[str]:
    """Lines between neighbours that both have a factor: a null leaves a gap."""
    parts = []
    for index, reading in enumerate(found):
        following = (index + 1) % len(found)
        here, there = reading.drawn, found[following].drawn
        if here is not None and there is not None:
            (x1, y1), (x2, y2) = place(index, radius(here)), place(following, radius(there))
            parts.append(f'<line class="outline" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    return parts


def _spoke(index: int, reading: Reading, label: tuple[float, float]) -> str:
    x0, y0 = place(index, INNER)
    tip = escape(f"{reading.spoke.name} ({reading.spoke.axis}): {reading.words}")
    parts = [f'<g class="spoke {reading.verdict}"><title>{tip}</title>']
    if reading.drawn is None:
        x, y = place(index, OFF_SCALE)
        x1, y1 = place(index, OFF_SCALE - 4.5)
        parts.append(f'<line class="dashed" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
        parts.append(f'<circle class="open" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    else:
        x1, y1 = place(index, OUTER)
        parts.append(f'<line class="guide" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
        (xa, ya), (xb, yb) = place(index, radius(1)), place(index, radius(reading.drawn))
        parts.append(f'<line class="stem" x1="{xa:.1f}" y1="{ya:.1f}" x2="{xb:.1f}" y2="{yb:.1f}"/>')
        parts.append(
            _arrow(index, reading)
            if reading.clamped
            else f'<circle class="mark" cx="{xb:.1f}" cy="{yb:.1f}" r="5"/>'
        )
    x, y = label
    anchor = "start" if x > CENTRE_X else "end"
    parts.append(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"><tspan class="axis-name">'
        f'{escape(reading.spoke.name)}</tspan><tspan class="factor" x="{x:.1f}" dy="{LINE:g}">'
        f"{escape(reading.short)}</tspan></text></g>"
    )
    return "".join(parts)


def _arrow(index: int, reading: Reading) -> str:
    """A triangle at the edge of the scale that points to where the factor lies."""
    outwards = reading.factor is not None and reading.factor > 1
    edge = OUTER if outwards else INNER
    degrees = math.degrees(angle(index)) + (0 if outwards else 180)
    x, y = place(index, edge)
    return (
        f'<path class="mark clamped" d="M-6.5,3.5 L6.5,3.5 L0,-8 Z" '
        f'transform="translate({x:.1f} {y:.1f}) rotate({degrees:.1f})"/>'
    )


def _label_places(found: Sequence[Reading]) -> list[tuple[float, float]]:
    """Where each label's first line begins: beside its spoke, those of one side at least `GAP` apart."""
    places = [place(index, LABEL) for index in range(len(found))]
    for right in (True, False):
        for way in (-1, 1):  # from the middle up, and down
            quarter = [
                i
                for i, (x, y) in enumerate(places)
                if (x > CENTRE_X) == right and (y > CENTRE_Y) == (way > 0)
            ]
            quarter.sort(key=lambda i: way * places[i][1])
            for before, i in itertools.pairwise(quarter):
                x, y = places[i]
                places[i] = (x, way * max(way * y, way * places[before][1] + GAP))
    # The block of two lines is centred on its place.
    return [(x, y - LINE / 2 + 4) for x, y in places]


def _legend(found: Sequence[Reading]) -> str:
    """What the marks mean, and how many spokes there are of each."""

    def names(verdict: str) -> str:
        return ", ".join(r.spoke.name for r in found if r.verdict == verdict)

    rows = [
        ("better", _FULL, f"better, outside the circle: {names('better') or 'none'}"),
        ("worse", _FULL, f"worse, inside the circle: {names('worse') or 'none'}"),
    ]  # fmt: skip
    if names("same"):
        rows.append(("same", _FULL, f"same: {names('same')}"))
    if unclear := ", ".join(f"{r.spoke.name} ({r.doubt})" for r in found if r.verdict == "unclear"):
        rows.append(("unclear", _FULL, f"no verdict: {unclear}"))
    if clamped := ", ".join(f"{r.spoke.name} ({r.short})" for r in found if r.clamped):
        rows.append((
            "unclear", '<path class="mark clamped" d="M-6.5,3.5 L6.5,3.5 L0,-8 Z" transform="translate(10 10)"/>',
            f"off the scale, drawn at its edge: {clamped}",
        ))  # fmt: skip
    if nulls := ", ".join(r.spoke.name for r in found if r.factor is None and r.short == "not measured"):
        rows.append(("null", _OPEN, f"not measured: {nulls}"))
    if others := ", ".join(r.spoke.name for r in found if r.factor is None and r.short != "not measured"):
        rows.append(("null", _OPEN, f"no factor: {others}"))
    items = "".join(
        f'<li><svg class="key c360" viewBox="0 0 20 16" aria-hidden="true"><g class="spoke {verdict}">{mark}</g></svg>'
        f"<span>{markup.text(text)}</span></li>"
        for verdict, mark, text in rows
    )
    return (
        '<p class="hint">A spoke is one measure as a factor against the baseline, on a logarithmic scale. The circle is '
        "the baseline: outside is better, inside worse, whichever way the measure itself points. Lines between the "
        f'points only lead the eye.</p><ul class="keys">{items}</ul>'
    )


_FULL = '<circle class="mark" cx="10" cy="8" r="5"/>'
_OPEN = '<line class="dashed" x1="0" y1="8" x2="5" y2="8"/><circle class="open" cx="10" cy="8" r="4.5"/>'


def _table(found: Sequence[Reading]) -> str:
    """Every spoke: value, baseline, factor in words; nulls with their reasons."""
    rows = "".join(_row(reading) for reading in found)
    return (
        '<table class="measures t360"><tbody><tr class="axis"><th scope="col">Measure</th>'
        '<th scope="col" class="num">This run</th><th scope="col" class="num before">Baseline</th>'
        f'<th scope="col" class="change">Factor</th></tr>{rows}</tbody></table>'
    )


def _row(reading: Reading) -> str:
    spoke = reading.spoke
    measure = fmt.measure_of(spoke.key)
    meaning = f"{measure.label}: {measure.definition} Compared by {spoke.by}. Key: {spoke.key}."
    before = reading.before_words or fmt.value(spoke.key, reading.before)
    style = {"null": "unclear"}.get(reading.verdict, reading.verdict)
    axis = "" if spoke.axis == spoke.name else f' <span class="of-axis">{escape(spoke.axis)}</span>'
    return (
        f'<tr><th scope="row"><details><summary>{escape(spoke.name)}{axis}</summary><p>{escape(meaning)}</p></details></th>'
        f'<td class="num">{markup.text(fmt.value(spoke.key, reading.value))}</td>'
        f'<td class="num before">{markup.text(before)}</td>'
        f'<td class="change {style}">{markup.text(reading.words)}</td></tr>'
    )


def _also(reading: Reading) -> str:
    """The measure's own name where the spoke has another."""
    label = fmt.measure_of(reading.spoke.key).label
    return "" if label == reading.spoke.name else f"({label})"


def _without_baseline(comparison: Comparison) -> str:
    """No factors without a baseline: what was measured as a list, what was not by its reason."""
    found = readings(comparison)
    why = words.no_baseline(comparison.card, comparison.baseline)
    known = "".join(
        f"<div><dt>{escape(r.spoke.name)}</dt><dd>{markup.text(fmt.value(r.spoke.key, r.value))} "
        f'<span class="before">{escape(_also(r))}</span></dd></div>'
        for r in found
        if r.value is not None
    )
    reasons: dict[str, list[str]] = {}
    for r in found:
        if r.value is None:
            reasons.setdefault(r.reason, []).append(r.spoke.name)
    missing = "".join(
        f"<div><dt>{escape(', '.join(names))}</dt><dd>not measured: {markup.text(reason)}</dd></div>"
        for reason, names in reasons.items()
    )
    return markup.section(
        "All axes",
        '<p class="hint">The 360 chart shows factors against a baseline, and there is none to draw it with. '
        f"{markup.text(why)}</p>"
        f'<dl class="facts quiet l360">{known}{missing}</dl>',
    )
