"""A number with its standard error: differences between arms, and sums of such. Needs no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEVEL = 0.05
Sample = tuple[object, float]  # seed, value


@dataclass(frozen=True)
class Estimate:
    """A mean of differences, or a sum of such means.

    Attributes:
        value: the estimate.
        error: its standard error; 0 for what was counted and does not vary; None where too few runs tell.
        freedom: degrees of freedom of the error.
        runs: pairs of runs behind it, or runs of the smaller side.
        paired: whether runs with the same seed were compared with each other.
    """

    value: float
    error: float | None
    freedom: float
    runs: int
    paired: bool = True

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Student's interval with coverage `1 - level`; None without a standard error."""
        half = self.half_width(level)
        return None if half is None else (self.value - half, self.value + half)

    def half_width(self, level: float = LEVEL) -> float | None:
        """Half of that interval."""
        if self.error is None:
            return None
        if self.error == 0:
            return 0.0
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, 1 - level / 2)) * self.error

    @property
    def p_value(self) -> float:
        """Two-sided, that the true value is 0; 1 where nothing tells."""
        if self.error is None:
            return 1.0
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        from scipy.special import stdtr

        return min(1.0, 2 * float(stdtr(self.freedom, -abs(self.value) / self.error)))


def mean(samples: Sequence[Sample], *, exact: bool) -> Estimate:
    """Mean of an arm's runs.

    Args:
        samples: at least one.
        exact: whether equal values mean that the quantity does not vary, as with counts.
    """
    return _of([value for _, value in samples], exact=exact, paired=False)


def difference(before: Sequence[Sample], after: Sequence[Sample], *, exact: bool) -> Estimate:
    """Mean of `after` minus mean of `before`.

    Pairs of runs with the same seed where both sides have each seed once and share two of them (or have no more
    than one run); else Welch's (1947) difference of means.

    Args:
        before, after: at least one each.
        exact: as for `mean`.
    """
    pairs = _pairs(before, after)
    if len(pairs) >= 2 or (pairs and min(len(before), len(after)) == 1):
        return _of([b - a for a, b in pairs], exact=exact, paired=True)
    first, second = ([value for _, value in samples] for samples in (before, after))
    value = statistics.fmean(second) - statistics.fmean(first)
    runs = min(len(first), len(second))
    if runs < 2:
        same = exact and not (_variance(first) or _variance(second))
        return Estimate(value, 0.0 if same else None, math.inf, runs, False)
    return _combined(value, [(1.0, _of(s, exact=exact, paired=False)) for s in (first, second)], runs, False)


def combination(parts: Iterable[tuple[float, Estimate]]) -> Estimate:
    """A weighted sum of independent estimates; degrees of freedom by Satterthwaite (1946).

    Args:
        parts: (weight, estimate), at least one.
    """
    listed = list(parts)
    value = sum(weight * part.value for weight, part in listed)
    runs = min(part.runs for _, part in listed)
    return _combined(value, listed, runs, all(part.paired for _, part in listed))


def by_seed(groups: Sequence[tuple[float, Sequence[Sample]]], *, exact: bool) -> Estimate | None:
    """A weighted sum of arms, seed by seed: what several differences have in common cancels out.

    Args:
        groups: (weight, runs) of each arm.
        exact: as for `mean`.

    Returns:
        None unless every arm has each seed once and all share two.
    """
    tables = []
    for weight, samples in groups:
        table = dict(samples)
        if len(table) < len(samples):
            return None
        tables.append((weight, table))
    shared = set.intersection(*(set(table) for _, table in tables))
    if len(shared) < 2:
        return None
    sums = [sum(weight * table[seed] for weight, table in tables) for seed in sorted(shared, key=str)]
    return _of(sums, exact=exact, paired=True)


def _pairs(before: Sequence[Sample], after: Sequence[Sample]) -> list[tuple[float, float]]:
    first, second = dict(before), dict(after)
    if len(first) < len(before) or len(second) < len(after):
        return []  # several runs with one seed: private runs, whose noise does not come from it
    return [(first[seed], second[seed]) for seed in first if seed in second]


def _of(values: Sequence[float], *, exact: bool, paired: bool) -> Estimate:
    value, runs = statistics.fmean(values), len(values)
    variance = _variance(values)
    if variance:
        return Estimate(value, math.sqrt(variance / runs), runs - 1, runs, paired)
    # equal values of what is counted do not vary; of what is drawn they are luck, and give no interval
    return Estimate(value, 0.0 if exact else None, math.inf, runs, paired)


def _combined(value: float, parts: list[tuple[float, Estimate]], runs: int, paired: bool) -> Estimate:
    squares = []
    for weight, part in parts:
        if part.error is None:
            return Estimate(value, None, math.inf, runs, paired)
        squares.append((weight**2 * part.error**2, part.freedom))
    total = sum(square for square, _ in squares)
    if total == 0:
        return Estimate(value, 0.0, math.inf, runs, paired)
    freedom = total**2 / sum(square**2 / free for square, free in squares if square)
    return Estimate(value, math.sqrt(total), freedom, runs, paired)


def _variance(values: Sequence[float]) -> float:
    """With n - 1; 0 with one value, and where values are the same but for rounding."""
    if len(values) < 2:
        return 0.0
    found = statistics.variance(values)
    return found if found > (1e-9 * max(map(abs, values))) ** 2 else 0.0
