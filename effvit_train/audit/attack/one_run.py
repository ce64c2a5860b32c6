"""A lower bound on epsilon from the canaries of one training run.

Steinke, Nasr & Jagielski 2023, "Privacy auditing with one (1) training run", arXiv 2305.08846. Each of m
canaries was trained on or not by a fair coin of its own (`planting.plant`). From the finished model one
guesses some of the coins. If training is (epsilon, delta)-DP, guesses are right hardly more often than
answers of randomised response, and too many right guesses refute that epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from effvit_train.data import draws

_WIDTH = 1e-9  # of the interval at which the bisection stops


@dataclass(frozen=True)
class OneRunBound:
    """What an audit proves: training is not (e, delta)-DP for any e below `epsilon`.

    Attributes:
        epsilon: the bound; wrong with probability at most 1 - confidence, over the coins and the training.
        delta: at which it holds.
        confidence: in it, corrected for the number of choices.
        choices: the k that had been declared.
        guesses: r of the choice that gave the bound.
        correct: v, how many of them were right.
    """

    epsilon: float
    delta: float
    confidence: float
    choices: tuple[int, ...]
    guesses: int
    correct: int


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """How probable it is, at most, that an (epsilon, delta)-DP training lets v guesses be right.

    Corollary 5.4 of the paper: with W ~ Binomial(r, e^epsilon / (1 + e^epsilon)) and f(v) = P[W >= v],

        p = f(v) + 2 m delta max_{i=1..m} (f(v - i) - f(v)) / i

    The first term is randomised response. In the second, delta lets training betray canaries outright, on
    average 2 m delta of them; its worst use is to betray i at once, as often as that average allows.

    Args:
        m: canaries, guessed or not.
        r: guesses.
        v: right guesses.
        epsilon: at least 0.
        delta: 0..1.
    """
    if not 0 <= v <= r <= m:
        raise ValueError(f"0 <= v={v} <= r={r} <= m={m} does not hold")
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(f"epsilon={epsilon} and delta={delta} are not of differential privacy")
    accuracy = float(special.expit(epsilon))
    by_chance = float(special.bdtrc(v - 1, r, accuracy))
    if delta == 0 or v == 0:
        return by_chance
    # Beyond i = v the tail f stays at 1 and the ratio only falls.
    i = np.arange(1, v + 1)
    betrayed = float(np.max((special.bdtrc(v - i - 1, r, accuracy) - by_chance) / i))
    return min(1.0, by_chance + 2 * m * delta * betrayed)


def epsilon_lower_bound(m: int, r: int, v: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that v right ones of r guesses refute with this confidence; 0 if they refute none.

    The p-value grows with epsilon, as far as it is of interest (below 1/2), so the refuted epsilons are an
    interval from 0, and naming its end costs no confidence: the bound exceeds the true epsilon only if the
    test of the true epsilon itself erred.

    Raises `ValueError` for a confidence outside 0.5..1, besides what `p_value` raises.
    """
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence={confidence} is outside 0.5..1")
    level = 1 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(m, r, v, epsilon, delta) <= level

    return _end_of(refuted)


def _end_of(refuted: Callable[[float], bool]) -> float:
    """The end of the interval [0, end] where `refuted` holds, from below: what is returned was refuted.

    0 if the interval is empty.
    """
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > _WIDTH:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def default_choices(m: int) -> tuple[int, ...]:
    """Guess all canaries, the clearest quarter of them, or the clearest sixteenth: k of m/2, m/8, m/32.

    All is best when every canary is somewhat visible, few when a few are very visible. Three choices reach
    from one to the other; each further one costs confidence (the level of a test is a third here).
    """
    return tuple(k for k in (m // 2, m // 8, m // 32) if k)


def audit_one_run(
    scores: npt.ArrayLike,
    included: npt.ArrayLike,
    delta: float,
    *,
    confidence: float = 0.95,
    choices: Sequence[int] | None = None,
) -> OneRunBound:
    """The bound from the scores of all canaries (Algorithm 1 of the paper).

    A choice k guesses that the k highest scores are in and the k lowest are out, and abstains from the rest.
    The bound holds for a k that was settled before the scores were seen. The best k afterwards is a
    different quantity, which exceeds the true epsilon far too often. Hence `choices` are all that might be
    used: each is tested at level (1 - confidence) / their number (Bonferroni), and the best of them is
    then a bound with the full confidence. Writing them after a look at the scores is the one way to break
    this; the default depends on m alone.

    Args:
        scores: (m,) higher = rather in; a function of the trained model, never of the coins.
        included: (m,) the coins, fair and independent.
        delta: 0..1.
        confidence: in the returned bound, 0.5..1.
        choices: each k in 1..m/2, without repeats; `default_choices(m)` if not given.

    Raises:
        ValueError: for shapes that do not match, scores that are not numbers, and choices as above.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(included)
    if values.ndim != 1 or values.shape != truth.shape or truth.dtype != np.bool_:
        raise ValueError(f"scores {values.shape} and included {truth.shape} (bool) do not match")
    if np.isnan(values).any():
        raise ValueError("a score is not a number")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence={confidence} is outside 0.5..1")
    m = len(values)
    declared = default_choices(m) if choices is None else tuple(choices)
    if not declared or len(set(declared)) != len(declared) or not all(1 <= k <= m / 2 for k in declared):
        raise ValueError(f"choices={declared}: one or more different numbers in 1..{m // 2}")
    # Equal scores stand in an order of their own: the caller's order might tell who is in (first all that
    # are in, then all that are out), and would then make every tie a right guess.
    order = np.lexsort((draws.bits(0, np.arange(m)), values))
    level = (1 - confidence) / len(declared)
    bounds = []
    for k in declared:
        correct = int(truth[order[-k:]].sum() + (~truth[order[:k]]).sum())
        epsilon = epsilon_lower_bound(m, 2 * k, correct, delta, 1 - level)
        bounds.append(OneRunBound(epsilon, delta, confidence, declared, 2 * k, correct))
    return max(bounds, key=lambda bound: bound.epsilon)
