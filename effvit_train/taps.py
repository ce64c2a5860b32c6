"""Outputs of a model's inner modules, seen in passing: no forward is written a second time."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class Taps:
    """Keeps what the named submodules gave in the last forward.

    Args:
        model: the model.
        names: of submodules, such as `blocks.3` or `blocks.3.attn.qkv`.
        training_only: keep nothing in evaluation mode.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], *, training_only: bool = False) -> None:
        self._outputs: dict[str, Tensor] = {}
        self._training_only = training_only
        self._hooks = [
            model.get_submodule(name).register_forward_hook(functools.partial(self._keep, name))
            for name in sorted(set(names))
        ]

    def take(self) -> dict[str, Tensor]:
        """The outputs by name; they are not kept any longer."""
        outputs = dict(self._outputs)
        self._outputs.clear()
        return outputs

    def remove(self) -> None:
        """Look no longer."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training or not self._training_only:
            self._outputs[name] = output
