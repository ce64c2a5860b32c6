"""The interval of a proportion, wherever one is told. Needs no torch."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Score interval for a proportion (Wilson 1927; Newcombe 1998, method 3).

    Args:
        right: successes.
        total: trials, at least one.
        z: normal quantile; the default gives 95 %.
    """
    if not 0 <= right <= total or total < 1:
        raise ValueError(f"{right} of {total} is not a proportion")
    p, z2 = right / total, z * z
    centre = (2 * right + z2) / (2 * (total + z2))
    half = z * math.sqrt(z2 + 4 * total * p * (1 - p)) / (2 * (total + z2))
    # at either end the exact bound is the end itself, which rounding may miss
    low = 0.0 if right == 0 else max(0.0, centre - half)
    return low, 1.0 if right == total else min(1.0, centre + half)
