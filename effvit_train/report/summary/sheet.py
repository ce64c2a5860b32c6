"""What a page in any language consists of, and numbers that all languages write alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from effvit_train.report import format as fmt


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        heading: of it.
        number: the one to remember, or empty.
        caption: what the number is.
        lines: sentences.
    """

    heading: str
    number: str
    caption: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """A page.

    Attributes:
        language: BCP 47.
        title, subtitle: of the page.
        verdict: the recommendation in one sentence.
        lead: the sentences below it.
        good: whether every budget is met, or none was given.
        columns: accuracy and risk; cost and what was not measured.
        heads, rows: of the table of alternatives; the first column is a name, and a column without a head is left out.
        table_heading: of it.
        foot: where the numbers come from.
    """

    language: str
    title: str
    subtitle: str
    verdict: str
    lead: Sequence[str]
    good: bool
    columns: Sequence[Sequence[Part]]
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    table_heading: str = ""
    foot: Sequence[str] = field(default_factory=tuple)


def of_hundred(share: float) -> tuple[str, int]:
    """How many of how many: of 100, or of 1,000 and more where 100 would round to none or all."""
    total = 100
    while total < 100_000 and 0 < share < 1 and round(share * total) in (0, total):
        total *= 10
    return f"{round(share * total):,}", total


def points(difference: float) -> str:
    """Percentage points without the sign: `2`, `0.4`."""
    size = abs(difference) * 100
    return f"{size:.0f}" if size >= 1.95 else f"{size:.1f}"


def ratio(factor: float) -> str:
    """`3.8`, `1.13`, `12`; of a factor below 1 its inverse."""
    size = factor if factor >= 1 else 1 / factor
    return f"{size:.2f}" if size < 1.995 else f"{size:.1f}" if size < 9.95 else f"{size:,.0f}"


def half_width(interval: tuple[float, float]) -> float:
    """Half of an interval, 0..1."""
    return (interval[1] - interval[0]) / 2


def kilowatt_hours(joules_per_image: float) -> str:
    """What a million images take."""
    hours = joules_per_image * 1e6 / 3.6e6
    decimals = max(0, 1 - math.floor(math.log10(hours))) if hours > 0 else 0
    return f"{hours:,.{decimals}f}"


def about(number: float) -> str:
    """Two significant digits: `140,000`, `9,300`, `0.45`."""
    if number <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(number))
    return f"{round(number, digits):,.{max(0, digits)}f}"


def by_reason(missing: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> what it is the reason of."""
    found: dict[str, list[str]] = {}
    for topic, reason in missing.items():
        found.setdefault(reason, []).append(topic)
    return found


def told(key: str, number: float | None) -> str:
    """A measure with its unit; epsilon without, which nobody reads in nats."""
    if key == "privacy/epsilon" and number is not None:
        return fmt.significant(number)
    return fmt.value(key, number)
