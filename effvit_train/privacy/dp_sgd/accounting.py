"""What has been spent: epsilon of a history of steps, by Opacus's accountants.

A history is a list of (noise multiplier, sample rate, steps). The accountants bound the privacy loss of the
Poisson-subsampled Gaussian mechanism under adding or removing one image; an image whose slot is left empty
(zero-out adjacency, contract C7) changes no more than one that is removed.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence

from opacus.accountants import PRVAccountant, RDPAccountant

from effvit_train.privacy.config import LEAST_NOISE

Phase = tuple[float, float, int]
History = Sequence[Phase]

PRV_MOST = 50.0  # epsilon: beyond it the numerical accountant's grid outgrows the memory
_SIGMA = (LEAST_NOISE, 1e6)
_PRECISION = 1e-3  # of a noise multiplier that is searched for


def epsilon(history: History, delta: float, accountant: str) -> float:
    """An upper bound of epsilon at `delta`; infinite where the accountant finds none.

    Args:
        history: (noise multiplier, sample rate, steps); phases without steps are left out.
        delta: of the guarantee.
        accountant: `prv` (Gopi et al. 2021, numerical composition) | `rdp` (Mironov et al. 2019), which is
            also what bounds an epsilon above `PRV_MOST`.
    """
    merged: dict[tuple[float, float], int] = {}
    for sigma, rate, steps in history:
        if steps:
            merged[sigma, rate] = merged.get((sigma, rate), 0) + steps
    if not merged:
        return 0.0
    if min(sigma for sigma, _ in merged) < _SIGMA[0]:
        return math.inf
    phases = tuple((sigma, rate, steps) for (sigma, rate), steps in merged.items())
    spent = _bound(RDPAccountant, phases, delta)
    if accountant == "rdp" or spent > PRV_MOST:
        return spent
    # both are bounds
    return min(spent, _bound(PRVAccountant, phases, delta))


@functools.lru_cache(maxsize=1024)  # the same is asked when a run is checked, planned, told of and measured
def _bound(kind: type[RDPAccountant] | type[PRVAccountant], phases: tuple[Phase, ...], delta: float) -> float:
    accountant = kind()
    accountant.history = list(phases)
    with warnings.catch_warnings(
        action="ignore"
    ):  # of orders that were not tried: they would only be tighter
        try:
            spent = float(accountant.get_epsilon(delta))
        except (ValueError, RuntimeError, OverflowError, FloatingPointError):  # beyond what it can discretise
            return math.inf
    return spent if math.isfinite(spent) else math.inf


def find_noise(
    target: float, delta: float, accountant: str, *, rate: float, steps: int, before: History = ()
) -> float | None:
    """The least noise multiplier (to 0.1 %) with which `steps` more steps keep within `target`.

    None where no noise is enough, because `before` has spent it already.
    """

    def within(sigma: float, by: str) -> bool:
        return epsilon([*before, (sigma, rate, steps)], delta, by) <= target

    # what the looser and faster bound needs is a good place to start from
    high = _bisect(lambda sigma: within(sigma, "rdp"), *_SIGMA)
    if accountant == "rdp" or high is None:
        return high
    low = high
    while low > _SIGMA[0] and within(low, accountant):
        high, low = low, low * 0.8
    return _bisect(lambda sigma: within(sigma, accountant), max(low, _SIGMA[0]), high)


def most_steps(
    limit: float,
    delta: float,
    accountant: str,
    *,
    sigma: float,
    rate: float,
    steps: int,
    before: History = (),
) -> int:
    """How many of `steps` steps can be made without spending more than `limit`."""

    def within(count: int) -> bool:
        return epsilon([*before, (sigma, rate, count)], delta, accountant) <= limit

    if within(steps):
        return steps
    low, high = 0, steps  # `low` is within (or nothing is), `high` is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def _bisect(fits: Callable[[float], bool], low: float, high: float) -> float | None:
    """The least value that fits, where all above it do; None where not even `high` fits."""
    if not fits(high):
        return None
    while high / low > 1 + _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
