"""How many jobs at once, and how many cores and which GPU each gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.hardware import cores, visible_gpus
from effvit_train.sweep.settings import ParallelSettings


@dataclass(frozen=True)
class Shares:
    """What the machine is divided into.

    Attributes:
        jobs: at once.
        threads: CPU threads of each; None = what the environment and the job say.
        gpus: names for CUDA_VISIBLE_DEVICES, dealt out in turn; none = the jobs see what we see.
    """

    jobs: int
    threads: int | None
    gpus: tuple[str, ...] = ()


def share(settings: ParallelSettings, trainers: Sequence[Any]) -> Shares:
    """Share out the cores that this process may use, and the GPUs.

    One job per core: n processes of one thread do more than one process of n threads, in which the threads
    wait for each other after each operation. Where the jobs use a GPU each, one job per GPU.

    Args:
        settings: what was typed.
        trainers: the `trainer` section of each job.
    """
    gpus = visible_gpus() if any(trainer.accelerator != "cpu" for trainer in trainers) else ()
    if any(trainer.devices != 1 for trainer in trainers):
        gpus = ()  # such a job takes several: it must see them all
        default = 1
    else:
        default = len(gpus) or cores()
    jobs = min(settings.jobs or default, max(1, len(trainers)))
    stated = os.environ.get("OMP_NUM_THREADS", "")
    threads = settings.threads or (
        int(stated) if stated.isdigit() and int(stated) else max(1, cores() // jobs)
    )
    return Shares(jobs, threads, gpus)


def fix_threads(configs: list[Config], threads: int) -> None:
    """Write the number of threads into the configurations: a job that goes on elsewhere keeps its bytes."""
    for config in configs:
        if config.trainer.num_threads is None:
            config.trainer.num_threads = threads


def one_process_each(configs: list[Config]) -> None:
    """Refuse jobs of several processes: the process of the sweep is one.

    Raises:
        UserError: `trainer.devices` is not 1.
    """
    for config in configs:
        if config.trainer.devices != 1:
            raise UserError(
                "several processes cannot be started from a sweep in this process", key="trainer.devices",
                value=config.trainer.devices, remedy="add hydra/launcher=parallel or slurm, or use one device per job",
            )  # fmt: skip
