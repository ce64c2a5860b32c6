"""Looking at a forward pass without leaving a trace: which submodule runs at present."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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
