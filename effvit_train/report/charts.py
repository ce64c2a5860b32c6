"""Small charts as inline SVG: no script, no fonts, colours from the style sheet, titles on hover."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 34
MAX_POINTS = 300  # of a polyline
MAX_HOVER = 60  # points that show their value
SMALL_MATRIX = 12  # classes; more need the whole width of the page


def escape(text: object) -> str:
    """Text for HTML, attributes included; characters that no document may hold become �."""
    clean = "".join(
        c if c in "\t\n" or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF) else "�" for c in str(text)
    )
    return html.escape(clean, quote=True)


@dataclass(frozen=True)
class Series:
    """A line: `style` is the class in the style sheet (colour and dash)."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    write: Callable[[float], str],
    x_name: str = "epoch",
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines over epochs with axes, ticks and values on hover.

    The vertical axis is logarithmic where all values are positive and span more than a factor 50;
    otherwise it starts at zero, so that heights can be compared.

    Args:
        series: at least one, each with at least one point.
        title: what a screen reader says.
        write: how a value is written on the axis and on hover.
        y_range: limits of the vertical axis; null takes them from the data.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    low, high = y_range or (min(ys), max(ys))
    log = y_range is None and low > 0 and high / low > 50
    if y_range is None and not log:
        low, high = min(0.0, low), max(0.0, high)
    y_ticks = log_ticks(low, high) if log else ticks(low, high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    x_ticks = [x for x in ticks(x_low, x_high, 6, whole=True) if min(xs) <= x <= max(xs)]

    def x_at(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        a, b, c = (math.log(low), math.log(high), math.log(y)) if log else (low, high, y)
        return HEIGHT - BOTTOM - (c - a) / (b - a) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(write(tick))}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for tick in x_ticks:
        x = x_at(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text class="name" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_name)}</text>'
    )
    for line in series:
        parts.append(_line(line, x_at, y_at, write, x_name))
    parts.append("</svg>")
    return "".join(parts)


def _line(
    line: Series,
    x_at: Callable[[float], float],
    y_at: Callable[[float], float],
    write: Callable[[float], str],
    x_name: str,
) -> str:
    points = thin(line.points, MAX_POINTS)
    path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)
    parts = [f'<g class="series {line.style}">']
    if len(points) > 1:
        parts.append(f'<polyline points="{path}"/>')
    stride = max(1, math.ceil(len(line.points) / MAX_HOVER))
    shown = list(line.points[::stride])
    if shown[-1] != line.points[-1]:
        shown.append(line.points[-1])
    for x, y in shown:
        dot = "dot last" if (x, y) == line.points[-1] else "dot"
        tip = escape(f"{line.label}, {x_name} {x:g}: {write(y)}")
        parts.append(
            f'<circle class="{dot}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3.5">'
            f"<title>{tip}</title></circle>"
        )
    parts.append("</g>")
    return "".join(parts)


def thin(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most about `limit` points that keep each stretch's lowest and highest value, and both ends."""
    if len(points) <= limit:
        return list(points)
    stretches = max(1, limit // 2 - 1)
    inner = points[1:-1]
    kept = {points[0], points[-1]}
    for i in range(stretches):
        part = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        kept.update((min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])))
    return sorted(kept)


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that cover [low, high].

    Args:
        whole: steps of at least one.
    """
    if not high > low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten that cover [low, high]; fewer where that gives more than eight."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        every = [m * 10.0**e for e in range(first, last + 1) for m in multiples]
        start = max((i for i, t in enumerate(every) if t <= low), default=0)
        stop = min((i for i, t in enumerate(every) if t >= high), default=len(every) - 1)
        chosen = every[start : stop + 1]
        if len(chosen) <= 8:
            return chosen
    return chosen[:: math.ceil(len(chosen) / 8)] + (
        [chosen[-1]] if (len(chosen) - 1) % math.ceil(len(chosen) / 8) else []
    )


def matrix(counts: NDArray[np.int64], names: Sequence[str]) -> str:
    """Confusion matrix: row = true class, column = predicted class, shade = share of the row.

    The diagonal has one colour and the mistakes another, so that rare mistakes stay visible.
    """
    k = len(names)
    cell = 34 if k <= SMALL_MATRIX else 26 if k <= 24 else 22
    longest = max(len(name) for name in names)
    short = [clip(name, 14) for name in names]
    label = 12 + 6.4 * min(14, longest)
    turned = longest * 6.4 > cell - 2
    left, top = label + 18, (0.87 * label + 4 if turned else 20) + 20
    width = left + k * cell + max(4, label * 0.5 - cell / 2 + 8 if turned else 4)
    height = top + k * cell + 4
    # Small ones grow and shrink with the page; large ones keep their size and scroll.
    size = f'class="matrix" style="max-width:{1.2 * width:.0f}px;min-width:{0.75 * width:.0f}px"'
    if k > SMALL_MATRIX:
        size = f'class="matrix wide" width="{width:.0f}"'
    parts = [
        f'<svg {size} viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="Confusion matrix, {k} classes">',
        f'<text class="name" x="{left + k * cell / 2:.0f}" y="12" text-anchor="middle">predicted</text>',
        f'<text class="name" transform="translate(11 {top + k * cell / 2:.0f}) rotate(-90)" '
        'text-anchor="middle">true</text>',
    ]
    for j in range(k):
        x, y = left + (j + 0.5) * cell, top - 7
        place = (
            f'transform="translate({x + 4:.1f} {y:.0f}) rotate(-60)"'
            if turned
            else f'x="{x:.1f}" y="{y:.0f}"'
        )
        anchor = "start" if turned else "middle"
        parts.append(f'<text {place} text-anchor="{anchor}">{escape(short[j])}</text>')
    totals = counts.sum(1)
    for i in range(k):
        y = top + i * cell
        parts.append(
            f'<text x="{left - 7:.0f}" y="{y + cell / 2 + 4:.1f}" text-anchor="end">{escape(short[i])}</text>'
        )
        for j in range(k):
            parts.append(
                _cell(int(counts[i, j]), int(totals[i]), i == j, left + j * cell, y, cell, names[i], names[j])
            )
    parts.append("</svg>")
    return "".join(parts)


def _cell(
    count: int, total: int, right: bool, x: float, y: float, size: int, true: str, predicted: str
) -> str:
    place = f'x="{x + 1:.0f}" y="{y + 1:.0f}" width="{size - 2}" height="{size - 2}"'
    if count == 0:
        return f'<rect class="zero" {place}/>'
    share = count / total
    # The square root lifts single mistakes out of the background.
    shade = 0.12 + 0.88 * share if right else 0.18 + 0.82 * math.sqrt(share)
    tip = escape(f"true {true}, predicted {predicted}: {count} of {total} ({share:.1%})")
    text = ""
    digits = len(str(count))
    if digits * 6.8 <= size - 4 or digits == 3:
        strong = " on" if shade > (0.72 if right else 0.85) else ""
        strong += " tight" if digits * 6.8 > size - 4 else ""
        text = (
            f'<text class="n{strong}" x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" '
            f'text-anchor="middle">{count}</text>'
        )
    kind = "right" if right else "wrong"
    return f'<g><title>{tip}</title><rect class="{kind}" {place} style="fill-opacity:{shade:.2f}"/>{text}</g>'


def clip(text: str, limit: int) -> str:
    """`text` in at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
