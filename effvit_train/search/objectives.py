"""What a search optimises: measures of the card, but quality on the validation images.

Who chooses among many models by their test accuracy no longer has a test. So `quality/accuracy` and
`quality/nll` are read from the last validation of the shipped weights; the test's stay on the cards.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effvit_train.card import MEASURES, Card
from effvit_train.runs import RunDir

# Measures with a figure on the validation images: the column of metrics.csv.
VALIDATED = {"quality/accuracy": "val/accuracy", "quality/nll": "val/loss"}
# Axes whose figures come from test images.
_ON_TEST = ("quality", "robustness", "calibration", "fairness", "transparency", "continual")


@dataclass(frozen=True)
class Objective:
    """One axis of the search.

    Attributes:
        key: measure of the card.
        higher: whether more is better.
    """

    key: str
    higher: bool

    @property
    def column(self) -> str | None:
        """The column of `metrics.csv` that it is read from; None where the card tells it."""
        return VALIDATED.get(self.key)

    @property
    def source(self) -> str:
        """Where its figure comes from, in words."""
        if self.column is not None:
            return "validation images"
        return "test images" if self.key.partition("/")[0] in _ON_TEST else "card"

    def worse(self, value: float, other: float) -> bool:
        """Whether `value` is worse than `other`."""
        return value < other if self.higher else value > other


def make_objectives(keys: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives of these measures, each in the direction of the table of measures."""
    return tuple(Objective(key, MEASURES[key].better == "higher") for key in keys)


def read_values(run_dir: Path, keys: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """The figures of a finished run, and why others are missing.

    Args:
        run_dir: with a card.
        keys: measures, of objectives or budgets.

    Raises:
        UserError: the card cannot be read.
    """
    card = Card.read(RunDir(run_dir).card)
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for key in keys:
        column = VALIDATED.get(key)
        if column is None:
            value = card.measures.get(key)
            reason = card.missing.get(key, "not measured")
        else:
            points = curve(run_dir, column)
            value = points[-1][1] if points else None
            reason = f"no {column} in metrics.csv: the run has no validation images"
        if value is None:
            missing[key] = reason
        else:
            values[key] = value
    return values, missing


def curve(run_dir: Path, column: str) -> list[tuple[int, float]]:
    """(epoch, value) of each validation in `metrics.csv`; empty where there is none yet."""
    try:
        with open(RunDir(run_dir).metrics, newline="", encoding="utf-8") as file:
            return [
                (int(row["epoch"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)
            ]
    except (OSError, ValueError, KeyError, csv.Error):
        return []
