"""Attention to few rows that are learnt from keys and values."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from typing_extensions import override

from effvit_train.models.attention.base import Site, Swapped, rectangles
from effvit_train.models.attention.settings import count
from effvit_train.models.resample import averaging

_SIDE = 2  # patches per side that become a row at first, where nothing is said
_MOST = 16  # rows per side then: the paper's 256


class Linformer(Swapped):
    """Every token attends to the prefix and to k learnt mixtures of the patches' keys and values.

    Wang et al. 2020, eq. 7: softmax(Q (E K)^T / sqrt d) F V, with an E and an F for each block that its heads share.
    Both begin as averages over rectangles of the grid (over pieces of it, row by row, where k is no such number):
    the pooled attention, which is nearer to the exact one than noise is. They belong to one size of image.

    Args:
        exact: see `Swapped`.
        site: see `Swapped`.
        rank: k.
    """

    any_grid = False
    key_rows: nn.Linear
    value_rows: nn.Linear

    def __init__(self, exact: Attention, site: Site, *, rank: int) -> None:
        super().__init__(exact, site)
        weight = exact.qkv.weight
        for name in ("key_rows", "value_rows"):
            layer = nn.Linear(site.patches, rank, bias=False, device=weight.device, dtype=weight.dtype)
            with torch.no_grad():
                layer.weight.copy_(averages(rank, site.grid))
            self.add_module(name, layer)

    @classmethod
    def settled(cls, site: Site, *, rank: int | None = None) -> dict[str, Any]:
        """The settings; a row for each 2 x 2 patches, at most 256, where nothing is said."""
        if rank is None:
            rank = math.prod(min(math.ceil(n / _SIDE), _MOST) for n in site.grid)
        return {"rank": count("rank", rank, site.patches, what=", the number of patches")}

    @override
    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        n = self.prefix
        key, value = (
            torch.cat([part[:, :, :n], rows(part[:, :, n:].transpose(2, 3)).transpose(2, 3)], dim=2)
            for part, rows in ((key, self.key_rows), (value, self.value_rows))
        )
        return self.attend(query, key, value)

    @override
    def work(self, tokens: int) -> tuple[int, int, int]:
        rank, patches = self.key_rows.weight.shape
        return 0, 2 * tokens * (self.prefix + rank) + 2 * patches * rank, 0


def averages(count_: int, grid: tuple[int, int]) -> Tensor:
    """(count, patches): each row the average over a rectangle of the grid, or over a piece of it row by row."""
    pair = rectangles(count_, grid)
    if pair is None:
        return averaging(grid[0] * grid[1], count_)
    return torch.kron(averaging(grid[0], pair[0]), averaging(grid[1], pair[1]))
