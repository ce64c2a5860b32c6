"""Intervals and tests against published tables, cases by hand and second implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from effvit_train import t_tests
from effvit_train.paired import (
    Table,
    holm,
    images_needed,
    interval,
    interval_unpaired,
    mcnemar,
    mean_interval,
)  # fmt: skip
from effvit_train.report.ab.rows import quantile
from effvit_train.resampling import bca, randomisation_test


def weighted_mean(values, weights):
    return float(values @ weights) / weights.sum()


PUBLISHED = [
    # right in B only and so on, as (both, only A, only B, neither) -> interval of B minus A
    (
        (1, 1, 7, 12),
        (0.026, 0.507),
    ),  # Bentur 2009, in Fagerland et al. 2014: -0.507 to -0.026 the other way round
    ((36, 2, 12, 0), (0.0569, 0.3404)),  # Newcombe 1998b, table II
    ((14, 0, 5, 22), (0.011, 0.226)),  # Altman et al. 2000, table 6.2
]


@pytest.mark.parametrize(("cells", "expected"), PUBLISHED)
def test_newcombes_paired_interval_is_the_published_one(cells, expected):
    digits = 4 if expected[1] == 0.3404 else 3
    assert tuple(round(end, digits) for end in interval(Table(*cells))) == expected


def test_the_paired_interval_turns_with_the_sides_and_narrows_with_agreement():
    low, high = interval(Table(50, 4, 9, 20))
    assert interval(Table(50, 9, 4, 20)) == pytest.approx((-high, -low))
    agreeing = interval(Table(80, 4, 4, 12))
    apart = interval_unpaired(84, 100, 84, 100)
    assert agreeing[1] - agreeing[0] < 0.7 * (apart[1] - apart[0])
    wide = interval(Table(80, 4, 4, 12), quantile(0.01))
    assert wide[1] > agreeing[1]


def test_an_interval_without_any_error_is_no_point():
    low, high = interval(Table(100, 0, 0, 0))
    assert low == pytest.approx(-high)
    assert 0.03 < high < 0.04  # Wilson of 100 of 100 ends at 0.963


def test_the_unpaired_interval_is_newcombes_example():
    low, high = interval_unpaired(48, 80, 56, 70)  # Newcombe 1998a, table II, (a): 0.0524 to 0.3339
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_mcnemar_of_the_classic_example():
    assert mcnemar(9, 1) == pytest.approx(2 * 11 / 1024)  # 2 x (1 + 10) / 2^10
    assert mcnemar(59, 6) == pytest.approx(scipy.stats.binomtest(6, 65).pvalue)


def test_holm_by_hand():
    # 3 x 0.01; then 2 x 0.02 = 0.04; then 0.03, which may not be below the one before
    assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


def test_images_needed_give_the_power_that_they_promise():
    table = Table(880, 40, 60, 20)  # 10 % differ, 2 points
    needed = images_needed(table)
    assert needed == 1960  # (1.96 x sqrt 0.1 + 0.8416 x sqrt(0.1 - 0.0004))^2 / 0.0004, Connor 1987
    rng = np.random.default_rng(0)
    draws = rng.multinomial(needed, [0.88, 0.04, 0.06, 0.02], size=400)
    found = sum(mcnemar(int(b), int(c)) < 0.05 for _, b, c, _ in draws)
    assert 0.72 < found / 400 < 0.88
    assert images_needed(Table(5, 3, 3, 5)) is None


def test_the_bootstrap_of_three_images_by_hand():
    """All 27 draws of three images are equally likely: the mean of (0, 0, 1) is 0, 1/3, 2/3, 1 in 8, 12, 6, 1."""
    values = np.array([0.0, 0.0, 1.0])
    drawn: list[float] = []

    def mean(weights):
        found = weighted_mean(values, weights)
        drawn.append(found)
        return np.array([found])

    bca(mean, 3, draws=20_000)
    shares = [np.isclose(drawn[1:20_001], k / 3).mean() for k in range(4)]
    assert shares == pytest.approx([8 / 27, 12 / 27, 6 / 27, 1 / 27], abs=0.01)


def test_the_bca_interval_by_hand():
    """From the exact distribution of the mean of (0, 1, 3, 6): bias and acceleration by their formulas."""
    values = np.array([0.0, 1.0, 3.0, 6.0])
    exact = np.array([sum(draw) / 4 for draw in itertools.product(values, repeat=4)])  # 256, equally likely
    normal = scipy.stats.norm
    bias = normal.ppf((exact < 2.5).mean() + (exact == 2.5).mean() / 2)
    influence = (values - 2.5) / 3  # the mean 2.5 minus (10 - x) / 3
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    ends = []
    for share in (0.1, 0.9):
        z = bias + normal.ppf(share)
        share_of_it = normal.cdf(bias + z / (1 - acceleration * z))
        ends.append(np.quantile(exact, share_of_it, method="inverted_cdf"))
    (found,) = bca(lambda w: np.array([weighted_mean(values, w)]), 4, level=0.2, draws=20_000)
    assert found.value == 2.5
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=0.01)


def test_the_bca_interval_is_scipys():
    data = np.random.default_rng(5).exponential(size=300) - 0.9
    (found,) = bca(lambda w: np.array([weighted_mean(data, w)]), 300, draws=8000)
    theirs = scipy.stats.bootstrap((data,), np.mean, n_resamples=8000, method="BCa", rng=1, batch=500)
    width = found.high - found.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_swapping_right_answers_is_mcnemars_test():
    """With 3 images right in A only and 9 in B only, coins give a difference of 6 or more as the binomial does."""
    right_a = np.repeat([1.0, 1.0, 0.0, 0.0], [30, 3, 9, 8])
    right_b = np.repeat([1.0, 0.0, 1.0, 0.0], [30, 3, 9, 8])

    def difference(swapped):
        return np.array([np.where(swapped, right_a - right_b, right_b - right_a).sum()])

    (found,) = randomisation_test(difference, 50, draws=20_000)
    assert found == pytest.approx(mcnemar(3, 9), abs=0.01)  # 2 x 299 / 4096


def test_the_randomisation_test_of_three_differences_by_hand():
    """Of the 8 ways to sign (1, 2, 4) two give a sum as large as 7."""
    values = np.array([1.0, 2.0, 4.0])
    (found,) = randomisation_test(lambda s: np.array([np.where(s, -values, values).sum()]), 3, draws=20_000)
    assert found == pytest.approx(2 / 8, abs=0.01)
    (none,) = randomisation_test(lambda s: np.array([0.0]), 3)
    assert none == 1.0


def test_the_interval_of_mean_gains_is_bonetts_and_prices():
    # only B 9, only A 4, of 83: with one more of each, 5 and 10 of 85
    low, high = mean_interval([1.0] * 9 + [-1.0] * 4 + [0.0] * 70)
    centre, half = 5 / 85, 1.959964 * math.sqrt((15 / 85 - (5 / 85) ** 2) / 85)
    assert (low, high) == pytest.approx((centre - half, centre + half), rel=1e-6)
    assert mean_interval([1.0, 1.0] + [0.0] * 98)[0] < 0  # two images are no proof


def test_the_bootstrap_gives_the_same_numbers_again_and_none_where_nothing_differs():
    data = np.random.default_rng(2).normal(size=50)
    assert bca(lambda w: np.array([data @ w]), 50) == bca(lambda w: np.array([data @ w]), 50)
    (same,) = bca(lambda w: np.array([0.0 * w.sum()]), 50)
    assert (same.low, same.high) == (0.0, 0.0)
    assert len(bca(lambda w: np.array([w.sum()]), 1)) == 1


def test_the_t_tests_are_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.9, 0.01, 4).tolist(), rng.normal(0.91, 0.03, 4).tolist()
    for ours, theirs in (
        (t_tests.paired(a, b, level=0.1), scipy.stats.ttest_rel(b, a)),
        (t_tests.welch(a, b, level=0.1), scipy.stats.ttest_ind(b, a, equal_var=False)),
    ):
        ends = theirs.confidence_interval(0.9)
        assert (ours.low, ours.high) == pytest.approx((ends.low, ends.high))
        assert ours.p_value == pytest.approx(theirs.pvalue)
        assert ours.freedom == pytest.approx(theirs.df)


def test_the_paired_t_test_by_hand():
    found = t_tests.paired([0.90, 0.91, 0.92], [0.92, 0.93, 0.96])
    # differences 2, 2, 4 points: mean 8/3, standard error 2/3, t = 4 with 2 degrees of freedom
    assert found.difference == pytest.approx(0.08 / 3)
    assert found.p_value == pytest.approx(1 - 4 / math.sqrt(18))  # P(|t2| > t) = 1 - t / sqrt(t^2 + 2)
    assert found.high - found.low == pytest.approx(2 * 4.302653 * 0.02 / 3, rel=1e-6)
    assert (
        found.runs_needed == 4
    )  # (1.96 + 0.84)^2 x (4/3) / (8/3)^2 = 1.47, and two for the estimated spread


def test_runs_without_spread_are_not_tested():
    assert t_tests.paired([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).p_value is None
    assert t_tests.welch([0.5] * 3, [0.6] * 3).p_value is None
