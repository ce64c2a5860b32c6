"""From the overrides of a sweep to run directories that wait: all is composed and checked before any starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from effvit_train.compose import explain, load, model_label, refuse_set
from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.runs import (
    QUEUED,
    RunDir,
    RunState,
    discard,
    ensure_writable,
    training_command,
    write_config,
)
from effvit_train.sweep.plan import NAME, Sweep, SweepJob
from effvit_train.sweep.settings import Settings


def prepare(
    loader: ConfigLoader,
    composed: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    *,
    first: int,
    settings: Settings,
    adjust: Callable[[list[Config]], None],
    say: Callable[[str], None],
) -> Sweep:
    """Compose and check every job, give those that can be a run directory, and write `sweep.json`.

    Args:
        loader: Hydra's.
        composed: the configuration of the whole sweep, `hydra` included.
        job_overrides: of each job.
        first: number of the first job.
        settings: of the launcher.
        adjust: may change the configurations for where they will run; refuses what cannot run there.
        say: prints one line.

    Raises:
        UserError: no job can be; the first one's reason.
    """
    path = Path(str(composed.hydra.sweep.dir)).resolve()
    jobs, ready, refused = [], [], []
    told: set[str] = set()

    def tell_once(line: str) -> None:
        if line not in told:
            told.add(line)
            say(line)

    before = HydraConfig.instance().cfg
    try:
        for number, overrides in enumerate(job_overrides, start=first):
            try:
                config, typed, label = _compose(loader, composed, list(overrides), number, path, tell_once)
            except Exception as error:
                ours = explain(error, list(overrides))
                if ours is None:
                    raise
                refused.append(ours)
                jobs.append(SweepJob(number, list(overrides), refused=str(ours)))
                continue
            job = SweepJob(number, typed)
            jobs.append(job)
            ready.append((job, config, label))
        if not ready:
            raise refused[0]
        adjust([config for _, config, _ in ready])
        ensure_writable(path)
    except UserError:
        discard(path)
        raise
    finally:
        HydraConfig.instance().cfg = before
    sweep = Sweep(path, asdict(settings), training_command(), jobs)
    if first and (path / NAME).exists():  # a sweeper that launches in batches
        sweep = Sweep(path, sweep.launcher, sweep.command, [*Sweep.read(path).jobs, *jobs])
    for job, config, label in ready:
        _write(RunDir(sweep.run_dir(job)), config, job.overrides, label)
    sweep.write()
    for job in jobs:
        if job.refused is not None:
            say(f"job {job.number} cannot be: {job.refused}")
    return sweep


def _compose(
    loader: ConfigLoader, composed: DictConfig, overrides: list[str], number: int, path: Path,
    say: Callable[[str], None],
) -> tuple[Config, list[str], str]:  # fmt: skip
    """The validated configuration of one job, the overrides that it is known by, and its model's label."""
    cfg = loader.load_sweep_config(composed, overrides)
    with read_write(cfg), open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
        cfg.hydra.runtime.output_dir = str(path / str(number))
    HydraConfig.instance().set_config(cfg)
    refuse_set()
    typed = [str(item) for item in OmegaConf.to_container(cfg.hydra.overrides.task) or []]
    task = copy.deepcopy(cfg)
    with read_write(task), open_dict(task):
        del task["hydra"]
    config = load(task, typed, say)
    for name, technique in config.compress.items():
        if getattr(technique, "dry_run", False):
            raise UserError(
                "shows what would be done, of one model", key=f"compress.{name}.dry_run", value=True,
                remedy="leave out -m",
            )  # fmt: skip
    return config, typed, model_label(config, typed)


def _write(run_dir: RunDir, config: Config, overrides: list[str], label: str) -> None:
    config.run_dir = str(run_dir.path)
    write_config(run_dir, config, overrides)
    state = RunState.new()
    state.status, state.name, state.model, state.slurm_job = QUEUED, config.name, label, None
    state.write(run_dir.state)
