"""Structured pruning while training: heads, widths and blocks are cut out of the running model.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

from effvit_train.compress.prune.config import PruneConfig, TargetConfig
from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.moment import Moment
from effvit_train.parts import FREEZES_WEIGHTS, READS_TRAINING_DATA, Attachment, Context, Part

__all__ = ["FEATURES", "PART", "PruneConfig", "TargetConfig", "attach"]

PART = Part(
    name="prune",
    key="compress",
    active=lambda config: "prune" in config.compress,
    schema=PruneConfig,
    refuses={FREEZES_WEIGHTS: "cuts away what all that is left has to make up for"},
)


def _reads_data(config: Config) -> bool:
    prune: PruneConfig | None = config.compress.get("prune")
    return prune is not None and prune.reads_data


def _by_weights_alone(config: Config) -> None:
    prune: PruneConfig = config.compress["prune"]
    prune.importance = "magnitude"
    if prune.fill_in != "none":
        raise UserError(
            "looks at the training images", key="compress.prune.compensate", value=prune.compensate,
            remedy="compress.prune.compensate=none",
        )  # fmt: skip


FEATURES = (
    Part(
        name="calibration",
        key="compress.prune.importance",
        active=_reads_data,
        does=frozenset({READS_TRAINING_DATA}),
        switch_off=_by_weights_alone,
        instead="compress.prune.importance=magnitude (and no compensation)",
    ),
)


def attach(config: Config, context: Context) -> Attachment:
    """Return the callback that cuts; refuses what cannot be cut, or not so far, before anything begins."""
    from effvit_train.compress.prune.callback import Pruning
    from effvit_train.compress.prune.checks import check_optimizer
    from effvit_train.compress.prune.preview import preview
    from effvit_train.compress.prune.pruner import Pruner

    prune: PruneConfig = config.compress["prune"]
    check_optimizer(config.recipe)
    pruner = Pruner(prune, context.record)
    left_out = [kind for kind in prune.kinds if kind not in pruner.kinds]
    if left_out:
        context.say(f"prune: {context.record.name} has no {', '.join(left_out)} that can be cut by us")
    pruner.check()
    provenance = pruner.facts()
    start, end = (
        Moment.read(getattr(prune, name), key=f"compress.prune.{name}") for name in ("start", "end")
    )
    return Attachment(
        alone=(start, start if prune.schedule == "one_shot" else end),
        callbacks=[Pruning(prune, pruner, provenance, context.say)],
        provenance={"pruning": provenance},
        preview=preview(prune, pruner, context) if prune.dry_run else None,
    )
