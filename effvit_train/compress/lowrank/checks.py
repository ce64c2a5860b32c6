"""What a run must not have, if its layers are to be replaced while it trains them."""

from __future__ import annotations

from timm.optim import create_optimizer_v2
from torch import nn

from effvit_train.compress.lowrank.config import KEY
from effvit_train.config import RecipeConfig
from effvit_train.errors import UserError


def check_optimizer(recipe: RecipeConfig) -> None:
    """Refuse an optimizer that makes its state before the first step: new factors would have none.

    Raises:
        UserError: it is one.
    """
    try:
        optimizer = create_optimizer_v2(
            nn.Linear(8, 8), opt=recipe.optimizer, lr=recipe.lr, **recipe.opt_args
        )
    except (AssertionError, ImportError, RuntimeError, TypeError):
        return  # `build` tells what is wrong with it
    if any(optimizer.state.values()):
        raise UserError(
            "makes its state before the first step, and layers that come later would have none",
            key="recipe.optimizer", value=recipe.optimizer,
            remedy=f"e.g. recipe.optimizer=adamw, or {KEY}.start=1",
        )  # fmt: skip
