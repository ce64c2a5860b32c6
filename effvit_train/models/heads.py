"""A classifier that grows as classes come: a change of the architecture, as its record holds it (contract C5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.models.linears import classifiers
from effvit_train.models.surgery import Change

GROWN = "grow_head"  # the `kind` of our entries in an architecture record


class CannotGrowError(ValueError):
    """The model has no classifier of plain linear layers."""


@dataclass(frozen=True)
class Grow(Change):
    """Append rows to the classifier's layers.

    Attributes:
        rows: layer -> weights (new classes, features) and bias (new classes,) of what is appended.
    """

    rows: dict[str, tuple[Tensor, Tensor]]

    @torch.no_grad()
    def carry_out(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Append them; parameters keep their identity, and what the optimizer keeps of the new ones is zero."""
        for name, (weight, bias) in self.rows.items():
            layer: Any = model.get_submodule(name)
            _append(layer.weight, weight, optimizer)
            if layer.bias is not None:
                _append(layer.bias, bias, optimizer)
            layer.out_features = layer.weight.shape[0]
            model.num_classes = layer.out_features


def grow(model: nn.Module, classes: Sequence[str], *, seed: int) -> tuple[list[Grow], dict[str, Any]]:
    """The operations and the record's entry that append classes to a model.

    Args:
        model: with a classifier of linear layers.
        classes: names of the new ones.
        seed: of the new rows, drawn as timm draws a classifier's (normal, cut off, s.d. 0.02).

    Raises:
        CannotGrowError: the model has no such classifier.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for name in logits_layers(model):
        layer: Any = model.get_submodule(name)
        weight = torch.empty(len(classes), layer.in_features)
        nn.init.trunc_normal_(weight, std=0.02, generator=generator)
        rows[name] = (weight, torch.zeros(len(classes)))
    return [Grow(rows)], {"kind": GROWN, "classes": list(classes)}


def recorded(model: nn.Module, entry: Mapping[str, Any]) -> list[Grow]:
    """The operations that append as many classes as recorded; raises `ValueError` for another model's record."""
    classes = entry.get("classes")
    if not isinstance(classes, list) or not classes:
        raise ValueError("grown classes in the architecture record have no names")
    return grow(model, classes, seed=0)[0]


def logits_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that give logits, one for each head.

    Raises:
        CannotGrowError: there are none.
    """
    inner = [
        None
        if head is None
        else next((p for p in reversed(list(head.modules())) if type(p) is nn.Linear), None)
        for head in classifiers(model)
    ]
    names = {id(module): name for name, module in model.named_modules()}
    if not inner or any(head is None for head in inner):
        raise CannotGrowError(f"{type(model).__name__} has no classifier of linear layers, which could grow")
    return [names[id(head)] for head in inner]


def _append(parameter: nn.Parameter, rows: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    shape, rows = parameter.shape, rows.to(parameter)
    if optimizer is not None and parameter in optimizer.state:
        state = optimizer.state[parameter]
        if any(isinstance(value, Tensor) and value.ndim and value.shape != shape for value in state.values()):
            del optimizer.state[parameter]  # kept by rows and columns, as Adafactor does: it is begun anew
        else:
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == shape:
                    state[key] = torch.cat([value, torch.zeros_like(rows, dtype=value.dtype)])
    parameter.grad = None
    parameter.data = torch.cat([parameter.data, rows])
