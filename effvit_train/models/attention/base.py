"""What all kinds share that keep timm's projections: only what lies between them is another."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

_KEPT = ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop")


@dataclass(frozen=True)
class Site:
    """Where an attention stands.

    Attributes:
        block: its number, from 0.
        grid: rows and columns of patches.
        prefix: class, distillation and register tokens, which stand before the patches.
        head_width: of the exact attention.
    """

    block: int
    grid: tuple[int, int]
    prefix: int
    head_width: int

    @property
    def patches(self) -> int:
        """How many patches there are."""
        return self.grid[0] * self.grid[1]


class Swapped(nn.Module):
    """timm's `Attention` with another way from queries, keys and values to what the heads give.

    The letters of the shapes: B images, H heads, N tokens of which the first n are the prefix, d a head's width.

    Args:
        exact: whose projections, norms and drops it takes over, with their weights.
        site: where it stands.

    Attributes:
        narrows: whether dimensions of the heads can be cut away: what is zero there has no part in it.
        drops: whether it has probabilities that `attn_drop_rate` could drop.
    """

    narrows = True
    drops = True
    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Dropout
    norm: nn.Module
    gate: nn.Module | None
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(self, exact: Attention, site: Site) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = exact.num_heads, exact.head_dim, exact.attn_dim
        self.scale, self.fused_attn = exact.scale, exact.fused_attn
        for name in _KEPT:
            setattr(self, name, getattr(exact, name))
        self.grid, self.prefix = site.grid, site.prefix

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        if attn_mask is not None or is_causal:
            raise ValueError(f"{type(self).__name__} attention takes no mask")
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.mix(self.q_norm(query), self.k_norm(key), value).to(value.dtype)
        mixed = self.norm(mixed.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What the heads give, (B, H, N, d), of queries, keys and values (B, H, N, d)."""
        raise NotImplementedError

    def work(self, tokens: int) -> tuple[int, int, int]:
        """MACs of `mix` for one head and one image: a constant, times the width, times its square."""
        raise NotImplementedError

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T / sqrt d) v with q (B, H, M, d), k and v (B, H, L, d); `mask` is true where a key is seen."""
        if self.fused_attn:
            rate = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=rate, scale=self.scale
            )
        scores = query * self.scale @ key.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.attn_drop(scores.softmax(dim=-1)) @ value

    def grid_of(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of so many tokens: the model's own grid, or one of its shape for images of another size.

        Raises `ValueError` where there is none.
        """
        rows, columns = self.grid
        patches = tokens - self.prefix
        if patches != rows * columns:
            factor = math.sqrt(max(patches, 0) / (rows * columns))
            rows, columns = round(rows * factor), round(columns * factor)
        if patches < 1 or rows * columns != patches:
            raise ValueError(
                f"{tokens} tokens are not {self.prefix} and a grid of the shape of {self.grid[0]} x {self.grid[1]}"
            )
        return rows, columns

    def extra_repr(self) -> str:
        """Its settings."""
        return f"heads={self.num_heads}, grid={self.grid[0]}x{self.grid[1]}, prefix={self.prefix}"


def to_maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches (B, H, P, d) as images (B, H d, rows, columns)."""
    return tokens.permute(0, 2, 1, 3).flatten(2).unflatten(1, grid).permute(0, 3, 1, 2)


def from_maps(maps: Tensor, heads: int) -> Tensor:
    """Images (B, H d, rows, columns) as patches (B, H, P, d)."""
    return maps.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in fp32, or wider where they are."""
    kind = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return tuple(tensor.to(kind) for tensor in tensors)


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Where products stay in the precision of their operands, on the device of `tensor`."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def rectangles(count: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """`count` as rows x columns of rectangles on the grid, as near to its shape as can be; None where none fit."""
    shape = math.log(grid[0] / grid[1])
    fitting = [
        (rows, count // rows)
        for rows in range(1, min(count, grid[0]) + 1)
        if count % rows == 0 and count // rows <= grid[1]
    ]
    return min(fitting, key=lambda pair: abs(math.log(pair[0] / pair[1]) - shape), default=None)
