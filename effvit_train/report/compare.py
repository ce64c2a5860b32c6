"""A run against its baseline: which differences carry a verdict and which do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from effvit_train.card import Card
from effvit_train.paired import difference_interval, interval_unpaired
from effvit_train.report import format as fmt
from effvit_train.report.audit_facts import interval
from effvit_train.report.baseline import Baseline
from effvit_train.report.inputs import Predictions, as_dict, read_predictions, test_count
from effvit_train.report.mistakes import Paired, paired
from effvit_train.report.stream_facts import AXIS, differ
from effvit_train.report.stream_intervals import stream_interval
from effvit_train.runs import RunDir

SIGNIFICANT = 0.05
_CONDITIONS = ("thread", "batch", "device", "processor", "precision", "dtype")


@dataclass
class Comparison:
    """Changes of every measure of `card` against `baseline`."""

    card: Card
    baseline: Baseline
    run_dir: Path | None = None

    @cached_property
    def paired(self) -> Paired | None:
        """Both models image by image, where both have their predictions."""
        here = _predictions(self.run_dir or _own_directory(self.card))
        there = _predictions(self.baseline.run_dir)
        return paired(here, there) if here is not None and there is not None else None

    @cached_property
    def same_conditions(self) -> bool:
        """Whether both runs were timed on the same processor in the same way."""
        other = self.baseline.card
        return other is None or conditions(self.card) == conditions(other)

    def before(self, key: str) -> float | None:
        """The baseline's number."""
        return self.baseline.card.measures.get(key) if self.baseline.card else None

    def change(self, key: str) -> fmt.Change | None:
        """The change of one measure, with doubt where the numbers leave it; None without a baseline."""
        doubt = ""
        if key in fmt.TIMED and not self.same_conditions:
            doubt = "other conditions"
        elif key in ("quality/accuracy", "quality/balanced_accuracy", "quality/top5") and self.in_noise(key):
            doubt = "within noise"
        elif (other := self.baseline.card) is not None:
            doubt = _doubt(key, self.card, other)
        return fmt.change(key, self.card.measures.get(key), self.before(key), doubt=doubt)

    def in_noise(self, key: str = "quality/accuracy") -> bool:
        """Whether chance in the choice of test images explains the difference of two accuracies.

        McNemar's exact test at 5 % for the accuracy where both predictions are at hand; otherwise
        whether Newcombe's interval for the difference of two proportions (1998, method 10) covers 0.
        """
        if key == "quality/accuracy" and self.paired is not None:
            return self.paired.p_value >= SIGNIFICANT
        now, before = self.card.measures.get(key), self.before(key)
        here = test_count(self.card)
        there = test_count(self.baseline.card) if self.baseline.card else None
        if now is None or before is None or here is None or there is None:
            return False
        low, high = interval_unpaired(round(before * there), there, round(now * here), here)
        return low <= 0 <= high


def _doubt(key: str, card: Card, other: Card) -> str:
    if key.startswith(AXIS) and differ(card, other):
        return "other stream"
    # The bound's size is that of the chain of layers first of all.
    if key == "spectral/log_norm_bound" and card.measures.get("cost/params") != other.measures.get(
        "cost/params"
    ):
        return "other architecture"
    return "within noise" if _covers_zero(key, card, other) else ""


def _covers_zero(key: str, card: Card, other: Card) -> bool:
    """Whether the 95 % interval of the difference holds 0 (Zou & Donner 2008, from the intervals of both).

    Both models saw the same images, which this leaves out: the interval is too wide rather than too narrow.
    """
    of = stream_interval if key.startswith(AXIS) else interval
    here, there = of(card, key), of(other, key)
    now, before = card.measures.get(key), other.measures.get(key)
    if here is None or there is None or now is None or before is None:
        return False
    low, high = difference_interval(before, there, now, here)
    return low <= 0 <= high


def _own_directory(card: Card) -> Path | None:
    path = card.run.get("run_dir")
    return Path(path) if isinstance(path, str) and path else None


def _predictions(run_dir: Path | None) -> Predictions | None:
    if run_dir is None:
        return None
    try:
        return read_predictions(RunDir(run_dir).predictions)
    except Exception:  # damaged or absent: the comparison falls back on the card's counts
        return None


def conditions(card: Card) -> dict[str, Any]:
    """What a time depends on beside the model: the processor, and how it was measured."""
    machine = as_dict(card.provenance.get("machine"))
    stated = as_dict(card.provenance.get("cost_conditions"))
    found = {k: v for k, v in stated.items() if any(word in k for word in _CONDITIONS)}
    return {"machine": machine.get("processor"), **found}
