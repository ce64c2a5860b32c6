"""What a search has spent: the accountant against Opacus, the sums by hand, and who is counted."""

import json
import math

import pytest
from made import make_run
from many import private_run, state, studied

from effvit_train.report.frontier.privacy import ORDERS, composed, rdp_epsilon
from effvit_train.report.summary.facts import attacker


@pytest.mark.parametrize(
    ("history", "delta"),
    [([(1.0, 0.05, 500)], 1e-5), ([(0.8, 0.02, 1000), (2.0, 0.3, 40)], 1e-4), ([(3.0, 1.0, 20)], 1e-6)],
)
def test_the_accountant_is_that_of_opacus(history, delta):
    from opacus.accountants.analysis import rdp

    spent = sum(
        rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=list(ORDERS))
        for sigma, rate, steps in history
    )
    wanted, _ = rdp.get_privacy_spent(orders=list(ORDERS), rdp=spent, delta=delta)
    assert rdp_epsilon(history, delta) == pytest.approx(wanted, rel=1e-9)


def test_the_gaussian_mechanism_by_hand():
    # one step with all images: order a costs a / (2 sigma^2); Balle et al. 2020 converts
    def bound(a):
        return a / 50 + math.log((a - 1) / a) - (math.log(1e-5) + math.log(a)) / (a - 1)

    assert rdp_epsilon([(5.0, 1.0, 1)], 1e-5) == pytest.approx(min(bound(a) for a in range(2, 65)), rel=1e-12)


def test_the_smaller_of_sum_and_accountant(tmp_path):
    for number in range(4):
        private_run(tmp_path / str(number), epsilon=3.0, seed=number)
        state(tmp_path / str(number))
    make_run(tmp_path / "open")
    state(tmp_path / "open")
    (one,) = composed(studied(tmp_path))
    assert (one.trials, one.open_runs, one.unfinished, one.unknown) == (4, 1, 0, 0)
    assert one.basic == pytest.approx(12.0)
    assert one.delta == pytest.approx(4e-5)
    assert one.method == "rdp"
    assert one.epsilon == pytest.approx(rdp_epsilon([(1.0, 0.05, 400)], 4e-5))
    assert one.epsilon < 12
    told = " ".join(one.sentences())
    assert "RDP accountant" in told
    assert "The plain sum of their ε would be 12.0" in told
    assert "1 run on the same data was trained without differential privacy" in told


def test_the_sum_where_the_accountant_is_looser_or_knows_nothing(tmp_path):
    for number in range(2):
        path = private_run(tmp_path / str(number), epsilon=0.001, seed=number)
        state(path)
    (one,) = composed(studied(tmp_path))
    assert (one.method, one.epsilon) == ("basic", pytest.approx(0.002))
    card = json.loads((path / "card.json").read_text())
    card["provenance"]["privacy"]["noise_multiplier"] = None
    card["measures"]["privacy/epsilon"] = 5.0
    (path / "card.json").write_text(json.dumps(card))
    (one,) = composed(studied(tmp_path))
    assert (one.method, one.epsilon) == ("basic", pytest.approx(5.001))
    assert "basic composition" in one.sentences()[0]


def test_what_was_inherited_is_added_to_the_accountant(tmp_path):
    for number in range(2):
        private_run(
            tmp_path / str(number), epsilon=5.0, own=3.0, delta=3e-5, own_delta=1e-5, seed=number, steps=50
        )
        state(tmp_path / str(number))
    (one,) = composed(studied(tmp_path))
    assert one.epsilon == pytest.approx(rdp_epsilon([(1.0, 0.05, 100)], 2e-5) + 4.0)
    assert one.delta == pytest.approx(6e-5)


def test_one_trial_has_its_own(tmp_path):
    state(private_run(tmp_path / "a", epsilon=2.5))
    (one,) = composed(studied(tmp_path))
    assert (one.method, one.epsilon, one.delta) == ("own", 2.5, 1e-5)


def test_a_pruned_copy_costs_nothing_more(tmp_path):
    state(private_run(tmp_path / "a", epsilon=2.5))
    state(private_run(tmp_path / "b", epsilon=2.5, made_by="effvit prune"))
    (one,) = composed(studied(tmp_path))
    assert (one.trials, one.epsilon) == (1, 2.5)


def test_runs_that_did_not_end_have_spent_too(tmp_path):
    state(private_run(tmp_path / "a", epsilon=2.5))
    state(tmp_path / "b", status="interrupted")
    phase = {"stream": "x", "noise_multiplier": 1.0, "sample_rate": 0.05, "first": 0, "last": 60}
    (tmp_path / "b" / "privacy.json").write_text(json.dumps({"schema": 1, "planned": 60, "phases": [phase]}))
    (one,) = composed(studied(tmp_path))
    assert (one.trials, one.unfinished, one.method) == (1, 1, "rdp")
    assert one.epsilon == pytest.approx(rdp_epsilon([(1.0, 0.05, 160)], 1e-5))
    (tmp_path / "b" / "privacy.json").write_text("{}[")
    (one,) = composed(studied(tmp_path))
    assert one.unknown == 1
    assert "the bound leaves them out" in " ".join(one.sentences())


def test_another_split_of_the_same_name_counts_and_another_data_set_does_not(tmp_path):
    state(private_run(tmp_path / "a", epsilon=1.0), "1" * 64)
    state(private_run(tmp_path / "b", epsilon=1.0), "2" * 64)
    path = private_run(tmp_path / "c", epsilon=1.0, dataset="other")
    card = json.loads((path / "card.json").read_text())
    card["provenance"]["dataset"]["name"] = "other"
    (path / "card.json").write_text(json.dumps(card))
    state(path, "3" * 64)
    assert sorted((one.names, one.trials) for one in composed(studied(tmp_path))) == [
        (("digits",), 2), (("other",), 1),
    ]  # fmt: skip


def test_what_epsilon_means_to_an_attacker():
    assert attacker(0.0, 0.0) == 0.5
    assert attacker(math.log(3), 0.0) == pytest.approx(0.75)  # 3 of 4: odds of 3 to 1
    assert attacker(math.log(3), 0.1) == pytest.approx(0.75 + 0.1 / 4)
    assert attacker(1000.0, 0.0) == 1.0
