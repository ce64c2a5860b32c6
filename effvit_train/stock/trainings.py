"""The trainings of a learning curve: ordinary runs on shares of the training images, found again when repeated."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from effvit_train._version import __version__
from effvit_train.card import Card
from effvit_train.config import Config
from effvit_train.data.info import DataInfo
from effvit_train.errors import MachineError, UserError
from effvit_train.job import Job, run_job
from effvit_train.report.inputs import read_curves
from effvit_train.runs import RunDir, RunState, ensure_writable
from effvit_train.signals import Stop
from effvit_train.stock.learning import Point

WHERE = Path("runs") / "inspect"
# What shapes no training.
_ELSEWHERE = ("name", "run_dir", "resume", "cache_dir", "logger", "audit")
_NOT_IN_DATA = ("num_workers", "in_memory", "memory_limit_mb", "root")
_NOT_IN_TRAINER = ("progress_bar", "checkpoint_every", "log_every_n_steps", "num_threads")


@dataclass(frozen=True)
class Trained:
    """A point of the curve.

    Attributes:
        fraction: of the training images.
        point: images, and errors on validation images.
        epochs: trained.
        run_dir: of the run.
    """

    fraction: float
    point: Point
    epochs: int
    run_dir: str

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        accuracy, (low, high) = self.point.accuracy, self.point.interval
        return {**asdict(self), "accuracy": accuracy, "interval": [low, high]}


def train_curve(
    config: Config, typed: Sequence[str], fractions: Sequence[float], info: DataInfo, stop: Stop, console: Console
) -> list[Trained]:  # fmt: skip
    """Train on each of `fractions` (ascending) of the training images, with equally many optimizer steps.

    A smaller share is gone through more often, so that the curve shows what images add and not what steps do.
    A share holds the smaller ones. Runs lie in `runs/inspect`; one that is there is not trained again, one
    that was interrupted goes on.

    Raises:
        UserError: before anything is trained: the input is at fault.
        Interrupted: stopped by a signal.
    """
    ensure_writable(WHERE, key="runs/inspect")
    found = []
    for fraction in fractions:
        settings = share_of(config, fraction, info.counts["train"])
        run = RunDir((WHERE / f"{info.name}-{fraction:g}-{_key(settings, info.fingerprint)}").resolve())
        state = RunState.read(run.state) if run.state.exists() else None
        if state is None or state.status != "done":
            what = f"{fraction * 100:g} %"
            overrides = [*typed, f"dataset.train_fraction={settings.dataset.train_fraction:g}"]
            overrides.append(f"trainer.max_epochs={settings.trainer.max_epochs}")
            job = Job(
                settings, run, f"inspect-{fraction:g}", settings.model.name, overrides, console=console, stage=what,
                resumed=state is not None, stop=stop,
            )  # fmt: skip
            job.say(f"learning curve: training on {what} of the training images; kept in {run.path}")
            run_job(job)
        found.append(_read(run, fraction, settings))
    return found


def share_of(config: Config, fraction: float, images: int) -> Config:
    """The configuration of a training on `fraction` of `images` training images, steps and validations kept."""
    settings = copy.deepcopy(config)
    settings.logger.enabled, settings.audit.level, settings.audit.canaries = False, "none", 0
    settings.trainer.limit_val_batches = None  # errors are counted on all of them
    settings.trainer.devices, settings.trainer.strategy, settings.trainer.num_nodes = 1, "auto", 1
    settings.dataset.train_fraction = config.dataset.train_fraction * fraction
    batch = config.recipe.batch_size
    if fraction * images < batch:
        raise UserError(
            f"{fraction:g} of {images:,} training images is less than a batch of {batch}", key="--fractions", value=fraction,
            remedy=f"recipe.batch_size={max(1, int(fraction * images))}, or larger fractions",
        )  # fmt: skip
    longer = (images // batch) / (int(fraction * images) // batch)
    every = config.trainer.check_val_every_n_epoch
    validations = max(1, config.trainer.max_epochs // every)
    settings.trainer.check_val_every_n_epoch = max(1, round(every * longer))
    settings.trainer.max_epochs = validations * settings.trainer.check_val_every_n_epoch
    return settings


def _read(run: RunDir, fraction: float, settings: Config) -> Trained:
    """A finished run's last validation."""
    counts = Card.read(run.card).provenance["dataset"]["counts"]
    curve = read_curves(run.metrics).get("val/accuracy")
    if not curve:
        raise MachineError(
            f"{run.metrics} holds no validation; remove {run.path}, then the same command again"
        )
    total = int(counts["val"])
    point = Point(int(counts["train"]), round((1 - curve[-1][1]) * total), total)
    return Trained(fraction, point, settings.trainer.max_epochs, str(run.path))


def _key(config: Config, fingerprint: str) -> str:
    """Hash of everything that shapes a training."""
    shaped = asdict(config)
    for section, names in (
        (shaped, _ELSEWHERE),
        (shaped["dataset"], _NOT_IN_DATA),
        (shaped["trainer"], _NOT_IN_TRAINER),
    ):
        for name in names:
            section.pop(name)
    shaped |= {"data": fingerprint, "version": __version__}
    return hashlib.sha256(json.dumps(shaped, sort_keys=True, default=str).encode()).hexdigest()[:12]
