"""Pieces of HTML that every part of the card uses."""

from __future__ import annotations

import re
from typing import Any

from effvit_train.report.charts import escape

_RANGE = re.compile(r"(?<=\d)–(?=\d)")
_UNIT = re.compile(r"(?<=\d) (?=(?:%|pp|ms|MB|GB|min|h|nats|[TGMks])(?![\w/]))")


def section(heading: str, body: str) -> str:
    """A part of the page; nothing when it is empty."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>" if body else ""


def absent(sentence: str) -> str:
    """A sentence in the place of what is missing."""
    return f'<p class="absent">{escape(sentence)}</p>'


def text(content: object) -> str:
    """Escaped text whose numbers stay on one line with their units."""
    whole_ranges = _RANGE.sub("\u2060–\u2060", str(content))
    return escape(_UNIT.sub("\u00a0", whole_ranges))


def number_with_unit(written: str) -> str:
    """A number whose unit is set smaller: `97.8 %`."""
    number, _, unit = written.partition(" ")
    return f'{escape(number)}<span class="unit">\u00a0{escape(unit)}</span>' if unit else escape(number)


def plain(name: object) -> str:
    """A key as words."""
    return str(name).replace("_", " ")


def scalar(content: Any) -> str:
    """Any JSON value as text."""
    if isinstance(content, bool):
        return "yes" if content else "no"
    if isinstance(content, float):
        return f"{content:.6g}"
    if isinstance(content, dict):
        return ", ".join(f"{plain(k)} {scalar(v)}" for k, v in content.items())
    if isinstance(content, (list, tuple)):
        return ", ".join(scalar(item) for item in content)
    return str(content)


def facts(heading: str, known: dict[str, Any]) -> str:
    """A titled list of what is known; nothing when nothing is."""
    rows = "".join(
        f"<div><dt>{escape(name if heading == 'Versions' else plain(name))}</dt>"
        f"<dd>{escape(scalar(content))}</dd></div>"
        for name, content in known.items()
        if content not in (None, "", [], {})
    )
    return f'<div class="block"><h3>{escape(heading)}</h3><dl class="facts">{rows}</dl></div>' if rows else ""
