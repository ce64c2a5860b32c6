"""Membership scores: loops, hand-made cases, invariances, and a model whose leak is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from effvit_train.audit.attack.figures import auc, tpr_at_fpr
from effvit_train.audit.attack.membership import (
    lira_offline,
    lira_online,
    log_odds,
    log_probability,
    loss_threshold,
    rmia_offline,
    rmia_online,
)
from effvit_train.data.planting import balanced_membership

S, N, Z, K = 8, 12, 30, 5


@pytest.fixture
def logits() -> np.ndarray:
    return 3 * np.random.default_rng(0).standard_normal((S + 1, N + Z, K))


LABELS = np.random.default_rng(1).integers(0, K, N + Z)
MEMBERS = balanced_membership(S, np.arange(N), 3)


# --- the statistics of one sample -------------------------------------------------------------------------


def test_statistics_against_softmax(logits: np.ndarray) -> None:
    odds, logs = log_odds(logits, LABELS), log_probability(logits, LABELS)
    assert odds.shape == logs.shape == (S + 1, N + Z)
    for model in range(S + 1):
        for i in range(N + Z):
            weights = np.exp(logits[model, i])
            p = weights[LABELS[i]] / weights.sum()
            assert logs[model, i] == pytest.approx(math.log(p))
            assert odds[model, i] == pytest.approx(math.log(p / (1 - p)))
    assert np.array_equal(loss_threshold(logits[0], LABELS), logs[0])
    # A constant added to all logits of an image changes nothing.
    assert log_odds(logits + 7, LABELS) == pytest.approx(odds)


def test_statistics_where_softmax_rounds() -> None:
    # Two classes: log(p / (1 - p)) is the difference of the logits, also where p is 1 or 0 in any float.
    odds = log_odds([[1000.0, 0.0], [0.0, 1000.0], [0.0, 0.0]], [0, 0, 1])
    assert odds.tolist() == [1000.0, -1000.0, 0.0]
    logs = log_probability([[1000.0, 0.0], [0.0, 1000.0], [0.0, 0.0]], [0, 0, 1])
    assert logs.tolist() == [0.0, -1000.0, pytest.approx(-math.log(2))]
    # float32 logits of an autocast run are taken as they are
    assert log_odds(np.array([[40, 0, 0]], dtype=np.float32), [0])[0] == pytest.approx(40 - math.log(2))


def test_statistics_of_wrong_inputs_are_refused() -> None:
    for values, labels in (
        ([[1.0, 2.0]], [2]), ([[1.0, 2.0]], [-1]), ([[1.0, 2.0]], [0, 1]), ([[1.0]], [0]), ([[1.0, np.inf]], [0])
    ):  # fmt: skip
        for statistic in (log_odds, log_probability):
            with pytest.raises(ValueError, match=r"match|outside|finite"):
                statistic(values, labels)


# --- LiRA -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["shared", "sample"])
def test_lira_against_a_loop(logits: np.ndarray, variance: str) -> None:
    phi = log_odds(logits, LABELS)[:, :N]
    target, shadows = phi[0], phi[1:]

    def groups(chosen: np.ndarray) -> list[np.ndarray]:
        return [shadows[chosen[:, i], i] for i in range(N)]

    def fits(chosen: np.ndarray) -> list:
        parts = groups(chosen)
        # Equal counts, so the pooled variance is the mean of the variances.
        pooled = np.mean([part.var(ddof=1) for part in parts])
        return [
            stats.norm(part.mean(), math.sqrt(pooled if variance == "shared" else part.var(ddof=1)))
            for part in parts
        ]

    inside, outside = fits(MEMBERS), fits(~MEMBERS)
    ratio = [inside[i].logpdf(target[i]) - outside[i].logpdf(target[i]) for i in range(N)]
    assert lira_online(target, shadows, MEMBERS, variance) == pytest.approx(ratio)
    one_sided = [outside[i].cdf(target[i]) for i in range(N)]
    assert stats.norm.cdf(lira_offline(target, shadows, MEMBERS, variance)) == pytest.approx(one_sided)


def test_lira_by_hand() -> None:
    # In: 4, 6 (mean 5, variance 2); out: 1, 3 (mean 2, variance 2); phi = 4.
    shadows, members = np.array([[4.0], [1.0], [6.0], [3.0]]), np.array([[True], [False], [True], [False]])
    phi = np.array([4.0])
    assert lira_online(phi, shadows, members) == pytest.approx([(-(1**2) + 2**2) / (2 * 2)])
    assert lira_offline(phi, shadows, members) == pytest.approx([2 / math.sqrt(2)])


def test_lira_does_not_depend_on_unit_shift_or_order(logits: np.ndarray) -> None:
    phi = log_odds(logits, LABELS)[:, :N]
    order = np.random.default_rng(2).permutation(S)
    shift = np.arange(N)
    for attack in (lira_online, lira_offline):
        scores = attack(phi[0], phi[1:], MEMBERS)
        assert attack(3 * phi[0] + shift, 3 * phi[1:] + shift, MEMBERS) == pytest.approx(scores)
        assert attack(phi[0], phi[1:][order], MEMBERS[order]) == pytest.approx(scores)


def test_shadow_models_that_agree_exactly_give_a_number() -> None:
    shadows, members = np.repeat([[2.0], [1.0]], 2, axis=0), np.array([[True], [True], [False], [False]])
    online = [lira_online(np.array([phi]), shadows, members)[0] for phi in (1.0, 1.4, 1.6, 2.0)]
    assert np.isfinite(online).all()
    assert (np.sign(online) == [-1, -1, 1, 1]).all()


def test_too_few_models_are_refused() -> None:
    phi, shadows = np.zeros(2), np.zeros((3, 2))
    members = np.array([[True, True], [False, True], [False, True]])  # none without the second sample
    for attack in (lira_online, lira_offline):
        with pytest.raises(ValueError, match="fit needs"):
            attack(phi, shadows, members)
    with pytest.raises(ValueError, match="fit needs 2"):
        lira_online(phi[:1], shadows[:, :1], members[:, :1], "sample")
    with pytest.raises(ValueError, match="no model"):
        rmia_offline(phi, shadows, members, np.zeros(4), np.zeros((3, 4)))


# --- RMIA -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "a"), [(1.0, 0.3), (2.0, 0.6), (1.0, 1.0), (1.5, 0.0)])
def test_rmia_against_a_loop(logits: np.ndarray, gamma: float, a: float) -> None:
    p = np.exp(log_probability(logits, LABELS))
    log_p = np.log(p)
    args = log_p[0, :N], log_p[1:, :N], MEMBERS, log_p[0, N:], log_p[1:, N:]

    def offline(out: np.ndarray) -> float:
        return 0.5 * ((1 + a) * out.mean() + (1 - a))

    online_scores, offline_scores = [], []
    for x in range(N):
        inside, outside = p[1:, x][MEMBERS[:, x]], p[1:, x][~MEMBERS[:, x]]
        wins = np.zeros(2)
        for z in range(N, N + Z):
            ratio_z = p[0, z] / offline(p[1:, z])
            wins += [
                p[0, x] / prior / ratio_z > gamma
                for prior in (0.5 * (inside.mean() + outside.mean()), offline(outside))
            ]
        online_scores.append(wins[0] / Z)
        offline_scores.append(wins[1] / Z)
    assert rmia_online(*args, gamma=gamma, a=a) == pytest.approx(online_scores)
    assert rmia_offline(*args, gamma=gamma, a=a) == pytest.approx(offline_scores)
    assert 0 < np.mean(online_scores) < 1


def test_rmia_by_hand() -> None:
    # Ratios of z with a = 1: 0.5 / 0.5 = 1 and 0.9 / 0.3 = 3. Ratio of x: offline 0.8 / 0.4 = 2; online
    # 0.8 / ((0.6 + 0.4) / 2) = 1.6.
    target, shadows, members = np.log([0.8]), np.log([[0.6], [0.4]]), np.array([[True], [False]])
    population = np.log([0.5, 0.9]), np.log([[0.5, 0.2], [0.5, 0.4]])
    args = target, shadows, members, *population
    assert rmia_offline(*args, a=1).tolist() == [0.5]
    assert rmia_offline(*args, a=1, gamma=2.5).tolist() == [0.0]
    assert rmia_online(*args, a=1, gamma=1.5).tolist() == [0.5]
    assert rmia_online(*args, a=1, gamma=1.7).tolist() == [0.0]
    # A sample does not dominate one that is just like it.
    alike = np.log([0.5]), np.log([[0.7], [0.5]]), members
    assert rmia_offline(*alike, *population, a=1).tolist() == [0.0]


def test_rmia_where_probabilities_underflow() -> None:
    # e^-800 is 0 in double precision: ratios are formed from logarithms.
    target, shadows, members = (
        np.array([-800.0, -810.0]),
        np.full((2, 2), -805.0),
        np.array([[True] * 2, [False] * 2]),
    )
    scores = rmia_online(target, shadows, members, np.array([-1.0]), np.array([[-1.0], [-1.0]]), a=1)
    assert scores.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", [{"gamma": 0.5}, {"a": 1.5}, {"a": -0.1}])
def test_rmia_parameters_out_of_range_are_refused(logits: np.ndarray, bad: dict[str, float]) -> None:
    log_p = log_probability(logits, LABELS)
    args = log_p[0, :N], log_p[1:, :N], MEMBERS, log_p[0, N:], log_p[1:, N:]
    for attack in (rmia_online, rmia_offline):
        with pytest.raises(ValueError, match=r"gamma|outside"):
            attack(*args, **bad)


@pytest.mark.parametrize("attack", [lira_online, lira_offline])
def test_shapes_that_differ_are_refused(attack) -> None:
    with pytest.raises(ValueError, match="differ"):
        attack(np.zeros(3), np.zeros((4, 2)), np.zeros((4, 2), dtype=bool))
    with pytest.raises(ValueError, match="not bool"):
        attack(np.zeros(3), np.zeros((4, 3)), np.zeros((4, 3)))


# --- a model whose leak is known --------------------------------------------------------------------------
#
# The model is the mean of b points from N(0, I) in D dimensions, among them x or not; its statistic for x is
# the inner product <model, x>. For |x| = R it is exactly N(0, R^2 / b) without x and
# N(R^2 / b, R^2 (b - 1) / b^2) with it. Hence AUC = Phi(R / sqrt(2 b - 1)) for the one-sided score, and
# TPR at FPR f = Phi((R + sqrt(b) q) / sqrt(b - 1)) with q = Phi^-1(f).

D, B, RADIUS, MODELS, COUNT = 4, 10, 5.0, 400, 1500


def mean_estimation() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Statistics (COUNT,) and (MODELS, COUNT) with memberships: a fresh model for each cell."""
    rng = np.random.default_rng(17)
    x = rng.standard_normal((COUNT, D))
    x *= RADIUS / np.linalg.norm(x, axis=1, keepdims=True)
    ids = np.arange(COUNT)
    target_members = balanced_membership(2, ids, 21)[0]
    members = np.vstack([target_members[None], balanced_membership(MODELS, ids, 22)])
    # The mean of b - 1 (or b) other points, times b, is one Gaussian vector of that variance.
    others = rng.standard_normal((MODELS + 1, COUNT, D)) * np.sqrt(B - members[..., None])
    statistic = np.einsum("mnd,nd->mn", others + members[..., None] * x, x) / B
    return statistic[0], statistic[1:], target_members, members[1:]


def test_lira_finds_the_leak_of_a_mean() -> None:
    target, shadows, truth, members = mean_estimation()
    expected = stats.norm.cdf(RADIUS / math.sqrt(2 * B - 1))  # 0.874
    # The estimate from 750 + 750 has a standard deviation of 0.009.
    assert auc(lira_offline(target, shadows, members), truth).value == pytest.approx(expected, abs=0.027)
    # The two-sided ratio is optimal (Neyman-Pearson) and here barely better.
    online = auc(lira_online(target, shadows, members), truth)
    assert online.low < expected < online.high
    q = stats.norm.ppf(0.01)
    rate = stats.norm.cdf((RADIUS + math.sqrt(B) * q) / math.sqrt(B - 1))  # 0.21
    assert tpr_at_fpr(lira_offline(target, shadows, members), truth).value == pytest.approx(rate, abs=0.08)


def test_no_leak_is_found_where_there_is_none() -> None:
    # Memberships that had no effect on the target: every attack is a coin.
    target, shadows, _, members = mean_estimation()
    unrelated = balanced_membership(2, np.arange(COUNT), 99)[0]
    for scores in (lira_offline(target, shadows, members), lira_online(target, shadows, members)):
        found = auc(scores, unrelated)
        assert found.low < 0.5 < found.high
        assert tpr_at_fpr(scores, unrelated).value < 0.04


def test_calibration_by_shadow_models_beats_the_plain_threshold_where_samples_differ() -> None:
    # The same leak, with samples of very different difficulty, as logits of a model with two classes: the
    # plain loss sees the difficulty, the attacks with shadow models see the leak.
    target, shadows, truth, members = mean_estimation()
    rng = np.random.default_rng(5)
    scale, difficulty = 1 / target.std(), 2 * rng.standard_normal(COUNT)

    def logits(statistic: np.ndarray) -> np.ndarray:
        easy = statistic * scale + difficulty
        return np.stack([easy, np.zeros_like(easy)], axis=-1)

    labels = np.zeros(COUNT, dtype=int)
    # A population from the same models: samples that none of them has seen.
    z = rng.standard_normal((1 + 64, 500)) * RADIUS / math.sqrt(B) * scale + 2 * rng.standard_normal(500)
    z_log = log_probability(np.stack([z, np.zeros_like(z)], axis=-1), np.zeros(500, dtype=int))
    phi, log_p = log_odds(logits(target), labels), log_probability(logits(target), labels)
    shadow_phi = log_odds(logits(shadows[:64]), labels)
    shadow_log_p = log_probability(logits(shadows[:64]), labels)
    use = members[:64]
    plain = auc(loss_threshold(logits(target), labels), truth).value
    lira = auc(lira_offline(phi, shadow_phi, use), truth).value
    population = z_log[0], z_log[1:]
    rmia = [
        auc(attack(log_p, shadow_log_p, use, *population), truth).value
        for attack in (rmia_online, rmia_offline)
    ]
    assert plain < 0.7
    assert lira > 0.85  # the leak itself: phi is the statistic plus the sample's own constant
    assert min(rmia) > plain + 0.05
