"""Looking at a forward pass without leaving a trace: evaluation mode, and which submodule runs at present."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

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


class Where:
    """Follows a forward pass into the submodules and out again."""

    def __init__(self) -> None:
        self._stack: list[str] = [""]

    @property
    def name(self) -> str:
        """Of the innermost submodule whose forward runs; empty for the model itself."""
        return self._stack[-1]

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Follow what the model does meanwhile; it is left as found."""
        hooks = []
        for name, module in model.named_modules():
            if name:
                hooks.append(module.register_forward_pre_hook(self._enter(name)))
                hooks.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._stack.append(name)

        return enter

    def _leave(self, *_: Any) -> None:
        self._stack.pop()
