"""Attacks on the model that a training has ended with: what it gives away of who was in its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effvit_train.audit.membership import (
    ATTACKED,
    BOUND,
    FILE,
    Shadows,
    measure_canaries,
    measure_members,
)
from effvit_train.card import Measured
from effvit_train.config import Config
from effvit_train.data.datamodule import DataModule
from effvit_train.files import write_json
from effvit_train.models.factory import load_model
from effvit_train.models.record import ArchitectureRecord
from effvit_train.module import VisionModule
from effvit_train.predictions import normaliser, predict
from effvit_train.runs import RunDir

Ids = npt.NDArray[np.int64]


def attack(
    module: VisionModule,
    data: DataModule,
    *,
    config: Config,
    delta: float | None,
    run_dir: Path,
    shadow: Callable[[int], Path],
) -> tuple[Measured, dict[str, Any]]:
    """The card's `privacy/*` that are measured from outside, and its `provenance.membership`.

    Args:
        module: trained.
        data: that it was trained on.
        config: of the run.
        delta: of a private training.
        run_dir: takes what only its owner may see.
        shadow: trains shadow model number s, or finds it trained; returns its run directory.
    """

    def judged(ids: Ids) -> tuple[Tensor, Tensor]:
        return predict(module.shipped, module.normalise, data.loader_of(ids), module.device)[:2]

    measured, told = Measured(), {}
    if data.canaries is None:
        measured.missing[BOUND] = "no canaries were planted (audit.canaries=1000 plants them at the start)"
    else:
        slots = len(data.indices("train")) + len(data.canaries.left_out)
        delta = delta or config.privacy.delta_of(slots)
        measured, told["canaries"] = measure_canaries(*judged(data.canaries.ids), data.canaries, delta)
    if config.audit.level == "none" or config.trainer.fast_dev_run:
        measured.missing |= dict.fromkeys(ATTACKED, "not measured (audit=none)")
        return measured, told
    count = config.audit.shadow_models
    members, others, known = data.attacked(count)
    ids, population = np.concatenate([members, others]), data.indices("val")
    shadows = None
    if count:
        runs = [shadow(number) for number in range(count)]
        of_ids, of_population = (
            torch.stack([_shadow_logits(run, data, chosen) for run in runs]) for chosen in (ids, population)
        )
        own, labels = judged(population)
        shadows = Shadows(of_ids, known, (torch.cat([own[None], of_population]), labels))
    inside = np.repeat([True, False], [len(members), len(others)])
    values, facts = measure_members(*judged(ids), inside, shadows)
    if config.privacy.on:  # it looks at training images once more, and epsilon does not count that
        write_json(run_dir / FILE, {"measures": values, **facts}, mode=0o600)
        measured.missing |= dict.fromkeys(
            ATTACKED, f"looks at private images: in {FILE}, for its owner alone"
        )
    else:
        measured.values |= values
        told["attack"] = facts
    return measured, told


def _shadow_logits(run: Path, data: DataModule, ids: Ids) -> Tensor:
    record = ArchitectureRecord.read(RunDir(run).record)
    return predict(load_model(run), normaliser(record), data.loader_of(ids))[0]
