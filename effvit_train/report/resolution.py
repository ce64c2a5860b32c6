"""One model at several image sizes and patches: accuracy and cost of each, and which suffices."""

from __future__ import annotations

import math
from typing import Any

from effvit_train.card import Card
from effvit_train.proportions import wilson
from effvit_train.report import format as fmt
from effvit_train.report import markup, sections
from effvit_train.report.charts import Series, escape
from effvit_train.report.inputs import RunData, as_dict, as_dicts

_STYLES = ("train", "term0", "term1", "term2", "term3", "other")
_UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def section(data: RunData) -> str:
    """A chart, a table and advice; nothing for a model that was measured at one size."""
    found = as_dict(data.card.provenance.get("resolution"))
    rows = [row for row in as_dicts(found.get("rows")) if _whole(row)]
    if len(rows) < 2:
        return ""
    chosen = as_dict(found.get("advice")).get("row")
    words = str(as_dict(found.get("advice")).get("words") or "")
    advice = f"<p>{markup.text(_sentence(words))}</p>" if words else ""
    body = f'{advice}<div class="pair points">{_charts(rows)}</div>{_table(rows, chosen)}{_hint(found, rows)}'
    return markup.section("Resolution", body)


def line(card: Card) -> str:
    """`Resolution: 24 px suffices: ...`, or nothing."""
    words = as_dict(as_dict(card.provenance.get("resolution")).get("advice")).get("words")
    return f"Resolution: {words}." if isinstance(words, str) and words else ""


def _whole(row: dict[str, Any]) -> bool:
    numbers = (row.get(key) for key in ("size", "patch", "tokens", "macs", "accuracy", "right"))
    return all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _charts(rows: list[dict[str, Any]]) -> str:
    """Accuracy and latency against MACs, a line for each patch."""
    unit, scale = next(((u, s) for u, s in _UNITS if max(row["macs"] for row in rows) >= 4 * s), ("", 1.0))
    x_name = f"{unit} MACs".strip()
    low, high = (extreme(row["accuracy"] for row in rows) for extreme in (min, max))
    figures = sections.figure(
        "Accuracy", _series(rows, "accuracy", scale), title="Accuracy against multiply-accumulates", x_name=x_name,
        write=lambda share: f"{share * 100:.1f}".removesuffix(".0") + " %",
        y_range=(math.floor(10 * low) / 10, math.ceil(10 * high) / 10 if high > low else 1.0),
    )  # fmt: skip
    timed = [row for row in rows if isinstance(row.get("latency_ms"), (int, float))]
    if len(timed) > 1:
        figures += sections.figure(
            "Latency, one image", _series(timed, "latency_ms", scale),
            title="Latency against multiply-accumulates", x_name=x_name, write=fmt.milliseconds,
        )  # fmt: skip
    return figures


def _series(rows: list[dict[str, Any]], key: str, scale: float) -> list[Series]:
    patches = sorted({row["patch"] for row in rows})
    return [
        Series(
            f"patches of {patch} px, up to {max(row['size'] for row in rows if row['patch'] == patch)} px",
            [(row["macs"] / scale, row[key]) for row in rows if row["patch"] == patch],
            _STYLES[k % len(_STYLES)],
        )
        for k, patch in enumerate(patches)
    ]


def _table(rows: list[dict[str, Any]], chosen: object) -> str:
    several = len({row["patch"] for row in rows}) > 1
    names = ["Size", *(["Patch"] if several else []), "Tokens", "Accuracy", "Against full", "MACs", "Latency",
             "Images/s"]  # fmt: skip
    head = "".join(
        f'<th scope="col"{"" if k == 0 else " class=num"}>{escape(name)}</th>' for k, name in enumerate(names)
    )
    whole = next((row for row in rows if row.get("full")), rows[-1])
    body = "".join(_row(row, whole, several, k == chosen) for k, row in enumerate(rows))
    return (
        '<div class="scroll"><table class="pairs methods resolution"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: dict[str, Any], whole: dict[str, Any], several: bool, chosen: bool) -> str:
    remark = "full" if row.get("full") else "suffices" if chosen else ""
    if not row.get("shown", True):
        remark = f"{remark}, never shown in training".lstrip(", ")
    size = f"{row['size']} px" + (f' <span class="before">{escape(remark)}</span>' if remark else "")
    latency, speed = row.get("latency_ms"), row.get("throughput")
    cells = [
        *([f"{row['patch']} px"] if several else []),
        f"{row['tokens']:,}",
        fmt.percent(row["accuracy"]),
        "" if row.get("full") else _against(row),
        f"{fmt.operations(row['macs'])} ({row['macs'] / whole['macs']:.2f})",
        fmt.milliseconds(latency) if isinstance(latency, (int, float)) else fmt.NONE,
        fmt.significant(speed) if isinstance(speed, (int, float)) else fmt.NONE,
    ]
    shown = "".join(f'<td class="num">{markup.text(cell)}</td>' for cell in cells)
    style = ' class="chosen"' if chosen else ""
    return f'<tr{style}><th scope="row">{size}</th>{shown}</tr>'


def _against(row: dict[str, Any]) -> str:
    ends = row.get("interval")
    if not (isinstance(ends, list) and len(ends) == 2):
        return fmt.NONE
    difference, low, high = (_signed(100 * value) for value in (row["difference"], *ends))
    return f"{difference} ({low} to {high})"


def _signed(points: float) -> str:
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", fmt.MINUS)


def _hint(found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    images, timing = found.get("images"), as_dict(found.get("timing"))
    sentences = ["All rows are one set of weights."]
    if isinstance(images, int) and images:
        low, high = wilson(rows[-1]["right"], images)
        sentences.append(
            f"Accuracy of {images:,} test images (the last row's 95 % interval is {low * 100:.1f} to "
            f"{high * 100:.1f} %); against full in points, with the 95 % interval of the paired difference."
        )
    if timing.get("failed"):
        sentences.append(f"Not timed: {timing['failed']}.")
    elif timing:
        sentences.append(
            f"Times: the fastest of {timing.get('rounds')} rounds in which all rows take turns, "
            f"{timing.get('threads')} thread{'' if timing.get('threads') == 1 else 's'}; "
            f"images/s at batch {timing.get('batch')}."
        )
    if timing.get("left_out"):
        sentences.append("Where a time is missing, the run was left out: it would have taken too long.")
    return f'<p class="hint">{markup.text(" ".join(sentences))}</p>'
