"""Two settings over several seeds: does their mean differ by more than trainings do? Needs no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from effvit_train.paired import POWER_Z
from effvit_train.proportions import Z95

PAIRED, WELCH = "paired t-test over seeds", "Welch's t-test over seeds"


@dataclass(frozen=True)
class TTest:
    """A difference of means.

    Attributes:
        difference: mean of B minus mean of A.
        low, high: of its interval; None where the values have no spread.
        p_value: two-sided; None likewise.
        freedom: degrees of freedom.
        runs_needed: about how many runs a side would show this difference with 80 % power at 5 %; None where it
            is 0 or has no spread.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    freedom: float
    runs_needed: int | None


def paired(a: Sequence[float], b: Sequence[float], *, level: float = 0.05) -> TTest:
    """Student's t-test of the differences of runs with the same seed.

    Args:
        a, b: one value per seed, in the same order; at least two.
        level: 1 minus the coverage of the interval.
    """
    differences = [y - x for x, y in zip(a, b, strict=True)]
    n = len(differences)
    variance = _variance(differences)
    return _test(statistics.fmean(differences), variance / n, n - 1, variance, level)


def welch(a: Sequence[float], b: Sequence[float], *, level: float = 0.05) -> TTest:
    """Welch's t-test of two sets of runs (Welch 1947): their variances may differ.

    Args:
        a, b: at least two values each.
        level: 1 minus the coverage of the interval.
    """
    of_a, of_b = _variance(a), _variance(b)
    part_a, part_b = of_a / len(a), of_b / len(b)
    squared = part_a + part_b
    weights = part_a**2 / (len(a) - 1) + part_b**2 / (len(b) - 1)
    freedom = squared**2 / weights if weights > 0 else float(len(a) + len(b) - 2)
    return _test(statistics.fmean(b) - statistics.fmean(a), squared, freedom, of_a + of_b, level)


def _variance(values: Sequence[float]) -> float:
    """With n - 1; 0 where the values are the same but for rounding."""
    variance = statistics.variance(values)
    return variance if variance > (1e-12 * max(map(abs, values))) ** 2 else 0.0


def _test(difference: float, squared_error: float, freedom: float, variance: float, level: float) -> TTest:
    if squared_error <= 0:
        return TTest(difference, None, None, None, freedom, None)
    from scipy.special import stdtr, stdtrit

    error = math.sqrt(squared_error)
    half = float(stdtrit(freedom, 1 - level / 2)) * error
    p_value = min(1.0, 2 * float(stdtr(freedom, -abs(difference) / error)))
    needed = None
    if difference != 0:
        # two more than by the normal distribution make up for a spread that is estimated (Guenther 1981)
        needed = math.ceil((Z95 + POWER_Z) ** 2 * variance / difference**2) + 2
    return TTest(difference, difference - half, difference + half, p_value, freedom, needed)
