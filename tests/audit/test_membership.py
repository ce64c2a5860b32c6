"""Canaries and the attack on members in real runs: planted, measured, told or kept."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import SMALL, exit_code, interrupted_run, run_in
from torch import nn

from effvit_train.audit.membership import ATTACKED, Shadows, measure_canaries, measure_members
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
    labels = torch.zeros(200, dtype=torch.long)
    inside = np.repeat([True, False], 100)
    logits = torch.zeros(200, 2)
    logits[:100, 0] = logits[100::2, 0] = 2
    values, facts = measure_members(logits, labels, inside)
    assert values["privacy/mia_auc"] == 0.75  # half are beaten, half are ties
    assert values["privacy/mia_tpr_at_1pct_fpr"] == 0  # half of the others score as high
    assert (facts["members"], facts["others"]) == (100, 100)
    logits[100:] = 0
    values, _ = measure_members(logits, labels, inside)
    assert values == dict.fromkeys(ATTACKED, 1.0)


def test_a_model_that_knows_its_images_by_heart_is_found_out_and_one_that_never_saw_them_is_not():
    generator = torch.Generator().manual_seed(4)
    images, labels = torch.randn(400, 20, generator=generator), torch.randint(4, (400,), generator=generator)
    inside = np.repeat([True, False], 200)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 4))
    stranger, facts = measure_members(model(images).detach(), labels, inside)
    low, high = facts["intervals"]["privacy/mia_auc"]
    assert low < 0.5 < high
    assert (
        abs(stranger["privacy/mia_auc"] - 0.5) < 0.06
    )  # three standard deviations of 200 against 200 would be 0.09
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):  # labels are random: there is nothing to learn but the images
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:200]), labels[:200]).backward()
        optimizer.step()
    values, facts = measure_members(model(images).detach(), labels, inside)
    assert values["privacy/mia_auc"] > 0.9
    assert facts["intervals"]["privacy/mia_auc"][0] > 0.9


def test_shadow_models_tell_hard_images_from_foreign_ones():
    """Half of the images are hard: a model that knows one is as sure of it as of an easy one that it does not."""
    rng = np.random.default_rng(0)
    count, models = 400, 4
    members = np.repeat([True, False], count // 2)
    hard = rng.random(count) < 0.5
    known = np.argsort(rng.random((models, count)), axis=0) < models // 2

    def said(inside):  # log-odds: 0 or 2, and 2 more if it was in the training
        return torch.from_numpy(
            np.where(hard, 0.0, 2.0) + 2.0 * inside + 0.3 * rng.standard_normal(inside.shape)
        )

    def two(odds):
        return torch.stack([odds, torch.zeros_like(odds)], dim=-1)

    labels = torch.zeros(count, dtype=torch.long)
    population = two(torch.from_numpy(np.where(rng.random((models + 1, 300)) < 0.5, 0.0, 2.0)))
    shadows = Shadows(two(said(known)), known, (population, torch.zeros(300, dtype=torch.long)))
    logits = two(said(members))
    alone, _ = measure_members(logits, labels, members)
    helped, facts = measure_members(logits, labels, members, shadows)
    # by confidence alone: 1 - P(other above member) = 1 - 1/4 * 1/2 ... a hard member ties with an easy other
    assert alone["privacy/mia_auc"] == pytest.approx(0.875, abs=0.03)
    assert helped["privacy/mia_auc"] > 0.95
    assert facts["lira"]["auc"] > 0.95
    assert (facts["attack"], facts["shadow_models"]) == ("RMIA, online", 4)


def test_each_attacked_image_is_in_half_of_the_shadows(tmp_path):
    settings = DatasetConfig(name="digits", val_fraction=0.4)
    whole = data(tmp_path, 0)
    members, others, known = whole.attacked(4)
    assert (len(members), len(others)) == (359, 359)  # half of 718 training images; there are 360 test images
    assert set(members.tolist()) <= set(whole.indices("train").tolist())
    assert set(others.tolist()) <= set(whole.indices("test").tolist())
    assert known.shape == (4, 718)
    assert (known.sum(axis=0) == 2).all()
    ids = np.concatenate([members, others])
    prints = {whole.info.fingerprint}
    for number in range(4):
        shadow = DataModule(settings, batch_size=32, seed=0, cache_dir=tmp_path, shadow=(number, 4))
        inside = np.isin(ids, shadow.indices("train"))
        assert inside.tolist() == known[number].tolist()
        kept = set(whole.indices("train").tolist()) - set(members.tolist())
        assert set(shadow.indices("train").tolist()) - set(ids.tolist()) == kept
        assert shadow.indices("val").tolist() == whole.indices("val").tolist()
        prints.add(shadow.info.fingerprint)
    assert len(prints) == 5


def test_a_run_tells_what_it_gives_away(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "audit.canaries=200", "run_dir=run")
    found = card(tmp_path / "run")
    assert 0 <= found["measures"]["privacy/epsilon_lower_bound"] < 3
    assert 0.3 < found["measures"]["privacy/mia_auc"] < 1
    told = found["provenance"]["membership"]
    assert told["canaries"]["canaries"] == 200
    assert told["attack"]["members"] == told["attack"]["others"] == 360
    assert "threshold" in told["attack"]["attack"]
    assert found["provenance"]["dataset"]["split"]["canaries"] == 200


def test_a_run_is_attacked_with_shadow_models_which_are_kept(tmp_path, monkeypatch, capsys):
    arguments = (*QUICK, "audit.shadow_models=2", f"cache_dir={tmp_path / 'cache'}", "compress=prune",
                 "compress.prune.round_to=2", "compress.prune.cuts=2", "compress.prune.calibration=32")  # fmt: skip
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=run")
    out = capsys.readouterr().out
    assert "shadow 1/2: training" in out
    assert "shadow 2/2: training" in out
    told = card(tmp_path / "run")["provenance"]["membership"]["attack"]
    assert (told["attack"], told["shadow_models"]) == ("RMIA, online", 2)
    shadows = sorted((tmp_path / "cache" / "shadows").glob("*/card.json"))
    assert len(shadows) == 2
    for path in shadows:  # trained as the attacked one was
        assert json.loads(path.read_text())["run"]["compress"] == ["prune"]
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=again")
    assert "shadow 1/2: vit_tiny_patch16_224, trained before" in capsys.readouterr().out


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
