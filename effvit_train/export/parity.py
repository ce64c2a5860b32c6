"""Whether an exported file says the same as the trained model, on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effvit_train.errors import MachineError
from effvit_train.export.facts import FP32

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Run = Callable[[Array], Array]

# Runtimes add in another order: differences grow with the logits, and reached 5e-5 of them here.
TOLERANCE = 1e-3
ACCURACY_TOLERANCE = 1e-3
# A model that rounds between its layers makes whole steps of such differences.
ROUNDING = 50
LARGE_BATCH = 64
_SMALL_BATCHES = (1, 2)


@dataclass(frozen=True)
class Parity:
    """An exported file against the trained model.

    Attributes:
        images: that both were shown.
        max_difference: largest absolute difference of any logit, at any of the batch sizes.
        largest_logit: absolute, of the trained model.
        equal_predictions: share of the images that both put into the same class.
        accuracy: of the file.
        reference_accuracy: of the trained model, on the same images.
        batch_sizes: that were tried.
        rounds: the model itself rounds between its layers: it is quantised.
    """

    images: int
    max_difference: float
    largest_logit: float
    equal_predictions: float
    accuracy: float
    reference_accuracy: float
    batch_sizes: tuple[int, ...]
    rounds: bool = False

    @property
    def tolerance(self) -> float:
        """The largest difference that passes in 32 bits."""
        return TOLERANCE * (ROUNDING if self.rounds else 1) * max(1.0, self.largest_logit)


def compare(batches: Iterable[tuple[Array, Ints]], reference: Run, exported: Run) -> Parity:
    """Compare two runners on batches of prepared images (B, C, H, W) with labels (B,).

    All images go through both in batches of `LARGE_BATCH`, the first of them also one and two at a time.
    """
    differences, largest, sizes = [0.0], 0.0, set[int]()
    mine: list[Ints] = []
    theirs: list[Ints] = []
    truth: list[Ints] = []
    for number, (images, labels) in enumerate(_rebatched(batches)):
        if not number:
            few = images[: 2 * max(_SMALL_BATCHES)]
            for size in _SMALL_BATCHES:
                for start in range(0, len(few) - size + 1, size):
                    part = few[start : start + size]
                    differences.append(_difference(reference(part), exported(part)))
                    sizes.add(size)
        wanted, got = reference(images), exported(images)
        differences.append(_difference(wanted, got))
        largest = max(largest, float(np.abs(wanted).max()))
        sizes.add(len(images))
        mine.append(wanted.argmax(1))
        theirs.append(got.argmax(1))
        truth.append(labels)
    first, second, right = (np.concatenate(part) for part in (mine, theirs, truth))
    return Parity(
        images=len(right), max_difference=float(np.max(differences)), largest_logit=largest,
        equal_predictions=float((first == second).mean()), accuracy=float((second == right).mean()),
        reference_accuracy=float((first == right).mean()), batch_sizes=tuple(sorted(sizes)),
    )  # fmt: skip


def check(parity: Parity, precision: str) -> None:
    """Raise `MachineError` where a file is not the model: in 8 bits it may differ, but must stay finite."""
    if not np.isfinite(parity.max_difference):
        raise MachineError("the exported file gives logits that are no numbers: nothing was kept")
    if precision != FP32:
        return
    if parity.max_difference > parity.tolerance:
        raise MachineError(
            f"the exported file is not the trained model: logits differ by up to {parity.max_difference:.3g} on "
            f"{parity.images:,} test images, {parity.tolerance:.3g} is tolerated: nothing was kept"
        )
    tolerated = ACCURACY_TOLERANCE * (10 if parity.rounds else 1)
    if abs(parity.accuracy - parity.reference_accuracy) > tolerated:
        raise MachineError(
            f"the exported file is not the trained model: its accuracy is {parity.accuracy:.4f} instead of "
            f"{parity.reference_accuracy:.4f} on {parity.images:,} test images: nothing was kept"
        )


def _rebatched(batches: Iterable[tuple[Array, Ints]]) -> Iterable[tuple[Array, Ints]]:
    for images, labels in batches:
        for start in range(0, len(labels), LARGE_BATCH):
            yield images[start : start + LARGE_BATCH], labels[start : start + LARGE_BATCH]


def _difference(wanted: Array, got: Array) -> float:
    """The largest absolute one; infinite where shapes differ or a number is none."""
    if wanted.shape != got.shape:
        return float("inf")
    difference = float(np.abs(wanted - got).max())
    return difference if np.isfinite(difference) else float("inf")
