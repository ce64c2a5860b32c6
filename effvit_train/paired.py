"""Two models on the same images: is one right more often? Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from effvit_train.proportions import Z95, wilson

POWER_Z = 0.8416212335729143  # 80 % quantile of the normal distribution


@dataclass(frozen=True)
class Table:
    """Images by who gets them right: the table that McNemar's test is of.

    Attributes:
        both, neither: right in both models, wrong in both.
        only_a, only_b: right in one model only.
    """

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def total(self) -> int:
        """All images."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of B minus that of A."""
        return (self.only_b - self.only_a) / self.total

    @property
    def p_value(self) -> float:
        """McNemar's exact test."""
        return mcnemar(self.only_a, self.only_b)


def mcnemar(b: int, c: int) -> float:
    """Two-sided exact p-value for `b` against `c` discordant pairs (McNemar 1947, binomial form)."""
    n, tail, term = b + c, 0, 1
    for i in range(min(b, c) + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return min(1.0, 2 * tail / 2**n)


def interval(table: Table, z: float = Z95) -> tuple[float, float]:
    """Score interval of accuracy B minus accuracy A on the same images (Newcombe 1998b, method 10).

    Wilson's intervals of both accuracies, put together with the correlation of the two answers, whose covariance
    is brought nearer to zero by half an image where it is positive.

    Args:
        table: of at least one image.
        z: normal quantile; the default gives 95 %.
    """
    n, a = table.total, table
    right_a, right_b = a.both + a.only_a, a.both + a.only_b
    margins = right_a * (n - right_a) * right_b * (n - right_b)
    covariance: float = a.both * a.neither - a.only_a * a.only_b
    if covariance > 0:
        covariance = max(0.0, covariance - n / 2)
    return _joined(right_a, n, right_b, n, covariance / math.sqrt(margins) if margins else 0.0, z)


def interval_unpaired(
    right_a: int, total_a: int, right_b: int, total_b: int, z: float = Z95
) -> tuple[float, float]:
    """Score interval of accuracy B minus accuracy A on different images (Newcombe 1998a, method 10).

    Args:
        right_a, total_a: images that A gets right, of so many; at least one.
        right_b, total_b: the same for B.
        z: normal quantile; the default gives 95 %.
    """
    return _joined(right_a, total_a, right_b, total_b, 0.0, z)


def _joined(
    right_a: int, total_a: int, right_b: int, total_b: int, correlation: float, z: float
) -> tuple[float, float]:
    of_a, of_b = wilson(right_a, total_a, z), wilson(right_b, total_b, z)
    return difference_interval(right_a / total_a, of_a, right_b / total_b, of_b, correlation)


def difference_interval(
    a: float, of_a: tuple[float, float], b: float, of_b: tuple[float, float], correlation: float = 0.0
) -> tuple[float, float]:
    """Interval of b - a from the interval of each (Zou & Donner 2008; with Wilson's, Newcombe's method 10).

    Args:
        a, of_a: an estimate and its interval.
        b, of_b: the other.
        correlation: of the two estimates; left out where it is positive, the interval is too wide.
    """
    below = _side(b - of_b[0], of_a[1] - a, correlation)
    above = _side(of_b[1] - b, a - of_a[0], correlation)
    return b - a - below, b - a + above


def _side(own: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, own**2 - 2 * correlation * own * other + other**2))


def mean_interval(gains: Sequence[float], z: float = Z95) -> tuple[float, float]:
    """Interval of the mean gain of images, each between -1 and 1: a share of B's runs minus a share of A's.

    The adjusted Wald interval for paired proportions (Bonett & Price 2012), which adds one image that only A and
    one that only B gets right; where a side has one run, it is that one.

    Args:
        gains: of at least one image.
        z: normal quantile; the default gives 95 %.
    """
    n = len(gains) + 2
    mean = math.fsum(gains) / n
    variance = (math.fsum(gain * gain for gain in gains) + 2) / n - mean**2
    half = z * math.sqrt(variance / n)
    return mean - half, mean + half


def images_needed(table: Table, z: float = Z95) -> int | None:
    """About how many images would show this difference with 80 % power; None where there is none (Connor 1987).

    Args:
        table: whose shares of differing images are taken for the true ones.
        z: normal quantile of the test.
    """
    if table.only_a == table.only_b:
        return None
    difference, differing = abs(table.difference), (table.only_a + table.only_b) / table.total
    root = z * math.sqrt(differing) + POWER_Z * math.sqrt(max(0.0, differing - difference**2))
    return math.ceil(root**2 / difference**2)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are: the chance of any false one stays below the level (Holm 1979)."""
    found = [0.0] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted((p, i) for i, p in enumerate(p_values))):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        found[i] = largest
    return found
