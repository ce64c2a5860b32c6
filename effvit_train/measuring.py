"""All that is measured of a trained model, after its training or later: quality, cost, members, axes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effvit_train.attacks import attack
from effvit_train.audit.cost import measure_cost
from effvit_train.audit.quality import measure_quality
from effvit_train.audit.scaling import time_jobs
from effvit_train.audit.sizes import measure_sizes
from effvit_train.axes.run import audit
from effvit_train.axes.subject import Subject
from effvit_train.card import Measured
from effvit_train.compress.resolution import ResolutionConfig
from effvit_train.config import AuditConfig
from effvit_train.models.record import ArchitectureRecord
from effvit_train.module import VisionModule
from effvit_train.runs import RunDir

_SIZES_SECONDS = 4.0  # of timed rounds


def quality_and_cost(
    logits: Tensor,
    labels: Tensor,
    record: ArchitectureRecord,
    settings: AuditConfig,
    weights: Path,
    *,
    device: str,
    say: Callable[[str], None],
) -> tuple[Measured, dict[str, Any]]:
    """What is measured of every model: `quality/*` on test images, `cost/*` in a fresh process.

    Args:
        logits: (N, K) on test images.
        labels: (N,).
        record: of the model.
        settings: of the measuring.
        weights: file of the model.
        device: cpu | cuda.
        say: prints one line.

    Returns:
        The measures, and the conditions that cost was measured under.
    """
    measured = measure_quality(logits, labels)
    say("measuring cost in a fresh process ...")
    cost, conditions = measure_cost(
        record, settings, weights=weights, num_threads=torch.get_num_threads(), device=device
    )
    measured.merge(cost)
    return measured, conditions


def measure(
    subject: Subject,
    module: VisionModule,
    run_dir: RunDir,
    *,
    delta: float | None,
    shadow: Callable[[int], Path],
) -> tuple[Measured, dict[str, Any]]:
    """Measure what the configuration asks for.

    Args:
        subject: the model with its data.
        module: that holds it.
        run_dir: where its weights lie, and parts are kept.
        delta: of a private training.
        shadow: trains a shadow model (see `attacks.attack`).

    Returns:
        The measures, and the card's `provenance.cost_conditions`, `membership` and `audit`, and `resolution` of a
        model that takes images of several sizes.
    """
    measured, conditions = quality_and_cost(
        subject.logits, subject.labels, subject.record, subject.config.audit, run_dir.weights,
        device="cuda" if subject.device.type == "cuda" else "cpu", say=subject.say,
    )  # fmt: skip
    members, membership = attack(
        module, subject.data, config=subject.config, delta=delta, run_dir=run_dir.path, shadow=shadow
    )
    measured.merge(members)
    axes, facts = audit(subject, run_dir.path)
    measured.merge(axes)
    told = {"cost_conditions": conditions, "membership": membership, "audit": facts}
    sizes = _sizes(subject)
    return measured, told if sizes is None else told | {"resolution": sizes}


def _sizes(subject: Subject) -> dict[str, Any] | None:
    """A model's accuracy and cost at each size that it takes; None where that is one."""
    settings: ResolutionConfig | None = subject.config.compress.get("resolution")
    timer = functools.partial(
        time_jobs, num_threads=subject.config.audit.num_threads or torch.get_num_threads(),
        device="cuda" if subject.device.type == "cuda" else "cpu", seconds=_SIZES_SECONDS, longest=_SIZES_SECONDS / 2,
    )  # fmt: skip
    found = measure_sizes(subject, tolerance=(settings or ResolutionConfig()).tolerance, timer=timer)
    if found is not None:
        found["schedule"] = None if settings is None else settings.schedule
    return found
