"""Attacks on the model that a training has ended with: what it gives away of who was in its data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from effvit_train.audit.membership import ATTACKED, BOUND, FILE, measure_canaries, measure_members
from effvit_train.card import Measured
from effvit_train.config import Config
from effvit_train.data import draws
from effvit_train.data.datamodule import DataModule
from effvit_train.files import write_json
from effvit_train.keys import stream_key
from effvit_train.module import VisionModule
from effvit_train.predictions import predict


def attack(
    module: VisionModule,
    data: DataModule,
    *,
    config: Config,
    others: tuple[Tensor, Tensor],
    delta: float | None,
    run_dir: Path,
) -> tuple[Measured, dict[str, Any]]:
    """The card's `privacy/*` that are measured from outside, and its `provenance.membership`.

    Args:
        module: trained.
        data: that it was trained on.
        config: of the run.
        others: logits (n, K) and labels (n,) of images that it was not trained on.
        delta: of a private training.
        run_dir: takes what only its owner may see.
    """
    measured, told = Measured(), {}
    if data.canaries is None:
        measured.missing[BOUND] = "no canaries were planted (audit.canaries=1000 plants them at the start)"
    else:
        logits, labels, _ = predict(module.shipped, module, data.loader_of(data.canaries.ids))
        slots = len(data.indices("train")) + len(data.canaries.left_out)
        delta = delta or config.privacy.delta_of(slots)
        measured, told["canaries"] = measure_canaries(logits, labels, data.canaries, delta)
    if config.audit.level == "none" or config.trainer.fast_dev_run:
        measured.missing |= dict.fromkeys(ATTACKED, "not measured (audit=none)")
        return measured, told
    order = draws.permutation(stream_key("members", config.seed), data.indices("train"))
    chosen = np.sort(order[: len(others[1])])
    members = predict(module.shipped, module, data.loader_of(chosen))[:2]
    values, facts = measure_members(members, others)
    if config.privacy.on:  # it looks at training images once more, and epsilon does not count that
        path = run_dir / FILE
        write_json(path, {"measures": values, **facts})
        os.chmod(path, 0o600)
        measured.missing |= dict.fromkeys(
            ATTACKED, f"looks at private images: in {FILE}, for its owner alone"
        )
    else:
        measured.values |= values
        told["attack"] = facts
    return measured, told
