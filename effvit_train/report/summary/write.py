"""Writes `summary.html`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from effvit_train.budgets import Budget
from effvit_train.files import write_text
from effvit_train.report import markup
from effvit_train.report.charts import escape
from effvit_train.report.frontier.privacy import composed
from effvit_train.report.frontier.study import Study
from effvit_train.report.html import POLICY
from effvit_train.report.summary import english, japanese
from effvit_train.report.summary.choice import Choice, Option, choose
from effvit_train.report.summary.facts import facts
from effvit_train.report.summary.sheet import Part, Sheet

_SHEETS = {"en": (english.sheet,), "ja": (japanese.sheet,), "both": (english.sheet, japanese.sheet)}


def write(study: Study, out: Path, *, x: str, y: str, budgets: Sequence[Budget], language: str) -> Path:
    """Write the page into `out`; returns its path.

    Args:
        study: the runs; with one, the page is about it.
        out: a directory that can be written.
        x: measure by which one of several equally good runs is taken.
        y: measure by which runs are good.
        budgets: bounds that a recommended run meets.
        language: en | ja | both, a printed page each.
    """
    path = out / "summary.html"
    write_text(path, render(study, x=x, y=y, budgets=budgets, language=language))
    return path


def render(study: Study, *, x: str, y: str, budgets: Sequence[Budget], language: str) -> str:
    """The page as text."""
    choice = choose(study, x=x, y=y, budgets=budgets)
    known = None if choice.chosen is None else facts(study, choice.chosen, composed(study))
    sheets = [make(known, choice, _table(choice)) for make in _SHEETS[language]]
    return _page(sheets)


def _table(choice: Choice) -> list[Option]:
    """The chosen option, then the best, the cheapest and the best whatever the budgets, where they are others."""
    found: list[Option] = []
    for option in (choice.chosen, choice.best, choice.cheapest, choice.unbounded):
        if option is not None and not any(option is known for known in found):
            found.append(option)
    return found


def _page(sheets: Sequence[Sheet]) -> str:
    files = resources.files("effvit_train.report")
    css = files.joinpath("card.css").read_text("utf-8") + files.joinpath("summary/summary.css").read_text(
        "utf-8"
    )
    body = "\n".join(_article(one) for one in sheets)
    return (
        f'<!doctype html>\n<html lang="{sheets[0].language}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(sheets[0].title)}</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _article(sheet: Sheet) -> str:
    kind = "decision" if sheet.good else "decision not"
    columns = "".join(f"<div>{''.join(_part(part) for part in column)}</div>" for column in sheet.columns)
    foot = "".join(f'<p class="foot">{markup.text(line)}</p>' for line in sheet.foot)
    return (
        f'<article lang="{sheet.language}">\n<h1>{escape(sheet.title)}</h1>\n<p class="facts">{escape(sheet.subtitle)}</p>\n'
        f'<div class="{kind}"><p class="verdict">{markup.text(sheet.verdict)}</p>{_list(sheet.lead)}</div>\n'
        f'<div class="sheet">{columns}</div>\n{_options(sheet)}{foot}\n</article>'
    )


def _part(part: Part) -> str:
    figure = (
        f'<p class="figure"><span class="big">{markup.text(part.number)}</span>'
        f'<span class="caption">{markup.text(part.caption)}</span></p>'
        if part.number
        else ""
    )
    return f"<section><h2>{escape(part.heading)}</h2>{figure}{_list(part.lines)}</section>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{markup.text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _options(sheet: Sheet) -> str:
    if not sheet.rows:
        return ""
    used = [place for place, head in enumerate(sheet.heads) if head or place == 0]
    heads = "".join(
        f'<th scope="col"{"" if place == 0 else _NUMBER}>{escape(sheet.heads[place])}</th>' for place in used
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{_NUMBER}>{markup.text(row[place])}</td>" for place in used[1:])
        + "</tr>"
        for row in sheet.rows
    )
    return (
        f'<h2>{escape(sheet.table_heading)}</h2><div class="scroll"><table class="options"><thead><tr>{heads}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


_NUMBER = ' class="num"'
