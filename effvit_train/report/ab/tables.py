"""Tables of a comparison as HTML: differences with their intervals drawn, and costs."""

from __future__ import annotations

from collections.abc import Sequence

from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.ab import words
from effvit_train.report.ab.cards import Cost, Priced
from effvit_train.report.ab.outcome import ACCURACY, Outcome
from effvit_train.report.ab.rows import Row
from effvit_train.report.charts import clip, escape

SHOWN = 20  # rows before the rest folds away
_WIDTH = 200  # of the drawing, whose ends are the widest interval's


def accuracies(outcome: Outcome, rows: Sequence[Row], what: str) -> str:
    """Accuracy per class or group: with the number of images, and each interval drawn around 0."""
    plot = max((max(abs(row.low or 0), abs(row.high or 0), abs(row.difference)) for row in rows), default=0.0)
    head = _head(
        what, [("images", "num less"), ("A", "num less"), ("B", "num less"), ("B − A", "num")],
        outcome, plot=True,
    )  # fmt: skip
    lines = [
        f'<tr><th scope="row">{escape(clip(row.name, 40))}</th>'
        f'<td class="num less">{row.images:,}</td>'
        f'<td class="num less">{markup.text(words.value(ACCURACY, row.a))}</td>'
        f'<td class="num less">{markup.text(words.value(ACCURACY, row.b))}</td>'
        f"{_tested(row, ACCURACY, plot=plot)}</tr>"
        for row in rows
    ]
    return _folded(head, lines)


def measures(outcome: Outcome, rows: Sequence[Row]) -> str:
    """Measures of any unit, with their definitions."""
    head = _head("measure", [("A", "num less"), ("B", "num less"), ("B − A", "num")], outcome, plot=False)
    lines = [
        f'<tr><th scope="row">{_defined(row.name)}</th>'
        f'<td class="num less">{markup.text(words.value(row.name, row.a))}</td>'
        f'<td class="num less">{markup.text(words.value(row.name, row.b))}</td>{_tested(row, row.name)}</tr>'
        for row in rows
    ]
    return _folded(head, lines)


def costs(rows: Sequence[Cost], priced: Priced | None) -> str:
    """Numbers without a test, and the price of a million images."""
    lines = [
        f'<tr><th scope="row">{_defined(cost.key)}</th>'
        f'<td class="num">{markup.text(words.value(cost.key, cost.a))}</td>'
        f'<td class="num">{markup.text(words.value(cost.key, cost.b))}</td>{_change(cost.change, cost.reason)}</tr>'
        for cost in rows
    ]
    if priced is not None:
        lines += _priced(priced)
    head = (
        '<thead><tr><th scope="col"></th><th scope="col" class="num">A</th><th scope="col" class="num">B</th>'
        '<th scope="col" class="is">B is</th></tr></thead>'
    )
    table = f'<table class="ab">{head}<tbody>{"".join(lines)}</tbody></table>' if lines else ""
    reasons = {fmt.measure_of(cost.key).label: cost.reason for cost in rows}
    if priced is not None:
        reasons["Cost per million images"] = priced.reason
    absent = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(reason)}</dd></div>"
        for name, reason in reasons.items()
        if reason
    )
    return table + (f'<h3>Not known</h3><dl class="facts quiet">{absent}</dl>' if absent else "")


def _priced(priced: Priced) -> list[str]:
    return [
        f'<tr><th scope="row">{escape(name.strip())}</th>'
        + "".join(
            f'<td class="num">{markup.text(words.amount(priced.currency, one))}</td>' for one in amounts
        )
        + (_change(change, priced.reason) if number == 0 else _change(None, ""))
        + "</tr>"
        for number, (name, amounts, change) in enumerate(words.priced(priced))
    ]


def _change(change: fmt.Change | None, reason: str) -> str:
    if change is None:
        return f'<td class="is unclear">{"not known" if reason else ""}</td>'
    return f'<td class="is {change.verdict}">{markup.text(change)}</td>'


def _tested(row: Row, key: str, *, plot: float | None = None) -> str:
    style = "unclear" if row.verdict == "same" else row.verdict
    p = f"by itself: {words.p_value(row.p_value)} ({row.test})"
    return (
        f'<td class="num">{markup.text(words.signed(key, row.difference))}</td>'
        + ("" if plot is None else f'<td class="plot {row.verdict}">{_drawn(row, plot)}</td>')
        + f'<td class="num less">{markup.text(words.ends(key, row))}</td>'
        f'<td class="num" title="{escape(p)}">{markup.text(words.p_value(row.corrected))}</td>'
        f'<td class="is {style}">{escape(words.word(row))}</td>'
    )


def _drawn(row: Row, widest: float) -> str:
    """A dot with its interval on a line whose middle is 0."""
    if widest <= 0:
        return ""

    def at(value: float) -> float:
        return _WIDTH / 2 * (1 + value / widest)

    interval = ""
    if row.low is not None and row.high is not None:
        interval = f'<line class="range" x1="{at(row.low):.1f}" x2="{at(row.high):.1f}" y1="8" y2="8"/>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} 16" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="zero" x1="{_WIDTH / 2:g}" x2="{_WIDTH / 2:g}" y1="0" y2="16"/>{interval}'
        f'<circle class="at" cx="{at(row.difference):.1f}" cy="8" r="4"/></svg>'
    )


def _head(what: str, columns: Sequence[tuple[str, str]], outcome: Outcome, *, plot: bool) -> str:
    cells = "".join(f'<th scope="col" class="{style}">{escape(name)}</th>' for name, style in columns)
    drawn = '<th scope="col" class="plot">worse – better</th>' if plot else ""
    interval = markup.text(f"{words.coverage(outcome)} interval")
    return (
        f'<thead><tr><th scope="col">{escape(what)}</th>{cells}{drawn}<th scope="col" class="num less">{interval}</th>'
        '<th scope="col" class="num">p</th><th scope="col" class="is">B is</th></tr></thead>'
    )


def _folded(head: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    table = f'<table class="ab">{head}<tbody>{"".join(lines[:SHOWN])}</tbody></table>'
    if lines[SHOWN:]:
        table += (
            f"<details><summary>{len(lines) - SHOWN:,} more</summary>"
            f'<table class="ab">{head}<tbody>{"".join(lines[SHOWN:])}</tbody></table></details>'
        )
    return table


def _defined(key: str) -> str:
    """The measure's name, with the unit that its numbers go without, over its definition."""
    measure = fmt.measure_of(key)
    bare = words.value(key, 1.0) != fmt.value(key, 1.0)
    unit = f' <span class="of">{escape(measure.unit)}</span>' * bare
    meaning = f"{measure.definition} {measure.better.capitalize()} is better."
    return f"<details><summary>{escape(measure.label)}{unit}</summary><p>{escape(meaning)}</p></details>"
