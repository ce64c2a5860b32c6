"""How well scores tell members from others: AUC, and the true positive rate at a low false positive rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and an interval that holds the truth with the confidence that was asked for."""

    value: float
    low: float
    high: float


def auc(scores: npt.ArrayLike, members: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Probability that a random member scores higher than a random other sample; a tie counts half.

    It is the Mann-Whitney U over the number of pairs, and the area under the ROC curve. The interval is
    conservative: over N = min(members, others), the AUC varies at most as much as a share of N trials does
    (Birnbaum & Klose 1957, "Bounds for the variance of the Mann-Whitney statistic"), so it is the
    Clopper-Pearson interval of AUC x N successes in N trials. Unlike intervals from an estimated variance,
    it keeps a width where the separation is perfect.

    Args:
        scores: (n,) higher = member.
        members: (n,) bool, with at least one of either kind.
        confidence: of the interval.
    """
    inside, outside = _split(scores, members)
    others = np.sort(outside)
    below = np.searchsorted(others, inside, side="left").sum()
    not_above = np.searchsorted(others, inside, side="right").sum()
    value = float((below + not_above) / (2 * len(inside) * len(outside)))
    trials = min(len(inside), len(outside))
    return Estimate(value, *clopper_pearson(value * trials, trials, confidence))


def tpr_at_fpr(
    scores: npt.ArrayLike, members: npt.ArrayLike, fpr: float = 0.01, confidence: float = 0.95
) -> Estimate:
    """The largest true positive rate over all thresholds whose false positive rate is at most `fpr`.

    A threshold t calls member what scores t or more; t = infinity calls nothing member. No interpolation:
    below 1 / fpr non-members it is the rate without a single false positive. With f = floor(fpr x
    non-members), the best threshold lies just above the non-member of rank f + 1. It depends on
    non-members alone, so the true positives at it are binomial, and the Clopper-Pearson interval is exact
    for the attack with that threshold. That the threshold itself would fall elsewhere with other
    non-members is not in it.

    Args as in `auc`; `fpr` in 0..1.
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr={fpr} is outside 0..1")
    inside, outside = _split(scores, members)
    allowed = int(fpr * len(outside)) + 1
    while allowed / len(outside) > fpr:  # not a plain floor: 0.29 x 100 is 28.999999999999996
        allowed -= 1
    if allowed == len(outside):
        hits = len(inside)
    else:
        hits = int((inside > np.sort(outside)[::-1][allowed]).sum())
    return Estimate(hits / len(inside), *clopper_pearson(hits, len(inside), confidence))


def clopper_pearson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided interval for a probability (Clopper & Pearson 1934), half of the error on either side.

    `successes` in 0..trials; between integers it interpolates by the same beta quantiles.
    """
    if not (0 <= successes <= trials and trials > 0 and 0 < confidence < 1):
        raise ValueError(f"successes={successes}, trials={trials}, confidence={confidence}")
    tail = (1 - confidence) / 2
    low = special.betaincinv(successes, trials - successes + 1, tail) if successes > 0 else 0.0
    high = special.betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return float(low), float(high)


def _split(scores: npt.ArrayLike, members: npt.ArrayLike) -> tuple[Array, Array]:
    """Scores of members, and of others."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(members)
    if values.ndim != 1 or truth.shape != values.shape or truth.dtype != np.bool_:
        raise ValueError(f"scores {values.shape} and members {truth.shape} (bool) do not match")
    if np.isnan(values).any():
        raise ValueError("a score is not a number")
    if not 0 < truth.sum() < len(truth):
        raise ValueError(f"{int(truth.sum())} members of {len(truth)} samples: both kinds are needed")
    return values[truth], values[~truth]
