"""Trials as processes: what is read, what is stopped, what is taken up again, what has failed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import fake_train
import pytest
from studies import definition

from effvit_train.runs import RunDir, RunState
from effvit_train.search import process
from effvit_train.search.objectives import make_objectives
from effvit_train.search.process import TrainedTrial, trial_environment
from effvit_train.search.results import show_results, write_results
from effvit_train.search.stopping import Finished, hopeless
from effvit_train.search.study import LEFT, Outcome, SharedStudy

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["quality/accuracy", "cost/macs"]


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """`trial(lr, ...)` adds a trial with that learning rate to one study; returns its outcome."""
    monkeypatch.setattr(process, "training_command", lambda: [sys.executable, fake_train.__file__])
    monkeypatch.setattr(process, "_LOOK", 0.02)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    count = [0]

    def run(lr, *fixed, macs=100, stopped=lambda: False, **sweep):
        count[0] += 1
        settings = {
            "objectives": KEYS,
            "space": {"recipe.lr": {"choices": [str(lr)]}},
            "sampler": "random",
            **sweep,
        }
        study = SharedStudy(tmp_path, definition(count[0], **settings))
        study.definition = study.definition.__class__(
            **{**vars(study.definition), "fixed": (f"macs={macs}", *fixed)}
        )
        train = TrainedTrial(study, environment, stopped, lambda line: None)
        monkeypatch.setattr(train, "known_costs", lambda turn: {"cost/macs": float(macs)})
        turn = study.take()
        outcome = train(turn)
        study.finish(turn, outcome)
        run.study = study
        return outcome

    return run


@pytest.fixture(autouse=True)
def _one_choice(monkeypatch):
    """The fake's learning rate is the trial's only value, and not the same in all trials."""
    from effvit_train.search.space import Dimension

    monkeypatch.setattr(Dimension, "suggest", lambda self, trial: self.choices[0])


def test_quality_is_read_on_validation_images_and_cost_from_the_card(trial):
    outcome = trial(0.75)
    assert outcome.state == "complete"
    assert outcome.values == [0.75, 100.0]  # the card's accuracy, on test images, is 0.123


def test_a_hopeless_trial_is_stopped_and_can_be_resumed(trial, tmp_path):
    for lr in (0.8, 0.9, 1.0):
        trial(lr)
    outcome = trial(0.5, "pause=0.1")
    assert outcome.state == "pruned"
    # at half of training a straight line is at half its end: 0.25 against the median of 0.4, 0.45, 0.5
    assert outcome.reason.startswith(
        "stopped at 50% of training: quality/accuracy 0.25 against 0.45, the median of 3 trials that cost no more"
    )
    state = RunState.read(tmp_path / "3" / "state.json")
    assert state.status == "abandoned"
    assert 5 <= state.epochs < 10
    content = write_results(trial.study)
    assert [row["state"] for row in content["trials"]] == ["complete"] * 3 + ["pruned"]
    assert content["trials"][3]["reason"] == outcome.reason
    assert content["front"] == [2]


def test_a_cheaper_trial_is_not_stopped_for_being_less_accurate(trial):
    for lr in (0.8, 0.9, 1.0):
        trial(lr)
    outcome = trial(0.5, "pause=0.05", macs=99)
    assert (outcome.state, outcome.values) == ("complete", [0.5, 99.0])


def test_without_prune_after_nothing_is_stopped(trial):
    for lr in (0.8, 0.9, 1.0):
        trial(lr, prune_after=None)
    assert trial(0.5, "pause=0.05", prune_after=None).state == "complete"


def test_a_process_that_is_killed_is_taken_up_in_its_own_directory(trial, tmp_path):
    outcome = trial(0.75, "dies=4")
    assert (outcome.state, outcome.values) == ("complete", [0.75, 100.0])
    assert RunState.read(tmp_path / "0" / "state.json").resumes == 1


def test_a_refused_combination_fails_with_its_line(trial):
    outcome = trial(13)
    assert (outcome.state, outcome.reason) == ("failed", "recipe.lr=13: must be less; e.g. 1e-3")


def test_a_worker_that_is_asked_to_end_leaves_its_trial_to_others(trial, tmp_path):
    asked = []

    def stopped():
        asked.append(RunDir(tmp_path / "0").metrics.exists())
        return asked[-1]

    assert trial(0.75, "pause=0.1", stopped=stopped).state == LEFT
    assert RunState.read(tmp_path / "0" / "state.json").status == "interrupted"
    assert trial.study.study.get_trials()[0].state.name == "RUNNING"
    outcome = trial(0.75)  # the next worker takes it up; it does not begin another
    assert outcome.values == [0.75, 100.0]
    assert RunState.read(tmp_path / "0" / "state.json").resumes == 1


def test_budgets_decide_what_is_on_the_front(trial):
    budgets = ["cost/macs<=50"]
    assert dict(trial(0.9, budgets=budgets).excess) == {"cost/macs<=50": 50.0}
    trial(0.1, macs=50, budgets=budgets)
    assert write_results(trial.study)["front"] == [1]


def test_the_list_at_the_end(trial, capsys):
    from rich.console import Console

    trial(0.9)
    trial(0.5, macs=50)
    trial(0.4, macs=70)
    content = write_results(trial.study)
    show_results(trial.study, content, Console(width=200))
    shown = capsys.readouterr().out
    rows = [line.split()[:3] for line in shown.splitlines() if "recipe.lr=" in line]
    assert rows == [["0", "0.9", "100"], ["1", "0.5", "50"]]
    assert "3 of 3 trials: 3 complete" in shown
    assert "quality/accuracy: on validation images, which chose; the test's are on the cards" in shown
    assert "--x cost/macs --y quality/accuracy" in shown
    written = json.loads((trial.study.directory / "study.json").read_text())
    assert written["front"] == [0, 1]
    assert written["trials"][2]["values"] == {"quality/accuracy": 0.4, "cost/macs": 70.0}


LINES = [[(k / 10, end * k / 10) for k in range(1, 11)] for end in (0.8, 0.9, 1.0)]


def rivals(macs=(1.0, 1.0, 1.0)):
    return [
        Finished({"quality/accuracy": line[-1][1], "cost/macs": cost}, {"quality/accuracy": line})
        for line, cost in zip(LINES, macs, strict=True)
    ]


def judge(points, *, macs=1.0, after=0.5, finished=None):
    return hopeless(
        make_objectives(KEYS), {} if macs is None else {"cost/macs": macs}, {"quality/accuracy": points},
        rivals() if finished is None else finished, after=after,
    )  # fmt: skip


def test_the_median_rule_by_hand():
    # at half of training the rivals have 0.40, 0.45 and 0.50: the median is 0.45
    assert judge([(0.5, 0.44)]) is not None
    assert judge([(0.5, 0.45)]) is None
    assert judge([(0.3, 0.46), (0.5, 0.1)]) is None  # the best so far counts
    assert judge([(0.4, 0.1)]) is None  # too early
    assert judge([(1.0, 0.1)]) is None  # nothing left to save
    assert judge([(0.5, 0.1)], macs=None) is None  # its cost is not known
    assert judge([(0.5, 0.1)], macs=0.9) is None  # all rivals cost more
    assert judge([(0.5, 0.1)], finished=rivals((1, 1, 1.1))) is None  # two rivals are too few
    assert judge([]) is None


@pytest.mark.parametrize(
    ("prune", "left"),
    [
        ("", {}),
        ("compress: {prune: {target: {macs: null, params: null, latency_ms: null}}}", {"cost/macs": 0.5}),
        ("compress: {prune: {target: {macs: 0.3, params: null}}}", {"cost/macs": 0.3}),
        ("compress: {prune: {target: {params: 0.4}}, distill: {}}", {"cost/params": 0.4}),
    ],
)
def test_what_pruning_leaves_is_known_before(tmp_path, prune, left):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(f"seed: 0\n{prune}\n")
    assert process._left_by_pruning(tmp_path) == left


@pytest.mark.slow
@pytest.mark.long
def test_costs_are_counted_before_the_end(tmp_path):
    study = SharedStudy(
        tmp_path, definition(1, objectives=KEYS, space={"model.args.depth": {"choices": [2]}})
    )
    train = TrainedTrial(study, {**os.environ, "PYTHONPATH": str(ROOT)}, lambda: False, print)
    turn = study.take()
    dense = train.known_costs(turn)["cost/macs"]
    # ViT 64 wide, 2 deep, patch 2 on 8x8: 16 patches and a class token
    tokens, width, hidden = 17, 64, 256
    block = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    assert dense == 16 * (2 * 2 * 1) * width + 2 * block + width * 10
    (turn.run_dir / ".hydra").mkdir(parents=True)
    pruned = "compress: {prune: {target: {macs: 0.25}}}\n"
    (turn.run_dir / ".hydra" / "config.yaml").write_text(pruned)
    assert train.known_costs(turn) == {"cost/macs": 0.25 * dense}
    study.finish(turn, Outcome(LEFT))


def test_slurm_and_cores_and_gpus_of_a_trial(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    found = [trial_environment(index, 3) for index in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["4", "5", "4"]
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}
    assert not any(key.startswith("SLURM_") for key in found[0])
    alone = trial_environment(0, 1)
    assert alone["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert "OMP_NUM_THREADS" not in alone
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert trial_environment(0, 3)["OMP_NUM_THREADS"] == "1"
