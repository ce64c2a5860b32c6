"""What the model gets wrong: confusion counts, accuracy per class, pairs, and a paired comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effvit_train.paired import mcnemar
from effvit_train.report.inputs import Predictions


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Counts (K, K): row = true class, column = predicted class."""
    k = predictions.classes
    flat = np.bincount(predictions.labels * k + predictions.predicted, minlength=k * k)
    return flat.reshape(k, k).astype(np.int64)


@dataclass(frozen=True)
class Pair:
    """`count` of the `total` images of class `true` were taken for class `predicted`."""

    true: int
    predicted: int
    count: int
    total: int


def confused_pairs(counts: NDArray[np.int64], limit: int) -> list[Pair]:
    """The `limit` largest off-diagonal entries, largest first; ties by share, then by class."""
    totals = counts.sum(1)
    wrong = counts - np.diag(np.diag(counts))
    rows, columns = np.nonzero(wrong)
    pairs = [
        Pair(int(r), int(c), int(wrong[r, c]), int(totals[r])) for r, c in zip(rows, columns, strict=True)
    ]
    pairs.sort(key=lambda pair: (-pair.count, -pair.count / pair.total, pair.true, pair.predicted))
    return pairs[:limit]


@dataclass(frozen=True)
class Paired:
    """Two models on the same images.

    Attributes:
        only_here: images that only this model gets right.
        only_there: images that only the baseline gets right.
        p_value: two-sided exact McNemar test (binomial on the images where they differ).
    """

    only_here: int
    only_there: int
    p_value: float


def paired(here: Predictions, there: Predictions) -> Paired | None:
    """Compare two models image by image; None unless they saw the same test images."""
    if len(here.labels) != len(there.labels):
        return None
    mine, theirs = np.argsort(here.index), np.argsort(there.index)
    same_images = np.array_equal(here.index[mine], there.index[theirs])
    if not same_images or not np.array_equal(here.labels[mine], there.labels[theirs]):
        return None
    right_here = (here.predicted == here.labels)[mine]
    right_there = (there.predicted == there.labels)[theirs]
    b, c = int((right_here & ~right_there).sum()), int((right_there & ~right_here).sum())
    return Paired(b, c, mcnemar(b, c))
