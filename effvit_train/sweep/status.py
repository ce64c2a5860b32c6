"""What became of the jobs of a sweep, which of them are slow, and the command that retries the rest."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from effvit_train import lock
from effvit_train.runs import QUEUED, RunDir
from effvit_train.runs_command import COLOURS, KILLED, read
from effvit_train.sweep.plan import Sweep, SweepJob, retry_command
from effvit_train.sweep.queue import active

NOT_STARTED = "not started"
ENDED = ("done", "interrupted", KILLED, "failed", NOT_STARTED)
RETRIED = ("interrupted", KILLED, "failed", NOT_STARTED)
STRAGGLER = 2.0  # times the median of those that are done
_ENOUGH = 3  # jobs that are done, for a median that says something


@dataclass(frozen=True)
class Row:
    """One job.

    Attributes:
        number: of the job.
        run_dir: of its run, also where it was never made.
        overrides: that not all jobs have.
        status: queued | running | done | interrupted | killed | failed | not started.
        epoch, max_epochs, accuracy, split: as `effvit runs` tells.
        seconds: from its first start until now, or until it was done; None before.
        error: its one line; None where it did not fail.
        straggler: whether it runs for longer than twice the median of those that are done.
        retry: whether `effvit sweep retry` starts it: a refused job cannot be.
        slurm: Slurm's name for it.
    """

    number: int
    run_dir: str
    overrides: str
    status: str
    epoch: int
    max_epochs: int | None
    accuracy: float | None
    split: str | None
    seconds: float | None
    error: str | None
    straggler: bool
    retry: bool
    slurm: str | None


def look(sweep: Sweep, numbers: Sequence[int] | None = None) -> list[Row]:
    """The jobs of a sweep as they are now, by number; only some where `numbers` are given."""
    in_queue = active([job.slurm for job in sweep.jobs if job.slurm])
    launching = lock.holder(sweep.path) is not None
    now = datetime.now(UTC)
    wanted = [job for job in sweep.jobs if numbers is None or job.number in numbers]
    return _mark_stragglers([_row(sweep, job, in_queue, launching, now) for job in wanted])


def _row(sweep: Sweep, job: SweepJob, in_queue: dict[str, str] | None, launching: bool, now: datetime) -> Row:
    run_dir, differs = sweep.run_dir(job), sweep.differs(job)
    if job.refused is not None:
        return Row(
            job.number,
            str(run_dir),
            differs,
            "failed",
            0,
            None,
            None,
            None,
            None,
            job.refused,
            False,
            False,
            None,
        )
    run = read(run_dir)
    status, error = run.status, run.error
    if job.slurm is not None:
        status, error = _on_slurm(status, error, None if in_queue is None else in_queue.get(job.slurm, ""))
    elif status == QUEUED and not launching:
        status = NOT_STARTED
    begun = run.started if run.epoch or status not in (QUEUED, NOT_STARTED, "failed") else None
    return Row(
        job.number, str(run_dir), differs, status, run.epoch, run.max_epochs, run.accuracy, run.split,
        _seconds(begun, RunDir(run_dir), status, now), error, False, status in RETRIED, job.slurm,
    )  # fmt: skip


def _on_slurm(status: str, error: str | None, state: str | None) -> tuple[str, str | None]:
    """What Slurm and the files say together.

    Args:
        status, error: by the files.
        state: Slurm's; empty = it is not in the queue, None = Slurm does not answer.
    """
    if state is None or status in ("running", "done"):
        return status, error
    if state:  # an interrupted or killed job that is in the queue will go on
        return ("running" if status == QUEUED and state == "RUNNING" else QUEUED), None
    if status == QUEUED:
        return NOT_STARTED, error or "Slurm has it no more; it left no word (see its log)"
    return status, error


def _seconds(started: str | None, run_dir: RunDir, status: str, now: datetime) -> float | None:
    if not started:
        return None
    if status != "running":  # state.json is the last that a run writes
        now = datetime.fromtimestamp(run_dir.state.stat().st_mtime, UTC)
    return max(0.0, (now - datetime.fromisoformat(started)).total_seconds())


def _mark_stragglers(rows: list[Row]) -> list[Row]:
    typical = median_of_done(rows)
    if typical is None:
        return rows
    return [
        replace(row, straggler=row.status == "running" and (row.seconds or 0) > STRAGGLER * typical)
        for row in rows
    ]


def median_of_done(rows: list[Row]) -> float | None:
    """Median seconds of the jobs that are done; None while there are fewer than three."""
    done = [row.seconds for row in rows if row.status == "done" and row.seconds is not None]
    return statistics.median(done) if len(done) >= _ENOUGH else None


def to_json(sweep: Sweep, rows: list[Row]) -> str:
    """The rows, the median and the retry command, as JSON."""
    content = {
        "sweep": str(sweep.path), "jobs": [asdict(row) for row in rows], "median_done_seconds": median_of_done(rows),
        "retry": retry_command(sweep.path) if any(row.retry for row in rows) else None,
    }  # fmt: skip
    return json.dumps(content, indent=2)


def show(sweep: Sweep, rows: list[Row]) -> None:
    """Print the table, the errors, the stragglers and the command that retries what is not done."""
    table = Table.grid(padding=(0, 2))
    heads = ("job", "status", "epoch", "accuracy", "time", "what differs")
    for justify in ("right", "left", "right", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_row(*(Text(head, "bold") for head in heads))
    for row in rows:
        of = "" if row.max_epochs is None else f"{row.epoch}/{row.max_epochs}"
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.3f} {row.split:>4}"
        status = f"{row.status}, slow" if row.straggler else row.status
        table.add_row(
            str(row.number), Text(status, COLOURS.get(row.status, "yellow")), of, accuracy, duration(row.seconds),
            Text(row.overrides),
        )  # fmt: skip
    console = Console(highlight=False)
    console.width = max(
        console.width, console.measure(table, options=console.options.update(width=10_000)).maximum
    )
    console.print(table)
    failed = [row for row in rows if row.error and row.status != "done"]
    if failed:
        console.print(Text("\nwhat went wrong:", "bold"))
        for row in failed:
            console.print(f"  job {row.number}: {row.error}", markup=False, soft_wrap=True)
    slow = [str(row.number) for row in rows if row.straggler]
    if slow:
        typical = duration(median_of_done(rows))
        console.print(
            f"\nslow: job {', '.join(slow)}, running for more than {STRAGGLER:g} x the median of those done ({typical})"
        )
    counts = {
        status: sum(row.status == status for row in rows) for status in dict.fromkeys(r.status for r in rows)
    }
    console.print(
        f"\n{len(rows)} jobs: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    )
    if any(row.retry for row in rows):
        console.print(
            f"to go on with what is not done:  {retry_command(sweep.path)}", markup=False, soft_wrap=True
        )


def duration(seconds: float | None) -> str:
    """`42s`, `12m`, `30h`: the largest unit that counts at least two."""
    if seconds is None:
        return ""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:.0f}s"
