"""Low rank: linear layers become products of two narrow ones, which are trained further.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effvit_train.compress.lowrank.config import ACTIVATION, KEY, LowRankConfig, TargetConfig
from effvit_train.config import Config
from effvit_train.moment import Moment
from effvit_train.parts import (
    FREEZES_WEIGHTS,
    NEW_WEIGHTS,
    READS_TRAINING_DATA,
    ROUNDED_WEIGHTS,
    Attachment,
    Context,
    Part,
    PlannedChange,
)

if TYPE_CHECKING:
    from effvit_train.parts import Decided

__all__ = ["FEATURES", "PART", "LowRankConfig", "TargetConfig", "attach"]

NAME = "lowrank"
_FROM_SCRATCH = 0.6  # of the training: after pruning, where that is switched on too


def _on(config: Config) -> LowRankConfig | None:
    return config.compress.get(NAME)


def _start(config: Config) -> Any:
    """When the model is factored, as it was given or by default."""
    start = config.compress[NAME].start
    if start is None:
        return 0 if config.model.weights or config.model.pretrained else _FROM_SCRATCH
    return start


def _resolve(config: Config) -> None:
    config.compress[NAME].start = _start(config)


def _moment(config: Config) -> Moment:
    return Moment.read(_start(config), key=f"{KEY}.start", end=True)


def _reads_data(config: Config) -> bool:
    lowrank = _on(config)
    return lowrank is not None and lowrank.weighting == ACTIVATION


def _by_weights_alone(config: Config) -> None:
    config.compress[NAME].weighting = "none"


def _trained_further(config: Config) -> bool:
    return _on(config) is not None and not _moment(config).at_end


def _midway(config: Config) -> bool:
    return _trained_further(config) and _moment(config).value > 0


PART = Part(
    name=NAME,
    key="compress",
    active=lambda config: NAME in config.compress,
    schema=LowRankConfig,
    resolve=_resolve,
)

FEATURES = (
    Part(
        name="calibration",
        key=f"{KEY}.weighting",
        active=_reads_data,
        does=frozenset({READS_TRAINING_DATA}),
        switch_off=_by_weights_alone,
        instead=f"{KEY}.weighting=none",
    ),
    Part(
        name="factors that are trained",
        key=f"{KEY}.start",
        active=_trained_further,
        refuses={
            FREEZES_WEIGHTS: f"make up for what is lost, and frozen ones could not ({KEY}.start=1 factors the model "
            "after the training)"
        },
    ),
    Part(
        name="during the training",
        key=f"{KEY}.start",
        active=_midway,
        does=frozenset({NEW_WEIGHTS}),
        instead=f"{KEY}.start=1 factors the model after the training, {KEY}.start=0 before it",
    ),
)


def attach(config: Config, context: Context) -> Attachment:
    """Plan the change; refuses what cannot be factored, or not so far, before anything begins."""
    from effvit_train.compress.lowrank.checks import check_optimizer
    from effvit_train.compress.lowrank.plan import check, decide
    from effvit_train.models.quantised import refuse_cutting

    lowrank: LowRankConfig = config.compress[NAME]
    moment = _moment(config)
    refuse_cutting(context.model, "compress", NAME)
    check(lowrank, context.record)
    if not moment.at_end:
        check_optimizer(config.recipe)

    def decide_now(module: Any, data: Any, epoch: int) -> Decided | None:
        model = module.shipped if moment.at_end else module.model
        return decide(lowrank, model, module, data, epoch, context.say)

    after = {ROUNDED_WEIGHTS: "layers that round their weights cannot be factored"}
    return Attachment(changes=[PlannedChange(NAME, f"{KEY}.start", moment, decide_now, refuses=after)])
