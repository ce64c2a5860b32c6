"""Linear layers become products of two narrow ones: the change of a model, and how a record tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from effvit_train.models.factored import FactoredLinear, is_linear, matrix_of, shape_of
from effvit_train.models.surgery import Change, Operation

KIND = "lowrank"  # of our entries in an architecture record


@dataclass(frozen=True)
class Factor(Change):
    """Write a linear layer W (out, in) as up (out, rank) times down (rank, in), in a basis that is given.

    With `lift`, down = `basis` (rank, in) and up = W `lift`. Without, up = `basis` (out, rank), which has
    orthonormal columns, and down = `basis`^T W. So all that follows the model, such as the average of its weights,
    is written in the same basis: averages of factors in different bases would mean nothing.

    With `mean` (in,), of the inputs, the bias takes over what the product loses of it: outputs keep their mean.
    """

    layer: str
    basis: Tensor
    lift: Tensor | None = None
    mean: Tensor | None = None

    @override
    def carry_out(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """See `Change`: the bias stays the parameter that it is, the factors start without a history."""
        layer: Any = model.get_submodule(self.layer)
        new = self.factored(layer)
        if layer.bias is not None:
            layer.bias.data.copy_(new.up.bias.data)
            new.up.bias = layer.bias
        if optimizer is not None:
            _swap(optimizer, _weights(layer), _weights(new))
        model.set_submodule(self.layer, new.train(layer.training))

    @torch.no_grad()
    def factored(self, layer: Any) -> FactoredLinear:
        """What the layer becomes, with parameters of its own."""
        matrix, (like, *_) = matrix_of(layer), _weights(layer)
        basis = self.basis.to(matrix)
        if self.lift is None:
            down, up = basis.mT @ matrix, basis
        else:
            down, up = basis, matrix @ self.lift.to(matrix)

        def parameter(values: Tensor) -> nn.Parameter:
            return nn.Parameter(values.to(like.dtype).contiguous(), requires_grad=like.requires_grad)

        bias = None if layer.bias is None else layer.bias.detach().clone()
        if bias is not None and self.mean is not None:
            bias += ((matrix - up @ down) @ self.mean.to(matrix)).to(bias.dtype)
        return FactoredLinear(parameter(down), parameter(up), None if bias is None else nn.Parameter(bias))


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in layer.named_parameters() if name.endswith("weight")]


def _swap(optimizer: torch.optim.Optimizer, old: list[nn.Parameter], new: list[nn.Parameter]) -> None:
    """Let new parameters stand where the first of the old ones stood; frozen ones stand nowhere."""
    gone = {id(parameter) for parameter in old}
    for group in optimizer.param_groups:
        kept: list[nn.Parameter] = []
        for parameter in group["params"]:
            if parameter is old[0]:
                kept += new
            elif id(parameter) not in gone:
                kept.append(parameter)
        group["params"] = kept
    for parameter in old:
        optimizer.state.pop(parameter, None)


def record_of(ranks: Mapping[str, int]) -> dict[str, Any]:
    """The entry of the architecture record: layer -> rank."""
    return {"kind": KIND, "layers": dict(ranks)}


def recorded(model: nn.Module, change: Mapping[str, Any]) -> list[Operation]:
    """The operations that give layers their recorded ranks; which basis they are written in is of no account.

    Raises `ValueError` for a change that cannot be made: the record is not of this model.
    """
    layers = change.get("layers")
    if not isinstance(layers, Mapping):
        raise ValueError("a low-rank change in the architecture record does not tell its layers")
    known = dict(model.named_modules())
    operations: list[Operation] = []
    for name, rank in layers.items():
        layer = known.get(name)
        if not is_linear(layer):
            raise ValueError(f"{name!r} is no linear layer that could be factored")
        out, into = shape_of(layer)
        if type(rank) is not int or not 1 <= rank <= min(out, into):
            raise ValueError(f"{name!r} of shape {out} x {into} cannot have the rank {rank!r}")
        if out <= into:
            operations.append(Factor(name, torch.eye(out, rank)))
        else:
            operations.append(Factor(name, torch.eye(rank, into), torch.eye(into, rank)))
    return operations
