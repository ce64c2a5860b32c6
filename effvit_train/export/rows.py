"""Rows of `provenance["runtimes"]`: what a model takes on one device, with one runtime. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

KEY = "runtimes"
BY_EXPORT, BY_BENCH = "effvit export", "effvit bench"
# What is measured; a null among them has its reason under `missing`.
MEASURED = (
    "latency_ms", "latency_p95_ms", "latency_ratio", "throughput", "throughput_ratio", "memory_mb", "process_mb",
    "energy_j", "accuracy", "max_difference", "equal_predictions",
)  # fmt: skip
# What tells one measurement from another; a new one takes the place of the old.
_IDENTITY = ("runtime", "precision", "device", "threads", "made_by")

Row = dict[str, Any]


def row(facts: Row, measured: Row, missing: dict[str, str]) -> Row:
    """A row; what was not measured is null, with the reason.

    Raises `ValueError` for a null without one.
    """
    values = {name: measured.get(name) for name in MEASURED}
    reasons = {name: missing[name] for name in MEASURED if values[name] is None and name in missing}
    unexplained = [name for name, value in values.items() if value is None and name not in reasons]
    if unexplained:
        raise ValueError(f"null without a reason: {', '.join(unexplained)}")
    return {**facts, **values, "missing": reasons}


def merged(before: object, new: Iterable[Row]) -> list[Row]:
    """The rows of a card with new ones: each in the place of the older one of the same kind, or at the end."""
    rows = [entry for entry in before if isinstance(entry, dict)] if isinstance(before, list) else []
    for entry in new:
        places = [place for place, old in enumerate(rows) if _identity(old) == _identity(entry)]
        if places:
            rows[places[0]] = entry
        else:
            rows.append(entry)
    return rows


def _identity(entry: Row) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in _IDENTITY)
