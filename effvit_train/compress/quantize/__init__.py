"""Fewer bits: linear layers in int8 or bf16, after the training or while it goes on.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

from effvit_train.compress.quantize.config import KEY, QuantizeConfig
from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.moment import Moment
from effvit_train.parts import FREEZES_WEIGHTS, Attachment, Context, Part, PlannedChange

__all__ = ["FEATURES", "PART", "QuantizeConfig", "attach"]

PART = Part(
    name="quantize",
    key="compress",
    active=lambda config: "quantize" in config.compress,
    schema=QuantizeConfig,
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
    from effvit_train.compress.quantize.decide import Decide
    from effvit_train.models.quantised import is_quantised

    quantize: QuantizeConfig = config.compress["quantize"]
    if is_quantised(context.model):
        raise UserError(
            "is there already: the model has been quantised", key="compress", value="quantize",
            remedy="start from the run before it was",
        )  # fmt: skip
    changes = [PlannedChange("quantize", KEY, Moment(1.0, "fraction"), Decide(quantize, fake=False))]
    if quantize.qat:
        start = Moment.read(quantize.start, key=f"{KEY}.start")
        changes.insert(0, PlannedChange("qat", f"{KEY}.start", start, Decide(quantize, fake=True)))
    return Attachment(changes=changes)
