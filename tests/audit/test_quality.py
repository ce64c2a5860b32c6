"""Quality by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from effvit_train.audit.quality import confusion_matrix, measure_quality


def test_three_classes_by_hand() -> None:
    # predictions 0, 1, 0, 1; labels 0, 0, 0, 1; class 2 never occurs
    logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [2.0, 0, 0], [0, 2.0, 0]])
    measured = measure_quality(logits, torch.tensor([0, 0, 0, 1]))
    assert measured.values["quality/accuracy"] == 0.75
    assert measured.values["quality/balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    right, wrong = -math.log(math.exp(2) / (math.exp(2) + 2)), -math.log(1 / (math.exp(2) + 2))
    assert measured.values["quality/nll"] == pytest.approx((3 * right + wrong) / 4)
    assert "quality/top5" not in measured.values
    assert measured.missing["quality/top5"] == "top-5 says nothing with 3 classes"


def test_top5_by_hand() -> None:
    logits = torch.arange(7.0).repeat(2, 1)  # the five most likely are 6, 5, 4, 3, 2
    assert measure_quality(logits, torch.tensor([2, 1])).values["quality/top5"] == 0.5


def test_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 10, generator=generator)
    labels = torch.randint(0, 10, (500,), generator=generator)
    values = measure_quality(logits, labels).values
    guess, scores = logits.argmax(1).numpy(), logits.softmax(1).numpy()
    assert values["quality/accuracy"] == pytest.approx(metrics.accuracy_score(labels, guess))
    assert values["quality/balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(labels, guess)
    )
    assert values["quality/top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, scores, k=5))
    assert values["quality/nll"] == pytest.approx(metrics.log_loss(labels, scores), rel=1e-5)
    assert np.array_equal(confusion_matrix(guess, labels, 10), metrics.confusion_matrix(labels, guess))


def test_numbers_that_are_not_finite_are_wrong() -> None:
    logits = torch.tensor([[float("nan")] * 6, [1.0, 0, 0, 0, 0, 0]])
    values = measure_quality(logits, torch.tensor([0, 0])).values
    assert values["quality/accuracy"] == 0.5
    assert values["quality/top5"] == 0.5
    assert math.isnan(values["quality/nll"])  # the card turns it into a null with its reason


def test_half_precision_logits_are_summed_in_double() -> None:
    logits = torch.zeros(3000, 4, dtype=torch.bfloat16)
    values = measure_quality(logits, torch.zeros(3000, dtype=torch.int64)).values
    assert values["quality/nll"] == pytest.approx(math.log(4), rel=1e-14)


def test_no_images() -> None:
    measured = measure_quality(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert measured.values == {}
    assert set(measured.missing.values()) == {"there are no test images"}


def test_confusion_by_hand() -> None:
    assert confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 3).tolist() == [
        [1, 1, 0],
        [0, 1, 0],
        [0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("logits", "labels"), [((2, 3), [0]), ((2,), [0, 1]), ((2, 3), [0, 3]), ((2, 3), [0, -1])]
)
def test_shapes_that_do_not_match(logits: tuple[int, ...], labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"match|outside"):
        measure_quality(torch.zeros(logits), torch.tensor(labels))
    with pytest.raises(ValueError, match=r"match|outside"):
        confusion_matrix(np.array([0, 1, 0]), np.array(labels), 3)
