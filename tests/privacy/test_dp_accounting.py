"""Epsilon of a history against closed forms and a second implementation; noise for a target; what is kept."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from effvit_train.errors import UserError
from effvit_train.privacy.config import PrivacyConfig
from effvit_train.privacy.dp_sgd.accounting import epsilon, find_noise, most_steps
from effvit_train.privacy.dp_sgd.ledger import FILE, Ledger, Phase
from effvit_train.privacy.dp_sgd.plan import make_plan

DELTA = 1e-5


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-GDP: Dong et al. 2022, corollary 2.13, solved for epsilon."""

    def excess(eps: float) -> float:
        a, b = stats.norm.cdf(-eps / mu + mu / 2), stats.norm.logcdf(-eps / mu - mu / 2)
        return float(a - np.exp(eps + b) - delta)

    return brentq(excess, 0, 500)


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (4.0, 16), (10.0, 400), (2.0, 1)])
def test_without_sampling_it_is_the_gaussian_mechanism(sigma, steps):
    """q = 1: T steps are one Gaussian mechanism with mu = sqrt(T) / sigma."""
    exact = gaussian_epsilon(math.sqrt(steps) / sigma, DELTA)
    assert exact <= epsilon([(sigma, 1.0, steps)], DELTA, "prv") <= exact + 0.03
    assert exact <= epsilon([(sigma, 1.0, steps)], DELTA, "rdp") <= 1.35 * exact


def rdp_second(sigma: float, q: float, steps: int, delta: float) -> float:
    """Mironov et al. 2019, section 3.3, integer orders, and the conversion of Canonne et al. 2020, prop. 12."""
    best = math.inf
    for order in range(2, 256):
        terms = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + k * math.log(q) + (order - k) * math.log1p(-q) + (k * k - k) / (2 * sigma**2)
            for k in range(order + 1)
        ]  # fmt: skip
        top = max(terms)
        rdp = steps * (top + math.log(sum(math.exp(t - top) for t in terms))) / (order - 1)
        best = min(best, rdp + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return best


@pytest.mark.parametrize(("sigma", "q", "steps"), [(0.7166, 512 / 50000, 2929), (1.1, 256 / 60000, 14063)])
def test_rdp_against_a_second_implementation(sigma, q, steps):
    found = epsilon([(sigma, q, steps)], DELTA, "rdp")
    # fractional orders make it a little tighter than integer ones
    assert rdp_second(sigma, q, steps, DELTA) * 0.97 <= found <= rdp_second(sigma, q, steps, DELTA) * 1.0001


def test_phases_add_up_and_order_does_not_matter():
    phases = [(1.0, 0.01, 300), (1.3, 0.02, 200)]
    for accountant in ("prv", "rdp"):
        both = epsilon(phases, DELTA, accountant)
        assert both == pytest.approx(epsilon(phases[::-1], DELTA, accountant), rel=1e-3)
        assert both > max(epsilon([phase], DELTA, accountant) for phase in phases)
    split = [(1.0, 0.01, 100), (1.0, 0.01, 200)]
    assert epsilon(split, DELTA, "prv") == epsilon([(1.0, 0.01, 300)], DELTA, "prv")
    assert epsilon([], DELTA, "prv") == epsilon([(1.0, 0.1, 0)], DELTA, "rdp") == 0
    assert epsilon([(1e-9, 0.1, 1)], DELTA, "prv") == math.inf


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_the_noise_is_the_least_that_keeps_within_the_target(accountant):
    sigma = find_noise(3.0, DELTA, accountant, rate=0.05, steps=100)
    assert epsilon([(sigma, 0.05, 100)], DELTA, accountant) <= 3.0
    assert epsilon([(sigma / 1.002, 0.05, 100)], DELTA, accountant) > 3.0
    after = find_noise(3.0, DELTA, accountant, rate=0.05, steps=50, before=[(sigma, 0.05, 60)])
    assert after > sigma  # ten steps were lost
    assert epsilon([(sigma, 0.05, 60), (after, 0.05, 50)], DELTA, accountant) <= 3.0
    assert find_noise(1.0, DELTA, accountant, rate=0.05, steps=1, before=[(sigma, 0.05, 100)]) is None


def test_noise_for_the_case_in_the_literature_of_this_library():
    """epsilon = 8, N = 50,000, B = 512, 2,929 steps: 0.717 by RDP, 0.689 by PRV (seen with Opacus's own search)."""
    common = {"rate": 512 / 50000, "steps": 2929}
    assert find_noise(8.0, DELTA, "rdp", **common) == pytest.approx(0.717, abs=0.002)
    assert find_noise(8.0, DELTA, "prv", **common) == pytest.approx(0.689, abs=0.002)


def test_most_steps_are_the_last_that_keep_within_the_limit():
    arguments = {"sigma": 1.0, "rate": 0.02, "before": [(1.0, 0.02, 37)]}
    most = most_steps(2.0, DELTA, "rdp", steps=5000, **arguments)
    assert epsilon([(1.0, 0.02, 37 + most)], DELTA, "rdp") <= 2.0
    assert epsilon([(1.0, 0.02, 37 + most + 1)], DELTA, "rdp") > 2.0
    assert most_steps(2.0, DELTA, "rdp", steps=3, **arguments) == 3
    assert most_steps(0.01, DELTA, "rdp", steps=3, **arguments) == 0


def plan(config: PrivacyConfig, **changes):
    settings = {"images": 5000, "batch": 100, "steps": 200, **changes}
    return make_plan(config, **settings)


def private(**changes) -> PrivacyConfig:
    config = PrivacyConfig(mechanism="dp_sgd", accountant="rdp", **changes)
    config.validate()
    return config


def test_delta_and_noise_of_a_plan():
    made = plan(private(epsilon=3))
    assert made.delta == pytest.approx(5000**-1.1)
    assert made.sample_rate == 0.02
    assert 2.9 < made.epsilon([], 200) <= 3
    given = plan(private(noise_multiplier=0.9, max_grad_norm=2.0, delta=1e-6))
    assert (given.noise_multiplier, given.noise_std, given.delta) == (0.9, 1.8, 1e-6)
    assert 7.9 < plan(private()).epsilon([], 200) <= 8  # what is used where nothing is named


def test_a_longer_training_keeps_its_noise_and_may_not_pass_the_target():
    config = private(epsilon=3)
    first = plan(config)
    before = first.history(100)
    same = plan(config, start=100, before=before, noise=first.noise_multiplier, planned=200)
    assert same.noise_multiplier == first.noise_multiplier
    with pytest.raises(
        UserError, match=r"trainer.max_epochs: 300 steps would spend more .* at most 200 steps"
    ):
        plan(config, steps=300, start=100, before=before, noise=first.noise_multiplier, planned=200)


def test_lost_steps_are_made_up_for_with_more_noise():
    config = private(epsilon=3)
    first = plan(config)
    after = plan(config, start=100, before=first.history(130), noise=first.noise_multiplier, planned=200)
    assert after.noise_multiplier > first.noise_multiplier
    assert after.epsilon(first.history(130), 100) <= 3
    with pytest.raises(UserError, match=r"privacy.epsilon=3: .* is spent already"):
        plan(config, start=100, before=first.history(400), noise=first.noise_multiplier, planned=200)


def test_the_ledger_is_ahead_of_what_is_executed(tmp_path):
    path = tmp_path / FILE
    ledger = Ledger(path, block=10)
    ledger.open(Phase("a", 1.0, 0.01, 0, 0), planned=100)
    for step in range(25):
        ledger.reserve("a", step, 100)
        assert Ledger(path).last("a") > step  # on disk before the step is made
    assert ledger.last("a") == 30
    ledger.reserve("a", 99, 100)
    assert ledger.last("a") == 100
    again = Ledger(path)
    again.settle("a", 40)  # a process that knows that it made 40
    assert Ledger(path).last("a") == 40
    again.settle("a", 60)
    assert Ledger(path).last("a") == 40


def test_other_streams_count_whole(tmp_path):
    ledger = Ledger(tmp_path / FILE)
    ledger.open(Phase("a", 1.0, 0.01, 0, 0), planned=100)
    ledger.reserve("a", 59, 100)
    ledger.open(Phase("b", 1.2, 0.01, 40, 40), planned=100)
    ledger.reserve("b", 99, 100)
    assert ledger.others("b") == [(1.0, 0.01, 60)]
    assert ledger.others("a") == [(1.2, 0.01, 60)]
    assert ledger.others("c") == [(1.0, 0.01, 60), (1.2, 0.01, 60)]
    ledger.open(Phase("b", 1.2, 0.01, 30, 30), planned=100)  # from an older checkpoint
    assert ledger.others("a") == [(1.2, 0.01, 70)]
    assert (ledger.noise("a"), ledger.noise("b"), ledger.noise("c")) == (1.0, 1.2, 1.2)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"schema": 2, "planned": 1, "phases": []}', '{"schema": 1, "planned": 1, "phases": [3]}',
        '{"schema": 1, "planned": 1, "phases": [{"stream": "a", "noise_multiplier": 0, "sample_rate": 0.1, "first": 0, "last": 1}]}',
        '{"schema": 1, "planned": 1, "phases": [{"stream": "a", "noise_multiplier": 1, "sample_rate": 0.1, "first": 2, "last": 1}]}',
    ],
)  # fmt: skip
def test_a_damaged_ledger_is_refused(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="is damaged: what was spent is not known"):
        Ledger(tmp_path / FILE)
