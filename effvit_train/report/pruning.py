"""What was cut out of the model: every block's widths before and after."""

from __future__ import annotations

import re
from typing import Any

from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.charts import escape
from effvit_train.report.inputs import RunData, as_dict, as_dicts, as_list

_KINDS = {"heads": "Heads", "head_width": "Width of a head", "mlp": "MLP", "embed": "Embedding"}
_LAST = {"heads": ".heads", "head_width": ".head_width", "embed": "embed"}
_COSTS = {"macs": "MACs", "params": "parameters", "latency_ms": "latency"}


def section(data: RunData) -> str:
    """Widths before and after, and how it came to them; nothing where nothing was cut."""
    pruning = as_dict(data.card.provenance.get("pruning"))
    start = as_dict(pruning.get("start_widths"))
    made = as_dicts(pruning.get("cuts"))
    if not made or not start:
        return ""
    end, dropped = dict(start), set()
    for cut in made:
        end |= as_dict(cut.get("widths"))
        dropped |= set(as_list(cut.get("blocks")))
    hints = "".join(f'<p class="hint">{markup.text(line)}</p>' for line in _sentences(pruning, made) if line)
    return markup.section("What was cut", _table(start, end, dropped) + hints)


def kind_of(group: str) -> str:
    """The kind of a group, from its name."""
    return next((kind for kind, last in _LAST.items() if group.endswith(last)), "mlp")


def _place(group: str) -> str:
    """The block of a group, or what it is called."""
    found = re.match(r"(.*blocks\.\d+)\b", group)
    return found[1] if found else group


def _table(start: dict[str, Any], end: dict[str, Any], dropped: set[str]) -> str:
    kinds = [kind for kind in _KINDS if any(kind_of(name) == kind for name in start)]
    rows: dict[str, dict[str, str]] = {}
    for name, before in start.items():
        after = end.get(name, before)
        rows.setdefault(_place(name), {})[kind_of(name)] = _change(before, after)
    head = "".join(f'<th scope="col" class="num">{escape(_KINDS[kind])}</th>' for kind in kinds)
    body = "".join(
        f'<tr><th scope="row">{escape(place)}</th>'
        + "".join(
            f'<td class="num">{"left out" if place in dropped else cells.get(kind, "")}</td>'
            for kind in kinds
        )
        + "</tr>"
        for place, cells in rows.items()
    )
    return f'<table class="measures"><tbody><tr class="axis"><th scope="col">Part</th>{head}</tr>{body}</tbody></table>'


def _change(before: Any, after: Any) -> str:
    if before == after:
        return escape(str(before))
    return f'<span class="before">{escape(str(before))} → </span>{escape(str(after))}'


def _sentences(pruning: dict[str, Any], made: list[dict[str, Any]]) -> list[str]:
    start, last = as_dict(pruning.get("start")), made[-1]
    left = [
        f"{_COSTS[name]} {fmt.percent(last[name] / start[name])}"
        for name in _COSTS
        if _positive(start.get(name)) and _positive(last.get(name))
    ]
    times = "one cut" if len(made) == 1 else f"{len(made)} cuts"
    when = ""
    if all(isinstance(cut.get("epoch"), (int, float)) for cut in made):
        first, end = made[0]["epoch"], last["epoch"]
        when = f" at epoch {end:.1f}" if len(made) == 1 else f" from epoch {first:.1f} to {end:.1f}"
    who = "" if not pruning.get("made_by") else f" by {pruning['made_by']}, without training"
    how = f"Importance: {pruning.get('importance')}; allotment: {pruning.get('allot')}."
    filled = {"mean": "Means", "least_squares": "Linear predictions"}.get(str(pruning.get("compensate")))
    if filled:
        how += f" {filled} of the removed units were folded into the layers that read them."
    return [f"Left of the start: {', '.join(left)}." if left else "", f"Made in {times}{when}{who}. {how}"]


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
