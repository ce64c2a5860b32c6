"""`effvit runs`: what became of the runs below a directory, and how to go on with those that did not end."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from effvit_train import lock
from effvit_train.card import Card
from effvit_train.errors import UserError, did_you_mean
from effvit_train.runs import QUEUED, RunDir, RunState, resume_command, run_directories

# `state.json` of a process that was killed still says "running"; its lock tells the truth.
KILLED, UNREADABLE = "killed", "unreadable"
ABANDONED = "abandoned"  # a trial that its search has stopped early
STATUSES = ("running", "done", "interrupted", KILLED, ABANDONED, "failed", QUEUED, UNREADABLE)
_RESUMABLE = (QUEUED, "interrupted", KILLED, ABANDONED, "failed")
COLOURS = {"running": "cyan", "done": "green", "interrupted": "yellow", KILLED: "yellow", ABANDONED: "yellow",
           "failed": "red"}  # fmt: skip
_WIDEST = 10_000


@dataclass(frozen=True)
class Run:
    """One row.

    Attributes:
        run_dir: as the user would type it.
        status: one of `STATUSES`.
        epoch: epochs finished.
        max_epochs: epochs wanted; None when the configuration cannot be read.
        accuracy: on the test images once the run is done, before on the validation images; None before
            the first validation.
        split: which images `accuracy` is of: test | val | None.
        started: UTC time of the first start, ISO 8601; empty when unreadable.
        resumes: how often it was resumed.
        resume: the command that goes on with it; None where there is nothing to go on with.
        error: the one line that its last start ended with; None where it did not fail.
    """

    run_dir: str
    status: str
    epoch: int
    max_epochs: int | None
    accuracy: float | None
    split: str | None
    started: str
    resumes: int
    resume: str | None
    error: str | None = None


def runs(arguments: Sequence[str]) -> None:
    """Print the runs below the directories named in `arguments` (default `runs`), oldest first.

    Raises:
        UserError: no such directory, or no such status.
    """
    parser = argparse.ArgumentParser(
        prog="effvit runs", description="What became of runs, and how to go on with those that did not end."
    )
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIR", help="default: runs")
    parser.add_argument("--status", metavar="STATUS", help=f"only these: {', '.join(STATUSES)}")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead")
    options = parser.parse_args(list(arguments))
    wanted = options.status.split(",") if options.status else list(STATUSES)
    for status in wanted:
        if status not in STATUSES:
            hint = did_you_mean(status, STATUSES) or "e.g. --status interrupted"
            raise UserError(f"must be of {', '.join(STATUSES)}", key="--status", value=status, remedy=hint)
    directories = options.directories or [Path("runs")]
    for directory in options.directories:
        if not directory.is_dir():
            raise UserError(f"{directory} is no directory", remedy="effvit runs [DIR ...], default: runs")
    found = [run for run in find(directories) if run.status in wanted]
    if options.json:
        print(json.dumps([asdict(run) for run in found], indent=2))
    elif not found:
        which = f" that are {' or '.join(wanted)}" if options.status else ""
        print(f"no runs{which} below {', '.join(map(str, directories))}")
    else:
        _print(found, datetime.now(UTC))


def find(directories: Iterable[Path]) -> list[Run]:
    """The runs below the directories, each once, oldest first."""
    paths = {path.resolve(): path for directory in directories for path in run_directories(directory)}
    return sorted((read(path) for path in paths.values()), key=lambda run: (run.started, run.run_dir))


def read(path: Path) -> Run:
    """What the files of a run directory tell, whatever state they are in."""
    run_dir = RunDir(path)
    try:
        state = RunState.read(run_dir.state)
    except (UserError, OSError):
        return Run(str(path), UNREADABLE, 0, None, None, None, "", 0, None)
    status = state.status
    if status == "running" and lock.holder(path) is None:
        status = KILLED
    rows = _rows(run_dir.metrics)
    epoch = int(rows[-1]["epoch"]) if rows else state.epochs
    accuracy, split = _accuracy(run_dir, rows, done=status == "done")
    resume = resume_command(path) if status in _RESUMABLE else None
    return Run(
        str(path), status, epoch, _max_epochs(run_dir), accuracy, split, state.started, state.resumes, resume,
        state.error,
    )  # fmt: skip


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of `metrics.csv` that hold an epoch."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if (row.get("epoch") or "").isdigit()]
    except (OSError, ValueError, csv.Error):
        return []


def _accuracy(run_dir: RunDir, rows: list[dict[str, str]], *, done: bool) -> tuple[float | None, str | None]:
    if done:
        try:
            accuracy = Card.read(run_dir.card).measures.get("quality/accuracy")
        except (UserError, OSError):
            accuracy = None
        if accuracy is not None:
            return accuracy, "test"
    validated = [row["val/accuracy"] for row in rows if row.get("val/accuracy")]
    try:
        return (float(validated[-1]), "val") if validated else (None, None)
    except ValueError:
        return None, None


def _max_epochs(run_dir: RunDir) -> int | None:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        config = OmegaConf.load(run_dir.config)
        if OmegaConf.select(config, "trainer.fast_dev_run"):
            return 1
        return int(OmegaConf.select(config, "trainer.max_epochs"))
    except (OSError, ValueError, TypeError, YAMLError):
        return None


def _print(found: list[Run], now: datetime) -> None:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_row(*(Text(head, "bold") for head in ("run", "status", "epoch", "accuracy", "age")))
    for run in found:
        of = "?" if run.max_epochs is None else str(run.max_epochs)
        accuracy = "" if run.accuracy is None else f"{run.accuracy:.3f} {run.split:>4}"
        table.add_row(
            Text(run.run_dir),
            Text(run.status, COLOURS.get(run.status, "red")),
            f"{run.epoch}/{of}",
            accuracy,
            age(run.started, now),
        )
    console = Console(highlight=False)
    # a path that is cut is of no use: rather let a narrow terminal break the line
    console.width = max(
        console.width, console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    )
    console.print(table)
    resumable = [run.resume for run in found if run.resume]
    if resumable:
        console.print(Text("\nto go on:", "bold"))
        for command in resumable:
            console.print(f"  {command}", markup=False, soft_wrap=True)


def age(started: str, now: datetime) -> str:
    """How long ago, in the largest unit that counts at least two: `95s`, `14m`, `30h`, `12d`."""
    try:
        seconds = (now - datetime.fromisoformat(started)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"
