"""Studies that several workers share: nothing lost, nothing doubled, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import studies
from studies import CORNER, TRUE_HYPERVOLUME, definition, evaluate, hypervolume, zdt1

from effvit_train.errors import UserError
from effvit_train.lock import RunLock
from effvit_train.search.study import COMPLETE, FAILED, LEFT, PRUNED, STARTS, Outcome, SharedStudy
from effvit_train.search.worker import work

ROOT = Path(__file__).resolve().parents[2]


def trials_of(study: SharedStudy):
    return study.study.get_trials(deepcopy=False)


def workers(directory: Path, trials: int, sampler: str, stuck_at: dict[str, int]):
    """Start workers by name; returns their processes."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {
        name: subprocess.Popen(
            [sys.executable, studies.__file__, str(directory), str(trials), sampler, name, str(at)],
            env={**os.environ, "PYTHONPATH": path},
        )
        for name, at in stuck_at.items()
    }


def search_with_two_killed(directory: Path, trials: int, sampler: str) -> SharedStudy:
    """Four workers, two killed within a trial; the two others end the study."""
    # these two first: the others could end the study before they have started
    processes = workers(directory, trials, sampler, {"c": 2, "d": 3})
    stuck = [directory / "stuck-c", directory / "stuck-d"]
    try:
        while not all(path.exists() and path.read_text() for path in stuck):
            assert all(process.poll() is None for process in processes.values())
            time.sleep(0.02)
        processes |= workers(directory, trials, sampler, {"a": -1, "b": -1})
        study = SharedStudy(directory, definition(trials))
        lost = [int(path.read_text()) for path in stuck]
        before = {number: dict(trials_of(study)[number].params) for number in lost}
        for name in "cd":
            processes[name].kill()
        assert processes["c"].wait() == -signal.SIGKILL
        assert processes["d"].wait() == -signal.SIGKILL
        assert [processes[name].wait(timeout=240) for name in "ab"] == [0, 0]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    found = trials_of(study)
    assert [trial.number for trial in found] == list(range(trials))
    assert {trial.state.name for trial in found} == {"COMPLETE"}
    notes = [path.read_text().split() for path in directory.glob("evaluated-*")]
    assert sorted(int(number) for note in notes for number in note) == list(range(trials))
    for trial in found:
        assert trial.values == pytest.approx(zdt1(trial.params), rel=1e-12)
    assert {number: dict(found[number].params) for number in lost} == before
    assert len(set(lost)) == 2
    return study


def test_no_trial_is_lost_or_doubled_when_two_of_four_workers_are_killed(tmp_path):
    search_with_two_killed(tmp_path, 30, "random")


@pytest.mark.long
def test_the_front_of_zdt1_reaches_its_hypervolume_with_two_of_four_workers_killed(tmp_path):
    study = search_with_two_killed(tmp_path, 400, "tpe")
    points = [trial.values for trial in study.study.best_trials]
    share = hypervolume(points) / TRUE_HYPERVOLUME
    print(f"hypervolume {share:.4f} of ZDT1's front")
    assert share >= 0.95


def test_the_hypervolume_of_the_tests_is_an_area():
    # two rectangles by hand: (1.1 - 0.1)(1.1 - 0.6) + (1.1 - 0.6)(0.6 - 0.1) = 0.75
    assert hypervolume([(0.1, 0.6), (0.6, 0.1), (0.7, 0.7)]) == pytest.approx(0.75)
    first = np.linspace(0, 1, 20_001)
    assert hypervolume(zip(first, 1 - np.sqrt(first), strict=True)) == pytest.approx(
        TRUE_HYPERVOLUME, abs=1e-3
    )
    # counted on a grid of a million cells
    points = np.random.default_rng(0).random((30, 2))
    cells = (np.arange(1000) + 0.5) * CORNER / 1000
    covered = np.zeros((1000, 1000), bool)
    for a, b in points:
        covered |= (cells[:, None] >= a) & (cells[None, :] >= b)
    assert hypervolume(points.tolist()) == pytest.approx(covered.mean() * CORNER**2, abs=3e-3)


def test_workers_with_nothing_left_end_and_never_make_more_trials(tmp_path):
    for _ in range(2):
        work(SharedStudy(tmp_path, definition(5)), evaluate)
    assert len(trials_of(SharedStudy(tmp_path, definition(5)))) == 5
    work(SharedStudy(tmp_path, definition(7)), evaluate)
    assert len(trials_of(SharedStudy(tmp_path, definition(7)))) == 7


def test_a_trial_that_somebody_has_is_given_to_nobody_else(tmp_path):
    study = SharedStudy(tmp_path, definition(2))
    first, second = study.take(), study.take()
    assert (first.number, second.number) == (0, 1)
    assert study.take() is None
    assert study.busy_here()
    study.finish(first, Outcome(LEFT))
    again = study.take()
    assert again.number == 0
    assert again.params == first.params
    assert again.overrides == first.overrides


def test_a_training_that_its_worker_has_left_behind_is_waited_for(tmp_path):
    study = SharedStudy(tmp_path, definition(1))
    turn = study.take()
    study.release(turn)  # as the kernel does for a worker that is killed
    turn.run_dir.mkdir()
    with RunLock(turn.run_dir):
        assert study.take() is None
        assert study.busy_here()
    assert study.take().number == 0


def test_what_is_drawn_depends_on_the_seed_and_the_trial_not_on_restarts(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for path in (whole, parts):
        path.mkdir()
    settings = {"sampler": "tpe", "startup": 4}
    work(SharedStudy(whole, definition(12, **settings)), evaluate)
    for count in (3, 7, 12):
        study = SharedStudy(parts, definition(count, **settings))
        work(study, evaluate)
    drawn = [[trial.params for trial in trials_of(SharedStudy(p, definition(12)))] for p in (whole, parts)]
    assert drawn[0] == drawn[1]
    other = tmp_path / "other"
    other.mkdir()
    study = SharedStudy(other, definition(1, **settings, seed=1))
    work(study, evaluate)
    assert trials_of(study)[0].params != drawn[0][0]


def test_a_trial_whose_process_dies_again_and_again_fails(tmp_path):
    for _ in range(STARTS):
        study = SharedStudy(tmp_path, definition(1))
        study.release(study.take())  # as the kernel does for a process that is killed
    work(study, evaluate)
    (trial,) = trials_of(study)
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["told"]["reason"] == "its process was killed 3 times"


def test_a_trial_that_is_stopped_on_request_may_be_as_often_as_it_likes(tmp_path):
    for _ in range(STARTS + 2):
        study = SharedStudy(tmp_path, definition(1))
        study.finish(study.take(), Outcome(LEFT))
    work(study, evaluate)
    assert trials_of(study)[0].state.name == "COMPLETE"


def test_failures_in_a_row_end_a_worker(tmp_path):
    study = SharedStudy(tmp_path, definition(50, max_failures=3))
    outcomes = iter([FAILED, FAILED, COMPLETE, FAILED, FAILED, FAILED, COMPLETE])

    def fails(turn):
        state = next(outcomes)
        return Outcome(state, zdt1(turn.params) if state == COMPLETE else [], reason="no such thing")

    with pytest.raises(
        UserError, match=r"sweep.max_failures=3: 3 trials in a row have failed, the last: no such"
    ):
        work(study, fails)
    assert len(trials_of(study)) == 6


def test_trials_beyond_the_budgets_are_not_on_the_front(tmp_path):
    study = SharedStudy(tmp_path, definition(2))
    for values, over in (([1.0, 1.0], 0.5), ([2.0, 2.0], -1.0)):
        study.finish(study.take(), Outcome(COMPLETE, values, {"latency_ms<=5": over}))
    assert [trial.number for trial in study.study.best_trials] == [1]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_cope_with_stopped_and_failed_trials_and_budgets(tmp_path, sampler):
    def mixed(turn):
        if turn.number % 3 == 0:
            return Outcome(COMPLETE, zdt1(turn.params), {"macs<=1": turn.params["x0"] - 0.5})
        return Outcome(PRUNED if turn.number % 3 == 1 else FAILED, reason="so")

    study = SharedStudy(tmp_path, definition(30, sampler=sampler, startup=3, population=4))
    work(study, mixed)
    states = [trial.state.name for trial in trials_of(study)]
    assert states == ["COMPLETE", "PRUNED", "FAIL"] * 10
    assert study.study.best_trials
    assert all(trial.params["x0"] <= 0.5 for trial in study.study.best_trials)


def test_a_database_keeps_a_study_too(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    work(SharedStudy(tmp_path, definition(3, storage=url)), evaluate)
    study = SharedStudy(tmp_path, definition(3, storage=url))
    assert [trial.state.name for trial in trials_of(study)] == ["COMPLETE"] * 3
    assert not (tmp_path / "study.journal").exists()


def test_a_database_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"sweep.storage=nosuch://u:\*\*\*@host/x: cannot be used"):
        SharedStudy(tmp_path, definition(3, storage="nosuch://u:secret@host/x"))
