"""Hydra's launchers: prepare the jobs of a sweep, run them, list them."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.report.format import duration
from effvit_train.runs import discard
from effvit_train.sweep.plan import Sweep, SweepJob, retry_command
from effvit_train.sweep.settings import (
    LAUNCHERS,
    NAMESPACE,
    ParallelSettings,
    Settings,
    SlurmSettings,
    settings_of,
)


class SweepLauncher(Launcher):
    """What the launchers share.

    Attributes:
        exit_code: of the process, over all that was launched: 0 = every job is done, 2 = the user's input was
            at fault in all of those that failed, else 1.
    """

    exit_code: ClassVar[int] = 0

    def __init__(self, **values: Any) -> None:
        self.settings: Settings | None = None
        SweepLauncher.exit_code = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before it launches."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra's sweeper with the overrides of each job."""
        from effvit_train.sweep.prepare import prepare

        setup_globals()
        try:
            self.settings = settings_of(self.config.hydra.launcher)
            self.check()
        except UserError:
            discard(Path(str(self.config.hydra.sweep.dir)).resolve())  # the sweeper has made it
            raise
        sweep = prepare(
            self.hydra_context.config_loader, self.config, job_overrides, first=initial_job_idx,
            settings=self.settings, adjust=self.adjust, say=print,
        )  # fmt: skip
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        jobs = [job for job in sweep.jobs if job.number in numbers]
        ready = [job for job in jobs if job.refused is None]
        print(f"{len(ready)} jobs, in {_shown(sweep.path)}")
        self.run(sweep, ready)
        returned = JobReturn(status=JobStatus.COMPLETED)
        returned.return_value = None
        return [returned] * len(jobs)

    def check(self) -> None:
        """Raise `UserError` where nothing can be launched here."""

    def adjust(self, configs: list[Config]) -> None:
        """Change the configurations for where they will run; refuse what cannot run there."""

    def run(self, sweep: Sweep, jobs: list[SweepJob]) -> None:
        """Run the jobs, list them, and set the exit code."""
        raise NotImplementedError


class SerialLauncher(SweepLauncher):
    """One job after the other, in this process."""

    def adjust(self, configs: list[Config]) -> None:
        """Refuse jobs of several processes."""
        from effvit_train.sweep.cores import one_process_each

        one_process_each(configs)

    def run(self, sweep: Sweep, jobs: list[SweepJob]) -> None:
        """A job that fails does not end the others; a signal ends the sweep."""
        from effvit_train.lock import RunLock

        codes: dict[int, int] = {}
        with RunLock(sweep.path):
            for place, job in enumerate(jobs, start=1):
                print(f"\njob {job.number} ({place} of {len(jobs)}): {sweep.differs(job)}", flush=True)
                started = time.perf_counter()
                codes[job.number] = self._one(sweep, job)
                if place == 1 and codes[job.number] == 0 and (more := len(jobs) - 1):
                    took = time.perf_counter() - started
                    print(
                        f"\njob {job.number} took {duration(took)}; {more} more: about {duration(took * more)}"
                    )
                if codes[job.number] == 130:
                    break
        finish(sweep, codes)

    def _one(self, sweep: Sweep, job: SweepJob) -> int:
        overrides = [f"resume={_quoted(str(sweep.run_dir(job)))}"]
        config = self.hydra_context.config_loader.load_sweep_config(self.config, [])
        with read_write(config), open_dict(config):
            config.resume = str(sweep.run_dir(job))
            config.hydra.overrides.task = overrides
            config.hydra.job.id = config.hydra.job.num = job.number
            config.hydra.output_subdir = None
        try:
            returned = run_job(
                hydra_context=self.hydra_context, task_function=self.task_function, config=config,
                job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
            )  # fmt: skip
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 1
        _ = returned.return_value  # raises what the job raised (HYDRA_FULL_ERROR=1)
        return 0


class ParallelLauncher(SweepLauncher):
    """Each job in a process of its own, several at once."""

    def adjust(self, configs: list[Config]) -> None:
        """Share out the cores, and write each job's number of threads into its configuration."""
        from effvit_train.sweep.cores import fix_threads, share

        assert isinstance(self.settings, ParallelSettings)
        self.shares = share(self.settings, [config.trainer for config in configs])
        if self.shares.threads is not None:
            fix_threads(configs, self.shares.threads)

    def run(self, sweep: Sweep, jobs: list[SweepJob]) -> None:
        """Run them, share by share."""
        from effvit_train.lock import RunLock
        from effvit_train.sweep.local import run_parallel

        shares = self.shares
        gpus = f", {len(shares.gpus)} GPUs" if shares.gpus else ""
        print(f"{shares.jobs} at once, CPU threads each: {shares.threads}{gpus}", flush=True)
        with RunLock(sweep.path):
            codes = run_parallel(sweep, jobs, shares, _say)
        finish(Sweep.read(sweep.path), codes)


class SlurmLauncher(SweepLauncher):
    """Each job an element of a Slurm job array."""

    def check(self) -> None:
        """Refuse before anything is written where submitit is not there."""
        from effvit_train.sweep.cluster import check_installed

        check_installed()

    def adjust(self, configs: list[Config]) -> None:
        """Take machines and processes from the jobs, and give each process as many threads as cores."""
        from effvit_train.sweep.cluster import fit_to_jobs
        from effvit_train.sweep.cores import fix_threads

        assert isinstance(self.settings, SlurmSettings)
        self.settings = fit_to_jobs(self.settings, configs)
        fix_threads(configs, self.settings.cpus_per_task)

    def run(self, sweep: Sweep, jobs: list[SweepJob]) -> None:
        """Submit the jobs and, unless told not to, wait for them."""
        assert isinstance(self.settings, SlurmSettings)
        run_on_slurm(sweep, jobs, self.settings)


def run_on_slurm(sweep: Sweep, jobs: list[SweepJob], settings: SlurmSettings) -> None:
    """Submit jobs and, unless `settings.wait` is false, wait for them and list them."""
    from effvit_train.sweep.cluster import submit, wait

    sweep = submit(sweep, jobs, settings)
    numbers = [job.number for job in jobs]
    names = sorted({str(job.slurm).partition("_")[0] for job in sweep.jobs if job.number in numbers})
    print(
        f"submitted as Slurm job {', '.join(names)}: {settings.array_parallelism} at once at most", flush=True
    )
    follow = f"effvit sweep status {_shown(sweep.path)}"
    if not settings.wait:
        print(f"to see them:  {follow}\nto end them:  scancel {' '.join(names)}")
    elif wait(sweep, numbers, settings, _say):
        finish(sweep, None)
    else:
        print(f"\nthe jobs go on\nto see them:  {follow}\nto end them:  scancel {' '.join(names)}")
        sys.exit(130)


def finish(sweep: Sweep, codes: dict[int, int] | None) -> None:
    """List the jobs and set the exit code; exits at once, 130, when a signal ended the sweep.

    Args:
        sweep: the sweep.
        codes: exit codes of the jobs that were run, where they are known.
    """
    from effvit_train.sweep.status import look, show

    rows = look(sweep)
    print()
    show(sweep, rows)
    codes = codes or {}
    if 130 in codes.values():
        print(f"\ninterrupted; to go on: {retry_command(sweep.path)}")
        sys.exit(130)
    failed = {2 if row.status == "failed" and not row.retry else codes.get(row.number, 1)
              for row in rows if row.status != "done"}  # fmt: skip
    SweepLauncher.exit_code = 0 if not failed else 2 if failed == {2} else 1
    if not failed and len(rows) > 1:
        print(
            f"next: effvit report {_shown(sweep.path)}   # all of them on one page; effvit advise says what to try"
        )


def register_launchers() -> None:
    """Make the launchers known to Hydra; may be called again."""
    store = ConfigStore.instance()
    kinds: dict[str, type[Launcher]] = {
        "serial": SerialLauncher, "parallel": ParallelLauncher, "slurm": SlurmLauncher,
    }  # fmt: skip
    for name, kind in kinds.items():
        store.store(group="hydra/launcher", name=name, node=LAUNCHERS[name], provider="effvit_train")
        kind.__module__ = NAMESPACE
        Plugins.instance().register(kind)
    # Hydra takes launchers by name and from `hydra_plugins` only, a namespace that plugins install files into.
    # An entry in it for this module works from a clone, a wheel and an editable installation alike.
    top, _, name = NAMESPACE.partition(".")
    try:
        package = importlib.import_module(top)
    except ModuleNotFoundError:  # no plugin is installed
        package = sys.modules[top] = types.ModuleType(top)
        package.__path__ = []
    module = sys.modules[NAMESPACE] = sys.modules[__name__]
    setattr(package, name, module)


def _say(line: str) -> None:
    print(line, flush=True)


def _shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"
