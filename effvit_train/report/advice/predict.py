"""What a combination of levers would be worth: measured where it was run, else put together from effects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from effvit_train.arms import PRIVATE
from effvit_train.budgets import Budget
from effvit_train.report.advice.estimate import Estimate, combination
from effvit_train.report.advice.points import Lever, Levers, Pair, Point, is_amount

Base = tuple[str, str, int | None]


@dataclass(frozen=True)
class Dial:
    """A setting that says outright what a measure will be.

    Attributes:
        technique: whose.
        key: the override.
        relative: whether it is a share of what the model was before.
        default: its value where it is not set; None where the technique then does something else.
    """

    technique: str
    key: str
    relative: bool
    default: float | None


DIALS = {
    "cost/macs": Dial("prune", "compress.prune.target.macs", True, 0.5),
    "cost/params": Dial("prune", "compress.prune.target.params", True, None),
    "privacy/epsilon": Dial(PRIVATE, "privacy.epsilon", False, 8.0),
}
# A pruned model may keep this share more than its target (docs/pruning.md).
_SLACK = 0.01


@dataclass(frozen=True)
class Book:
    """All that was measured on one data set.

    Attributes:
        points, pairs: arms, and those of them that differ in one lever.
    """

    points: Sequence[Point]
    pairs: Sequence[Pair]

    def at(self, base: Base, levers: Levers) -> Point | None:
        """The arm, if it was run."""
        return next((p for p in self.points if p.base == base and p.levers == levers), None)

    def levers(self) -> list[Lever]:
        """Those of which matched pairs tell, techniques first."""
        return sorted({pair.lever for pair in self.pairs}, key=lambda lever: (not lever.technique, lever))

    def of(self, lever: Lever) -> list[Pair]:
        """The pairs of one lever."""
        return [pair for pair in self.pairs if pair.lever == lever]

    def nearest(self, lever: Lever, base: Base, beside: Levers, key: str) -> Pair | None:
        """Where a lever's effect was measured beside what is most like `beside`; None where nowhere in `base`."""

        def likeness(pair: Pair) -> tuple[int, int]:
            there = pair.without.levers
            return len(there & beside) - len(there - beside), len(pair.having.arm.entries)

        told = [
            pair for pair in self.of(lever) if pair.without.base == base and pair.difference(key) is not None
        ]
        return max(told, key=likeness) if told else None

    def effect(self, lever: Lever, base: Base, beside: Levers, key: str) -> Estimate | None:
        """The same, also of a dial's setting between two that were run."""
        found = self.nearest(lever, base, beside, key)
        return found.difference(key) if found is not None else self._between(lever, base, beside, key)

    def predict(self, base: Base, levers: Levers, key: str) -> Estimate | None:
        """A measure of a combination, on the scale of `Point.samples`; None where nothing tells.

        What was run is its mean. Else the largest part of it that was run, and for each other lever its effect
        beside what is most like the rest: interactions that were not measured are taken for none.
        """
        run = self.at(base, levers)
        if run is not None and (told := run.mean(key)) is not None:
            return told
        dialled = next((level for name, dial in DIALS.items() if name == key and not dial.relative
                        for lever in levers if (level := level_of(lever, dial)) is not None), None)  # fmt: skip
        if dialled is not None:
            return Estimate(dialled, 0.0, math.inf, 0)
        anchors = [p for p in self.points if p.base == base and p.levers < levers and p.samples(key)]
        if not anchors:
            return None
        anchor = max(anchors, key=lambda point: (len(point.levers), len(point.arm.entries)))
        start = anchor.mean(key)
        assert start is not None
        parts, beside = [(1.0, start)], anchor.levers
        for lever in sorted(levers - anchor.levers):
            told = self.effect(lever, base, levers - {lever}, key)
            if told is None:
                return None
            parts.append((1.0, told))
        return combination(parts) if beside != levers else start

    def _between(self, lever: Lever, base: Base, beside: Levers, key: str) -> Estimate | None:
        """Linear in the logarithm of the dial, between the nearest settings that were run (1: not turned at all)."""
        for name, dial in DIALS.items():
            wanted = level_of(lever, dial)
            if wanted is None:
                continue
            if dial.relative and name == key:
                return Estimate(math.log(wanted), 0.0, math.inf, 0)
            known: list[tuple[float, Estimate]] = (
                [(0.0, Estimate(0.0, 0.0, math.inf, 0))] if dial.relative else []
            )
            for other in self.levers():
                level = level_of(other, dial)
                if level is not None and turned(other, dial, wanted) == turned(lever, dial, wanted):
                    pair = self.nearest(other, base, beside, key)
                    told = None if pair is None else pair.difference(key)
                    known += [(math.log(level), told)] if told is not None else []
            x = math.log(wanted)
            below = max((item for item in known if item[0] <= x), key=lambda item: item[0], default=None)
            above = min((item for item in known if item[0] >= x), key=lambda item: item[0], default=None)
            if below is None or above is None or below[0] == above[0]:
                continue
            share = (x - below[0]) / (above[0] - below[0])
            return combination([(1 - share, below[1]), (share, above[1])])
        return None


def level_of(lever: Lever, dial: Dial) -> float | None:
    """Where a lever turns a dial to; None where it is another's, or other targets stand in its place."""
    if lever.technique != dial.technique:
        return None
    for item in lever.settings:
        key, _, value = item.partition("=")
        if key == dial.key:
            try:
                return float(value)
            except ValueError:
                return None
    parent = dial.key.rpartition(".")[0]
    others = dial.relative and any(item.startswith(f"{parent}.") for item in lever.settings)
    noise = any(item.startswith("privacy.noise_multiplier=") for item in lever.settings)
    return None if others or noise else dial.default


def turned(lever: Lever, dial: Dial, level: float) -> Lever:
    """The lever with its dial at `level`."""
    kept = [item for item in lever.settings if item.partition("=")[0] != dial.key]
    return replace(lever, settings=tuple(sorted([*kept, f"{dial.key}={level:g}"])))


def wanted_level(book: Book, budget: Budget, base: Base, levers: Levers) -> float | None:
    """Where the dial of a budget's measure must stand to meet it, of three digits; None without a dial."""
    dial = DIALS.get(budget.key)
    if dial is None or budget.sign not in ("<=", "<"):
        return None
    if not dial.relative:
        return budget.limit if budget.limit > 0 else None
    before = book.predict(
        base, frozenset(one for one in levers if one.technique != dial.technique), budget.key
    )
    if before is None:
        return None
    share = math.floor(1000 * (1 - _SLACK) * budget.limit / math.exp(before.value)) / 1000
    return share if 0 < share < 1 else None


def shown(key: str, estimate: Estimate) -> float:
    """A mean or a prediction in the measure's own unit; of twelve digits, as a logarithm is not exact."""
    return float(f"{math.exp(estimate.value) if is_amount(key) else estimate.value:.12g}")


def met(budget: Budget, estimate: Estimate | None) -> bool:
    """Whether a mean or a prediction is within the budget."""
    return estimate is not None and budget.met(shown(budget.key, estimate))


def unmet(book: Book, budgets: Iterable[Budget], base: Base, levers: Levers) -> list[Budget]:
    """The budgets that a combination is not expected to meet."""
    return [budget for budget in budgets if not met(budget, book.predict(base, levers, budget.key))]
