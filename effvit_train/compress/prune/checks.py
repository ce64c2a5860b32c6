"""What a run must not have, if its model is to be cut."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from effvit_train.config import RecipeConfig
from effvit_train.errors import UserError


def check_optimizer(recipe: RecipeConfig) -> None:
    """Refuse an optimizer whose state cannot be cut along with a parameter.

    It takes a step with a small layer: what it keeps must be as large as the parameter, or one number.

    Raises:
        UserError: it keeps anything else, such as rows and columns of a factored average.
    """
    layer = nn.Linear(160, 144)  # small ones are not factored
    try:
        optimizer = create_optimizer_v2(layer, opt=recipe.optimizer, lr=recipe.lr, **recipe.opt_args)
        with torch.random.fork_rng(devices=[]):
            layer(torch.ones(2, 160)).square().sum().backward()
        optimizer.step()
    except (AssertionError, ImportError, RuntimeError, TypeError):
        return  # `build` tells what is wrong with it
    for parameter, state in optimizer.state.items():
        for value in state.values():
            nested = isinstance(value, (list, tuple, dict))
            if nested or (isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape):
                raise UserError(
                    "keeps a state that cannot be cut along with the weights",
                    key="recipe.optimizer", value=recipe.optimizer, remedy="e.g. recipe.optimizer=adamw",
                )  # fmt: skip
