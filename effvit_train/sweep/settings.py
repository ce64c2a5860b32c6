"""`hydra/launcher=serial|parallel|slurm` and their keys, `hydra.launcher.*`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from effvit_train.errors import UserError, at_least

# Hydra takes launchers from this namespace only; the classes are in `launchers` (see `register_launchers`).
NAMESPACE = "hydra_plugins.effvit_train"


@dataclass
class SerialSettings:
    """One job after the other, in this process."""

    _target_: str = f"{NAMESPACE}.SerialLauncher"

    def validate(self) -> None:
        """Nothing can be wrong."""


@dataclass
class ParallelSettings:
    """Each job in a process of its own, several at once, on this machine.

    Attributes:
        jobs: how many at once; null = one per GPU where the jobs use one, else one per core.
        threads: CPU threads of each job; null = the cores shared out. `trainer.num_threads` and the
            environment's OMP_NUM_THREADS go first.
    """

    _target_: str = f"{NAMESPACE}.ParallelLauncher"
    jobs: Optional[int] = None
    threads: Optional[int] = None

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        at_least("hydra.launcher.jobs", self.jobs, 1)
        at_least("hydra.launcher.threads", self.threads, 1)


@dataclass
class SlurmSettings:
    """Each job an element of a Slurm job array. Names are submitit's; null leaves the choice to the cluster.

    Attributes:
        name: of the jobs; null = the sweep directory's.
        partition, qos, account, constraint, nodelist, exclude, gres, comment, wckey, dependency, exclusive,
            mem_gb, mem_per_cpu, mem_per_gpu, gpus_per_node, gpus_per_task, mail_type, mail_user: as sbatch's.
        timeout_min: time limit of one start; a job that reaches it saves and is queued again.
        nodes: machines of each job; null = `trainer.num_nodes`.
        tasks_per_node: processes on each; null = `trainer.devices`.
        cpus_per_task: cores of each process, and its CPU threads unless `trainer.num_threads` says otherwise.
        array_parallelism: how many jobs may run at once.
        signal_delay_s: seconds before the time limit at which a job saves: more than a step and a save take.
        max_num_timeout: how often one job is queued again.
        setup, teardown: shell lines before and after each start, such as `module load cuda`.
        srun_args: further arguments of srun.
        additional_parameters: further options of sbatch, by name.
        wait: whether the command waits until all jobs have ended, and lists them.
        poll_s: seconds between two looks at them.
    """

    _target_: str = f"{NAMESPACE}.SlurmLauncher"
    name: Optional[str] = None
    partition: Optional[str] = None
    qos: Optional[str] = None
    account: Optional[str] = None
    constraint: Optional[str] = None
    nodelist: Optional[str] = None
    exclude: Optional[str] = None
    gres: Optional[str] = None
    comment: Optional[str] = None
    wckey: Optional[str] = None
    dependency: Optional[str] = None
    exclusive: Optional[bool] = None
    mem_gb: Optional[float] = None
    mem_per_cpu: Optional[str] = None
    mem_per_gpu: Optional[str] = None
    gpus_per_node: Optional[int] = None
    gpus_per_task: Optional[int] = None
    mail_type: Optional[str] = None
    mail_user: Optional[str] = None
    timeout_min: int = 240
    nodes: Optional[int] = None
    tasks_per_node: Optional[int] = None
    cpus_per_task: int = 4
    array_parallelism: int = 256
    signal_delay_s: int = 120
    max_num_timeout: int = 100
    setup: list[str] = field(default_factory=list)
    teardown: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    wait: bool = True
    poll_s: float = 10.0

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        for key in (
            "timeout_min",
            "nodes",
            "tasks_per_node",
            "cpus_per_task",
            "array_parallelism",
            "signal_delay_s",
        ):
            at_least(f"hydra.launcher.{key}", getattr(self, key), 1)
        at_least("hydra.launcher.max_num_timeout", self.max_num_timeout, 0)
        at_least("hydra.launcher.poll_s", self.poll_s, 0.1)
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise UserError(
                f"must be less than the time limit ({self.timeout_min} min)", key="hydra.launcher.signal_delay_s",
                value=self.signal_delay_s, remedy="e.g. hydra.launcher.timeout_min=60",
            )  # fmt: skip


Settings = SerialSettings | ParallelSettings | SlurmSettings
LAUNCHERS: dict[str, type[Settings]] = {
    "serial": SerialSettings,
    "parallel": ParallelSettings,
    "slurm": SlurmSettings,
}


def settings_of(node: Any) -> Settings:
    """The validated settings that a configuration node (`hydra.launcher`, or stored JSON) holds.

    Raises:
        UserError: a value that cannot be.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    assert isinstance(values, dict)
    schema = next(kind for kind in LAUNCHERS.values() if kind._target_ == values.get("_target_"))
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    assert isinstance(settings, SerialSettings | ParallelSettings | SlurmSettings)
    settings.validate()
    return settings


def launcher_keys(overrides: list[str]) -> list[str]:
    """The keys of the launcher that these overrides choose."""
    chosen = [item.partition("=")[2] for item in overrides if item.startswith("hydra/launcher=")]
    schema = LAUNCHERS.get(chosen[-1] if chosen else "serial", SerialSettings)
    return [item.name for item in fields(schema) if not item.name.startswith("_")]
