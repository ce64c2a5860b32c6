"""Models that a run needs trained first: trained once, kept under `cache_dir`, found by what shaped them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from effvit_train._version import __version__
from effvit_train.config import Config
from effvit_train.runs import RunDir, RunState, ensure_writable

if TYPE_CHECKING:
    from effvit_train.job import Job


def teacher_trainer(job: Job, run_job: Callable[[Job], object]) -> Callable[[Config, str, str], Path]:
    """Return `train(config, what, fingerprint)`: train another model on the same data, or find it trained."""

    def train(config: Config, what: str, fingerprint: str) -> Path:
        settings = copy.deepcopy(config)
        settings.compress = {}
        length = settings.trainer.max_epochs
        trainer = copy.deepcopy(job.config.trainer)
        trainer.max_epochs, trainer.devices, trainer.strategy, trainer.num_nodes = length, 1, "auto", 1
        trainer.precision, trainer.compile, trainer.checkpoint_every = "auto", False, None
        trainer.limit_train_batches = trainer.limit_val_batches = trainer.limit_test_batches = None
        settings.trainer = trainer
        return _trained(job, run_job, settings, what, fingerprint, "teachers")

    return train


def shadow_trainer(job: Job, run_job: Callable[[Job], object], fingerprint: str) -> Callable[[int], Path]:
    """Return `train(number)`: train a shadow model of the job's, or find it trained (see `data.shadows`)."""

    def train(number: int) -> Path:
        settings = copy.deepcopy(job.config)
        settings.audit.shadow, settings.audit.canaries = number, 0
        settings.trainer.devices, settings.trainer.strategy, settings.trainer.num_nodes = 1, "auto", 1
        settings.privacy.secret = None
        what = f"shadow {number + 1}/{job.config.audit.shadow_models}"
        return _trained(job, run_job, settings, what, fingerprint, "shadows")

    return train


def _trained(
    job: Job, run_job: Callable[[Job], object], settings: Config, what: str, fingerprint: str, folder: str
) -> Path:
    """The run directory of a training with these settings, under `cache_dir`; an earlier one is found again."""
    settings.logger.enabled, settings.audit.level = False, "none"
    cache = Path(settings.cache_dir) / folder
    run = RunDir(cache / f"{settings.model.name.replace('/', '_')}-{_key(settings, fingerprint)}")
    ensure_writable(cache, key="cache_dir")
    with FileLock(f"{run.path}.lock"):
        if run.state.exists() and RunState.read(run.state).status == "done" and run.weights.exists():
            job.say(f"{what}: {settings.model.name}, trained before ({run.path})")
            return run.path
        resumed = run.state.exists()  # an earlier attempt that did not end
        job.say(f"{what}: training {settings.model.name} first; kept in {run.path}")
        name = f"{what}-{settings.model.name}"
        run_job(
            dataclasses.replace(
                job, config=settings, run_dir=run, name=name, model=settings.model.name,
                overrides=[], stage=what, resumed=resumed,
            )
        )  # fmt: skip
    return run.path


def _key(config: Config, fingerprint: str) -> str:
    """Hash of everything that shapes a trained teacher, its data included."""
    shaped = asdict(config)
    for key in ("name", "run_dir", "resume", "cache_dir", "logger", "audit", "update"):
        shaped.pop(key)
    if config.audit.shadow is not None:
        shaped["shadow"] = [config.audit.shadow, config.audit.shadow_models]
    shaped["trainer"] = {
        key: shaped["trainer"][key] for key in ("max_epochs", "precision", "accelerator", "fast_dev_run")
    }
    for key in ("num_workers", "in_memory", "memory_limit_mb"):
        shaped["dataset"].pop(key)
    shaped["data"] = fingerprint
    shaped["version"] = __version__
    text = json.dumps(shaped, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
