"""`hydra/launcher=slurm`: one job array, submitted by submitit.

What an element runs is `python train.py resume=DIR/n`, in place of submitit's own process: a job that is
stopped saves and is queued again by `effvit_train.slurm`, exactly as a single run is, and the same command
goes on with it. submitit's own requeueing would start it over at a time limit and lose it at a preemption.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.signals import Stop
from effvit_train.slurm import MOST_RESTARTS
from effvit_train.sweep.plan import Sweep, SweepJob
from effvit_train.sweep.queue import active
from effvit_train.sweep.settings import SlurmSettings
from effvit_train.sweep.status import ENDED, Row, look

FOLDER = "slurm"  # in the sweep's directory: batch scripts and what the jobs print
_OURS = ("_target_", "wait", "poll_s", "max_num_timeout")
# What submitit calls the same on every cluster; the others are Slurm's and take a prefix.
_SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")


def fit_to_jobs(settings: SlurmSettings, configs: list[Config]) -> SlurmSettings:
    """Take from the jobs what the user left open: machines and processes.

    Raises:
        UserError: the jobs need different ones, or others than were asked for.
    """
    values = asdict(settings)
    for key, of_jobs in (("nodes", "num_nodes"), ("tasks_per_node", "devices")):
        needed = {getattr(config.trainer, of_jobs) for config in configs}
        if len(needed) > 1:
            raise UserError(
                f"the elements of a job array have equal resources, these jobs need {', '.join(map(str, needed))}",
                key=f"trainer.{of_jobs}", remedy="one sweep for each",
            )  # fmt: skip
        (wanted,) = needed
        given = values[key]
        if given is None and wanted == "auto":
            raise UserError(
                "does not tell how many processes a job needs", key="trainer.devices", value=wanted,
                remedy="give a number",
            )  # fmt: skip
        if given is not None and wanted not in (given, "auto"):
            raise UserError(
                f"does not agree with trainer.{of_jobs}={wanted}", key=f"hydra.launcher.{key}", value=given,
                remedy=f"leave it out, or set trainer.{of_jobs}={given}",
            )  # fmt: skip
        values[key] = wanted if given is None else given
    return SlurmSettings(**values)


def submit(sweep: Sweep, jobs: list[SweepJob], settings: SlurmSettings) -> Sweep:
    """Submit jobs as one array; returns the sweep, which knows their names and logs.

    Raises:
        UserError: submitit or Slurm is not there, or Slurm refuses the job.
    """
    submitit = _submitit()
    folder = sweep.path / FOLDER
    folder.mkdir(exist_ok=True)
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=0)
    executor.update_parameters(**_parameters(settings, sweep))
    try:
        # `exec`: submitit's process, its signal handlers and its name for the job are gone
        handles = executor.map_array(
            os.execvp, ["env"] * len(jobs), [_element(sweep, job, settings) for job in jobs]
        )
    except Exception as error:
        if type(error).__name__ not in ("FailedSubmissionError", "FailedJobError", "CalledProcessError"):
            raise
        lines = [line for line in str(error).splitlines() if "error:" in line] or [str(error)]
        raise UserError(
            f"Slurm refused the jobs ({lines[-1].split('error:')[-1].strip()})", key="hydra/launcher", value="slurm",
            remedy=f"see hydra.launcher.*; then effvit sweep retry {sweep.path}",
        ) from None  # fmt: skip
    changed = [
        SweepJob(
            job.number, job.overrides, slurm=handle.job_id, log=str(Path(FOLDER) / handle.paths.stdout.name)
        )
        for job, handle in zip(jobs, handles, strict=True)
    ]
    sweep = sweep.with_jobs(changed)
    sweep.write()
    return sweep


def wait(sweep: Sweep, jobs: list[int], settings: SlurmSettings, say: Callable[[str], None]) -> bool:
    """Wait until these jobs have ended; tells of each change. Returns False when a signal came first.

    A job has ended when Slurm's queue does not hold it any more. While Slurm does not answer, nothing has.
    """
    seen: dict[int, str] = {}
    silent = False
    stop = Stop()
    with stop:
        stop.defer(True)
        while True:
            wanted = [job for job in sweep.jobs if job.number in jobs]
            in_queue = active([str(job.slurm) for job in wanted])
            if in_queue is None and not silent:
                say("Slurm does not answer: waiting")
            silent = in_queue is None
            for row in look(sweep, jobs):
                if seen.get(row.number) != row.status and not (row.status in ENDED and silent):
                    seen[row.number] = row.status
                    say(_line(row))
            if in_queue is not None and not in_queue:
                return True
            end = time.monotonic() + settings.poll_s
            while time.monotonic() < end:
                if stop.requested is not None:
                    return False
                time.sleep(min(0.2, settings.poll_s))


def _line(row: Row) -> str:
    accuracy = f", accuracy {row.accuracy:.3f}" if row.status == "done" and row.accuracy is not None else ""
    where = f" (Slurm job {row.slurm})" if row.status != "done" else ""
    error = f": {row.error}" if row.error else ""
    at = f", epoch {row.epoch}" if row.epoch and row.status != "done" else ""
    return f"job {row.number} {row.status}{at}{accuracy}{where}{error}"


def _element(sweep: Sweep, job: SweepJob, settings: SlurmSettings) -> list[str]:
    """Arguments of the process that an element becomes."""
    return [
        "env", "--unset=SUBMITIT_EXECUTOR", "--unset=HYDRA_FULL_ERROR", f"OMP_NUM_THREADS={settings.cpus_per_task}",
        f"{MOST_RESTARTS}={settings.max_num_timeout}", *sweep.start(job),
    ]  # fmt: skip


def _parameters(settings: SlurmSettings, sweep: Sweep) -> dict[str, Any]:
    """What submitit's executor takes."""
    values = {key: value for key, value in asdict(settings).items() if key not in _OURS}
    values["name"] = values["name"] or sweep.path.name
    values["additional_parameters"] = {"requeue": True, **values["additional_parameters"]}
    # since Slurm 22.05 srun does not take this over from the batch script
    values["setup"] = ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", *values["setup"]]
    values = {key: value for key, value in values.items() if value not in (None, [])}
    shared = {key: values.pop(key) for key in _SHARED if key in values}
    return {**shared, "stderr_to_stdout": True, **{f"slurm_{key}": value for key, value in values.items()}}


def check_installed() -> None:
    """Raise `UserError` unless submitit is installed and this machine has Slurm's commands."""
    _submitit()
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "there is no Slurm on this machine (no sbatch, no srun)", key="hydra/launcher", value="slurm",
            remedy="start the sweep where sbatch works, or use hydra/launcher=parallel",
        )  # fmt: skip


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "needs submitit, which is not installed", key="hydra/launcher", value="slurm",
            remedy="pip install 'effvit_train[slurm]'",
        ) from None  # fmt: skip
    return submitit
