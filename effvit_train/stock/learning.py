"""A learning curve as a power law, and what it says about more data.

Errors fall with the number of training images n about as a n^-b (Hestness et al. 2017, arXiv 1712.00409), down
to a floor c that is fitted where there are points enough. The fit maximises the binomial likelihood of the
errors that were counted, so that points with few errors weigh less, and none at all is a number too. Beyond
the points all of it is extrapolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from effvit_train.errors import UserError
from effvit_train.proportions import wilson

WITH_FLOOR = 4  # points from which a floor is fitted
CAP = 10  # times the data: the farthest that is told
DRAWS = 200
_FLATTEST, _STEEPEST = -1.0, 3.0  # exponents
_TINY = 1e-9

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One training.

    Attributes:
        images: it was trained on.
        errors: wrong answers on validation images.
        total: validation images.
    """

    images: int
    errors: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return 1 - self.errors / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.total - self.errors, self.total)


@dataclass(frozen=True)
class PowerLaw:
    """error(n) = a n^-b + c."""

    a: float
    b: float
    c: float = 0.0

    def error(self, images: float) -> float:
        """At `images` training images; at most 1."""
        return min(1.0, self.a * images**-self.b + self.c)

    def images(self, error: float) -> float:
        """How many images bring the error down to `error`; infinite where none do."""
        if error <= self.c or self.b <= 0:
            return math.inf
        try:
            return (self.a / (error - self.c)) ** (1 / self.b)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Forecast:
    """The accuracy at more images than there are, as the fit has it, with a 95 % interval."""

    images: int
    accuracy: float
    interval: tuple[float, float]


Verdict = Literal["enough", "reached", "more", "far", "unknown"]


@dataclass(frozen=True)
class Answer:
    """Whether the data are enough for an accuracy.

    Attributes:
        accuracy: that is asked for.
        verdict: enough = the interval of the last point lies above it; reached = that point does, its
            interval does not; more = with about `images`; far = surely not with `CAP` times the data;
            unknown = the points do not tell.
        images: training images that are needed by the fit; None unless the verdict is more.
        interval: 95 % interval of `images`; an end beyond the cap is None.
        sentence: all of this in words.
    """

    accuracy: float
    verdict: Verdict
    images: int | None
    interval: tuple[int | None, int | None]
    sentence: str


@dataclass(frozen=True)
class Fit:
    """A power law through the points, and others through points that chance might have given instead.

    Attributes:
        law: of greatest likelihood.
        draws: fits to errors drawn anew (parametric bootstrap).
        largest: images of the last point.
    """

    law: PowerLaw
    draws: list[PowerLaw]
    largest: int

    @property
    def exponent(self) -> tuple[float, float]:
        """95 % interval of b."""
        low, high = np.quantile([law.b for law in self.draws], [0.025, 0.975])
        return float(low), float(high)

    def forecast(self, times: float) -> Forecast:
        """The accuracy at `times` the data of the last point."""
        images = round(times * self.largest)
        errors = [law.error(images) for law in self.draws]
        low, high = np.quantile(errors, [0.025, 0.975])
        return Forecast(images, 1 - self.law.error(images), (1 - float(high), 1 - float(low)))

    def needed(self, error: float) -> tuple[float, float, float]:
        """Images for `error`: by the fit, and the ends of the 95 % interval; any of them may be infinite."""
        needed = np.sort([law.images(error) for law in self.draws])
        # quantiles that are among the draws: between a number and infinity nothing can be interpolated
        low, high = (needed[round(q * (len(needed) - 1))] for q in (0.025, 0.975))
        return self.law.images(error), float(low), float(high)


def fit(points: Sequence[Point], *, draws: int = DRAWS, seed: int = 0) -> Fit:
    """Fit a power law.

    Args:
        points: at least two different numbers of images.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    images = np.array([point.images for point in points], dtype=np.float64)
    errors = np.array([point.errors for point in points], dtype=np.float64)
    totals = np.array([point.total for point in points], dtype=np.int64)
    if len(set(images.tolist())) < 2:
        raise ValueError("a curve needs two different numbers of images")
    law = _maximum_likelihood(images, errors, totals)
    generator = np.random.default_rng(seed)
    # chances of an error that are never 0 or 1: none in n does not mean that there could be none
    chance = (errors + 0.5) / (totals + 1)
    drawn = [_maximum_likelihood(images, generator.binomial(totals, chance), totals) for _ in range(draws)]
    return Fit(law, drawn, int(images.max()))


def answer(points: Sequence[Point], fitted: Fit, accuracy: float) -> Answer:
    """Whether the data are enough for `accuracy`, and if not, about how many more images would be."""
    last = max(points, key=lambda point: point.images)
    low, high = last.interval
    shown = f"{accuracy:.4g}"
    found = (
        f"{last.images:,} images gave {last.accuracy:.4f} on {last.total:,} validation images "
        f"(95 % interval {low:.4f} to {high:.4f})"
    )
    if low >= accuracy:
        return Answer(accuracy, "enough", None, (None, None), f"Enough for {shown}: {found}.")
    if last.accuracy >= accuracy:
        text = f"Reached {shown}, but not surely: {found}; more validation images would tell."
        return Answer(accuracy, "reached", None, (None, None), text)
    needed, least, most = fitted.needed(1 - accuracy)
    cap = CAP * last.images
    if least > cap:
        text = (
            f"Not enough for {shown}, nor would {CAP} times as many be ({cap:,}) as the curve runs: {found}."
        )
        return Answer(accuracy, "far", None, (None, None), text)
    ends = (_count(max(least, last.images), cap), _count(most, cap))
    around = f"{ends[0]:,} to {f'{ends[1]:,}' if ends[1] else f'more than {cap:,}'}"
    if needed > cap or needed <= last.images:
        text = f"Cannot tell for {shown}: {found}, and by the curve it takes {around} images."
        return Answer(accuracy, "unknown", None, ends, text)
    more = math.ceil(needed) - last.images
    text = (
        f"Not enough for {shown}: {found}. By the curve it takes about {more:,} images more, {math.ceil(needed):,} in all "
        f"(95 % interval {around}): an extrapolation."
    )
    return Answer(accuracy, "more", math.ceil(needed), ends, text)


def read_accuracy(text: str) -> float:
    """`0.99` or `99%`.

    Raises:
        UserError: it is not between 0 and 1.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise UserError(
            "must be between 0 and 1", key="--accuracy", value=text, remedy="e.g. --accuracy 0.98 or 98%"
        )
    return value


def _count(images: float, cap: int) -> int | None:
    return math.ceil(images) if images <= cap else None


def _maximum_likelihood(images: Floats, errors: npt.NDArray, totals: npt.NDArray) -> PowerLaw:
    """The power law under which these errors are most likely (binomial)."""
    from scipy.optimize import minimize

    centre = math.exp(float(np.log(images).mean()))
    log_images = np.log(images / centre)
    rates = (errors + 0.5) / (totals + 1)
    ceiling = float(rates.min()) if len(images) >= WITH_FLOOR else 0.0

    def loss(parameters: Floats) -> float:
        height, exponent, floor = parameters
        error = np.clip(np.exp(height - exponent * log_images) + floor, _TINY, 1 - _TINY)
        return float(-(errors * np.log(error) + (totals - errors) * np.log1p(-error)).sum())

    slope = float(np.polyfit(log_images, np.log(rates), 1)[0])
    exponent = min(max(-slope, _FLATTEST), _STEEPEST)
    bounds = [(math.log(_TINY), 0.0), (_FLATTEST, _STEEPEST), (0.0, ceiling)]
    best = None
    for floor in {0.0, ceiling / 2}:
        height = float(np.log(np.maximum(rates - floor, _TINY)).mean())
        found = minimize(loss, [min(height, 0.0), exponent, floor], method="L-BFGS-B", bounds=bounds)
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    height, exponent, floor = (float(value) for value in best.x)
    return PowerLaw(math.exp(height) * centre**exponent, exponent, floor)
