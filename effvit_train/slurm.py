"""A run inside a Slurm job: asked to stop, it is queued again; started again, it finds its directory.

Where submitit launched the job, submitit queues it again; there this module does nothing.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from effvit_train.runs import RunDir, RunState, slurm_job

_SECONDS = 20.0  # Slurm's controller answers within a second, a busy one within ten


def run_id(overrides: Sequence[str], short_id: str) -> str:
    """The end of a new run directory's name: a short id; in a Slurm job, the job and the command."""
    job = slurm_job()
    return short_id if job is None else f"job{job}-{_hash(overrides)}"


def run_to_continue(overrides: Sequence[str]) -> Path | None:
    """The run that this command began before its job was queued again; None in all other cases."""
    job = slurm_job()
    if job is None or int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0:
        return None
    given = [item.partition("=")[2].strip("'\"") for item in overrides if item.startswith("run_dir=")]
    if given:
        state = RunDir(Path(given[-1]).expanduser()).state
        return state.parent if state.exists() and RunState.read(state).slurm_job == job else None
    found = [
        path for path in Path("runs").glob(f"*/*_{run_id(overrides, '')}") if RunDir(path).state.exists()
    ]
    return max(found, default=None)


def queue_again(signum: int) -> bool:
    """Ask Slurm to queue this job again after `signum` stopped it; returns whether Slurm will.

    A time limit (`#SBATCH --signal=USR1@60`) and preemption queue the job again; a user's `scancel`,
    an interactive job and one submitted with `--no-requeue` end.
    """
    job = slurm_job()
    if job is None or signum == signal.SIGINT or os.environ.get("SUBMITIT_EXECUTOR"):
        return False
    facts = _scontrol("show", "job", job)
    wanted = {"JobState=RUNNING", "Requeue=1", "BatchFlag=1"}
    return facts is not None and wanted <= set(facts.split()) and _scontrol("requeue", job) is not None


def _hash(overrides: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:4]


def _scontrol(*arguments: str) -> str | None:
    """What `scontrol` prints; None where it fails or is not there."""
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
