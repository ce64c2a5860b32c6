"""The axes of Efficiency 360 as factors against the baseline: above 1 is better, whichever way a measure points.

Every measure is first brought to a *burden*, a positive quantity of which less is better; the factor is the baseline's
burden over this run's. Logarithms throughout: some burdens are powers that no float holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from effvit_train.card import Card
from effvit_train.report import format as fmt
from effvit_train.report.audit_facts import number
from effvit_train.report.compare import Comparison
from effvit_train.report.inputs import is_private

LIMIT = 4.0  # the scale goes from 1/4 to 4
FLOOR = 0.001  # of errors and the like: a test set of a few thousand images tells no less
AUC_FLOOR = 0.01  # of an AUC's distance from chance, and of forgetting
SAME = 0.005  # of the logarithm of a factor

Verdict = Literal["better", "worse", "same", "unclear", "null"]
Log = Callable[[float], float | None]


def _ratio(value: float) -> float | None:
    return math.log(value) if value > 0 else None


def _errors(share: float) -> float:
    return math.log(max(1 - share, FLOOR))


def _error(value: float) -> float:
    return math.log(max(value, FLOOR))


def _from_chance(auc: float) -> float:
    return math.log(max(abs(auc - 0.5), AUC_FLOOR))


def _advantage(epsilon: float) -> float:
    return math.log(max(math.tanh(epsilon / 2), FLOOR))


def _doubling(exponent: float) -> float:
    return exponent * math.log(2)


def _decades(log10: float) -> float:
    return log10 * math.log(10)


def _beside_exact(error: float) -> float | None:
    return math.log1p(error) if error > -1 else None


def _lost(share: float) -> float:
    return math.log(max(share, AUC_FLOOR))


@dataclass(frozen=True)
class Spoke:
    """One headline measure of an axis.

    Attributes:
        key: of `card.MEASURES`.
        axis: of Efficiency 360.
        name: at the rim, at most 13 letters.
        log_burden: natural logarithm of the burden of a value; None where it has none.
        by: what is compared, in words.
    """

    key: str
    axis: str
    name: str
    log_burden: Log
    by: str


_RATIO = "the ratio of the two"
_ERRORS = "the share of errors, 1 − accuracy; below 0.1 % it counts as 0.1 %"

SPOKES: tuple[Spoke, ...] = (
    Spoke("quality/accuracy", "Quality", "Quality", _errors, _ERRORS),
    Spoke("cost/size_mb", "Cost", "File size", _ratio, _RATIO),
    Spoke("cost/macs", "Cost", "Compute", _ratio, _RATIO),
    Spoke("cost/latency_ms", "Cost", "Latency", _ratio, _RATIO),
    Spoke("cost/memory_mb", "Cost", "Memory", _ratio, _RATIO),
    Spoke("cost/energy_j", "Cost", "Energy", _ratio, _RATIO),
    Spoke("cost/eer", "Cost", "EER", _ratio, f"{_RATIO}; it sums up size and compute once more"),
    Spoke("robustness/corruption_accuracy", "Robustness", "Corruption", _errors, _ERRORS),
    Spoke("robustness/autoattack_accuracy", "Robustness", "Attack", _errors, _ERRORS),
    Spoke("calibration/ece", "Probabilistic", "Calibration", _error,
          "the ratio of the two errors; below 0.1 % they count as 0.1 %"),
    Spoke("fairness/worst_group_accuracy", "Fairness", "Worst group", _errors, _ERRORS),
    Spoke("transparency/insertion_auc", "Transparency", "Explanation", _errors,
          "what the area lacks to 1, at least 0.001"),
    Spoke("privacy/epsilon", "Privacy", "Privacy ε", _advantage,
          "the most by which any attack can tell members from others, true less false positive rate: "
          "(e^ε − 1)/(e^ε + 1), delta left out (Kairouz et al. 2015). Without differential privacy ε is infinite "
          "and this is 1"),
    Spoke("privacy/mia_auc", "Privacy", "Membership", _from_chance,
          "the distance of the AUC from chance, |AUC − 0.5|, at least 0.01"),
    Spoke("complexity/flops_exponent", "Complexity", "Growth", _doubling,
          "what twice the tokens cost, 2 to the power of the exponent"),
    Spoke("spectral/log_norm_bound", "Spectral", "Norm bound", _decades,
          "the bound itself: 10 to the power of the difference of its logarithms. No verdict between models of "
          "another size, which it cannot rank"),
    Spoke("approximation/attention_error", "Approximation", "Approximation", _beside_exact,
          "1 + relative error. A baseline whose attention is exact has the error 0"),
    Spoke("continual/forgetting", "Continual", "Forgetting", _lost,
          "the ratio of what was forgotten, at least 0.01"),
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """A spoke of one card against its baseline.

    Attributes:
        value, before: of this run and of the baseline; None where they were not measured.
        before_words: what a baseline without a number stands for: `no bound (∞)`; else empty.
        factor: above 1 is better; None where there is none.
        verdict: of it; `unclear` carries `doubt`, `null` carries `reason`.
        doubt: why the factor shows nothing: `within noise`, `other conditions`, `other architecture`.
        reason: why there is no factor.
    """

    spoke: Spoke
    value: float | None
    before: float | None
    before_words: str
    factor: float | None
    verdict: Verdict
    doubt: str = ""
    reason: str = ""

    @property
    def clamped(self) -> bool:
        """Whether the factor lies outside the scale."""
        return self.factor is not None and not 1 / LIMIT <= self.factor <= LIMIT

    @property
    def drawn(self) -> float | None:
        """The factor within the scale."""
        return None if self.factor is None else min(LIMIT, max(1 / LIMIT, self.factor))

    @property
    def short(self) -> str:
        """`2.0× better`, `same`, `not measured`."""
        if self.factor is None:
            return "not measured" if self.value is None or self.before is None else "no factor"
        if self.verdict == "same":
            return "same"
        return f"{times(self.factor)} {'better' if self.factor > 1 else 'worse'}"

    @property
    def words(self) -> str:
        """The same with what must be known about it."""
        if self.factor is None:
            return f"{self.short}: {self.reason}"
        edge = f"{LIMIT:g}×"
        notes = [self.doubt] if self.doubt else []
        notes += [f"drawn at {edge}"] if self.clamped else []
        return ", ".join([self.short, *notes])


def times(factor: float) -> str:
    """A factor or its inverse, whichever is above 1: `1.25×`, `8.0×`, `1,200×`."""
    ratio = max(factor, 1 / factor)
    if ratio >= 999_999.5:
        return "over a million ×"
    return f"{ratio:.2f}×" if ratio < 1.995 else f"{ratio:.1f}×" if ratio < 99.95 else f"{ratio:,.0f}×"


def readings(comparison: Comparison) -> list[Reading]:
    """Every spoke, measured or not."""
    return [_read(spoke, comparison) for spoke in SPOKES]


def _read(spoke: Spoke, comparison: Comparison) -> Reading:
    card, other = comparison.card, comparison.baseline.card
    value, before = number(card.measures.get(spoke.key)), number(comparison.before(spoke.key))
    words, now = "", None if value is None else number(spoke.log_burden(value))
    then = None if before is None else number(spoke.log_burden(before))
    if before is None and other is not None:
        then, words = _known_without_a_number(spoke.key, other)

    def without(reason: str) -> Reading:
        return Reading(spoke, value, before, words, None, "null", reason=reason)

    if value is None:
        return without(_missing(card, spoke.key))
    if other is None:
        return without("there is no baseline")
    if before is None and then is None:
        return without(f"of the baseline: {_missing(other, spoke.key)}")
    if now is None or then is None:
        which, bad = ("this run's", value) if now is None else ("the baseline's", before)
        return without(f"{which} value, {fmt.value(spoke.key, bad)}, has no ratio to another")
    log = then - now
    factor = math.exp(min(700.0, max(-700.0, log)))
    if abs(log) < SAME:
        return Reading(spoke, value, before, words, factor, "same")
    doubt = _doubt(spoke.key, comparison)
    if doubt:
        return Reading(spoke, value, before, words, factor, "unclear", doubt=doubt)
    return Reading(spoke, value, before, words, factor, "better" if log > 0 else "worse")


def _known_without_a_number(key: str, other: Card) -> tuple[float | None, str]:
    """Log burden of a baseline's null that stands for something, and that in words."""
    if key == "privacy/epsilon" and not is_private(other):
        return 0.0, "no bound (∞)"
    if key == "approximation/attention_error" and "no replaced" in other.missing.get(key, ""):
        return 0.0, "exact (0)"
    return None, ""


def _missing(card: Card, key: str) -> str:
    return card.missing.get(key) or "the card does not have this measure"


def _doubt(key: str, comparison: Comparison) -> str:
    """Why a difference shows nothing; empty where it does."""
    change = comparison.change(key)
    return change.word if change is not None and change.verdict == "unclear" else ""
