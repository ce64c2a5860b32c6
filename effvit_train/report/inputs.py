"""What a report reads from a run directory. Whatever is missing becomes a sentence, not an error."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effvit_train.card import Card
from effvit_train.errors import UserError
from effvit_train.models.record import ArchitectureRecord
from effvit_train.runs import RunDir

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Predictions:
    """The test set as the model saw it: `predicted`, `labels`, `index`, each (N,) int64."""

    predicted: NDArray[np.int64]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]
    classes: int


@dataclass
class RunData:
    """A run directory, read.

    Attributes:
        card: `card.json`.
        record: `model.json`, None when it cannot be read.
        curves: column of `metrics.csv` -> (epoch, value) where a finite value was taken.
        predictions: `predictions.npz`, None when it cannot be used.
        absent: `metrics` or `predictions` -> why it is not there.
    """

    card: Card
    record: ArchitectureRecord | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    predictions: Predictions | None = None
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def dataset(self) -> dict[str, Any]:
        """`provenance.dataset`, or an empty dictionary."""
        return as_dict(self.card.provenance.get("dataset"))

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the outputs; numbers where no name is known."""
        names = list(self.record.classes) if self.record else []
        if not names:
            known = self.dataset.get("classes")
            names = [str(name) for name in known] if isinstance(known, (list, tuple)) else []
        count = self.predictions.classes if self.predictions else len(names)
        return names if len(names) == count else [str(i) for i in range(count)]

    @property
    def tested(self) -> int | None:
        """Number of test images, None when nothing tells."""
        if self.predictions is not None:
            return len(self.predictions.labels)
        return test_count(self.card)


def read_run(run_dir: Path) -> RunData:
    """Read a run directory. `UserError` only when there is no card."""
    files = RunDir(Path(run_dir))
    data = RunData(Card.read(files.card), record=read_record(files.path))
    try:
        data.curves = read_curves(files.metrics)
        if not data.curves:
            data.absent["metrics"] = "metrics.csv holds no finite value."
    except (OSError, ValueError) as error:
        data.absent["metrics"] = f"metrics.csv {_why(error)}."
    try:
        data.predictions = read_predictions(files.predictions)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        data.absent["predictions"] = f"predictions.npz {_why(error)}."
    return data


def read_record(run_dir: Path) -> ArchitectureRecord | None:
    """`model.json` of a run, None when it is missing or is not one."""
    try:
        return ArchitectureRecord.read(RunDir(Path(run_dir)).record)
    except (UserError, OSError):
        return None


def read_curves(path: Path) -> dict[str, Curve]:
    """Columns of `metrics.csv` over `epoch`; empty, unreadable and non-finite cells are left out."""
    curves: dict[str, Curve] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            epoch = _number(row.get("epoch"))
            if epoch is None:
                continue
            for name, cell in row.items():
                number = _number(cell)
                if name not in (None, "epoch", "step") and number is not None:
                    curves.setdefault(name, []).append((epoch, number))
    return {name: sorted(dict(points).items()) for name, points in curves.items()}


def read_predictions(path: Path) -> Predictions:
    """`predictions.npz`; `ValueError` when its arrays do not fit together. Nothing is unpickled."""
    with np.load(path, allow_pickle=False) as file:
        logits, labels = file["logits"], file["labels"]
        index = file["index"] if "index" in file.files else np.arange(len(labels))
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or index.shape != labels.shape:
        raise ValueError("holds arrays whose shapes do not agree")
    if not len(labels):
        raise ValueError("holds no image")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError("holds labels outside its classes")
    return Predictions(
        logits.argmax(1).astype(np.int64), labels.astype(np.int64), index.astype(np.int64), logits.shape[1]
    )


def test_count(card: Card) -> int | None:
    """Images in the test split according to the card."""
    counts = as_dict(as_dict(card.provenance.get("dataset")).get("counts"))
    count = counts.get("test")
    return count if isinstance(count, int) and count > 0 else None


def fingerprint(card: Card) -> str | None:
    """Fingerprint of the data that a run was trained and tested on."""
    found = as_dict(card.provenance.get("dataset")).get("fingerprint")
    return found if isinstance(found, str) and found else None


def as_dict(value: Any) -> dict[str, Any]:
    """`value` when it is a dictionary, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_dicts(value: Any) -> list[dict[str, Any]]:
    """The items of a list, each as `as_dict` has it; an empty list for anything else."""
    return [as_dict(item) for item in value] if isinstance(value, list) else []


def is_private(card: Card) -> bool:
    """Whether the run was trained with differential privacy."""
    return card.run.get("privacy") not in (None, "", "none")


def added(card: Card) -> str:
    """What a baseline goes without: `compression`, `privacy`, both, or nothing."""
    parts = (["compression"] if as_list(card.run.get("compress")) else []) + (
        ["privacy"] if is_private(card) else []
    )
    return " and ".join(parts)


def as_list(value: Any) -> list[str]:
    """`value` as a list of text: a list as it is, a word as a list of one, null as an empty one."""
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return [str(value)] if isinstance(value, str) and value else []


def _number(cell: object) -> float | None:
    try:
        number = float(str(cell))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is not in the run directory"
    if isinstance(error, KeyError):
        return f"lacks an array ({error.args[0]})"
    if isinstance(error, ValueError) and str(error).startswith("holds"):
        return str(error)
    if isinstance(error, (json.JSONDecodeError, csv.Error, OSError, ValueError, zipfile.BadZipFile)):
        return "cannot be read"
    return "is damaged"
