"""A model in training without what is random in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import DropPath, PatchDropout
from torch import nn


@contextmanager
def deterministic(modules: nn.Module) -> Iterator[None]:
    """Switch off dropout and stochastic depth, which would add noise of their own."""
    noisy = [
        module
        for module in modules.modules()
        if isinstance(module, (nn.modules.dropout._DropoutNd, DropPath, PatchDropout)) and module.training
    ]
    attention = [getattr(module, "attn_drop", None) for module in modules.modules()]
    rates = [(drop, drop.p) for drop in attention if isinstance(drop, nn.Dropout)]
    for module in noisy:
        module.training = False
    for drop, _ in rates:
        drop.p = 0.0  # fused attention reads the rate itself, in its own mode
    try:
        yield
    finally:
        for module in noisy:
            module.training = True
        for drop, rate in rates:
            drop.p = rate
