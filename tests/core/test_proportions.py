"""The interval of a proportion against a published table and against SciPy."""

from __future__ import annotations

import pytest
from scipy import stats

from effvit_train.proportions import wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_newcombe_1998(right, total, low, high):
    found = wilson(right, total)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_wilson_refuses_what_is_no_proportion():
    for right, total in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="not a proportion"):
            wilson(right, total)


def test_wilson_is_scipys() -> None:
    for right, total in ((0, 10), (3, 10), (10, 10), (50, 1000), (1, 1)):
        exact = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
        assert wilson(right, total) == pytest.approx((exact.low, exact.high), abs=1e-12)
