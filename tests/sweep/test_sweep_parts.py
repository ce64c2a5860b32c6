"""The parts of a sweep, without training: what is in `sweep.json`, how cores are shared, what a status means."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from effvit_train import cli
from effvit_train.config import TrainerConfig
from effvit_train.errors import UserError
from effvit_train.lock import RunLock
from effvit_train.runs import RunDir, RunState
from effvit_train.sweep import cores, status
from effvit_train.sweep.cluster import fit_to_jobs
from effvit_train.sweep.plan import Sweep, SweepJob, retry_command
from effvit_train.sweep.queue import active
from effvit_train.sweep.settings import ParallelSettings, SerialSettings, SlurmSettings, settings_of

SERIAL = {"_target_": SerialSettings._target_}
NOW = datetime.now(UTC)


def sweep_of(
    path: Path, *states: str, slurm: bool = False, launcher=None, refused: str | None = None
) -> Sweep:
    """A sweep by hand: job n is in the n-th state; each began 100 s ago."""
    jobs = []
    for number, state in enumerate(states):
        jobs.append(
            SweepJob(number, ["audit=none", f"seed={number}"], refused=refused if state == "refused" else None,
                     slurm=f"17_{number}" if slurm else None)
        )  # fmt: skip
        if state != "refused":
            started = (NOW - timedelta(seconds=100)).isoformat()
            RunState(state, f"id{number}", started, epochs=2).write(RunDir(path / str(number)).state)
    sweep = Sweep(path.resolve(), launcher or SERIAL, ["train"], jobs)
    sweep.write()
    return sweep


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A `squeue` that prints what the test writes."""
    answer = tmp_path / "answer"
    answer.write_text("")
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return answer


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    sweep = sweep_of(tmp_path / "s", "done", "queued")
    assert Sweep.read(tmp_path / "s") == sweep
    assert sweep.differs(sweep.jobs[1]) == "seed=1"
    assert sweep.start(sweep.jobs[1]) == ["train", f"resume={tmp_path / 's' / '1'}"]


@pytest.mark.parametrize("content", ["{", "[]", '{"jobs": [{"bogus": 1}], "launcher": {}, "command": []}'])
def test_what_is_no_sweep_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(UserError, match="no sweep at"):
        Sweep.read(tmp_path)
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        Sweep.read(tmp_path)


def test_the_retry_command_is_as_one_types_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert retry_command(tmp_path / "my sweep", [3, 5]) == "effvit sweep retry 'my sweep' 3 5"


def test_statuses_of_a_sweep_that_nobody_launches_any_more(tmp_path):
    sweep = sweep_of(tmp_path, "done", "queued", "running", "interrupted", "failed", "refused", refused="no")
    rows = status.look(sweep)
    assert [row.status for row in rows] == [
        "done",
        "not started",
        "killed",
        "interrupted",
        "failed",
        "failed",
    ]
    assert [row.retry for row in rows] == [False, True, True, True, True, False]
    assert rows[5].error == "no"


def test_while_it_is_launched_a_job_is_queued(tmp_path):
    sweep = sweep_of(tmp_path, "queued")
    with RunLock(tmp_path):
        (row,) = status.look(sweep)
    assert (row.status, row.retry) == ("queued", False)


def test_what_slurm_will_start_again_is_queued_and_not_retried(tmp_path, queue):
    sweep = sweep_of(
        tmp_path / "s", "queued", "queued", "interrupted", "running", "interrupted", "queued", slurm=True
    )
    queue.write_text("17_0|PENDING\n17_1|RUNNING\n17_2|PENDING\n17_3|PENDING\n99|RUNNING\n")
    rows = status.look(sweep)
    assert [row.status for row in rows] == [
        "queued",
        "running",
        "queued",
        "queued",
        "interrupted",
        "not started",
    ]
    assert [row.retry for row in rows] == [False, False, False, False, True, True]
    assert "left no word" in str(rows[5].error)


def test_while_slurm_is_silent_nothing_has_ended(tmp_path, queue):
    Path(queue.parent / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert active(["17_0"]) is None
    sweep = sweep_of(tmp_path / "s", "queued", slurm=True)
    assert status.look(sweep)[0].status == "queued"


def test_a_straggler_runs_for_more_than_twice_the_median(tmp_path, monkeypatch):
    sweep = sweep_of(tmp_path, "done", "done", "done", "running", "running")
    for number, seconds in enumerate((10, 30, 20)):  # median 20
        file = RunDir(tmp_path / str(number)).state
        begun = datetime.fromisoformat(RunState.read(file).started).timestamp()
        os.utime(file, (begun + seconds, begun + seconds))
    state = RunState.read(RunDir(tmp_path / "4").state)
    state.started = (datetime.now(UTC) - timedelta(seconds=35)).isoformat()  # under 40
    state.write(RunDir(tmp_path / "4").state)
    with RunLock(tmp_path / "3"), RunLock(tmp_path / "4"):
        rows = status.look(sweep)
    assert status.median_of_done(rows) == pytest.approx(20, abs=0.01)
    assert [row.straggler for row in rows] == [False, False, False, True, False]
    assert status.median_of_done(rows[1:]) is None  # two say nothing


def test_the_commands_tell_and_refuse(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep_of(tmp_path / "s", "done", "failed", "refused", refused="it cannot be")
    cli.main(["sweep", "status", "s"])
    told = capsys.readouterr().out
    assert "3 jobs: 1 done, 2 failed" in told
    assert "job 2: it cannot be" in told
    assert told.splitlines()[-1] == "to go on with what is not done:  effvit sweep retry s"
    cli.main(["sweep", "status", "s", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [job["status"] for job in found["jobs"]] == ["done", "failed", "failed"]
    assert found["retry"] == "effvit sweep retry s"
    for arguments, line in (
        (["status", "nowhere"], "error: no sweep at nowhere"),
        (["retry", "s", "7"], "error: there is no job 7; its jobs are 0 to 2"),
        (["retry", "s", "0"], "error: job 0 cannot be started: it is done"),
        (["retry", "s", "2"], "error: job 2 cannot be started: it cannot be"),
        (
            ["retry", "s", "hydra.launcher.jobs=2"],
            "error: hydra.launcher.jobs=2: cannot be changed by a retry",
        ),
        (["retry", "s", "seed=2"], "error: seed=2: cannot be changed by a retry"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["sweep", *arguments])
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith(line)


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(cores, "cores", lambda: 8)
    cpu = TrainerConfig(accelerator="cpu")
    assert cores.share(ParallelSettings(), [cpu] * 20) == cores.Shares(8, 1)
    assert cores.share(ParallelSettings(), [cpu] * 3) == cores.Shares(3, 2)  # 8 // 3
    assert cores.share(ParallelSettings(jobs=2), [cpu] * 20) == cores.Shares(2, 4)
    assert cores.share(ParallelSettings(jobs=2, threads=3), [cpu] * 20) == cores.Shares(2, 3)
    assert cores.share(ParallelSettings(), [TrainerConfig(accelerator="cpu", devices=4)] * 2) == cores.Shares(
        1, 8
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert cores.share(ParallelSettings(), [TrainerConfig()] * 9) == cores.Shares(2, 4, ("2", "5"))
    assert cores.share(ParallelSettings(), [cpu] * 9).gpus == ()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores.share(ParallelSettings(jobs=2), [cpu] * 9).threads == 1


class _Config:
    def __init__(self, **trainer) -> None:
        self.trainer = TrainerConfig(**trainer)


def test_slurm_takes_machines_and_processes_from_the_jobs():
    fitted = fit_to_jobs(SlurmSettings(), [_Config(num_nodes=2, devices=4)] * 3)
    assert (fitted.nodes, fitted.tasks_per_node) == (2, 4)
    with pytest.raises(UserError, match=r"hydra.launcher.nodes=1: does not agree with trainer.num_nodes=2"):
        fit_to_jobs(SlurmSettings(nodes=1), [_Config(num_nodes=2)])
    with pytest.raises(UserError, match=r"trainer.devices: the elements of a job array have equal resources"):
        fit_to_jobs(SlurmSettings(), [_Config(devices=1), _Config(devices=2)])
    with pytest.raises(UserError, match=r"trainer.devices=auto"):
        fit_to_jobs(SlurmSettings(), [_Config(devices="auto")])


def test_settings_are_checked():
    assert settings_of({"_target_": ParallelSettings._target_, "jobs": 3}) == ParallelSettings(jobs=3)
    with pytest.raises(UserError, match=r"hydra.launcher.jobs=0: must be at least 1"):
        settings_of({"_target_": ParallelSettings._target_, "jobs": 0})
    with pytest.raises(
        UserError, match=r"hydra.launcher.signal_delay_s=120: must be less than the time limit"
    ):
        settings_of({"_target_": SlurmSettings._target_, "timeout_min": 2})
