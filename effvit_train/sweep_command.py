"""`effvit sweep status|retry DIR`: what became of the jobs of a sweep, and those again that are not done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf.errors import ValidationError

from effvit_train.errors import UserError, did_you_mean, first_line
from effvit_train.sweep.plan import Sweep, SweepJob
from effvit_train.sweep.settings import Settings


def sweep(arguments: Sequence[str]) -> None:
    """Show a sweep, or start those of its jobs again that are not done, each in its own run directory.

    Raises:
        UserError: no such sweep, no such job, a job that cannot be started again, a wrong setting.
    """
    parser = argparse.ArgumentParser(
        prog="effvit sweep",
        description="What became of the jobs of a sweep, and those again that are not done.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="status|retry")
    status = actions.add_parser("status", help="list the jobs, what went wrong, and which are slow")
    status.add_argument("directory", type=Path, metavar="DIR", help="of the sweep")
    status.add_argument("--json", action="store_true", help="print an object instead")
    retry = actions.add_parser("retry", help="go on with the jobs that are neither done nor on their way")
    retry.add_argument("directory", type=Path, metavar="DIR", help="of the sweep")
    retry.add_argument(
        "rest", nargs="*", metavar="JOB|hydra.launcher.KEY=VALUE", help="only these jobs; settings"
    )
    options = parser.parse_args(list(arguments))
    found = Sweep.read(options.directory)
    if options.action == "status":
        _status(found, as_json=options.json)
    else:
        _retry(found, options.rest)


def _status(found: Sweep, *, as_json: bool) -> None:
    from effvit_train.sweep.status import look, show, to_json

    rows = look(found)
    if as_json:
        print(to_json(found, rows))
    else:
        show(found, rows)


def _retry(found: Sweep, rest: Sequence[str]) -> None:
    from effvit_train.sweep.launchers import SweepLauncher
    from effvit_train.sweep.settings import SlurmSettings

    settings = _settings(found, [item for item in rest if "=" in item])
    jobs = _jobs(found, [item for item in rest if "=" not in item])
    if not jobs:
        print(f"{found.path} has no job to go on with (effvit sweep status {found.path})")
        return
    found = Sweep(found.path, asdict(settings), found.command, found.jobs)
    if isinstance(settings, SlurmSettings):
        from effvit_train.sweep.cluster import check_installed
        from effvit_train.sweep.launchers import run_on_slurm

        check_installed()
        run_on_slurm(found, jobs, settings)
    else:
        _retry_here(found, jobs)
    sys.exit(SweepLauncher.exit_code)


def _retry_here(found: Sweep, jobs: list[SweepJob]) -> None:
    """In processes of their own, also where the sweep was a serial one: then one at a time."""
    from omegaconf import OmegaConf

    from effvit_train.lock import RunLock
    from effvit_train.runs import RunDir
    from effvit_train.sweep.cores import Shares, share
    from effvit_train.sweep.launchers import finish
    from effvit_train.sweep.local import run_parallel
    from effvit_train.sweep.settings import ParallelSettings, settings_of

    settings = settings_of(found.launcher)
    if isinstance(settings, ParallelSettings):
        stored = [OmegaConf.load(RunDir(found.run_dir(job)).config) for job in jobs]
        shares = share(settings, [config.trainer for config in stored])
    else:
        shares = Shares(1, None)
    with RunLock(found.path):
        codes = run_parallel(found, jobs, shares, lambda line: print(line, flush=True))
    finish(Sweep.read(found.path), codes)


def _settings(found: Sweep, typed: list[str]) -> Settings:
    """The launcher's settings as they were, but for those typed now."""
    from effvit_train.compose import parse_overrides
    from effvit_train.sweep.settings import settings_of

    values = dict(found.launcher)
    known = [key for key in values if not key.startswith("_")]
    for override in parse_overrides(typed):
        head, _, key = override.key_or_group.rpartition(".")
        if head != "hydra.launcher" or key not in known:
            hint = (
                did_you_mean(key, known)
                or f"it takes {', '.join(f'hydra.launcher.{name}' for name in known)}"
            )
            raise UserError(
                "cannot be changed by a retry", key=override.key_or_group, value=override.value(), remedy=hint
            )
        values[key] = override.value()
    try:
        return settings_of(values)
    except ValidationError as error:
        raise UserError(
            first_line(error), key=f"hydra.launcher.{error.full_key}", remedy="see docs/sweeps.md"
        ) from None


def _jobs(found: Sweep, typed: list[str]) -> list[SweepJob]:
    """The jobs to start: those named, or all that are not done and nobody is about to run.

    Raises:
        UserError: a job that there is not, or that cannot be started.
    """
    from effvit_train.sweep.status import look

    rows = {row.number: row for row in look(found)}
    for name in typed:
        row = rows.get(int(name)) if name.isdigit() else None
        if row is None:
            raise UserError(f"there is no job {name}", remedy=f"its jobs are {min(rows)} to {max(rows)}")
        if not row.retry:
            why = row.error if row.status == "failed" else f"it is {row.status}"
            raise UserError(
                f"job {name} cannot be started: {why}", remedy=f"effvit sweep status {found.path}"
            )
    numbers = {int(name) for name in typed} or {row.number for row in rows.values() if row.retry}
    return [job for job in found.jobs if job.number in numbers]
