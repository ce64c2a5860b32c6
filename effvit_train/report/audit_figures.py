"""Pieces of the audit's sections: bars with intervals, a table in shades, a reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.audit_facts import count, pair, share
from effvit_train.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, clip, escape

WIDTH = 300  # of the reliability diagram: its plot is a square
SHOWN = 20  # bars before the rest folds away


@dataclass(frozen=True)
class Bar:
    """A share of 0..1 with its name, 95 % interval and a remark; `faint` = not to be compared with the others."""

    name: str
    share: float
    interval: tuple[float, float] | None = None
    note: str = ""
    faint: bool = False


def bars(caption: str, rows: Sequence[Bar], hint: str = "") -> str:
    """Bars under one another; those beyond `SHOWN` fold away. Nothing without rows."""
    if not rows:
        return ""
    lines = [_bar(row) for row in rows]
    body = f'<div class="bars">{"".join(lines[:SHOWN])}</div>'
    if lines[SHOWN:]:
        body += f"<details><summary>{len(lines) - SHOWN:,} more</summary>"
        body += f'<div class="bars">{"".join(lines[SHOWN:])}</div></details>'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{body}{hints(hint)}</figure>"


def _bar(row: Bar) -> str:
    whisker, tip = "", f"{row.name}: {fmt.percent(row.share)}"
    if row.interval is not None:
        low, high = (min(1.0, max(0.0, end)) for end in row.interval)
        whisker = (
            f'<span class="whisker" style="left:{low * 100:.1f}%;width:{(high - low) * 100:.1f}%"></span>'
        )
        tip += f", 95 % interval {low * 100:.1f}–{high * 100:.1f} %"
    tip += f", {row.note}" if row.note else ""
    return (
        f'<div class="row{" faint" if row.faint else ""}" title="{escape(tip)}">'
        f'<span class="class">{escape(clip(row.name, 40))}</span>'
        f'<span class="track"><span class="fill" style="width:{row.share * 100:.1f}%"></span>{whisker}</span>'
        f'<span class="share">{markup.text(fmt.percent(row.share))}</span>'
        f'<span class="of">{escape(row.note)}</span></div>'
    )


def hints(*sentences: str) -> str:
    """Paragraphs of small print; empty sentences are left out."""
    return "".join(f'<p class="hint">{markup.text(text)}</p>' for text in sentences if text)


def shaded(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """A table of shares, each cell shaded by its value: per cent, without decimals."""
    head = "".join(f'<th scope="col" class="num">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_shade(name, column, value) for column, value in zip(columns, values, strict=True))
        + "</tr>"
        for name, values in rows
    )
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><div class="scroll"><table class="shaded">'
        f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>'
    )


def _shade(row: str, column: str, value: float | None) -> str:
    if value is None:
        return f'<td class="num">{fmt.NONE}</td>'
    tip = escape(f"{row}, {column}: {fmt.percent(value)}")
    return (
        f'<td class="num shade" style="--share:{value:.3f}" title="{tip}"><span>{value * 100:.0f}</span></td>'
    )


def reliability(bins: Sequence[dict[str, Any]]) -> str:
    """Accuracy in each bin of confidence against the diagonal of a calibrated model; "" without usable bins.

    The stronger a bar, the more images are in it.
    """
    usable = [found for one in bins if (found := _bin(one)) is not None]
    if not usable:
        return ""
    most = max(images for *_, images in usable)

    def x_at(p: float) -> float:
        return LEFT + p * (WIDTH - LEFT - RIGHT)

    def y_at(p: float) -> float:
        return HEIGHT - BOTTOM - p * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart reliability" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Reliability diagram: accuracy by confidence">'
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y, name = x_at(tick), y_at(tick), f"{tick * 100:g} %"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
        if tick in (0.0, 0.5, 1.0):
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{name}</text>')
    for low, high, confidence, accuracy, interval, images in usable:
        x, width, y = x_at(low), x_at(high) - x_at(low), y_at(accuracy)
        tip = (
            f"confidence {low * 100:.0f}–{high * 100:.0f} % (mean {fmt.percent(confidence)}): {images:,} images, "
            f"{fmt.percent(accuracy)} right"
        )
        parts.append(f"<g><title>{escape(tip)}</title>")
        parts.append(
            f'<rect class="right" x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(1.0, width - 1):.1f}" '
            f'height="{max(0.0, HEIGHT - BOTTOM - y):.1f}" style="fill-opacity:{0.2 + 0.6 * math.sqrt(images / most):.2f}"/>'
        )
        if interval is not None:
            middle = x + width / 2
            parts.append(
                f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" '
                f'y1="{y_at(interval[0]):.1f}" y2="{y_at(interval[1]):.1f}"/>'
            )
        parts.append("</g>")
    parts.append(
        f'<line class="diagonal" x1="{x_at(0):.1f}" y1="{y_at(0):.1f}" x2="{x_at(1):.1f}" y2="{y_at(1):.1f}"/>'
        f'<text class="name" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">confidence</text></svg>'
    )
    return "".join(parts)


def _bin(one: dict[str, Any]) -> tuple[float, float, float, float, tuple[float, float] | None, int] | None:
    """(low, high, confidence, accuracy, interval, images) of a bin with images in it."""
    low, high, images = share(one.get("low")), share(one.get("high")), count(one.get("count"))
    confidence, accuracy = share(one.get("confidence")), share(one.get("accuracy"))
    if low is None or high is None or not images or confidence is None or accuracy is None or high < low:
        return None
    found = pair(one.get("interval"))
    if found is not None and not (found[0] >= 0 and found[1] <= 1):
        found = None
    return low, high, confidence, accuracy, found, images
