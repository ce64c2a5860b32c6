"""Which linear layers of a model can be factored, and what that saves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.audit.operations import count_operations
from effvit_train.compress.lowrank.config import KEY
from effvit_train.errors import UserError
from effvit_train.models.factored import FactoredLinear, is_linear, shape_of
from effvit_train.models.factory import build, count_parameters
from effvit_train.models.linears import kinds_of_layers
from effvit_train.models.low_rank import record_of, recorded
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply


@dataclass(frozen=True)
class Layer:
    """A linear layer that can be factored.

    Attributes:
        name: of the submodule.
        kind: qkv | proj | fc1 | fc2 | other | patch_embed | head.
        shape: (out, in).
        positions: of one image that it is applied to.
        weights: that it has now, without the bias.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    positions: int
    weights: int

    @property
    def highest(self) -> int:
        """The highest rank that saves something; 0 where none does."""
        return math.ceil(self.weights / sum(self.shape)) - 1

    def costs(self, rank: int | None) -> dict[str, int]:
        """MACs of one image and parameters, at a rank or as it is (None)."""
        weights = self.weights if rank is None else rank * sum(self.shape)
        return {"macs": weights * self.positions, "params": weights}


@dataclass(frozen=True)
class Found:
    """A model's linear layers.

    Attributes:
        layers: that can be factored.
        costs: MACs of one image and parameters of the whole model.
    """

    layers: tuple[Layer, ...]
    costs: dict[str, int]

    def after(self, ranks: dict[str, int]) -> dict[str, int]:
        """The costs of the model with these ranks."""
        costs = dict(self.costs)
        for layer in self.layers:
            if layer.name in ranks:
                now, then = layer.costs(None), layer.costs(ranks[layer.name])
                costs = {name: cost - now[name] + then[name] for name, cost in costs.items()}
        return costs


def find_layers(record: ArchitectureRecord, kinds: Collection[str]) -> Found:
    """The layers of these kinds that are called, and so can be replaced; on the meta device.

    A layer whose weights are used without calling it, or are another layer's too, is left out.

    Raises:
        UserError: the model has none of them, or a layer is called and its weights are used beside that.
    """
    with torch.device("meta"):
        model = build(record)
    linear = _linear_layers(model)
    positions: Counter[str] = Counter()

    def count(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            positions[name] += output.numel() // output.shape[-1]

        return hook

    hooks = [module.register_forward_hook(count(name)) for name, module in linear.items()]
    macs = count_operations(model, record.input_shape).macs
    for hook in hooks:
        hook.remove()
    kind_of = kinds_of_layers(model, linear)
    layers = [
        Layer(
            name, kind_of[name], shape_of(module), positions[name],
            sum(p.numel() for own, p in module.named_parameters() if own.endswith("weight")),
        )
        for name, module in linear.items()
        if positions[name]
    ]  # fmt: skip
    wanted = tuple(layer for layer in layers if layer.kind in kinds)
    if not wanted:
        there = sorted({layer.kind for layer in layers})
        raise UserError(
            f"are not in {record.name}" + (f", which has {', '.join(there)}" if there else ""),
            key=f"{KEY}.layers", value=",".join(kinds),
            remedy=f"e.g. '{KEY}.layers=[{there[0]}]'" if there else "choose a model with linear layers",
        )  # fmt: skip
    found = Found(wanted, {"macs": macs, "params": count_parameters(model)})
    _try(model, record, wanted)
    return found


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Those that are nobody else's in part or whole, factored ones too but not their parts."""
    found = {
        name: module for name, module in model.named_modules(remove_duplicate=False) if is_linear(module)
    }
    parts = {
        f"{name}.{part}" for name, m in found.items() if isinstance(m, FactoredLinear) for part in ("down", "up")
    }  # fmt: skip
    owners: Counter[int] = Counter()
    for module in model.modules():
        owners.update(id(parameter) for parameter in module._parameters.values() if parameter is not None)
    names = Counter(id(module) for module in found.values())
    return {
        name: module
        for name, module in found.items()
        if name not in parts
        and names[id(module)] == 1
        and all(owners[id(parameter)] == 1 for parameter in module.parameters())
    }


def _try(model: nn.Module, record: ArchitectureRecord, layers: Collection[Layer]) -> None:
    """See that the model runs with factored layers; it is changed."""
    apply(model, recorded(model, record_of({layer.name: 1 for layer in layers})))
    try:
        count_operations(model, record.input_shape)
    except AttributeError as error:
        raise UserError(
            f"{record.name} uses weights of linear layers that it also calls ({error})",
            key=f"{KEY}.layers", value=",".join(sorted({layer.kind for layer in layers})),
            remedy="choose other layers, or another model",
        ) from None  # fmt: skip
