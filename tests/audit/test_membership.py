"""Canaries and the attack on members in real runs: planted, measured, told or kept."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import SMALL, exit_code, interrupted_run, run_in

from effvit_train.audit.membership import measure_canaries, measure_members
from effvit_train.data.config import DatasetConfig
from effvit_train.data.datamodule import DataModule
from effvit_train.data.planting import Canaries
from effvit_train.errors import UserError

QUICK = (
    *SMALL, "recipe.batch_size=64", "trainer.max_epochs=2", "logger=none", "dataset.num_workers=0", "audit.latency_runs=1",
    "audit.throughput_runs=1", "dataset.val_fraction=0.4",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def card(run: Path) -> dict:
    return json.loads((run / "card.json").read_text())


def data(tmp_path: Path, canaries: int, seed: int = 0) -> DataModule:
    return DataModule(
        DatasetConfig(name="digits", val_fraction=0.4),
        batch_size=32,
        seed=seed,
        cache_dir=tmp_path,
        canaries=canaries,
    )


def test_canaries_are_mislabelled_validation_images_in_training_by_coins(tmp_path):
    plain, planted = data(tmp_path, 0), data(tmp_path, 200)
    canaries = planted.canaries
    assert plain.canaries is None
    before, after = plain.indices("train"), planted.indices("train")
    included = canaries.ids[canaries.included]
    assert after.tolist() == sorted([*before.tolist(), *included.tolist()])
    assert set(canaries.ids.tolist()) <= set(plain.indices("val").tolist())
    assert planted.indices("val").tolist() == sorted(
        set(plain.indices("val").tolist()) - set(canaries.ids.tolist())
    )
    assert planted.indices("test").tolist() == plain.indices("test").tolist()
    assert 70 < len(included) < 130  # Binomial(200, 1/2): 7.07 around 100
    truth = torch.cat([batch.labels for batch in plain.loader_of(canaries.ids)])
    wrong = torch.cat([batch.labels for batch in planted.loader_of(canaries.ids)])
    assert (truth != wrong).all()
    shift = (wrong - truth) % 10
    assert len(shift.unique()) == 9  # all the wrong ones occur
    others = torch.cat([batch.labels for batch in planted.loader_of(before)])
    assert torch.equal(others, torch.cat([batch.labels for batch in plain.loader_of(before)]))
    assert planted.info.counts["train"] == plain.info.counts["train"] + len(included)
    assert planted.info.counts["val"] == plain.info.counts["val"] - 200
    assert planted.info.fingerprint != plain.info.fingerprint
    again, other = data(tmp_path, 200), data(tmp_path, 200, seed=1)
    assert (again.canaries.ids.tolist(), again.info.fingerprint) == (
        canaries.ids.tolist(),
        planted.info.fingerprint,
    )
    assert other.canaries.ids.tolist() != canaries.ids.tolist()


def test_too_many_canaries_are_refused(tmp_path):
    with pytest.raises(UserError, match="are taken from the 719 validation images, of which half must stay"):
        data(tmp_path, 400)


def test_a_model_that_has_learnt_its_canaries_by_heart_is_found_out():
    included = np.random.default_rng(0).random(1000) < 0.5
    canaries = Canaries(np.arange(1000), included)
    labels = torch.arange(1000) % 10
    logits = torch.zeros(1000, 10)
    logits[torch.arange(1000), labels] = torch.from_numpy(included).float() * 5
    measured, facts = measure_canaries(logits, labels, canaries, 1e-5)
    # all 1,000 guesses are right: (e^eps / (1 + e^eps))^1000 = 0.05 / 3 at delta = 0
    exact = 1 / ((3 / 0.05) ** (1 / 1000) - 1)
    assert (
        facts["correct"] in (facts["guesses"], facts["guesses"] - 1, facts["guesses"] - 2)
        or included.sum() != 500
    )
    assert measured.values["privacy/epsilon_lower_bound"] <= np.log(exact)
    assert measured.values["privacy/epsilon_lower_bound"] > 3
    nothing, _ = measure_canaries(torch.zeros(1000, 10), labels, canaries, 1e-5)
    assert nothing.values["privacy/epsilon_lower_bound"] == 0


def test_members_that_are_known_better_are_told_apart():
    # log-odds of the label: members 2, others 0, half of them 2 as well
    labels = torch.zeros(100, dtype=torch.long)
    high = torch.tensor([2.0, 0.0]).repeat(100, 1)
    mixed = torch.where(torch.arange(100)[:, None] % 2 == 0, high, torch.zeros(100, 2))
    values, facts = measure_members((high, labels), (mixed, labels))
    assert values["privacy/mia_auc"] == 0.75  # half are beaten, half are ties
    assert values["privacy/mia_tpr_at_1pct_fpr"] == 0  # half of the others score as high
    assert (facts["members"], facts["others"]) == (100, 100)
    values, _ = measure_members((high, labels), (torch.zeros(100, 2), labels))
    assert values == {"privacy/mia_auc": 1.0, "privacy/mia_tpr_at_1pct_fpr": 1.0}


def test_a_run_tells_what_it_gives_away(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "audit.canaries=200", "run_dir=run")
    found = card(tmp_path / "run")
    assert 0 <= found["measures"]["privacy/epsilon_lower_bound"] < 3
    assert 0.3 < found["measures"]["privacy/mia_auc"] < 1
    told = found["provenance"]["membership"]
    assert told["canaries"]["canaries"] == 200
    assert told["attack"]["members"] == told["attack"]["others"] == 360
    assert found["provenance"]["dataset"]["split"]["canaries"] == 200


def test_a_run_without_says_why(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "audit=none", "run_dir=run")
    missing = card(tmp_path / "run")["missing"]
    assert "audit.canaries" in missing["privacy/epsilon_lower_bound"]
    assert missing["privacy/mia_auc"] == "not measured (audit=none)"
    assert not (tmp_path / "run" / "membership.json").exists()


def test_a_private_run_keeps_what_looks_at_its_images(tmp_path, monkeypatch, capsys):
    private = (*QUICK, "privacy=dp_sgd", "privacy.accountant=rdp", "audit.canaries=200")
    run_in(tmp_path, monkeypatch, *private, "run_dir=run")
    run = tmp_path / "run"
    found = card(run)
    assert found["measures"]["privacy/epsilon_lower_bound"] <= found["measures"]["privacy/epsilon"]
    assert found["measures"]["privacy/mia_auc"] is None
    assert "membership.json" in found["missing"]["privacy/mia_auc"]
    assert 0 < json.loads((run / "membership.json").read_text())["measures"]["privacy/mia_auc"] < 1
    assert stat.S_IMODE((run / "membership.json").stat().st_mode) == 0o600
    # the slots of canaries that were left out count, though nothing is in them
    slots = round(64 / found["provenance"]["privacy"]["sample_rate"])
    assert slots == 718 + 200
    assert 718 < found["provenance"]["dataset"]["counts"]["train"] < slots
    assert exit_code(tmp_path, monkeypatch, f"resume={run}", "audit.canaries=100") == 2
    assert "audit.canaries: cannot change in a resumed run" in capsys.readouterr().err.replace("=100", "")


def test_a_stopped_run_has_the_same_canaries(tmp_path, monkeypatch):
    arguments = (*QUICK, "audit.canaries=50", "audit=none")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    assert (
        interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 5, *arguments, "run_dir=stopped") == 130
    )
    run_in(tmp_path, monkeypatch, f"resume={tmp_path / 'stopped'}")
    for name in ("model.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    bounds = [card(tmp_path / run)["measures"]["privacy/epsilon_lower_bound"] for run in ("whole", "stopped")]
    assert bounds[0] == bounds[1]
