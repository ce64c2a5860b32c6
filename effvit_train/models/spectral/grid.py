"""What mixers on a grid of tokens share: the grid itself, and what tokens outside it get."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GridMixer(nn.Module):
    """A mixer of the tokens of a grid, in place of a block's attention.

    Prefix tokens (class, distillation, registers) stand in no place of the grid. Each reads the mean of the mixed
    grid, channel by channel, with a gate of its own (`PrefixRead`); the grid reads nothing from them. So a class
    token gathers what average pooling would give, from every block instead of the last one alone.

    Args:
        dim: D.
        grid: (H, W) of the patches.
        prefix: tokens before them.

    Raises:
        ValueError: a grid without rows or columns, a negative prefix.
    """

    any_grid = False

    def __init__(self, dim: int, grid: Sequence[int], prefix: int = 0) -> None:
        super().__init__()
        self.grid = check_grid(grid, prefix)
        self.num_prefix_tokens = prefix
        self.prefix = PrefixRead(prefix, dim) if prefix else None

    def mix(self, grid: Tensor) -> Tensor:
        """Mix the patches (B, H, W, D), in fp32 or wider."""
        raise NotImplementedError

    def resampled(self, weight: Tensor, grid: Sequence[int]) -> Tensor:
        """The weight that this mixer would have in place of one of a mixer on another grid."""
        raise NotImplementedError

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Mix the tokens (B, N, D); the result has the same shape and dtype.

        Raises `ValueError` for a mask, or another number of tokens than the grid has.
        """
        check_tokens(self, x, self.grid, self.num_prefix_tokens, attn_mask, is_causal)
        patches = widened(x[:, self.num_prefix_tokens :])
        mixed = self.mix(patches.unflatten(1, self.grid)).flatten(1, 2)
        if self.prefix is not None:
            mixed = torch.cat([self.prefix(mixed.mean(dim=1, keepdim=True)), mixed], dim=1)
        return mixed.to(x.dtype)

    def extra_repr(self) -> str:
        """The grid, for whoever prints the model."""
        return f"grid={self.grid}"


class PrefixRead(nn.Module):
    """Gates through which prefix tokens read a mean: (B, 1, D) -> (B, prefix, D), weights (prefix * D,) from 1.

    The weights are flat, as those of a normalisation are, so that optimizers decay them as little as those.
    """

    def __init__(self, prefix: int, dim: int) -> None:
        super().__init__()
        self.tokens = prefix
        self.weight = nn.Parameter(torch.ones(prefix * dim))

    def forward(self, mean: Tensor) -> Tensor:
        """What each prefix token gets."""
        return mean * self.weight.view(self.tokens, -1)


def check_grid(grid: Sequence[int], prefix: int) -> tuple[int, int]:
    """(H, W); `ValueError` for what is no grid with a prefix."""
    height, width = grid
    if height < 1 or width < 1 or prefix < 0:
        raise ValueError(f"{prefix} tokens and a grid of {height} x {width} are no tokens to mix")
    return int(height), int(width)


def check_tokens(
    module: nn.Module, x: Tensor, grid: tuple[int, int], prefix: int, mask: Tensor | None, causal: bool
) -> None:
    """Raise `ValueError` for tokens that are not those of the grid, or that may not see one another."""
    if mask is not None or causal:
        raise ValueError(f"{type(module).__name__} mixes all tokens: it takes no mask")
    if x.shape[1] != prefix + grid[0] * grid[1]:
        raise ValueError(
            f"{type(module).__name__} is given {x.shape[1]} tokens where it mixes {prefix} and a grid of "
            f"{grid[0]} x {grid[1]}"
        )


def widened(x: Tensor) -> Tensor:
    """In fp32, unless it is wider: sums over all tokens are not for half precision."""
    return x if x.dtype == torch.float64 else x.float()
