"""Epsilon over all trials: sums by hand, and no bound where one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from effvit_train.card import Card, Measured
from effvit_train.runs import RunState
from effvit_train.search.composition import compose_privacy


def run(path: Path, *, spent=None, privacy=None, dataset="digits") -> Path:
    """A run directory; `spent` = (epsilon, delta) on its card, None where it has not ended."""
    (path / ".hydra").mkdir(parents=True)
    settings = {
        "privacy": {"mechanism": "none", **(privacy or {})},
        "dataset": {"name": dataset},
        "audit": {},
    }
    (path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings))
    RunState.new().write(path / "state.json")
    if spent is not None:
        values = dict(zip(("privacy/epsilon", "privacy/delta"), spent, strict=True))
        Card.of(run={}, model={}, measured=Measured(values), provenance={}).write(path / "card.json")
    return path


DP = {"mechanism": "dp_sgd", "epsilon": 3.0, "delta": 1e-5}


def test_trials_add_up_also_those_that_were_stopped(tmp_path):
    runs = [
        run(tmp_path / "0", spent=(2.9, 1e-5), privacy=DP),
        run(tmp_path / "1", spent=(1.5, 1e-5), privacy=DP),
        run(tmp_path / "2", privacy=DP),  # pruned: at most what its noise was chosen for
        run(tmp_path / "3", privacy={**DP, "epsilon": 8.0, "max_epsilon": 2.0}),
        tmp_path / "4",  # refused before it trained
    ]
    composed = compose_privacy(runs)
    assert composed.trials == 4
    assert composed.epsilon == pytest.approx(2.9 + 1.5 + 3.0 + 2.0)
    assert composed.delta == pytest.approx(4e-5)
    assert str(composed) == (
        "privacy: all 4 private trials together spent epsilon <= 9.4 at delta <= 4e-05 (sums)"
    )


def test_delta_auto_is_that_of_a_finished_trial_on_the_same_data(tmp_path):
    auto = {**DP, "delta": "auto"}
    done = run(tmp_path / "0", spent=(3.0, 2e-4), privacy=auto)
    composed = compose_privacy([done, run(tmp_path / "1", privacy=auto)])
    assert (composed.epsilon, composed.delta) == pytest.approx((6.0, 4e-4))
    other = compose_privacy([done, run(tmp_path / "2", privacy=auto, dataset="cifar10")])
    assert other.epsilon is None
    assert other.unknown == ("trial 2 did not end, and does not tell what it has spent",)


def test_there_is_no_bound_with_trials_without_privacy_or_given_noise_that_did_not_end(tmp_path):
    private = run(tmp_path / "0", spent=(3.0, 1e-5), privacy=DP)
    composed = compose_privacy([private, run(tmp_path / "1")])
    assert str(composed) == "privacy: no bound for all 1 private trials together: 1 trained without privacy"
    noise = {"mechanism": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-5}
    assert compose_privacy([private, run(tmp_path / "2", privacy=noise)]).epsilon is None
    assert compose_privacy([run(tmp_path / "3", spent=(2.0, 1e-5), privacy=noise)]).epsilon == 2.0


def test_without_privacy_there_is_nothing_to_tell(tmp_path):
    assert compose_privacy([run(tmp_path / "0")]) is None
