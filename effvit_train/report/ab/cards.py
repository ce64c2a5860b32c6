"""What the cards of both sides say: costs, prices, and measures that need more than the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from effvit_train.card import MEASURES
from effvit_train.collect import Entry
from effvit_train.prices import Prices, cost_per_million
from effvit_train.report import format as fmt
from effvit_train.report.ab.rows import Row, corrected, of_runs
from effvit_train.report.ab.sides import Side
from effvit_train.report.baseline import Baseline
from effvit_train.report.compare import Comparison
from effvit_train.report.stream_facts import AXIS, SAMPLED, groups_differ

PRICE = "cost per million images"
# Measured on images or by an attack: two numbers without a test decide nothing.
_SAMPLED = ("quality/", "robustness/", "calibration/", "fairness/", "transparency/", "approximation/", "privacy/mia",
            "privacy/epsilon_lower_bound", *SAMPLED)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """A number of both sides that needs no test, or has none.

    Attributes:
        key: of the measure.
        a, b: mean over the runs of a side; None where a run lacks it.
        change: from A to B, with doubt where times were taken under other conditions or differ by less than
            10 %; None where one is missing.
        reason: why one is missing, or empty.
    """

    key: str
    a: float | None
    b: float | None
    change: fmt.Change | None
    reason: str


@dataclass(frozen=True)
class Priced:
    """A million images on each side, in the list's currency: means over the runs.

    Attributes:
        currency: as the list has it.
        a, b: total; None where a part of it is not known for a run.
        parts: what the list prices (`machine`, `electricity`) -> of A and B; None where it is not known.
        change: from A to B; None where one is missing.
        reason: why one is missing, or empty.
        notes: what the reader must know.
    """

    currency: str
    a: float | None
    b: float | None
    parts: dict[str, tuple[float | None, float | None]]
    change: fmt.Change | None
    reason: str
    notes: tuple[str, ...]


def same_conditions(a: Side, b: Side) -> bool:
    """Whether all runs were timed on the same processor in the same way."""
    first = a.entries[0]
    baseline = Baseline(first.run_dir, first.card, "")
    return all(
        Comparison(entry.card, baseline, entry.run_dir).same_conditions for entry in (*a.entries, *b.entries)
    )


def other_streams(a: Side, b: Side) -> str:
    """In what the runs' streams differ, in a few words; empty where both sides have the same ones, or none."""
    return groups_differ([entry.card for entry in a.entries], [entry.card for entry in b.entries])


def continual(a: Side, b: Side) -> list[Cost]:
    """What both cards say of a stream; nothing where the streams differ, as their numbers are of other tasks."""
    if other_streams(a, b):
        return []
    found = [_plain(key, a, b) for key in MEASURES if key.startswith(AXIS)]
    return [one for one in found if one.change is not None]


def costs(a: Side, b: Side) -> list[Cost]:
    """All of `cost/*`."""
    return [_plain(key, a, b) for key in MEASURES if key.startswith("cost/")]


def others(a: Side, b: Side, shown: Sequence[str]) -> list[Cost]:
    """What both cards measure beside costs and the keys in `shown`: without a test."""
    without = ("cost/", AXIS) if other_streams(a, b) else ("cost/",)
    keys = [key for key in MEASURES if not key.startswith(without) and key not in shown]
    return [found for key in keys if (found := _plain(key, a, b)).change is not None]


def over_seeds(a: Side, b: Side, *, pairs: bool, level: float) -> list[Row]:
    """Every measure but the accuracy and costs that all runs have, tested on the seeds."""
    rows, ways = [], []
    without = ("cost/", AXIS) if other_streams(a, b) else ("cost/",)
    for key, measure in MEASURES.items():
        if key.startswith(without) or key == "quality/accuracy":
            continue
        of_a, of_b = a.values(key), b.values(key)
        if of_a is not None and of_b is not None:
            rows.append(of_runs(key, of_a, of_b, pairs=pairs, better=measure.better, level=level))
            ways.append(measure.better)
    return corrected(rows, ways, level)


def priced(a: Side, b: Side, prices: Prices) -> Priced:
    """A million images on each side."""
    of_a = [cost_per_million(entry.card, prices) for entry in a.entries]
    of_b = [cost_per_million(entry.card, prices) for entry in b.entries]
    total_a, total_b = _mean([found.total for found in of_a]), _mean([found.total for found in of_b])
    doubt = "" if same_conditions(a, b) else "other conditions"
    if not doubt and total_a and total_b is not None and abs(total_b / total_a - 1) < fmt.TIMED_NOISE:
        doubt = "within noise"  # it is made of times
    change = _turned(fmt.change(PRICE, total_b, total_a, doubt=doubt))
    whole = [*of_a, *of_b]
    reasons = {
        name: next(one.reason for one in side if one.reason)
        for name, side, total in (("A", of_a, total_a), ("B", of_b, total_b))
        if total is None
    }
    notes = tuple(dict.fromkeys(note for found in whole for note in found.notes))

    parts: dict[str, tuple[float | None, float | None]] = {}
    if prices.machines:
        parts["machine"] = (_mean([one.machine for one in of_a]), _mean([one.machine for one in of_b]))
    if prices.per_kwh is not None:
        parts["electricity"] = (_mean([one.energy for one in of_a]), _mean([one.energy for one in of_b]))
    return Priced(prices.currency, total_a, total_b, parts, change, _joined(reasons), notes)


def _turned(change: fmt.Change | None) -> fmt.Change | None:
    """Less is better of a price, which is no measure of the card."""
    turn: dict[str, fmt.Verdict] = {"better": "worse", "worse": "better"}
    if change is None or change.verdict not in turn:
        return change
    verdict = turn[change.verdict]
    return fmt.Change(change.arrow, change.amount, verdict, verdict)


def _plain(key: str, a: Side, b: Side) -> Cost:
    of_a, of_b = a.values(key), b.values(key)
    mean_a, mean_b = (fmean(found) if found else None for found in (of_a, of_b))
    doubt = ""
    if key in fmt.TIMED and not same_conditions(a, b):
        doubt = "other conditions"
    elif key.startswith(_SAMPLED):
        doubt = "not tested"
    lacking = {
        side.name: _reason(side.entries, key) for side, value in ((a, mean_a), (b, mean_b)) if value is None
    }
    return Cost(key, mean_a, mean_b, fmt.change(key, mean_b, mean_a, doubt=doubt), _joined(lacking))


def _reason(entries: Sequence[Entry], key: str) -> str:
    found = (
        entry.card.missing.get(key, "not measured")
        for entry in entries
        if entry.card.measures.get(key) is None
    )
    return next(found)


def _joined(reasons: Mapping[str, str]) -> str:
    """The reason of A and of B; once where it is the same."""
    if len(set(reasons.values())) == 1 and len(reasons) == 2:
        return reasons["A"]
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
