"""Confusion counts, pairs and the paired comparison against second ways of computing them."""

import math

import numpy as np
import pytest

from effvit_train.paired import mcnemar
from effvit_train.report.inputs import Predictions
from effvit_train.report.mistakes import Pair, confused_pairs, confusion, paired


def predictions(predicted, labels, classes, index=None):
    labels = np.asarray(labels)
    index = np.arange(len(labels)) if index is None else np.asarray(index)
    return Predictions(np.asarray(predicted), labels, index, classes)


def test_confusion_counts_equal_numpys():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 7, 500), rng.integers(0, 7, 500)
    expected, _, _ = np.histogram2d(labels, predicted, bins=np.arange(8))
    found = confusion(predictions(predicted, labels, 7))
    np.testing.assert_array_equal(found, expected)


def test_pairs_are_sorted_by_count_then_share():
    counts = np.array([[8, 2, 0], [0, 3, 2], [5, 0, 5]])
    assert confused_pairs(counts, 10) == [Pair(2, 0, 5, 10), Pair(1, 2, 2, 5), Pair(0, 1, 2, 10)]
    assert confused_pairs(counts, 1) == [Pair(2, 0, 5, 10)]
    assert confused_pairs(np.eye(3, dtype=int), 5) == []


def test_paired_matches_images_by_their_index():
    here = predictions([0, 1, 1, 0], [0, 1, 0, 0], 2, [3, 1, 2, 0])  # wrong on image 2
    there = predictions([1, 1, 0, 1], [0, 1, 0, 0], 2, [0, 1, 2, 3])  # wrong on images 0 and 3
    found = paired(here, there)
    assert (found.only_here, found.only_there) == (2, 1)


def test_paired_needs_the_same_images():
    here = predictions([0, 1], [0, 1], 2)
    assert paired(here, predictions([0, 1, 1], [0, 1, 1], 2)) is None
    assert paired(here, predictions([0, 1], [0, 1], 2, [5, 6])) is None
    assert paired(here, predictions([0, 1], [1, 1], 2)) is None


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (31, 2), (9, 1), (3, 12)])
def test_mcnemar_is_the_two_sided_binomial(b, c):
    n = b + c
    tail = sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_by_hand():
    assert mcnemar(9, 1) == pytest.approx(2 * 11 / 1024)  # 2 * (1 + 10) / 2^10
    assert mcnemar(4000, 3800) == pytest.approx(0.0243, abs=1e-3)  # normal: z = 199 / sqrt(7800), p = 0.024
