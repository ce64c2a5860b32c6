"""Images that flipped: right on one side and wrong on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effvit_train.report.ab.tested import Images, Tested


@dataclass(frozen=True)
class Flip:
    """An image on which the sides differ. Of several runs of a side the majority counts.

    Attributes:
        image: its number in the data set.
        label: its class.
        said_a, said_b: what most runs of a side say; -1 = no answer.
        share_a, share_b: share of the side's runs that are right.
        gain: log-probability of the true class in B minus that in A, mean over runs; None where it is not known.
    """

    image: int
    label: int
    said_a: int
    said_b: int
    share_a: float
    share_b: float
    gain: float | None


@dataclass(frozen=True)
class Flips:
    """All of them, those first on which the sides differ most.

    Attributes:
        only_a, only_b: right on this side only.
        both_wrong: images that both sides get wrong, in different ways: not in the lists.
    """

    only_a: list[Flip]
    only_b: list[Flip]
    both_wrong: int


def flips(images: Images) -> Flips:
    """Compare the sides' answers image by image."""
    share_a, share_b = (images.right(side).mean(axis=0) for side in (images.a, images.b))
    said_a, said_b = (_majority(side, len(images.classes)) for side in (images.a, images.b))
    gain = _gain(images)
    right_a, right_b = share_a > 0.5, share_b > 0.5

    def listed(mask: NDArray[np.bool_]) -> list[Flip]:
        found = [
            Flip(
                int(images.index[i]), int(images.labels[i]), int(said_a[i]), int(said_b[i]), float(share_a[i]),
                float(share_b[i]), None if gain is None else float(gain[i]),
            )
            for i in np.flatnonzero(mask)
        ]  # fmt: skip
        return sorted(found, key=lambda flip: (-abs(flip.share_b - flip.share_a), -abs(flip.gain or 0)))

    both_wrong = int((~right_a & ~right_b & (said_a != said_b)).sum())
    return Flips(listed(right_a & ~right_b), listed(right_b & ~right_a), both_wrong)


def _majority(side: Sequence[Tested], classes: int) -> NDArray[np.int64]:
    """(N,) the class that most runs say, the lower number of equals; -1 where no run answers."""
    votes = np.zeros((len(side[0].predicted), classes + 1), dtype=np.int64)
    for run in side:
        votes[np.arange(len(votes)), run.predicted] += 1  # -1 is the last column
    said = votes[:, :classes].argmax(axis=1)
    return np.where(votes[:, :classes].any(axis=1), said, -1)


def _gain(images: Images) -> NDArray[np.float64] | None:
    a, b = ([run.nll for run in side if run.nll is not None] for side in (images.a, images.b))
    if len(a) < len(images.a) or len(b) < len(images.b):
        return None
    return np.mean(a, axis=0) - np.mean(b, axis=0)
