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

from effvit_train.errors import UserError
from effvit_train.runs import RunDir, RunState, slurm_job
from effvit_train.signals import SIGNALS

MOST_RESTARTS = "EFFVIT_MOST_RESTARTS"  # set by a sweep: how often one job is queued again
_SECONDS = 20.0  # Slurm's controller answers within a second, a busy one within ten


def run_id(overrides: Sequence[str], short_id: str) -> str:
    """The end of a new run directory's name: a short id; in a Slurm job, the job and the command."""
    job = slurm_job()
    return short_id if job is None else f"job{job}-{_hash(overrides)}"


def run_to_continue(arguments: Sequence[str]) -> Path | None:
    """The run that this command line began before its job was queued again; None in all other cases."""
    job = slurm_job()
    if job is None or _restarts() == 0:
        return None
    given = [item.partition("=")[2].strip("'\"") for item in arguments if item.startswith("run_dir=")]
    if given:
        state = RunDir(Path(given[-1]).expanduser()).state
        try:
            return state.parent if state.exists() and RunState.read(state).slurm_job == job else None
        except UserError:  # not ours; whoever makes the directory says so
            return None
    name = run_id(_overrides(arguments), "")
    found = [path for path in Path("runs").glob(f"*/*_{name}") if RunDir(path).state.exists()]
    return max(found, default=None)


def queue_again(signum: int) -> bool:
    """Have Slurm queue this job again after `signum` stopped it; returns whether it is queued.

    A time limit (`#SBATCH --signal=USR1@60`) and preemption queue the job again; a user's `scancel`,
    an interactive job and one submitted with `--no-requeue` end. Where Slurm has queued it already
    (preemption without a grace time, `scontrol requeue`), there is nothing to ask. After True the
    process ignores signals: Slurm sends SIGTERM now, which must not change how it ends.
    """
    if slurm_job() is None or signum == signal.SIGINT or os.environ.get("SUBMITIT_EXECUTOR"):
        return False
    if _restarts() >= int(os.environ.get(MOST_RESTARTS) or _restarts() + 1):
        return False
    job = _own_name()
    facts = _facts(_scontrol("show", "job", job))
    already = int(facts.get("Restarts", 0)) > _restarts()
    may = facts.get("JobState") == "RUNNING" and facts.get("Requeue") == "1"
    if not already and not (may and facts.get("BatchFlag", "0") != "0"):
        return False
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    if already or _scontrol("requeue", job) is not None:
        return True
    for number, handler in before.items():
        signal.signal(number, handler)
    return False


def _restarts() -> int:
    """How often this job was queued again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _own_name() -> str:
    """This job, for `scontrol`: one element of an array has the job id of the whole array."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ["SLURM_JOB_ID"]


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Those arguments that Hydra takes for overrides of ours (its own do not count)."""
    return [
        item
        for item in arguments
        if not item.startswith("-")
        and ("=" in item or item.startswith("~"))
        and not item.lstrip("+~").startswith(("hydra.", "hydra/"))
    ]


def _facts(shown: str | None) -> dict[str, str]:
    """The `Key=value` words of `scontrol show job`; of a key that comes twice, the first."""
    pairs = [word.partition("=") for word in (shown or "").split()]
    return {key: value for key, _, value in reversed(pairs)}


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
