"""Fewer bits: linear layers in int8 or bf16, after the training or while it goes on.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

from typing import Any

from effvit_train.compress.quantize.config import KEY, QuantizeConfig
from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.moment import Moment
from effvit_train.parts import FREEZES_WEIGHTS, ROUNDED_WEIGHTS, Attachment, Context, Part, PlannedChange

__all__ = ["FEATURES", "PART", "QuantizeConfig", "attach"]

_FROM_SCRATCH = 0.5  # of the training: before, weights move too far


def _starts_trained(config: Config) -> bool:
    return bool(config.model.weights or config.model.pretrained)


def _start(config: Config) -> Any:
    """When training for int8 begins, as it was given or by default."""
    start = config.compress["quantize"].start
    if start is None:
        return 0 if _starts_trained(config) else _FROM_SCRATCH
    return start


def _resolve(config: Config) -> None:
    config.compress["quantize"].start = _start(config)


PART = Part(
    name="quantize",
    key="compress",
    active=lambda config: "quantize" in config.compress,
    schema=QuantizeConfig,
    resolve=_resolve,
)


def _trains(config: Config) -> bool:
    quantize: QuantizeConfig | None = config.compress.get("quantize")
    return quantize is not None and quantize.qat


FEATURES = (
    Part(
        name="qat",
        key=f"{KEY}.qat",
        active=_trains,
        refuses={FREEZES_WEIGHTS: "trains the weights that it rounds"},
        instead="recipe.tune=all, or quantise after the training",
    ),
)


def attach(config: Config, context: Context) -> Attachment:
    """Return the changes: layers that train for int8 at `start`, and fewer bits after the last step."""
    from effvit_train.compress.quantize.decide import Decide, check
    from effvit_train.models.quantised import is_quantised

    quantize: QuantizeConfig = config.compress["quantize"]
    if is_quantised(context.model):
        raise UserError(
            "is there already: the model has been quantised", key="compress", value="quantize",
            remedy="start from the run before it was",
        )  # fmt: skip
    check(quantize, context.record)
    changes = [PlannedChange("quantize", KEY, Moment(1.0, "fraction"), Decide(quantize, fake=False))]
    if quantize.qat:
        start = Moment.read(_start(config), key=f"{KEY}.start")
        untrained = start.value == 0 and not _starts_trained(config)
        decide = Decide(quantize, fake=True, untrained=untrained)
        qat = PlannedChange(
            "qat", f"{KEY}.start", start, decide, leaves=frozenset({ROUNDED_WEIGHTS}), trains=f"{KEY}.qat"
        )
        changes.insert(0, qat)
    return Attachment(changes=changes)
