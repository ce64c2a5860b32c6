"""The axis `calibration/*` (probabilistic): whether the model is right as often as it says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, special, stats
from torch import Tensor

from effvit_train.audit.attack.figures import clopper_pearson
from effvit_train.audit.uncertainty import Selective, doubt_of, unusable
from effvit_train.card import Measured
from effvit_train.keys import stream_key
from effvit_train.proportions import Z95

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BINS = 15  # Guo et al. 2017
ECE, EQUAL_MASS = "calibration/ece", "calibration/ece_equal_mass"
BRIER, SCALED, AURC = "calibration/brier", "calibration/ece_scaled", "calibration/aurc"
SELECTIVE = {"calibration/accuracy_at_80pct_coverage": 0.8, "calibration/accuracy_at_90pct_coverage": 0.9}
KEYS = (ECE, EQUAL_MASS, BRIER, SCALED, AURC, *SELECTIVE)
_REPLICATES = 500


def measure_calibration(
    logits: Tensor, labels: Tensor, *, validation: tuple[Tensor, Tensor] | None = None
) -> tuple[Measured, dict[str, Any]]:
    """Calibration errors, Brier score, and what abstaining would bring.

    The Brier score is that of Brier 1950: squared errors summed over all classes, 0..2 (half of it is the
    usual one of two classes).

    Args:
        logits: (N, K) of the test images.
        labels: (N,) in 0..K-1.
        validation: the same of the validation images, to fit a temperature on.

    Returns:
        The measures by key, each a number or a reason, and for the provenance 95 % intervals, the bins of
        reliability diagrams, the temperature and the risk-coverage curve.

    Raises:
        ValueError: shapes or labels that do not belong together.
    """
    _check(logits, labels)
    if reason := _unusable(logits, "test images"):
        return Measured(missing=dict.fromkeys(KEYS, reason)), {}
    said = _Said.of(logits, labels)
    count = len(said.right)
    bins = {ECE: equal_width(said.confidence), EQUAL_MASS: equal_mass(said.doubt)}
    measured = Measured({key: said.ece(found) for key, found in bins.items()})
    measured.values[BRIER] = float(said.brier.mean())
    chance = _by_chance(said, bins)
    intervals = _bootstrap(said, bins, chance)
    intervals[BRIER] = _of_mean(said.brier)
    selective = Selective.of(said.doubt, said.right)
    measured.values[AURC] = selective.aurc
    for key, coverage in SELECTIVE.items():
        accuracy, answered = selective.accuracy(coverage), selective.answered(coverage)
        measured.values[key] = accuracy
        intervals[key] = list(clopper_pearson(accuracy * answered, answered))
    facts: dict[str, Any] = {
        "images": count, "confidence": float(said.confidence.mean()), "accuracy": float(said.right.mean()),
        "brier": "summed over classes, 0..2", "intervals": intervals,
        "if_calibrated": {
            key: {"mean": float(errors.mean()), "p95": float(np.quantile(errors, 0.95))}
            for key, errors in chance.items()
        },
        "reliability": {
            "equal_width": _diagram(said, bins[ECE], equal_width=True),
            "equal_mass": _diagram(said, bins[EQUAL_MASS], equal_width=False),
        },
        "selective": {
            "curve": selective.curve(), "excess_aurc": selective.excess, "augrc": selective.generalized
        },
    }  # fmt: skip
    try:
        temperature = _fitted(validation)
    except NoTemperature as why:
        measured.missing[SCALED] = str(why)
    else:
        scaled = _Said.of(logits.double() / temperature.value, labels)
        measured.values[SCALED] = scaled.ece(equal_width(scaled.confidence))
        facts["temperature"] = {
            "value": temperature.value, "interval": [temperature.low, temperature.high],
            "images": temperature.images, "before": said.scores(), "after": scaled.scores(),
        }  # fmt: skip
    return measured, facts


@dataclass(frozen=True)
class _Said:
    """What the model says of N images, and how right it is; arrays of shape (N,).

    Attributes:
        doubt, confidence: probability of all other classes, and of the most likely one.
        right: whether that one is the label.
        brier, nll: scores of each image, in squared probability and nats.
    """

    doubt: Floats
    confidence: Floats
    right: Bools
    brier: Floats
    nll: Floats

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> _Said:
        z, truth = logits.detach().to("cpu", torch.float64), labels.detach().to("cpu", torch.int64)
        log_p = z.log_softmax(dim=1)
        own = log_p.gather(1, truth[:, None]).squeeze(1)
        p = log_p.exp()
        brier = (p**2).sum(dim=1) - 2 * own.exp() + 1
        doubt = doubt_of(z)
        return cls(
            doubt,
            1 - doubt,
            (z.argmax(dim=1) == truth).numpy(),
            brier.clamp_min(0.0).numpy(),
            (-own).numpy(),
        )

    @property
    def gap(self) -> Floats:
        """(N,) confidence minus success."""
        return self.confidence - self.right

    def ece(self, bins: Ints) -> float:
        """Expected calibration error over these bins (N,)."""
        return float(np.abs(_sums(bins, self.gap)).sum())

    def scores(self) -> dict[str, float]:
        """Means that a temperature changes."""
        return {
            "nll": float(self.nll.mean()),
            "brier": float(self.brier.mean()),
            "ece": self.ece(equal_width(self.confidence)),
        }


def equal_width(confidence: Floats, bins: int = BINS) -> Ints:
    """(N,) bin 0..bins-1 of each confidence: (0, 1/bins], ... (1 - 1/bins, 1] (Guo et al. 2017, section 2)."""
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, confidence, side="left").astype(np.int64)


def equal_mass(doubt: Floats, bins: int = BINS) -> Ints:
    """(N,) bin of each image, from sure to unsure, equally many in each (Nguyen & O'Connor 2015).

    Equal doubts share a bin, that of their middle rank: the bins do not depend on the order of the images.
    """
    middle = stats.rankdata(doubt, method="average") - 0.5
    return (middle * bins / len(doubt)).astype(np.int64)


def _sums(bins: Ints, gap: Floats) -> Floats:
    """(15,) sum of the gaps in each bin, over the number of images."""
    return np.bincount(bins, weights=gap, minlength=BINS) / len(gap)


def _by_chance(said: _Said, bins: dict[str, Ints]) -> dict[str, Floats]:
    """Errors (500,) that a model shows by chance which is right exactly as often as it says.

    Successes are drawn by the confidences (Broecker & Smith 2007, "consistency resampling").
    """
    rng = np.random.default_rng(stream_key("calibration.consistency"))
    drawn: dict[str, list[float]] = {key: [] for key in bins}
    for _ in range(_REPLICATES):
        gap = said.confidence - (rng.random(len(said.right)) < said.confidence)
        for key, found in bins.items():
            drawn[key].append(float(np.abs(_sums(found, gap)).sum()))
    return {key: np.array(values) for key, values in drawn.items()}


def _bootstrap(said: _Said, bins: dict[str, Ints], chance: dict[str, Floats]) -> dict[str, list[float]]:
    """95 % intervals of calibration errors over fixed bins, by resampling images.

    The plain percentiles of a bootstrap are no interval here. The error is a norm, noise in its bins only adds
    to it, and resampling adds it once more: for a calibrated model they lie above 0 every time. With the
    sums of the bins as a vector s, its truth t and a resampled s*, | |s| - |t| | <= |s - t|, whose 97.5th
    percentile is that of |s* - s|: so far below the estimate goes the interval, and to 0 if that is more;
    likewise with the noise of a calibrated model, as images that are all right show none. As the estimate is
    too high on average, above it only its own spread is needed.
    """
    rng = np.random.default_rng(stream_key("calibration.bootstrap"))
    gap = said.gap
    drawn: dict[str, list[Floats]] = {key: [] for key in bins}
    for _ in range(_REPLICATES):
        rows = rng.integers(0, len(gap), len(gap))
        for key, found in bins.items():
            drawn[key].append(_sums(found[rows], gap[rows]))
    intervals = {}
    for key, found in bins.items():
        sums, value = np.stack(drawn[key]), said.ece(found)
        noise, errors = np.abs(sums - _sums(found, gap)).sum(axis=1), np.abs(sums).sum(axis=1)
        below = max(float(np.quantile(noise, 0.975)), float(np.quantile(chance[key], 0.975)))
        above = float(errors.mean() - np.quantile(errors, 0.025))
        intervals[key] = [max(0.0, value - below), min(1.0, value + above)]
    return intervals


def _diagram(said: _Said, bins: Ints, *, equal_width: bool) -> list[dict[str, Any]]:
    """The bins of a reliability diagram by ascending confidence; equal-mass bins without images are left out.

    Each has the range and the mean of confidences, the number of images, their accuracy and its 95 % interval.
    """
    rows = []
    for number in range(BINS) if equal_width else range(BINS - 1, -1, -1):
        inside = bins == number
        count = int(inside.sum())
        if not count and not equal_width:
            continue
        confidence, right = said.confidence[inside], int(said.right[inside].sum())
        low, high = (
            (number / BINS, (number + 1) / BINS)
            if equal_width
            else (float(confidence.min()), float(confidence.max()))
        )
        rows.append({
            "low": low, "high": high, "count": count,
            "confidence": float(confidence.mean()) if count else None,
            "accuracy": right / count if count else None,
            "interval": list(clopper_pearson(right, count)) if count else None,
        })  # fmt: skip
    return rows


def _of_mean(brier: Floats) -> list[float]:
    """95 % interval of the mean of the scores (N,), normal; the whole range for a single one."""
    if len(brier) < 2:
        return [0.0, 2.0]
    mean, half = float(brier.mean()), Z95 * float(brier.std(ddof=1)) / math.sqrt(len(brier))
    return [max(0.0, mean - half), min(2.0, mean + half)]


class NoTemperature(ValueError):
    """No temperature minimises the NLL of these images; `str(error)` is the reason."""


@dataclass(frozen=True)
class Temperature:
    """Divides logits; above 1 = the model was too sure. With its 95 % interval and the number of images."""

    value: float
    low: float
    high: float
    images: int


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """The temperature that minimises the mean NLL (Guo et al. 2017, section 4.2).

    In b = 1 / temperature the NLL is convex and its derivative, mean of E_p[z] - z_label, grows. It has a
    zero, which is found by bracketing and Brent's method, exactly if it is negative at b = 0 and some image
    is classified wrong; no bounds are needed, whatever the scale of the logits. The interval is that of an
    M-estimator ("sandwich", White 1982), on the logarithm.

    Args:
        logits: (N, K), finite.
        labels: (N,) in 0..K-1.

    Raises:
        NoTemperature: the best one would be 0 or infinite.
        ValueError: shapes or labels that do not belong together.
    """
    _check(logits, labels)
    z = logits.detach().to("cpu", torch.float64).numpy()
    z = z - z.max(axis=1, keepdims=True)  # so that no product with b overflows
    own = z[np.arange(len(z)), labels.detach().cpu().numpy()]
    if not len(z):
        raise NoTemperature("there are no validation images")
    if (own == 0).all():
        raise NoTemperature("every validation image is classified right: the best temperature would be 0")
    if (z.mean(axis=1) - own).mean() >= -1e-12 * np.abs(z).max():
        raise NoTemperature(
            "on validation images the logits do not point to the labels: the best temperature is infinite"
        )

    def slopes(log_b: float) -> Floats:
        """(N,) derivative of each NLL with respect to b."""
        return (special.softmax(math.exp(log_b) * z, axis=1) * z).sum(axis=1) - own

    low = high = -math.log(float(np.abs(z).mean()))  # logits of about unit size
    while slopes(low).mean() > 0:
        low -= 1.0
    while slopes(high).mean() < 0:
        high += 1.0
    log_b = (
        float(optimize.brentq(lambda x: float(slopes(x).mean()), low, high, xtol=1e-12))
        if low < high
        else low
    )
    b = math.exp(log_b)
    p = special.softmax(b * z, axis=1)
    curvature = float(((p * z**2).sum(axis=1) - (p * z).sum(axis=1) ** 2).mean())
    half = (
        Z95 * float(slopes(log_b).std()) / (math.sqrt(len(z)) * curvature * b) if curvature > 0 else math.inf
    )
    half = min(half, 700.0)  # its exponential is finite
    return Temperature(1 / b, math.exp(-half) / b, math.exp(half) / b, len(z))


def _fitted(validation: tuple[Tensor, Tensor] | None) -> Temperature:
    if validation is None:
        raise NoTemperature("there are no validation images to fit a temperature on")
    if reason := _unusable(validation[0], "validation images"):
        raise NoTemperature(reason)
    return fit_temperature(*validation)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not match")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]):
        raise ValueError(f"labels outside 0..{logits.shape[1] - 1}")


def _unusable(logits: Tensor, what: str) -> str:
    if logits.shape[1] < 2:
        return "one class leaves nothing to doubt"
    return unusable(logits, what)
