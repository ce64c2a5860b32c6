"""AUC and TPR at a low FPR: by hand, against scikit-learn and scipy, and the coverage of their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from effvit_train.audit.attack.figures import auc, clopper_pearson, tpr_at_fpr


def drawn(seed: int, members: int, others: int, shift: float, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat([True, False], [members, others]))
    scores = rng.standard_normal(members + others) + shift * truth
    return (np.round(scores) if ties else scores), truth


def test_by_hand() -> None:
    scores, truth = [3.0, 1.0, 2.0, 1.0, 0.0], np.array([True, True, False, False, False])
    # Pairs: 3 beats 2, 1, 0; 1 loses to 2, ties with 1, beats 0: 4.5 of 6
    assert auc(scores, truth).value == 0.75
    assert tpr_at_fpr(scores, truth, 0.01).value == 0.5  # only 3 lies above every other sample
    assert tpr_at_fpr(scores, truth, 1 / 3).value == 0.5  # the tie at 1 would let a second one through
    assert tpr_at_fpr(scores, truth, 2 / 3).value == 1.0
    assert tpr_at_fpr(scores, truth, 1.0).value == 1.0


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_against_second_implementations(seed: int, ties: bool) -> None:
    scores, truth = drawn(seed, 150, 230, 0.8, ties)
    found = auc(scores, truth).value
    assert found == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    assert found == pytest.approx(stats.mannwhitneyu(scores[truth], scores[~truth]).statistic / (150 * 230))
    pairs = scores[truth][:, None] - scores[~truth][None, :]
    assert found == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    rates, hits, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    for fpr in (0, 0.001, 0.01, 0.05, 0.3, 1):
        assert tpr_at_fpr(scores, truth, fpr).value == pytest.approx(hits[rates <= fpr].max())


def test_monotone_transforms_change_nothing_and_reversal_mirrors() -> None:
    scores, truth = drawn(1, 80, 60, 0.5, True)
    for moved in (scores**3 + 2, np.exp(scores), np.argsort(np.argsort(np.unique(scores)))[
        np.unique(scores, return_inverse=True)[1]
    ]):  # fmt: skip
        assert auc(moved, truth) == auc(scores, truth)
        assert tpr_at_fpr(moved, truth, 0.1) == tpr_at_fpr(scores, truth, 0.1)
    mirrored = auc(-scores, truth)
    assert mirrored.value == pytest.approx(1 - auc(scores, truth).value)
    assert mirrored.low == pytest.approx(1 - auc(scores, truth).high)


def test_a_share_of_non_members_that_is_a_whole_number_is_allowed() -> None:
    # 0.29 * 100 is 28.999999999999996 in double precision; 29 false positives of 100 are a rate of 0.29.
    scores = np.concatenate([np.arange(100.0), [70.5, 69.5]])
    truth = np.repeat([False, True], [100, 2])
    assert tpr_at_fpr(scores, truth, 0.29).value == 0.5  # 29 others lie above 70.5, and 30 above 69.5
    assert tpr_at_fpr(scores, truth, 0.3).value == 1.0


def test_infinite_scores_have_their_place() -> None:
    truth = np.array([True, True, False, False])
    assert auc([np.inf, 0, -np.inf, 1], truth).value == 0.75
    assert tpr_at_fpr([np.inf, 0, -np.inf, 1], truth).value == 0.5


def test_clopper_pearson_is_the_interval_of_the_two_binomial_tests() -> None:
    for successes, trials in ((0, 10), (3, 10), (10, 10), (50, 1000)):
        low, high = clopper_pearson(successes, trials)
        exact = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
        assert (low, high) == pytest.approx((exact.low, exact.high))
    assert clopper_pearson(0, 100)[1] == pytest.approx(1 - 0.025 ** (1 / 100))


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_coverage_of_the_intervals(shift: float) -> None:
    # Members N(shift, 1), others N(0, 1): AUC = Phi(shift / sqrt 2). The interval of the TPR is for the
    # threshold that the others set: its truth is the share of N(shift, 1) beyond it.
    held, held_rate = [], []
    true = stats.norm.cdf(shift / np.sqrt(2))
    for seed in range(400):
        scores, truth = drawn(seed, 60, 300, shift, False)
        area, rate = auc(scores, truth), tpr_at_fpr(scores, truth, 0.01)
        held.append(area.low <= true <= area.high)
        threshold = np.sort(scores[~truth])[-4]  # 3 of 300 may lie above
        held_rate.append(rate.low <= stats.norm.sf(threshold - shift) <= rate.high)
    assert np.mean(held) >= 0.95
    assert np.mean(held_rate) >= 0.95


def test_a_perfect_separation_still_has_an_interval() -> None:
    found = auc(np.arange(40.0), np.arange(40) >= 20)
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 20))  # Clopper-Pearson of 20 in 20


def test_wrong_inputs_are_refused() -> None:
    truth = np.array([True, False])
    for scores, members in (
        ([1.0], truth), ([1.0, np.nan], truth), ([1.0, 2.0], truth.astype(int)), ([1.0, 2.0], ~truth & truth)
    ):  # fmt: skip
        for figure in (auc, tpr_at_fpr):
            with pytest.raises(ValueError, match=r"match|not a number|both kinds"):
                figure(scores, members)
    with pytest.raises(ValueError, match="fpr"):
        tpr_at_fpr([1.0, 2.0], truth, -0.1)
    with pytest.raises(ValueError, match="trials"):
        clopper_pearson(3, 2)
