"""A linear layer whose matrix is a product of two narrow ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class FactoredLinear(nn.Module):
    """y = up(down(x)): the matrix W (out, in) of a linear layer is up (out, rank) times down (rank, in).

    Both are plain linear layers: what knows those knows this one.

    Args:
        down: (rank, in).
        up: (out, rank).
        bias: (out,), or None.
    """

    def __init__(self, down: nn.Parameter, up: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        rank, into = down.shape
        # on the meta device, so that no random number is drawn for weights that are replaced
        self.down = nn.Linear(into, rank, bias=False, device="meta")
        self.up = nn.Linear(rank, len(up), bias=bias is not None, device="meta")
        self.down.weight, self.up.weight = down, up
        if bias is not None:
            self.up.bias = bias

    @property
    def in_features(self) -> int:
        """Width of what it takes."""
        return self.down.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Width of what it gives."""
        return self.up.weight.shape[0]

    @property
    def rank(self) -> int:
        """Width in between."""
        return self.down.weight.shape[0]

    @property
    def bias(self) -> nn.Parameter | None:
        """Of the outputs."""
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self.up(self.down(x))


def is_linear(module: object) -> bool:
    """A plain linear layer, whole or factored; a subclass may compute something else."""
    return type(module) in (nn.Linear, FactoredLinear)


def shape_of(layer: Any) -> tuple[int, int]:
    """(out, in) of a linear layer, whole or factored, or of a convolution's channels."""
    if isinstance(layer, FactoredLinear):
        return layer.out_features, layer.in_features
    out, into, *_ = layer.weight.shape
    return out, into


def matrix_of(layer: Any) -> Tensor:
    """W (out, in) of a linear layer, whole or factored, in double precision."""
    if isinstance(layer, FactoredLinear):
        return layer.up.weight.detach().double() @ layer.down.weight.detach().double()
    weight: Tensor = layer.weight.detach().double()
    return weight
