"""Accuracies and scores of both sides from their answers to each test image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effvit_train.card import MEASURES
from effvit_train.paired import Table, mean_interval
from effvit_train.report.ab.rows import Row, corrected, of_estimate, of_runs, of_table, quantile
from effvit_train.report.ab.tested import Images
from effvit_train.resampling import bca, randomisation_test

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MIN_CELL = 30  # images that a group needs to be tested, as the audit has it (audit.min_cell)
_BINS = 15  # of calibration/ece


@dataclass(frozen=True)
class Groups:
    """The groups of one column.

    Attributes:
        column: of the table of the data set.
        rows: of groups with at least `MIN_CELL` test images, the largest difference first.
        small: number of groups with fewer.
        small_images: test images in them.
        without: test images that have no group.
    """

    column: str
    rows: list[Row]
    small: int
    small_images: int
    without: int


def table_of(right_a: Floats, right_b: Floats) -> Table:
    """The 2 x 2 table of two models, from (N,) of 0 and 1 each."""
    a, b = right_a.astype(bool), right_b.astype(bool)
    return Table(int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum()))


def over_images(images: Images, *, level: float) -> tuple[float, float]:
    """Interval of the difference of the sides' mean accuracies, as the choice of the test images moves it."""
    gains = images.right(images.b).mean(axis=0) - images.right(images.a).mean(axis=0)
    return mean_interval(gains.tolist(), quantile(level))


def by_class(images: Images, *, pairs: bool, level: float) -> list[Row]:
    """Accuracy on the images of each class that has any, in the order of the classes."""
    members = [(name, images.labels == k) for k, name in enumerate(images.classes)]
    return _of_parts(images, [(name, mask) for name, mask in members if mask.any()], pairs, level)


def by_group(
    images: Images, column: str, of_image: Mapping[int, str], *, pairs: bool, level: float
) -> Groups:
    """Accuracy on the images of each group.

    Args:
        images: of both sides.
        column: the groups' name.
        of_image: number of an image -> its group; "" or none = not known.
        pairs: whether runs are paired by seed.
        level: of the tests.
    """
    names = np.array([of_image.get(number, "") for number in images.index.tolist()], dtype=str)
    members = [(str(name), names == name) for name in np.unique(names) if name]
    large = [(name, mask) for name, mask in members if mask.sum() >= MIN_CELL]
    rows = sorted(_of_parts(images, large, pairs, level), key=lambda row: -abs(row.difference))
    small = [int(mask.sum()) for _, mask in members if mask.sum() < MIN_CELL]
    return Groups(column, rows, len(small), sum(small), int((names == "").sum()))


def _of_parts(images: Images, parts: Sequence[tuple[str, Bools]], pairs: bool, level: float) -> list[Row]:
    right_a, right_b = images.right(images.a), images.right(images.b)
    rows = []
    for name, mask in parts:
        a, b, count = right_a[:, mask], right_b[:, mask], int(mask.sum())
        if len(a) == len(b) == 1:
            rows.append(of_table(name, table_of(a[0], b[0]), level=level, images=count))
        else:
            runs_a, runs_b = a.mean(axis=1).tolist(), b.mean(axis=1).tolist()
            rows.append(
                of_runs(name, runs_a, runs_b, pairs=pairs, better="higher", level=level, images=count)
            )
    return corrected(rows, ["higher"] * len(rows), level)


@dataclass(frozen=True)
class _Figure:
    """A measure of each model.

    Attributes:
        a, b: (N, C) what it is computed from.
        value: such columns, and how often each image counts -> the measure.
    """

    a: Floats
    b: Floats
    value: Callable[[Floats, Floats], float]


def scores(images: Images, *, level: float) -> list[Row]:
    """Balanced accuracy and what the probabilities are worth, of two models: each with an interval and a test."""
    figures = _figures(images)
    count = len(images.labels)
    once = np.ones(count)

    def of_draw(weights: Floats) -> Floats:
        return np.array([one.value(one.b, weights) - one.value(one.a, weights) for one in figures.values()])

    def of_swap(swapped: Bools) -> Floats:
        both = [
            (np.where(swapped[:, None], one.b, one.a), np.where(swapped[:, None], one.a, one.b), one.value)
            for one in figures.values()
        ]
        return np.array([value(b, once) - value(a, once) for a, b, value in both])

    estimates = bca(of_draw, count, level=level)
    p_values = randomisation_test(of_swap, count)
    ways = [MEASURES[key].better for key in figures]
    rows = [
        of_estimate(key, one.value(one.a, once), one.value(one.b, once), found, p, better=way, level=level)
        for (key, one), found, p, way in zip(figures.items(), estimates, p_values, ways, strict=True)
    ]
    return corrected(rows, ways, level)


def _figures(images: Images) -> dict[str, _Figure]:
    """Those that both models have; scores need outputs that are finite."""
    a, b = images.a[0], images.b[0]
    right_a, right_b = images.right(images.a)[0], images.right(images.b)[0]
    found = {"quality/balanced_accuracy": _Figure(right_a[:, None], right_b[:, None], _balanced(images))}
    for key, score_a, score_b in (("quality/nll", a.nll, b.nll), ("calibration/brier", a.brier, b.brier)):
        if score_a is not None and score_b is not None:
            found[key] = _Figure(score_a[:, None], score_b[:, None], _mean)
    if a.confidence is not None and b.confidence is not None:
        of_a, of_b = (
            np.stack([sure, sure - right], axis=1)
            for sure, right in ((a.confidence, right_a), (b.confidence, right_b))
        )
        found["calibration/ece"] = _Figure(of_a, of_b, _ece)
    return found


def _mean(values: Floats, weights: Floats) -> float:
    return float(values[:, 0] @ weights / weights.sum())


def _balanced(images: Images) -> Callable[[Floats, Floats], float]:
    """Mean of the accuracies of the classes that count."""
    labels, k = images.labels, len(images.classes)

    def value(right: Floats, weights: Floats) -> float:
        total = np.bincount(labels, weights, k)
        hits = np.bincount(labels, weights * right[:, 0], k)
        seen = total > 0
        return float((hits[seen] / total[seen]).mean())

    return value


def _ece(confidence_and_gap: Floats, weights: Floats) -> float:
    """Expected calibration error in 15 equally wide bins (Guo et al. 2017)."""
    confidence, gap = confidence_and_gap.T
    bins = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    return float(np.abs(np.bincount(bins, weights * gap, _BINS)).sum() / weights.sum())
