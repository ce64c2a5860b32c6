"""`sweep.json`: the jobs of a sweep and how they are launched."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json

NAME = "sweep.json"
_SCHEMA = 1


@dataclass(frozen=True)
class SweepJob:
    """One job.

    Attributes:
        number: its run directory is named after it.
        overrides: what tells it from the defaults, as a user would type it.
        refused: why it cannot be: such a job has no run directory.
        slurm: Slurm's name for it (`17_3`), of its last submission.
        log: what it prints, relative to the sweep's directory; None where it shares a terminal.
    """

    number: int
    overrides: list[str]
    refused: str | None = None
    slurm: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        path: its directory, absolute.
        launcher: settings of its launcher, as in `hydra.launcher`.
        command: how a training is started: `resume=...` is appended.
        jobs: by number.
    """

    path: Path
    launcher: dict[str, Any]
    command: list[str]
    jobs: list[SweepJob] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """Read `sweep.json`.

        Raises:
            UserError: it is missing or is not one.
        """
        try:
            content = read_json(Path(path) / NAME)
            jobs = [SweepJob(**job) for job in content["jobs"]]
            return cls(Path(path).resolve(), dict(content["launcher"]), list(content["command"]), jobs)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"no sweep at {path}", remedy=f"give the directory of a sweep (it holds {NAME})"
            ) from None
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{Path(path) / NAME} is damaged", remedy="effvit runs lists its runs") from None

    def write(self) -> None:
        """Write `sweep.json` atomically."""
        content = {
            "schema": _SCHEMA, "launcher": self.launcher, "command": self.command,
            "jobs": [asdict(job) for job in self.jobs],
        }  # fmt: skip
        write_json(self.path / NAME, content)

    def run_dir(self, job: SweepJob) -> Path:
        """Where a job's run is."""
        return self.path / str(job.number)

    def start(self, job: SweepJob) -> list[str]:
        """The command that starts a job, and that goes on with it however it ended."""
        return [*self.command, f"resume={self.run_dir(job)}"]

    def with_jobs(self, changed: list[SweepJob]) -> Sweep:
        """The same sweep, with some jobs changed."""
        new = {job.number: job for job in changed}
        return replace(self, jobs=[new.get(job.number, job) for job in self.jobs])

    def differs(self, job: SweepJob) -> str:
        """The overrides that not all of the jobs have, as one would type them."""
        common = set.intersection(*(set(other.overrides) for other in self.jobs))
        return shlex.join(item for item in job.overrides if item not in common)


def retry_command(path: Path, numbers: list[int] | None = None) -> str:
    """The command that starts those jobs of a sweep again that are not done, or those named."""
    relative = os.path.relpath(path)
    shown = str(path) if relative.startswith("..") else relative
    return shlex.join(["effvit", "sweep", "retry", shown, *map(str, numbers or [])])
