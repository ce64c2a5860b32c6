"""Evaluation mode, for as long as something is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def evaluating(*models: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Evaluation mode, without gradients unless they are asked for; afterwards each submodule is in its own mode."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with nullcontext() if gradients else torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
