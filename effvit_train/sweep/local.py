"""`hydra/launcher=parallel`: each job in a process of its own, several at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from effvit_train.runs import RunDir, RunState
from effvit_train.signals import Stop
from effvit_train.sweep.cores import Shares
from effvit_train.sweep.plan import Sweep, SweepJob
from effvit_train.sweep.status import look

LOGS = "logs"
_PAUSE = 0.05  # seconds between two looks at the processes


def run_parallel(
    sweep: Sweep, jobs: list[SweepJob], shares: Shares, say: Callable[[str], None]
) -> dict[int, int]:
    """Run jobs until all have ended, or a signal arrives, which is passed on to them once.

    Args:
        sweep: to which they belong.
        jobs: those to run, in their order.
        shares: how many at once, and on what.
        say: is told in a line when a job starts and ends.

    Returns:
        Exit codes by job number; a job that has none was not started.
    """
    (sweep.path / LOGS).mkdir(exist_ok=True)
    jobs = [SweepJob(job.number, job.overrides, log=f"{LOGS}/{job.number}.log") for job in jobs]
    sweep = sweep.with_jobs(jobs)
    sweep.write()
    waiting, codes = list(jobs), {}
    running: dict[int, tuple[SweepJob, int, subprocess.Popen[bytes], float]] = {}
    slots = list(range(shares.jobs))
    stop, passed_on = Stop(), False
    with stop:
        stop.defer(True)
        while waiting or running:
            while waiting and slots and stop.requested is None:
                job = waiting.pop(0)
                slot = slots.pop(0)
                running[job.number] = (job, slot, _start(sweep, job, shares, slot), time.monotonic())
                say(f"job {job.number} starts: {sweep.differs(job)} ({sweep.path.name}/{job.log})")
            for number, (job, slot, process, since) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[number]
                    slots.append(slot)
                    codes[number] = code
                    _note_silent_end(sweep, job, code)
                    say(_end(sweep, job, time.monotonic() - since))
            if stop.requested is not None:
                waiting = []
                if not passed_on:
                    passed_on = True
                    say("stopping: the jobs save and end")
                    for _, _, process, _ in running.values():
                        process.send_signal(stop.requested)
            time.sleep(_PAUSE)
    return codes


def _start(sweep: Sweep, job: SweepJob, shares: Shares, slot: int) -> subprocess.Popen[bytes]:
    # which our own process sets while Hydra runs: a job tells its errors in one line
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    if shares.threads is not None:
        environment["OMP_NUM_THREADS"] = str(shares.threads)
    if shares.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = shares.gpus[slot % len(shares.gpus)]
    with open(sweep.path / str(job.log), "ab") as log:
        # a session of its own: Ctrl-C reaches us, and we tell the jobs, once
        return subprocess.Popen(
            sweep.start(job), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip


def _note_silent_end(sweep: Sweep, job: SweepJob, code: int) -> None:
    """A process that was killed, or could not even begin, left no word: we leave one for it."""
    file = RunDir(sweep.run_dir(job)).state
    state = RunState.read(file)
    if code in (0, 130) or state.error is not None:
        return
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    state.error = f"{how}; see {Path(sweep.path.name) / str(job.log)}"
    if state.status == "queued":
        state.status = "failed"
    state.write(file)


def _end(sweep: Sweep, job: SweepJob, seconds: float) -> str:
    row = look(sweep, [job.number])[0]
    accuracy = "" if row.accuracy is None or row.status != "done" else f", accuracy {row.accuracy:.3f}"
    error = f": {row.error}" if row.error else ""
    return f"job {job.number} {row.status} after {seconds:.0f} s{accuracy}{error}"
