"""The small trial before the big one: which jobs `experiment=first_steps` makes of what the user typed."""

from __future__ import annotations

import json

import pytest
from driving import SMALL, exit_code, run_in, runs_in
from hydra.core.utils import JobReturn, JobStatus

from effvit_train.errors import UserError
from effvit_train.sweep.launchers import SweepLauncher
from effvit_train.sweep.steps import combinations, expand, merge

STEPS = {
    "baseline": ["compress=none"],
    "prune": ["compress=prune"],
    "private": ["compress=none", "model=vit_scatter", "recipe=dp", "privacy=dp_sgd"],
}


def test_every_combination_of_what_was_typed():
    assert combinations(["seed=1,2", "dataset=digits", "model=vit_s,vit_ti", "'a=[1,2]'".strip("'")]) == [
        ["seed=1", "dataset=digits", "model=vit_s", "a=[1,2]"], ["seed=1", "dataset=digits", "model=vit_ti", "a=[1,2]"],
        ["seed=2", "dataset=digits", "model=vit_s", "a=[1,2]"], ["seed=2", "dataset=digits", "model=vit_ti", "a=[1,2]"],
    ]  # fmt: skip
    assert combinations(["seed=range(1,3)"]) == [["seed=1"], ["seed=2"]]
    with pytest.raises(UserError, match=r"recipe\.lr=interval\(0,1\): has no end of values"):
        combinations(["recipe.lr=interval(0,1)"])


def test_settings_stay_where_they_make_sense():
    typed = ["compress.prune.target.macs=0.3", "privacy.epsilon=3", "+model.args.depth=2", "recipe.lr=0.01", "seed=1",
             "model=vit_s", "trainer.max_epochs=2"]  # fmt: skip
    assert merge(typed, STEPS["baseline"]) == [*typed[2:], "compress=none"]
    assert merge(typed, STEPS["prune"]) == [typed[0], *typed[2:], "compress=prune"]
    assert merge(typed, STEPS["private"]) == [typed[1], "seed=1", "trainer.max_epochs=2", *STEPS["private"]]
    assert merge(["compress.prune.start=0.2"], ["compress=[distill,prune]"])[0] == "compress.prune.start=0.2"


def test_each_job_once_step_by_step():
    jobs = expand(STEPS, [["model=vit_s", "seed=1"], ["model=vit_ti", "seed=1"]])
    assert [step for step, _ in jobs] == ["baseline", "baseline", "prune", "prune", "private"]
    assert jobs[-1][1] == ["seed=1", *STEPS["private"]]
    with pytest.raises(UserError, match=r"compress=distill: is what the steps of x set"):
        expand(STEPS, [["compress=distill"]], name="x")


@pytest.fixture
def launched(monkeypatch):
    """The jobs that the launcher is given, none of which runs."""
    jobs: list[str] = []

    def launch(self, job_overrides, initial_job_idx):
        assert initial_job_idx == len(jobs)
        jobs.extend(" ".join(overrides) for overrides in job_overrides)
        done = JobReturn(status=JobStatus.COMPLETED)
        done._return_value = None
        return [done] * len(job_overrides)

    monkeypatch.setattr(SweepLauncher, "launch", launch)
    return jobs


def test_the_set_with_three_seeds_and_without_m(launched, tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, "experiment=first_steps")
    scatter = "compress=none model=vit_scatter recipe=dp"
    sides = [
        "compress=none", "compress=distill", "compress=prune", "compress=[distill,prune]", f"{scatter} privacy=none",
        f"{scatter} privacy=dp_sgd",
    ]  # fmt: skip
    assert launched == [f"seed={seed} {side}" for side in sides for seed in (1, 2, 3)]
    out = capsys.readouterr().out
    assert "first_steps: 18 runs: baseline, distill, prune, both, open, private; below runs/sweeps/" in out


def test_what_is_typed_goes_to_every_step(launched, tmp_path, monkeypatch, capsys):
    run_in(
        tmp_path, monkeypatch, "-m", "experiment=first_steps", "dataset=fashion_mnist", "seed=7", "run_dir=mine",
        "compress.prune.target.macs=0.3", "hydra.sweeper.only=[prune,private]", "privacy.epsilon=3",
    )  # fmt: skip
    assert launched == [
        "dataset=fashion_mnist seed=7 compress.prune.target.macs=0.3 compress=prune",
        "dataset=fashion_mnist seed=7 privacy.epsilon=3 compress=none model=vit_scatter recipe=dp privacy=dp_sgd",
    ]
    assert (tmp_path / "mine" / "multirun.yaml").is_file()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["experiment=first_steps", "compress=prune"],
            "compress=prune: is what the steps of first_steps set",
        ),
        (["experiment=first_steps", "hydra.sweeper.only=[distil]"], "is no step; did you mean 'distill'"),
        (["experiment=first_steps", "recipe.lrr=1"], "recipe.lrr: unknown key; did you mean recipe.lr"),
        (
            ["-m", "experiment=first_steps,first_steps", "trainer.fast_dev_run=true"],
            "experiment=first_steps: is a set of runs, not one",
        ),
    ],
)
def test_what_is_not_possible_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    assert exit_code(tmp_path, monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert runs_in(tmp_path) == []


def test_other_commands_refuse_the_set(tmp_path, monkeypatch, capsys):
    from effvit_train import cli

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(["cost", "experiment=first_steps"])
    assert caught.value.code == 2
    assert "is a set of runs, not one" in capsys.readouterr().err


def test_a_set_of_the_users_own(launched, tmp_path, monkeypatch):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "two.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/sweeper: steps\n  - _self_\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    name: two\n    seeds: [5]\n"
        "    steps: {a: [recipe.lr=0.1], b: [recipe.lr=0.2]}\n"
    )
    run_in(tmp_path, monkeypatch, "--config-dir", "mine", "experiment=two")
    assert launched == ["seed=5 recipe.lr=0.1", "seed=5 recipe.lr=0.2"]


@pytest.mark.slow
def test_the_cards_of_a_set_are_those_of_ordinary_runs(tmp_path, monkeypatch, no_probe):
    run_in(
        tmp_path, monkeypatch, "experiment=first_steps", "hydra.sweeper.only=[baseline,prune]", "seed=1", *SMALL,
        "trainer.max_epochs=2", "logger=none", "audit=none", "compress.prune.calibration=16", "run_dir=set",
    )  # fmt: skip
    cards = [json.loads((run / "card.json").read_text())["run"] for run in runs_in(tmp_path / "set")]
    assert [card["compress"] for card in cards] == [[], ["prune"]]
    assert "experiment=first_steps" not in cards[0]["overrides"]
    assert cards[1]["overrides"][-1] == "compress=prune"
    assert "compress.prune.calibration=16" not in cards[0]["overrides"]
