"""Means, differences and sums with their errors: by hand, and against scipy's own tests."""

import math

import pytest
from scipy import stats

from effvit_train.report.advice.estimate import Estimate, by_seed, combination, difference, mean


def test_paired_difference_by_hand():
    before = [(1, 10.0), (2, 20.0), (3, 30.0)]
    after = [(3, 33.0), (1, 11.0), (2, 22.0)]
    told = difference(before, after, exact=False)  # 1, 2, 3: mean 2, sd 1, t(2) = 4.302653
    assert (told.value, told.runs, told.paired) == (2.0, 3, True)
    assert told.error == pytest.approx(1 / math.sqrt(3))
    assert told.half_width() == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert told.p_value == pytest.approx(stats.ttest_rel([11, 22, 33], [10, 20, 30]).pvalue)


def test_without_common_seeds_it_is_welchs():
    a, b = [1.0, 2.0, 4.0], [3.0, 3.5, 9.0, 5.0]
    told = difference(list(enumerate(a)), list(enumerate(b, 10)), exact=False)
    wanted = stats.ttest_ind(b, a, equal_var=False)
    assert told.paired is False
    assert told.p_value == pytest.approx(wanted.pvalue)
    assert told.freedom == pytest.approx(wanted.df)
    assert told.interval() == pytest.approx(tuple(wanted.confidence_interval()))


def test_private_runs_that_repeat_a_seed_are_not_paired():
    assert difference([(1, 1.0), (1, 2.0)], [(1, 3.0), (2, 5.0)], exact=False).paired is False


def test_what_gives_no_interval():
    once = difference([(1, 1.0)], [(1, 3.0)], exact=False)
    assert (once.value, once.interval(), once.p_value) == (2.0, None, 1.0)
    # three accuracies that happen to differ by the same amount are luck, three counts are not
    same = [(1, 1.0), (2, 2.0), (3, 3.0)], [(1, 2.0), (2, 3.0), (3, 4.0)]
    assert difference(*same, exact=False).interval() is None
    assert difference(*same, exact=True).interval() == (1.0, 1.0)
    assert difference(*same, exact=True).p_value == 0.0
    assert difference([(1, 5.0)], [(2, 5.0)], exact=True).p_value == 1.0
    assert mean([(1, 5.0)], exact=False).interval() is None


def test_sums():
    one, other = Estimate(1.0, 0.3, 2, 3), Estimate(2.0, 0.4, 2, 3)
    told = combination([(1.0, one), (-1.0, other)])
    assert told.value == -1.0
    assert told.error == pytest.approx(0.5)
    assert told.freedom == pytest.approx(0.25**2 / (0.09**2 / 2 + 0.16**2 / 2))  # Satterthwaite
    assert combination([(1.0, one), (1.0, Estimate(1.0, None, math.inf, 1))]).interval() is None


def test_seed_by_seed_what_arms_share_cancels():
    good, bad = 100.0, 0.0
    arms = [[(1, good + x), (2, bad + x + 0.1)] for x in (0.0, 1.0, 3.0, 5.0)]
    told = by_seed(list(zip((1.0, -1.0, -1.0, 1.0), reversed(arms), strict=True)), exact=True)
    assert told is not None
    assert told.value == pytest.approx(1.0)
    assert told.error == 0.0
    assert by_seed([(1.0, [(1, 0.0), (1, 1.0)]), (1.0, [(1, 0.0), (2, 1.0)])], exact=False) is None
