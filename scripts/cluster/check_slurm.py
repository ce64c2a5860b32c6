"""Runs that a real Slurm stops, each compared byte for byte with one left alone; two to three minutes.

`python scripts/cluster/check_slurm.py [--keep]` starts a private Slurm (munged, slurmctld, two slurmd) in a
temporary directory, on loopback only, submits jobs to it, prints a table and takes everything down again.
Exit code 1 when a job did not end as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from slurm_here import absent, running_slurm, slurm, wait_for

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
ARGUMENTS = (
    "trainer=cpu trainer.progress_bar=false trainer.num_threads=1 trainer.max_epochs=40 logger=none audit=none "
    "model.args.depth=1 model.args.embed_dim=16 model.args.num_heads=2"
)
SAME = ("metrics.csv", "model.safetensors", "predictions.npz")
PARTITIONS = """
PartitionName=low Nodes=n1 Default=YES PriorityTier=1 PreemptMode=OFF
PartitionName=grace Nodes=n2 PriorityTier=1 GraceTime=20
PartitionName=at_once Nodes=n2 PriorityTier=1 GraceTime=0
PartitionName=high Nodes=n2 PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class Job:
    """A submitted job, in a directory of its own.

    Attributes:
        what: what happens to it, for the table.
        id: its job id, or `array_element`.
        directory: it runs there.
        output: what it prints.
        wanted: its end, as (state.json's status, Slurm's exit code, how often it was queued again).
    """

    what: str
    id: str
    directory: Path
    output: Path
    wanted: tuple[str, str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the directory, with logs and runs")
    keep = parser.parse_args().keep
    problem = absent()
    if problem:
        sys.exit(f"error: {problem}")
    root = Path(tempfile.mkdtemp(prefix="check-slurm-"))
    try:
        os.environ |= {"OMP_NUM_THREADS": "1", "EFFVIT_CACHE": str(root / "cache")}
        with running_slurm(root, partitions=PARTITIONS):
            rows = check(root)
    finally:
        if keep:
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    print(f"{'what happened to the job':58} {'run':12} {'exit':6} restarts  result")
    for what, seen, problem in rows:
        print(f"{what:58} {seen[0]:12} {seen[1]:6} {seen[2]:<8}  {problem or 'as wanted'}")
    sys.exit(1 if any(problem for _, _, problem in rows) else 0)


def check(root: Path) -> list[tuple[str, tuple[str, str, int], str]]:
    """Submit the jobs, stop them, compare; returns rows of (what, what was seen, what is wrong)."""
    done, ended = ("done", "0:0", 1), ("interrupted", "130:0", 0)
    train = f"{sys.executable} -u {TRAIN} {ARGUMENTS}"

    def job(what: str, wanted: tuple[str, str, int], command: str, *options: str) -> Job:
        return submit(root, what, wanted, f"{command} {train}", *options)

    grace = job("preempted with a grace time, srun", done, "srun", "-pgrace")
    forced = job("preempted at once, exec python", done, "exec", "-pat_once")
    limit = job("time limit, --signal=B:USR1, exec python", done, "exec", "--time=9", "--signal=B:USR1@60")
    final = job(
        "time limit, --signal=USR1, srun, --no-requeue", ended, "exec srun",
        "--time=9", "--signal=USR1@60", "--no-requeue",
    )  # fmt: skip
    cancel = job("scancel, exec python", ended, "exec")
    asked = submit(root, "scontrol requeue, exec python, run_dir=", done, f"exec {train} run_dir=run")
    array = job("USR1 to the array's last element", done, "exec", "--array=0-1")
    alone = Job(
        "its other element, left alone",
        f"{array.id}_0",
        array.directory,
        array.directory / "out-0",
        ("done", "0:0", 0),
    )
    array.id, array.output = f"{array.id}_1", array.directory / "out-1"

    def shorten(job: Job) -> None:
        slurm("scontrol", "update", f"JobId={job.id}", "TimeLimit=1")

    once_trained = [
        (
            (grace, forced),
            lambda: slurm("sbatch", "-phigh", "--exclusive", "--output=/dev/null", "--wrap=true"),
        ),
        ((limit,), lambda: shorten(limit)),
        ((final,), lambda: shorten(final)),
        ((cancel,), lambda: slurm("scancel", cancel.id)),
        ((asked,), lambda: slurm("scontrol", "requeue", asked.id)),
        ((array,), lambda: slurm("scancel", "--batch", "--signal=USR1", array.id)),
    ]
    while once_trained:
        jobs, act = once_trained.pop(0)
        if all(has_printed(job, "train: ") for job in jobs):
            act()
        else:
            once_trained.append((jobs, act))
            time.sleep(0.1)
    wait_for(lambda: has_printed(limit, "queued again"), limit.what)
    slurm("scontrol", "update", f"JobId={limit.id}", "TimeLimit=9")  # or it would be stopped again at once
    wait_for(lambda: not slurm("squeue", "-h"), "the jobs' end")
    return [verdict(job, alone) for job in (alone, array, limit, final, grace, forced, asked, cancel)]


def submit(root: Path, what: str, wanted: tuple[str, str, int], command: str, *options: str) -> Job:
    """Submit a batch script of one command."""
    directory = Path(tempfile.mkdtemp(dir=root, prefix="job-"))
    (directory / "job.sh").write_text(f"#!/bin/bash\n{command}\n")
    output = directory / ("out-%a" if "--array=0-1" in options else "out")
    fixed = [
        "--parsable",
        "--requeue",
        "--open-mode=append",
        "-n1",
        f"--chdir={directory}",
        f"--output={output}",
    ]
    id = slurm("sbatch", *fixed, *options, str(directory / "job.sh")).strip()
    if not id:
        sys.exit(f"error: sbatch took no job ({what})")
    return Job(what, id, directory, output, wanted)


def has_printed(job: Job, words: str) -> bool:
    return job.output.exists() and words in job.output.read_text()


def verdict(job: Job, alone: Job) -> tuple[str, tuple[str, str, int], str]:
    """How the job ended, and what of it is wrong."""
    shown = slurm("scontrol", "show", "job", job.id)
    facts = dict(re.findall(r"(\w+)=(\S*)", shown))
    runs = runs_of(job)
    status = json.loads((runs[0] / "state.json").read_text())["status"] if runs else "none"
    output = job.output.read_text()
    seen = (status, facts.get("ExitCode", ""), int(facts.get("Restarts", 0)))
    problems = [f"{len(runs)} run directories"] if len(runs) != 1 else []
    restarts_differ = seen[2] < 1 if job.wanted[2] else seen[2] != 0
    if seen[:2] != job.wanted[:2] or restarts_differ:
        problems.append(f"wanted {job.wanted}")
    if status == "interrupted" and "interrupted; to go on: " not in output:
        problems.append("no resume command")
    if job.wanted[2] and "interrupted; the job is queued again" not in output:
        problems.append("not stopped in order")
    if status == "done":
        reference = runs_of(alone)[0]
        problems += [f"{name} differs" for name in SAME if not same(runs[0] / name, reference / name)]
    return job.what, seen, "; ".join(problems)


def runs_of(job: Job) -> list[Path]:
    """The run directories of a job: those named after it, or the given one."""
    number = slurm("squeue", "--states=all", "-h", "-r", "-j", job.id, "-o", "%A").strip()
    runs = [path.parent for path in job.directory.rglob("state.json")]
    return [run for run in runs if run.name == "run" or f"_job{number}-" in run.name]


def same(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.read_bytes() == second.read_bytes()


if __name__ == "__main__":
    main()
