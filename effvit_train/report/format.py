"""How numbers are written, in HTML and in the terminal alike; and how two of them compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from effvit_train.card import MEASURES, Measure
from effvit_train.proportions import wilson

MINUS = "−"  # the typographic sign, as wide as the plus
NONE = "–"

# Measured by a clock or by the system: repeats differ by a few per cent on the same model.
TIMED = (
    "cost/latency_ms", "cost/latency_p95_ms", "cost/throughput", "cost/memory_mb", "cost/train_seconds",
    "cost/energy_j", "complexity/latency_exponent", "complexity/memory_bound_share", "continual/seconds_per_task",
)  # fmt: skip
TIMED_NOISE = 0.10


def measure_of(key: str) -> Measure:
    """The row of `MEASURES` for `key`, or a plain one for a key that this version does not know."""
    known = MEASURES.get(key)
    return known or Measure("", "higher", key.rpartition("/")[2].replace("_", " "), "")


def value(key: str, number: float | None) -> str:
    """Write a measure with its unit: `98.3 %`, `1.26 G`, `5.7 M`, `3.4 ms`; an en dash for None."""
    if number is None:
        return NONE
    unit = measure_of(key).unit
    writers = {
        "fraction": percent, "parameters": parameters, "MACs/image": operations, "FLOPs/image": operations,
        "s": duration, "MB": megabytes, "ms": milliseconds,
    }  # fmt: skip
    if unit in writers:
        return writers[unit](number)
    if unit == "nats":
        return f"{_sign(number)}{abs(number):.3f} nats"
    if unit == "images/s":
        return f"{significant(number)} images/s"
    return f"{significant(number)} {unit}" if unit not in ("", "ratio") else significant(number)


def percent(fraction: float) -> str:
    """One decimal, and two where one would round to 0 or 100 without being it: `99.97 %`."""
    shown = fraction * 100
    hides = fraction not in (0.0, 1.0) and f"{shown:.1f}" in ("0.0", "100.0")
    return f"{_sign(shown)}{abs(shown):.{2 if hides else 1}f} %"


def parameters(count: float) -> str:
    """`86.6 M` as papers print it; three digits below a million."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} G"
    if count >= 999_500:
        return f"{count / 1e6:.1f} M"
    return f"{significant(count / 1e3)} k" if count >= 1e3 else f"{count:.0f}"


def operations(count: float) -> str:
    """`17.58 G` as papers print it; three digits below."""
    for limit, factor, unit in ((9.995e11, 1e12, "T"), (9.995e8, 1e9, "G")):
        if count >= limit:
            return f"{count / factor:.2f} {unit}"
    for limit, factor, unit in ((9.995e5, 1e6, "M"), (1e3, 1e3, "k")):
        if count >= limit:
            return f"{significant(count / factor)} {unit}"
    return f"{count:.0f}"


def megabytes(number: float) -> str:
    """`12.1 MB`; gigabytes from 1000 MB."""
    if number >= 999.5:
        return f"{number / 1000:.2f} GB"
    return f"{number:.1f} MB" if number >= 1 else f"{number:.2f} MB"


def milliseconds(number: float) -> str:
    """`0.62 ms`, `3.4 ms`, `128 ms`."""
    digits = 2 if number < 0.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} ms"


def duration(seconds: float) -> str:
    """`8.4 s`, `94 s`, `2 min 35 s`, `1 h 12 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def significant(number: float, digits: int = 3) -> str:
    """`digits` significant digits without an exponent where that stays readable: `1,640`, `0.0123`."""
    if number == 0:
        return "0"
    size = abs(number)
    if not 1e-4 <= size < 1e9:
        return f"{_sign(number)}{size:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    if round(size, decimals) >= 10 ** (digits - decimals):  # 9.996 rounds up to one digit more
        decimals = max(0, decimals - 1)
    return f"{_sign(number)}{size:,.{decimals}f}"


def interval(right: int, total: int) -> str:
    """The 95 % Wilson interval in per cent, without the sign: `95.7–98.9`."""
    low, high = wilson(right, total)
    return f"{low * 100:.1f}–{high * 100:.1f}"


Verdict = Literal["better", "worse", "same", "unclear"]


@dataclass(frozen=True)
class Change:
    """A measure against its baseline.

    Attributes:
        arrow: ▲ the number went up, ▼ down, `=` it did not move.
        amount: `+1.1 pp`, `−12 %`, `3.8× less`; empty when it did not move.
        verdict: what that means, given which way is better.
        word: the verdict in words, for those who see no colour.
    """

    arrow: str
    amount: str
    verdict: Verdict
    word: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.arrow, self.amount, self.word) if part)


def change(key: str, now: float | None, before: float | None, *, doubt: str = "") -> Change | None:
    """Compare a measure with its baseline; None where either was not taken.

    Args:
        key: the measure.
        now, before: this run and the baseline.
        doubt: why the difference carries no verdict, such as `within noise`.
    """
    if now is None or before is None:
        return None
    if now == before or value(key, now) == value(key, before):
        return Change("=", "", "same", "same")
    measure = measure_of(key)
    arrow = "▲" if now > before else "▼"
    amount = _points(now - before) if measure.unit == "fraction" else _relative(key, now, before)
    if not doubt and key in TIMED and before > 0 and abs(now / before - 1) < TIMED_NOISE:
        doubt = "within noise"
    if doubt:
        return Change(arrow, amount, "unclear", doubt)
    improved = (now > before) == (measure.better == "higher")
    return Change(arrow, amount, "better" if improved else "worse", "better" if improved else "worse")


def _points(difference: float) -> str:
    shown = abs(difference) * 100
    return f"{'+' if difference > 0 else MINUS}{shown:.{1 if shown >= 0.095 else 2}f} pp"


def _relative(key: str, now: float, before: float) -> str:
    if before <= 0 or now <= 0:
        return f"{'+' if now > before else MINUS}{value(key, abs(now - before))}"
    ratio = now / before
    if ratio > 2:
        return f"{_times(ratio)}× more"
    if ratio < 0.5:
        return f"{_times(1 / ratio)}× less"
    shown = abs(ratio - 1) * 100
    return f"{'+' if ratio > 1 else MINUS}{shown:.{0 if shown >= 9.5 else 1}f} %"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 99.95 else f"{ratio:,.0f}"


def _sign(number: float) -> str:
    return MINUS if number < 0 else ""
