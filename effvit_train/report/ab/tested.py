"""What the runs of both sides said of each test image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effvit_train.errors import UserError
from effvit_train.report.ab.sides import Side
from effvit_train.report.inputs import RunData, read_run
from effvit_train.runs import RunDir

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tested:
    """One run on its N test images, by image number.

    Attributes:
        index, labels: (N,) number and class of each image.
        predicted: (N,) most likely class; -1 where the outputs are not finite, which is wrong.
        nll, brier: (N,) scores in nats and squared probability, summed over classes; None with outputs that are
            not finite.
        confidence: (N,) probability of the most likely class; likewise.
    """

    index: Ints
    labels: Ints
    predicted: Ints
    nll: Floats | None
    brier: Floats | None
    confidence: Floats | None


@dataclass(frozen=True)
class Images:
    """All runs of both sides on the same N test images.

    Attributes:
        index, labels: (N,) as above.
        classes: names, in the order of the labels.
        a, b: each run of a side.
        caveat: what speaks against their being the same images, or empty.
    """

    index: Ints
    labels: Ints
    classes: list[str]
    a: tuple[Tested, ...]
    b: tuple[Tested, ...]
    caveat: str = ""

    def right(self, side: tuple[Tested, ...]) -> Floats:
        """(R, N) 1 where a run of the side is right, else 0."""
        return np.array([run.predicted == self.labels for run in side], dtype=np.float64)


def read_images(a: Side, b: Side) -> tuple[Images | None, str]:
    """The test images of both sides, or None and why they cannot be paired."""
    runs: list[tuple[RunData, Tested]] = []
    for entry in (*a.entries, *b.entries):
        data = read_run(entry.run_dir)
        if data.predictions is None:
            return None, f"{entry.run_dir}: {data.absent['predictions'].rstrip('.')}"
        runs.append((data, _tested(data, entry.run_dir)))
    first, tested = runs[0]
    for data, other in runs[1:]:
        if _set(data) != _set(first):
            return None, f"A was tested on {_set(first)} and B on {_set(data)}"
        if data.classes != first.classes:
            return None, "the classes of A and B are not the same"
        same = np.array_equal(other.index, tested.index) and np.array_equal(other.labels, tested.labels)
        if not same:
            return None, "the test images of A and B are not the same"
    caveat = ""
    if len({entry.data for entry in (*a.entries, *b.entries)}) > 1:
        caveat = (
            "The data of the runs have different fingerprints (another training share, image size or version of the "
            "files); the numbers and labels of the test images agree, so they are taken to be the same images."
        )
    sides = [found for _, found in runs]
    count = len(a.entries)
    return Images(
        tested.index, tested.labels, first.classes, tuple(sides[:count]), tuple(sides[count:]), caveat
    ), ""


def _set(data: RunData) -> str:
    return str(data.dataset.get("name") or data.card.run.get("dataset") or "its data")


def _tested(data: RunData, run_dir: Path) -> Tested:
    found = data.predictions
    assert found is not None
    order = np.argsort(found.index)
    if len(np.unique(found.index)) < len(order):
        raise UserError(f"{run_dir}/predictions.npz holds an image twice", remedy=f"effvit audit {run_dir}")
    with np.load(RunDir(run_dir).predictions, allow_pickle=False) as file:
        logits = file["logits"][order].astype(np.float64)
    index, labels, predicted = found.index[order], found.labels[order], found.predicted[order].copy()
    finite = np.isfinite(logits).all(axis=1)
    predicted[~finite] = -1
    if not finite.all():
        return Tested(index, labels, predicted, None, None, None)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own = log_p[np.arange(len(labels)), labels]
    p = np.exp(log_p)
    brier = (p**2).sum(axis=1) - 2 * np.exp(own) + 1
    return Tested(index, labels, predicted, -own, brier, p.max(axis=1))
