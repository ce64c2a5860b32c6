"""DP-SGD (Abadi et al. 2016): every image's part of a gradient is clipped, the sum is noised and accounted for.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.parts import (
    CHANGES_GRADIENTS,
    IN_TASKS,
    MIXES_SAMPLES,
    READS_TRAINING_DATA,
    UNDECLARED_DATA,
    Attachment,
    Context,
    Part,
)

__all__ = ["PART", "attach"]

PART = Part(
    name="dp_sgd",
    key="privacy",
    active=lambda config: config.privacy.mechanism == "dp_sgd",
    refuses={
        MIXES_SAMPLES: "clips what each image contributes: none may be part of another one's loss",
        READS_TRAINING_DATA: "accounts for every look at the training images: this one would not be counted",
        UNDECLARED_DATA: "must know what a teacher has seen",
        IN_TASKS: "draws every batch from all training images",
        CHANGES_GRADIENTS: "clips each image by itself: clipping the noised sum again would only spoil it",
    },
)

# They look at the loss again, or scale it: neither is what was accounted for.
_OPTIMIZERS = ("adahessian", "lbfgs")
_STRATEGIES = ("auto", "ddp")


def attach(config: Config, context: Context) -> Attachment:
    """Return the callback that makes the steps private; refuses what cannot be, before anything begins."""
    from torch import nn

    from effvit_train.privacy.dp_sgd.callback import PrivateTraining
    from effvit_train.privacy.dp_sgd.plan import check_plan
    from effvit_train.privacy.engine import Clip, make_engine

    _check(config)
    privacy = config.privacy
    # what the training would find out, after it has begun
    make_engine(privacy.engine, nn.ModuleDict({"model": context.model}), Clip(privacy.max_grad_norm)).close()
    devices = config.trainer.devices
    processes = (devices if isinstance(devices, int) else 1) * config.trainer.num_nodes
    check_plan(
        privacy,
        images=len(context.train_ids) + len(context.absent_ids),
        batch=config.recipe.batch_size * processes,
        steps=context.total_steps(processes),
    )
    private = PrivateTraining(config, context.info, context.train_ids, context.say, absent=context.absent_ids)
    return Attachment(callbacks=[private], review=private.review, measured=private.measured)


def _check(config: Config) -> None:
    if config.recipe.optimizer.lower() in _OPTIMIZERS:
        raise UserError(
            "needs more of the loss than the noised gradient, which is all that privacy=dp_sgd gives",
            key="recipe.optimizer", value=config.recipe.optimizer, remedy="e.g. recipe.optimizer=adamw",
        )  # fmt: skip
    if config.trainer.precision == "16-mixed":
        raise UserError(
            "scales the loss, and privacy=dp_sgd takes no gradient of it", key="trainer.precision",
            value="16-mixed", remedy="trainer.precision=bf16-mixed",
        )  # fmt: skip
    if config.trainer.strategy not in _STRATEGIES:
        raise UserError(
            f"with privacy=dp_sgd must be one of {', '.join(_STRATEGIES)}", key="trainer.strategy",
            value=config.trainer.strategy, remedy="trainer.strategy=ddp",
        )  # fmt: skip
