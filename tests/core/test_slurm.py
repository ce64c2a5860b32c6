"""Slurm without Slurm: a `scontrol` of the test's own says what it is told, and what was asked is read back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from effvit_train import slurm
from effvit_train.runs import RunState
from effvit_train.signals import SIGNALS

RUNNING = """JobId=17 JobName=vit
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
"""
# what Slurm 22.05 says to a process that it has sent SIGTERM
CANCELLED = RUNNING.replace("RUNNING", "COMPLETING")  # scancel, or the time limit itself
REQUEUED = CANCELLED.replace("Restarts=0", "Restarts=1")  # scontrol requeue, preemption without a grace time
ARGUMENTS = ["seed=3", "model=vit_s"]


@pytest.fixture
def in_job(tmp_path, monkeypatch):
    """In job 17, started for the first time, in an empty directory."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.chdir(tmp_path)


class Scontrol:
    """Puts `scontrol` on the PATH; prints `shows` when asked for a job, and fails to requeue on `refuses`."""

    def __init__(self, directory: Path, shows: str, *, refuses: bool = False) -> None:
        self._calls = directory / "calls"
        program = directory / "scontrol"
        (directory / "shows").write_text(shows)
        program.write_text(
            f'#!/bin/sh\necho "$*" >> {self._calls}\n'
            f'if [ "$1" = show ]; then cat {directory}/shows; else exit {int(refuses)}; fi\n'
        )
        program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def scontrol(in_job, tmp_path_factory, monkeypatch):
    """Makes a `Scontrol`; signal handlers are put back afterwards."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    directory = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    yield lambda shows, **options: Scontrol(directory, shows, **options)
    for signum, handler in before.items():
        signal.signal(signum, handler)


def begun(path: str, job: str | None = "17") -> Path:
    """A run directory in which a run of `job` has begun."""
    run = Path(path)
    run.mkdir(parents=True)
    state = RunState.new()
    state.slurm_job = job
    state.write(run / "state.json")
    return run


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_running_batch_job_is_queued_again_and_then_nothing_disturbs_its_end(scontrol, signum):
    asked = scontrol(RUNNING)
    assert slurm.queue_again(signum)
    assert asked.calls == ["show job 17", "requeue 17"]
    os.kill(os.getpid(), signal.SIGTERM)  # as `scontrol requeue` does: we are still here


@pytest.mark.parametrize(
    "shows",
    [
        CANCELLED,
        RUNNING.replace("Requeue=1", "Requeue=0"),  # sbatch --no-requeue
        RUNNING.replace("BatchFlag=1", "BatchFlag=0"),  # salloc, srun
        "",
    ],
    ids=["cancelled", "no-requeue", "interactive", "unknown"],
)
def test_other_jobs_end(scontrol, shows):
    asked, handler = scontrol(shows), signal.getsignal(signal.SIGTERM)
    assert not slurm.queue_again(signal.SIGTERM)
    assert asked.calls == ["show job 17"]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_batch_job_that_slurm_had_to_launch_twice_is_one_too(scontrol):
    scontrol(RUNNING.replace("BatchFlag=1", "BatchFlag=2"))
    assert slurm.queue_again(signal.SIGUSR1)


def test_what_slurm_has_queued_already_is_not_asked_for_again(scontrol, monkeypatch):
    asked = scontrol(REQUEUED)
    assert slurm.queue_again(signal.SIGTERM)
    assert asked.calls == ["show job 17"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # that restart is the present one: this is a scancel
    assert not slurm.queue_again(signal.SIGTERM)


def test_where_slurm_refuses_the_run_ends_and_signals_are_heard_again(scontrol):
    asked, handler = scontrol(RUNNING, refuses=True), signal.getsignal(signal.SIGTERM)
    assert not slurm.queue_again(signal.SIGUSR1)
    assert asked.calls == ["show job 17", "requeue 17"]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_ctrl_c_and_submitit_and_no_job_at_all_ask_nothing(scontrol, monkeypatch):
    asked = scontrol(RUNNING)
    assert not slurm.queue_again(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setenv("SUBMITIT_EXECUTOR", "slurm")
        assert not slurm.queue_again(signal.SIGUSR2)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not slurm.queue_again(signal.SIGTERM)
    assert asked.calls == []


def test_without_scontrol_the_run_ends(in_job, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.queue_again(signal.SIGTERM)


def test_one_element_of_an_array_leaves_the_others_alone(scontrol, monkeypatch):
    """The element with the array's own job id: `scontrol requeue 17` would take all of them."""
    asked = scontrol(RUNNING)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert slurm.queue_again(signal.SIGUSR1)
    assert asked.calls == ["show job 17_0", "requeue 17_0"]


def test_a_new_run_is_named_after_the_job_and_the_command(in_job, monkeypatch):
    # printf 'seed=3\0model=vit_s' | sha256sum | cut -c-4
    assert slurm.run_id(ARGUMENTS, "ab12") == "job17-6760"
    assert slurm.run_id(["seed=4", "model=vit_s"], "ab12") != "job17-6760"
    monkeypatch.setenv("SLURM_JOB_ID", "18")  # another element of an array
    assert slurm.run_id(ARGUMENTS, "ab12") == "job18-6760"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm.run_id(ARGUMENTS, "ab12") == "ab12"


def test_the_run_is_found_by_its_name_after_a_restart_only(in_job, monkeypatch):
    run = begun("runs/digits-vit_s-plain/2026-01-02_03-04-05_job17-6760")
    begun("runs/digits-vit_s-plain/2026-01-02_03-04-05_job18-6760")
    begun("runs/digits-vit_s-plain/2026-01-02_03-04-06_job17-0000")  # another command of this job
    Path("runs/digits-vit_s-plain/2026-01-02_03-04-07_job17-6760").mkdir()  # nothing has begun there
    assert slurm.run_to_continue(ARGUMENTS) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert slurm.run_to_continue(ARGUMENTS) == run
    assert slurm.run_to_continue(["seed=4", "model=vit_s"]) is None
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm.run_to_continue(ARGUMENTS) is None


@pytest.mark.parametrize(
    "beside", [["hydra.verbose=true"], ["hydra/job_logging=none"], ["--config-dir=conf"], ["-cd", "conf"]]
)
def test_what_hydra_keeps_for_itself_is_not_part_of_the_name(in_job, monkeypatch, beside):
    run = begun("runs/name/2026-01-02_03-04-05_job17-6760")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.run_to_continue([*beside, *ARGUMENTS]) == run


def test_a_deleted_key_is_part_of_the_name(in_job, monkeypatch):
    run = begun(f"runs/name/2026-01-02_03-04-05_{slurm.run_id([*ARGUMENTS, '~resume'], '')}")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.run_to_continue([*ARGUMENTS, "~resume"]) == run
    assert slurm.run_to_continue(ARGUMENTS) is None


def test_a_given_directory_is_gone_on_with_when_this_job_began_there(in_job, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    mine = begun("mine")
    begun("theirs", "16")
    begun("by hand", None)
    Path("damaged").mkdir()
    Path("damaged/state.json").write_text(json.dumps({"status": "running", "unknown": 1}))
    assert slurm.run_to_continue(["run_dir=mine", "seed=3"]) == mine
    assert slurm.run_to_continue(["run_dir='mine'"]) == mine
    for other in ("theirs", "by hand", "damaged", "nowhere"):
        assert slurm.run_to_continue([f"run_dir={other}", "seed=3"]) is None
