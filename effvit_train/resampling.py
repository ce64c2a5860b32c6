"""Intervals and tests of anything that is computed from images, by drawing or swapping. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effvit_train.keys import stream_key

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]

DRAWS = 2000
_BLOCKS = 200  # of the jackknife


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: of the images as they are.
        low, high: of the interval.
    """

    value: float
    low: float
    high: float


def bca(statistic: Statistic, images: int, *, level: float = 0.05, draws: int = DRAWS) -> list[Estimate]:
    """Bias-corrected and accelerated bootstrap intervals (Efron 1987).

    Images are drawn with replacement, so that whatever is paired in an image stays paired. The draws are the same
    in every call with as many images: the same runs give the same numbers. The acceleration comes from a
    jackknife that leaves out one of at most 200 blocks of images at a time.

    Args:
        statistic: (N,) how often each image counts -> (M,) figures.
        images: N, at least one.
        level: 1 minus the coverage.
        draws: how many.

    Returns:
        One estimate per figure.
    """
    rng = np.random.default_rng(stream_key("compare.bootstrap", images))
    value = statistic(np.ones(images))
    drawn = np.array([
        statistic(np.bincount(rng.integers(0, images, images), minlength=images).astype(np.float64))
        for _ in range(draws)
    ])  # fmt: skip
    block = rng.permutation(images) % min(images, _BLOCKS)
    left_out = [statistic((block != number).astype(np.float64)) for number in range(block.max() + 1)]
    without = np.array(left_out) if len(left_out) > 1 else value[None]
    return [
        _estimate(float(value[m]), np.sort(drawn[:, m]), _acceleration(without[:, m]), level)
        for m in range(len(value))
    ]


def randomisation_test(
    difference: Callable[[Bools], Floats], images: int, *, draws: int = DRAWS
) -> list[float]:
    """Two-sided p-values: how often swapping A's and B's answers by coins gives as large a difference (Noreen 1989).

    The real difference counts as one of the draws (Phipson & Smyth 2010). The coins are the same in every call
    with as many images.

    Args:
        difference: (N,) whether the answers to an image are swapped -> (M,) differences of figures.
        images: N, at least one.
        draws: how many.
    """
    rng = np.random.default_rng(stream_key("compare.randomisation", images))
    real = np.abs(difference(np.zeros(images, dtype=np.bool_)))
    near = 1e-12 * np.maximum(1.0, real)  # sums in another order differ in the last digits
    extreme = np.zeros(len(real))
    for _ in range(draws):
        extreme += np.abs(difference(rng.random(images) < 0.5)) >= real - near
    return ((1 + extreme) / (1 + draws)).tolist()


def _acceleration(without: Floats) -> float:
    """A sixth of the skewness of the blocks' influence (Efron 1987, eq. 6.6)."""
    influence = without.mean() - without
    spread = float((influence**2).sum())
    return float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _estimate(value: float, drawn: Floats, acceleration: float, level: float) -> Estimate:
    from scipy.special import ndtr, ndtri

    bias = float(ndtri(_share_below(drawn, value)))

    def quantile(share: float) -> float:
        z = bias + float(ndtri(share))
        return float(np.quantile(drawn, float(ndtr(bias + z / (1 - acceleration * z)))))

    return Estimate(value, quantile(level / 2), quantile(1 - level / 2))


def _share_below(drawn: Floats, value: float) -> float:
    """Share of the sorted draws below a value, ties by half, kept off 0 and 1."""
    near = 1e-12 * max(1.0, abs(value))  # sums in another order differ in the last digits
    below = np.searchsorted(drawn, value - near) + np.searchsorted(drawn, value + near, side="right")
    least = 0.5 / len(drawn)
    return min(1 - least, max(least, below / (2 * len(drawn))))
