"""Scores of membership inference: one number per sample, higher = rather trained on.

All take statistics of the true class, (n,) of the attacked model and (S, n) of shadow models, which
`log_odds` and `log_probability` make from logits: a thousand classes need not be kept for every model.
`members` (S, n) says which shadow model was trained on which sample (`planting.balanced_membership`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Variance = Literal["shared", "sample"]

_LEAST_SPREAD = 1e-12  # of a fit to equal values, whose density would otherwise be no number


def log_odds(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """log(p / (1 - p)) of the true class y, the confidence that is close to Gaussian over models.

    Carlini et al. 2022, "Membership inference attacks from first principles", eq. 3's phi. With p = softmax,
    it is z_y - log(sum of e^z_k over k != y): no probability is formed, so none rounds to 0 or 1.

    Shapes: `logits` (..., n, K) with K >= 2, `labels` (n,) in 0..K-1; returns (..., n).
    """
    values, truth = _checked(logits, labels)
    others = np.where(truth, -np.inf, values)
    return values[np.broadcast_to(truth, values.shape)].reshape(values.shape[:-1]) - _log_sum_exp(others)


def log_probability(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """log p of the true class. Shapes as in `log_odds`."""
    values, truth = _checked(logits, labels)
    return values[np.broadcast_to(truth, values.shape)].reshape(values.shape[:-1]) - _log_sum_exp(values)


def loss_threshold(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """Minus the loss, (n,): the baseline without shadow models.

    Yeom et al. 2018, "Privacy risk in machine learning", Adversary 2. Shapes as in `log_odds`.
    """
    return log_probability(logits, labels)


def lira_online(target: Array, shadows: Array, members: Mask, variance: Variance = "shared") -> Array:
    """log of the likelihood ratio of "in" to "out", from Gaussian fits to shadow models (n,).

    Carlini et al. 2022, eq. 3:
    log N(phi | mean_in, variance_in) - log N(phi | mean_out, variance_out), phi = `log_odds` of the target.

    Args:
        target: (n,) `log_odds` under the attacked model.
        shadows: (S, n) `log_odds` under the shadow models.
        members: (S, n).
        variance: "sample" fits one to each sample; "shared" pools them over samples (mean still of each),
            which the paper advises below 64 shadow models. Pooled is the variance within samples.

    Raises:
        ValueError: for shapes that do not match, or fewer models with or without a sample than a fit needs.
    """
    _check_shapes(target, shadows, members)
    mean_in, spread_in = _fit(shadows, members, variance)
    mean_out, spread_out = _fit(shadows, ~members, variance)
    return _log_density(target, mean_in, spread_in) - _log_density(target, mean_out, spread_out)


def lira_offline(target: Array, shadows: Array, members: Mask, variance: Variance = "shared") -> Array:
    """How far the target lies above the models that never saw the sample, in standard deviations (n,).

    Carlini et al. 2022, eq. 4, is P[Z <= phi] for Z ~ N(mean_out, variance_out): the normal distribution
    function of what is returned here. It orders samples equally, except where it rounds to 1.

    Arguments and errors as in `lira_online`; only models without the sample are used.
    """
    _check_shapes(target, shadows, members)
    mean, spread = _fit(shadows, ~members, variance)
    return (target - mean) / spread


def rmia_online(
    target: Array,
    shadows: Array,
    members: Mask,
    population_target: Array,
    population_shadows: Array,
    *,
    gamma: float = 1.0,
    a: float = 0.3,
) -> Array:
    """The share of the population that a sample dominates, with shadow models in and out (n,).

    Zarifzadeh, Liu & Shokri 2024, "Low-cost high-power membership inference attacks", section 3:

        LR(x, z) = (Pr(x | target) / Pr(x)) / (Pr(z | target) / Pr(z)),  score(x) = P_z[LR(x, z) > gamma]

    Pr(x) is the mean over shadow models, halved between those with and those without x. A z of the
    population was in no model, so its Pr(z) is that of `rmia_offline`.

    Args:
        target: (n,) `log_probability` under the attacked model.
        shadows: (S, n) the same under the shadow models.
        members: (S, n); each sample in at least one model and out of at least one.
        population_target: (Z,) `log_probability` of the population under the attacked model.
        population_shadows: (S, Z) the same under the shadow models.
        gamma: at least 1.
        a: see `rmia_offline`.
    """
    _check_shapes(target, shadows, members)
    inside, outside = _log_mean(shadows, members), _log_mean(shadows, ~members)
    prior = np.logaddexp(inside, outside) - np.log(2)
    return _dominance(target - prior, population_target, population_shadows, gamma, a)


def rmia_offline(
    target: Array,
    shadows: Array,
    members: Mask,
    population_target: Array,
    population_shadows: Array,
    *,
    gamma: float = 1.0,
    a: float = 0.3,
) -> Array:
    """The share of the population that a sample dominates, from models without the sample only (n,).

    As `rmia_online`, with Pr(x) = ((1 + a) Pr_out(x) + (1 - a)) / 2: training on x is taken to lift its
    probability from Pr_out to a Pr_out + (1 - a). With a = 1 it lifts nothing and Pr(x) = Pr_out(x); the
    less the models generalise, the smaller a (the paper uses 0.3 for CIFAR-10).
    """
    _check_shapes(target, shadows, members)
    prior = _scaled(_log_mean(shadows, ~members), a)
    return _dominance(target - prior, population_target, population_shadows, gamma, a)


def _dominance(
    ratio: Array, population_target: Array, population_shadows: Array, gamma: float, a: float
) -> Array:
    """Share of the population whose log ratio lies more than log(gamma) below `ratio` (n,)."""
    if gamma < 1:
        raise ValueError(f"gamma={gamma} is below 1")
    if population_target.ndim != 1 or not population_target.size:
        raise ValueError(f"the population {population_target.shape} must be (Z,) with Z >= 1")
    never = np.zeros(population_shadows.shape, dtype=np.bool_)
    _check_shapes(population_target, population_shadows, never)
    others = np.sort(population_target - _scaled(_log_mean(population_shadows, ~never), a))
    return np.searchsorted(others, ratio - np.log(gamma), side="left") / len(others)


def _scaled(log_outside: Array, a: float) -> Array:
    """log of ((1 + a) p + (1 - a)) / 2 for log p (n,)."""
    if not 0 <= a <= 1:
        raise ValueError(f"a={a} is outside 0..1")
    with np.errstate(divide="ignore"):  # a = 1: the second term is log 0
        return np.logaddexp(log_outside + np.log((1 + a) / 2), np.log((1 - a) / 2))


def _log_mean(log_values: Array, chosen: Mask) -> Array:
    """log of the mean of e^value over the chosen rows of each column: (S, n) -> (n,)."""
    count = chosen.sum(axis=0)
    if (count < 1).any():
        raise ValueError(f"{(count < 1).sum()} samples have no model of the kind that this score needs")
    return _log_sum_exp(np.where(chosen, log_values, -np.inf).T) - np.log(count)


def _fit(values: Array, chosen: Mask, variance: Variance) -> tuple[Array, Array]:
    """Mean and standard deviation (n,) of the chosen rows of each column of (S, n)."""
    count = chosen.sum(axis=0)
    least = 2 if variance == "sample" else 1
    if (count < least).any() or (count < 2).all():
        raise ValueError(
            f"a fit needs {least} models with and without each sample; there are {int(count.min(initial=0))}"
        )
    mean = np.where(chosen, values, 0.0).sum(axis=0) / count
    squares = np.where(chosen, (values - mean) ** 2, 0.0).sum(axis=0)
    pooled = variance == "shared"
    spread = np.sqrt(squares.sum() / (count - 1).sum() if pooled else squares / (count - 1))
    return mean, np.broadcast_to(np.maximum(spread, _LEAST_SPREAD), mean.shape)


def _log_density(x: Array, mean: Array, spread: Array) -> Array:
    """Of a Gaussian, without the constant that a ratio cancels."""
    return -0.5 * ((x - mean) / spread) ** 2 - np.log(spread)


def _log_sum_exp(values: Array) -> Array:
    return special.logsumexp(values, axis=-1)


def _checked(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Array, Mask]:
    """The logits in double precision, and (n, K) which of them is of the true class."""
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if values.ndim < 2 or values.shape[-1] < 2 or truth.shape != values.shape[-2:-1]:
        raise ValueError(f"logits {values.shape} and labels {truth.shape} do not match")
    classes = values.shape[-1]
    if truth.size and not 0 <= truth.min() <= truth.max() < classes:
        raise ValueError(f"labels outside 0..{classes - 1}")
    if not np.isfinite(values).all():
        raise ValueError("a logit is not finite")
    return values, truth[:, None] == np.arange(classes)


def _check_shapes(target: Array, shadows: Array, members: Mask) -> None:
    if target.ndim != 1 or shadows.shape[1:] != target.shape or members.shape != shadows.shape:
        raise ValueError(f"target {target.shape}, shadows {shadows.shape} and members {members.shape} differ")
    if members.dtype != np.bool_:
        raise ValueError(f"members are {members.dtype}, not bool")
